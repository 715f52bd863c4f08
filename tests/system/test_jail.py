"""What a hostile guest that took over its kernel can reach: nothing of the host or of other machines."""

# ruff: noqa: ASYNC222, ASYNC240, PTH115 - each test has an event loop of its own; /proc links are no paths

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nagaya.engines import uml
from nagaya.engines.command import RAM_SLACK, launch_plan
from nagaya.engines.engine import Machine
from nagaya.engines.launch import ZygoteClient
from nagaya.engines.plan import Bind, LaunchPlan
from nagaya.errors import MachineFailedError, UnavailableError
from nagaya.kernel import Kernel
from nagaya.resources.cgroups import Cgroup
from nagaya.testing.yard import Yard, end_of, pss_kib, said, wait_until

Run = Callable[[Callable[[Yard], Any]], Any]
pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]
PROBE = Path(__file__).with_name("jail_probe.py")
PYTHON = os.path.realpath(sys.executable)
CAPABILITY_FIELDS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def test_a_taken_over_kernel_gets_nowhere(yard: Run, host_listeners: tuple[int, str]) -> None:
    """Python runs in the kernel's place, in the very jail of a machine, and tries some eighty ways out."""

    async def test(yard: Yard) -> None:
        machine, other = yard.machine("count"), yard.machine("count")
        await yard.engine.start(other)
        tcp, abstract = host_listeners
        arguments = (str(yard.paths.api_socket), abstract, str(machine.paths.jail), str(other.paths.jail))
        found = await _probe(yard, machine, *arguments, str(tcp))
        results, seen = found["results"], found["seen"]
        assert {name: result for name, result in results.items() if result == "done"} == {}
        assert len(results) > 70
        for name in ("mount", "unshare user", "bpf", "keyctl", "io_uring_setup", "perf_event_open", "clone3"):
            assert results[name] == "ENOSYS"
        for name in ("raw socket", "connect by TCP", "clone in a new user namespace"):
            assert results[name] == "EPERM"
        assert seen["descriptors"] == [0, 1, 2]
        assert seen["proc"] == ["cpuinfo"]
        assert seen["jail"] == []
        assert seen["pid"] == 1
        assert seen["hostname"] == machine.spec.name
        assert seen["ram"] <= machine.spec.memory.size + RAM_SLACK
        ours = {Path(bind).parts[1] for bind in _python_files()}
        assert set(seen["root"]) == ours | {"probe.py", "proc", "ram", machine.paths.jail.parts[1]}

    yard(test)


