"""The Virtual Machine Generation ID (Microsoft, 2012): 16 bytes, others once a machine is cloned or restored.

A guest that finds another id reseeds its random generators. The namespace in `acpi.py` says where the id is.
"""

from __future__ import annotations

import os

from nagaya.hw import layout
from nagaya.hw.ged import Ged
from nagaya.hw.wires import Ram

SIZE = 16


class GenerationId:
    """The id in guest memory, and the notification that it changed."""

    def __init__(self, ram: Ram, ged: Ged) -> None:
        """The id lies in `ram` at `layout.VMGENID_PAGE`; `ged` tells of changes."""
        self._ram = ram
        self._ged = ged

    def renew(self, *, announce: bool) -> None:
        """Write a new random id. `announce` it to a guest that has seen another one; not before it boots."""
        self._ram.write(layout.VMGENID_PAGE, os.urandom(SIZE))
        if announce:
            self._ged.announce_generation()
