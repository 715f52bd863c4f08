//! Queues whose drivers are in no hurry to know what was used: those that guests send by.

use super::VirtQueue;
use crate::clock::Nanos;

/// So long a lazy queue's driver waits for its interrupt, ns. A sender that cannot go on without may still have several
/// Gbit/s, with two large frames at a time.
const LAZY: Nanos = 200_000;

/// The same of a single chain, which hardly anybody waits for: longer than an answer takes, with which the driver sees it too.
const LAZY_ONE: Nanos = 2_000_000;

/// One part in so many of a lazy queue may be used without its driver's knowing.
const LAZY_PART: u16 = 4;

impl VirtQueue {
    /// Until when the driver of a lazy queue may be left without an interrupt for what was used; most of them have a look
    /// before, when another queue interrupts. It may not if that is much, or the queue is to stop.
    pub fn defers(&mut self, now: Nanos) -> Option<Nanos> {
        self.publish();
        if !self.lazy || !self.unannounced || self.owed || self.stopping.is_some() {
            return None;
        }
        self.note_known();
        let unknown = self.next_used.wrapping_sub(self.announced);
        if unknown >= self.rings.size() / LAZY_PART {
            return None;
        }
        if unknown == 0 {
            self.unannounced = false;
            return None;
        }
        let begun = self.unknown_since.filter(|(_, used)| self.announced.wrapping_sub(*used) > u16::MAX / 2);
        let (since, _) = *self.unknown_since.insert(begun.unwrap_or((now, self.next_used)));
        let until = since + if unknown == 1 { LAZY_ONE } else { LAZY };
        (now < until).then_some(until)
    }

    /// The driver has had a look since it was told, if it wants to be told of what comes behind that (virtio 1.3, 2.7.10).
    fn note_known(&mut self) {
        if self.event_idx {
            let event = self.rings.used_event();
            let ahead = event.wrapping_sub(self.announced);
            if ahead <= self.next_used.wrapping_sub(self.announced) {
                self.announced = event;
            }
        }
    }
}
