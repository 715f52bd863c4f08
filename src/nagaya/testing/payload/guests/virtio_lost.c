/* Waits for its disk to need a reset, which the configuration interrupt tells; a reset helps if back=1. */
#include "virtio.h"

#define VECTOR (FIRST_VECTOR + 1)

int main(void)
{
    struct virtio disk;
    struct virtq queue;
    apic_on();
    check(virtio_find(&disk, VIRTIO_BLK, 0));
    virtio_begin(&disk, 0);
    virtq_setup(&disk, &queue, 0, 0, FIRST_VECTOR);
    pci_msix(&disk.pci, 0, VECTOR, apic_id());
    write16(disk.common + VIRTIO_MSIX, 0);
    virtio_ready(&disk);
    print("RUNNING\n");
    wait_irq(VECTOR, 0);
    check(read8(disk.common + VIRTIO_STATUS) & VIRTIO_NEEDS_RESET);
    check(read8(disk.isr) & 2);
    check(!(read8(disk.isr) & 2));
    print("LOST\n");
    virtio_begin(&disk, 0);
    virtq_setup(&disk, &queue, 0, 0, 0);
    virtio_ready(&disk);
    if (arg("back", 0)) {
        struct blk_request request;
        blk_submit(&queue, &request, 0, BLK_READ, 0, alloc(512, 512), 512);
        virtq_kick(&queue);
        while (virtq_take(&queue, NULL) < 0)
            pause();
        check(!request.status);
        return 0;
    }
    check(read8(disk.common + VIRTIO_STATUS) & VIRTIO_NEEDS_RESET);
    print("STILL\n");
    return 0;
}
