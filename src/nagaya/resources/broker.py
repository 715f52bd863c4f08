"""The memory broker: which machine gives host memory, and which gets it. Pure: it decides, others carry out.

Time comes in rounds. In each the broker sees the host and all machines, and answers with actions:

- While memory suffices, nothing is taken, and what was taken before is given back.
- When it is short (less than the reserve is left of the budget), each machine gets a target: the budget
  divided by weight, with a tax on what is idle (`nagaya.resources.idletax`). Above it, it gives; below it,
  it gets.
- Little may be gone before the next round. So when less is left than guests grow by in a second, they have
  no more room to grow without asking than is left: room that they do not use costs nothing to take.
- Nobody goes below its floor, its `memory.reservation`. Nothing is given that is not there.
- A machine that needs memory at once (`nagaya.resources.workingset`) is served before others, in large
  steps. All else goes in small steps, with a dead band, and nothing is taken back soon after it was given.
- A guest that does not give is asked in vain a few rounds; then pages of it go to the host's swap, if there
  is one.

docs/memory.md, "The broker", is for those who watch it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from nagaya.resources.idletax import TAX, Claim, divide
from nagaya.resources.workingset import MIB, MachineMemory, WorkingSet, margin
from nagaya.units import human_size

__all__ = ["Action", "Broker", "HostMemory", "MachineMemory", "Plan", "Target"]

LEAST = 32 * MIB  # a Linux guest with less cannot do anything; a floor may be lower all the same
RESERVE_SHARE = 16  # one part in so many of the budget is kept free, for guests that grow between two rounds
RESERVE_MIN = 32 * MIB
RESERVE_MAX = 1024 * MIB  # guests of one host do not grow by more in a second
BAND_SHARE = 32  # differences of less than one part in so many of a machine's size are left alone
BAND_MIN = 8 * MIB
STEP_SHARE = 16  # of a machine's size that one round moves when nobody is in need
STEP_MIN = 16 * MIB
URGENT_STEP = 256 * MIB  # that one round moves when somebody is
REST_S = (
    10.0  # what was given is not taken back for so long, unless somebody is in need; nor what was taken given
)
STUCK_ROUNDS = 5  # in which a guest gave nothing of what it was asked for
AHEAD_S = 1.0  # by what machines grow in this time counts as gone
CALM_S = 10.0  # memory must have sufficed for so long before it is given back

Kind = Literal["take", "give", "page-out"]


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The host, in bytes: what machines may have in all, what the kernel could still give, what it must keep.

    `swap`: how much could be paged out.
    """

    budget: int
    available: int
    ballast: int = 0
    swap: int = 0


@dataclass(frozen=True, slots=True)
class Action:
    """One move of `bytes`, and why. `whom` are the machines in need, for which it happens.

    `balloon` is what the guest is to be asked for now; with a page-out it stays.
    """

    machine: str
    kind: Kind
    bytes: int
    balloon: int
    reason: str
    whom: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """What a machine should have, what it uses as far as is known, and why it needs more, or ""."""

    machine: str
    bytes: int
    active: int
    need: str
    refuses: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """One round: what is to be done, each machine's target, and whether memory is short.

    `budget` is what machines may have in all, after others on the host took theirs; `left` is what nobody
    holds of it, `reserve` what of that is kept, `room` by how much guests could grow before anybody is asked.
    `urgent`: somebody is in need, ask again soon.
    """

    actions: tuple[Action, ...]
    targets: Mapping[str, Target]
    budget: int
    left: int
    reserve: int
    room: int
    short: bool
    urgent: bool


@dataclass(slots=True)
class _Known:
    """What the broker remembers of a machine."""

    use: WorkingSet = field(default_factory=WorkingSet)
    taken: float = -inf
    cut: float = -inf  # when something was last taken that it held
    given: float = -inf
    actual: int = 0
    stuck: int = 0

    @property
    def refuses(self) -> bool:
        return self.stuck >= STUCK_ROUNDS


