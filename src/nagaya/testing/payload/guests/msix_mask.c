/* While a queue's vector is masked no interrupt comes and it is pending; unmasked, one comes. */
#include "virtio.h"

static u8 buffer[512] __attribute__((aligned(512)));

int main(void)
{
    struct virtio disk;
    struct virtq queue;
    struct blk_request request;
    apic_on();
    check(virtio_find(&disk, VIRTIO_BLK, 0));
    virtio_begin(&disk, 0);
    virtq_setup(&disk, &queue, 0, 0, FIRST_VECTOR);
    virtio_ready(&disk);
    for (u32 i = 0; i < 20; i++) {
        irq_on();
        pci_msix_mask(&disk.pci, 1, true);
        check(!pci_msix_pending(&disk.pci, 1));
        blk_submit(&queue, &request, 0, BLK_READ, 0, buffer, 512);
        virtq_kick(&queue);
        while (virtq_take(&queue, NULL) < 0)
            pause();
        while (!pci_msix_pending(&disk.pci, 1))
            pause();
        check(irq_counts[FIRST_VECTOR] == i);
        irq_off();
        pci_msix_mask(&disk.pci, 1, false);
        check(wait_irq(FIRST_VECTOR, i) == i + 1);
        check(!pci_msix_pending(&disk.pci, 1));
    }
    return 0;
}
