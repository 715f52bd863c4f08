//! How much a port may send to many at once.

use crate::clock::Nanos;

const SECOND: Nanos = 1_000_000_000;

/// A token bucket of frames, which holds a quarter of a second's.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: u64,
    /// In frames times nanoseconds of a second.
    level: u64,
    filled: Nanos,
}

impl Bucket {
    /// Full, for `rate` frames/s.
    pub fn new(rate: u32) -> Bucket {
        let mut bucket = Bucket { rate: rate.into(), level: 0, filled: 0 };
        bucket.level = bucket.most();
        bucket
    }

    /// Whether `frames` more may go at `now`. An empty bucket lets none go, a bucket with one frame a whole burst.
    pub fn take(&mut self, now: Nanos, frames: u32) -> bool {
        let passed = now.saturating_sub(self.filled).min(SECOND);
        self.level = (self.level + passed * self.rate).min(self.most());
        self.filled = self.filled.max(now);
        if self.level < SECOND {
            return false;
        }
        self.level = self.level.saturating_sub(u64::from(frames).saturating_mul(SECOND));
        true
    }

    fn most(&self) -> u64 {
        (self.rate / 4).max(8) * SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_after_the_burst() {
        let mut bucket = Bucket::new(1000);
        assert_eq!((0..2000).filter(|_| bucket.take(0, 1)).count(), 250);
        let sent = (0..20_000).filter(|step| bucket.take(step * 100_000, 1)).count();
        assert!((1998..=2001).contains(&sent), "{sent} in two seconds");
    }

    #[test]
    fn one_may_always_send_a_little() {
        let mut bucket = Bucket::new(1);
        assert_eq!((0..20).filter(|_| bucket.take(0, 1)).count(), 8);
        assert!(bucket.take(SECOND, 1));
        assert!(!bucket.take(SECOND, 1));
    }
}
