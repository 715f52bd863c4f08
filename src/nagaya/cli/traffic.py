"""What goes through NICs and uplinks, in words: counters, and rates from two looks at them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nagaya.units import human_size, human_time

if TYPE_CHECKING:
    from nagaya.models.usage import NicUsage, UplinkUsage, UsageAnswer
    from nagaya.models.waits import WaitInfo
    from nagaya.sdk import Client

_BETWEEN = 0.3  # s, of the two looks that make a rate
_WAITS_SINCE = 60  # s
_ROWS = 5  # of waits


@dataclass(frozen=True, slots=True)
class Traffic:
    """Two looks at everything."""

    before: UsageAnswer
    after: UsageAnswer

    @classmethod
    def of(cls, client: Client) -> Traffic:
        """Look twice; that takes a third of a second."""
        before = client.usage(_WAITS_SINCE)
        time.sleep(_BETWEEN)
        return cls(before, client.usage(_WAITS_SINCE))

    def nics(self, machine: str) -> dict[str, dict[str, str]]:
        """What went through each NIC of a machine, by its name: "received", "sent" and "dropped"."""
        was, now = (
            {nic.name: nic for one in look.machines if one.name == machine for nic in one.nics}
            for look in (self.before, self.after)
        )
        return {name: self._words(was.get(name), nic) for name, nic in now.items()}

    def uplink(self, network: str) -> dict[str, str]:
        """The same of the way out of a network; nothing if it has none."""
        was, now = (
            next((one for one in look.uplinks if one.network == network), None)
            for look in (self.before, self.after)
        )
        return self._words(was, now) if now else {}

    def waits(self, network: str) -> list[str]:
        """Who waited longest on a network in the last minute, and because of whom."""
        plugged = {
            f"{one.name}/{nic.name}"
            for one in self.after.machines
            for nic in one.nics
            if nic.network == network
        }
        rows = [row for row in self.after.waits if row.resource == "network" and row.waiter in plugged]
        rows.sort(key=lambda row: -row.wait_us)
        return [_wait(row) for row in rows[:_ROWS]]

    def _words(self, was: NicUsage | UplinkUsage | None, now: NicUsage | UplinkUsage) -> dict[str, str]:
        seconds = max(1e-3, self.after.at - self.before.at)
        words = {}
        for way, packets, bytes_ in (
            ("received", now.rx_packets, now.rx_bytes),
            ("sent", now.tx_packets, now.tx_bytes),
        ):
            earlier = bytes_ if was is None else was.rx_bytes if way == "received" else was.tx_bytes
            rate = max(0, bytes_ - earlier) / seconds
            words[way] = f"{human_size(bytes_)} in {packets} packets, now {human_size(rate)}/s"
        dropped = ", ".join(dropped_words(now.drops))
        return words | ({"dropped": dropped} if dropped else {})


def dropped_words(drops: Mapping[str, int]) -> Iterable[str]:
    """`storm 7`, `security 2`: the reasons why frames were dropped, the most frequent first."""
    counted = sorted(drops.items(), key=lambda one: (-one[1], one[0]))
    return (f"{reason} {count}" for reason, count in counted if count)


def _wait(row: WaitInfo) -> str:
    whom: Any = {"device": "the uplink", "limit": "its limit"}.get(row.cause, row.whom)
    return f"{row.waiter} {human_time(row.wait_us)} for {whom}, {row.requests} frames"
