/* A guest that breaks the rules of virtio-net, one after the other. Each time it then resets its NIC and pings
 * 10.77.0.`peer`: neither the network nor the peer has suffered. Prints "STILL THERE after ...".
 */
#include "net.h"

static struct nic nic;
static u8 peer, mac[6];
static u8 *page;

/* Send the `count` descriptors from 0 on as one chain. */
static void chain(struct virtq *queue, int count)
{
    for (int i = 0; i + 1 < count; i++) {
        queue->desc[i].flags |= DESC_NEXT;
        queue->desc[i].next = i + 1;
    }
    virtq_offer(queue, 0);
    virtq_kick(queue);
}

/* Have the peer send something, and do not look at it. */
static void provoke(void)
{
    echo_send(&nic, nic_frame(&nic), 8, mac, (u8[]){10, 77, 0, peer}, 0, 56);
    for (u64 until = tsc() + SECOND / 100; tsc() < until;)
        pause();
}

static void still_there(const char *what)
{
    for (u64 until = tsc() + SECOND / 50; tsc() < until;)
        pause();
    nic_begin(&nic, NIC_FEATURES | VIRTIO_NET_F_CSUM, 2);
    u32 lost = 0;
    for (u16 sequence = 0; sequence < 3; sequence++)
        while (!nic_ping(&nic, peer, mac, sequence, 56, SECOND))
            if (++lost == 20)
                fail("no answer after %s", what);
    print("STILL THERE after %s\n", what);
}

/* Frames whose virtio-net header and length are anything. */
static void headers(void)
{
    u64 random = 0x9e3779b97f4a7c15ull;
    for (int round = 0; round < 4000; round++) {
        u8 *frame = nic_frame(&nic);
        u8 *header = frame - NIC_HEADER;
        for (int i = 0; i < NIC_HEADER + 100; i++) {
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            header[i] = random >> 56;
        }
        if (round & 1) { /* well addressed, so that it gets further */
            memcpy(frame, mac, 6);
            memcpy(frame + 6, nic.mac, 6);
            frame[12] = 8, frame[13] = 0;
        }
        if (round & 2) { /* plausible offloads */
            header[0] = 1, header[1] = random >> 32 & 7;
            *(u16 *)(header + 2) = random >> 40 & 0xff;
            *(u16 *)(header + 4) = random >> 24 & 0xff;
        }
        u16 slot = nic.sent++ % NIC_DEPTH;
        virtq_buffer(&nic.tx, slot, header, 1 + (random >> 48 & 0xff), false);
        virtq_offer(&nic.tx, slot);
        virtq_kick(&nic.tx);
    }
}

static void lengths(void)
{
    static const u32 lengths[] = {0, 1, 11, 12, 13, 25, 26, 0x10000, 0x7fffffff, 0xffffffff};
    for (unsigned i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        nic_begin(&nic, NIC_FEATURES, 2);
        virtq_buffer(&nic.tx, 0, page, lengths[i], false);
        chain(&nic.tx, 1);
    }
}

static void addresses(void)
{
    static const u64 addresses[] = {0, 1ull << 40, ~0ull, ~0ull - 63, 0xd0000000, 0x3ffffff0};
    for (unsigned i = 0; i < sizeof addresses / sizeof *addresses; i++)
        for (int receive = 0; receive < 2; receive++) {
            nic_begin(&nic, NIC_FEATURES, 2);
            struct virtq *queue = receive ? &nic.rx : &nic.tx;
            for (int slot = 0; slot < NIC_DEPTH; slot++)
                virtq_buffer(queue, slot, (void *)addresses[i], NIC_BUFFER, receive);
            chain(queue, 1);
            provoke();
        }
}

static void chains(void)
{
    nic_begin(&nic, NIC_FEATURES, 2);
    for (int i = 0; i < NIC_DEPTH; i++)
        virtq_buffer(&nic.tx, i, page, 4096, false);
    chain(&nic.tx, NIC_DEPTH); /* 256 KiB as one frame */
    nic_begin(&nic, NIC_FEATURES, 2);
    virtq_buffer(&nic.tx, 0, page, 64, false);
    nic.tx.desc[0].flags |= DESC_NEXT; /* to itself */
    nic.tx.desc[0].next = 0;
    chain(&nic.tx, 1);
    nic_begin(&nic, NIC_FEATURES, 2);
    virtq_offer(&nic.tx, 0xffff);
    virtq_kick(&nic.tx);
    nic_begin(&nic, NIC_FEATURES, 2);
    nic.tx.next += 1000; /* more chains than there are descriptors */
    virtq_offer(&nic.tx, 0);
    virtq_kick(&nic.tx);
}

/* What is written is read only, what is read is write only; buffers to receive into that hold nothing. */
static void directions(void)
{
    nic_begin(&nic, NIC_FEATURES, 2);
    virtq_buffer(&nic.tx, 0, page, 100, true);
    chain(&nic.tx, 1);
    for (u32 length = 0; length < 14; length += 13) {
        nic_begin(&nic, NIC_FEATURES, 2);
        for (int slot = 0; slot < NIC_DEPTH; slot++)
            virtq_buffer(&nic.rx, slot, nic.buffers, length, true);
        provoke();
    }
    nic_begin(&nic, NIC_FEATURES, 2);
    for (int slot = 0; slot < NIC_DEPTH; slot++)
        virtq_buffer(&nic.rx, slot, nic.buffers, NIC_BUFFER, false);
    provoke();
}

static void commands(void)
{
    struct virtq control;
    virtio_begin(&nic.device, NIC_FEATURES | VIRTIO_NET_F_CTRL_VQ);
    virtq_setup(&nic.device, &control, 2, 0, 0);
    virtio_ready(&nic.device);
    for (int round = 0; round < 2000; round++) {
        u8 *command = page + round % 64 * 64;
        for (int i = 0; i < 64; i++)
            command[i] = tsc() >> i % 8;
        command[0] = round % 8, command[1] = round / 8 % 8;
        virtq_buffer(&control, 0, command, round % 65, false);
        virtq_buffer(&control, 1, page + 4095, round % 2, true);
        chain(&control, 1 + round % 2);
        for (int i = 0; i < 100 && virtq_take(&control, NULL) < 0; i++)
            pause();
    }
}

int main(void)
{
    static const struct {
        const char *name;
        void (*act)(void);
    } acts[] = {{"headers", headers}, {"lengths", lengths}, {"addresses", addresses},
                {"chains", chains}, {"directions", directions}, {"commands", commands}};
    peer = arg("peer", 3);
    page = alloc(1 << 20, 4096);
    nic_begin(&nic, NIC_FEATURES | VIRTIO_NET_F_CSUM, 2);
    if (!nic_resolve(&nic, peer, mac, 20 * SECOND))
        fail("nobody is 10.77.0.%u", peer);
    for (unsigned i = 0; i < sizeof acts / sizeof *acts; i++) {
        acts[i].act();
        still_there(acts[i].name);
    }
    return 0;
}
