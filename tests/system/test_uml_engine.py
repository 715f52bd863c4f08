"""Machines of the engine `uml` from start to end, each in its jail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nagaya.engines.command import host_memory
from nagaya.engines.engine import ExitReason, GuestState, Machine, ProcessId
from nagaya.engines.launch import ZygoteClient, ensure_zygote
from nagaya.engines.uml import UmlEngine
from nagaya.errors import UnavailableError
from nagaya.resources.cgroups import Cgroup
from nagaya.resources.placement import move_to_cpus
from nagaya.testing.yard import Yard, end_of, said, wait_until

Run = Callable[[Callable[[Yard], Any]], Any]
pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]


@pytest.mark.parametrize(
    ("do", "reason", "detail"),
    [
        ("poweroff", ExitReason.POWEROFF, ""),
        ("reboot", ExitReason.REBOOT, ""),
        ("panic", ExitReason.PANIC, "sysrq triggered crash"),
    ],
)
def test_the_reason_of_an_end_is_known(yard: Run, do: str, reason: ExitReason, detail: str) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine(do)
        ended = await end_of(yard, machine, await yard.engine.start(machine))
        assert (ended.reason, ended.detail) == (reason, detail)

    yard(test)


def test_ctrl_alt_del_reaches_the_guest(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("cad")
        process = await yard.engine.start(machine)
        await said(machine, "TRAP-SET")
        await yard.engine.request_shutdown(machine, process)
        assert (await end_of(yard, machine, process)).reason is ExitReason.POWEROFF

    yard(test)


def test_a_paused_machine_stands_still_and_goes_on(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("count")
        process = await yard.engine.start(machine)
        await said(machine, "COUNT 3")
        for _ in range(2):  # twice: idempotent
            await yard.engine.pause(machine, process)
            assert await yard.engine.state(machine, process) is GuestState.PAUSED
        await asyncio.sleep(0.1)  # what is in the pipe
        before = machine.paths.engine_log.read_text()
        await asyncio.sleep(0.5)
        assert machine.paths.engine_log.read_text() == before
        for _ in range(2):
            await yard.engine.resume(machine, process)
            assert await yard.engine.state(machine, process) is GuestState.RUNNING
        await said(machine, f"COUNT {before.count('COUNT') + 3}")

    yard(test)


@pytest.mark.parametrize("do", ["burn", "count"])
@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_kill_ends_all_processes_of_a_machine(yard: Run, do: str, paused: bool) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine(do)
        process = await yard.engine.start(machine)
        await said(machine, "GUEST-READY")
        group = _group(machine)
        assert len(group.pids()) > 1
        if paused:
            await yard.engine.pause(machine, process)
        await yard.engine.kill(machine, process)
        assert group.pids() == []
        assert (await end_of(yard, machine, process)).reason is ExitReason.KILLED
        await yard.engine.kill(machine, process)  # idempotent
        assert await yard.engine.state(machine, process) is GuestState.GONE
        await yard.engine.cleanup(machine)
        await yard.engine.cleanup(machine)
        assert not any(directory.exists() for directory in group.groups.values())

    yard(test)


def test_a_kill_from_outside_is_told_from_ours(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("count")
        process = await yard.engine.start(machine)
        os.kill(process.pid, signal.SIGKILL)
        ended = await end_of(yard, machine, process)
        assert ended.reason is ExitReason.KILLED
        assert "not sent by Nagaya" in ended.detail

    yard(test)


def test_another_daemon_adopts_a_machine(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("cad")
        process = await yard.engine.start(machine)
        await said(machine, "TRAP-SET")
        other = UmlEngine(yard.paths)
        waiting = asyncio.create_task(other.wait(machine, process))
        await other.pause(machine, process)
        assert await other.state(machine, process) is GuestState.PAUSED
        await other.resume(machine, process)
        await other.request_shutdown(machine, process)
        assert (await asyncio.wait_for(waiting, 60)).reason is ExitReason.POWEROFF
        assert (await other.wait(machine, process)).reason is ExitReason.POWEROFF  # also after the fact

    yard(test)


def test_a_reused_process_number_is_not_the_machine(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("count")
        ours = ProcessId(os.getpid(), 1)  # the number of a living process, with another start time
        assert await yard.engine.state(machine, ours) is GuestState.GONE
        await yard.engine.kill(machine, ours)
        assert (await end_of(yard, machine, ours)).reason is ExitReason.UNKNOWN

    yard(test)


def test_machines_outlive_the_zygote_and_their_end_is_read_from_the_log(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("cad")
        process = await yard.engine.start(machine)
        await said(machine, "TRAP-SET")
        zygote = await yard.engine.prepare()
        os.kill(zygote.pid, signal.SIGKILL)
        await asyncio.sleep(0.2)
        assert await yard.engine.state(machine, process) is GuestState.RUNNING
        await yard.engine.request_shutdown(machine, process)
        ended = await end_of(yard, machine, process)
        assert ended.reason in (ExitReason.POWEROFF, ExitReason.UNKNOWN)
        second = yard.machine("poweroff")  # the next start makes a new zygote
        assert (await end_of(yard, second, await yard.engine.start(second))).reason is ExitReason.POWEROFF
        assert (await yard.engine.prepare()).pid != zygote.pid

    yard(test)


def test_a_start_that_was_cut_short_is_cleaned_up_without_its_pid(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("count")
        process = await yard.engine.start(machine)
        await UmlEngine(yard.paths).cleanup(machine)  # a daemon that never heard of the process
        assert await yard.engine.state(machine, process) is GuestState.GONE
        assert not (machine.paths.run / "cgroups.json").exists()

    yard(test)


def test_all_processes_of_a_machine_share_one_cpu_and_move_together(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("count")
        await yard.engine.start(machine)
        await said(machine, "COUNT 2")
        group = _group(machine)
        for cpu in sorted(os.sched_getaffinity(0)):
            move_to_cpus(group, [cpu])
            assert {frozenset(os.sched_getaffinity(pid)) for pid in group.pids()} == {frozenset({cpu})}
        affinity_only = Cgroup({name: path for name, path in group.groups.items() if name != "cpuset"})
        assert affinity_only.set_cpus([0]) is False

    yard(test)


def test_two_machines_start_on_two_cpus(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        machines = [yard.machine("count") for _ in cpus[:2]]
        processes = [await yard.engine.start(machine) for machine in machines]
        used = {frozenset(os.sched_getaffinity(process.pid)) for process in processes}
        assert len(used) == min(2, len(cpus))

    yard(test)


def test_a_cpu_limit_holds(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("burn", cpu={"limit": 0.25})
        await yard.engine.start(machine)
        await said(machine, "GUEST-READY")
        group = _group(machine)
        before, began = group.usage_us() or 0, time.monotonic()
        await asyncio.sleep(2)
        used = ((group.usage_us() or 0) - before) / 1e6 / (time.monotonic() - began)
        assert used < 0.32, f"a machine limited to 0.25 CPUs used {used:.2f}"

    yard(test)


def test_cpu_weights_share_a_cpu(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machines = [yard.machine("burn", cpu={"weight": weight}) for weight in (100, 300)]
        groups = []
        for machine in machines:
            await yard.engine.start(machine)
            await said(machine, "GUEST-READY")
            groups.append(_group(machine))
            move_to_cpus(groups[-1], [min(os.sched_getaffinity(0))])
        before = [group.usage_us() or 0 for group in groups]
        await asyncio.sleep(4)
        light, heavy = ((group.usage_us() or 0) - used for group, used in zip(groups, before, strict=True))
        assert 2.4 < heavy / light < 3.6, f"weights 100 and 300 got {light} and {heavy} us of one CPU"

    yard(test)


def test_a_reservation_of_cpu_time_holds_beside_a_heavier_machine_and_moves_live(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        pin = str(min(os.sched_getaffinity(0)))
        light = yard.machine("burn", cpu={"reservation": 0.6, "weight": 10, "pin": pin})
        heavy = yard.machine("burn", cpu={"weight": 900, "pin": pin})
        for machine in (light, heavy):
            await yard.engine.start(machine)
            await said(machine, "GUEST-READY")
        groups = [_group(machine) for machine in (light, heavy)]
        before = [group.usage_us() or 0 for group in groups]
        await asyncio.sleep(3)
        mine, others = ((group.usage_us() or 0) - used for group, used in zip(groups, before, strict=True))
        assert 0.55 < mine / (mine + others) < 0.65, f"of one CPU it got {mine} us, the other {others} us"
        weight = yard.engine.cpus.weight_of(light.id)
        assert weight == pytest.approx(1350)
        knobs = light.spec.cpu.model_copy(update={"reservation": 0.0})
        await yard.engine.adjust(replace(light, spec=light.spec.model_copy(update={"cpu": knobs})))
        assert yard.engine.cpus.weight_of(light.id) == 10

    yard(test)


class _MachinesOnly:
    """A CPU meter that sees the machines' own load: what else runs on the host is not the test's."""

    def __init__(self, groups: list[Cgroup], cpus: list[int]) -> None:
        self._groups, self._cpus = groups, cpus
        self._used, self._at = self._usage(), time.monotonic()

    def loads(self) -> dict[int, float]:
        used, at = self._usage(), time.monotonic()
        busy = (used - self._used) / 1e6 / (at - self._at)
        self._used, self._at = used, at
        return {self._cpus[0]: busy, self._cpus[1]: 0.0}

    def _usage(self) -> int:
        return sum(group.usage_us() or 0 for group in self._groups)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_one_of_two_busy_machines_on_a_cpu_is_moved(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        cpus = sorted(os.sched_getaffinity(0))[:2]
        machines = [yard.machine("burn") for _ in range(2)]
        processes = {machine.id: (await yard.engine.start(machine)).pid for machine in machines}
        for machine in machines:
            await said(machine, "GUEST-READY")
            move_to_cpus(_group(machine), [cpus[0]])
            yard.engine.cpus.placement.place(machine.id, cpus[0])
        groups = [_group(machine) for machine in machines]
        yard.engine._meter = _MachinesOnly(groups, cpus)  # type: ignore[assignment]
        done = ""
        for _ in range(20):
            done = done or await yard.engine.balance(processes)
            await asyncio.sleep(0.0 if done else 0.5)
        assert done in {f"moved machine {machine.id} to CPU {cpus[1]}" for machine in machines}
        places = {os.sched_getaffinity(pid).pop() for group in groups for pid in group.pids()[:1]}
        assert places == set(cpus)

    yard(test)


def test_a_guest_that_takes_all_its_memory_stays_below_its_limit(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("eat", memory="96MiB")
        process = await yard.engine.start(machine)
        await said(machine, "EATEN")
        assert await yard.engine.state(machine, process) is GuestState.RUNNING
        group = _group(machine)
        assert group.oom_kills() == 0
        assert (group.memory_bytes() or 0) < host_memory(machine)

    yard(test)


def test_a_fork_bomb_in_a_guest_stays_in_the_guest(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("forks")
        process = await yard.engine.start(machine)
        await said(machine, "GUEST-READY")
        await asyncio.sleep(2)
        assert await yard.engine.state(machine, process) in (GuestState.RUNNING, GuestState.GONE)
        assert len(_group(machine).pids()) <= 4096 + 16
        await yard.engine.kill(machine, process)
        assert await yard.engine.state(machine, process) is GuestState.GONE

    yard(test)


def test_a_guest_that_floods_its_log_fills_no_disk_and_no_cpu(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("flood")
        process = await yard.engine.start(machine)
        await wait_until(lambda: machine.paths.engine_log.exists() and _size(machine) >= 256 * 1024, 30)
        zygote = (await yard.engine.prepare()).pid
        before, began = _cpu_ticks(zygote), time.monotonic()
        await asyncio.sleep(1)
        busy = (_cpu_ticks(zygote) - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - began)
        assert busy < 0.1
        await yard.engine.kill(machine, process)
        await end_of(yard, machine, process)
        assert _size(machine) < 300 * 1024

    yard(test)


def test_ten_starts_at_once(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machines = [yard.machine("count", memory="32MiB") for _ in range(10)]
        processes = await asyncio.gather(*(yard.engine.start(machine) for machine in machines))
        listed = await ZygoteClient(yard.paths).list()
        assert listed == {machine.id: process for machine, process in zip(machines, processes, strict=True)}
        for machine in machines:
            await said(machine, "COUNT 1", 30)

    yard(test)


def test_only_one_zygote_serves_a_directory(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        first, second = await asyncio.gather(ensure_zygote(yard.paths), ensure_zygote(yard.paths))
        assert first.pid == second.pid

    yard(test)


def test_a_missing_kernel_is_a_clear_error(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("count")
        broken = Machine(
            machine.id,
            machine.spec,
            machine.paths,
            machine.uid,
            machine.gid,
            type(machine.kernel)("none", "/no/such/kernel"),
        )
        with pytest.raises(UnavailableError, match=r"kernel none: /no/such/kernel: No such file"):
            await yard.engine.start(broken)

    yard(test)


def _group(machine: Machine) -> Cgroup:
    group = Cgroup.load(machine.paths.run / "cgroups.json")
    assert group is not None
    return group


def _size(machine: Machine) -> int:
    return machine.paths.engine_log.stat().st_size


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_the_exit_file_tells_which_process_it_was(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("poweroff")
        process = await yard.engine.start(machine)
        await end_of(yard, machine, process)
        body = json.loads(machine.paths.exit_file.read_text())
        assert (body["pid"], body["start_time"], body["code"]) == (process.pid, process.start_time, 0)

    yard(test)
