//! Frames that stay in their senders' rings until their receiver has buffers ([`Patience`]).

use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::{Network, Peers, Port, Sent, receive_queue};
use crate::clock::Nanos;
use crate::net::frame::Front;
use crate::net::header::Offload;
use crate::net::switch::{Delivery, Verdict};

/// Bytes that a receive buffer that may be merged has at least, as far as we reckon before we look: Linux's have 1.5 KiB or more.
const BUFFER: usize = 1024;

/// A frame that stays in its ring, with what the switch said: it is to be counted once.
pub(super) struct Decided {
    /// Its port and transmit queue.
    pub from: (u16, u16),
    front: Front,
    length: usize,
    offload: Offload,
    verdict: Verdict,
    out: Vec<Delivery>,
    /// Of the switch then.
    generation: u32,
}

impl Network {
    /// What the switch has said of this frame, in `out` where it goes. The guest may have put another one in its place, and
    /// rules may have changed: then nothing is known.
    pub(super) fn known(
        &mut self,
        from: u16,
        queue: Option<u16>,
        sent: &Sent<'_>,
        out: &mut Vec<Delivery>,
    ) -> Option<Verdict> {
        let place =
            self.decided.iter().position(|decided| Some(decided.from) == queue.map(|queue| (from, queue)))?;
        let decided = self.decided.swap_remove(place);
        let same = decided.generation == self.switch.generation()
            && (decided.length, decided.offload) == (sent.length, *sent.offload)
            && decided.front.frame() == sent.front.frame();
        same.then(|| {
            out.extend(decided.out);
            decided.verdict
        })
    }

    /// The frame stays in its ring; the switch has said this.
    pub(super) fn remember(
        &mut self,
        from: u16,
        queue: Option<u16>,
        sent: &Sent<'_>,
        (verdict, out): (Verdict, &[Delivery]),
    ) {
        let Some(queue) = queue else { return };
        self.decided.push(Decided {
            from: (from, queue),
            front: sent.front.clone(),
            length: sent.length,
            offload: *sent.offload,
            verdict,
            out: out.to_vec(),
            generation: self.switch.generation(),
        });
    }

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
        let needed = if merges { 1 + (length / BUFFER) as u16 } else { 1 };
        if receive.offers(needed) {
            patience.served(now);
            return false;
        }
        if !patience.waits(now) {
            return false;
        }
        receive.want(needed);
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
