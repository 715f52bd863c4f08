"""The broker's decisions, with simulated guests: promises hold, moves help, nothing oscillates."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nagaya.resources.broker import Broker, HostMemory
from nagaya.resources.workingset import HALF_LIFE_S, MIB
from nagaya.testing.memory import SimGuest, SimHost

GIB = 1024 * MIB


def names(host: SimHost) -> dict[str, SimGuest]:
    return {guest.name: guest for guest in host.guests}


def test_nothing_happens_while_memory_suffices() -> None:
    host = SimHost([SimGuest("db", GIB, 300 * MIB), SimGuest("web", GIB, 100 * MIB)], 4 * GIB)
    assert host.play(60) == []
    assert not host.plans[-1].short


def test_sizes_may_exceed_the_budget_as_long_as_nobody_uses_them() -> None:
    host = SimHost([SimGuest(f"m{n}", GIB, 100 * MIB) for n in range(8)], 2 * GIB)
    assert host.play(60) == []


def test_memory_moves_from_the_idle_machine_to_the_one_in_need() -> None:
    idle = SimGuest("idle", GIB, 60 * MIB, cache=900 * MIB)
    busy = SimGuest("busy", GIB, 100 * MIB, cache=900 * MIB)
    host = SimHost([idle, busy], 1 * GIB)
    host.play(60)
    busy.demand = 600 * MIB
    actions = host.play(10)
    assert busy.room >= 600 * MIB
    took = [action for action in actions if action.kind == "take"]
    assert took[0].machine == "idle"
    assert any("busy needs memory" in action.reason and action.whom == ("busy",) for action in took)


def test_256_mib_move_in_a_few_rounds_of_a_quarter_second() -> None:
    idle = SimGuest("idle", GIB, 60 * MIB, cache=900 * MIB, speed=GIB)
    busy = SimGuest("busy", GIB, 100 * MIB, speed=GIB)
    host = SimHost([idle, busy], 1150 * MIB)
    host.play(60)
    before = idle.actual
    busy.demand = 700 * MIB
    host.play(1, interval=0.25)
    assert idle.actual - before >= 256 * MIB


def test_what_was_taken_is_given_back_when_memory_suffices_again() -> None:
    idle = SimGuest("idle", 2 * GIB, 60 * MIB, cache=1900 * MIB)
    busy = SimGuest("busy", 2 * GIB, 1600 * MIB)
    host = SimHost([idle, busy], 2400 * MIB)
    host.play(60)
    assert idle.asked > 0
    busy.demand, idle.cache = 50 * MIB, 100 * MIB
    host.play(120)
    assert (idle.asked, busy.asked) == (0, 0)


def test_room_that_nobody_uses_is_taken_when_less_is_left_than_guests_grow_by_in_a_second() -> None:
    host = SimHost([SimGuest(f"m{n}", GIB, 100 * MIB) for n in range(2)], 1200 * MIB)
    host.play(60)
    assert sum(guest.room for guest in host.guests) <= 1200 * MIB
    assert host.play(300) == []


def test_what_a_new_machine_holds_already_is_not_growth() -> None:
    host = SimHost([SimGuest("old", 750 * MIB, 300 * MIB)], 1600 * MIB)
    host.play(10)
    host.guests.append(SimGuest("new", 800 * MIB, 800 * MIB))
    assert host.play(10) == []
    assert not any(plan.short for plan in host.plans)


def test_taking_what_was_never_used_says_nothing_of_how_long_to_wait() -> None:
    db = SimGuest("db", GIB, 100 * MIB)
    host = SimHost([db, SimGuest("web", GIB, 500 * MIB)], 1200 * MIB)
    assert [action for action in host.play(5) if action.machine == "db"]
    db.demand = 900 * MIB
    host.play(2)
    assert any(plan.targets["db"].need for plan in host.plans)
    assert host.broker._known["db"].use.half_life == HALF_LIFE_S


def test_the_weight_decides_between_two_in_need() -> None:
    db = SimGuest("db", 2 * GIB, 2 * GIB, weight=300)
    web = SimGuest("web", 2 * GIB, 2 * GIB, weight=100)
    host = SimHost([db, web], 1 * GIB + GIB // 16, swap=4 * GIB)
    host.play(60)
    targets = host.plans[-1].targets
    assert targets["db"].bytes == pytest.approx(3 * targets["web"].bytes, rel=0.01)


def test_a_limit_holds_also_when_memory_suffices() -> None:
    host = SimHost([SimGuest("db", GIB, 100 * MIB, limit=512 * MIB)], 4 * GIB)
    actions = host.play(60)
    assert host.guests[0].room == 512 * MIB
    assert actions[0].reason == "its limit is 512 MiB"


def test_other_programs_of_the_host_shrink_the_budget() -> None:
    host = SimHost([SimGuest("db", GIB, 100 * MIB, cache=800 * MIB)], 1200 * MIB)
    host.play(10)
    host.others = 600 * MIB
    host.play(60)
    assert host.guests[0].resident <= 600 * MIB


def test_a_machine_is_not_taken_from_too_early_again_and_again() -> None:
    """Its cache is used without any sign of it until it is gone: it is believed longer each time."""
    db = SimGuest("db", GIB, 500 * MIB)
    web = SimGuest("web", GIB, 100 * MIB, cache=GIB)
    host = SimHost([db, web], 1200 * MIB)
    needs = 0
    for _ in range(60):
        db.demand = 900 * MIB
        host.play(5)
        db.demand = 500 * MIB
        host.play(15)
        needs += bool(host.plans[-1].targets["db"].need)
    late = [action for action in host.play(20) if action.machine == "db"]
    assert late == []


# Guests that lie.


def test_a_guest_that_claims_to_need_all_gets_its_share_and_no_more() -> None:
    liar = SimGuest("liar", 2 * GIB, 200 * MIB, claims_all=True)
    honest = SimGuest("honest", 2 * GIB, 1500 * MIB)
    host = SimHost([liar, honest], 2 * GIB)
    host.play(60)
    assert host.plans[-1].targets["liar"].bytes <= GIB


def test_a_guest_that_never_gives_is_found_out_and_paged_out_down_to_its_share() -> None:
    stubborn = SimGuest("stubborn", 2 * GIB, 1800 * MIB, refuses=True, floor=600 * MIB)
    honest = SimGuest("honest", 2 * GIB, 1500 * MIB)
    host = SimHost([stubborn, honest], 2 * GIB, swap=8 * GIB)
    actions = host.play(60)
    assert host.plans[-1].targets["stubborn"].refuses
    assert any(action.kind == "page-out" for action in actions)
    assert 600 * MIB <= stubborn.resident <= 1100 * MIB


def test_a_guest_without_statistics_is_asked_for_little_at_a_time() -> None:
    mute = SimGuest("mute", GIB, 200 * MIB, cache=800 * MIB, mute=True)
    busy = SimGuest("busy", GIB, 100 * MIB)
    host = SimHost([mute, busy], 1200 * MIB)
    host.play(30)
    busy.demand = 700 * MIB
    takes = [action for action in host.play(60) if action.machine == "mute" and action.kind == "take"]
    assert takes and max(action.bytes for action in takes) <= 16 * MIB


def test_what_a_guest_without_statistics_never_used_is_taken_at_once() -> None:
    mute = SimGuest("mute", GIB, 100 * MIB, mute=True)
    host = SimHost([mute, SimGuest("busy", GIB, 700 * MIB)], 1200 * MIB)
    first = [action for action in host.play(1) if action.machine == "mute"]
    assert first[0].kind == "take"
    assert first[0].bytes > 256 * MIB


def test_a_guest_that_gives_more_than_asked_harms_only_itself() -> None:
    host = SimHost([SimGuest("grabs", GIB, 100 * MIB, grabs=GIB), SimGuest("db", GIB, 500 * MIB)], 1200 * MIB)
    host.play(60)
    assert host.guests[1].used == 500 * MIB


# Properties.

machines = st.lists(
    st.builds(
        SimGuest,
        name=st.uuids().map(str),
        size=st.integers(64, 4096).map(lambda n: n * MIB),
        demand=st.integers(8, 4096).map(lambda n: n * MIB),
        cache=st.sampled_from([0, 64 * MIB, 4 * GIB]),
        floor=st.sampled_from([0, 16 * MIB, 64 * MIB]),
        weight=st.integers(1, 10000),
        claims_all=st.booleans(),
        refuses=st.booleans(),
        mute=st.booleans(),
        grabs=st.sampled_from([0, 64 * MIB]),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda one: one.name,
)
budgets = st.integers(256, 8192).map(lambda n: n * MIB)


@settings(max_examples=50)
@given(machines, budgets, st.sampled_from([0, 16 * GIB]))
def test_promises_hold_in_every_round_whatever_guests_do(
    guests: list[SimGuest], budget: int, swap: int
) -> None:
    host = SimHost(guests, budget, swap=swap)
    for _ in range(30):
        for guest in guests:
            guest.live(1)
        host.now += 1
        before = {guest.name: guest.asked for guest in guests}
        host.round()
        plan = host.plans[-1]
        least = sum(min(guest.size, max(guest.floor, 32 * MIB)) for guest in guests)
        assert sum(target.bytes for target in plan.targets.values()) <= max(budget, least)
        gives = sum(action.bytes for action in plan.actions if action.kind == "give")
        assert gives <= max(0, plan.left)
        for guest in guests:
            assert guest.asked >= 0
            if guest.asked > before[guest.name]:
                assert guest.size - guest.asked >= guest.floor
            if any(a.kind == "page-out" and a.machine == guest.name for a in plan.actions):
                assert guest.resident >= guest.floor


@settings(max_examples=50)
@given(machines, st.integers(256, 1024).map(lambda n: n * MIB))
def test_guests_that_all_grow_at_once_do_not_get_more_than_there_is(
    guests: list[SimGuest], budget: int
) -> None:
    for guest in guests:
        guest.claims_all = guest.refuses = guest.mute = False
        guest.demand = min(guest.demand, guest.size // 2, budget // 16)
        guest.cache = guest.floor = 0
    host = SimHost(guests, budget)
    host.play(60)
    for guest in guests:
        guest.demand = guest.size
    bands = sum(max(8 * MIB, guest.size // 32) for guest in guests)  # differences that are left alone
    for _ in range(20):
        host.play(0.25, interval=0.25)
        assert sum(guest.resident for guest in guests) <= budget + bands


@settings(max_examples=25)
@given(machines, budgets)
def test_a_steady_state_is_reached_and_stays(guests: list[SimGuest], budget: int) -> None:
    for guest in guests:
        guest.claims_all = guest.refuses = guest.mute = False
        guest.grabs = 0
        guest.demand = min(guest.demand, guest.size // 2)
    total = sum(guest.demand for guest in guests)
    host = SimHost(guests, max(budget, total * 2))
    host.play(400)
    assert host.play(300) == []


@given(machines, budgets, st.integers(2, 100))
def test_a_target_never_falls_when_the_weight_rises(guests: list[SimGuest], budget: int, factor: int) -> None:
    seen = [guest.seen(0.0) for guest in guests]
    host = HostMemory(budget, budget)
    name = guests[0].name
    before = Broker().decide(0, host, seen).targets[name].bytes
    guests[0].weight *= factor
    after = Broker().decide(0, host, [guest.seen(0.0) for guest in guests]).targets[name].bytes
    assert after >= before - 4096


@given(machines, budgets)
def test_a_plan_of_a_copy_changes_nothing(guests: list[SimGuest], budget: int) -> None:
    host = SimHost(guests, budget)
    host.play(5)
    seen = [guest.seen(host.now) for guest in guests]
    first = host.broker.copy().decide(host.now + 1, HostMemory(budget, budget), seen)
    assert host.broker.copy().decide(host.now + 1, HostMemory(budget, budget), seen) == first


def test_a_new_broker_goes_on_where_the_old_one_was() -> None:
    idle = SimGuest("idle", GIB, 60 * MIB, cache=900 * MIB)
    host = SimHost([idle, SimGuest("busy", GIB, 800 * MIB)], 1200 * MIB)
    host.play(120)
    asked = [guest.asked for guest in host.guests]
    host.broker = Broker()
    host.play(10)
    for guest, before in zip(host.guests, asked, strict=True):
        assert abs(guest.asked - before) <= 64 * MIB
