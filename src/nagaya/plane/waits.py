"""Who waited for whom, in the last hour: a ring of bounded size."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nagaya.plane.shares import Resource, WaitRow

HOUR_SECONDS = 3600
_FINE_SECONDS = 120  # for so long rows are kept as they came, a set each second
_COARSE_SECONDS = 10  # and after that in sums of so many seconds
_KEYS = 256  # rows of one sum, and one for each cause with the rest, of nobody for nobody
Key = tuple[str, str, str, Resource]  # waiter, cause, whom, and what it is about
Sums = dict[Key, list[int]]  # microseconds, requests


class WaitRing:
    """Rows that workers send, by the second; older than two minutes by ten seconds; an hour at most."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._fine: deque[tuple[float, Sums]] = deque()
        self._coarse: deque[tuple[float, Sums]] = deque()

    def add(self, rows: Iterable[Mapping[str, Any]], resource: Resource = "disk") -> None:
        """What a worker sends: `waiter`, `cause`, `whom`, `wait_us` and `requests` of its last second."""
        sums: Sums = {}
        for row in rows:
            key = (row["waiter"], row["cause"], row["whom"], resource)
            _put(sums, key, row["wait_us"], row["requests"])
        self._fine.append((self._clock(), sums))
        self._age()

    def since(self, seconds: float, node_id: str | None = None) -> list[WaitRow]:
        """Sums over the last `seconds`, the longest first; of all, or of `node_id` and what is below it."""
        start = self._clock() - seconds
        sums: Sums = {}
        for at, part in (*self._coarse, *self._fine):
            if at < start:
                continue
            for key, (wait_us, requests) in part.items():
                if node_id is None or key[0] == node_id or key[0].startswith(f"{node_id}/"):
                    total = sums.setdefault(key, [0, 0])
                    total[0] += wait_us
                    total[1] += requests
        rows = [_row(key, *sum_) for key, sum_ in sums.items()]
        return sorted(rows, key=lambda row: row.wait_us, reverse=True)

    def _age(self) -> None:
        now = self._clock()
        while self._fine and self._fine[0][0] < now - _FINE_SECONDS:
            at, sums = self._fine.popleft()
            if not self._coarse or at >= self._coarse[-1][0] + _COARSE_SECONDS:
                self._coarse.append((at, {}))
            for key, (wait_us, requests) in sums.items():
                _put(self._coarse[-1][1], key, wait_us, requests)
        while self._coarse and self._coarse[0][0] < now - HOUR_SECONDS:
            self._coarse.popleft()


def _row(key: Key, wait_us: int, requests: int) -> WaitRow:
    waiter, cause, whom, resource = key
    return WaitRow(waiter, cause, whom, wait_us, requests, resource)  # type: ignore[arg-type]


def _put(sums: Sums, key: Key, wait_us: int, requests: int) -> None:
    if key not in sums and len(sums) >= _KEYS:
        key = ("", key[1], "", key[3])
    total = sums.setdefault(key, [0, 0])
    total[0] += wait_us
    total[1] += requests
