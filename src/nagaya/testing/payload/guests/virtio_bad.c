/* A driver that breaks the rules, one at a time: each must end in NEEDS_RESET or be ignored, and a reset mends it. */
#include "virtio.h"

static struct virtio disk;
static struct virtq queue;
static struct blk_request request;
static u64 common;

static u8 status(void) { return read8(common + VIRTIO_STATUS); }

static void setup(void)
{
    virtio_begin(&disk, 0);
    virtq_setup(&disk, &queue, 0, 16, 0);
}

static void reread(void)
{
    setup();
    virtio_ready(&disk);
    check(!(status() & VIRTIO_NEEDS_RESET));
    u8 *buffer = alloc(512, 512);
    blk_submit(&queue, &request, 0, BLK_READ, 0, buffer, 512);
    virtq_kick(&queue);
    while (virtq_take(&queue, NULL) < 0)
        pause();
    check(request.status == 0);
}

static void refused(const char *what)
{
    virtio_ready(&disk);
    if (!(status() & VIRTIO_NEEDS_RESET))
        fail("%s was not refused", what);
    write8(common + VIRTIO_STATUS, 0);
    check(status() == 0);
    print("REFUSED %s\n", what);
    reread();
}

int main(void)
{
    check(virtio_find(&disk, VIRTIO_BLK, 0));
    common = disk.common;
    static const u64 addresses[] = {1ull << 40, ~0xfffull, 0xd0000000, 0x3ffff00, 0x3ffffff0};
    static const u16 sizes[] = {0, 3, 100, 257, 512, 0xffff};
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        virtio_begin(&disk, 0);
        virtq_setup(&disk, &queue, 0, 16, 0);
        virtio_begin(&disk, 0);
        write16(common + VIRTIO_Q_SELECT, 0);
        write64(common + VIRTIO_Q_DESC, (u64)queue.desc);
        write64(common + VIRTIO_Q_DRIVER, (u64)queue.avail);
        write64(common + VIRTIO_Q_DEVICE, (u64)queue.used);
        write16(common + VIRTIO_Q_SIZE, sizes[i]);
        write16(common + VIRTIO_Q_ENABLE, 1);
        refused("a size");
    }
    for (int area = 0; area < 3; area++)
        for (unsigned i = 0; i < sizeof addresses / sizeof *addresses; i++) {
            virtio_begin(&disk, 0);
            write16(common + VIRTIO_Q_SELECT, 0);
            write64(common + VIRTIO_Q_DESC, area == 0 ? addresses[i] : (u64)queue.desc);
            write64(common + VIRTIO_Q_DRIVER, area == 1 ? addresses[i] : (u64)queue.avail);
            write64(common + VIRTIO_Q_DEVICE, area == 2 ? addresses[i] : (u64)queue.used);
            write16(common + VIRTIO_Q_ENABLE, 1);
            refused("an address");
        }
    write8(common + VIRTIO_STATUS, 0);
    write8(common + VIRTIO_STATUS, VIRTIO_DRIVER_OK);
    check(status() & VIRTIO_NEEDS_RESET);
    reread();

    /* Features that were not offered, and none of 1.0: not accepted. */
    for (int i = 0; i < 2; i++) {
        write8(common + VIRTIO_STATUS, 0);
        write8(common + VIRTIO_STATUS, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER);
        write32(common + VIRTIO_GFSELECT, 1);
        write32(common + VIRTIO_GF, i ? 0xffffffff : 0);
        write8(common + VIRTIO_STATUS, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
        check(!(status() & VIRTIO_FEATURES_OK));
    }

    /* What is enabled does not change, a queue that is not there is nothing, and neither hurts. */
    setup();
    write16(common + VIRTIO_Q_SIZE, 3);
    write64(common + VIRTIO_Q_DESC, ~0ull);
    write16(common + VIRTIO_Q_ENABLE, 1);
    check(read16(common + VIRTIO_Q_SIZE) == 16 && read64(common + VIRTIO_Q_DESC) == (u64)queue.desc);
    write16(common + VIRTIO_Q_SELECT, 0xfff0);
    write16(common + VIRTIO_Q_SIZE, 8);
    write16(common + VIRTIO_Q_ENABLE, 1);
    check(read16(common + VIRTIO_Q_SIZE) == 0);
    virtio_ready(&disk);
    check(!(status() & VIRTIO_NEEDS_RESET));
    virtio_ready(&disk);
    for (int i = 0; i < 64; i++)
        write16(disk.notify + 4 * i, i);
    reread();
    return 0;
}
