"""Why a machine's process ended, from its exit status and its log.

User-mode Linux: arch/um/os-Linux/{main,util}.c. The kvm engine: `nagaya.kvm.ending`.
"""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from nagaya.engines.engine import Exit, ExitReason, ProcessId
from nagaya.engines.seccomp import PANIC_STATUS
from nagaya.kvm.ending import Reason, read_ending

_TAIL_BYTES = 64 * 1024
_WORDS = 200  # characters of a line that is shown as a cause
_UNSEEN = "it ended while nobody could see its status"
_PANIC = re.compile(r"Kernel panic - not syncing: (.*)")
# A restarting guest executes its own binary again. The name it was given is found nowhere in the jail, so it
# prints this and ends with status 0.
_REBOOT = "Failed to exec kernel"
_POWEROFF = re.compile(r"reboot: (System halted|Power down)")
_PREFIX = re.compile(r"^(<\d+>)?(\[ *\d+\.\d+\] )?")


@dataclass(frozen=True, slots=True)
class Status:
    """What the zygote wrote when it reaped the process: exactly one of `code` and `signal` is there."""

    code: int | None
    signal: int | None


def read_status(exit_file: Path, process: ProcessId) -> Status | None:
    """The status of `process`, or None if the file is missing or tells of another process."""
    try:
        body = json.loads(exit_file.read_text())
        if (body["pid"], body["start_time"]) != (process.pid, process.start_time):
            return None
        return Status(body["code"], body["signal"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_tail(log: Path) -> str:
    """The end of the engine's log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


_KVM_REASONS = {
    Reason.POWEROFF: ExitReason.POWEROFF,
    Reason.QUIT: ExitReason.KILLED,
    Reason.RESET: ExitReason.REBOOT,
    Reason.FAULT: ExitReason.FAULT,
    Reason.FAILED: ExitReason.CRASHED,
}


def classify_kvm(
    status: Status | None, tail: str, *, console: str = "", killed: bool, oom_kills: int
) -> Exit:
    """Why a machine of the kvm engine ended, as `classify`. `console`: the end of what its guest printed."""
    ending = read_ending(tail)
    if ending is not None and (status is None or status.code == ending.status):
        if ending.reason is Reason.PANIC:
            return Exit(ExitReason.PANIC, _panic_of(console))
        return Exit(_KVM_REASONS[ending.reason], ending.cause)
    if status is None:
        return Exit(ExitReason.KILLED if killed else ExitReason.UNKNOWN, "" if killed else _UNSEEN)
    if status.signal is not None:
        return _from_signal(status.signal, tail, killed, oom_kills)
    return Exit(ExitReason.CRASHED, f"status {status.code}{_comma(_last_line(tail))}")


def classify(status: Status | None, tail: str, *, killed: bool, oom_kills: int) -> Exit:
    """Why User-mode Linux ended.

    `killed`: we were asked to. `oom_kills`: processes that the host's OOM killer took.
    """
    if status is None:
        return Exit(ExitReason.KILLED) if killed else _from_log(tail)
    if status.signal is not None:
        return _from_signal(status.signal, tail, killed, oom_kills)
    if status.code == 0:
        return Exit(ExitReason.REBOOT if _REBOOT in tail[-512:] else ExitReason.POWEROFF)
    panic = _PANIC.search(tail)
    if panic or status.code == PANIC_STATUS:
        return Exit(ExitReason.PANIC, panic.group(1).strip() if panic else "")
    return Exit(ExitReason.CRASHED, f"status {status.code}{_comma(_last_line(tail))}")


def _panic_of(console: str) -> str:
    """The guest's last words on it; a guest may print anything, terminals' escape sequences too."""
    panics = _PANIC.findall(console)
    return "".join(filter(str.isprintable, panics[-1]))[:_WORDS] if panics else ""


def _from_signal(number: int, tail: str, killed: bool, oom_kills: int) -> Exit:
    if oom_kills:
        detail = "the host's out-of-memory killer took it: its memory limit was reached"
        return Exit(ExitReason.CRASHED, detail)
    if killed:
        return Exit(ExitReason.KILLED)
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        return Exit(ExitReason.KILLED, f"{name}, not sent by Nagaya")
    return Exit(ExitReason.CRASHED, f"signal {name}{_comma(_last_line(tail))}")


def _from_log(tail: str) -> Exit:
    if _REBOOT in tail[-512:]:
        return Exit(ExitReason.REBOOT)
    panic = _PANIC.search(tail)
    if panic:
        return Exit(ExitReason.PANIC, panic.group(1).strip())
    if _POWEROFF.search(tail):
        return Exit(ExitReason.POWEROFF)
    return Exit(ExitReason.UNKNOWN, _UNSEEN)


def _last_line(tail: str) -> str:
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return _PREFIX.sub("", lines[-1])[:_WORDS] if lines else ""


def _comma(text: str) -> str:
    return f", its last line: {text}" if text else ""
