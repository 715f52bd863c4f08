/* A virtio-balloon driver (virtio 1.3, 5.5): gives as many pages of its own as it is asked for, bite by bite, takes them
 * back when it is asked for none, then reports the same pages as free. What comes back is zeroes, and the pages beside are as they were.
 */
#include "virtio.h"

#define REPORTING (1ull << 5)
#define PAGE 4096
#define MOST 4096 /* pages */
#define AT_ONCE 256
enum { NUM_PAGES = 0, ACTUAL = 4 };

static u32 *pages, *numbers;

static u32 wanted(struct virtio *device, u32 otherwise)
{
    u32 now;
    while ((now = read32(device->config + NUM_PAGES)) == otherwise)
        for (int i = 0; i < 10000; i++)
            pause();
    return now;
}

static void say(struct virtq *queue, void *buffer, u32 length, bool device_writes)
{
    virtq_buffer(queue, 0, buffer, length, device_writes);
    virtq_offer(queue, 0);
    virtq_kick(queue);
    while (virtq_take(queue, NULL) < 0)
        pause();
}

/* Name the pages from `first` to `end` in several chains. */
static void name(struct virtq *queue, u32 first, u32 end)
{
    for (; first < end; first += AT_ONCE) {
        u32 part = end - first < AT_ONCE ? end - first : AT_ONCE;
        for (u32 i = 0; i < part; i++)
            numbers[i] = (u64)pages / PAGE + first + i;
        say(queue, numbers, part * 4, false);
    }
}

static void fill(u32 first, u32 count)
{
    for (u32 i = first; i < first + count; i++)
        pages[i * (PAGE / 4)] = i + 1;
}

/* Whether pages from `first` on are zeroes, or as they were filled. */
static bool hold(u32 first, u32 count, bool zeroes)
{
    for (u32 i = first; i < first + count; i++)
        if (pages[i * (PAGE / 4)] != (zeroes ? 0 : i + 1))
            return false;
    return true;
}

int main(void)
{
    struct virtio device;
    struct virtq inflate, deflate, report;
    pages = alloc(MOST * PAGE, 2 << 20);
    numbers = alloc(AT_ONCE * 4, PAGE);
    check(virtio_find(&device, VIRTIO_BALLOON, 0));
    virtio_begin(&device, VIRTIO_F_EVENT_IDX | REPORTING);
    check(device.features & REPORTING);
    virtq_setup(&device, &inflate, 0, 0, 0);
    virtq_setup(&device, &deflate, 1, 0, 0);
    virtq_setup(&device, &report, 2, 0, 0);
    virtio_ready(&device);
    fill(0, MOST);
    print("FILLED\n");
    u32 count = 0, next;
    while ((next = wanted(&device, count)) > count) {
        check(next <= MOST);
        name(&inflate, count, next);
        count = next;
        write32(device.config + ACTUAL, count);
        print("GIVEN %u\n", count);
    }
    check(next == 0);
    name(&deflate, 0, count);
    write32(device.config + ACTUAL, 0);
    check(hold(0, count, true) && hold(count, MOST - count, false));
    fill(0, count);
    print("TAKEN BACK\n");
    check(wanted(&device, 0) == 1);
    say(&report, pages, count * PAGE, true);
    print("REPORTED\n");
    check(wanted(&device, 1) == 0);
    check(hold(0, count, true) && hold(count, MOST - count, false));
    return 0;
}
