/* Walks PCI as a guest does, by both ways into configuration space, and drives a function's MSI-X.
 *
 * The function with device id 0x10ff interrupts by vector n when n is written to its BAR 0.
 */
#include "pci.h"

#define VECTOR FIRST_VECTOR

static u32 by_ports(u8 bus, u8 slot, u8 offset)
{
    outl(0xcf8, 1u << 31 | bus << 16 | slot << 11 | offset);
    return inl(0xcfc);
}

static u32 bar_size(struct pci *one, int bar)
{
    u64 at = one->config + 0x10 + 4 * bar;
    u32 before = read32(at);
    write32(at, ~0u);
    u32 size = -(read32(at) & ~0xfu);
    write32(at, before);
    check(read32(at) == before);
    return size;
}

static void walk(u8 bus)
{
    for (int slot = 0; slot < 32; slot++) {
        struct pci one = pci_at(bus, slot, 0);
        if (!one.config) {
            check(by_ports(bus, slot, 0) == ~0u);
            continue;
        }
        for (int offset = 0; offset < 256; offset += 4)
            check(by_ports(bus, slot, offset) == read32(one.config + offset));
        print("FOUND %x:%x %x:%x", bus, slot, one.vendor, one.device);
        bool bridge = read8(one.config + 0x0e) == 1;
        for (int bar = 0; bar < (bridge ? 2 : 6); bar++)
            if (read32(one.config + 0x10 + 4 * bar))
                print(" bar%d=%x+%x", bar, read32(one.config + 0x10 + 4 * bar), bar_size(&one, bar));
        for (u8 at = read8(one.config + 0x34); at; at = read8(one.config + at + 1))
            print(" cap%x", read8(one.config + at));
        print("\n");
        if (bridge)
            walk(read8(one.config + 0x19));
    }
}

static void interrupts(void)
{
    struct pci one = pci_find(0x1af4, 0x10ff, 0);
    check(one.config);
    u64 bell = pci_bar(&one, 0);
    apic_on();
    for (int entry = 0; entry < 3; entry++)
        pci_msix(&one, entry, VECTOR + entry, apic_id());
    for (int entry = 0; entry < 3; entry++) {
        write32(bell, entry);
        check(wait_irq(VECTOR + entry, 0) == 1);
    }
    pci_msix_mask(&one, 1, true);
    check(!pci_msix_pending(&one, 1));
    write32(bell, 1);
    check(pci_msix_pending(&one, 1) && !pci_msix_pending(&one, 0));
    write32(bell, 2);
    check(wait_irq(VECTOR + 2, 1) == 2);
    check(irq_counts[VECTOR + 1] == 1);
    pci_msix_mask(&one, 1, false);
    check(wait_irq(VECTOR + 1, 1) == 2);
    check(!pci_msix_pending(&one, 1));

    u64 control = one.config + pci_capability(&one, 0x11, 0) + 2;
    check((read16(control) & 0x7ff) == 2);
    write16(control, 0xc000); /* all masked */
    write32(bell, 0);
    check(pci_msix_pending(&one, 0));
    write16(control, 0x8000);
    check(wait_irq(VECTOR, 1) == 2);

    pci_msix(&one, 0, VECTOR + 9, apic_id()); /* another vector, while it is open */
    write32(bell, 0);
    check(wait_irq(VECTOR + 9, 0) == 1);

    write16(one.config + 4, 0); /* neither memory nor bus master */
    check(read32(bell) == ~0u);
    print("INTERRUPTS ok\n");
}

static void move(void)
{
    struct pci one = pci_find(0x1af4, 0x10ff, 0);
    u64 bell = pci_bar(&one, 0);
    u64 other = bell + 0x1000000;
    check(read32(bell) == 0x6c6c6562);
    write32(one.config + 0x10, other);
    check(read32(bell) == ~0u && read32(other) == 0x6c6c6562);
    write32(one.config + 0x10, 0xfee00000); /* over the APIC: nowhere */
    check(read32(other) == ~0u && apic_id() == 0);
    write32(one.config + 0x10, 0); /* over memory: nowhere */
    write32(one.config + 0x10, bell);
    check(read32(bell) == 0x6c6c6562);
    print("MOVES ok\n");
}

int main(void)
{
    walk(0);
    interrupts();
    move();
    return 0;
}
