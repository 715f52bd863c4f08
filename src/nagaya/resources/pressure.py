"""How long work stood still for want of CPU, memory or disk: of the host, and of one machine's control group.

The kernel's pressure stall information (Documentation/accounting/psi.rst) says it where it is there: of the
host in /proc/pressure, of a group in the v2 hierarchy, also in one without controllers. Its sums lag up to
two seconds behind. Without it the CPU's part comes from the run delay of the group's tasks
(Documentation/scheduler/sched-stats.rst), and nothing tells of the others: they are None. All times are in
microseconds since the host or the group began, and only grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nagaya.resources.cgroups import Cgroup

Source = Literal["psi", "schedstat", ""]

_TICK_US = 10_000  # USER_HZ is 100 on every architecture that we run on
_IDLE, _STEAL = 3, 7  # positions in a line of /proc/stat (proc_stat(5)); waiting for I/O follows idle
_MOST_TASKS = 4096  # a guest decides how many there are; more are not looked at


@dataclass(frozen=True, slots=True)
class Stall:
    """Time in which some task waited, and in which all did; `avg10`: part of the last 10 s, 0 to 1."""

    some_us: int
    full_us: int
    some_avg10: float = 0.0
    full_avg10: float = 0.0


@dataclass(frozen=True, slots=True)
class HostPressure:
    """Of the whole host; None: the kernel does not tell.

    `steal_us` is CPU time that a host which is itself a guest did not get, `busy_us` what each CPU worked.
    `swapped_in` and `swapped_out` count pages, `major_faults` faults that had to read from a disk;
    `memory_available` is bytes that can be had without swapping.
    """

    cpu: Stall | None = None
    memory: Stall | None = None
    io: Stall | None = None
    steal_us: int | None = None
    swapped_in: int | None = None
    swapped_out: int | None = None
    major_faults: int | None = None
    memory_available: int | None = None
    busy_us: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupPressure:
    """Of one machine; None: nothing tells.

    `cpu_wait_us` is time in which it could have run and none of it did, `cpu_queue_us` the same with some of
    it running; both with the time in which its own limit held it, `throttled_us`. From `schedstat` they are
    one and are summed over tasks. `limit_hits` counts how often it asked for memory beyond its limit.
    """

    cpu_wait_us: int | None = None
    cpu_queue_us: int | None = None
    throttled_us: int | None = None
    memory_stall_us: int | None = None
    io_stall_us: int | None = None
    major_faults: int | None = None
    limit_hits: int | None = None
    swap: int | None = None  # bytes that are out
    cpu_source: Source = ""
    cpus: frozenset[int] = frozenset()  # it may run on these; none: not known


def host_pressure(proc: Path = Path("/proc")) -> HostPressure:
    """What the kernel says of the whole host, now."""
    cpu, memory, io = (_stall(proc / "pressure" / name) for name in ("cpu", "memory", "io"))
    vm, stat = counts(_read(proc / "vmstat")), _read(proc / "stat")
    return HostPressure(
        cpu,
        memory,
        io,
        steal_us=_steal_us(stat),
        swapped_in=vm.get("pswpin"),
        swapped_out=vm.get("pswpout"),
        major_faults=vm.get("pgmajfault"),
        memory_available=_available(_read(proc / "meminfo")),
        busy_us=_busy_us(stat),
    )


def group_pressure(group: Cgroup, proc: Path = Path("/proc")) -> GroupPressure:
    """What the kernel says of a machine's group, now. A group that has gone says nothing."""
    unified, memory = group.groups.get("unified"), group.groups.get("memory")
    cpu, stall, io = (
        _stall(unified / f"{name}.pressure") if unified else None for name in ("cpu", "memory", "io")
    )
    wait, queue = (cpu.full_us, cpu.some_us) if cpu else (None, None)
    source: Source = "psi" if cpu else ""
    if cpu is None:
        delay = run_delay_us(group.pids(), proc)
        wait, queue, source = delay, delay, "" if delay is None else "schedstat"
    stat = counts(_read(memory / "memory.stat")) if memory else {}
    return GroupPressure(
        cpu_wait_us=wait,
        cpu_queue_us=queue,
        throttled_us=_throttled_us(group.groups.get("cpu")),
        memory_stall_us=stall.some_us if stall else None,
        io_stall_us=io.some_us if io else None,
        major_faults=stat.get("pgmajfault"),
        limit_hits=_limit_hits(memory),
        swap=_swap(memory, stat),
        cpu_source=source,
        cpus=group.cpus(),
    )


