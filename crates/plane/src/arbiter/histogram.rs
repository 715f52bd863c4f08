//! Times in buckets of a sixteenth of a power of two: a value is known within 3%.

use super::Nanos;

/// Buckets to the octave.
const STEPS: u32 = 16;

/// The first bucket ends at 1 µs, the last begins at 34 s.
const FIRST: u32 = 10;
const BUCKETS: usize = ((36 - FIRST) * STEPS) as usize;

/// How often each time was seen.
#[derive(Clone, Default)]
pub struct Histogram {
    counts: Vec<u32>,
    total: u32,
}

impl Histogram {
    /// One more.
    pub fn add(&mut self, time: Nanos) {
        if self.counts.is_empty() {
            self.counts.resize(BUCKETS, 0);
        }
        let count = &mut self.counts[bucket(time)];
        *count = count.saturating_add(1);
        self.total = self.total.saturating_add(1);
    }

    /// How many there are.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Halve all counts: what was long ago is forgotten.
    pub fn halve(&mut self) {
        self.counts.iter_mut().for_each(|count| *count /= 2);
        self.total = self.counts.iter().sum();
    }

    /// The buckets that are not empty, with their counts.
    pub fn rows(&self) -> Vec<(usize, u32)> {
        self.counts.iter().copied().enumerate().filter(|(_, count)| *count > 0).collect()
    }

    /// The time that this part of all stay below; between the ends of a bucket by proportion. 0 without any.
    pub fn quantile(&self, part: f64) -> Nanos {
        let rank = part.clamp(0.0, 1.0) * f64::from(self.total);
        let mut below = 0.0;
        let mut end = 0;
        for (bucket, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (from, to) = (start_of(bucket), start_of(bucket + 1));
            let count = f64::from(*count);
            if below + count >= rank {
                return from + ((to - from) as f64 * ((rank - below) / count).clamp(0.0, 1.0)) as Nanos;
            }
            (below, end) = (below + count, to);
        }
        end
    }

    /// The mean of those that are above the `part`-quantile; that quantile if there are none.
    pub fn mean_above(&self, part: f64) -> Nanos {
        let above = (1.0 - part.clamp(0.0, 1.0)) * f64::from(self.total);
        let (mut left, mut sum) = (above, 0.0);
        for (bucket, count) in self.counts.iter().enumerate().rev().filter(|(_, count)| **count > 0) {
            let (from, to) = (start_of(bucket) as f64, start_of(bucket + 1) as f64);
            let taken = f64::from(*count).min(left);
            sum += taken * (to - (to - from) * taken / f64::from(*count) / 2.0);
            left -= taken;
            if left <= 0.0 {
                break;
            }
        }
        if above > 0.0 { (sum / above) as Nanos } else { self.quantile(part) }
    }
}

fn bucket(time: Nanos) -> usize {
    let time = time.clamp(1 << FIRST, (1 << 36) - 1);
    let octave = time.ilog2();
    let step = (time >> (octave - STEPS.ilog2())) as u32 - STEPS;
    ((octave - FIRST) * STEPS + step) as usize
}

fn start_of(bucket: usize) -> Nanos {
    let (octave, step) = (bucket as u32 / STEPS + FIRST, bucket as u64 % u64::from(STEPS));
    (u64::from(STEPS) + step) << (octave - STEPS.ilog2())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_quantile_is_right_within_a_bucket(mut times in proptest::collection::vec(2_000..1u64 << 34, 1..300), part in 0.0..1.0f64) {
            let mut histogram = Histogram::default();
            times.iter().for_each(|time| histogram.add(*time));
            times.sort_unstable();
            let rank = ((part * times.len() as f64).ceil() as usize).clamp(1, times.len());
            let (exact, found) = (times[rank - 1] as f64, histogram.quantile(part) as f64);
            prop_assert!((found / exact - 1.0).abs() <= 1.0 / 16.0, "{found} instead of {exact}");
        }
    }

    proptest! {
        #[test]
        fn a_mean_of_the_slowest_is_right_within_a_bucket(mut times in proptest::collection::vec(2_000..1u64 << 34, 1..300), few in 1usize..300) {
            let mut histogram = Histogram::default();
            times.iter().for_each(|time| histogram.add(*time));
            times.sort_unstable();
            let slowest = &times[times.len() - few.min(times.len())..];
            let exact = slowest.iter().sum::<u64>() as f64 / slowest.len() as f64;
            let found = histogram.mean_above(1.0 - slowest.len() as f64 / times.len() as f64) as f64;
            prop_assert!((found / exact - 1.0).abs() <= 1.0 / 16.0, "{found} instead of {exact}");
        }
    }

    #[test]
    fn every_time_has_a_bucket() {
        let mut histogram = Histogram::default();
        for time in [0, 1, 1 << 10, (1 << 36) - 1, u64::MAX] {
            histogram.add(time);
        }
        assert_eq!(histogram.rows().iter().map(|(_, count)| count).sum::<u32>(), 5);
        histogram.halve();
        assert_eq!(histogram.total(), 2);
    }
}
