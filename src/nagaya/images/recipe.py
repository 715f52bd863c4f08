"""What an image is built from."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nagaya.knobs import Size
from nagaya.spec import MIB, Name

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?")  # Debian Policy 5.6.1


class Recipe(BaseModel):
    """A guest image to build. Equal recipes give one image, whatever it is called."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["debian", "busybox"] = Field("debian", description="which builder makes it")
    suite: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")] = Field(
        "bookworm", description="Debian release"
    )
    packages: Annotated[tuple[str, ...], Field(max_length=256)] = Field(
        (), description="Debian packages to add"
    )
    run: Annotated[tuple[str, ...], Field(max_length=64)] = Field(
        (), description="shell commands run as root inside the new system"
    )
    hostname: Name | None = Field(None, description="name until a machine gives it one; empty: the kind")
    size: Size | None = Field(
        None, description="of the file system; empty: 2GiB for debian, 32MiB for busybox"
    )

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        for package in self.packages:
            if not _PACKAGE.fullmatch(package):
                raise ValueError(f"packages: {package!r} is not a Debian package name")
        if self.kind == "busybox" and (self.packages or self.run):
            raise ValueError("a busybox image takes no `packages` and no `run`; use kind debian")
        low = (16 if self.kind == "busybox" else 512) * MIB
        if self.bytes < low or self.bytes % MIB:
            raise ValueError(
                f"size {self.bytes} must be a multiple of 1MiB and at least {low // MIB}MiB for {self.kind}"
            )
        return self

    @property
    def bytes(self) -> int:
        """Size of the file system."""
        default = 32 * MIB if self.kind == "busybox" else 2048 * MIB
        return default if self.size is None else self.size

    def key(self, *inputs: str) -> str:
        """Digest of the recipe and of what else decides the result (the builder's files, versions)."""
        body = {**self.model_dump(mode="json"), "size": self.bytes, "packages": sorted(set(self.packages))}
        return hashlib.sha256(json.dumps([body, *inputs], sort_keys=True).encode()).hexdigest()
