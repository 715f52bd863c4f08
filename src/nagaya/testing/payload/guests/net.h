/* A virtio-net driver (virtio 1.3, 5.1) with as much of Ethernet, ARP and ICMP as a ping takes. */
#pragma once
#include "virtio.h"

#define VIRTIO_NET_F_CSUM (1ull << 0)
#define VIRTIO_NET_F_MAC (1ull << 5)
#define VIRTIO_NET_F_MRG_RXBUF (1ull << 15)
#define VIRTIO_NET_F_STATUS (1ull << 16)
#define VIRTIO_NET_F_CTRL_VQ (1ull << 17)
#define NIC_FEATURES (VIRTIO_NET_F_MAC | VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_STATUS)

#define NIC_HEADER 12 /* 5.1.6, with VERSION_1 */
#define NIC_BUFFER 2048
#define NIC_DEPTH 64
#define SECOND 2000000000ull /* ticks, about */
#define TICK 10000000        /* ns between looks at the clock */

struct nic {
    struct virtio device;
    struct virtq rx, tx;
    u8 mac[6], address[4]; /* 10.77.0.N */
    u8 *buffers, *sending;
    u16 sent;
};

struct ether {
    u8 to[6], from[6];
    u16 type;
} __attribute__((packed));

struct arp {
    struct ether ether;
    u16 hardware, protocol;
    u8 hardware_size, protocol_size;
    u16 operation;
    u8 from[6], from_address[4], to[6], to_address[4];
} __attribute__((packed));

struct echo {
    struct ether ether;
    u8 version, service;
    u16 length, id, fragment;
    u8 ttl, protocol;
    u16 sum;
    u8 from[4], to[4];
    u8 type, code;
    u16 icmp_sum, number, sequence;
    u8 body[];
} __attribute__((packed));

static inline u16 swap(u16 value) { return value << 8 | value >> 8; }

