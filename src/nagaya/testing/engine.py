"""An engine whose machines are sleeping processes, which start, pause and end, and outlive the daemon.

What a machine does is said in `spec.boot.cmdline`:

- `fake.stubborn` does not shut down when asked;
- `fake.end=SECONDS:STATUS` ends by itself: 0 powers off, 10 asks for a reboot, 20 panics, others crash;
- `fake.refuse` cannot be started.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from nagaya.daemon.adoption import is_alive, start_time
from nagaya.engines.engine import Exit, ExitReason, GuestState, Machine, ProcessId
from nagaya.errors import UnavailableError, UnsupportedError
from nagaya.knobs import CpuKnobs
from nagaya.spec import EngineName, MachineSpec

UNSUPPORTED_WEIGHT = 6666
_GUEST = """
import os, signal, sys, time
name, exit_file, stubborn, seconds, status = sys.argv[1:6]
def end(status):
    with open(exit_file + ".new", "w") as file:
        file.write(str(status))
    os.rename(exit_file + ".new", exit_file)
    os._exit(status)
signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn == "1" else lambda *_: end(0))
if os.fork():
    os._exit(0)
os.setsid()
os.write(1, str(os.getpid()).encode())
os.close(1)
time.sleep(float(seconds))
end(int(status))
"""
_REASONS = {0: ExitReason.POWEROFF, 10: ExitReason.REBOOT, 20: ExitReason.PANIC}


class FakeEngine:
    """See the module."""

    name: EngineName = "uml"
    serial_console = False

    def __init__(self) -> None:
        self.adjusted: dict[str, CpuKnobs] = {}
        self.held: dict[str, int] = {}

    def check(self, spec: MachineSpec) -> None:
        """Refuse what the real one refuses first."""
        if spec.cpus != 1:
            raise UnsupportedError(
                f"cpus: {spec.cpus} is not possible with engine uml, only 1 is", field="cpus"
            )

    async def start(self, machine: Machine) -> ProcessId:
        """Start a sleeper that is nobody's child, in a session of its own, so that it outlives us."""
        options = _options(machine.spec)
        if "fake.refuse" in options:
            raise UnavailableError(f"{machine.spec.name}: the fake engine was told to refuse")
        seconds, _, status = options.get("fake.end", "86400:0").partition(":")
        stubborn = "1" if "fake.stubborn" in options else "0"
        arguments = [_marker(machine), str(machine.paths.exit_file), stubborn, seconds, status]
        starter = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", "-c", _GUEST, *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        said, _ = await starter.communicate()
        started = start_time(int(said)) if said else None
        if started is None:
            raise UnavailableError(f"{machine.spec.name}: its process ended at once")
        return ProcessId(int(said), started)

    async def request_shutdown(self, machine: Machine, process: ProcessId) -> None:
        """SIGTERM."""
        _send(process, signal.SIGTERM)

    async def kill(self, machine: Machine, process: ProcessId) -> None:
        """SIGKILL, and wait."""
        _send(process, signal.SIGKILL)
        await _gone(process)

    async def pause(self, machine: Machine, process: ProcessId) -> None:
        """SIGSTOP."""
        _send(process, signal.SIGSTOP)

    async def resume(self, machine: Machine, process: ProcessId) -> None:
        """SIGCONT."""
        _send(process, signal.SIGCONT)

    async def plug(self, machine: Machine, process: ProcessId, device: str) -> None:
        """The guest takes any."""

    async def unplug(self, machine: Machine, process: ProcessId, device: str) -> None:
        """And lets go at once."""

    async def hold(self, machine: Machine, memory: int) -> None:
        """Remember it."""
        self.held[machine.id] = memory

    async def adjust(self, machine: Machine) -> None:
        """Remember the knobs, or refuse a weight of 6666."""
        if machine.spec.cpu.weight == UNSUPPORTED_WEIGHT:
            raise UnsupportedError(f"{machine.spec.name}: the fake engine was told to refuse")
        self.adjusted[machine.id] = machine.spec.cpu

    async def state(self, machine: Machine, process: ProcessId) -> GuestState:
        """As the kernel sees the process."""
        if not is_alive(process):
            return GuestState.GONE
        return GuestState.PAUSED if _is_stopped(process.pid) else GuestState.RUNNING

    async def wait(self, machine: Machine, process: ProcessId) -> Exit:
        """Wait for its end, also if an earlier daemon started it."""
        await _gone(process)
        try:
            status = json.loads(machine.paths.exit_file.read_text())
        except (OSError, ValueError):
            return Exit(ExitReason.KILLED, "no exit status")
        return Exit(_REASONS.get(status, ExitReason.CRASHED), f"status {status}")

    async def cleanup(self, machine: Machine) -> None:
        """End whatever process of the machine is left, known or not."""
        _kill_all(_marker(machine).encode())


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _kill_all(marker: bytes) -> None:
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            _kill_if(int(directory.name), marker)


def _kill_if(pid: int, marker: bytes) -> None:
    try:
        if marker in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return


async def _gone(process: ProcessId) -> None:
    """Wait on a pidfd: it works for processes that are not our children."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        if start_time(process.pid) in (process.start_time, None):
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _send(process: ProcessId, number: signal.Signals) -> None:
    if is_alive(process):
        os.kill(process.pid, number)


def _marker(machine: Machine) -> str:
    return f"nagaya-fake-machine-{machine.id}"


def _options(spec: MachineSpec) -> dict[str, str]:
    pairs = (word.partition("=") for word in spec.boot.cmdline.split())
    return {key: value for key, _, value in pairs}
