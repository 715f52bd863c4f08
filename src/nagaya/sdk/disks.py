"""Disks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nagaya.models.disk import DiskInfo

if TYPE_CHECKING:
    from nagaya.sdk.client import Client
    from nagaya.sdk.operations import Operation


class Disks:
    """`client.disks`. A disk is called "data", or "db/disk0" if it is the first one of the machine db."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[DiskInfo]:
        """All disks: those with a name, then those of machines."""
        return [DiskInfo.from_json(one) for one in self._client.request("GET", "/v1/disks")]

    def get(self, name: str) -> DiskInfo:
        """One of them."""
        return DiskInfo.from_json(self._client.request("GET", _path(name)))

    def create(self, name: str, size: int | str | None = None, *, image: str = "") -> DiskInfo:
        """Make a disk with a name of its own, of `size` ("10GiB"), with the content of `image` or empty."""
        body = {"name": name, "size": size, "image": image}
        return DiskInfo.from_json(self._client.request("POST", "/v1/disks", body=body))

    def delete(self, name: str) -> None:
        """Remove a disk that no machine has, with its snapshots."""
        self._client.request("DELETE", _path(name))

    def resize(self, name: str, size: int | str) -> DiskInfo:
        """Grow a disk; a guest that runs is told."""
        return self._post(name, "resize", {"size": size})

    def snapshot(self, name: str, snapshot: str) -> DiskInfo:
        """Keep the content as it is now under the name `snapshot`."""
        return self._post(name, "snapshots", {"name": snapshot})

    def revert(self, name: str, snapshot: str) -> DiskInfo:
        """Go back to a snapshot; what was written since is gone."""
        return self._post(name, "revert", {"name": snapshot})

    def delete_snapshot(self, name: str, snapshot: str) -> Operation:
        """Forget a snapshot, and merge its layer with the one above it."""
        return self._client.operations.begin(
            _path(name, f"snapshots/{quote(snapshot, safe='')}"), method="DELETE"
        )

    def commit(self, name: str) -> Operation:
        """Merge the layers that no snapshot needs."""
        return self._client.operations.begin(_path(name, "commit"))

    def rebase(self, name: str, image: str = "") -> Operation:
        """Put the disk onto another image of the store, or onto none, with the same content."""
        return self._client.operations.begin(_path(name, "rebase"), {"image": image})

    def convert(
        self,
        name: str,
        path: str | os.PathLike[str],
        format: str = "qcow2",  # noqa: A002
        *,
        snapshot: str = "",
    ) -> Operation:
        """Write the disk, or a snapshot, into a new file of the daemon's host: raw, qcow2, vmdk, vdi, vhdx,
        vhd.
        """
        whole = str(os.path.abspath(path))  # noqa: PTH100  # no symlink is to be resolved
        body = {"path": whole, "format": format, "snapshot": snapshot}
        return self._client.operations.begin(_path(name, "convert"), body)

    def check(self, name: str, *, repair: bool = False) -> Operation:
        """Look for errors; the result is `{"disk", "corruptions", "leaks", "layers"}`."""
        return self._client.operations.begin(_path(name, "check"), {"repair": repair})

    def map(self, name: str, *, snapshot: str = "") -> Sequence[dict[str, Any]]:
        """Where data is: `start`, `length`, `depth` (the layer, 0 the top), `zero`, `data`, `offset`."""
        query = {"snapshot": snapshot}
        extents: Sequence[dict[str, Any]] = self._client.request(
            "GET", _path(name, "map"), query=query, within=120
        )
        return extents

    def attach(self, machine: str, disk: str, *, read_only: bool = False) -> None:
        """Give a machine the disk called `disk`."""
        body = {"disk": disk, "read_only": read_only}
        self._client.request("POST", f"/v1/machines/{quote(machine, safe='')}/disks", body=body)

    def detach(self, machine: str, disk: str) -> None:
        """Take the disk away from the machine; the disk keeps its content."""
        path = f"/v1/machines/{quote(machine, safe='')}/disks/{quote(disk, safe='')}"
        self._client.request("DELETE", path)

    def _post(self, name: str, verb: str, body: object) -> DiskInfo:
        return DiskInfo.from_json(self._client.request("POST", _path(name, verb), body=body, within=120))


def _path(name: str, verb: str = "") -> str:
    path = f"/v1/disks/{quote(name, safe='/')}"
    return f"{path}/{verb}" if verb else path
