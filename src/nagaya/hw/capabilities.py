"""Entries of a function's capability list: the generic one, and PCI Express (PCI 3.0, 6.7; PCIe 3.0, 7.8)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from nagaya.abi import pci
from nagaya.abi.registers import Register
from nagaya.hw.registers import RegisterAt, RegisterBlock, RegisterMap

CAPABILITY_ID: Final = RegisterAt("capability id", 0, 1, Register)
NEXT: Final = RegisterAt("next capability", 1, 1, Register)


def capability_map(size: int, registers: Iterable[RegisterAt[Any]] = ()) -> RegisterMap:
    """The declaration of a capability of `size` bytes, its two bytes of header included."""
    return RegisterMap(-(-size // 4) * 4, (CAPABILITY_ID, NEXT, *registers))


class Capability(RegisterBlock):
    """An entry of the capability list. `PciFunction` gives it its place and links it."""

    def __init__(self, identifier: int, registers: RegisterMap) -> None:
        super().__init__(registers)
        self.preset(CAPABILITY_ID, identifier)

    @classmethod
    def fixed(cls, identifier: int, body: bytes) -> Capability:
        """One that a guest only reads; `body` follows the two bytes of header."""
        one = cls(identifier, capability_map(2 + len(body)))
        one.fill(2, body)
        return one


# What every link says: 2.5 GT/s, one lane, up. Nobody measures it; a width of zero would be "no link".
_LINK: Final = {"SPEED": 1, "WIDTH": 1}

FLAGS: Final = RegisterAt("express flags", pci.PCI_EXP_FLAGS, 2, pci.ExpressFlags)
LINK_CAPABILITIES: Final = RegisterAt("link capabilities", pci.PCI_EXP_LNKCAP, 4, pci.LinkCapabilities)
LINK_STATUS: Final = RegisterAt("link status", pci.PCI_EXP_LNKSTA, 2, pci.LinkStatus)
DEVICE_REGISTERS: Final = (
    FLAGS,
    RegisterAt(
        "device capabilities",
        pci.PCI_EXP_DEVCAP,
        4,
        pci.DeviceCapabilities,
        reset=pci.DeviceCapabilities.of(ROLE_BASED_ERRORS=1),
    ),
    RegisterAt(
        "device control",
        pci.PCI_EXP_DEVCTL,
        2,
        pci.DeviceControl,
        reset=pci.DeviceControl.of(READ_REQUEST=2),
        writable=pci.DeviceControl.of(ERRORS=15, RELAXED_ORDERING=1, PAYLOAD=7, NO_SNOOP=1, READ_REQUEST=7),
    ),
    LINK_CAPABILITIES,
    RegisterAt(
        "link control",
        pci.PCI_EXP_LNKCTL,
        2,
        pci.LinkControl,
        writable=pci.LinkControl.of(ASPM=3, COMMON_CLOCK=1),
    ),
    LINK_STATUS,
)
_ENDPOINT: Final = capability_map(pci.EXPRESS_SIZE, DEVICE_REGISTERS)


class Express(Capability):
    """The PCI Express capability of an endpoint, behind a port or on the root bus."""

    def __init__(self, registers: RegisterMap = _ENDPOINT) -> None:
        super().__init__(pci.PCI_CAP_ID_EXP, registers)

    def place(self, kind: int) -> None:
        """Say what the function is, PCI_EXP_TYPE_*. On the root bus it has no link; a port has a slot."""
        port = kind == pci.PCI_EXP_TYPE_ROOT_PORT
        self.preset(FLAGS, pci.ExpressFlags.of(VERSION=2, TYPE=kind, SLOT=port))
        if kind != pci.PCI_EXP_TYPE_RC_END:
            self.preset(LINK_CAPABILITIES, pci.LinkCapabilities.of(ACTIVE_REPORTING=port, **_LINK))
            self.preset(LINK_STATUS, pci.LinkStatus.of(**_LINK))
