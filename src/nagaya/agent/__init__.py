"""Talking to the standard qemu-guest-agent inside a machine."""

from nagaya.agent.client import AgentInfo, ExecResult, GuestAgent

__all__ = ["AgentInfo", "ExecResult", "GuestAgent"]
