/* A disk on the MMIO transport (virtio 1.3, 4.2): the first of base=ADDRESS line=NUMBER. Writes and reads back. */
#include "virtio.h"

#define IOAPIC 0xfec00000ull
enum {
    MAGIC = 0x00, VERSION = 0x04, DEVICE_ID = 0x08, DEVICE_FEATURES = 0x10, DEVICE_FEATURES_SEL = 0x14,
    DRIVER_FEATURES = 0x20, DRIVER_FEATURES_SEL = 0x24, QUEUE_SEL = 0x30, QUEUE_NUM_MAX = 0x34, QUEUE_NUM = 0x38,
    QUEUE_READY = 0x44, QUEUE_NOTIFY = 0x50, INTERRUPT_STATUS = 0x60, INTERRUPT_ACK = 0x64, STATUS = 0x70,
    QUEUE_DESC = 0x80, QUEUE_DRIVER = 0x90, QUEUE_DEVICE = 0xa0, CONFIG = 0x100,
};

static u64 base;
static struct virtq queue;

/* I/O APIC redirection entry: edge, active high, to this CPU. */
static void route(u8 line, u8 vector)
{
    write32(IOAPIC, 0x11 + 2 * line);
    write32(IOAPIC + 0x10, apic_id() << 24);
    write32(IOAPIC, 0x10 + 2 * line);
    write32(IOAPIC + 0x10, vector);
}

static void set64(u32 offset, u64 value)
{
    write32(base + offset, value);
    write32(base + offset + 4, value >> 32);
}

static void request(u32 type, u64 sector, u8 *buffer)
{
    static struct blk_request one;
    u32 seen = irq_counts[FIRST_VECTOR];
    virtq_arm(&queue);
    blk_submit(&queue, &one, 0, type, sector, buffer, 4096);
    virtq_kick(&queue);
    wait_irq(FIRST_VECTOR, seen);
    check(read32(base + INTERRUPT_STATUS) & 1);
    write32(base + INTERRUPT_ACK, 1);
    check(virtq_take(&queue, NULL) == 0 && one.status == 0);
}

int main(void)
{
    base = arg("base", 0xfeb00000);
    apic_on();
    route(arg("line", 5), FIRST_VECTOR);
    check(read32(base + MAGIC) == 0x74726976 && read32(base + VERSION) == 2 && read32(base + DEVICE_ID) == VIRTIO_BLK);
    write32(base + STATUS, 0);
    write32(base + STATUS, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER);
    write32(base + DEVICE_FEATURES_SEL, 1);
    check(read32(base + DEVICE_FEATURES) & 1);
    write32(base + DRIVER_FEATURES_SEL, 1);
    write32(base + DRIVER_FEATURES, 1);
    write32(base + STATUS, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
    check(read32(base + STATUS) & VIRTIO_FEATURES_OK);
    write32(base + QUEUE_SEL, 0);
    u16 size = read32(base + QUEUE_NUM_MAX);
    check(size && !read32(base + QUEUE_READY));
    queue = (struct virtq){.size = size, .interrupts = true, .mmio = true, .doorbell = base + QUEUE_NOTIFY};
    queue.desc = alloc(16 * size, 4096);
    queue.avail = alloc(6 + 2 * size, 4096);
    queue.used = alloc(6 + 8 * size, 4096);
    write32(base + QUEUE_NUM, size);
    set64(QUEUE_DESC, (u64)queue.desc);
    set64(QUEUE_DRIVER, (u64)queue.avail);
    set64(QUEUE_DEVICE, (u64)queue.used);
    write32(base + QUEUE_READY, 1);
    check(read32(base + QUEUE_READY) == 1);
    write32(base + STATUS, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK | VIRTIO_DRIVER_OK);
    u64 blocks = read32(base + CONFIG) / 8;
    u8 *out = alloc(4096, 4096), *in = alloc(4096, 4096);
    for (u64 block = 0; block < blocks && block < 50; block++) {
        memset(out, block + 1, 4096);
        request(BLK_WRITE, block * 8, out);
        request(BLK_READ, block * 8, in);
        check(!memcmp(in, out, 4096));
    }
    return 0;
}
