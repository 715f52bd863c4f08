"""Simulated guests and the host below them, for the memory broker: honest ones, and some that lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nagaya.resources.broker import Action, Broker, HostMemory, MachineMemory, Plan
from nagaya.resources.workingset import MIB, GuestStats


@dataclass(slots=True)
class SimGuest:
    """A guest that wants `demand` bytes for its programs and `cache` for files, and swaps what does not fit.

    `speed`: bytes a second that it gives. Lies: `claims_all` says that nothing is available, `refuses` never
    gives, `mute` has no statistics, `grabs` gives this much more than it is asked for.
    """

    name: str
    size: int
    demand: int = 64 * MIB
    cache: int = 0
    floor: int = 0
    weight: int = 100
    limit: int | None = None
    speed: int = 512 * MIB
    claims_all: bool = False
    refuses: bool = False
    mute: bool = False
    grabs: int = 0
    asked: int = 0
    actual: int = 0
    paged_out: int = 0
    swapped: int = 0  # bytes that came in again from the guest's own swap

    @property
    def room(self) -> int:
        """What its kernel has without the balloon."""
        return self.size - self.actual

    @property
    def used(self) -> int:
        """Memory of its programs."""
        return min(self.demand, self.room)

    @property
    def cached(self) -> int:
        """Memory with files in it."""
        return min(self.cache, self.room - self.used)

    @property
    def resident(self) -> int:
        """Host memory behind it: free pages are reported and given back."""
        return max(0, self.used + self.cached - self.paged_out)

    def live(self, seconds: float) -> None:
        """Let it work on what it was asked for."""
        if self.demand > self.room:
            self.swapped += int((self.demand - self.room) * min(1.0, seconds))
        goal = 0 if self.refuses else min(self.asked + self.grabs, self.size - 8 * MIB)
        step = int(self.speed * seconds)
        free = max(0, self.room - self.used)
        self.actual += max(-step, min(step, goal - self.actual, free))

    def seen(self, now: float) -> MachineMemory:
        """What the broker gets to see."""
        available = 0 if self.claims_all else self.room - self.used
        stats = GuestStats(
            at=now,
            free=max(0, available - self.cached),
            available=available,
            caches=self.cached,
            swap_in=self.swapped,
            swap_out=self.swapped,
            major_faults=0,
        )
        return MachineMemory(
            self.name,
            self.size,
            floor=self.floor,
            weight=self.weight,
            limit=self.limit,
            resident=self.resident,
            balloon=self.asked,
            actual=self.actual,
            stats=None if self.mute else stats,
        )


@dataclass(slots=True)
class SimHost:
    """A host with a broker and guests; `play` lets time pass. `plans` are the last ones, newest last."""

    guests: list[SimGuest]
    budget: int
    swap: int = 0
    others: int = 0  # memory that other programs of the host take of the budget
    broker: Broker = field(default_factory=Broker)
    now: float = 1000.0
    plans: list[Plan] = field(default_factory=list)
    most_held: int = 0

    def play(self, seconds: float, interval: float = 1.0) -> list[Action]:
        """Rounds for so long, with their actions carried out; returns the actions."""
        done: list[Action] = []
        for _ in range(round(seconds / interval)):
            for guest in self.guests:
                guest.live(interval)
            self.now += interval
            done += self.round()
        return done

    def round(self) -> Sequence[Action]:
        """One round now."""
        held = sum(guest.resident for guest in self.guests)
        self.most_held = max(self.most_held, held)
        available = self.budget - held - self.others
        host = HostMemory(self.budget, available, swap=self.swap)
        plan = self.broker.decide(self.now, host, [guest.seen(self.now) for guest in self.guests])
        self.plans.append(plan)
        by_name = {guest.name: guest for guest in self.guests}
        for action in plan.actions:
            guest = by_name[action.machine]
            if action.kind == "page-out":
                guest.paged_out += action.bytes
                self.swap -= action.bytes
            else:
                guest.asked = action.balloon
        return plan.actions
