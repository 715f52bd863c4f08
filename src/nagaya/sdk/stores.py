"""Images and kernels."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import quote

from nagaya.models.image import ImageInfo, KernelInfo

if TYPE_CHECKING:
    from nagaya.sdk.client import Client
    from nagaya.sdk.operations import Operation


class Images:
    """`client.images`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[ImageInfo]:
        """The images in the store, by name."""
        return [ImageInfo.from_json(one) for one in self._client.request("GET", "/v1/images")]

    def build(self, name: str, recipe: object) -> Operation:
        """Build `recipe` (a `Recipe` or its JSON) under `name`."""
        body = {"name": name, "recipe": recipe}
        return self._client.operations.begin("/v1/images/build", body)

    def import_file(self, name: str, path: str | os.PathLike[str], format: str = "") -> Operation:  # noqa: A002
        """Copy the disk in an image file of the daemon's host into the store.

        `format` is raw, qcow2, vmdk, vdi, vhdx or vhd; empty: the file's header tells.
        """
        whole = str(os.path.abspath(path))  # noqa: PTH100  # no symlink is to be resolved
        body = {"name": name, "path": whole, "format": format or None}
        return self._client.operations.begin("/v1/images/import", body)

    def remove(self, name: str) -> None:
        """Remove an image that no machine uses."""
        self._client.request("DELETE", f"/v1/images/{quote(name, safe='')}")


class Kernels:
    """`client.kernels`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[KernelInfo]:
        """The guest kernels that are there."""
        return [KernelInfo.from_json(one) for one in self._client.request("GET", "/v1/kernels")]

    def build(self, name: str = "uml") -> Operation:
        """Build our kernel for the engine `name`, "uml" or "kvm" (minutes)."""
        return self._client.operations.begin("/v1/kernels/build", {"name": name})
