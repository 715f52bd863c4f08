/* A machine at 10.77.0.`ip` that pings 10.77.0.`peer` `pings` times with `size` bytes, and checks every byte; without
 * a peer it answers whoever asks, until it has answered `pings` (0: for ever). Lost ones are sent again, and counted.
 */
#include "net.h"

static struct nic nic;

static void answer(u32 count)
{
    for (u32 answered = 0; !count || answered < count;) {
        u32 length = nic_receive(&nic, nic_scratch);
        if (length)
            answered += nic_answer(&nic, nic_scratch, length);
        else
            nic_wait(&nic, TICK);
    }
}

int main(void)
{
    u8 peer = arg("peer", 0), mac[6];
    u32 pings = arg("pings", 0), lost = 0;
    u64 features = arg("features", 1) ? NIC_FEATURES | VIRTIO_F_EVENT_IDX : VIRTIO_NET_F_MAC;
    nic_begin(&nic, features, arg("ip", 2));
    check(!(read8(nic.device.common + VIRTIO_STATUS) & VIRTIO_NEEDS_RESET));
    print("MAC %x:%x:%x:%x:%x:%x\n", nic.mac[0], nic.mac[1], nic.mac[2], nic.mac[3], nic.mac[4], nic.mac[5]);
    if (!peer) {
        answer(pings);
        return 0;
    }
    if (!nic_resolve(&nic, peer, mac, 20 * SECOND))
        fail("nobody is 10.77.0.%u", peer);
    for (u32 sequence = 0; sequence < pings; sequence++)
        while (!nic_ping(&nic, peer, mac, sequence, arg("size", 56), SECOND))
            if (++lost == 20)
                fail("ping %u: no answer", sequence);
    print("PINGED %u LOST %u\n", pings, lost);
    return 0;
}
