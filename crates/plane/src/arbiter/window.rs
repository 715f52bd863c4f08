//! How much may be in flight at the device at once.
//!
//! A device with a long queue of its own serves in its own order; ours is kept only for what still waits with us.
//! While one node alone has requests there is no order to keep, and no window.

use super::Nanos;
use super::cost::UNIT;

/// How long a node counts as active after its last request.
const PRESENT: Nanos = 100_000_000;

/// The window while several are active.
const SHARED: u64 = 32 * UNIT;

/// The window, and what is in it, in units of cost.
pub(super) struct Window {
    in_flight: u64,
    size: u64,
    /// Who asked last, and until when others than it count as active.
    last: u32,
    contended_until: Nanos,
}

impl Window {
    pub fn new() -> Window {
        Window { in_flight: 0, size: SHARED, last: 0, contended_until: 0 }
    }

    /// `leaf` asks at `now`.
    pub fn seen(&mut self, now: Nanos, leaf: u32) {
        if std::mem::replace(&mut self.last, leaf) != leaf {
            self.contended_until = now + PRESENT;
        }
    }

    /// Whether one more request may go to the device.
    pub fn admits(&self, now: Nanos) -> bool {
        self.in_flight < self.size || now >= self.contended_until
    }

    pub fn enter(&mut self, cost: u32) {
        self.in_flight += u64::from(cost);
    }

    pub fn leave(&mut self, cost: u32) {
        self.in_flight -= u64::from(cost);
    }

    /// Its size in requests of 4 KiB; 0 while there is none.
    pub fn requests(&self, now: Nanos) -> u64 {
        if now >= self.contended_until { 0 } else { self.size / UNIT }
    }
}
