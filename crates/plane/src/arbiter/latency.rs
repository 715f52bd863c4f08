//! How long requests take, from the offer to the answer, and whether that is what was asked for.

use serde::{Deserialize, Serialize};

use super::Nanos;

/// Buckets to the octave: a value is known within 6%.
const STEPS: u32 = 8;

/// The first bucket ends at 1 µs, the last begins at 34 s.
const FIRST: u32 = 10;
const BUCKETS: usize = ((36 - FIRST) * STEPS) as usize;

/// A request weighs so much when it is counted, and less each second.
const FRESH: u32 = 1 << 12;

/// A histogram of latencies that forgets: after four seconds a request weighs a third.
#[derive(Default)]
pub(super) struct Latencies {
    counts: Vec<u32>,
}

impl Latencies {
    pub fn add(&mut self, latency: Nanos) {
        if self.counts.is_empty() {
            self.counts.resize(BUCKETS, 0);
        }
        let count = &mut self.counts[bucket(latency)];
        *count = count.saturating_add(FRESH);
    }

    /// A second has passed.
    pub fn age(&mut self) {
        for count in &mut self.counts {
            *count -= count.div_ceil(4);
        }
    }

    /// Add what `other` counted.
    pub fn merge(&mut self, other: &Latencies) {
        self.counts.resize(BUCKETS, 0);
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
    }

    /// The latency in µs that 99% stay below; 0 if there was none of late.
    pub fn p99_us(&self) -> u64 {
        let total: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        let mut above = total / 100;
        for (bucket, count) in self.counts.iter().enumerate().rev() {
            if u64::from(*count) > above {
                return end_of(bucket) / 1000;
            }
            above -= u64::from(*count);
        }
        0
    }
}

fn bucket(latency: Nanos) -> usize {
    let latency = latency.clamp(1 << FIRST, (1 << 36) - 1);
    let octave = latency.ilog2();
    let step = (latency >> (octave - STEPS.ilog2())) as u32 - STEPS;
    ((octave - FIRST) * STEPS + step) as usize
}

fn end_of(bucket: usize) -> Nanos {
    let (octave, step) = (bucket as u32 / STEPS + FIRST, bucket as u64 % u64::from(STEPS));
    (u64::from(STEPS) + step + 1) << (octave - STEPS.ilog2())
}

/// How a latency objective fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// There is none, or no request yet to tell.
    #[default]
    None,
    /// At most one in 100 requests takes longer.
    Met,
    /// More do.
    Missed,
}

/// The window is at most this far shrunk for an objective, in requests of 4 KiB, if not for the throughput of others.
const LEAST: f64 = 1.0;

/// A smaller window, and a larger one where others have too little.
pub(super) const SMALLER: f64 = 0.8;
const LARGER: f64 = 1.1;

/// What a window that an objective keeps small leaves the device to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// A smaller one would leave enough too.
    Enough,
    /// It has not been measured yet.
    Unknown,
    /// Not enough for those that have no objective.
    TooLittle,
}

/// So many seconds with the least window show whether it helps.
const PATIENCE: u32 = 5;

/// How long an objective that is not to be had is left alone before it is tried again.
const GIVEN_UP: Nanos = 30_000_000_000;

/// An objective, and the window that it needs.
pub(super) struct Goal {
    /// ns that 99% of the requests are to stay below; 0 for none.
    pub latency: Nanos,
    pub state: Objective,
    /// In requests of 4 KiB.
    pub window: f64,
    /// Requests of this tick, and those that took too long, by the device's doing.
    tick: (u32, u32),
    /// Requests of the last seconds, forgetting, and those that took too long.
    recent: (f64, f64),
    late: u32,
    /// The part that took too long while no window was kept small for it.
    free: f64,
    /// For how many seconds the window has been as small as it may be.
    least: u32,
    is_least: bool,
    given_up_until: Nanos,
}

impl Goal {
    pub fn new(latency: Nanos) -> Goal {
        Goal {
            latency,
            state: Objective::None,
            window: f64::INFINITY,
            tick: (0, 0),
            recent: (0.0, 0.0),
            late: 0,
            free: 1.0,
            least: 0,
            is_least: false,
            given_up_until: 0,
        }
    }

    /// A request took so long, and so much of it at the device.
    pub fn add(&mut self, latency: Nanos, device: Nanos) {
        let late = latency > self.latency;
        self.late += u32::from(late);
        self.tick.0 += 1;
        // What waited here for longer would do so behind a small window too.
        self.tick.1 += u32::from(late && device > latency / 2);
    }

    /// Whether others are to give way for it.
    pub fn is_pursued(&self, now: Nanos) -> bool {
        self.latency > 0 && now >= self.given_up_until
    }

