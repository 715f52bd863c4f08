"""Senders in the machines of a house, and what arrives in its world."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benches.network.houses import WORLD, House

from nagaya.testing.netns import Namespace

SLICE_MS = 100
SECOND = 1000 // SLICE_MS  # slices
SINK_PORT, ECHO_PORT = 7001, 7002

# Bytes of TCP in a frame of an MTU of 1500 with time stamps, and of that frame.
PAYLOAD, FRAME = 1448, 1514

_START_S = 0.5  # until all have started


@dataclass(frozen=True, slots=True)
class Crowd:
    """How long is measured."""

    seconds: float
    warm_up: float = 1.0

    def send(
        self,
        house: House,
        bulk: Sequence[str],
        asker: str = "",
        turn: Callable[[], None] | None = None,
        to: str = "",
    ) -> Arrived:
        """The machines `bulk` send what goes, `asker` asks 100 times a second; `turn` comes in the middle.

        They send to the machine `to`, or to the world.
        """
        place, host = (house.machines[to], house.address_of(to)) if to else (house.world, WORLD)
        start = time.monotonic() + _START_S + self.warm_up
        end = start + self.seconds
        with ExitStack() as stack:
            sink = _Program(place, "sink", SINK_PORT, start, SLICE_MS / 1000, serves=True)
            stack.callback(sink.kill)
            echo = _Program(place, "echo", ECHO_PORT, serves=True)
            stack.callback(echo.kill)
            senders = [_Program(house.machines[name], "bulk", host, SINK_PORT, end) for name in bulk]
            asks = None
            if asker:
                asks = _Program(house.machines[asker], "ask", host, ECHO_PORT, 100, start, end)
            if turn is not None:
                timer = threading.Timer(max(0.0, start + self.seconds / 2 - time.monotonic()), turn)
                timer.start()
                stack.callback(timer.join)
            for sender in senders:
                sender.result(self.seconds + 30)
            trips = asks.result(self.seconds + 30) if asks else []
            counts, _ = sink.end(), echo.end()
        whole = int(self.seconds * SECOND)
        slices = {name: (counts.get(house.address_of(name), []) + [0] * whole)[:whole] for name in bulk}
        return Arrived(slices, sorted(trips))


@dataclass(frozen=True, slots=True)
class Arrived:
    """Payload by machine and slice of time, and round trips in microseconds, the shortest first."""

    slices: Mapping[str, list[int]]
    trips: list[float]

    def bytes_of(self, name: str, first: int = 0, last: int | None = None) -> float:
        """On the wire, in these slices."""
        return sum(self.slices[name][first:last]) * FRAME / PAYLOAD

    def total(self) -> float:
        """On the wire, of all, in a second."""
        length = max((len(slices) for slices in self.slices.values()), default=1)
        return sum(self.bytes_of(name) for name in self.slices) / length * SECOND

    def trip(self, part: float) -> float:
        """A quantile of the round trips."""
        return self.trips[min(len(self.trips) - 1, int(len(self.trips) * part))]


class _Program:
    """`load.py` in a namespace."""

    def __init__(self, place: Namespace, *words: object, serves: bool = False) -> None:
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("load.py")), *map(str, words)]
        with place.entered():
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        if serves:
            assert self._process.stdout is not None
            self._process.stdout.readline()

    def end(self) -> Any:
        """Have it end; what it says."""
        return self.result(10)

    def result(self, timeout: float) -> Any:
        """What it says. Raises `CalledProcessError` and `TimeoutExpired`."""
        output, _ = self._process.communicate(timeout=timeout)
        if self._process.returncode:
            raise subprocess.CalledProcessError(self._process.returncode, self._process.args)
        return json.loads(output)

    def kill(self) -> None:
        """If it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
