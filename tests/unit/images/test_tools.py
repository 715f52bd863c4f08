"""Programs of a build: their errors, their cancellation, their end with the one who started them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya.errors import BuildError, ResourceError, UnavailableError
from nagaya.images import tools
from nagaya.images.tools import Runner, find_tool, in_thread
from nagaya.images.workarea import WorkArea


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    runner = Runner()
    with WorkArea(tmp_path).work() as runner.work:
        yield runner


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_SEARCH", "/nonexistent")
    with pytest.raises(UnavailableError, match="mmdebstrap is not on this host") as caught:
        find_tool("mmdebstrap")
    assert caught.value.hint == "install it: apt-get install mmdebstrap"
    with pytest.raises(UnavailableError) as caught:
        find_tool("busybox")
    assert "busybox-static" in caught.value.hint


def test_a_failure_has_the_step_and_the_end_of_the_output(runner: Runner) -> None:
    with pytest.raises(BuildError, match="count: sh failed with exit status 3") as caught:
        runner.run("count", ["sh", "-c", "seq 1 100; exit 3"])
    assert caught.value.hint.endswith("\n98\n99\n100")
    assert "\n79\n" not in caught.value.hint


def test_a_full_disk_is_called_so(runner: Runner) -> None:
    with pytest.raises(ResourceError, match="write: the disk is full"):
        runner.run("write", ["cp", "/proc/version", "/dev/full"])


def test_lines_are_seen_as_they_come(runner: Runner) -> None:
    lines: list[bytes] = []
    runner.run("print", ["sh", "-c", "echo one; echo two >&2"], on_line=lines.append)
    assert lines == [b"one\n", b"two\n"]
    assert runner.work.log.read_bytes() == b"one\ntwo\n"


def test_cancel_ends_the_program_and_refuses_the_next(runner: Runner) -> None:
    timer = threading.Timer(0.3, runner.cancel)
    timer.start()
    start = time.monotonic()
    with pytest.raises(BuildError, match="cancelled"):
        runner.run("sleep", ["sh", "-c", "sleep 60"])
    assert time.monotonic() - start < 10
    timer.join()
    with pytest.raises(BuildError, match="cancelled"):
        runner.run("next", ["true"])


def test_a_cancelled_task_returns_when_the_build_has_cleaned_up(tmp_path: Path) -> None:
    area = WorkArea(tmp_path)
    started = threading.Event()

    def build(runner: Runner) -> None:
        with area.work() as runner.work:
            started.set()
            runner.run("sleep", ["sh", "-c", "sleep 60"])

    async def main() -> None:
        task = asyncio.create_task(in_thread(build))
        await asyncio.to_thread(started.wait)
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert list(area.directory("work").iterdir()) == []


def test_a_program_keeps_its_directory_locked(runner: Runner, tmp_path: Path) -> None:
    seen: list[int] = []

    def look(_line: bytes) -> None:
        WorkArea(tmp_path).sweep()
        seen.append(len(list((tmp_path / "work").iterdir())))

    runner.run("look", ["sh", "-c", "echo now; sleep 0.2"], on_line=look)
    assert seen == [1]