def parse_stall(text: str) -> Stall | None:
    """The text of a pressure file; None if it is none. Before Linux 5.13 the CPU has no line `full`."""
    lines: dict[str, Mapping[str, str]] = {}
    for line in text.splitlines():
        kind, *pairs = line.split() or [""]
        lines[kind] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    some, full = lines.get("some", {}), lines.get("full", {})
    total = _number(some.get("total", ""))
    if total is None:
        return None
    return Stall(total, _number(full.get("total", "")) or 0, _part(some), _part(full))


def counts(text: str) -> dict[str, int]:
    """Lines of `name number`, as in /proc/vmstat and memory.stat; what is no such line is passed over."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        number = _number(value.strip())
        if name and number is not None:
            found[name] = number
    return found


def run_delay_us(pids: Iterable[int], proc: Path = Path("/proc")) -> int | None:
    """Time that the tasks of processes waited on a run queue; None where the kernel does not count it.

    A task that ends takes its time with it, so that the sum may fall.
    """
    total, found = 0, 0
    for pid in pids:
        for task in _tasks(proc / str(pid) / "task"):
            fields = _read(task / "schedstat").split()
            delay = _number(fields[1]) if len(fields) == 3 else None
            if delay is not None:
                total, found = total + delay, found + 1
            if found >= _MOST_TASKS:
                return total // 1000
    return total // 1000 if found else None


def _tasks(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _stall(path: Path) -> Stall | None:
    return parse_stall(_read(path))


def _throttled_us(cpu: Path | None) -> int | None:
    if cpu is None:
        return None
    stat = counts(_read(cpu / "cpu.stat"))
    nanoseconds = stat.get("throttled_time")  # v1; v2 has microseconds
    return stat.get("throttled_usec") if nanoseconds is None else nanoseconds // 1000


def _limit_hits(memory: Path | None) -> int | None:
    if memory is None:
        return None
    v1 = _number(_read(memory / "memory.failcnt").strip())
    return counts(_read(memory / "memory.events")).get("max") if v1 is None else v1


def _swap(memory: Path | None, stat: Mapping[str, int]) -> int | None:
    if memory is None:
        return None
    return stat["swap"] if "swap" in stat else _number(_read(memory / "memory.swap.current").strip())


def _steal_us(text: str) -> int | None:
    name, *ticks = text.partition("\n")[0].split() or [""]
    ticks = ticks if name == "cpu" else []
    steal = _number(ticks[_STEAL]) if len(ticks) > _STEAL else None
    return None if steal is None else steal * _TICK_US


def _busy_us(text: str) -> dict[int, int]:
    """Of each CPU: time in which it ran something, interrupts too; not what its own host took."""
    found: dict[int, int] = {}
    for line in text.splitlines():
        name, *ticks = line.split() or [""]
        cpu = _number(name.removeprefix("cpu")) if name.startswith("cpu") else None
        times = [_number(tick) or 0 for tick in ticks[:_STEAL]]
        if cpu is not None and len(times) == _STEAL:
            found[cpu] = (sum(times) - times[_IDLE] - times[_IDLE + 1]) * _TICK_US
    return found


def _available(text: str) -> int | None:
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            kib = _number(line.partition(":")[2].removesuffix("kB").strip())
            return None if kib is None else kib * 1024
    return None


def _part(fields: Mapping[str, str]) -> float:
    try:
        percent = float(fields.get("avg10", ""))
    except ValueError:
        return 0.0
    return min(1.0, percent / 100) if percent > 0 else 0.0


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None  # 2**64 has 20 digits


def _read(path: Path) -> str:
    """ "" for what is not there, and what the kernel refuses to tell (EOPNOTSUPP with psi=0)."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
