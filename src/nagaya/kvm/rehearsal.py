"""One machine assembled and thrown away, in a process that forks machines later.

What is computed once, and pages that Python writes to whenever code runs (reference counts, specialized
bytecode), are then not each machine's own. Its guest never runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct

from nagaya._core import HeapImage
from nagaya.abi.boot import MULTIBOOT_HEADER_MAGIC
from nagaya.hw import layout
from nagaya.kvm.config import MachineConfig
from nagaya.kvm.ending import Ending
from nagaya.kvm.machine import Machine
from nagaya.kvm.process import Process
from nagaya.kvm.system import Kvm

_FLAGS = 1 << 16  # the header says where to load the file (Multiboot 0.6.96, 3.1.3)
_ENTRY = layout.KERNEL + 32


class _Nobody:
    """Outside of the machine there is nothing (`nagaya.kvm.machine.Outside`)."""

    def serial_output(self, content: bytes) -> int:
        return len(content)

    def serial_room(self) -> None:
        pass

    def ended(self, ending: Ending) -> None:
        pass

    def crash_loaded(self) -> None:
        pass

    def ejected(self, device_id: str) -> None:
        pass


def rehearse() -> None:
    """Raises a `NagayaError` if this host has no KVM for us."""
    kernel = os.memfd_create("rehearsal")
    try:
        os.write(kernel, _kernel())
        config = MachineConfig("rehearsal", "", 16 * layout.MIB, kernel=f"/proc/self/fd/{kernel}")
        asyncio.run(_assemble(config))
    finally:
        os.close(kernel)


def image() -> HeapImage | None:
    """Of this process, for machines to go back to; without it (None) they only take more memory."""
    with contextlib.suppress(OSError):
        return HeapImage()
    return None


async def _assemble(config: MachineConfig) -> None:
    with Kvm() as system:
        Process(config, system, None)  # its monitor; it opens nothing before `power_on`
        with Machine(config, system, _Nobody()):
            pass


def _kernel() -> bytes:
    """The least that can be loaded: a multiboot header, and behind it a HLT."""
    checksum = -(MULTIBOOT_HEADER_MAGIC + _FLAGS) & 0xFFFFFFFF
    addresses = (layout.KERNEL, layout.KERNEL, 0, 0, _ENTRY)
    return struct.pack("<8I", MULTIBOOT_HEADER_MAGIC, _FLAGS, checksum, *addresses) + b"\xf4"
