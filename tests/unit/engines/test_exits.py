"""Every way in which a User-mode Linux process ends has its reason."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from nagaya.engines.engine import Exit, ExitReason, ProcessId
from nagaya.engines.exits import Status, classify, read_status, read_tail

PANIC = "<4>[    0.1] x\n<0>[    0.140000] Kernel panic - not syncing: VFS: no root\n<6>[ 0.2] more\n"
REBOOT = "reboot: Restarting system\nFailed to exec kernel: No such file or directory\n"


@pytest.mark.parametrize(
    ("status", "tail", "killed", "oom", "expected"),
    [
        (Status(0, None), "", False, 0, Exit(ExitReason.POWEROFF)),
        (Status(0, None), REBOOT, False, 0, Exit(ExitReason.REBOOT)),
        (Status(0, None), REBOOT + "x" * 600, False, 0, Exit(ExitReason.POWEROFF)),
        (Status(127, None), PANIC, False, 0, Exit(ExitReason.PANIC, "VFS: no root")),
        (Status(127, None), "", False, 0, Exit(ExitReason.PANIC)),
        (Status(1, None), PANIC, False, 0, Exit(ExitReason.PANIC, "VFS: no root")),
        (
            Status(1, None),
            "<3>[    0.1] mmap failed\n\n",
            False,
            0,
            Exit(ExitReason.CRASHED, "status 1, its last line: mmap failed"),
        ),
        (Status(None, signal.SIGKILL), "", True, 0, Exit(ExitReason.KILLED)),
        (Status(None, signal.SIGKILL), "", False, 0, Exit(ExitReason.KILLED, "SIGKILL, not sent by Nagaya")),
        (Status(None, signal.SIGSEGV), "", False, 0, Exit(ExitReason.CRASHED, "signal SIGSEGV")),
        (Status(None, signal.SIGTERM), "", True, 0, Exit(ExitReason.KILLED)),
        (None, "", True, 0, Exit(ExitReason.KILLED)),
        (None, REBOOT, False, 0, Exit(ExitReason.REBOOT)),
        (None, PANIC, False, 0, Exit(ExitReason.PANIC, "VFS: no root")),
        (None, "reboot: System halted\n", False, 0, Exit(ExitReason.POWEROFF)),
    ],
)
def test_reasons(status: Status | None, tail: str, killed: bool, oom: int, expected: Exit) -> None:
    assert classify(status, tail, killed=killed, oom_kills=oom) == expected


def test_the_oom_killer_is_named() -> None:
    ended = classify(Status(None, signal.SIGKILL), "", killed=False, oom_kills=1)
    assert ended.reason is ExitReason.CRASHED
    assert "out-of-memory" in ended.detail


def test_an_unseen_end_is_unknown() -> None:
    assert classify(None, "Linux version 6.1\n", killed=False, oom_kills=0).reason is ExitReason.UNKNOWN


def test_the_exit_file_of_another_process_is_not_ours(tmp_path: Path) -> None:
    file = tmp_path / "exit.json"
    process = ProcessId(42, 1000)
    assert read_status(file, process) is None
    for broken in ("", "{", "[]", "null", '{"pid": 42}'):
        file.write_text(broken)
        assert read_status(file, process) is None
    file.write_text(json.dumps({"pid": 42, "start_time": 999, "code": 0, "signal": None, "at": 1.0}))
    assert read_status(file, process) is None
    file.write_text(json.dumps({"pid": 42, "start_time": 1000, "code": 3, "signal": None, "at": 1.0}))
    assert read_status(file, process) == Status(3, None)


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    assert read_tail(log) == ""
    log.write_bytes(b"\xff" * 200_000 + b"end")
    assert len(read_tail(log)) <= 64 * 1024
    assert read_tail(log).endswith("end")
