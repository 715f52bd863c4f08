"""How a machine ends: a reason and a sentence, told by its process' exit status and last line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a machine of the kvm engine ended."""

    POWEROFF = "poweroff"  # the guest switched itself off
    RESET = "reset"  # it asked for a restart, which is the daemon's to do (`MachineConfig.reboot`)
    PANIC = "panic"  # its kernel said so (pvpanic)
    FAULT = "fault"  # its CPU cannot go on: triple fault, an instruction that KVM cannot finish
    FAILED = "failed"  # our own fault, or the host's
    QUIT = "quit"  # the monitor was told to


STATUS = {
    Reason.POWEROFF: 0,
    Reason.QUIT: 0,
    Reason.FAILED: 1,
    Reason.RESET: 10,
    Reason.PANIC: 20,
    Reason.FAULT: 30,
}


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a machine. `cause` is a sentence for people, empty where the reason says it all."""

    reason: Reason
    cause: str = ""

    @property
    def status(self) -> int:
        """What the process exits with."""
        return STATUS[self.reason]

    def to_line(self) -> str:
        """The line that the process prints last."""
        return json.dumps({"ending": self.reason, "cause": self.cause})


def read_ending(log: str) -> Ending | None:
    """What `to_line` printed as the last line of `log`, or None."""
    lines = log.rstrip().rsplit("\n", 1)
    try:
        body = json.loads(lines[-1])
        return Ending(Reason(body["ending"]), str(body["cause"]))
    except (ValueError, KeyError, TypeError):
        return None
