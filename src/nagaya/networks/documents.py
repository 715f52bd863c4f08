"""What the metadata service says to a machine: the paths of EC2's and of NoCloud's, as cloud-init reads them.

A machine's document is a JSON file named after its address. `answer` is pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nagaya.errors import ResourceError
from nagaya.networks.config import Reservation
from nagaya.networks.files import make_directory, write_if_changed

DOCUMENT_LIMIT = 256 * 1024  # bytes; four times what EC2 allows for user data
_VERSION = re.compile(r"latest|1\.0|20[0-9]{2}-[0-9]{2}-[0-9]{2}")


def write(directory: Path, domain: str, reservations: Sequence[Reservation], gid: int) -> None:
    """The documents of exactly these machines. Raises `ResourceError` for one that is too large."""
    make_directory(directory, gid)
    kept = set()
    for one in reservations:
        if one.instance is None:
            continue
        text = json.dumps(
            {
                "instance_id": one.instance.instance_id,
                "hostname": f"{one.name}.{domain}",
                "mac": one.mac,
                "ipv4": one.ipv4,
                "ipv6": one.ipv6,
                "public_keys": list(one.instance.public_keys),
                "user_data": one.instance.user_data,
            }
        )
        if len(text) > DOCUMENT_LIMIT:
            raise ResourceError(
                f"the metadata of {one.machine} has {len(text)} bytes, {DOCUMENT_LIMIT} are the bound",
                hint="let the user data fetch what is large",
                machine=one.machine,
            )
        for address in filter(None, (one.ipv4, one.ipv6)):
            write_if_changed(directory / address, text, gid)
            kept.add(address)
    for entry in directory.iterdir():
        if entry.name not in kept:
            entry.unlink()


def read(directory: Path, address: str) -> Mapping[str, Any] | None:
    """The document of the machine with that address, None if there is none."""
    try:
        with (directory / address).open() as file:
            found: dict[str, Any] = json.loads(file.read(2 * DOCUMENT_LIMIT))
    except FileNotFoundError:
        return None
    return found


def answer(document: Mapping[str, Any], path: str) -> str | None:
    """The body for a GET of `path`; None if there is nothing."""
    parts = [part for part in path.split("/") if part]
    if not parts:
        return "1.0\n2009-04-04\n2021-03-23\nlatest"
    if parts[0] == "nocloud":
        return _nocloud(document).get(path.removeprefix("/nocloud/"))
    if not _VERSION.fullmatch(parts[0]):
        return None
    tree: Any = {"meta-data": _meta_data(document)}
    if document["user_data"]:
        tree["user-data"] = document["user_data"]
    for part in parts[1:]:
        tree = tree.get(part) if isinstance(tree, dict) else None
        # EC2 lists a key as "0=name" and has it below "0".
        if tree is None:
            return None
    return _listing(tree) if isinstance(tree, dict) else str(tree)


def _listing(tree: Mapping[str, Any]) -> str:
    names = tree.get("", [f"{name}/" if isinstance(below, dict) else name for name, below in tree.items()])
    return "\n".join(names)


def _meta_data(document: Mapping[str, Any]) -> dict[str, Any]:
    keys: list[str] = document["public_keys"]
    interface: dict[str, Any] = {"device-number": "0", "mac": document["mac"]}
    interface |= {"local-hostname": document["hostname"]}
    tree: dict[str, Any] = {
        "ami-id": "nagaya",
        "hostname": document["hostname"],
        "instance-id": document["instance_id"],
        "local-hostname": document["hostname"],
        "mac": document["mac"],
    }
    if document["ipv4"]:
        tree["local-ipv4"] = interface["local-ipv4s"] = document["ipv4"]
    if document["ipv6"]:
        tree["ipv6"] = interface["ipv6s"] = document["ipv6"]
    tree["network"] = {"interfaces": {"macs": {document["mac"]: interface}}}
    if keys:
        below: dict[str, Any] = {str(index): {"openssh-key": key} for index, key in enumerate(keys)}
        tree["public-keys"] = below | {"": [f"{index}=nagaya-{index}" for index in range(len(keys))]}
    return tree


def _nocloud(document: Mapping[str, Any]) -> dict[str, str]:
    """NoCloud's files; JSON is YAML."""
    meta = {
        "instance-id": document["instance_id"],
        "local-hostname": document["hostname"],
        "public-keys": document["public_keys"],
    }
    return {
        "meta-data": json.dumps(meta, indent=1),
        "user-data": document["user_data"],
        "vendor-data": "",
    }
