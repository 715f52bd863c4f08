/* Takes a NIC, pings 10.77.0.`peer` from 10.77.0.`ip`, returns it; as many times as the command line says. */
#include "hotplug.h"
#include "guests/net.h"

static struct nic nic;

int main(void)
{
    hotplug_begin();
    for (u64 round = 0; round < arg("nics", 1); round++) {
        u8 peer = arg("peer", 3), mac[6];
        hotplug_device();
        memset(&nic, 0, sizeof nic);
        nic_begin(&nic, NIC_FEATURES | VIRTIO_F_EVENT_IDX, arg("ip", 2));
        if (!nic_resolve(&nic, peer, mac, 20 * SECOND))
            fail("nobody is 10.77.0.%u", peer);
        for (u32 sequence = 0; sequence < 20; sequence++)
            while (!nic_ping(&nic, peer, mac, sequence, 56, SECOND))
                print("LOST %u\n", sequence);
        write8(nic.device.common + VIRTIO_STATUS, 0); /* the driver lets go */
        check(read8(nic.device.common + VIRTIO_STATUS) == 0);
        hotplug_return();
    }
    return 0;
}
