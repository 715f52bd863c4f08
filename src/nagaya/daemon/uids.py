"""The user ids of one Nagaya: one for each machine, one for image files, one for networks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection

from nagaya.errors import ResourceError
from nagaya.paths import Paths

FIRST_UID = 0x70000000  # above all that adduser, systemd and container runtimes give away, below 2**31
UIDS_EACH = 2**16  # for one Nagaya; its state directory decides which block, so that two rarely share one


def machine_uids(paths: Paths) -> range:
    """Those that machines may have."""
    first = _first(paths)
    return range(first, first + UIDS_EACH - 2)


def free_uid(paths: Paths, used: Collection[int]) -> int:
    """One for a new machine beside `used`; without root all have the user's own. Raises `ResourceError`."""
    if os.geteuid() != 0:
        return os.geteuid()
    for uid in machine_uids(paths):
        if uid not in used:
            return uid
    raise ResourceError(f"all {len(used)} user ids of this Nagaya are taken")


def tool_uid(paths: Paths) -> int:
    """That of programs that work on image files; 0, of a user namespace, without root."""
    return 0 if os.geteuid() != 0 else _first(paths) + UIDS_EACH - 1


def network_uid(paths: Paths) -> int:
    """That of the programs that serve networks: DHCP, names, metadata; the user's own without root."""
    return os.geteuid() if os.geteuid() != 0 else _first(paths) + UIDS_EACH - 2


def _first(paths: Paths) -> int:
    block = int.from_bytes(hashlib.sha256(str(paths.state).encode()).digest()[:4]) % 4094
    return FIRST_UID + block * UIDS_EACH
