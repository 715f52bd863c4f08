/* Takes random bytes twice and tells whether they differ; prints the first eight. */
#include "virtio.h"

int main(void)
{
    struct virtio device;
    struct virtq queue;
    u8 *bytes[2] = {alloc(4096, 4096), alloc(4096, 4096)};
    apic_on();
    check(virtio_find(&device, VIRTIO_RNG, 0));
    virtio_begin(&device, VIRTIO_F_EVENT_IDX);
    virtq_setup(&device, &queue, 0, 0, FIRST_VECTOR);
    virtio_ready(&device);
    for (int i = 0; i < 2; i++) {
        u32 seen = irq_counts[FIRST_VECTOR], length, total = 0;
        while (total < 4096) {
            virtq_arm(&queue);
            virtq_buffer(&queue, 0, bytes[i] + total, 4096 - total, true);
            virtq_offer(&queue, 0);
            virtq_kick(&queue);
            seen = wait_irq(FIRST_VECTOR, seen);
            check(virtq_take(&queue, &length) == 0 && length > 0 && length <= 4096 - total);
            total += length;
        }
    }
    check(memcmp(bytes[0], bytes[1], 4096));
    print("RANDOM %lx\n", *(u64 *)bytes[0]);
    return 0;
}
