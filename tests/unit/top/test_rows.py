"""Rates from two answers, and their order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nagaya.cli.top import ORDERS
from nagaya.models.pressure import PressureInfo
from nagaya.models.usage import DiskUsage, MachineUsage, NicUsage, UplinkUsage, UsageAnswer
from nagaya.models.waits import WaitInfo
from nagaya.top.columns import COLUMNS, SORT_KEYS, ordered
from nagaya.top.rows import UplinkRow, most_waited_for, rows, uplink_rows

DISK = DiskUsage("disk0", 100, 50, 0, 0, 1 << 20, 1 << 20, 0, 3, 1, 1500)
NIC = NicUsage("net0", "default", True, 10, 1000, 20, 3000, {}, 0)
UPLINK = UplinkUsage("default", 125_000_000, 20, 3000, 10, 1000, {}, 4)
CALM = PressureInfo(0, 0, 0)
DB = MachineUsage("0a", "db", "running", 100, 1_000_000, 64 << 20, 128 << 20, "met", [DISK], [NIC], CALM)
WEB = MachineUsage("0b", "web", "stopped", 200, None, None, 64 << 20, "none", [])
WAITS = [
    WaitInfo("db/disk0", "machine", "web/disk0", 2_000_000, 4),
    WaitInfo("db/disk0", "device", "", 500_000, 4),
]
HELD = PressureInfo(2_100_000, 500_000, 0)
FIRST = UsageAnswer(10.0, 5, [DB, WEB], [], [])
LATER = replace(DISK, reads=1100, writes=1050, flushes=10, read_bytes=5 << 20)
MORE = replace(NIC, rx_bytes=1000 + (2 << 20), tx_bytes=5048)
SECOND = UsageAnswer(
    12.0,
    5,
    [replace(DB, cpu_us=2_000_000, disks=[LATER], nics=[MORE], pressure=HELD), WEB],
    [],
    WAITS,
    [UPLINK],
)


def test_rates_are_the_difference_of_two_answers() -> None:
    db, web = rows(FIRST, SECOND)
    assert (db.cpu, db.iops, db.rate) == (0.5, 1005, 2 << 20)
    assert (db.memory, db.in_flight, db.waiting, db.p99_us) == (64 << 20, 3, 1, 1500)
    assert (db.received, db.sent, web.received, web.sent) == (1 << 20, 1024, None, None)
    assert (db.waited, db.whom) == (0.5, "web")
    assert (web.cpu, web.iops, web.rate, web.memory, web.waited, web.whom) == (None, None, None, None, 0, "")


def test_uplinks_have_rates_too() -> None:
    (new,) = uplink_rows(FIRST, SECOND)
    assert (new.received, new.sent, new.waiting) == (None, None, 4), "it came up in between"
    later = replace(SECOND, at=14.0, uplinks=[replace(UPLINK, rx_bytes=3500, tx_bytes=2000)])
    (row,) = uplink_rows(SECOND, later)
    assert row == UplinkRow("default", 125_000_000, 250, 500, 4)


def test_a_counter_that_began_anew_and_a_new_machine_have_no_rate_yet() -> None:
    again = replace(SECOND, machines=[replace(DB, cpu_us=5, disks=[replace(DISK, reads=1, writes=0)])])
    (db,) = rows(SECOND, again)
    assert (db.cpu, db.iops) == (None, None)
    (db,) = rows(replace(FIRST, machines=[]), again)
    assert (db.cpu, db.iops) == (None, None)


@pytest.mark.parametrize(
    ("cause", "whom", "said"),
    [("machine", "web/disk0", "web"), ("device", "", "the disk"), ("limit", "", "its limit")],
)
def test_what_was_waited_for_most_is_named(cause: str, whom: str, said: str) -> None:
    row = WaitInfo("db/disk0", cause, whom, 3_000_000, 1)  # type: ignore[arg-type]
    assert most_waited_for([*WAITS, row, row]) == said
    assert most_waited_for([]) == ""


def test_what_was_waited_for_at_a_network_is_named_too() -> None:
    frames = WaitInfo("db/net0", "device", "", 9_000_000, 1, "network")
    assert most_waited_for([*WAITS, frames]) == "the uplink"
    assert (
        most_waited_for([frames, replace(frames, cause="machine", whom="web/net0", wait_us=10_000_000)])
        == "web"
    )


def test_what_was_waited_for_at_the_cpus_is_named_too() -> None:
    wait = WaitInfo("db", "machine", "%host", 9_000_000, 0, "cpu")
    assert most_waited_for([*WAITS, wait]) == "%host"
    assert most_waited_for([*WAITS, replace(wait, cause="device", whom="")]) == "the CPU"
    assert most_waited_for([*WAITS, replace(wait, cause="limit", whom="")]) == "its limit"


def test_rows_are_ordered_with_the_largest_first_and_the_unknown_last() -> None:
    found = rows(FIRST, SECOND)
    assert [row.name for row in ordered(reversed(found), "name")] == ["db", "web"]
    assert [row.name for row in ordered(reversed(found), "cpu")] == ["db", "web"]
    assert [row.name for row in ordered(found, "weight")] == ["web", "db"]


def test_each_column_is_text() -> None:
    db, web = rows(FIRST, SECOND)
    assert [column.text(db) for column in COLUMNS] == [
        *(
            "db",
            "running",
            "50%",
            "100%",
            "25%",
            "64 MiB",
            "0%",
            "1005",
            "2.0 MiB/s",
            "1.0 MiB/s",
            "1.0 KiB/s",
            "1.5 ms",
            "3",
            "100",
            "500 ms/s",
            "web",
        )
    ]
    assert [column.text(web) for column in COLUMNS] == [
        *("web", "stopped", "", "", "", "", "", "", "", "", "", "", "0", "200", "", "")
    ]


def test_the_command_sorts_by_what_the_keys_sort_by() -> None:
    assert set(ORDERS) == set(SORT_KEYS.values())
