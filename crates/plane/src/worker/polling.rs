//! How long to look for work before sleeping: a wake-up costs 30 to 60 µs, spinning costs a CPU.
//!
//! A window grows while work arrives soon after we slept, and shuts when it takes longer than the window may ever be: a
//! worker without work never spins. (QEMU's aio poll has the same idea.) A device and a guest have their own pace each,
//! so what we learn from waiting for one says nothing of the other.

use std::time::Duration;

/// Longest window for a disk. A device answers a lone request after 50 to 100 µs, and spinning through that costs
/// twice the CPU of a sleep; with many in flight the next answer is a few µs away.
pub const DISK: Duration = Duration::from_micros(20);

/// Longest window for a guest that was just answered: its wake-up and its next request take 30 to 50 µs.
pub const GUEST: Duration = Duration::from_micros(50);

/// First window after a closed one.
const FIRST: Duration = Duration::from_micros(8);

/// What a wake-up across CPUs adds to the time that we seem to have slept.
const WAKE_UP: Duration = Duration::from_micros(30);

/// A window.
pub struct Polling {
    window: Duration,
    longest: Duration,
}

impl Polling {
    /// Closed at first; never longer than `longest`.
    pub fn new(longest: Duration) -> Polling {
        Polling { window: Duration::ZERO, longest }
    }

    /// How long to spin now.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// Work arrived after `idle` (spinning and sleeping).
    pub fn learn(&mut self, idle: Duration) {
        if idle <= self.window {
            return;
        }
        self.window = if idle.saturating_sub(WAKE_UP) <= self.longest {
            (self.window * 2).clamp(FIRST, self.longest)
        } else if self.window > FIRST {
            self.window / 2
        } else {
            Duration::ZERO
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_opens_with_quick_work_and_shuts_with_slow() {
        let mut polling = Polling::new(GUEST);
        assert_eq!(polling.window(), Duration::ZERO);
        for _ in 0..10 {
            polling.learn(Duration::from_micros(70));
        }
        assert_eq!(polling.window(), GUEST);
        for _ in 0..10 {
            polling.learn(Duration::from_millis(1));
        }
        assert_eq!(polling.window(), Duration::ZERO);
    }

    #[test]
    fn a_device_that_is_slow_is_not_waited_for_by_spinning() {
        let mut polling = Polling::new(DISK);
        polling.learn(DISK + WAKE_UP + Duration::from_micros(5));
        assert_eq!(polling.window(), Duration::ZERO);
    }
}
