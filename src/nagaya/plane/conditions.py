"""How the devices of a plane are: what its events say of them, added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class DiskCondition:
    """What is the matter with a disk; of a NIC, its faults.

    `spaceless`: writes wait for space on the host. `flush_failed`: what was written may be lost, and no flush
    succeeds until the disk is opened anew. `faults`: those laid upon it on purpose (QMP `set-faults` and
    `set-port-faults`).
    """

    spaceless: bool = False
    flush_failed: bool = False
    faults: Mapping[str, Any] | None = None


WELL = DiskCondition()
Conditions = Mapping[str, DiskCondition]  # by device id; those that are well are not in it


def after(conditions: Conditions, event: str, facts: Mapping[str, Any]) -> Conditions:
    """The conditions after an event of the plane."""
    device = str(facts.get("id", facts.get("device", "")))
    before = conditions.get(device, WELL)
    match event:
        case "DEVICE_NO_SPACE":
            now = replace(before, spaceless=True)
        case "DEVICE_SPACE":
            now = replace(before, spaceless=False)
        case "DEVICE_FLUSH_FAILED":
            now = replace(before, flush_failed=True)
        case "DEVICE_FAULTS" | "PORT_FAULTS":
            now = replace(before, faults=facts["faults"])
        case "DEVICE_DELETED":
            now = WELL
        case _:
            return conditions
    others = {key: one for key, one in conditions.items() if key != device}
    return others if now == WELL else {**others, device: now}