    /// A tick has passed, with a window of `window`. Shrinks by a fifth when more than one in 100 took too long; grows
    /// back at a rate that balances this when one in 200 does.
    pub fn steer(&mut self, now: Nanos, window: f64, left: Left) {
        let (requests, late) = std::mem::take(&mut self.tick);
        self.recent.0 += f64::from(requests);
        self.recent.1 += f64::from(std::mem::take(&mut self.late));
        if requests == 0 || !self.is_pursued(now) {
            return;
        }
        self.window = self.window.min(window);
        if late * 100 > requests {
            self.is_least |= left == Left::TooLittle || self.window <= LEAST;
            match left {
                Left::Enough => self.window = (self.window * SMALLER).max(LEAST),
                Left::Unknown => {}
                Left::TooLittle => self.window *= LARGER,
            }
        } else {
            self.window *= 1.0 + 0.001 * f64::from(requests.min(10));
        }
    }

    /// A second has passed. True if the state has changed.
    pub fn judge(&mut self, now: Nanos) -> bool {
        let (requests, late) = self.recent;
        self.recent = (requests * 0.8, late * 0.8);
        let before = self.state;
        if requests < 20.0 {
            return false;
        }
        if late > requests * 0.01 {
            self.state = Objective::Missed;
        } else if late <= requests * 0.005 || before == Objective::None {
            self.state = Objective::Met;
        }
        self.consider_giving_up(now, late / requests);
        self.state != before
    }

    /// If a window as small as may be leaves more than half of the requests late that were so without one, the device
    /// is not to blame, and others need not suffer.
    fn consider_giving_up(&mut self, now: Nanos, late: f64) {
        if !self.is_pursued(now) {
            self.free = late;
        } else if std::mem::take(&mut self.is_least) && late > 0.01 {
            self.least += 1;
        } else {
            self.least = 0;
        }
        if self.least >= PATIENCE && late > self.free / 2.0 {
            self.given_up_until = now + GIVEN_UP;
            self.window = f64::INFINITY;
            self.least = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::SECOND;

    #[test]
    fn the_99th_percentile_is_known_within_a_bucket() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.p99_us(), 0);
        for number in 1..=1000 {
            latencies.add(number * 10_000);
        }
        let p99 = latencies.p99_us();
        assert!((9_900..11_200).contains(&p99), "{p99} µs");
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let mut latencies = Latencies::default();
        latencies.add(1_000_000_000);
        for _ in 0..60 {
            latencies.age();
        }
        assert_eq!(latencies.p99_us(), 0);
    }

    #[test]
    fn every_latency_has_a_bucket() {
        for latency in [0, 1, 1023, 1024, 1 << 35, (1 << 36) - 1, u64::MAX] {
            assert!(bucket(latency) < BUCKETS);
        }
    }

    #[test]
    fn an_objective_that_is_not_to_be_had_is_given_up_for_a_while() {
        let mut goal = Goal::new(1000);
        let mut now = 0;
        for _ in 0..20 {
            seconds(&mut goal, &mut now, 1, 2000, 1500);
        }
        assert_eq!(goal.state, Objective::Missed);
        assert!(!goal.is_pursued(now) && goal.window.is_infinite());
        assert!(goal.is_pursued(now + GIVEN_UP));
    }

    /// All requests take so long, and so much of it at the device.
    fn seconds(goal: &mut Goal, now: &mut Nanos, count: u32, latency: Nanos, device: Nanos) {
        for _ in 0..count {
            for _ in 0..50 {
                *now += 20_000_000;
                goal.add(latency, device);
                goal.steer(*now, 32.0, Left::Enough);
            }
            goal.judge(*now);
        }
    }

    #[test]
    fn no_window_is_shrunk_for_what_waited_before_the_device() {
        let (mut goal, mut now) = (Goal::new(1000), 0);
        seconds(&mut goal, &mut now, 20, 5000, 400);
        assert_eq!(goal.state, Objective::Missed);
        assert!(goal.window >= 32.0, "{}", goal.window);
    }

    #[test]
    fn the_window_is_not_shrunk_below_what_others_are_left_and_given_up_if_that_does_not_help() {
        let (mut goal, mut now) = (Goal::new(1000), 0);
        for _ in 0..50 {
            now += 20_000_000;
            goal.add(2000, 2000);
            goal.steer(now, 32.0, if goal.window <= 8.0 { Left::TooLittle } else { Left::Enough });
        }
        assert!((6.0..=9.0).contains(&goal.window), "{}", goal.window);
        for second in 0..10 {
            goal.judge(now);
            now += SECOND;
            (0..20).for_each(|_| goal.add(2000, 2000));
            goal.steer(now, 32.0, Left::TooLittle);
            assert_eq!(goal.is_pursued(now), second < PATIENCE - 1, "after {second} s");
            if !goal.is_pursued(now) {
                return;
            }
        }
    }
}
