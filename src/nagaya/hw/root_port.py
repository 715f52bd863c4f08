"""A root port: a bridge from the root bus to one slot, with PCI Express' own hot-plug (PCIe 3.0, 6.7).

    port.plug(function)      the slot reports presence and a link; the guest's pciehp driver takes the device
    port.request_unplug()    the attention button: the guest lets go of the device (Linux after five seconds,
                             in which a second press would cancel), switches the slot off, and then
                             `on_ejected(function)` is called
    port.eject()             at once, whatever the guest says

No ACPI is involved but for _OSC, by which the guest asks for native hot-plug and has to be granted it.
The bridge forwards everything: its memory window is two registers that a guest may set, and no filter. There
are no windows for I/O or prefetchable memory, so no guest spends time on filling them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nagaya.abi import pci
from nagaya.abi.registers import Register
from nagaya.errors import ConflictError
from nagaya.hw.capabilities import DEVICE_REGISTERS, LINK_STATUS, Express, capability_map
from nagaya.hw.pci import BAR, COMMON, HEADER_TYPE, Identity, PciFunction, Windows
from nagaya.hw.registers import RegisterAt, RegisterMap
from nagaya.hw.wires import Interrupts

PRIMARY: Final = RegisterAt("primary bus", pci.PCI_PRIMARY_BUS, 1, Register, writable=0xFF)
SECONDARY: Final = RegisterAt("secondary bus", pci.PCI_SECONDARY_BUS, 1, Register, writable=0xFF)
SUBORDINATE: Final = RegisterAt("subordinate bus", pci.PCI_SUBORDINATE_BUS, 1, Register, writable=0xFF)
MEMORY_BASE: Final = RegisterAt(
    "memory base", pci.PCI_MEMORY_BASE, 2, Register, reset=0xFFF0, writable=0xFFF0
)
MEMORY_LIMIT: Final = RegisterAt("memory limit", pci.PCI_MEMORY_LIMIT, 2, Register, writable=0xFFF0)
CONTROL: Final = RegisterAt(
    "bridge control",
    pci.PCI_BRIDGE_CONTROL,
    2,
    pci.BridgeControl,
    writable=pci.BridgeControl.of(PARITY=1, SERR=1, BUS_RESET=1),
)
BRIDGE: Final = RegisterMap(
    pci.HEADER_SIZE,
    (
        *COMMON,
        *BAR[:2],
        PRIMARY,
        SECONDARY,
        SUBORDINATE,
        MEMORY_BASE,
        MEMORY_LIMIT,
        CONTROL,
    ),
)

SLOT_CAPABILITIES: Final = RegisterAt("slot capabilities", pci.PCI_EXP_SLTCAP, 4, pci.SlotCapabilities)
SLOT_CONTROL: Final = RegisterAt(
    "slot control",
    pci.PCI_EXP_SLTCTL,
    2,
    pci.SlotControl,
    reset=pci.SlotControl.of(ATTENTION=3, POWER=3),
    writable=pci.SlotControl.of(
        BUTTON_ENABLE=1,
        PRESENCE_ENABLE=1,
        COMMAND_ENABLE=1,
        INTERRUPT_ENABLE=1,
        ATTENTION=3,
        POWER=3,
        LINK_ENABLE=1,
    ),
)
SLOT_STATUS: Final = RegisterAt(
    "slot status",
    pci.PCI_EXP_SLTSTA,
    2,
    pci.SlotStatus,
    clears=pci.SlotStatus.of(BUTTON=1, PRESENCE_CHANGED=1, COMMAND_COMPLETED=1, LINK_CHANGED=1),
)
_EXPRESS: Final = capability_map(
    pci.EXPRESS_SIZE,
    (
        *DEVICE_REGISTERS,
        SLOT_CAPABILITIES,
        SLOT_CONTROL,
        SLOT_STATUS,
        RegisterAt("root control", pci.PCI_EXP_RTCTL, 2, Register, writable=0xF),
        RegisterAt("root status", pci.PCI_EXP_RTSTA, 4, Register),
    ),
)
# The ids that Red Hat gives to a root port which copies nobody's hardware (pci.ids: 1b36:000c).
IDENTITY: Final = Identity(vendor=0x1B36, device=0x000C, class_code=pci.PCI_CLASS_BRIDGE_PCI)
_ON, _BLINKING, _OFF = 1, 2, 3  # indicators


class RootPort:
    """The bridge is `function`, what sits in the slot is `child`."""

    def __init__(
        self,
        interrupts: Interrupts,
        slot: int,
        on_ejected: Callable[[PciFunction], None] = lambda child: None,
    ) -> None:
        """`slot` is the number that guests show.

        `on_ejected` gets the child, unplugged, once the guest has let go of it: within the guest's access.
        """
        self.slot = slot
        self.child: PciFunction | None = None
        self._on_ejected = on_ejected
        self._windows: Windows | None = None
        self._unplugging = False
        self._interrupting = False
        self._express = Express(_EXPRESS)
        # Without a power controller a device that is plugged is there at once. With one, Linux would wait for
        # the button and five seconds more (drivers/pci/hotplug/pciehp_ctrl.c). The power indicator says as
        # well when a device may be taken out: when it is off (PCIe 3.0, 6.7.1.1.2).
        self._express.preset(
            SLOT_CAPABILITIES,
            pci.SlotCapabilities.of(
                ATTENTION_BUTTON=1, ATTENTION_INDICATOR=1, POWER_INDICATOR=1, HOT_PLUG=1, NUMBER=slot
            ),
        )
        self._express.on_write(SLOT_CONTROL, self._controlled)
        self._express.on_write(SLOT_STATUS, lambda before: self._interrupt())
        self.function = PciFunction(
            IDENTITY, interrupts=interrupts, msix_vectors=1, msix_bar=0, express=self._express, header=BRIDGE
        )
        self.function.header.preset(HEADER_TYPE, pci.PCI_HEADER_TYPE_BRIDGE)
        self.function.header.on_write(CONTROL, self._bridge_controlled)

    @property
    def bus(self) -> int:
        """The number of the bus behind the port, as the guest has set it."""
        return self.function.header[SECONDARY]

    def attach(self, windows: Windows) -> None:
        """Put the port itself into the root bus."""
        self._windows = windows
        self.function.plug(windows, pci.PCI_EXP_TYPE_ROOT_PORT)
        self._show(events=False)

    def plug(self, child: PciFunction) -> None:
        """Put `child` into the slot. Raises `ConflictError` if there is one."""
        if self.child is not None or self._windows is None:
            raise ConflictError(f"PCI slot {self.slot} is not free")
        self.child = child
        child.plug(self._windows, pci.PCI_EXP_TYPE_ENDPOINT)
        self._show(events=True)

    def request_unplug(self) -> None:
        """Ask the guest to let go of the child. Raises `ConflictError` if it is asked already, or empty."""
        power = self._express[SLOT_CONTROL].POWER
        if self.child is None or (self._unplugging and power == _BLINKING):
            what = "is empty" if self.child is None else "is being unplugged already"
            raise ConflictError(f"PCI slot {self.slot} {what}")
        self._unplugging = True
        if power == _OFF:
            self.eject()
        else:
            self._raise(pci.SlotStatus.of(BUTTON=1))

    def eject(self) -> None:
        """Take the child out now, whatever the guest does with it."""
        child, self.child = self.child, None
        self._unplugging = False
        if child is not None:
            child.unplug()
            self._show(events=True)
            self._on_ejected(child)

    def reset(self) -> None:
        """As at power-on, the child too. A child that was asked for before is ejected now: nobody uses it."""
        if self._unplugging:
            self.eject()
        self.function.reset()
        if self.child is not None:
            self.child.reset()
        self._interrupting = False
        self._show(events=False)
        if self.child is not None:
            self._express[SLOT_CONTROL] = self._express[SLOT_CONTROL].replace(POWER=_ON)

    def _show(self, *, events: bool) -> None:
        """Presence and link follow the child."""
        present = self.child is not None
        status = self._express[SLOT_STATUS].replace(PRESENT=present)
        self._express[SLOT_STATUS] = status
        self._express[LINK_STATUS] = self._express[LINK_STATUS].replace(ACTIVE=present, WIDTH=present)
        if events:
            self._raise(pci.SlotStatus.of(PRESENCE_CHANGED=1, LINK_CHANGED=1))

    def _raise(self, events: pci.SlotStatus) -> None:
        self._express[SLOT_STATUS] = self._express[SLOT_STATUS] | events
        self._interrupt()

    def _interrupt(self) -> None:
        """A message on each edge of "an event that is enabled is there" (PCIe 3.0, 6.7.3.4)."""
        control, status = self._express[SLOT_CONTROL], self._express[SLOT_STATUS]
        asserted = bool(
            control.INTERRUPT_ENABLE
            and (
                control.BUTTON_ENABLE & status.BUTTON
                | control.PRESENCE_ENABLE & status.PRESENCE_CHANGED
                | control.COMMAND_ENABLE & status.COMMAND_COMPLETED
                | control.LINK_ENABLE & status.LINK_CHANGED
            )
        )
        if asserted and not self._interrupting and self.function.msix is not None:
            self.function.msix.signal(0)
        self._interrupting = asserted

    def _controlled(self, before: pci.SlotControl) -> None:
        """Every write is a command, and done at once (PCIe 3.0, 6.7.3.2)."""
        events = pci.SlotStatus.of(COMMAND_COMPLETED=1)
        if self._unplugging:
            power = self._express[SLOT_CONTROL].POWER
            if power == _OFF:
                self.eject()
            elif power == _ON and before.POWER == _BLINKING:
                events = events.replace(BUTTON=1)  # it was busy with the device when the button was pressed
        self._raise(events)

    def _bridge_controlled(self, before: pci.BridgeControl) -> None:
        if self.function.header[CONTROL].BUS_RESET and not before.BUS_RESET and self.child is not None:
            self.child.reset()
