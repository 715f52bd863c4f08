//! Queues whose chains are completed in the order they were taken, before the turn ends: those of virtio-net.
//!
//! The used ring alone tells where such a queue is, so nothing is noted in the in-flight region: after a crash the next
//! worker goes on at the used index. Completions are published many at a time. A frame in several receive buffers needs
//! that, because its driver expects all of them with the first (virtio 1.3, 5.1.6.4).

use std::sync::atomic::{Ordering, fence};

use super::{Violation, VirtQueue};
use crate::chain::Buffers;

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
        let Some(head) = self.next_head(false)? else { return Ok(None) };
        self.walk(head, buffers)?;
        Ok(Some(head))
    }

    /// Chains that are offered and not taken.
    pub fn offered(&self) -> u16 {
        self.rings.avail_index().wrapping_sub(self.next_avail)
    }

    /// Whether so many chains are offered and not taken. The ring is looked at only if we know of fewer: its driver may be writing
    /// there.
    pub fn offers(&self, chains: u16) -> bool {
        self.seen.wrapping_sub(self.next_avail) >= chains || self.offered() >= chains
    }

    /// From now on the queue has something to do when so many chains are offered; 1 is as ever.
    pub fn want(&mut self, chains: u16) {
        self.wanted = chains.clamp(1, self.rings.size());
    }

    /// Whether as many are offered as are wanted.
    pub fn is_served(&self) -> bool {
        self.offered() >= self.wanted
    }

    /// Have the driver kick when it offers another chain, beside those that are not enough; how many are offered now.
    pub(super) fn ask_for_kick(&mut self) -> u16 {
        if self.event_idx {
            let wanted = if self.wanted > 1 { self.offered() } else { 0 };
            self.rings.set_avail_event(self.next_avail.wrapping_add(wanted));
        } else {
            self.rings.set_no_notify(false);
        }
        // Our wish before we look, the driver the other way round (2.7.13.3.1 and 2.7.10).
        fence(Ordering::SeqCst);
        self.offered()
    }

    /// Put the last `count` chains back that were taken and not staged.
    pub fn untake(&mut self, count: u16) {
        self.next_avail = self.next_avail.wrapping_sub(count);
    }

    /// The chain at `head` is done, with `length` bytes written into it; the driver sees it once it is published.
    pub fn stage(&mut self, head: u16, length: u32) {
        self.rings.put_used(self.next_used.wrapping_add(self.staged), head, length);
        self.staged += 1;
    }

    /// Show the driver what was staged. It is told at the next [`announce`](VirtQueue::announce).
    pub fn publish(&mut self) {
        if self.staged == 0 {
            return;
        }
        self.next_used = self.next_used.wrapping_add(std::mem::take(&mut self.staged));
        self.unannounced = true;
        self.rings.set_used_index(self.next_used);
        if !self.staged_heads.is_empty() {
            self.inflight.end_completions(&self.staged_heads, self.next_used);
            self.staged_heads.clear();
        }
    }
}
