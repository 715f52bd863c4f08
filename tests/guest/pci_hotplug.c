/* What Linux' pciehp does with a root port, step by step, for as many devices as the command line says. */
#include "pci.h"

#define VECTOR FIRST_VECTOR
#define SLTCTL 0x18
#define SLTSTA 0x1a
#define LNKSTA 0x12

enum { BUTTON = 1, PRESENCE = 8, COMMAND = 0x10, PRESENT = 0x40, LINK = 0x100 };
enum { ON = 0x100, BLINK = 0x200, OFF = 0x300 };
#define EVENTS (BUTTON | PRESENCE | COMMAND | LINK)
#define LISTEN 0x10f1 /* button, command completed, link, interrupt; attention indicator off */

static struct pci port;
static u64 express;
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
        if (irq_counts[VECTOR] == seen)
            wait_irq(VECTOR, seen);
        seen++;
    }
}

static void indicator(u16 power)
{
    write16(express + SLTCTL, LISTEN | power);
    wait_events(COMMAND);
}

int main(void)
{
    for (int nth = 0; pci_find(0x1b36, 0x000c, nth).config; nth++)
        port = pci_find(0x1b36, 0x000c, nth); /* the last one */
    check(port.config);
    print("PORT %x\n", (u32)(port.config - ECAM) >> 15);
    express = port.config + pci_capability(&port, 0x10, 0);
    apic_on();
    pci_msix(&port, 0, VECTOR, apic_id());
    u8 bus = read8(port.config + 0x19);
    u64 window = (u64)(read16(port.config + 0x20) & 0xfff0) << 16;
    check(bus && window);
    indicator(OFF);
    for (u64 left = arg("devices", 1); left; left--) {
        print("LISTENING\n");
        wait_events(LINK);
        check(read16(express + SLTSTA) & PRESENT && read16(express + LNKSTA) & 0x2000);
        struct pci one = pci_at(bus, 0, 0);
        check(one.config && one.device == 0x10ff);
        check(!pci_at(bus, 1, 0).config);
        for (int bar = 0; bar < 2; bar++) {
            check(read32(one.config + 0x10 + 4 * bar) == 0);
            write32(one.config + 0x10 + 4 * bar, window + 0x10000 * bar);
        }
        u64 bell = pci_bar(&one, 0);
        pci_msix(&one, 0, VECTOR + 1, apic_id());
        u32 before = irq_counts[VECTOR + 1];
        write32(bell, 0);
        check(wait_irq(VECTOR + 1, before) == before + 1);
        indicator(ON);
        print("PLUGGED\n");
        wait_events(BUTTON);
        indicator(BLINK);
        check(pci_at(bus, 0, 0).config);
        indicator(OFF);
        check(wait_events(LINK | PRESENCE));
        check(!(read16(express + SLTSTA) & PRESENT) && !(read16(express + LNKSTA) & 0x2000));
        check(!pci_at(bus, 0, 0).config && read32(bell) == ~0u);
        events = 0;
        print("UNPLUGGED\n");
    }
    return 0;
}
