"""What a machine uses: the estimate rises at once and falls slowly."""

from __future__ import annotations

from dataclasses import replace

from nagaya.resources.workingset import HALF_LIFE_S, MIB, GuestStats, MachineMemory, WorkingSet

SIZE = 1024 * MIB


def machine(
    at: float, available: int, *, swap_in: int = 0, balloon: int = 0, actual: int = 0
) -> MachineMemory:
    stats = GuestStats(at, free=available, available=available, swap_in=swap_in, major_faults=0)
    return MachineMemory("db", SIZE, resident=SIZE - available, stats=stats, balloon=balloon, actual=actual)


def test_at_first_all_of_it_counts_as_used() -> None:
    use = WorkingSet()
    use.update(0, machine(0, 900 * MIB), taken=-1e9)
    assert use.active == SIZE


def test_what_is_not_used_any_more_is_forgotten_by_halves() -> None:
    use = WorkingSet()
    use.update(0, machine(0, 900 * MIB), taken=-1e9)
    use.update(HALF_LIFE_S, machine(HALF_LIFE_S, 900 * MIB), taken=-1e9)
    lasting = 124 * MIB + SIZE // 16
    assert abs(use.active - (lasting + (SIZE - lasting) // 2)) < MIB


def test_growth_counts_before_it_has_come() -> None:
    use = WorkingSet()
    for second in range(100):
        use.update(second, machine(second, 900 * MIB), taken=-1e9)
    calm = use.active
    use.update(100, machine(100, 800 * MIB), taken=-1e9)
    assert use.active - calm >= 299 * MIB  # 100 that came, and 200 for the next two seconds


def test_a_guest_that_swaps_is_in_need() -> None:
    use = WorkingSet()
    use.update(0, machine(0, 500 * MIB), taken=-1e9)
    use.update(1, machine(1, 500 * MIB, swap_in=64 * MIB), taken=-1e9)
    assert use.need == "its guest swaps"


def test_one_that_took_memory_back_by_itself_is_in_need() -> None:
    use = WorkingSet()
    use.update(0, machine(0, 100 * MIB, balloon=200 * MIB, actual=200 * MIB), taken=-1e9)
    use.update(1, machine(1, 100 * MIB, balloon=200 * MIB, actual=150 * MIB), taken=-1e9)
    assert use.need == "its guest took memory back by itself: it had none left"


def test_the_host_sees_a_stall_of_a_guest_without_statistics() -> None:
    use = WorkingSet()
    for second, waited in ((0, 0), (1, 0), (2, 0), (3, 300_000)):
        assert use.need == ""
        one = MachineMemory("db", SIZE, resident=100 * MIB, stall_us=waited)
        use.update(second, one, taken=-1e9)
    assert use.need == "it waits for memory 10% of the time"


def test_old_statistics_say_nothing() -> None:
    use = WorkingSet()
    use.update(1000, machine(0, MIB), taken=-1e9)
    assert use.need == ""


def test_reads_of_a_guest_without_free_memory_are_a_need() -> None:
    use = WorkingSet()
    stats = GuestStats(0, free=0, available=500 * MIB, swap_in=0, major_faults=0)
    one = MachineMemory("db", SIZE, resident=SIZE, stats=stats, reads=0)
    use.update(0, one, taken=-1e9)
    use.update(1, replace(one, stats=replace(stats, at=1), reads=50 * MIB), taken=-1e9)
    assert use.need == "its guest reads from disk what it has no memory to keep"


def test_what_was_needed_again_soon_after_it_was_taken_is_believed_longer() -> None:
    use = WorkingSet()
    use.update(0, machine(0, 500 * MIB), taken=-1e9)
    use.update(1, machine(1, MIB), taken=0.5)
    use.update(2, machine(2, MIB), taken=1.5)  # it was in need just before: that was no mistake
    assert use.half_life == 2 * HALF_LIFE_S


def test_a_machine_that_does_not_compute_is_known_to_be_idle_sooner() -> None:
    rests, works = WorkingSet(), WorkingSet()
    for second in range(3):
        one = machine(second, 900 * MIB)
        rests.update(second, replace(one, cpu_us=second * 1000), taken=-1e9)
        works.update(second, replace(one, cpu_us=second * 500_000), taken=-1e9)
    lasting = 124 * MIB + SIZE // 16
    assert abs(rests.active - (lasting + (SIZE - lasting) // 4)) < MIB
    assert works.active > lasting + (SIZE - lasting) * 0.8


def test_what_a_guest_computes_to_give_memory_is_no_work() -> None:
    use = WorkingSet()
    for second in range(3):
        given = second * 64 * MIB
        one = machine(second, 900 * MIB - given, balloon=given, actual=given)
        use.update(second, replace(one, cpu_us=second * 900_000), taken=-1e9)
    lasting = 124 * MIB + SIZE // 16
    assert abs(use.active - (lasting + (SIZE - lasting) // 4)) < MIB


def test_statistics_older_than_the_balloon_are_not_growth() -> None:
    use = WorkingSet()
    for second in range(100):
        use.update(second, machine(second, 900 * MIB), taken=-1e9)
    calm = use.active
    # It has given 300 MiB, and its statistics tell so a moment later.
    use.update(100, machine(99, 900 * MIB, balloon=300 * MIB, actual=300 * MIB), taken=-1e9)
    use.update(101, machine(101, 600 * MIB, balloon=300 * MIB, actual=300 * MIB), taken=-1e9)
    assert abs(use.active - calm) < MIB


def test_one_that_is_asked_for_more_has_not_taken_memory_back() -> None:
    use = WorkingSet()
    use.update(0, machine(0, 500 * MIB, balloon=100 * MIB, actual=100 * MIB), taken=-1e9)
    use.update(1, machine(1, 500 * MIB, balloon=200 * MIB, actual=101 * MIB), taken=-1e9)
    assert use.need == ""
