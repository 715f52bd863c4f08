//! Drops are counted by the switch, and noted where the holder reads them a moment later.

use io_uring::opcode;
use io_uring::types::Timespec;

use crate::net::network::Network;
use crate::worker::device::Context;

/// The completion of a device's timeout; uplinks have others below it.
pub const SETTLE: u16 = 9;

/// What happened is noted so much later at the latest.
static MOMENT: Timespec = Timespec::new().nsec(50_000_000);

/// Note it in a moment, if that is not under way.
pub fn later(network: &mut Network, context: &Context<'_>) {
    if !std::mem::replace(&mut network.settling, true) {
        let timeout = opcode::Timeout::new(&MOMENT).build();
        // SAFETY: the time is static.
        unsafe { context.uring.push(timeout.user_data(context.io(SETTLE))) };
    }
}

/// Note what was dropped at all ports.
pub fn now(network: &mut Network, context: &mut Context<'_>) {
    network.settling = false;
    let slots: Vec<u16> = network.slots().collect();
    for slot in slots {
        if slot == context.token.slot {
            network.account(slot, context.page);
        } else if let Some((_, page)) = context.peers.get(slot) {
            network.account(slot, page);
        }
    }
}
