"""Time that machines stood still is charged to its causes, all of it and once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nagaya.resources.stalls import HOST, KEPT_S, MOST_LOOKS, Charge, Look, Stalls

ONE = frozenset({0})
S = 1_000_000


def play(*looks: dict[str, Look], busy: int = 0) -> list[Charge]:
    """Charges of the last look; each CPU's busy time grows by `busy` between two."""
    stalls = Stalls()
    found: list[Charge] = []
    for at, one in enumerate(looks):
        found = stalls.look(at, one, {0: at * busy, 1: at * busy})
    return sorted(found, key=lambda charge: (charge.waiter, -charge.wait_us))


def test_a_wait_is_charged_to_those_that_ran_in_proportion() -> None:
    before = {name: Look(0, ONE, 0, 0) for name in ("db", "web", "ci")}
    after = {"db": Look(1 * S, ONE, 3 * S, 3 * S), "web": Look(2 * S, ONE, 0, 0), "ci": Look(S, ONE, 0, 0)}
    assert play(before, after, busy=4 * S) == [
        Charge("db", "cpu", "machine", "web", 2 * S),
        Charge("db", "cpu", "machine", "ci", 1 * S),
    ]


def test_the_hosts_own_programs_are_named() -> None:
    assert play({"db": Look(0, ONE, 0, 0)}, {"db": Look(S, ONE, S, S)}, busy=2 * S) == [
        Charge("db", "cpu", "machine", HOST, S)
    ]


def test_who_runs_on_other_cpus_is_not_blamed() -> None:
    before = {"db": Look(0, ONE, 0, 0), "web": Look(0, frozenset({1}), 0, 0)}
    after = {"db": Look(S, ONE, S, S), "web": Look(9 * S, frozenset({1}), 0, 0)}
    assert play(before, after) == [Charge("db", "cpu", "device", "", S)]


def test_its_own_limit_comes_first_and_its_own_work_last() -> None:
    before, after = Look(0, ONE, 0, 0, 0), Look(S, ONE, 2 * S, 3 * S, 2 * S)
    assert play({"db": before}, {"db": after}, busy=S) == [
        Charge("db", "cpu", "limit", "", 2 * S),
        Charge("db", "cpu", "device", "", S),
    ]


def test_throttled_time_that_the_wait_shows_later_is_still_the_limits() -> None:
    looks = [Look(0, ONE, 0, 0, 0), Look(S, ONE, 0, 0, S), Look(2 * S, ONE, S, S, S)]
    assert play(*({"db": look} for look in looks)) == [Charge("db", "cpu", "limit", "", S)]


def test_a_memory_stall_at_the_limit_is_the_limits_and_else_the_hosts() -> None:
    looks = [Look(0, ONE, memory_us=0, limit_hits=4), Look(0, ONE, memory_us=S, limit_hits=5)]
    assert play(*({"db": look} for look in looks)) == [Charge("db", "memory", "limit", "", S)]
    looks = [Look(0, ONE, memory_us=0, limit_hits=4), Look(0, ONE, memory_us=S, limit_hits=4)]
    assert play(*({"db": look} for look in looks)) == [Charge("db", "memory", "device", "", S)]


def test_a_memory_stall_is_charged_to_those_that_hold_more_than_their_share() -> None:
    holders = {"db": 90 * S, "web": 3 * S, "ci": -5, HOST: S}
    stalls = Stalls()
    stalls.look(0, {"db": Look(0, ONE, memory_us=0, limit_hits=4)}, {}, holders)
    found = stalls.look(1, {"db": Look(0, ONE, memory_us=S, limit_hits=4)}, {}, holders)
    assert found == [
        Charge("db", "memory", "machine", "web", S * 3 // 4),
        Charge("db", "memory", "machine", HOST, S // 4),
    ]
    found = stalls.look(2, {"db": Look(0, ONE, memory_us=2 * S, limit_hits=5)}, {}, holders)
    assert found == [Charge("db", "memory", "limit", "", S)]


def test_a_machine_that_began_anew_is_charged_nothing() -> None:
    assert play({"db": Look(9 * S, ONE, 9 * S, 9 * S)}, {"db": Look(0, ONE, 0, 0)}) == []
    assert play({}, {"db": Look(9 * S, ONE, 9 * S, 9 * S)}) == []


def test_only_what_was_asked_for_is_summed_and_the_old_is_forgotten() -> None:
    stalls = Stalls()
    for second in range(2 * KEPT_S):
        stalls.look(second, {"db": Look(0, ONE, second, second)}, {})
    now = 2 * KEPT_S - 1
    assert [row.wait_us for row in stalls.rows(now, 60)] == [60]
    assert [row.wait_us for row in stalls.rows(now, KEPT_S)] == [MOST_LOOKS]


looks = st.builds(
    Look,
    used_us=st.integers(0, 10 * S),
    cpus=st.sampled_from([ONE, frozenset({0, 1}), frozenset({7}), frozenset()]),
    wait_us=st.none() | st.integers(0, 10 * S),
    queue_us=st.none() | st.integers(0, 10 * S),
    throttled_us=st.none() | st.integers(0, 10 * S),
    memory_us=st.none() | st.integers(0, 10 * S),
    limit_hits=st.none() | st.integers(0, 9),
)


@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "c"]), looks), min_size=2, max_size=6), st.data())
def test_no_wait_is_charged_twice_or_lost(rounds: list[dict[str, Look]], data: st.DataObject) -> None:
    stalls = Stalls()
    before: dict[str, Look] = {}
    for at, now in enumerate(rounds):
        busy = data.draw(st.dictionaries(st.sampled_from([0, 1, 7]), st.integers(0, 20 * S)))
        charges = stalls.look(at, now, busy)
        for name in now:
            mine = [charge for charge in charges if charge.waiter == name and charge.resource == "cpu"]
            own = sum(one.wait_us for one in mine)
            was, after = before.get(name), now[name]
            waited = grown(was.wait_us if was else None, after.wait_us)
            queued = grown(was.queue_us if was else None, after.queue_us)
            assert own == max(waited, queued)
            assert all(one.wait_us > 0 and one.whom != name for one in mine)
        before = now


def grown(before: int | None, after: int | None) -> int:
    return 0 if before is None or after is None else max(0, after - before)
