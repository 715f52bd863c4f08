"""What `top` shows of each machine: rates, from the difference of two answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nagaya.models.usage import DiskUsage, MachineUsage, UsageAnswer
from nagaya.models.waits import WaitInfo

_OPERATIONS = ("reads", "writes", "flushes", "discards")
_STALLS = {"cpu_wait": "cpu_wait_us", "throttled": "throttled_us", "memory_wait": "memory_stall_us"}
_THINGS = {"disk": "the disk", "network": "the uplink", "cpu": "the CPU", "memory": "memory"}


@dataclass(frozen=True, slots=True)
class Row:
    """One machine. Rates are per second between the two answers; what is not known is None.

    `waited` is time spent waiting in a second of time, summed over requests that wait beside one another;
    `whom` is what was waited for most: a machine's name, "%host", "the disk", "the uplink", "the CPU",
    "memory", "its limit" or "". `cpu_wait` is the part of the time in which it could have run and did not,
    with `throttled`, in which its own limit held it; `memory_wait` that in which it waited for memory.
    """

    id: str
    name: str
    state: str
    weight: int
    cpu: float | None  # CPUs used
    memory: int | None
    memory_size: int
    iops: float | None
    rate: float | None  # bytes
    received: float | None  # bytes of its NICs
    sent: float | None
    in_flight: int
    waiting: int
    p99_us: int
    objective: str
    waited: float
    whom: str
    cpu_wait: float | None = None
    throttled: float | None = None
    memory_wait: float | None = None


@dataclass(frozen=True, slots=True)
class UplinkRow:
    """The way out of one network: bytes a second from and to the world, and frames that wait for it."""

    network: str
    capacity: int  # bytes a second, 0 while nobody said
    received: float | None
    sent: float | None
    waiting: int


def uplink_rows(before: UsageAnswer, after: UsageAnswer) -> list[UplinkRow]:
    """A row for each network with a way out, by name."""
    known = {one.network: one for one in before.uplinks}
    seconds = max(1e-3, after.at - before.at)
    both = [(known.get(one.network), one) for one in sorted(after.uplinks, key=lambda one: one.network)]
    return [
        UplinkRow(
            network=now.network,
            capacity=now.rate,
            received=_rate(was.rx_bytes if was else None, now.rx_bytes, seconds),
            sent=_rate(was.tx_bytes if was else None, now.tx_bytes, seconds),
            waiting=now.waiting,
        )
        for was, now in both
    ]


def rows(before: UsageAnswer, after: UsageAnswer) -> list[Row]:
    """A row for each machine of `after`."""
    known = {one.id: one for one in before.machines}
    seconds = max(1e-3, after.at - before.at)
    waits = _by_machine(after.waits)
    return [
        _row(known.get(one.id), one, seconds, waits.get(one.name, []), after.since) for one in after.machines
    ]


def _row(
    old: MachineUsage | None, new: MachineUsage, seconds: float, waits: Sequence[WaitInfo], since: int
) -> Row:
    disks = {disk.name: disk for disk in old.disks} if old else {}
    both = [(disks.get(disk.name), disk) for disk in new.disks]
    nics = {nic.name: nic for nic in old.nics} if old else {}
    ports = [(nics.get(nic.name), nic) for nic in new.nics]
    return Row(
        id=new.id,
        name=new.name,
        state=new.state,
        weight=new.weight,
        cpu=_rate(old.cpu_us if old else None, new.cpu_us, seconds * 1e6),
        memory=new.memory,
        memory_size=new.memory_size,
        iops=_sum(_rate(_operations(was), _operations(now), seconds) for was, now in both),
        rate=_sum(_rate(_bytes(was), _bytes(now), seconds) for was, now in both),
        received=_sum(_rate(was.rx_bytes if was else None, now.rx_bytes, seconds) for was, now in ports),
        sent=_sum(_rate(was.tx_bytes if was else None, now.tx_bytes, seconds) for was, now in ports),
        in_flight=sum(disk.in_flight for disk in new.disks),
        waiting=sum(disk.waiting for disk in new.disks),
        p99_us=max((disk.p99_us for disk in new.disks), default=0),
        objective=new.objective,
        waited=sum(row.wait_us for row in waits) / 1e6 / since,
        whom=most_waited_for(waits),
        **_stalls(old, new, seconds),
    )


def _stalls(old: MachineUsage | None, new: MachineUsage, seconds: float) -> dict[str, float | None]:
    """Parts of the time between two answers, 0 to 1; the kernel's sums lag and may claim more."""
    found: dict[str, float | None] = {}
    for name, counter in _STALLS.items():
        before = getattr(old.pressure, counter) if old else None
        part = _rate(before, getattr(new.pressure, counter), seconds * 1e6)
        found[name] = None if part is None else min(1.0, part)
    return found


def most_waited_for(waits: Iterable[WaitInfo]) -> str:
    """A machine's name, "%host", one of `_THINGS`, "its limit", or "" if nothing was waited for."""
    sums: dict[str, int] = {}
    for row in waits:
        whom = {"device": _THINGS[row.resource], "limit": "its limit"}.get(
            row.cause, row.whom.partition("/")[0]
        )
        sums[whom] = sums.get(whom, 0) + row.wait_us
    return max(sums, key=lambda whom: (sums[whom], whom), default="")


def _by_machine(waits: Iterable[WaitInfo]) -> Mapping[str, list[WaitInfo]]:
    found: dict[str, list[WaitInfo]] = {}
    for row in waits:
        found.setdefault(row.waiter.partition("/")[0], []).append(row)
    return found


def _operations(disk: DiskUsage | None) -> int | None:
    return None if disk is None else sum(getattr(disk, name) for name in _OPERATIONS)


def _bytes(disk: DiskUsage | None) -> int | None:
    return None if disk is None else disk.read_bytes + disk.written_bytes


def _rate(before: int | None, after: int | None, time: float) -> float | None:
    """None at the first look, and when the counter began anew in between."""
    if before is None or after is None or after < before:
        return None
    return (after - before) / time


def _sum(rates: Iterable[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known else None
