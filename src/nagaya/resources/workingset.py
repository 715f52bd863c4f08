"""How much of its memory a machine uses: an estimate that rises at once and falls slowly.

It is made of what the guest says, and of what the host sees: pages that came to the guest, time in which it
was stalled, bytes that it read from its disks. A guest that claims to use all of its memory is believed: it
pays for it with its weight (`nagaya.resources.idletax`), like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from nagaya.units import human_size

MIB = 2**20
CALM_S = 5.0  # a need after so long without one says that what was taken since was taken too early
REACTION_S = 2.0  # what a guest grows by in this time it should have before it asks
HALF_LIFE_S = 10.0  # of memory that was used and is not any more
AT_REST = 0.1  # of a CPU: a machine that computes less hardly touches its memory
GIVING = (
    64 * MIB
)  # that a guest gives, or takes back, with a second of CPU time; what it needs for that is no work
AT_REST_FASTER = 10  # and what it used is forgotten so many times sooner
LONGEST_HALF_LIFE_S = 640.0  # after it was needed again soon after it had been taken, again and again
STALE_S = 30.0  # statistics older than this say nothing
STALLED = 0.05  # of the time: less is noise
MISSES = 2 * MIB  # bytes read from disks in a second by a guest whose memory is full of caches
FAULTS = 50  # major page faults in a second


@dataclass(frozen=True, slots=True)
class GuestStats:
    """What a guest says (virtio 1.3, 5.5.6.3): bytes; faults are a count; None what it does not say.

    `at` is when, in seconds of the broker's clock.
    """

    at: float
    free: int | None = None
    available: int | None = None
    caches: int | None = None
    swap_in: int | None = None
    swap_out: int | None = None
    major_faults: int | None = None


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """One machine as the broker sees it; sizes in bytes.

    `resident` is what the host counts for it, None if nothing does. `balloon` is what its guest was last
    asked to give, `actual` what it claims to have given. So far it has waited for memory `stall_us`, as the
    host sees it (that may be seldom looked at), read `reads` from its disks, and computed `cpu_us`.
    """

    name: str
    size: int
    floor: int = 0
    weight: int = 100
    limit: int | None = None
    resident: int | None = None
    balloon: int = 0
    actual: int = 0
    stats: GuestStats | None = None
    stall_us: int | None = None
    reads: int | None = None
    cpu_us: int | None = None

    @property
    def most(self) -> int:
        """What it may have at most."""
        return self.size if self.limit is None else min(self.size, self.limit)

    @property
    def has(self) -> int:
        """What its guest can use now, if it keeps to what it was asked."""
        return max(0, self.size - self.balloon)

    @property
    def holds(self) -> int:
        """Host memory that is gone because of it."""
        return self.resident if self.resident is not None else max(0, self.size - self.actual)


@dataclass(slots=True)
class WorkingSet:
    """The estimate of one machine. `need` says why it needs more at once; "" if it does not."""

    active: int = 0
    need: str = ""
    swaps: bool = False  # the guest has swap of its own, and has used it
    half_life: float = HALF_LIFE_S
    _last: MachineMemory | None = None
    _at: float = 0.0
    _now: float = 0.0
    _growth: float = 0.0  # bytes/s
    _moves: bool = False  # its balloon: statistics of before say nothing of growth then
    _stall: tuple[float, int] | None = None  # when it was another, and what it was then
    _reached: bool = False  # the guest had given what it was asked for
    _needed: float = -inf  # when it was last in need
    _forgets: float = HALF_LIFE_S  # the half-life now: of one at rest it is shorter

    def update(self, now: float, machine: MachineMemory, taken: float) -> None:
        """Take in what is known `now`; `taken` is when memory that it held was last taken from it."""
        past, self._now = now - self._at, now
        stats = _fresh(machine.stats, now)
        busy = _busy(machine, stats)
        if self._last is not None and past > 0:
            moved, self._moves = self._moves, abs(machine.actual - self._last.actual) >= MIB
            before = _busy(self._last, _fresh(self._last.stats, self._at))
            grown = 0 if moved or self._moves else busy - before
            self._growth = max(grown / past, self._growth / 2)
        self.need = self._needs(machine, stats, past)
        want = busy + margin(machine) + int(self._growth * REACTION_S)
        if self.need:
            want = max(want, machine.has + max(machine.has // 4, 32 * MIB))
            calm = now - self._needed >= CALM_S and taken > self._needed
            if calm and now - taken < 2 * self._forgets:
                self.half_life = min(LONGEST_HALF_LIFE_S, self.half_life * 2)
            self._needed = now
        if self._last is None:  # before its first round, also after a restart, nothing is known to be idle
            want = max(want, machine.has)
        want = min(want, machine.most)
        self._forgets = self.half_life / (AT_REST_FASTER if self._rests(machine, past) else 1)
        left = 0.5 ** min(100.0, past / self._forgets)
        self.active = min(machine.most, max(want, int(want + (self.active - want) * left)))
        self._reached = machine.actual >= machine.balloon > 0
        self._last, self._at = machine, now

    def _rests(self, machine: MachineMemory, past: float) -> bool:
        last = self._last
        if last is None or machine.cpu_us is None or last.cpu_us is None:
            return False
        giving = abs(machine.actual - last.actual) / GIVING
        return (machine.cpu_us - last.cpu_us) / 1e6 < AT_REST * past + giving

    def _needs(self, machine: MachineMemory, stats: GuestStats | None, past: float) -> str:
        stalled = self._stalled(machine)
        if stalled >= STALLED:
            return f"it waits for memory {stalled:.0%} of the time"
        asked = min(machine.balloon, self._last.balloon) if self._last else 0
        if self._reached and machine.actual < asked - MIB:
            return "its guest took memory back by itself: it had none left"
        if stats is None:
            return ""
        if stats.available is not None and stats.available < margin(machine) // 2:
            return f"its guest has {human_size(stats.available)} left"
        last = self._last.stats if self._last is not None else None
        return self._faults(stats, last, past) or self._misses(machine, stats, past) if last else ""

    def _stalled(self, machine: MachineMemory) -> float:
        """The part of the time that it waited, 0 to 1; 0 until another look has been taken at it."""
        before, now = self._stall, machine.stall_us
        if now is None or (before and before[1] == now):
            return 0.0
        self._stall = (self._now, now)
        return min(1.0, (now - before[1]) / 1e6 / max(self._now - before[0], 1e-3)) if before else 0.0

    def _faults(self, stats: GuestStats, last: GuestStats, past: float) -> str:
        self.swaps = self.swaps or _more(stats.swap_out, last.swap_out) > 0
        if _more(stats.swap_in, last.swap_in) > MIB * past:
            return "its guest swaps"
        if _more(stats.major_faults, last.major_faults) > FAULTS * past:
            return "its guest reads pages from disk that it had in memory"
        return ""

    def _misses(self, machine: MachineMemory, stats: GuestStats, past: float) -> str:
        """Reads from disks when caches have no free memory to grow into: counted by the host."""
        full = stats.free is not None and stats.free < max(margin(machine), machine.has // 16)
        before = self._last.reads if self._last is not None else None
        if full and _more(machine.reads, before) > MISSES * past:
            return "its guest reads from disk what it has no memory to keep"
        return ""


def _fresh(stats: GuestStats | None, now: float) -> GuestStats | None:
    return stats if stats is not None and now - stats.at <= STALE_S else None


def _busy(machine: MachineMemory, stats: GuestStats | None) -> int:
    """Bytes that cannot be had without hurting it; without statistics all that the host sees."""
    if stats is None or stats.available is None:
        return min(machine.size, machine.holds)
    return max(0, machine.size - min(machine.actual, machine.size) - stats.available)


def margin(machine: MachineMemory) -> int:
    """What a guest should have available, or it begins to reclaim: a part of its size, within bounds."""
    return min(max(machine.size // 16, 8 * MIB), 256 * MIB)


def _more(now: int | None, before: int | None) -> int:
    """By how much a counter went up; one that is not there, or went back, did not."""
    return max(0, now - before) if now is not None and before is not None else 0
