"""What networks are to be on the host, on disk: so that whoever comes after a crash knows it."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

from nagaya.networks.config import Forward, Instance, Reservation
from nagaya.networks.files import write_if_changed
from nagaya.networks.plan import Record
from nagaya.spec import NetworkSpec

FILE = "network.json"

log = logging.getLogger("nagaya.networks")


def read_all(directory: Path) -> list[Record]:
    """Those of all networks below `directory`, by name."""
    if not directory.is_dir():
        return []
    return [read(entry) for entry in sorted(directory.iterdir()) if entry.is_dir()]


def read(directory: Path) -> Record:
    """The record of the network with that directory. What cannot be read is as good as an empty network."""
    try:
        body = json.loads((directory / FILE).read_text())
        reservations = []
        for one in body["reservations"]:
            instance = one.pop("instance")
            if instance is not None:
                keys = tuple(instance.pop("public_keys"))
                instance = Instance(**instance, public_keys=keys)
            reservations.append(Reservation(**one, instance=instance))
        return Record(
            NetworkSpec.model_validate(body["spec"]),
            tuple(reservations),
            tuple(Forward(**one) for one in body["forwards"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s does not say what the network was: %s", directory, error)
        spec = NetworkSpec(name=directory.name, mode="isolated", dhcp=False, dns=False)
        return Record(spec.model_copy(update={"ipv4": None, "ipv6": None}))  # whose ranges nobody knows


def write(directory: Path, record: Record) -> None:
    """Write the record of the network with that directory."""
    body = {
        "spec": record.spec.to_json(),
        "reservations": [asdict(one) for one in record.reservations],
        "forwards": [asdict(one) for one in record.forwards],
    }
    write_if_changed(directory / FILE, json.dumps(body, indent=1), 0)
