/* Resets a disk with reads in flight and checks that its memory is left alone behind the reset; then uses it again. */
#include "virtio.h"

#define SLOTS 64
#define SIZE 4096
static struct virtio disk;
static struct virtq queue;
static struct blk_request requests[SLOTS];
static u8 *buffers[SLOTS];

static void begin(void)
{
    virtio_begin(&disk, VIRTIO_F_EVENT_IDX);
    virtq_setup(&disk, &queue, 0, 0, 0);
    virtio_ready(&disk);
}

static void wait_all(int count)
{
    for (int done = 0; done < count; done += virtq_take(&queue, NULL) >= 0)
        pause();
}

int main(void)
{
    check(virtio_find(&disk, VIRTIO_BLK, 0));
    for (int i = 0; i < SLOTS; i++)
        buffers[i] = alloc(SIZE, 4096);
    begin();
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < SLOTS; i++)
            blk_submit(&queue, &requests[i], i, BLK_READ, i * 8, buffers[i], SIZE);
        virtq_kick(&queue);
        for (int i = 0; i < round * 1000; i++)
            pause();
        write8(disk.common + VIRTIO_STATUS, 0);
        check(read8(disk.common + VIRTIO_STATUS) == 0);
        struct virtq old = queue;
        u16 used = old.used[1];
        for (int i = 0; i < SLOTS; i++) {
            memset(buffers[i], 0xa5, SIZE);
            requests[i].status = 0x77;
        }
        for (u64 until = tsc() + 20000000; tsc() < until;)
            pause();
        check(old.used[1] == used);
        for (int i = 0; i < SLOTS; i++) {
            check(requests[i].status == 0x77);
            for (int byte = 0; byte < SIZE; byte++)
                check(buffers[i][byte] == 0xa5);
        }
        begin();
        for (int i = 0; i < SLOTS; i++)
            blk_submit(&queue, &requests[i], i, BLK_READ, i * 8, buffers[i], SIZE);
        virtq_kick(&queue);
        wait_all(SLOTS);
        for (int i = 0; i < SLOTS; i++)
            check(requests[i].status == 0 && buffers[i][0] != 0xa5);
    }
    return 0;
}
