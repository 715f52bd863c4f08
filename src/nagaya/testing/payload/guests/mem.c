/* Drives virtio-mem (virtio 1.3, 5.15) as Linux does: plugs and unplugs block by block until it has what is requested, fills
 * what it plugs, and checks it before it gives it back, unless fill=0. Ends when 0 bytes are requested after more were, or `stay`.
 * `grab`: before all that, touches so many blocks that it has not plugged; `greedy`: asks for one more than requested.
 */
#include "virtio.h"

#define VIRTIO_MEM 24
#define UNPLUGGED_INACCESSIBLE (1ull << 1)
enum { PLUG, UNPLUG, UNPLUG_ALL, STATE };
enum { ACK, NACK, BUSY, ERROR };
enum { BLOCK_SIZE = 0, ADDR = 16, REGION_SIZE = 24, PLUGGED_SIZE = 40, REQUESTED_SIZE = 48 };
#define CONFIG_VECTOR (FIRST_VECTOR + 1)

static struct virtio device;
static struct virtq queue;
static struct {
    u16 type, padding[3];
    u64 address;
    u16 count, more[3];
} *request;
static volatile u16 *response;
static u64 block, start;

/* Fields of 64 bits are read in halves (4.2.2.2, 4.1.3.1). */
static u64 field(int at) { return read32(device.config + at) | (u64)read32(device.config + at + 4) << 32; }

static u16 ask(u16 type, u64 first, u16 count)
{
    request->type = type;
    request->address = start + first * block;
    request->count = count;
    response[0] = 0xffff;
    queue.desc[0] = (struct descriptor){(u64)request, 24, DESC_NEXT, 1};
    queue.desc[1] = (struct descriptor){(u64)response, 10, DESC_WRITE, 0};
    u32 length, seen = irq_counts[FIRST_VECTOR];
    virtq_offer(&queue, 0);
    virtq_kick(&queue);
    while (virtq_take(&queue, &length) < 0) {
        if (!virtq_arm(&queue))
            wait_irq(FIRST_VECTOR, seen);
        seen = irq_counts[FIRST_VECTOR];
    }
    return response[0];
}

static void fill(u64 index)
{
    u64 *at = (u64 *)(start + index * block);
    map((u64)at, block);
    for (u64 page = 0; page < block / 4096; page++, at += 512) {
        check(*at == 0);
        *at = index << 32 | page;
    }
}

static void verify(u64 index)
{
    u64 *at = (u64 *)(start + index * block);
    for (u64 page = 0; page < block / 4096; page++, at += 512)
        check(*at == (index << 32 | page));
}

int main(void)
{
    apic_on();
    request = alloc(sizeof *request, 64);
    response = alloc(16, 64);
    check(virtio_find(&device, VIRTIO_MEM, 0));
    virtio_begin(&device, UNPLUGGED_INACCESSIBLE | VIRTIO_F_EVENT_IDX);
    check(device.features & UNPLUGGED_INACCESSIBLE);
    virtq_setup(&device, &queue, 0, 0, FIRST_VECTOR);
    pci_msix(&device.pci, 0, CONFIG_VECTOR, apic_id());
    write16(device.common + VIRTIO_MSIX, 0);
    check(read16(device.common + VIRTIO_MSIX) == 0);
    virtio_ready(&device);
    block = field(BLOCK_SIZE);
    start = field(ADDR);
    print("REGION %lx %lx\n", start, field(REGION_SIZE));
    for (u64 index = 0; index < arg("grab", 0); index++) {
        map(start + index * block, block);
        for (u64 page = 0; page < block / 4096; page++)
            *(volatile u64 *)(start + index * block + page * 4096) = 1;
        print("GRABBED %lu\n", index + 1);
    }
    check(ask(UNPLUG_ALL, 0, 0) == ACK);
    bool begun = false;
    for (u64 have = 0;;) {
        u32 seen = irq_counts[CONFIG_VECTOR];
        u64 want = field(REQUESTED_SIZE) / block;
        check(field(PLUGGED_SIZE) == have * block);
        for (; have < want; have++) {
            check(ask(PLUG, have, 1) == ACK);
            if (arg("fill", 1))
                fill(have);
        }
        for (; have > want; have--) {
            if (arg("fill", 1))
                verify(have - 1);
            check(ask(UNPLUG, have - 1, 1) == ACK);
        }
        check(field(PLUGGED_SIZE) == have * block);
        bool full = have * block == field(REGION_SIZE);
        check(ask(STATE, have, 1) == (full ? ERROR : ACK) && response[4] == !full);
        if (arg("greedy", 0) && !full)
            check(ask(PLUG, have, 1) == NACK && ask(PLUG, 0, 1) == (have ? ERROR : NACK) && ask(UNPLUG, have, 1) == ERROR);
        print("PLUGGED %lu\n", have * block >> 20);
        if (begun && !have && !arg("stay", 0))
            return 0;
        begun |= have > 0;
        wait_irq(CONFIG_VECTOR, seen);
    }
}
