/* Random 4 KiB requests, `depth` in flight, for `ms` milliseconds of `khz` kHz, after a tenth of that to warm up.
 * Prints "IOS n TICKS t KICKS k". op: 0 reads, 1 writes. irq: 1 sleeps for interrupts, 0 polls the used ring.
 */
#include "virtio.h"

#define SIZE 4096
#define SLOTS 64
#define F_FLUSH (1 << 9)

static struct virtio disk;
static struct virtq queue;
static struct blk_request requests[SLOTS];
static u8 *buffers[SLOTS];
static u64 blocks, seed = 88172645463325252u;
static u32 op;

static u64 random(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static void submit(int slot)
{
    blk_submit(&queue, &requests[slot], slot, op, random() % blocks * (SIZE / SECTOR), buffers[slot], SIZE);
}

static u64 run(u64 until, int *flying, int depth, u8 vector)
{
    u64 done = 0;
    while (*flying < depth)
        submit((*flying)++);
    virtq_kick(&queue);
    while (tsc() < until) {
        u32 seen = irq_counts[FIRST_VECTOR];
        int head, taken = 0;
        while ((head = virtq_take(&queue, NULL)) >= 0) {
            check(!requests[head / 3].status);
            submit(head / 3);
            taken++;
        }
        done += taken;
        if (taken)
            virtq_kick(&queue);
        else if (vector && !virtq_arm(&queue))
            wait_irq(vector, seen);
        else
            pause();
    }
    return done;
}

int main(void)
{
    int depth = arg("depth", 1), flying = 0;
    u64 ticks = arg("ms", 1000) * arg("khz", 2000000);
    u8 vector = arg("irq", 0) ? FIRST_VECTOR : 0;
    op = arg("op", 0);
    apic_on();
    check(virtio_find(&disk, VIRTIO_BLK, 0));
    virtio_begin(&disk, VIRTIO_F_EVENT_IDX | F_FLUSH);
    virtq_setup(&disk, &queue, 0, 0, vector);
    check(depth <= SLOTS && 3 * depth <= queue.size);
    for (int slot = 0; slot < SLOTS; slot++) {
        buffers[slot] = alloc(SIZE, 4096);
        memset(buffers[slot], 0x5a, SIZE);
    }
    virtio_ready(&disk);
    blocks = blk_sectors(&disk) / (SIZE / SECTOR);
    run(tsc() + ticks / 10, &flying, depth, vector);
    queue.kicks = 0;
    u64 start = tsc(), done = run(start + ticks, &flying, depth, vector), spent = tsc() - start;
    print("IOS %lu TICKS %lu KICKS %lu\n", done, spent, queue.kicks);
    return 0;
}
