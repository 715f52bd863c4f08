//! What a network does a moment later: note drops where the holder reads them, and have those try again who wait for buffers.

use io_uring::opcode;
use io_uring::types::Timespec;

use crate::net::network::Network;
use crate::worker::device::Context;

/// The completions of a device's timeouts; uplinks have others below them.
pub const SETTLE: u16 = 8;
/// See [`SETTLE`].
pub const TICK: u16 = 9;

/// What happened is noted so much later at the latest.
static MOMENT: Timespec = Timespec::new().nsec(50_000_000);

/// Who waits for buffers tries again after so long, also if there are none: it may have waited long enough.
static TURN: Timespec = Timespec::new().nsec(1_000_000);

/// Arrange for what is to be done later, as far as that is not under way.
pub fn later(network: &mut Network, context: &Context<'_>) {
    let held = network.has_held();
    let due = [(&mut network.settling, true, &MOMENT, SETTLE), (&mut network.ticking, held, &TURN, TICK)];
    for (under_way, wanted, time, value) in due {
        if wanted && !std::mem::replace(under_way, true) {
            // SAFETY: the time is static.
            unsafe { context.uring.push(opcode::Timeout::new(time).build().user_data(context.io(value))) };
        }
    }
}

/// The timeout `value` is over.
pub fn now(network: &mut Network, context: &mut Context<'_>, value: u16) {
    if value == TICK {
        network.ticking = false;
        return network.retry(None, &mut context.peers, (context.token.slot, context.wake));
    }
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
