"""How much of the host machines may be promised: overcommit by name, and what the host keeps for itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from nagaya.knobs import Size

BALLAST_SHARE = 20  # one part in so many of the host's memory, and of its CPUs, stays with the host
BALLAST_MIN = 256 * 2**20  # a Debian host with this daemon and its plane fits in it
KEPT_CPU_MIN = 0.1  # CPUs: the daemon wakes for a request, a worker for each I/O
RATIO_MAX = 1000


def _ratio(value: object) -> object:
    """`1.5` may be written as a number or as text."""
    if value in ("none", "fair"):
        return value
    try:
        ratio = float(value) if isinstance(value, str | int | float) and value is not True else 0.0
    except ValueError:
        ratio = 0.0
    if not 1 <= ratio <= RATIO_MAX:
        raise ValueError(f"{value!r} is not none, fair or a ratio from 1 to {RATIO_MAX}, such as 1.5")
    return ratio


# none: all that machines can see is promised. fair: only what they reserve. A ratio: what they can see may be
# so many times what there is, and reservations still fit.
Overcommit = Annotated[Literal["none", "fair"] | float, BeforeValidator(_ratio)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CpuPolicy(_Part):
    """Of the CPUs."""

    overcommit: Overcommit = "fair"
    kept: float | None = Field(None, ge=0, le=4096)  # CPUs; None: as the host's size suggests

    def kept_of(self, total: float) -> float:
        """CPUs of `total` that stay with the host."""
        kept = max(KEPT_CPU_MIN, total / BALLAST_SHARE) if self.kept is None else self.kept
        return min(total, kept)


class MemoryPolicy(_Part):
    """Of the memory."""

    overcommit: Overcommit = "none"
    kept: Size | None = None  # bytes; None: as the host's size suggests

    def kept_of(self, total: int) -> int:
        """Bytes of `total` that stay with the host."""
        kept = max(BALLAST_MIN, total // BALLAST_SHARE) if self.kept is None else self.kept
        return min(total, kept)


class HostPolicy(_Part):
    """What `nagaya host set` sets: `memory.overcommit=fair`, `cpu.kept=0.5`."""

    cpu: CpuPolicy = CpuPolicy()
    memory: MemoryPolicy = MemoryPolicy()

    def to_json(self) -> dict[str, object]:
        """JSON-ready, sizes as text."""
        return self.model_dump(mode="json")
