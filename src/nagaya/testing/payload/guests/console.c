/* Says READY on a virtio console's first port, then sends back what comes, in capitals, until "bye". */
#include "virtio.h"

int main(void)
{
    struct virtio device;
    struct virtq receive, transmit;
    char *in = alloc(4096, 4096), *out = alloc(4096, 4096);
    u32 length, seen = 0;
    apic_on();
    check(virtio_find(&device, VIRTIO_CONSOLE, 0));
    virtio_begin(&device, VIRTIO_F_EVENT_IDX);
    virtq_setup(&device, &receive, 0, 0, FIRST_VECTOR);
    virtq_setup(&device, &transmit, 1, 0, 0);
    virtio_ready(&device);
    memcpy(out, "READY\n", length = 6);
    for (;;) {
        virtq_buffer(&transmit, 0, out, length, false);
        virtq_offer(&transmit, 0);
        virtq_kick(&transmit);
        while (virtq_take(&transmit, NULL) < 0)
            pause();
        if (length >= 3 && !memcmp(out, "BYE", 3))
            return 0;
        virtq_buffer(&receive, 0, in, 4096, true);
        virtq_offer(&receive, 0);
        virtq_kick(&receive);
        while (virtq_take(&receive, &length) < 0)
            if (!virtq_arm(&receive))
                seen = wait_irq(FIRST_VECTOR, seen);
        for (u32 i = 0; i < length; i++)
            out[i] = in[i] >= 'a' && in[i] <= 'z' ? in[i] - 32 : in[i];
    }
}
