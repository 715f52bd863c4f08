"""What went through, in words."""

from __future__ import annotations

from dataclasses import replace

from nagaya.cli.traffic import Traffic, dropped_words
from nagaya.models.usage import MachineUsage, NicUsage, UplinkUsage, UsageAnswer
from nagaya.models.waits import WaitInfo

NIC = NicUsage("net0", "default", True, 10, 1024, 20, 4096, {"storm": 2, "security": 30, "spoofed": 0}, 0)
WEB = MachineUsage("0a", "web", "running", 100, 1, 1, 64 << 20, "none", [], [NIC])
UPLINK = UplinkUsage("default", 0, 10, 1024, 20, 4096, {}, 0)
WAITS = [
    WaitInfo("web/net0", "limit", "", 1_000, 3, "network"),
    WaitInfo("web/net0", "machine", "db/net0", 2_500_000, 9, "network"),
    WaitInfo("web/disk0", "device", "", 9_000_000, 9),
    WaitInfo("db/net0", "device", "", 9_000_000, 9, "network"),
]
FIRST = UsageAnswer(1.0, 60, [WEB], [], WAITS, [UPLINK])
MORE = replace(NIC, rx_bytes=3072, rx_packets=12)
SECOND = replace(
    FIRST, at=3.0, machines=[replace(WEB, nics=[MORE])], uplinks=[replace(UPLINK, tx_bytes=8192)]
)


def test_rates_are_of_two_looks() -> None:
    assert Traffic(FIRST, SECOND).nics("web") == {
        "net0": {
            "received": "3.0 KiB in 12 packets, now 1.0 KiB/s",
            "sent": "4.0 KiB in 20 packets, now 0 B/s",
            "dropped": "security 30, storm 2",
        }
    }
    assert Traffic(FIRST, SECOND).uplink("default")["sent"] == "8.0 KiB in 20 packets, now 2.0 KiB/s"
    assert not Traffic(FIRST, SECOND).uplink("back")
    assert not Traffic(FIRST, SECOND).nics("db")


def test_counters_that_began_anew_make_no_negative_rate() -> None:
    assert Traffic(SECOND, replace(FIRST, at=5.0)).nics("web")["net0"]["received"].endswith("now 0 B/s")
    new = replace(FIRST, machines=[], uplinks=[])
    assert Traffic(new, SECOND).nics("web")["net0"]["received"].endswith("now 0 B/s"), "it has just come"


def test_the_longest_waits_of_a_network_come_first() -> None:
    assert Traffic(FIRST, SECOND).waits("default") == [
        "web/net0 2.5 s for db/net0, 9 frames",
        "web/net0 1 ms for its limit, 3 frames",
    ]


def test_reasons_of_drops_are_listed_by_how_many() -> None:
    assert list(dropped_words({"a": 1, "b": 1, "c": 5, "d": 0})) == ["c 5", "a 1", "b 1"]
