#include "pci.h"

#define BRIDGE 1

static u64 next_bar = PCI_WINDOW;

struct pci pci_at(u8 bus, u8 slot, u8 function)
{
    u64 config = ECAM + ((u64)bus << 20 | slot << 15 | function << 12);
    u32 ids = read32(config);
    if ((u16)ids == 0xffff)
        return (struct pci){0};
    return (struct pci){config, ids, ids >> 16};
}

static struct pci find(u8 bus, u16 vendor, u16 device, int *nth)
{
    for (int slot = 0; slot < 32; slot++) {
        int functions = 1;
        for (int number = 0; number < functions; number++) {
            struct pci one = pci_at(bus, slot, number);
            if (!one.config)
                continue;
            u8 type = read8(one.config + 0x0e);
            if (number == 0 && type & 0x80)
                functions = 8;
            if ((vendor == 0xffff || vendor == one.vendor) && (device == 0xffff || device == one.device) && !(*nth)--)
                return one;
            u8 secondary = read8(one.config + 0x19);
            if ((type & 0x7f) == BRIDGE && secondary > bus) {
                struct pci behind = find(secondary, vendor, device, nth);
                if (behind.config)
                    return behind;
            }
        }
    }
    return (struct pci){0};
}

struct pci pci_find(u16 vendor, u16 device, int nth) { return find(0, vendor, device, &nth); }

u8 pci_capability(struct pci *function, u8 id, u8 after)
{
    u8 at = read8(function->config + (after ? after + 1 : 0x34));
    for (int i = 0; at && i < 48; i++, at = read8(function->config + at + 1))
        if (read8(function->config + at) == id)
            return at;
    return 0;
}

u64 pci_bar(struct pci *function, int index)
{
    u64 at = function->config + 0x10 + 4 * index;
    u32 low = read32(at);
    bool wide = (low & 6) == 4;
    u64 address = (low & ~0xfull) | (wide ? (u64)read32(at + 4) << 32 : 0);
    if (!address) {
        write32(at, ~0u);
        u64 size = -(read32(at) & ~0xfu) & 0xffffffff;
        next_bar = (next_bar + size - 1) & -size;
        address = next_bar;
        next_bar += size;
        write32(at, address);
        if (wide)
            write32(at + 4, 0);
    }
    map(address, 4096);
    write16(function->config + 4, read16(function->config + 4) | 6);
    return address;
}

static u64 msix_entry(struct pci *function, u16 entry)
{
    u8 capability = pci_capability(function, 0x11, 0);
    check(capability);
    u32 table = read32(function->config + capability + 4);
    return pci_bar(function, table & 7) + (table & ~7u) + 16 * entry;
}

void pci_msix(struct pci *function, u16 entry, u8 vector, u32 apic)
{
    u64 at = msix_entry(function, entry);
    write32(at, LAPIC | apic << 12);
    write32(at + 4, 0);
    write32(at + 8, vector);
    write32(at + 12, 0);
    u64 control = function->config + pci_capability(function, 0x11, 0) + 2;
    write16(control, (read16(control) & ~0x4000) | 0x8000);
}

void pci_msix_mask(struct pci *function, u16 entry, bool masked)
{
    write32(msix_entry(function, entry) + 12, masked);
}

bool pci_msix_pending(struct pci *function, u16 entry)
{
    u8 capability = pci_capability(function, 0x11, 0);
    u32 pba = read32(function->config + capability + 8);
    return read32(pci_bar(function, pba & 7) + (pba & ~7u) + entry / 32 * 4) >> (entry % 32) & 1;
}
