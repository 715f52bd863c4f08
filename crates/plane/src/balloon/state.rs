//! What is known of a balloon, in the device's page: it outlives the worker, and the holder reads it without asking.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::stats::{STATS, Stats};
use crate::clock::Nanos;

/// Sizes are bytes. All zero at first.
#[repr(C)]
pub struct BalloonState {
    /// How large the guest says that the balloon is: nothing to rely on. The holder's.
    pub actual: AtomicU64,
    /// How often the guest has taken pages back that nobody offered it. The holder's.
    pub taken_back: AtomicU64,
    /// What the guest fills free pages with, if not 0 (5.5.6.5). The holder's.
    pub poison: AtomicU32,
    /// Which of `stats` the guest has told.
    told: AtomicU32,
    /// Given back by inflation since the device came.
    pub inflated: AtomicU64,
    /// Taken back by deflation, as the guest says.
    pub deflated: AtomicU64,
    /// Given back as free pages that the guest reported.
    pub reported: AtomicU64,
    stats: [AtomicU64; STATS],
    /// When they came, or 0.
    stats_at: AtomicU64,
}

impl BalloonState {
    /// The guest has told `stats` at `now`.
    pub fn set_stats(&self, stats: &Stats, now: Nanos) {
        let mut told = 0;
        for (index, (place, value)) in self.stats.iter().zip(stats.0).enumerate() {
            place.store(value.unwrap_or(0), Relaxed);
            told |= u32::from(value.is_some()) << index;
        }
        self.told.store(told, Relaxed);
        // Last, so that there is no time before there are statistics. One who looks meanwhile sees some of before.
        self.stats_at.store(now, Release);
    }

    /// The latest statistics and when they came, if there are any.
    pub fn stats(&self) -> Option<(Stats, Nanos)> {
        let at = self.stats_at.load(Acquire);
        let told = self.told.load(Relaxed);
        let value = |index: usize| (told >> index & 1 == 1).then(|| self.stats[index].load(Relaxed));
        (at != 0).then(|| (Stats(std::array::from_fn(value)), at))
    }

    /// Another guest, or another driver, from now on: what is counted stays.
    pub fn restart(&self) {
        self.stats_at.store(0, Relaxed);
        self.actual.store(0, Relaxed);
        self.poison.store(0, Relaxed);
    }
}
