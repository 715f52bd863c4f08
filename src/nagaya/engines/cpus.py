"""Which CPUs the machines of one Nagaya have, and the weights of their control groups (docs/capacity.md).

Each engine says where a machine may run; the weights of all are worked out together, because a reservation is
kept by a weight beside the others' (`nagaya.resources.cpushares`). Nothing is remembered but by the kernel: a
new daemon is told of the machines that run, and finds them where they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from nagaya.engines.engine import Machine
from nagaya.errors import ResourceError, UnsupportedError
from nagaya.resources import cpushares, topology
from nagaya.resources.cgroups import Cgroup
from nagaya.resources.cpushares import Contender
from nagaya.resources.placement import CPU_MOST, Need, Placement, move_to_cpus
from nagaya.resources.topology import Node
from nagaya.spec import MachineSpec
from nagaya.units import format_cpus, parse_cpus

log = logging.getLogger("nagaya.engines")


@dataclass(slots=True)
class _Held:
    contender: Contender
    group: Cgroup
    pinned: bool
    written: float | None = None  # the weight that its group has


@dataclass(slots=True)
class Cpus:
    """What engines of one daemon share."""

    host: frozenset[int] = field(default_factory=lambda: frozenset(os.sched_getaffinity(0)))
    nodes: Callable[[], Sequence[Node]] = topology.nodes
    placement: Placement = field(init=False)
    _held: dict[str, _Held] = field(default_factory=dict)
    _base: float | None = None  # the weight that the group of all machines has

    def __post_init__(self) -> None:
        self.placement = Placement(self.host)

    def check(self, spec: MachineSpec) -> None:
        """Raise `UnsupportedError` if a machine is pinned to CPUs that this host has not."""
        strange = frozenset(parse_cpus(spec.cpu.pin) if spec.cpu.pin else ()) - self.host
        if strange:
            raise UnsupportedError(
                f"cpu.pin: {spec.cpu.pin}: machines may run on CPUs {format_cpus(self.host)} of this host,"
                f" not on {format_cpus(strange)}",
                field="cpu.pin",
            )

    def one(self, machine: Machine) -> frozenset[int]:
        """The one CPU for all of a machine. Raises `ResourceError` if none has left what it reserves."""
        others = [one.contender for name, one in self._held.items() if name != machine.id]
        try:
            cpus = frozenset({self.placement.choose(machine.id, self.need(machine.spec))})
        except ResourceError as error:
            error.message = f"{machine.spec.name} cannot have one CPU: {error.message}"
            raise
        _require_room(machine.spec, cpus, others)
        return cpus

    def need(self, spec: MachineSpec) -> Need:
        """What a machine asks of its one CPU."""
        return Need(spec.cpu.reservation, _pinned(spec))

    def several(self, machine: Machine) -> frozenset[int]:
        """The CPUs for a machine with several threads: those that it is pinned to, or those of a NUMA node.

        One that runs stays where it is, unless it is pinned elsewhere. Raises `ResourceError` if these CPUs
        have not left what it reserves.
        """
        others = [one.contender for name, one in self._held.items() if name != machine.id]
        held = self._held.get(machine.id)
        pinned = _pinned(machine.spec)
        if pinned is not None:
            cpus = pinned
        elif held is not None and not held.pinned:
            cpus = held.contender.cpus
        else:
            cpus = choose_node(self.nodes(), self.host, machine.spec, others)
        _require_room(machine.spec, cpus, others)
        return cpus

    def found(self, machine: Machine, pid: int) -> frozenset[int]:
        """Where a machine that runs is, which an earlier daemon may have started; of a dead one, nowhere."""
        held = self._held.get(machine.id)
        if held is not None:
            return held.contender.cpus
        with contextlib.suppress(OSError):
            return frozenset(os.sched_getaffinity(pid)) & self.host
        return frozenset()

    def hold(self, machine: Machine, group: Cgroup, cpus: frozenset[int]) -> None:
        """A machine competes for `cpus` from now on, with the knobs that its spec has. Raises `OSError`."""
        spec = machine.spec
        most = min(spec.cpus, len(cpus), spec.cpu.limit or len(cpus))
        contender = Contender(machine.id, spec.cpu.weight, spec.cpu.reservation, most, cpus)
        before = self._held.get(machine.id)
        written = before.written if before else None
        self._held[machine.id] = _Held(contender, group, bool(spec.cpu.pin), written)
        self._write(machine.id)

    async def move(self, machine_id: str, cpus: Iterable[int]) -> None:
        """Take all tasks of a machine to other CPUs, if it has not ended. Raises `OSError`."""
        held, wanted = self._held.get(machine_id), frozenset(cpus)
        if held is not None:
            await asyncio.to_thread(move_to_cpus, held.group, wanted)
            held.contender = replace(held.contender, cpus=wanted)
            self._write(machine_id)

    def release(self, machine_id: str) -> None:
        """It has ended."""
        self.placement.forget(machine_id)
        if self._held.pop(machine_id, None) is not None:
            self._write("")

    def weight_of(self, machine_id: str) -> float | None:
        """The weight that its control group has; None if it is not known."""
        held = self._held.get(machine_id)
        return None if held is None else held.written

    def _write(self, concerned: str) -> None:
        """Give all groups the weights that they need now. Errors are raised for the one machine only."""
        contenders = [held.contender for held in self._held.values()]
        wanted = cpushares.weights(contenders)
        for machine_id, held in self._held.items():
            if held.written is not None and abs(held.written - wanted[machine_id]) < 0.5:
                continue
            try:
                held.group.set_cpu_weight(wanted[machine_id])
            except OSError as error:
                if machine_id == concerned:
                    raise
                log.warning(
                    "machine %s: its weight cannot be set: %s", machine_id, error
                )  # it has just ended
            else:
                held.written = wanted[machine_id]
        self._write_base(contenders)

    def _write_base(self, contenders: Sequence[Contender]) -> None:
        weight = cpushares.base_weight(contenders, len(self.host))
        if self._base is not None and abs(weight - self._base) < 1:
            return
        try:
            next(iter(self._held.values())).group.parent().set_cpu_weight(weight)
        except StopIteration:  # nobody is left who would need it
            self._base = None
        except OSError as error:
            log.warning("machines cannot be given weight beside the host's own work: %s", error)
        else:
            self._base = weight


def choose_node(
    nodes: Sequence[Node], host: frozenset[int], spec: MachineSpec, others: Sequence[Contender]
) -> frozenset[int]:
    """The CPUs of the NUMA node in which a machine fits best, or all of `host` if it fits in none.

    It must have as many CPUs as the machine's guest, free memory for all of it, and CPU time left for what it
    reserves; of those the one with the fewest machines for its CPUs is taken.
    """
    if len(nodes) < 2:
        return host
    fitting: list[tuple[float, int, frozenset[int]]] = []
    for node in nodes:
        cpus = frozenset(node.cpus) & host
        here = [one for one in others if one.cpus <= cpus]
        reserved = sum(one.reservation for one in here) + spec.cpu.reservation
        if len(cpus) >= spec.cpus and node.free >= spec.memory.size and reserved <= len(cpus):
            fitting.append((sum(one.most for one in here) / len(cpus), node.id, cpus))
    return min(fitting)[2] if fitting else host


def _require_room(spec: MachineSpec, cpus: frozenset[int], others: Sequence[Contender]) -> None:
    """Those who may run on these CPUs only must find there what they reserve."""
    held = sum(one.reservation for one in others if one.cpus <= cpus)
    most = CPU_MOST * len(cpus)
    if spec.cpu.reservation and held + spec.cpu.reservation > most + 1e-9:
        raise ResourceError(
            f"{spec.name} reserves {spec.cpu.reservation:g} of CPUs {format_cpus(cpus)}, where {most:g}"
            f" can be promised and {held:g} are",
            hint="reserve less, or pin it elsewhere (cpu.pin)",
            machine=spec.name,
            room="cpu",
            need=spec.cpu.reservation,
            free=max(0.0, most - held),
            most=most,
        )


def _pinned(spec: MachineSpec) -> frozenset[int] | None:
    return frozenset(parse_cpus(spec.cpu.pin)) if spec.cpu.pin else None
