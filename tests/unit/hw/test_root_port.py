"""Hot-plug, in the order in which Linux' pciehp does it."""

from __future__ import annotations

import pytest

from nagaya.abi import pci
from nagaya.abi.pci import SlotControl, SlotStatus
from nagaya.errors import ConflictError
from nagaya.hw.bus import Bus
from nagaya.hw.pci import Identity, PciFunction
from nagaya.hw.pci_host import PciHost
from nagaya.hw.root_port import RootPort
from nagaya.testing.wires import FakeInterrupts

WINDOW = (0xC0000000, 1 << 28)
ON, BLINKING, OFF = 1, 2, 3
LISTENING = SlotControl.of(
    BUTTON_ENABLE=1, COMMAND_ENABLE=1, LINK_ENABLE=1, INTERRUPT_ENABLE=1, ATTENTION=OFF, POWER=OFF
)


class Slot:
    """A port whose driver is awake, and the driver's moves."""

    def __init__(self, interrupts: FakeInterrupts) -> None:
        self.ejected: list[PciFunction] = []
        self.resets = 0
        self.port = RootPort(interrupts, 7, self.ejected.append)
        self.host = PciHost(Bus("memory", 1 << 48), [WINDOW])
        self.host.add_port(self.port)
        self.vector = interrupts.vectors[0]
        self.power_on()

    def power_on(self) -> None:
        self.host.power_on()
        bar = self.port.function.bars[0].registers
        bar.write(0, 8, 0xFEE00000)
        bar.write(8, 8, 0x31)
        self._msix = self._find(pci.PCI_CAP_ID_MSIX)
        self._express = self._find(pci.PCI_CAP_ID_EXP)
        self.port.function.write(self._msix + 2, 2, 0x8000)
        self.port.function.write(pci.PCI_COMMAND, 2, pci.Command.of(MEMORY=1, BUS_MASTER=1))

    def _find(self, identifier: int) -> int:
        at = self.port.function.read(pci.PCI_CAPABILITY_LIST, 1)
        while self.port.function.read(at, 1) != identifier:
            at = self.port.function.read(at + 1, 1)
        return at

    def read(self, register: int, size: int = 2) -> int:
        return self.port.function.read(self._express + register, size)

    def command(self, value: SlotControl) -> None:
        self.port.function.write(self._express + pci.PCI_EXP_SLTCTL, 2, value)

    def events(self) -> SlotStatus:
        """What the interrupt handler finds and clears; no interrupt, no events."""
        self.vector.collect()
        if not self.vector.delivered:
            return SlotStatus(0)
        self.vector.delivered.clear()
        status = SlotStatus(self.read(pci.PCI_EXP_SLTSTA))
        self.port.function.write(self._express + pci.PCI_EXP_SLTSTA, 2, status)
        return SlotStatus(status & ~SlotStatus.PRESENT.mask)

    def listen(self, power: int) -> None:
        self.command(LISTENING.replace(POWER=power))
        assert self.events() == SlotStatus.of(COMMAND_COMPLETED=1)

    def child(self) -> PciFunction:
        def reset() -> None:
            self.resets += 1

        return PciFunction(Identity(0x1AF4, 0x1042, 0x0100), on_reset=reset)


@pytest.fixture
def slot(interrupts: FakeInterrupts) -> Slot:
    return Slot(interrupts)


def test_what_the_port_says_of_itself(slot: Slot) -> None:
    flags = pci.ExpressFlags(slot.read(pci.PCI_EXP_FLAGS))
    assert flags == pci.ExpressFlags.of(VERSION=2, TYPE=pci.PCI_EXP_TYPE_ROOT_PORT, SLOT=1)
    can = pci.SlotCapabilities(slot.read(pci.PCI_EXP_SLTCAP, 4))
    assert (can.HOT_PLUG, can.ATTENTION_BUTTON, can.SURPRISE, can.POWER_CONTROLLER) == (1, 1, 0, 0)
    assert can.NUMBER == 7
    assert pci.LinkCapabilities(slot.read(pci.PCI_EXP_LNKCAP, 4)).ACTIVE_REPORTING
    assert pci.LinkStatus(slot.read(pci.PCI_EXP_LNKSTA)).WIDTH == 0
    slot.port.function.write(pci.PCI_PREF_MEMORY_BASE, 4, 0xFFFFFFFF)
    assert slot.port.function.read(pci.PCI_PREF_MEMORY_BASE, 4) == 0, "there is no such window"