static u16 checksum(const void *bytes, u32 length) /* RFC 1071 */
{
    const u8 *at = bytes;
    u32 sum = 0;
    for (u32 i = 0; i < length; i++)
        sum += i & 1 ? at[i] << 8 : at[i];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

static void nic_give(struct nic *nic, u16 slot)
{
    virtq_buffer(&nic->rx, slot, nic->buffers + slot * NIC_BUFFER, NIC_BUFFER, true);
    virtq_offer(&nic->rx, slot);
}

/* Reset it and have it receive. */
static void nic_begin(struct nic *nic, u64 features, u8 address)
{
    if (!nic->buffers) {
        apic_on();
        check(virtio_find(&nic->device, VIRTIO_NET, 0));
        nic->buffers = alloc(NIC_DEPTH * NIC_BUFFER, 4096);
        nic->sending = alloc(NIC_DEPTH * NIC_BUFFER, 4096);
    }
    virtio_begin(&nic->device, features);
    virtq_setup(&nic->device, &nic->rx, 0, 0, FIRST_VECTOR);
    virtq_setup(&nic->device, &nic->tx, 1, 0, 0);
    check(nic->rx.size >= NIC_DEPTH);
    for (int i = 0; i < 6; i++)
        nic->mac[i] = read8(nic->device.config + i);
    memcpy(nic->address, (u8[]){10, 77, 0, address}, 4);
    nic->sent = 0;
    virtio_ready(&nic->device);
    for (u16 slot = 0; slot < NIC_DEPTH; slot++)
        nic_give(nic, slot);
    virtq_kick(&nic->rx);
}

/* Where the next frame to be sent is written; waits until one of the slots is free. */
static void *nic_frame(struct nic *nic)
{
    for (u64 until = tsc() + 20 * SECOND; (u16)(nic->sent - nic->tx.seen) >= NIC_DEPTH; virtq_take(&nic->tx, NULL))
        if (tsc() > until)
            fail("nothing is sent");
    return nic->sending + nic->sent % NIC_DEPTH * NIC_BUFFER + NIC_HEADER;
}

static void nic_send(struct nic *nic, u32 length)
{
    u16 slot = nic->sent++ % NIC_DEPTH;
    u8 *buffer = nic->sending + slot * NIC_BUFFER;
    memset(buffer, 0, NIC_HEADER);
    virtq_buffer(&nic->tx, slot, buffer, NIC_HEADER + length, false);
    virtq_offer(&nic->tx, slot);
    virtq_kick(&nic->tx);
    while (virtq_take(&nic->tx, NULL) >= 0)
        ;
}

/* Copy the next frame into `frame`, NIC_BUFFER bytes; its length, 0 if there is none. */
static u32 nic_receive(struct nic *nic, void *frame)
{
    u32 length;
    int slot = virtq_take(&nic->rx, &length);
    if (slot < 0)
        return 0;
    u8 *buffer = nic->buffers + slot * NIC_BUFFER;
    check(length > NIC_HEADER && length <= NIC_BUFFER);
    check(!(nic->device.features & VIRTIO_NET_F_MRG_RXBUF) || *(u16 *)(buffer + 10) == 1);
    memcpy(frame, buffer + NIC_HEADER, length - NIC_HEADER);
    nic_give(nic, slot);
    virtq_kick(&nic->rx);
    return length - NIC_HEADER;
}

/* Sleep until a frame may be there, `ticks` at most. */
static void nic_wait(struct nic *nic, u32 ticks)
{
    u32 seen = irq_counts[FIRST_VECTOR];
    if (virtq_arm(&nic->rx))
        return;
    apic_timer(FIRST_VECTOR, ticks, false);
    wait_irq(FIRST_VECTOR, seen);
}

static void arp_send(struct nic *nic, u16 operation, const u8 *to, const u8 *address)
{
    struct arp *arp = nic_frame(nic);
    *arp = (struct arp){.ether.type = swap(0x0806), .hardware = swap(1), .protocol = swap(0x0800),
                        .hardware_size = 6, .protocol_size = 4, .operation = swap(operation)};
    memcpy(arp->ether.from, nic->mac, 6);
    memcpy(arp->from, nic->mac, 6);
    memcpy(arp->from_address, nic->address, 4);
    memcpy(arp->to_address, address, 4);
    memset(arp->ether.to, 0xff, 6);
    if (to) {
        memcpy(arp->ether.to, to, 6);
        memcpy(arp->to, to, 6);
    }
    nic_send(nic, sizeof *arp);
}

/* `body` bytes of echo request or reply; the caller has written them. */
static void echo_send(struct nic *nic, struct echo *echo, u8 type, const u8 *mac, const u8 *to, u16 sequence, u32 body)
{
    struct echo head = {.ether.type = swap(0x0800), .version = 0x45, .length = swap(28 + body), .ttl = 64,
                        .protocol = 1, .type = type, .sequence = swap(sequence)};
    memcpy(head.ether.to, mac, 6);
    memcpy(head.ether.from, nic->mac, 6);
    memcpy(head.from, nic->address, 4);
    memcpy(head.to, to, 4);
    head.sum = checksum(&head.version, 20);
    memcpy(echo, &head, sizeof head);
    echo->icmp_sum = checksum(&echo->type, 8 + body);
    nic_send(nic, sizeof head + body);
}

/* Answer one ARP or echo request for us; whether it was an echo request. */
static bool nic_answer(struct nic *nic, const u8 *frame, u32 length)
{
    const struct arp *arp = (const void *)frame;
    const struct echo *echo = (const void *)frame;
    if (length >= sizeof *arp && arp->ether.type == swap(0x0806) && arp->operation == swap(1) &&
        !memcmp(arp->to_address, nic->address, 4))
        arp_send(nic, 2, arp->from, arp->from_address);
    if (length < sizeof *echo || echo->ether.type != swap(0x0800) || echo->protocol != 1 || echo->type != 8 ||
        memcmp(echo->to, nic->address, 4))
        return false;
    u32 body = swap(echo->length) - 28;
    check(sizeof *echo + body <= length);
    struct echo *answer = nic_frame(nic);
    memcpy(answer->body, echo->body, body);
    echo_send(nic, answer, 0, echo->ether.from, echo->from, swap(echo->sequence), body);
    return true;
}

static u8 nic_scratch[NIC_BUFFER];

/* Find out the MAC of 10.77.0.`peer`; whether somebody answers within `ticks`. */
static bool nic_resolve(struct nic *nic, u8 peer, u8 *mac, u64 ticks)
{
    u8 address[4] = {10, 77, 0, peer};
    const struct arp *arp = (const void *)nic_scratch;
    for (u64 until = tsc() + ticks; tsc() < until;) {
        arp_send(nic, 1, NULL, address);
        for (u64 again = tsc() + ticks / 16; tsc() < again;) {
            u32 length = nic_receive(nic, nic_scratch);
            if (!length)
                nic_wait(nic, TICK);
            if (length < sizeof *arp || arp->ether.type != swap(0x0806) || arp->operation != swap(2) ||
                memcmp(arp->from_address, address, 4))
                continue;
            memcpy(mac, arp->from, 6);
            return true;
        }
    }
    return false;
}

/* One ping of `body` bytes; whether the answer comes within `ticks`, all bytes as they were. */
static bool nic_ping(struct nic *nic, u8 peer, const u8 *mac, u16 sequence, u32 body, u64 ticks)
{
    u8 address[4] = {10, 77, 0, peer};
    const struct echo *answer = (const void *)nic_scratch;
    struct echo *echo = nic_frame(nic);
    for (u32 i = 0; i < body; i++)
        echo->body[i] = sequence + i;
    echo_send(nic, echo, 8, mac, address, sequence, body);
    for (u64 until = tsc() + ticks; tsc() < until;) {
        u32 length = nic_receive(nic, nic_scratch);
        if (!length)
            nic_wait(nic, TICK);
        if (length != sizeof *answer + body || answer->ether.type != swap(0x0800) || answer->protocol != 1 ||
            answer->type != 0 || answer->sequence != swap(sequence) || memcmp(answer->from, address, 4)) {
            nic_answer(nic, nic_scratch, length);
            continue;
        }
        for (u32 i = 0; i < body; i++)
            if (answer->body[i] != (u8)(sequence + i))
                fail("ping %u: byte %u is wrong", sequence, i);
        return true;
    }
    return false;
}
