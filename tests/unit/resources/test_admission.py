"""Promises of CPUs and memory: what fits under which policy, and the arithmetic of what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import ResourceError
from nagaya.resources import admission
from nagaya.resources.admission import MIB, OVERHEAD, Ask, Pool, admit
from nagaya.resources.policy import CpuPolicy, HostPolicy, MemoryPolicy, Overcommit
from nagaya.spec import MachineSpec

GIB = 1024 * MIB


def memory(overcommit: Overcommit = "none", total: float = 10 * GIB) -> Pool:
    return Pool("memory", total, 2 * GIB, overcommit)


def cpu(overcommit: Overcommit = "fair") -> Pool:
    return Pool("cpu", 2, 0.1, overcommit)


def refused(pool: Pool, ask: Ask, *others: Ask) -> ResourceError:
    with pytest.raises(ResourceError) as caught:
        admit(pool, ask, others)
    return caught.value


def test_without_overcommit_all_that_guests_see_counts() -> None:
    web, batch = Ask("web", 5 * GIB, 0), Ask("batch", 2 * GIB, GIB)
    admit(memory(), Ask("db", GIB, 0), [web, batch])
    error = refused(memory(), Ask("db", 2 * GIB, 0), web, batch)
    assert error.message == (
        "db needs 2.0 GiB of memory (its own and 16 MiB of overhead), 1.0 GiB are left: the host has 10 GiB, "
        "2.0 GiB stay with it, 7.0 GiB are promised (web 5.0 GiB, batch 2.0 GiB)"
    )
    assert error.facts["room"] == "memory"
    assert "nagaya start db --wait" in error.hint
    assert "nagaya host set memory.overcommit=fair" in error.hint


def test_a_machine_that_runs_and_asks_for_more_is_not_told_to_queue() -> None:
    web = Ask("web", GIB, GIB)
    with pytest.raises(ResourceError, match=r"db reserves 8\.0 GiB of memory .* 7\.0 GiB are left") as caught:
        admit(memory("fair"), Ask("db", 8 * GIB, 8 * GIB), [web], Ask("db", 8 * GIB, GIB))
    assert caught.value.hint == "stop another machine, or let one reserve less (nagaya set)"


def test_with_fair_overcommit_only_reservations_count() -> None:
    others = [Ask(f"m{n}", 4 * GIB, GIB) for n in range(7)]
    admit(memory("fair"), Ask("db", 64 * GIB, GIB), others)
    error = refused(memory("fair"), Ask("db", 64 * GIB, 2 * GIB), *others)
    assert "db reserves 2.0 GiB of memory" in error.message
    assert "overcommit" not in error.hint


def test_a_ratio_bounds_what_guests_see_and_reservations_still_have_to_fit() -> None:
    web = Ask("web", 10 * GIB, 0)
    admit(memory(1.5), Ask("db", 2 * GIB, 0), [web])
    error = refused(memory(1.5), Ask("db", 3 * GIB, 0), web)
    assert "db needs 3.0 GiB" in error.message
    assert "1.5 times the rest may be given, 10 GiB are promised" in error.message
    assert "db reserves 9.0 GiB" in refused(memory(3), Ask("db", 9 * GIB, 9 * GIB)).message


def test_cpus_are_promised_by_reservation() -> None:
    web = Ask("web", 2, 1.2)
    admit(cpu(), Ask("db", 16, 0.7), [web])
    error = refused(cpu(), Ask("db", 1, 0.8), web)
    assert error.message == (
        "db reserves 0.8 CPUs of cpu, 0.7 CPUs are left: the host has 2 CPUs, 0.1 CPUs stay with it, "
        "1.2 CPUs are promised (web 1.2 CPUs)"
    )


def test_what_asks_for_nothing_is_never_refused_and_nor_is_taking_less() -> None:
    full = [Ask("web", 2, 1.9), Ask("old", 2, 1)]
    admit(cpu(), Ask("db", 1, 0), full)
    admit(cpu(), Ask("db", 1, 0.5), full, before=Ask("db", 1, 0.6))
    with pytest.raises(ResourceError):
        admit(cpu(), Ask("db", 1, 0.7), full, before=Ask("db", 1, 0.6))


def test_who_waits_ahead_is_named_and_what_never_fits_is_said() -> None:
    error = refused(memory(), Ask("db", GIB, 0), Ask("big", 8 * GIB, 0, waits=True))
    assert "big 8.0 GiB, which waits" in error.message
    assert "this host never has that much" in refused(memory(), Ask("db", 9 * GIB, 0)).hint


def test_what_a_machine_asks_for_is_in_its_specification() -> None:
    spec = MachineSpec.model_validate(
        {
            "name": "db",
            "cpus": 4,
            "cpu": {"reservation": 0.5, "limit": 2},
            "memory": {"size": "1GiB", "reservation": "256MiB"},
        }
    )
    assert admission.asks("db", spec) == (
        Ask("db", 2, 0.5),
        Ask("db", GIB + OVERHEAD, 256 * MIB + OVERHEAD),
    )


def test_the_host_keeps_a_part_unless_told_otherwise() -> None:
    policy = HostPolicy()
    assert (policy.cpu.kept_of(2), policy.cpu.kept_of(64)) == (0.1, 3.2)
    assert (policy.memory.kept_of(2 * GIB), policy.memory.kept_of(100 * GIB)) == (256 * MIB, 5 * GIB)
    assert CpuPolicy(kept=0.5).kept_of(2) == 0.5
    assert MemoryPolicy(kept=GIB).kept_of(512 * MIB) == 512 * MIB
    assert HostPolicy.model_validate({"cpu": {"overcommit": "1.5"}}).cpu.overcommit == 1.5


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=12),
    st.tuples(st.integers(0, 1200), st.integers(0, 1200)),
    st.sampled_from(["none", "fair", 1.5, 4.0]),
)
def test_whatever_is_admitted_no_reservation_is_ever_more_than_there_is(
    others: list[tuple[int, int]], wanted: tuple[int, int], overcommit: Overcommit
) -> None:
    pool = Pool("memory", 1000, 100, overcommit)
    running: list[Ask] = []
    for number, (size, reservation) in enumerate([*others, wanted]):
        ask = Ask(f"m{number}", size, reservation)
        try:
            admit(pool, ask, running)
        except ResourceError as error:
            assert float(str(error.facts["need"])) > float(str(error.facts["free"]))
        else:
            running.append(ask)
    asking = [one for one in running if one.reservation]
    assert sum(one.reservation for one in asking) <= 900
    if overcommit == "none":
        assert sum(max(one.size, one.reservation) for one in running) <= 900
