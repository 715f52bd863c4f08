//! Queues whose chains are completed in the order they were taken, before the turn ends: those of virtio-net.
//!
//! The used ring alone tells where such a queue is, so nothing is noted in the in-flight region: after a crash the next
//! worker goes on at the used index. Completions are published many at a time. A frame in several receive buffers needs
//! that, because its driver expects all of them with the first (virtio 1.3, 5.1.6.4).

use std::sync::atomic::{Ordering, fence};

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::{Violation, VirtQueue};
use crate::chain::Buffers;

/// Of the used ring: where its index and its first element are, and the size of one (2.7.8).
const INDEX: u64 = 2;
const RING: u64 = 4;
const ELEMENT: u64 = 8;

impl VirtQueue {
    /// Take the next chain and fill `buffers` from it; `None` if there is none. It is to be staged, or to be put back by
    /// [`untake`](Self::untake).
    ///
    /// # Errors
    /// A rule that the driver broke.
    pub fn take_in_order(&mut self, buffers: &mut Buffers) -> Result<Option<u16>, Violation> {
        if self.memory.lost() || self.inflight.lost() {
            return Err(Violation::new("memory-lost", "the frontend has truncated guest memory"));
        }
        // Only a frontend that invents requests in flight has such.
        self.again.clear();
        if self.stopping.is_some() {
            return Ok(None);
        }
        self.next_chain(buffers)
    }

    /// Chains that are offered and not taken.
    pub fn offered(&self) -> u16 {
        let index = self.queue.avail_idx(self.memory.guest(), Ordering::Acquire);
        index.map_or(0, |index| index.0.wrapping_sub(self.queue.next_avail()))
    }

    /// From now on the queue has something to do when so many chains are offered; 1 is as ever.
    pub fn want(&mut self, chains: u16) {
        self.wanted = chains.clamp(1, self.queue.size());
    }

    /// Whether as many are offered as are wanted.
    pub fn is_served(&self) -> bool {
        self.offered() >= self.wanted
    }

    /// Have the driver kick when it offers another chain, beside those that are not enough; how many are offered now.
    pub(super) fn ask_for_kick(&mut self) -> u16 {
        let (memory, used) = (self.memory.guest(), self.queue.used_ring());
        // If the ring is not there any more, the next `take_in_order` says so.
        let _ = if self.queue.event_idx_enabled() {
            let index = self.queue.next_avail().wrapping_add(self.offered());
            let place = GuestAddress(used + RING + ELEMENT * u64::from(self.queue.size()));
            memory.store(index.to_le(), place, Ordering::Relaxed)
        } else {
            memory.store(0_u16, GuestAddress(used), Ordering::Relaxed)
        };
        // Our wish before we look, the driver the other way round (2.7.13.3.1 and 2.7.10).
        fence(Ordering::SeqCst);
        self.offered()
    }

    /// Put the last `count` chains back that were taken and not staged.
    pub fn untake(&mut self, count: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// The chain at `head` is done, with `length` bytes written into it; the driver sees it once it is published.
    ///
    /// # Errors
    /// If the used ring is not in guest memory any more.
    pub fn stage(&mut self, head: u16, length: u32) -> Result<(), Violation> {
        let place = self.queue.next_used().wrapping_add(self.staged) % self.queue.size();
        let element = [u32::from(head).to_le(), length.to_le()];
        let address = GuestAddress(self.queue.used_ring() + RING + ELEMENT * u64::from(place));
        self.memory.guest().write_obj(element, address).map_err(lost)?;
        self.staged += 1;
        Ok(())
    }

    /// Show the driver what was staged. It is told at the next [`announce`](VirtQueue::announce).
    ///
    /// # Errors
    /// If the used ring is not in guest memory any more.
    pub fn publish(&mut self) -> Result<(), Violation> {
        if self.staged == 0 {
            return Ok(());
        }
        let index = self.queue.next_used().wrapping_add(std::mem::take(&mut self.staged));
        self.queue.set_next_used(index);
        self.unannounced = true;
        let address = GuestAddress(self.queue.used_ring() + INDEX);
        self.memory.guest().store(index.to_le(), address, Ordering::Release).map_err(lost)
    }
}

fn lost(error: vm_memory::GuestMemoryError) -> Violation {
    Violation::new("used-ring", format!("the used ring: {error}"))
}
