"""What a killed test run left is ended and removed by the next, and nothing else is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya.testing import scratch

# A run that makes a directory, leaves a process that ignores SIGTERM and one that does not, and waits.
RUN = """
import signal, subprocess, sys, time
from pathlib import Path
from nagaya.testing import scratch
scratch.RUN_VARIABLE, scratch._TOP = sys.argv[1], Path(sys.argv[2])
scratch.begin_run()
top = scratch.make_directory()
(top / "r").mkdir()
python = [sys.executable, "-I", "-S", "-c"]
sleep = "import time; time.sleep(600)"
stubborn = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); " + sleep
one = subprocess.Popen([*python, sleep], start_new_session=True)
two = subprocess.Popen([*python, stubborn], start_new_session=True, stdout=subprocess.PIPE)
two.stdout.readline()
print(top, one.pid, two.pid, flush=True)
time.sleep(600)
"""


VARIABLE = "NAGAYA_TEST_OF_SCRATCH"


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, directory: Path) -> Path:
    """A place and a name of this test's own: what other test runs on this host sweep is none of it."""
    monkeypatch.setattr(scratch, "_TOP", directory)
    monkeypatch.setattr(scratch, "RUN_VARIABLE", VARIABLE)
    monkeypatch.setenv(VARIABLE, "")
    scratch.begin_run()
    return directory


@pytest.fixture
def run(place: Path) -> Iterator[tuple[subprocess.Popen[str], Path, list[int]]]:
    command = [sys.executable, "-c", RUN, VARIABLE, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        top, *pids = process.stdout.readline().split()
        yield process, Path(top), [int(pid) for pid in pids]
        process.kill()
        process.wait()
        scratch.sweep()


def ended(pid: int) -> bool:
    """Gone, or a zombie that its new parent has not buried."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_what_a_killed_run_left_is_ended_and_removed(
    run: tuple[subprocess.Popen[str], Path, list[int]],
) -> None:
    process, top, pids = run
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert top.exists() and not any(ended(pid) for pid in pids)
    done = "\n".join(scratch.sweep())
    assert str(top) in done and all(str(pid) in done for pid in pids)
    assert not top.exists() and all(ended(pid) for pid in pids)
    assert scratch.sweep() == []


def test_a_run_that_lives_is_left_alone(run: tuple[subprocess.Popen[str], Path, list[int]]) -> None:
    _, top, pids = run
    scratch.sweep()
    assert top.exists() and not any(ended(pid) for pid in pids)


def test_a_reused_pid_is_not_the_run(run: tuple[subprocess.Popen[str], Path, list[int]]) -> None:
    """The run is told by its start time too: a directory of this pid, but of another process."""
    _, top, _ = run
    (top / scratch.OWNER_FILE).write_text(f"{os.getpid()}-1")
    scratch.sweep()
    assert not top.exists()


def test_directories_of_others_and_of_this_run_stay() -> None:
    mine = scratch.make_directory()
    unmarked = scratch.make_directory()
    (unmarked / scratch.OWNER_FILE).unlink()
    scratch.sweep()
    assert mine.exists() and unmarked.exists()
    for directory in (mine, unmarked):
        shutil.rmtree(directory)


@pytest.mark.root
def test_a_mount_in_a_directory_goes_first(run: tuple[subprocess.Popen[str], Path, list[int]]) -> None:
    process, top, _ = run
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", top / "r"], check=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    scratch.sweep()
    assert not top.exists()
    assert str(top) not in Path("/proc/self/mountinfo").read_text()
