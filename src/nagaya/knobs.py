"""Knobs of each resource, `reservation`, `limit` and `weight`, and the quantities that they are said in."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from nagaya.units import (
    format_cpus,
    format_rate,
    format_size,
    format_time,
    parse_cpus,
    parse_iops,
    parse_rate,
    parse_size,
    parse_time,
)

MIB = 2**20

Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, return_type=str, when_used="json"),
    Field(json_schema_extra={"type": ["string", "integer"], "examples": ["512MiB", "1.5GiB"]}),
]
Rate = Annotated[
    int,
    BeforeValidator(parse_rate),
    PlainSerializer(format_rate, return_type=str, when_used="json"),
    Field(json_schema_extra={"type": ["string", "integer"], "examples": ["50MiB/s"]}),
]
Latency = Annotated[
    int,
    BeforeValidator(parse_time),
    Field(ge=1, le=60_000_000),
    PlainSerializer(format_time, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "title": "time", "examples": ["5ms", "800us"]}),
]
Weight = Annotated[
    int, Field(ge=1, le=10000, description="share of what is left, beside the others' weights")
]


class Part(BaseModel):
    """Base of the parts of a specification: frozen, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CpuKnobs(Part):
    """CPU shares of a machine, in CPUs (1.5 is one and a half)."""

    reservation: float = Field(0, ge=0, le=4096, description="CPUs it gets whatever the others do")
    limit: float | None = Field(None, gt=0, le=4096, description="CPUs it never exceeds")
    weight: Weight = 100
    pin: Annotated[
        str,
        BeforeValidator(lambda value: str(value) if type(value) is int else value),  # `pin: 3` is one in YAML
        AfterValidator(lambda text: text and format_cpus(parse_cpus(text))),
    ] = Field("", max_length=256, description="CPUs of the host that it may run on, `0-3,8`; empty: any")

    @model_validator(mode="after")
    def _ordered(self) -> CpuKnobs:
        if self.limit is not None and self.reservation > self.limit:
            raise ValueError(f"reservation {self.reservation:g} is above limit {self.limit:g}")
        return self


class Memory(Part):
    """Guest RAM and the host memory behind it. `memory: 512MiB` is short for `memory: {size: 512MiB}`."""

    size: Annotated[Size, Field(ge=16 * MIB, le=2**46, description="what the guest sees as its RAM")] = (
        512 * MIB
    )
    max: Size | None = Field(None, le=2**46, description="what `size` can be raised to while it runs")
    reservation: Size = Field(0, description="host memory it keeps whatever the others do")
    limit: Size | None = Field(None, description="host memory that its balloon holds it to")
    weight: Weight = 100
    huge: bool = Field(False, description="kept in huge pages, as far as the guest uses whole ones")
    node: int | None = Field(None, ge=0, description="NUMA node that it is kept on; none: any")

    @model_validator(mode="after")
    def _fits(self) -> Memory:
        if self.max is not None and self.max < self.size:
            raise ValueError(f"max {format_size(self.max)} is below size {format_size(self.size)}")
        for name, most in (("limit", self.limit), ("size", self.size)):
            if most is not None and self.reservation > most:
                raise ValueError(
                    f"reservation {format_size(self.reservation)} is above {name} {format_size(most)}"
                )
        return self


class DiskKnobs(Part):
    """Shares of the host's disks: requests a second and bytes a second; both hold.

    `reservation: 2000iops` is short for `reservation_iops: 2000`, and `limit` likewise.
    """

    reservation_iops: int = Field(
        0, ge=0, le=2**32 - 1, description="requests per second it gets whatever the others do"
    )
    reservation: Rate = Field(0, description="bytes per second it gets whatever the others do")
    limit_iops: int | None = Field(
        None, gt=0, le=2**32 - 1, description="requests per second it never exceeds"
    )
    limit: Rate | None = Field(None, gt=0, description="bytes per second it never exceeds")
    weight: Weight = 100
    latency_p99: Latency | None = Field(
        None,
        description="99 of 100 requests are answered in this time, at the others' cost",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_unit(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        fields: dict[str, object] = {}
        for key, given in value.items():
            iops = parse_iops(given) if key in ("reservation", "limit") else None
            name = key if iops is None else f"{key}_iops"
            if name in fields or (name != key and name in value):
                raise ValueError(f"{key} is given twice in iops")
            fields[name] = given if iops is None else iops
        return fields

    @model_validator(mode="after")
    def _ordered(self) -> DiskKnobs:
        if self.limit_iops is not None and self.reservation_iops > self.limit_iops:
            raise ValueError(f"reservation {self.reservation_iops}iops is above limit {self.limit_iops}iops")
        if self.limit is not None and self.reservation > self.limit:
            raise ValueError(
                f"reservation {format_rate(self.reservation)} is above limit {format_rate(self.limit)}"
            )
        return self


class NetworkKnobs(Part):
    """Shares of each network that it is on, bytes per second; the limit holds in each direction."""

    reservation: Rate = Field(0, description="bytes per second it gets whatever the others do")
    limit: Rate | None = Field(None, gt=0, description="bytes per second it never exceeds")
    weight: Weight = 100

    @model_validator(mode="after")
    def _ordered(self) -> NetworkKnobs:
        if self.limit is not None and self.reservation > self.limit:
            raise ValueError(
                f"reservation {format_rate(self.reservation)} is above limit {format_rate(self.limit)}"
            )
        return self
