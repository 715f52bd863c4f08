/* Writes the whole disk and reads it back, several requests in flight on each queue, and checks every byte.
 *
 *     queues=1 depth=16 size=4096 rounds=1 irq=1 features=1 (event index) pause=0 (ticks between requests)
 *
 * Each block holds its own sector, the round and the queue that wrote it. Prints "ROUND n" after each round.
 */
#include "virtio.h"

#define QUEUES 8
#define SLOTS 85

static struct virtio disk;
static struct virtq queues[QUEUES];
static struct blk_request requests[QUEUES][SLOTS];
static u64 *buffers[QUEUES][SLOTS];
static u64 sectors[QUEUES][SLOTS];
static u32 size;

static u64 stamp(u64 sector, u64 round, u32 word) { return (sector * 0x9e3779b97f4a7c15ull + round) ^ (u64)word << 40; }

static void submit(int q, int slot, u32 type, u64 sector, u64 round)
{
    sectors[q][slot] = sector;
    for (u32 i = 0; i < size / 8; i++)
        buffers[q][slot][i] = type == BLK_WRITE ? stamp(sector, round, i) : 0;
    blk_submit(&queues[q], &requests[q][slot], slot, type, sector, buffers[q][slot], size);
    virtq_kick(&queues[q]);
}

static void complete(int q, int head, u32 length, u32 type, u64 round)
{
    int slot = head / 3;
    u64 sector = sectors[q][slot];
    if (requests[q][slot].status)
        fail("queue %d, sector %lu: status %d", q, sector, requests[q][slot].status);
    if (type != BLK_READ)
        return;
    if (length != size + 1)
        fail("queue %d, sector %lu: %u bytes used", q, sector, length);
    for (u32 i = 0; i < size / 8; i++)
        if (buffers[q][slot][i] != stamp(sector, round, i))
            fail("queue %d, sector %lu, word %u: %lx", q, sector, i, buffers[q][slot][i]);
}

/* All blocks once, interleaved over the queues. */
static void pass(u32 type, u64 round, int count, int depth, u8 vector)
{
    u64 sector = 0, end = blk_sectors(&disk) / (size / SECTOR) * (size / SECTOR), wait = arg("pause", 0);
    int flying = 0;
    for (int slot = 0; slot < depth; slot++)
        for (int q = 0; q < count && sector < end; q++, sector += size / SECTOR, flying++)
            submit(q, slot, type, sector, round);
    while (flying) {
        u32 seen = irq_counts[FIRST_VECTOR], length;
        bool idle = true;
        for (int q = 0; q < count; q++) {
            int head = virtq_take(&queues[q], &length);
            if (head < 0)
                continue;
            idle = false;
            complete(q, head, length, type, round);
            flying--;
            if (sector >= end)
                continue;
            for (u64 until = tsc() + wait; tsc() < until;)
                pause();
            submit(q, head / 3, type, sector, round);
            sector += size / SECTOR;
            flying++;
        }
        if (!idle)
            continue;
        bool ready = false;
        for (int q = 0; q < count; q++)
            ready |= virtq_arm(&queues[q]);
        if (vector && !ready)
            wait_irq(vector, seen);
    }
}

int main(void)
{
    int count = arg("queues", 1), depth = arg("depth", 16);
    u8 vector = arg("irq", 1) ? FIRST_VECTOR : 0;
    size = arg("size", 4096);
    apic_on();
    check(virtio_find(&disk, VIRTIO_BLK, 0));
    virtio_begin(&disk, arg("features", 1) ? VIRTIO_F_EVENT_IDX : 0);
    check(count <= QUEUES && count <= read16(disk.common + VIRTIO_NUMQ));
    for (int q = 0; q < count; q++) {
        virtq_setup(&disk, &queues[q], q, 0, vector);
        check(depth <= SLOTS && 3 * depth <= queues[q].size);
        for (int slot = 0; slot < depth; slot++)
            buffers[q][slot] = alloc(size, 4096);
    }
    virtio_ready(&disk);
    check(!(read8(disk.common + VIRTIO_STATUS) & VIRTIO_NEEDS_RESET));
    print("DISK %lu sectors, %d queues\n", blk_sectors(&disk), count);
    for (u64 round = 1; round <= arg("rounds", 1); round++) {
        pass(BLK_WRITE, round, count, depth, vector);
        pass(BLK_READ, round, count, depth, vector);
        print("ROUND %lu\n", round);
    }
    return 0;
}
