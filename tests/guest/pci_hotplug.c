/* Takes and returns as many devices as the command line says; each interrupts by vector 0 when 0 is written. */
#include "hotplug.h"

int main(void)
{
    hotplug_begin();
    for (u64 left = arg("devices", 1); left; left--) {
        struct pci one = hotplug_device();
        check(one.device == 0x10ff);
        u64 bell = pci_bar(&one, 0);
        pci_msix(&one, 0, FIRST_VECTOR, apic_id());
        u32 before = irq_counts[FIRST_VECTOR];
        write32(bell, 0);
        check(wait_irq(FIRST_VECTOR, before) == before + 1);
        hotplug_return();
    }
    return 0;
}
