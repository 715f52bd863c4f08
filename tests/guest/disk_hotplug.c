/* Takes a disk, writes all of it and reads it back, returns it; as many times as the command line says. */
#include "hotplug.h"
#include "virtio.h"

#define BLOCK 4096

static struct virtio disk;
static struct virtq queue;
static struct blk_request request;
static u64 *buffer;

static void transfer(u32 type, u64 sector)
{
    blk_submit(&queue, &request, 0, type, sector, buffer, BLOCK);
    virtq_kick(&queue);
    u32 length, count = irq_counts[FIRST_VECTOR];
    while (virtq_take(&queue, &length) < 0) {
        if (!virtq_arm(&queue))
            wait_irq(FIRST_VECTOR, count);
        count = irq_counts[FIRST_VECTOR];
    }
    check(request.status == 0);
}

int main(void)
{
    hotplug_begin();
    buffer = alloc(BLOCK, BLOCK);
    for (u64 round = 1; round <= arg("disks", 1); round++) {
        hotplug_device();
        check(virtio_find(&disk, VIRTIO_BLK, 0));
        virtio_begin(&disk, VIRTIO_F_EVENT_IDX);
        memset(&queue, 0, sizeof queue);
        virtq_setup(&disk, &queue, 0, 0, FIRST_VECTOR);
        virtio_ready(&disk);
        u64 sectors = blk_sectors(&disk);
        for (u64 sector = 0; sector < sectors; sector += BLOCK / SECTOR) {
            for (u32 i = 0; i < BLOCK / 8; i++)
                buffer[i] = sector ^ round << 32 ^ (u64)i << 48;
            transfer(BLK_WRITE, sector);
        }
        for (u64 sector = 0; sector < sectors; sector += BLOCK / SECTOR) {
            memset(buffer, 0, BLOCK);
            transfer(BLK_READ, sector);
            for (u32 i = 0; i < BLOCK / 8; i++)
                check(buffer[i] == (sector ^ round << 32 ^ (u64)i << 48));
        }
        write8(disk.common + VIRTIO_STATUS, 0); /* the driver lets go */
        check(read8(disk.common + VIRTIO_STATUS) == 0);
        hotplug_return();
    }
    return 0;
}