def test_the_root_of_a_machine_is_empty(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("count")
        process = await yard.engine.start(machine)
        await said(machine, "COUNT 1")
        root = Path(f"/proc/{process.pid}/root")
        names = {str(path.relative_to(root)) for path in root.rglob("*")}
        jail = str(machine.paths.jail)[1:]
        parents = {str(parent) for parent in Path(jail).parents} - {"."}
        assert names == parents | {
            *(jail, "linux", "initrd", "proc", "proc/cpuinfo", "ram"),
            *("ram/0", "ram/0/mconsole", "ram/0/pid"),
        }
        mounts = Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()
        assert len(mounts) == 5  # root, jail, kernel, initrd, memory
        for line in mounts:
            options = line.split()[5].split(",")
            assert {"nosuid", "nodev"} <= set(options), line
            assert "ro" in options or line.split()[4] == "/ram", line

    yard(test)


def test_every_process_of_a_machine_is_unprivileged_and_confined(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("count")
        process = await yard.engine.start(machine)
        await said(machine, "COUNT 1")
        await yard.engine.pause(machine, process)  # so that none ends while it is looked at
        pids = _group(machine).pids()
        assert len(pids) > 1
        for pid in pids:
            status = dict(
                re.findall(r"^(\w+):[ \t]*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            )
            assert set(status["Uid"].split()) == {str(machine.uid)}
            assert set(status["Gid"].split()) == {str(machine.gid)}
            assert status["Groups"].strip() == ""
            assert all(int(status[field], 16) == 0 for field in CAPABILITY_FIELDS)
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
            for kind in ("mnt", "pid", "ipc", "uts", "net", "cgroup"):
                assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"Max core file size\s+0\s+0", limits)
            targets = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
            strangers = [one for one in targets if one.startswith("/") and not one.startswith("/ram/")]
            assert strangers == [], "a descriptor of the host leaked"

    yard(test)


def test_two_machines_share_nothing(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machines = [yard.machine("count") for _ in range(2)]
        first, second = [await yard.engine.start(machine) for machine in machines]
        for machine in machines:
            await said(machine, "COUNT 1")
        for kind in ("mnt", "pid", "ipc", "uts", "net", "cgroup"):
            assert os.readlink(f"/proc/{first.pid}/ns/{kind}") != os.readlink(f"/proc/{second.pid}/ns/{kind}")
        memories = [
            {
                (fields[3], fields[4])
                for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()
                if "/ram/" in line and (fields := line.split())
            }
            for process in (first, second)
        ]
        assert memories[0] and memories[1] and not memories[0] & memories[1]
        root = Path(f"/proc/{first.pid}/root")
        assert not (root / str(machines[1].paths.jail)[1:]).exists()
        assert machines[0].uid != machines[1].uid

    yard(test)


def test_our_kernel_has_no_hostfs(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("hostfs")
        await yard.engine.start(machine)
        log = await said(machine, "HOSTFS-DONE")
        assert "HAS-HOSTFS" not in log
        assert "NOT-MOUNTED" in log

    yard(test)


def test_guest_root_mounts_hostfs_and_finds_nothing_of_the_host(
    yard: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Debian's kernel, which has hostfs, guest root sees its jail and no more."""
    monkeypatch.setattr(uml, "launch_plan", _debian_plan(tmp_path))

    async def test(yard: Yard) -> None:
        machine = yard.machine("hostfs", memory="96MiB")
        process = await yard.engine.start(machine)
        log = await said(machine, "HOSTFS-DONE", 60)
        assert "HAS-HOSTFS" in log
        assert "MOUNTED\n/mnt\n" in log
        assert "can't open '/mnt/etc/passwd'" in log
        root = Path(f"/proc/{process.pid}/root")
        inside = {f"/mnt/{path.relative_to(root)}" for path in root.rglob("*")} | {"/mnt"}
        assert {line for line in log.splitlines() if line.startswith("/mnt")} <= inside
        assert not any("passwd" in path or "shadow" in path for path in inside)

    yard(test)


def test_a_step_that_fails_is_named(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("count")
        await yard.engine.prepare()
        plan = launch_plan(machine, Cgroup({}), None)
        client = ZygoteClient(yard.paths)
        broken = {
            "build the new root": {"binds": (Bind("/no/such/file", "/linux"),)},
            "execute /no": {"executable": "/no"},
            "join the control groups": {"tasks": ("/no/such/group/tasks",)},
            "set limits": {"rlimits": {"nofile": -2}},
            "install the seccomp filters": {"seccomp": (b"\xff" * 8,)},
        }
        for step, change in broken.items():
            changed: LaunchPlan = dataclasses.replace(plan, **change)  # type: ignore[arg-type]
            with pytest.raises(MachineFailedError, match=step):
                await client.launch(changed)
        await wait_until(lambda: not _children(yard))
        assert await client.list() == {}

    yard(test)


def test_the_zygote_refuses_what_it_does_not_understand(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        await yard.engine.prepare()
        messages = (
            b"",
            b"{",
            b"[]",
            b"null",
            b'{"do": "eat"}',
            b'{"do": "launch"}',
            b'{"do": "launch", "plan": {}}',
        )
        for message in (*messages, b"\xff" * 1000, b"[" * 100_000):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.connect(str(yard.paths.zygote_socket))
                client.send(message)
                client.settimeout(5)
                answer = client.recv(4096)
            assert not answer or "error" in json.loads(answer)
        assert await ZygoteClient(yard.paths).list() == {}

    yard(test)


def test_only_the_owner_may_talk_to_the_zygote(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        await yard.engine.prepare()
        assert yard.paths.zygote_socket.stat().st_mode & 0o777 == 0o600
        yard.paths.zygote_socket.chmod(0o666)  # even then
        pid = os.fork()
        if pid == 0:
            os.setuid(61999)
            try:
                asyncio.run(ZygoteClient(yard.paths).list())
            except UnavailableError:
                os._exit(0)
            except BaseException:
                os._exit(2)
            os._exit(1)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0

    yard(test)


def test_the_zygote_stays_small(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        zygote = await yard.engine.prepare()
        for _ in range(3):
            machine = yard.machine("poweroff")
            await end_of(yard, machine, await yard.engine.start(machine))
        assert pss_kib(zygote.pid) < 24 * 1024
        assert _children(yard) == []

    yard(test)


def _debian_plan(directory: Path) -> Callable[[Machine, Cgroup, int | None], LaunchPlan]:
    """Makes plans with Debian's kernel; on a host with AMX with what lets it run there."""
    preload = directory / "whole_xstate.so"
    source = PROBE.with_name("whole_xstate.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", preload, source], check=True)

    def plan(machine: Machine, group: Cgroup, cpu: int | None) -> LaunchPlan:
        kernel = Kernel("uml-debian", "/usr/bin/linux.uml")
        made = launch_plan(dataclasses.replace(machine, kernel=kernel), group, cpu)
        binds = (*made.binds, Bind(str(preload), "/preload"))
        return dataclasses.replace(made, binds=binds, env={**made.env, "LD_PRELOAD": "/preload"})

    return plan


async def _probe(yard: Yard, machine: Machine, *arguments: str) -> dict[str, Any]:
    """Run the probe in the jail of `machine` and parse what it says."""
    await yard.engine.prepare()
    plan = launch_plan(machine, Cgroup({}), None)
    jail = next(bind for bind in plan.binds if bind.target == str(machine.paths.jail))
    files = tuple(Bind(path, path) for path in _python_files())
    plan = dataclasses.replace(
        plan,
        executable=PYTHON,
        argv=(PYTHON, "-I", "-S", "-B", "/probe.py", str(os.getpid()), *arguments),
        binds=(jail, *files, Bind(str(PROBE), "/probe.py")),
    )
    process = await ZygoteClient(yard.paths).launch(plan)
    await wait_until(lambda: not Path(f"/proc/{process.pid}").exists())
    log = machine.paths.engine_log
    await wait_until(machine.paths.exit_file.exists)
    found: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    return found


def _python_files() -> list[str]:
    wanted = dict.fromkeys(("/usr", "/lib", "/lib64", sys.base_prefix))
    return [
        path for path in wanted if Path(path).is_dir() and not (path != "/usr" and path.startswith("/usr/"))
    ]


def _children(yard: Yard) -> list[int]:
    pid = int(next(iter(_zygote_pids(yard))))
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _zygote_pids(yard: Yard) -> Iterator[str]:
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (directory / "environ").read_bytes()
            command = (directory / "cmdline").read_bytes()
            wanted = f"NAGAYA_RUN_DIR={yard.paths.run}".encode()
            if b"nagaya.engines.zygote" in command and wanted in environment.split(b"\0"):
                yield directory.name


def _group(machine: Machine) -> Cgroup:
    group = Cgroup.load(machine.paths.run / "cgroups.json")
    assert group is not None
    return group
