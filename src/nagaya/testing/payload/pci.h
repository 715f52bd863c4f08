/* PCI Express as a guest sees it: configuration space by ECAM, BARs, capabilities, MSI-X. */
#pragma once
#include "payload.h"

#define ECAM 0xe0000000ull
#define PCI_WINDOW 0xc0000000ull /* for BARs that nobody has assigned, as without firmware */

struct pci {
    u64 config; /* address of its configuration space; 0: none */
    u16 vendor, device;
};

struct pci pci_at(u8 bus, u8 slot, u8 function);
/* The function number `nth` with these ids (0xffff: any), on all buses that bridges lead to. */
struct pci pci_find(u16 vendor, u16 device, int nth);
/* The next capability of that id behind `after` (0: from the start); its offset, 0 if there is none. */
u8 pci_capability(struct pci *function, u8 id, u8 after);
/* Map a BAR, assigned here if it is not yet; its address. Memory decoding and bus mastering are on behind it. */
u64 pci_bar(struct pci *function, int index);
/* Let MSI-X entry `entry` be `vector` on the CPU with that APIC id, unmasked, and enable MSI-X. */
void pci_msix(struct pci *function, u16 entry, u8 vector, u32 apic);
/* Mask or unmask one entry; whether it is pending. */
void pci_msix_mask(struct pci *function, u16 entry, bool masked);
bool pci_msix_pending(struct pci *function, u16 entry);
