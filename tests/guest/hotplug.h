/* What Linux' pciehp does with a root port, step by step: with the port that the command line says (`port`, counted
 * from 0), whose slot is empty.
 */
#pragma once
#include "pci.h"

#define HOTPLUG_VECTOR (FIRST_VECTOR + 8)
#define SLTCTL 0x18
#define SLTSTA 0x1a
#define LNKSTA 0x12

enum { BUTTON = 1, PRESENCE = 8, COMMAND = 0x10, PRESENT = 0x40, LINK = 0x100 };
enum { ON = 0x100, BLINK = 0x200, OFF = 0x300 };
#define EVENTS (BUTTON | PRESENCE | COMMAND | LINK)
#define LISTEN 0x10f1 /* button, command completed, link, interrupt; attention indicator off */
#define LINK_ACTIVE 0x2000

static u64 express;
static u8 bus;
static u64 window;
static u32 seen;
static u16 events;

/* Sleep until one of `wanted` has happened, and clear all that has. */
static u16 wait_events(u16 wanted)
{
    for (;;) {
        u16 status = read16(express + SLTSTA) & EVENTS;
        if (status)
            write16(express + SLTSTA, status);
        events |= status;
        u16 found = events & wanted;
        events &= ~found;
        if (found)
            return found;
        if (irq_counts[HOTPLUG_VECTOR] == seen)
            wait_irq(HOTPLUG_VECTOR, seen);
        seen++;
    }
}

static void indicator(u16 power)
{
    write16(express + SLTCTL, LISTEN | power);
    wait_events(COMMAND);
}

static void hotplug_begin(void)
{
    struct pci port = pci_find(0x1b36, 0x000c, arg("port", 0));
    check(port.config);
    express = port.config + pci_capability(&port, 0x10, 0);
    apic_on();
    pci_msix(&port, 0, HOTPLUG_VECTOR, apic_id());
    bus = read8(port.config + 0x19);
    window = (u64)(read16(port.config + 0x20) & 0xfff0) << 16;
    check(bus && window);
    indicator(OFF);
}

/* Wait for a device, and give it its BARs. */
static struct pci hotplug_device(void)
{
    print("LISTENING\n");
    wait_events(LINK);
    check(read16(express + SLTSTA) & PRESENT && read16(express + LNKSTA) & LINK_ACTIVE);
    struct pci one = pci_at(bus, 0, 0);
    check(one.config);
    check(!pci_at(bus, 1, 0).config);
    for (int bar = 0; bar < 2; bar++) {
        check(read32(one.config + 0x10 + 4 * bar) == 0);
        write32(one.config + 0x10 + 4 * bar, window + 0x10000 * bar);
    }
    return one;
}

/* The driver has it. Wait until it is wanted back, and let go of it. */
static void hotplug_return(void)
{
    indicator(ON);
    print("PLUGGED\n");
    wait_events(BUTTON);
    indicator(BLINK);
    check(pci_at(bus, 0, 0).config);
    indicator(OFF);
    check(wait_events(LINK | PRESENCE));
    check(!(read16(express + SLTSTA) & PRESENT) && !(read16(express + LNKSTA) & LINK_ACTIVE));
    check(!pci_at(bus, 0, 0).config && read32(window) == ~0u);
    events = 0;
    print("UNPLUGGED\n");
}
