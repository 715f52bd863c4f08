//! How long to look for work before sleeping: a wake-up costs 30 to 60 µs, spinning costs a CPU.
//!
//! The window grows while work arrives soon after we slept, and shuts when it takes longer than any window: a
//! worker without work never spins. (QEMU's aio poll has the same idea.) A device and a guest have their own pace each,
//! so what we learn from waiting for one says nothing of the other.

use std::time::Duration;

/// Longest window. Beyond it a spinning CPU costs more than the wake-up saves, and may be the very CPU that the guest
/// waits for.
const LONGEST: Duration = Duration::from_micros(32);

/// First window after a closed one.
const FIRST: Duration = Duration::from_micros(8);

/// The window.
#[derive(Default)]
pub struct Polling {
    window: Duration,
}

impl Polling {
    /// How long to spin now.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// Work arrived after `idle` (spinning and sleeping).
    pub fn learn(&mut self, idle: Duration) {
        if idle <= self.window {
            return;
        }
        self.window = if idle > LONGEST { Duration::ZERO } else { (self.window * 2).clamp(FIRST, LONGEST) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_opens_with_quick_work_and_shuts_with_slow() {
        let mut polling = Polling::default();
        assert_eq!(polling.window(), Duration::ZERO);
        for _ in 0..10 {
            polling.learn(Duration::from_micros(30));
        }
        assert!(polling.window() >= Duration::from_micros(30) && polling.window() <= LONGEST);
        polling.learn(Duration::from_millis(1));
        assert_eq!(polling.window(), Duration::ZERO);
    }
}
