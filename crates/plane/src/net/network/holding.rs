//! Frames that stay in their senders' rings until their receiver has buffers ([`Patience`]).

use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::{Network, Peers, Port, receive_queue};
use crate::clock::Nanos;
use crate::net::switch::Delivery;

/// Bytes that a receive buffer that may be merged has at least, as far as we reckon before we look: Linux's have 1.5 KiB or more.
const BUFFER: usize = 1024;

impl Network {
    /// Whether a frame of `length` bytes from the transmit queue `from` stays in its ring, since the guest that it is for has too
    /// few buffers and senders still wait for it. Its driver kicks then when it has more.
    pub(super) fn holds(
        &mut self,
        now: Nanos,
        peers: &mut Peers<'_>,
        from: (u16, Option<u16>),
        (out, flow, length): (&[Delivery], u32, usize),
    ) -> bool {
        let ([delivery], (sender, Some(queue))) = (out, from) else { return false };
        let slot = delivery.port as u16;
        let Some(Some(Port::Guest { patience, link: true, .. })) = self.ports.get_mut(usize::from(slot))
        else {
            return false;
        };
        let Some((queues, page)) = peers.get(slot) else { return false };
        let Some(index) = receive_queue(queues, page, flow) else { return false };
        let Some(receive) = queues[usize::from(index)].as_mut() else { return false };
        let merges = receive.features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        let needed = if merges { 1 + length / BUFFER } else { 1 };
        if usize::from(receive.offered()) >= needed {
            patience.served(now);
            return false;
        }
        if !patience.waits(now) {
            return false;
        }
        receive.want(needed as u16);
        peers.wake(slot, index);
        self.held.push((slot, (sender, queue)));
        true
    }

    /// Whether a sender waits for buffers of the guest at `slot`.
    pub fn is_awaited(&self, slot: u16) -> bool {
        self.held.iter().any(|(receiver, _)| *receiver == slot)
    }

    /// Whether any sender waits.
    pub fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Have those try again who wait for `slot`, or for anybody; `own` are the place and the queues of the device that works.
    pub fn retry(&mut self, slot: Option<u16>, peers: &mut Peers<'_>, own: (u16, &mut Vec<u16>)) {
        self.held.retain(|(receiver, (sender, queue))| {
            let due = slot.is_none_or(|slot| slot == *receiver);
            if due && *sender == own.0 {
                own.1.push(*queue);
            } else if due {
                peers.wake(*sender, *queue);
            }
            !due
        });
    }
}