def test_a_device_that_is_plugged_has_a_link_at_once(slot: Slot) -> None:
    slot.listen(OFF)
    child = slot.child()
    slot.port.plug(child)
    assert slot.events() == SlotStatus.of(PRESENCE_CHANGED=1, LINK_CHANGED=1)
    assert SlotStatus(slot.read(pci.PCI_EXP_SLTSTA)) == SlotStatus.of(PRESENT=1)
    link = pci.LinkStatus(slot.read(pci.PCI_EXP_LNKSTA))
    assert (link.ACTIVE, link.WIDTH, link.SPEED) == (1, 1, 1)
    assert slot.host.find(slot.port.bus, 0, 0) is child
    assert pci.ExpressFlags(child.read(0x42, 2)).TYPE == pci.PCI_EXP_TYPE_ENDPOINT
    with pytest.raises(ConflictError, match="slot 7"):
        slot.port.plug(slot.child())


def test_unplugging_is_asked_for_by_the_button_and_done_by_the_guest(slot: Slot) -> None:
    child = slot.child()
    slot.port.plug(child)
    slot.power_on()
    slot.listen(ON)
    slot.port.request_unplug()
    assert slot.events() == SlotStatus.of(BUTTON=1)
    slot.listen(BLINKING)
    with pytest.raises(ConflictError, match="already"):
        slot.port.request_unplug()
    assert slot.port.child is child
    slot.command(LISTENING.replace(POWER=OFF))
    assert slot.ejected == [child]
    assert slot.events() == SlotStatus.of(PRESENCE_CHANGED=1, LINK_CHANGED=1, COMMAND_COMPLETED=1)
    assert slot.host.find(slot.port.bus, 0, 0) is None
    assert pci.LinkStatus(slot.read(pci.PCI_EXP_LNKSTA)).ACTIVE == 0
    with pytest.raises(ConflictError, match="empty"):
        slot.port.request_unplug()


def test_a_guest_that_switches_a_slot_off_by_itself_keeps_the_device(slot: Slot) -> None:
    slot.port.plug(slot.child())
    slot.power_on()
    slot.listen(ON)
    slot.listen(OFF)
    assert slot.ejected == []
    slot.listen(ON)
    slot.listen(OFF)
    slot.port.request_unplug()
    assert len(slot.ejected) == 1


def test_a_second_press_is_allowed_when_the_guest_took_no_notice(slot: Slot) -> None:
    slot.port.plug(slot.child())
    slot.power_on()
    slot.port.request_unplug()
    assert slot.events() == 0
    slot.port.function.write(slot._express + pci.PCI_EXP_SLTSTA, 2, 0xFFFF)
    slot.listen(ON)
    slot.port.request_unplug()
    assert slot.events() == SlotStatus.of(BUTTON=1)


def test_a_press_while_the_guest_is_busy_with_the_device_is_repeated(slot: Slot) -> None:
    slot.listen(OFF)
    slot.port.plug(slot.child())
    slot.events()
    slot.listen(BLINKING)
    slot.port.request_unplug()
    assert slot.events() == SlotStatus.of(BUTTON=1)
    slot.command(LISTENING.replace(POWER=ON))
    assert slot.events() == SlotStatus.of(BUTTON=1, COMMAND_COMPLETED=1)
    slot.listen(BLINKING)
    slot.command(LISTENING.replace(POWER=OFF))
    assert len(slot.ejected) == 1


def test_an_event_from_before_interrupts_were_on_interrupts_when_they_are(slot: Slot) -> None:
    slot.port.plug(slot.child())
    slot.command(LISTENING.replace(COMMAND_ENABLE=0))
    assert slot.events() == SlotStatus.of(PRESENCE_CHANGED=1, LINK_CHANGED=1, COMMAND_COMPLETED=1)


def test_a_guests_reset_gives_up_a_device_that_was_to_go(slot: Slot) -> None:
    slot.port.plug(slot.child())
    slot.power_on()
    slot.listen(ON)
    slot.port.request_unplug()
    slot.host.power_on()
    assert len(slot.ejected) == 1
    assert slot.read(pci.PCI_EXP_SLTSTA) == 0


def test_the_power_indicator_is_on_when_a_machine_starts_with_a_device(slot: Slot) -> None:
    assert SlotControl(slot.read(pci.PCI_EXP_SLTCTL)).POWER == OFF
    slot.port.plug(slot.child())
    slot.power_on()
    assert SlotControl(slot.read(pci.PCI_EXP_SLTCTL)).POWER == ON
    assert slot.read(pci.PCI_EXP_SLTSTA) == SlotStatus.of(PRESENT=1)


def test_a_bus_reset_resets_the_child(slot: Slot) -> None:
    slot.port.plug(slot.child())
    slot.port.function.write(pci.PCI_BRIDGE_CONTROL, 2, pci.BridgeControl.of(BUS_RESET=1))
    slot.port.function.write(pci.PCI_BRIDGE_CONTROL, 2, pci.BridgeControl.of(BUS_RESET=1, SERR=1))
    assert slot.resets == 1
