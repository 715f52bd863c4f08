"""What a machine asked of the host, hour by hour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from nagaya.models.answer import Answer
from nagaya.resources.demand import Hour, Quantiles, Sample


@dataclass(frozen=True, slots=True)
class DemandPercentiles(Answer):
    """Half of the samples of the hour are at most `p50`, and so on."""

    p50: int
    p90: int
    p99: int
    max: int

    @classmethod
    def of(cls, quantiles: Quantiles) -> Self:
        """As the store has them."""
        return cls(**asdict(quantiles))


@dataclass(frozen=True, slots=True)
class DemandHour(Answer):
    """An hour that began at `at` (Unix time). A machine that ran all the time has 360 `samples`."""

    at: int
    samples: int
    cpu: DemandPercentiles  # thousandths of a CPU
    memory: DemandPercentiles  # bytes
    iops: DemandPercentiles
    disk: DemandPercentiles  # bytes/s
    received: DemandPercentiles  # bytes/s
    sent: DemandPercentiles

    @classmethod
    def of(cls, at: int, hour: Hour) -> Self:
        """As the store has it."""
        found = {name: DemandPercentiles.of(one) for name, one in hour.quantiles.items()}
        return cls(at=at, samples=hour.samples, **found)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer."""
        metrics = [name for name in cls.__dataclass_fields__ if name not in ("at", "samples")]
        found = {name: DemandPercentiles.from_json(body[name]) for name in metrics}
        return cls(at=body["at"], samples=body["samples"], **found)


@dataclass(frozen=True, slots=True)
class DemandSample(Answer):
    """Averages of the ten seconds up to `at`, in the units of `DemandHour`."""

    at: int
    cpu: int
    memory: int
    iops: int
    disk: int
    received: int
    sent: int

    @classmethod
    def of(cls, sample: Sample) -> Self:
        """As the store has it."""
        return cls(**asdict(sample))


@dataclass(frozen=True, slots=True)
class DemandAnswer(Answer):
    """What is known of one machine, oldest first: hours of two weeks, and samples of the last hour."""

    name: str
    interval: int  # seconds between samples
    hours: list[DemandHour]
    samples: list[DemandSample]

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer."""
        hours = [DemandHour.from_json(one) for one in body["hours"]]
        samples = [DemandSample.from_json(one) for one in body["samples"]]
        return cls(body["name"], body["interval"], hours, samples)
