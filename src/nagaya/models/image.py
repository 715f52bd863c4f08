"""What machines boot from: images and kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nagaya.models.answer import Answer


@dataclass(frozen=True, slots=True)
class ImageInfo(Answer):
    """A base image in the store. `used_by` names the machines with a disk on it."""

    name: str
    digest: str
    size: int
    created_at: float
    os: str
    recipe: dict[str, Any] | None
    used_by: list[str]


@dataclass(frozen=True, slots=True)
class KernelInfo(Answer):
    """A guest kernel in the store."""

    name: str
    path: str
    origin: str
    builtin_virtio: bool
    default: bool
