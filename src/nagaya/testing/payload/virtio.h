/* A virtio driver on the modern PCI transport (virtio 1.3): split rings, event index. */
#pragma once
#include "pci.h"

#define VIRTIO_NET 1
#define VIRTIO_BLK 2
#define VIRTIO_CONSOLE 3
#define VIRTIO_RNG 4
#define VIRTIO_BALLOON 5

#define VIRTIO_F_EVENT_IDX (1ull << 29)
#define VIRTIO_F_VERSION_1 (1ull << 32)

#define VIRTIO_ACKNOWLEDGE 1
#define VIRTIO_DRIVER 2
#define VIRTIO_DRIVER_OK 4
#define VIRTIO_FEATURES_OK 8
#define VIRTIO_NEEDS_RESET 64

/* Offsets in the common configuration (4.1.4.3). */
enum {
    VIRTIO_DFSELECT = 0, VIRTIO_DF = 4, VIRTIO_GFSELECT = 8, VIRTIO_GF = 12, VIRTIO_MSIX = 16, VIRTIO_NUMQ = 18,
    VIRTIO_STATUS = 20, VIRTIO_GENERATION = 21, VIRTIO_Q_SELECT = 22, VIRTIO_Q_SIZE = 24, VIRTIO_Q_MSIX = 26,
    VIRTIO_Q_ENABLE = 28, VIRTIO_Q_NOFF = 30, VIRTIO_Q_DESC = 32, VIRTIO_Q_DRIVER = 40, VIRTIO_Q_DEVICE = 48,
};

struct virtio {
    struct pci pci;
    u64 common, notify, isr, config;
    u32 notify_multiplier;
    u64 features; /* agreed on */
};

struct descriptor {
    u64 address;
    u32 length;
    u16 flags, next;
};
#define DESC_NEXT 1
#define DESC_WRITE 2

struct virtq {
    struct descriptor *desc;
    volatile u16 *avail; /* flags, index, ring, used_event */
    volatile u16 *used;  /* flags, index, ring of (u32 head, u32 length), avail_event */
    u64 doorbell;
    u16 index, size, next, kicked, seen;
    bool event_index, interrupts, mmio;
    u64 kicks; /* that the device wanted */
};

/* The device number `nth` of a type; false if there is none. */
bool virtio_find(struct virtio *device, u16 type, int nth);
/* Reset, and agree on those of `wanted` that are offered, and on VERSION_1. */
void virtio_begin(struct virtio *device, u64 wanted);
/* Set up queue `index` with `size` descriptors (0: as many as it has). `vector`: an interrupt, or 0 to poll. */
void virtq_setup(struct virtio *device, struct virtq *queue, u16 index, u16 size, u8 vector);
/* DRIVER_OK. */
void virtio_ready(struct virtio *device);

/* Make the chain that begins at `head` available; virtq_kick tells the device, if it wants to know. */
void virtq_offer(struct virtq *queue, u16 head);
void virtq_kick(struct virtq *queue);
/* Take a used chain: its head, or -1 if there is none. */
int virtq_take(struct virtq *queue, u32 *length);
/* Ask for an interrupt at the next used chain; whether there is one already (then none may come). */
bool virtq_arm(struct virtq *queue);
/* A chain of one buffer in descriptor `head`. */
void virtq_buffer(struct virtq *queue, u16 head, void *buffer, u32 length, bool device_writes);

/* virtio-blk: `slot` uses descriptors 3 * slot to 3 * slot + 2. */
#define BLK_READ 0
#define BLK_WRITE 1
#define BLK_FLUSH 4
#define SECTOR 512
struct blk_request {
    u32 type, zero;
    u64 sector;
    volatile u8 status;
} __attribute__((aligned(32)));
static inline u64 blk_sectors(struct virtio *device) { return read64(device->config); }
void blk_submit(struct virtq *queue, struct blk_request *request, u16 slot, u32 type, u64 sector, void *buffer, u32 length);
