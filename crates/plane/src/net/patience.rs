//! How long senders wait for a guest that has no buffer for their frames.
//!
//! A frame between two guests is left in its sender's ring for a while rather than dropped: a sender that sees no completion
//! slows down, which costs nobody a retransmission. But what is behind it in the ring waits too, perhaps for another receiver, so
//! a receiver may use only so much of others' time: half of it, and 20 ms at once. What has used that up loses its frames.

use crate::clock::Nanos;

/// Most that can be saved up, ns.
const MOST: Nanos = 20_000_000;

/// With so much again after all was used, senders wait again.
const AGAIN: Nanos = MOST / 4;

/// Of one receiver.
#[derive(Debug)]
pub struct Patience {
    left: Nanos,
    at: Nanos,
    waiting: bool,
    exhausted: bool,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { left: MOST, at: 0, waiting: false, exhausted: false }
    }
}

impl Patience {
    /// There is no buffer: whether a sender waits for one.
    pub fn waits(&mut self, now: Nanos) -> bool {
        self.pass(now);
        if self.left == 0 {
            self.exhausted = true;
        } else if self.left > AGAIN {
            self.exhausted = false;
        }
        self.waiting = !self.exhausted;
        self.waiting
    }

    /// There was one.
    pub fn served(&mut self, now: Nanos) {
        if self.waiting {
            self.pass(now);
            self.waiting = false;
        }
    }

    fn pass(&mut self, now: Nanos) {
        let passed = now.saturating_sub(self.at);
        self.at = now;
        self.left =
            if self.waiting { self.left.saturating_sub(passed) } else { (self.left + passed / 2).min(MOST) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Nanos = 1_000_000;

    #[test]
    fn a_short_wait_is_forgotten_and_a_long_one_ends() {
        let mut patience = Patience::default();
        for turn in 0..100 {
            assert!(patience.waits(turn * 10 * MS));
            patience.served(turn * 10 * MS + 2 * MS);
        }
        let start = 2000 * MS;
        let waited = (0..).take_while(|ms| patience.waits(start + ms * MS)).count();
        assert_eq!(waited, 20);
        assert!(!patience.waits(start + 25 * MS));
        assert!(patience.waits(start + 40 * MS), "after a while it may wait again");
    }

    proptest! {
        #[test]
        fn whatever_a_receiver_does_half_of_the_time_is_the_senders(
            steps in prop::collection::vec((0..3 * MS, any::<bool>()), 1..400),
        ) {
            let mut patience = Patience::default();
            let (mut now, mut waited, mut waiting) = (0, 0, false);
            for (step, buffer) in steps {
                now += step;
                waited += if waiting { step } else { 0 };
                if buffer {
                    patience.served(now);
                    waiting = false;
                } else {
                    waiting = patience.waits(now);
                }
            }
            // A wait is noticed to be too long when the next step comes.
            prop_assert!(waited <= now / 2 + MOST + 3 * MS, "{waited} of {now}");
        }
    }
}
