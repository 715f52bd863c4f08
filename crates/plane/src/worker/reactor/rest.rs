//! The end of a turn: look around for more work, and sleep.

use std::io;
use std::time::Duration;

use super::Reactor;
use crate::clock::{self, Nanos};
use crate::worker::polling::For;
use crate::worker::queue::VirtQueue;

/// Looks around between two looks at the clock, which costs as much as several.
const LOOKS: usize = 8;

impl Reactor {
    /// Sleep, after looking around for a while if work has come quickly of late. What was queued goes to the kernel
    /// with the same system call, if there is no more to do before.
    pub(super) fn rest(&mut self) -> io::Result<()> {
        // However busy others keep us.
        self.look();
        if self.busy() {
            return self.uring.submit();
        }
        let start = clock::now();
        let whom = match (self.taken, self.threaded) {
            (0, _) => self.effects.asked.take().map_or(For::Guest, For::Peer),
            (_, 0) => For::Disk,
            _ => For::Thread,
        };
        let until = self.due_in();
        let window = self.spinning.window(start, whom);
        if self.look_around(start, whom, until.map_or(window, |until| window.min(until)))? {
            return Ok(());
        }
        let mut polled = std::mem::take(&mut self.polled);
        for (slot, index) in polled.drain(..) {
            if self.queue(slot, index).is_some_and(VirtQueue::end_polling) {
                self.wake(slot, index);
            }
        }
        self.polled = polled;
        if self.busy() {
            return self.uring.submit();
        }
        // The holder does not read its socket only when it is stuck or about to go.
        let stuck = (!self.outbox.is_empty()).then_some(Duration::from_millis(10));
        let spun = Duration::from_nanos(clock::now() - start);
        let due = until.map(|until| until.saturating_sub(spun));
        self.uring.submit_and_wait([stuck, due].into_iter().flatten().min())?;
        self.spinning.learn(whom, Duration::from_nanos(clock::now() - start));
        Ok(())
    }

    fn busy(&self) -> bool {
        !self.ready.is_empty() || self.uring.has_completions() || self.uring.tasks.has_ready() || self.closed
    }

    /// Look at the rings whose drivers do not kick.
    fn look(&mut self) {
        for place in 0..self.polled.len() {
            let (slot, index) = self.polled[place];
            if self.queue(slot, index).is_some_and(|queue| queue.wants_service()) {
                self.wake(slot, index);
            }
        }
    }

    /// Spin for `window` from `start` on; true if there is work. The next turn takes note of that.
    fn look_around(&mut self, start: Nanos, whom: For, window: Duration) -> io::Result<bool> {
        if window.is_zero() {
            return Ok(false);
        }
        self.spinning.begin(start, whom);
        self.uring.submit()?;
        loop {
            for _ in 0..LOOKS {
                self.look();
                if self.busy() {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            if matches!(whom, For::Peer(_)) {
                std::thread::yield_now();
            }
            let now = clock::now();
            self.spinning.look(now);
            if Duration::from_nanos(now - start) >= window {
                self.spinning.missed(now);
                return Ok(false);
            }
        }
    }
}
