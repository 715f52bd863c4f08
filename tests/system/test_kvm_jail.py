"""What a guest that took over its machine's process can reach: nothing of the host or of other machines."""

# ruff: noqa: ASYNC240, PTH115 - each test has an event loop of its own; /proc links are no paths

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nagaya.abi import linux
from nagaya.engines.engine import ExitReason, GuestState, ProcessId
from nagaya.engines.kvm import KvmEngine, launch_plan
from nagaya.engines.launch import ZygoteClient
from nagaya.engines.qmp import ask
from nagaya.errors import PermissionDeniedError, ResourceError, UnavailableError
from nagaya.paths import Paths
from nagaya.resources.cgroups import Cgroup
from nagaya.spec import MachineSpec
from nagaya.testing.kvm_yard import KvmYard
from nagaya.testing.yard import wait_until

pytestmark = [pytest.mark.root, pytest.mark.kvm]

PROBE = Path(__file__).with_name("kvm_jail_probe.py")
NAMESPACES = ("mnt", "pid", "ipc", "uts", "net", "cgroup")
CAPABILITY_FIELDS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


Run = Callable[[Callable[[KvmYard], Any]], None]


@pytest.fixture
def yard(paths: Paths) -> Run:
    """Runs a coroutine function with a `KvmYard`, and cleans up after it."""

    async def whole(test: Callable[[KvmYard], Any]) -> None:
        one = KvmYard(paths)
        try:
            await test(one)
        finally:
            await one.close()

    return lambda test: asyncio.run(whole(test))


def test_a_taken_over_process_gets_nowhere(
    yard: Run, host_listeners: tuple[int, str], tmp_path: Path
) -> None:
    """A process in the very jail of a machine tries some eighty ways out."""

    async def test(yard: KvmYard) -> None:
        machine, other = yard.machine(), yard.machine()
        await yard.start(other)
        plan = launch_plan(machine, Cgroup({}), Path(machine.kernel.path))
        (tmp_path / "plan").write_text(json.dumps(plan.to_json()))
        (tmp_path / "root").mkdir()
        tcp, abstract = host_listeners
        words = (str(os.getpid()), str(yard.paths.api_socket), abstract)
        jails = (str(machine.paths.jail), str(other.paths.jail))
        places = (str(PROBE), str(tmp_path / "plan"), str(tmp_path / "root"))
        command = [sys.executable, *places, *words, *jails, str(tcp)]
        said = await asyncio.to_thread(lambda: subprocess.check_output(command, timeout=60))
        found = json.loads(said)
        results, seen = found["results"], found["seen"]
        assert {name: result for name, result in results.items() if result == "done"} == {}
        assert len(results) > 70
        for name in ("mount", "unshare user", "bpf", "execute", "kill a process of the host", "clone3"):
            assert results[name] == "ENOSYS", name
        for name in ("fork", "connect by TCP", "map memory to execute", "type into a terminal"):
            assert results[name] == "EPERM", name
        # Standard streams, /dev/kvm, its own mappings, the monitor's socket, the report.
        assert seen["descriptors"] == 7
        assert seen["listening"] == [str(machine.paths.qmp_socket)]
        assert seen["pid"] == 1

    yard(test)


