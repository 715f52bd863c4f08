"""Reservations of CPU time, kept by weights: in simulated time, by what a fair scheduler makes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.resources.cpushares import WEIGHT_MAX, Contender, base_weight, fair, weights


def machine(
    name: str, weight: int = 100, reservation: float = 0.0, most: float = 1.0, cpus: int = 1
) -> Contender:
    return Contender(name, weight, reservation, most, frozenset(range(cpus)))


def test_without_reservations_weights_are_what_was_set() -> None:
    assert weights([machine("a", 100), machine("b", 200), machine("c", 400)]) == {
        "a": 100,
        "b": 200,
        "c": 400,
    }


def test_a_machine_below_its_reservation_gets_the_weight_for_it_and_the_rest_is_shared() -> None:
    all_ = [machine("db", 10, 0.5), machine("a", 100), machine("b", 300)]
    given_weights = weights(all_)
    assert given_weights["a"] == 100
    assert given_weights["db"] == pytest.approx(400)
    got = fair(all_, given_weights)
    assert got == pytest.approx({"db": 0.5, "a": 0.125, "b": 0.375})


def test_a_reservation_below_the_share_changes_nothing() -> None:
    assert weights([machine("db", 300, 0.5), machine("a", 100)]) == {"db": 300, "a": 100}


def test_who_shares_no_cpu_does_not_count() -> None:
    elsewhere = Contender("far", 10_000, 0, 1, frozenset({7}))
    assert weights([machine("db", 100, 0.4), elsewhere]) == {"db": 100, "far": 10_000}


def test_reservations_beyond_what_a_control_group_can_weigh_are_scaled() -> None:
    found = weights([machine("db", 1, 0.9), *(machine(f"m{n}", 10_000) for n in range(5))])
    assert max(found.values()) == pytest.approx(WEIGHT_MAX)
    assert fair([machine("db", 1, 0.9), *(machine(f"m{n}") for n in range(5))], found)["db"] >= 0.9 - 1e-3


def test_the_group_of_all_machines_weighs_more_only_when_it_must() -> None:
    assert base_weight([machine("a"), machine("b")], 2) == 100
    assert base_weight([machine("a", reservation=0.2)], 2) == 100
    heavy = base_weight([machine("a", reservation=0.9), machine("b", reservation=0.9)], 2)
    assert 2 * heavy / (heavy + 4 * 100) >= 1.8 - 1e-9
    assert base_weight([machine("a", reservation=1.0)], 1) == WEIGHT_MAX


_machines = st.lists(
    st.tuples(st.integers(1, 10_000), st.floats(0, 1), st.floats(0.05, 1)), min_size=1, max_size=12
)


@given(_machines, st.integers(1, 4), st.data())
def test_whoever_wants_cpu_time_every_reservation_is_kept(
    drawn: list[tuple[int, float, float]], cpus: int, data: st.DataObject
) -> None:
    """Reservations that fit the CPUs are kept whoever else is busy, and weights decide about the rest."""
    room = 0.95 * cpus / len(drawn)
    all_ = [
        machine(str(index), weight, min(part * room, most), most, cpus)
        for index, (weight, part, most) in enumerate(drawn)
    ]
    given_weights = weights(all_)
    assert all(1 <= weight <= WEIGHT_MAX + 1e-6 for weight in given_weights.values())
    busy = [one for one in all_ if data.draw(st.booleans())]
    got = fair(busy, given_weights) if busy else {}
    for one in busy:
        assert got[one.machine] >= one.reservation * 0.99 - 0.01
    shares = [one for one in busy if one.reservation < 0.99 * got[one.machine] < 0.98 * one.most]
    full = fair(all_, given_weights)
    for one in shares:
        for other in shares:
            if full[one.machine] > 1.01 * one.reservation and full[other.machine] > 1.01 * other.reservation:
                mine, its = got[one.machine] / one.weight, got[other.machine] / other.weight
                assert mine == pytest.approx(its, rel=0.02, abs=1e-3)
