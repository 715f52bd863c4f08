"""Division by weight with a tax on the idle: the whole budget, within bounds, and fair."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nagaya.resources.idletax import PAGE, Claim, divide

MIB = 2**20


@st.composite
def claims(draw: st.DrawFn) -> Claim:
    most = draw(st.integers(1, 2**20)) * PAGE
    least = draw(st.integers(0, most // PAGE)) * PAGE
    return Claim(draw(st.integers(1, 10000)), draw(st.integers(0, 2**33)), least, most)


def test_active_machines_share_by_weight() -> None:
    two = [Claim(300, 900 * MIB, 0, 900 * MIB), Claim(100, 900 * MIB, 0, 900 * MIB)]
    sizes = divide(400 * MIB, two)
    assert [round(size / MIB) for size in sizes] == [300, 100]


def test_an_idle_byte_costs_as_much_as_four_active_ones() -> None:
    two = [Claim(100, 2000 * MIB, 0, 2000 * MIB), Claim(100, 0, 0, 2000 * MIB)]
    sizes = divide(500 * MIB, two)
    assert [round(size / MIB) for size in sizes] == [400, 100]


def test_without_a_tax_only_weights_count() -> None:
    two = [Claim(100, 2000 * MIB, 0, 2000 * MIB), Claim(100, 0, 0, 2000 * MIB)]
    assert [round(size / MIB) for size in divide(500 * MIB, two, tax=0)] == [250, 250]


@given(st.lists(claims(), min_size=1, max_size=8), st.integers(0, 2**36))
def test_bounds_and_budget_hold(given: list[Claim], budget: int) -> None:
    sizes = divide(budget, given)
    assert all(claim.least <= size <= claim.most for claim, size in zip(given, sizes, strict=True))
    assert sum(sizes) <= max(budget, sum(claim.least for claim in given))


@given(st.lists(claims(), min_size=1, max_size=8), st.integers(0, 2**36))
def test_nothing_is_left_over_that_somebody_could_have(given: list[Claim], budget: int) -> None:
    left = budget - sum(divide(budget, given))
    wanted = any(size < claim.most for claim, size in zip(given, divide(budget, given), strict=True))
    # Whole pages: what is rounded away, of each machine a page at most, and of a price's last digits.
    assert not wanted or left <= PAGE * (len(given) + 1)