def test_a_machines_process_is_unprivileged_and_confined(yard: Run) -> None:
    async def test(yard: KvmYard) -> None:
        machine = yard.machine(cpus=2)
        process = await yard.start(machine)
        pid = process.pid
        status = dict(
            re.findall(r"^(\w+):[ \t]*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        )
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(machine.uid)}
        assert status["Groups"].strip() == ""
        assert all(int(status[field], 16) == 0 for field in CAPABILITY_FIELDS)
        for task in Path(f"/proc/{pid}/task").iterdir():
            text = (task / "status").read_text()
            assert "kvm-nx" in text or ("NoNewPrivs:\t1" in text and "Seccomp:\t2" in text)
        for kind in NAMESPACES:
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
        files = {"/dev/kvm", "/memfd:guest-ram (deleted)"}
        await wait_until(lambda: _files(pid) == files)  # its list of mappings is closed within seconds
        root = Path(f"/proc/{pid}/root")
        jail = str(machine.paths.jail)[1:]
        inside = {str(path.relative_to(root)) for path in root.rglob("*")}
        assert inside == {jail, "kernel"} | {str(parent) for parent in Path(jail).parents} - {"."}
        mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        assert len(mounts) == 3  # root, jail, kernel
        for line in mounts:
            assert {"ro", "nosuid", "nodev"} <= set(line.split()[5].split(",")), line

    yard(test)


def test_an_idle_machine_sleeps(yard: Run) -> None:
    async def test(yard: KvmYard) -> None:
        process = await yard.start(yard.machine(cpus=2))
        for _ in range(30):  # on a slow host it takes a while to come to rest
            before = _switches(process.pid)
            await asyncio.sleep(1)
            if _switches(process.pid) == before:
                return
        pytest.fail("some thread wakes up again and again")

    yard(test)


def test_pause_resume_and_state_go_by_the_monitor(yard: Run) -> None:
    async def test(yard: KvmYard) -> None:
        machine = yard.machine()
        process = await yard.start(machine)
        for _ in range(2):
            await yard.engine.pause(machine, process)
            assert await yard.engine.state(machine, process) is GuestState.PAUSED
        for _ in range(2):
            await yard.engine.resume(machine, process)
            assert await yard.engine.state(machine, process) is GuestState.RUNNING
        await yard.engine.kill(machine, process)
        assert await yard.engine.state(machine, process) is GuestState.GONE

    yard(test)


def test_a_machine_goes_back_to_the_zygotes_pages(yard: Run) -> None:
    """Also a paused one, which stays so."""

    async def test(yard: KvmYard) -> None:
        machine, paused = yard.machine(), yard.machine()
        process, still = await yard.start(machine), await yard.start(paused)
        await yard.engine.pause(paused, still)
        copied = [_copied_kib(one.pid) for one in (process, still)]
        for one, before in zip((process, still), copied, strict=True):
            await _falls_below(one, before - 512)
        assert await yard.engine.state(machine, process) is GuestState.RUNNING
        assert await yard.engine.state(paused, still) is GuestState.PAUSED

    yard(test)


def test_a_machine_outlives_the_zygote_and_the_next_start_makes_another(yard: Run) -> None:
    async def test(yard: KvmYard) -> None:
        first, second = yard.machine(), yard.machine()
        process = await yard.start(first)
        os.kill((await yard.engine.prepare()).pid, signal.SIGKILL)
        await yard.start(second)
        await yard.engine.pause(first, process)
        assert await yard.engine.state(first, process) is GuestState.PAUSED
        await yard.engine.resume(first, process)
        await ask("m0", first.paths.qmp_socket, "quit")
        ended = await yard.engine.wait(first, process)
        assert ended.reason is ExitReason.UNKNOWN, "nobody read what it said"

    yard(test)


def test_memory_that_cannot_be_had_is_said_and_leaves_nothing(yard: Run) -> None:
    async def test(yard: KvmYard) -> None:
        with pytest.raises(ResourceError, match="memory"):
            await yard.engine.start(yard.machine(memory="64TiB"))
        client = ZygoteClient(yard.paths)
        async with asyncio.timeout(60):
            while await client.list():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    yard(test)


def test_a_host_without_kvm_says_what_to_do(paths: Paths) -> None:
    def hide() -> None:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
        linux.mount("none", "/dev", "tmpfs", 0)

    assert _refused(paths, UnavailableError, hide)


def test_a_user_without_the_right_is_told(paths: Paths) -> None:
    assert _refused(paths, PermissionDeniedError, lambda: os.setresuid(61998, 61998, 61998))


def _refused(paths: Paths, kind: type[Exception], change: Callable[[], None]) -> bool:
    """Whether `check` raises `kind` in a process that made a change to its world."""
    pid = os.fork()
    if pid == 0:
        try:
            change()
            KvmEngine(paths).check(MachineSpec(name="web"))
        except kind:
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


async def _falls_below(process: ProcessId, kib: int) -> None:
    await wait_until(lambda: _copied_kib(process.pid) < kib)


def _files(pid: int) -> set[str]:
    """What the process has open that is neither a pipe nor a socket."""
    targets = [_target(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    return {target for target in targets if target.startswith("/")}


def _target(fd: Path) -> str:
    """What a descriptor is of; nothing, if it was closed meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return os.readlink(fd)
    return ""


def _copied_kib(pid: int) -> int:
    """Memory that the process shares with none."""
    found = re.search(r"Private_Dirty: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text())
    return int(found[1]) if found else 0


def _switches(pid: int) -> int:
    """How often the threads of a process were given a CPU."""
    return sum(
        int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if "ctxt_switches" in line
    )
