#include "virtio.h"

bool virtio_find(struct virtio *device, u16 type, int nth)
{
    *device = (struct virtio){.pci = pci_find(0x1af4, 0x1040 + type, nth)};
    struct pci *pci = &device->pci;
    if (!pci->config)
        return false;
    for (u8 at = 0; (at = pci_capability(pci, 0x09, at));) {
        u64 capability = pci->config + at;
        u8 kind = read8(capability + 3);
        if (kind < 1 || kind > 4)
            continue;
        u64 where = pci_bar(pci, read8(capability + 4)) + read32(capability + 8);
        switch (kind) {
        case 1:
            device->common = where;
            break;
        case 2:
            device->notify = where;
            device->notify_multiplier = read32(capability + 16);
            break;
        case 3:
            device->isr = where;
            break;
        default:
            device->config = where;
        }
    }
    check(device->common && device->notify && device->isr);
    return true;
}

void virtio_begin(struct virtio *device, u64 wanted)
{
    u64 common = device->common;
    write8(common + VIRTIO_STATUS, 0);
    while (read8(common + VIRTIO_STATUS))
        pause();
    write8(common + VIRTIO_STATUS, VIRTIO_ACKNOWLEDGE);
    write8(common + VIRTIO_STATUS, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER);
    u64 offered = 0;
    for (int word = 0; word < 2; word++) {
        write32(common + VIRTIO_DFSELECT, word);
        offered |= (u64)read32(common + VIRTIO_DF) << 32 * word;
    }
    device->features = offered & (wanted | VIRTIO_F_VERSION_1);
    for (int word = 0; word < 2; word++) {
        write32(common + VIRTIO_GFSELECT, word);
        write32(common + VIRTIO_GF, device->features >> 32 * word);
    }
    write8(common + VIRTIO_STATUS, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
    check(read8(common + VIRTIO_STATUS) & VIRTIO_FEATURES_OK);
}

void virtq_setup(struct virtio *device, struct virtq *queue, u16 index, u16 size, u8 vector)
{
    u64 common = device->common;
    write16(common + VIRTIO_Q_SELECT, index);
    u16 most = read16(common + VIRTIO_Q_SIZE);
    check(most);
    if (!size || size > most)
        size = most;
    *queue = (struct virtq){.index = index, .size = size, .interrupts = vector};
    queue->event_index = device->features & VIRTIO_F_EVENT_IDX;
    queue->desc = alloc(16 * size, 4096);
    queue->avail = alloc(6 + 2 * size, 4096);
    queue->used = alloc(6 + 8 * size, 4096);
    if (!vector)
        queue->avail[queue->event_index ? 2 + size : 0] = queue->event_index ? 0xffff : 1;
    write16(common + VIRTIO_Q_SIZE, size);
    write64(common + VIRTIO_Q_DESC, (u64)queue->desc);
    write64(common + VIRTIO_Q_DRIVER, (u64)queue->avail);
    write64(common + VIRTIO_Q_DEVICE, (u64)queue->used);
    if (vector) {
        pci_msix(&device->pci, index + 1, vector, apic_id());
        write16(common + VIRTIO_Q_MSIX, index + 1);
        check(read16(common + VIRTIO_Q_MSIX) == index + 1);
    }
    queue->doorbell = device->notify + device->notify_multiplier * read16(common + VIRTIO_Q_NOFF);
    write16(common + VIRTIO_Q_ENABLE, 1);
}

void virtio_ready(struct virtio *device)
{
    u64 status = device->common + VIRTIO_STATUS;
    write8(status, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK | VIRTIO_DRIVER_OK);
}

void virtq_offer(struct virtq *queue, u16 head)
{
    queue->avail[2 + queue->next % queue->size] = head;
    queue->next++;
    barrier();
    queue->avail[1] = queue->next;
}

void virtq_kick(struct virtq *queue)
{
    u16 before = queue->kicked;
    queue->kicked = queue->next;
    full_barrier();
    bool wanted = !(queue->used[0] & 1);
    if (queue->event_index) {
        u16 event = queue->used[2 + 4 * queue->size];
        wanted = (u16)(queue->next - event - 1) < (u16)(queue->next - before);
    }
    queue->kicks += wanted;
    if (wanted && queue->mmio)
        write32(queue->doorbell, queue->index);
    else if (wanted)
        write16(queue->doorbell, queue->index);
}

int virtq_take(struct virtq *queue, u32 *length)
{
    if (queue->used[1] == queue->seen)
        return -1;
    barrier();
    volatile u32 *element = (volatile u32 *)(queue->used + 2) + 2 * (queue->seen % queue->size);
    queue->seen++;
    if (length)
        *length = element[1];
    if (queue->event_index && !queue->interrupts)
        queue->avail[2 + queue->size] = queue->seen - 1; /* far away: no interrupt */
    return element[0];
}

bool virtq_arm(struct virtq *queue)
{
    if (queue->event_index)
        queue->avail[2 + queue->size] = queue->seen;
    full_barrier();
    return queue->used[1] != queue->seen;
}

void virtq_buffer(struct virtq *queue, u16 head, void *buffer, u32 length, bool device_writes)
{
    queue->desc[head] = (struct descriptor){(u64)buffer, length, device_writes ? DESC_WRITE : 0, 0};
}

void blk_submit(struct virtq *queue, struct blk_request *request, u16 slot, u32 type, u64 sector, void *buffer, u32 length)
{
    u16 head = 3 * slot, status = head + 1;
    *request = (struct blk_request){.type = type, .sector = sector, .status = 0xff};
    queue->desc[head] = (struct descriptor){(u64)request, 16, DESC_NEXT, head + 1};
    if (length) {
        status = head + 2;
        queue->desc[head + 1] =
            (struct descriptor){(u64)buffer, length, DESC_NEXT | (type == BLK_READ ? DESC_WRITE : 0), status};
    }
    queue->desc[status] = (struct descriptor){(u64)&request->status, 1, DESC_WRITE, 0};
    virtq_offer(queue, head);
}
