"""Alarms are raised once, say what is the matter, and do not flicker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nagaya.resources.admission import Pool
from nagaya.resources.alarms import MARKS, Alarms, HostLook
from nagaya.resources.pressure import HostPressure, Stall

GIB = 2**30


def look(memory: float = 0, *, promised: int = 0, available: int | None = 8 * GIB) -> HostLook:
    stall = Stall(0, 0, memory, 0)
    pool = Pool("memory", 10 * GIB, 2 * GIB, "none")
    return HostLook(HostPressure(memory=stall, memory_available=available), 0.0, [(pool, promised)])


def test_a_stall_is_raised_once_and_ends_well_below() -> None:
    alarms = Alarms()
    assert alarms.judge(look(0.09)) == []
    assert alarms.judge(look(0.12)) == [("memory stalls", True)]
    assert [alarm.text for alarm in alarms.raised] == ["some work waited for memory 12% of the last 10 s"]
    assert alarms.judge(look(0.07)) == []
    assert alarms.judge(look(0.04)) == [("memory stalls", False)]
    assert alarms.raised == []


def test_what_is_nearly_promised_away_and_what_is_short_are_said() -> None:
    alarms = Alarms()
    alarms.judge(look(promised=7 * GIB + GIB // 2, available=GIB // 4))
    assert [alarm.text for alarm in alarms.raised] == [
        "256 MiB of the host's 10 GiB are available",
        "7.5 GiB of 8.0 GiB are promised (94%)",
    ]


def test_a_host_that_tells_nothing_raises_nothing() -> None:
    assert Alarms().judge(HostLook(HostPressure(), 0.0, [(Pool("cpu", 0, 0, "fair"), 0)])) == []


@given(st.lists(st.floats(0, 1), max_size=50))
def test_between_the_marks_nothing_changes(levels: list[float]) -> None:
    alarms = Alarms()
    raised = False
    for level in levels:
        changed = alarms.judge(look(level))
        expected = level >= (MARKS["memory stalls"].low if raised else MARKS["memory stalls"].high)
        assert changed == ([("memory stalls", expected)] if expected != raised else [])
        raised = expected
