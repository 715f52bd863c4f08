"""Decisions about CPUs: few moves, none that make it worse, none back and forth."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nagaya.resources.placement import THRESHOLD, CpuMeter, Move, Need, Placed, Placement, rebalance


def test_one_of_two_busy_machines_on_a_cpu_moves_to_the_idle_one() -> None:
    machines = [Placed("a", 0, 0.5), Placed("b", 0, 0.5)]
    assert rebalance({0: 1.0, 1: 0.0}, machines) == Move("a", 1)


def test_a_busy_machine_alone_on_its_cpu_stays() -> None:
    assert rebalance({0: 1.0, 1: 0.0}, [Placed("a", 0, 1.0)]) is None


def test_a_small_difference_is_left_alone() -> None:
    machines = [Placed("a", 0, 0.1), Placed("b", 0, 0.1)]
    assert rebalance({0: 0.2, 1: 0.0}, machines) is None


def test_idle_machines_do_not_move() -> None:
    assert rebalance({0: 1.0, 1: 0.0}, [Placed("a", 0, 0.01), Placed("b", 0, 0.01)]) is None


def test_the_machine_that_evens_out_best_moves() -> None:
    machines = [Placed("big", 0, 0.7), Placed("small", 0, 0.3)]
    assert rebalance({0: 1.0, 1: 0.4}, machines) == Move("small", 1)


def test_one_cpu_is_nothing_to_balance() -> None:
    assert rebalance({0: 1.0}, [Placed("a", 0, 1.0)]) is None


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), max_size=12),
    st.lists(st.floats(0, 0.3), min_size=4, max_size=4),
)
def test_moves_converge_and_never_widen_the_gap(
    placed: list[tuple[int, float]], background: list[float]
) -> None:
    machines = [Placed(str(index), cpu, load) for index, (cpu, load) in enumerate(placed)]
    for _ in range(50):
        loads = {
            cpu: background[cpu] + sum(one.load for one in machines if one.cpu == cpu) for cpu in range(4)
        }
        move = rebalance(loads, machines)
        if move is None:
            return
        source = next(one for one in machines if one.machine == move.machine)
        gap = loads[source.cpu] - loads[move.cpu]
        assert gap >= THRESHOLD
        assert abs(gap - 2 * source.load) < gap
        machines = [Placed(one.machine, move.cpu, one.load) if one is source else one for one in machines]
    raise AssertionError("it still moves machines after 50 steps")


def test_new_machines_spread_and_keep_their_cpu() -> None:
    placement = Placement([0, 1])
    assert [placement.choose(name) for name in ("a", "b", "c")] == [0, 1, 0]
    assert placement.choose("b") == 1
    placement.forget("a")
    placement.forget("c")
    assert placement.choose("d") == 0
    assert placement.cpu_of("a") is None


def test_a_machine_that_moved_rests() -> None:
    now = 0.0
    placement = Placement([0, 1], clock=lambda: now)
    placement.place("a", 0)
    placement.place("b", 0)
    loads = {0: 1.0, 1: 0.0}
    assert placement.decide({"a": 0, "b": 0}, loads) is None  # nothing to compare with yet
    now = 2.0
    assert placement.decide({"a": 1_000_000, "b": 1_000_000}, loads) == Move("a", 1)
    assert placement.cpu_of("a") == 1
    now = 4.0  # as if the load had gone over with it, and more
    swapped = {0: 0.0, 1: 1.0}
    assert placement.decide({"a": 2_000_000, "b": 1_000_000}, swapped) is None
    now = 20.0
    placement.place("c", 1)
    placement.decide({"a": 2_000_000, "b": 1_000_000, "c": 0}, swapped)
    now = 22.0
    assert placement.decide({"a": 3_000_000, "b": 1_000_000, "c": 1_000_000}, swapped) == Move("a", 0)


def test_the_meter_reads_busy_parts(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu 0\ncpu0 100 0 0 900 0 0 0 0 0 0\ncpu1 0 0 0 1000 0 0 0 0 0 0\nintr 1\n")
    meter = CpuMeter(stat)
    stat.write_text("cpu 0\ncpu0 150 0 25 925 0 0 0 0 0 0\ncpu1 0 0 0 1060 40 0 0 0 0 0\nintr 1\n")
    assert meter.loads() == {0: 0.75, 1: 0.0}


def test_a_machine_that_may_not_be_there_does_not_move() -> None:
    machines = [Placed("a", 0, 0.5, frozenset({0})), Placed("b", 0, 0.5, frozenset({0, 1}))]
    assert rebalance({0: 1.0, 1: 0.0}, machines) == Move("b", 1)


def test_a_move_breaks_no_reservation() -> None:
    now = [0.0]
    placement = Placement([0, 1], lambda: now[0])
    placement.choose("db", Need(0.6))
    placement.choose("far", Need(0.6))
    placement.place("web", 0, Need(0.3))
    placement.place("batch", 0, Need(0.5))
    placement.decide({"web": 0, "batch": 0, "db": 0}, {0: 1.0, 1: 0.0})
    now[0] = 10.0
    used = {"web": 3_000_000, "batch": 5_000_000, "db": 500_000}
    assert placement.decide(used, {0: 0.9, 1: 0.0}) == Move("web", 1)