class Broker:
    """Decides round by round. It knows nothing but what `decide` is told; a new one begins without jumps."""

    def __init__(self, tax: float = TAX) -> None:
        self.tax = tax
        self._known: dict[str, _Known] = {}
        self._short = False
        self._sufficient_since = -inf
        self._held: tuple[Mapping[str, int], float] = ({}, -inf)
        self._rate = 0.0

    def copy(self) -> Broker:
        """One that knows the same; what it decides changes nothing here."""
        return copy.deepcopy(self)

    def decide(self, now: float, host: HostMemory, machines: Sequence[MachineMemory]) -> Plan:
        """The round at `now`, seconds of a clock that only runs forward."""
        self._known = {one.name: self._known.get(one.name, _Known()) for one in machines}
        for one in machines:
            self._watch(now, one)
        held = sum(one.holds for one in machines)
        budget = max(0, min(host.budget, held + host.available - host.ballast))
        reserve = min(max(RESERVE_MIN, budget // RESERVE_SHARE), RESERVE_MAX)
        left = budget - held
        coming = left - int(self._growth(now, machines) * AHEAD_S)
        room = sum(map(_room, machines))
        self._judge(now, coming, reserve, machines, roomy=left < RESERVE_MAX and room > left)
        targets = self._targets(max(0, budget - reserve), machines)
        moves = _Moves(
            now=now,
            host=host,
            machines=machines,
            known=self._known,
            targets=targets,
            left=coming,
            room=room if left < RESERVE_MAX else 0,
            reserve=reserve,
        )
        actions = [*moves.takes(self._short), *moves.gives(self._short)]
        by_name = {one.name: one for one in machines}
        for action in actions:
            known, one = self._known[action.machine], by_name[action.machine]
            if action.kind == "give":
                known.given = now
            else:
                known.taken = now
                if action.kind == "page-out" or action.bytes > one.has - _used(one):
                    known.cut = now
        urgent = any(target.need for target in targets.values())
        return Plan(tuple(actions), targets, budget, left, reserve, room, self._short, urgent)

    def _growth(self, now: float, machines: Sequence[MachineMemory]) -> float:
        """Bytes/s by which machines that were there before grow; what was seen counts half the next time."""
        (before, at), self._held = self._held, ({one.name: one.holds for one in machines}, now)
        grown = sum(one.holds - before[one.name] for one in machines if one.name in before)
        rate = max(0.0, grown / (now - at)) if now > at else 0.0
        self._rate = min(max(rate, self._rate / 2), RESERVE_MAX)
        return self._rate

    def _watch(self, now: float, machine: MachineMemory) -> None:
        known = self._known[machine.name]
        known.use.update(now, machine, known.cut)
        wanting = machine.balloon - machine.actual > BAND_MIN
        moved = abs(machine.actual - known.actual) >= MIB
        known.stuck = 0 if moved or not wanting else known.stuck + 1
        known.actual = machine.actual

    def _judge(
        self, now: float, left: int, reserve: int, machines: Sequence[MachineMemory], *, roomy: bool
    ) -> None:
        """Short below the reserve, sufficient again when twice of it was left for a while.

        `roomy`: guests could grow by more than is left before anybody is asked. That is short as well.
        """
        held = sum(one.holds for one in machines)
        if roomy or (left < reserve and sum(one.most for one in machines) > left + held - reserve):
            self._short = True
        if roomy or left < 2 * reserve:
            self._sufficient_since = inf
        elif self._sufficient_since == inf:
            self._sufficient_since = now
        if now - self._sufficient_since >= CALM_S:
            self._short = False

    def _targets(self, budget: int, machines: Sequence[MachineMemory]) -> dict[str, Target]:
        claims = [
            Claim(one.weight, self._known[one.name].use.active, _least(one), one.most) for one in machines
        ]
        found = {}
        for one, claim, size in zip(machines, claims, divide(budget, claims, self.tax), strict=True):
            known = self._known[one.name]
            found[one.name] = Target(one.name, size, claim.active, known.use.need, known.refuses)
        return found


class _Moves:
    """The moves of one round."""

    def __init__(
        self,
        *,
        now: float,
        host: HostMemory,
        machines: Sequence[MachineMemory],
        known: Mapping[str, _Known],
        targets: Mapping[str, Target],
        left: int,
        room: int,
        reserve: int,
    ) -> None:
        self._now = now
        self._host = host
        self._machines = machines
        self._known = known
        self._targets = targets
        self._left = left
        self._room = room
        self._reserve = reserve
        self._swap = host.swap
        self._in_need = [one.name for one in machines if targets[one.name].need]
        self._pressing = {
            one.name: targets[one.name].bytes - one.has for one in machines if targets[one.name].need
        }
        self._pressing = {name: gap for name, gap in self._pressing.items() if gap > 0}

    def takes(self, short: bool) -> list[Action]:
        """From those above their targets, as much as is lacking; limits hold always."""
        found = [self._take(one, one.most) for one in self._machines if one.has > one.most]
        lacking = max(0, (2 if short else 1) * self._reserve - self._left) + sum(self._pressing.values())
        roomy = self._room - max(0, self._left - self._reserve) if short else 0
        for one in sorted(self._machines, key=lambda one: self._targets[one.name].bytes - _used(one)):
            if one.has > one.most or (lacking <= 0 and roomy <= 0):
                continue
            # A guest gives first what the host does not hold for it: that much more has to be asked for.
            action = self._take(one, max(self._targets[one.name].bytes, _used(one) - max(0, lacking)))
            if action is not None:
                found.append(action)
                lacking -= max(0, action.bytes - (one.has - _used(one)))
                roomy -= min(action.bytes, one.has - _used(one))
        return [action for action in found if action is not None]

    def gives(self, short: bool) -> list[Action]:
        """To those in need up to their targets, but half of the reserve; to others what is left beyond."""
        found, there = [], max(0, self._left - max(self._reserve // 2, self._room))
        for name in self._pressing:
            one = next(one for one in self._machines if one.name == name)
            action = self._give(one, self._targets[name].bytes, there)
            if action is not None:
                found.append(action)
                there -= action.bytes
        there -= 2 * self._reserve - self._reserve // 2
        if short:
            return found
        waiting = [one for one in self._machines if one.name not in self._pressing]
        for one in sorted(
            waiting, key=lambda one: (one.name not in self._in_need, self._known[one.name].given)
        ):
            action = self._give(one, one.most, there)
            if action is not None:
                found.append(action)
                there -= action.bytes
        return found

    def _take(self, one: MachineMemory, down_to: int) -> Action | None:
        known, target = self._known[one.name], self._targets[one.name]
        over = one.has - down_to
        others = tuple(name for name in self._pressing if name != one.name)
        urgent = bool(others) or self._left < self._reserve // 2
        if one.has <= one.most and one.has - target.bytes <= _band(one):
            return None
        if self._now - known.given < REST_S and not urgent:
            return None
        why = self._why(one, target, others)
        if known.refuses:
            return self._page_out(one, target, why, others)
        step = max(URGENT_STEP, _step(one)) if urgent else _step(one)
        size = -(-min(over, one.has - _used(one) + step) // MIB) * MIB
        size = min(size, _reach(one, known.use) // MIB * MIB, (one.has - _least(one)) // MIB * MIB)
        if size <= 0:
            return self._page_out(one, target, why, others) if urgent else None
        return Action(one.name, "take", size, one.balloon + size, why, others)

    def _page_out(
        self, one: MachineMemory, target: Target, why: str, others: tuple[str, ...]
    ) -> Action | None:
        """What the guest does not give, the host takes: to swap, never below what the guest was promised."""
        over = one.holds - max(target.bytes, _least(one))
        size = min(over, self._swap, URGENT_STEP) // MIB * MIB
        if size <= 0:
            return None
        self._swap -= size
        said = "its guest does not give" if target.refuses else "its guest has none to give"
        return Action(one.name, "page-out", size, one.balloon, f"{said}; {why}", others)

    def _give(self, one: MachineMemory, up_to: int, there: int) -> Action | None:
        known, target = self._known[one.name], self._targets[one.name]
        under = min(one.balloon, up_to - one.has)
        band = BAND_MIN if target.need else _band(one)
        if under <= 0 or under <= band < one.balloon:
            return None
        if not target.need and self._now - known.taken < REST_S:
            return None
        size = min(under, max(URGENT_STEP, _step(one)) if target.need else _step(one), there)
        size = size if size == one.balloon else size // MIB * MIB
        if size <= 0:
            return None
        reason = target.need or "memory suffices"
        return Action(one.name, "give", size, one.balloon - size, reason, (one.name,) if target.need else ())

    def _why(self, one: MachineMemory, target: Target, others: tuple[str, ...]) -> str:
        if one.has > one.most:
            return f"its limit is {human_size(one.most)}"
        idle = max(0, one.has - target.active)
        unused = f"{human_size(idle)} of it are idle" if idle > _band(one) else "it has more than its share"
        if others:
            return f"{others[0]} needs memory, and {unused}"
        if self._host.available - self._host.ballast < self._reserve:
            return f"the host has {human_size(self._host.available)} left, and {unused}"
        return f"machines have all but {human_size(max(0, self._left))} of their budget, and {unused}"


def _room(one: MachineMemory) -> int:
    """By how much its guest may grow before anybody is asked."""
    return max(0, one.size - min(one.actual, one.balloon) - one.holds)


def _used(one: MachineMemory) -> int:
    """What the host holds of the guest's memory: the rest it has, but never touched, or gave back."""
    return min(one.holds, one.has)


def _least(one: MachineMemory) -> int:
    return min(one.most, max(one.floor, LEAST))


def _band(one: MachineMemory) -> int:
    return max(BAND_MIN, one.size // BAND_SHARE)


def _step(one: MachineMemory) -> int:
    return max(STEP_MIN, one.size // STEP_SHARE)


def _reach(one: MachineMemory, use: WorkingSet) -> int:
    """What the guest can give without losing programs to its own out-of-memory killer."""
    stats = one.stats
    if stats is None or stats.available is None:
        return max(STEP_MIN, one.has - _used(one) - margin(one))  # it never used that
    asked = max(0, one.balloon - one.actual)  # and not given yet
    spare = stats.available - asked - _band(one) // 2
    return max(spare, STEP_MIN - asked if use.swaps else 0)
