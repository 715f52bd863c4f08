//! What the device can do, as far as it has been seen busy.

/// Requests up to this size on average tell of IOPS, those from the other on of bytes a second.
const SMALL: u64 = 16 << 10;
const LARGE: u64 = 64 << 10;

/// A new measurement counts by so much.
const WEIGHT: f64 = 0.1;

/// IOPS and bytes/s of a device with more to do than it can; 0 until that has been seen.
#[derive(Default, Clone, Copy)]
pub(super) struct Capacity {
    pub iops: f64,
    pub bytes: f64,
}

impl Capacity {
    /// The device answered so many requests with so many bytes in `nanos`, and was busy all the time.
    pub fn learn(&mut self, nanos: u64, answers: u64, bytes: u64) {
        if answers == 0 || nanos == 0 {
            return;
        }
        let seconds = nanos as f64 / 1e9;
        if bytes / answers <= SMALL {
            average(&mut self.iops, answers as f64 / seconds);
        } else if bytes / answers >= LARGE {
            average(&mut self.bytes, bytes as f64 / seconds);
        }
    }
}

fn average(value: &mut f64, sample: f64) {
    *value = if *value == 0.0 { sample } else { *value + (sample - *value) * WEIGHT };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_requests_tell_of_iops_and_large_ones_of_bandwidth() {
        let mut capacity = Capacity::default();
        capacity.learn(1_000_000_000, 50_000, 50_000 * 4096);
        assert_eq!((capacity.iops, capacity.bytes), (50_000.0, 0.0));
        capacity.learn(500_000_000, 500, 500 << 20);
        assert_eq!((capacity.iops, capacity.bytes), (50_000.0, f64::from(1000 << 20)));
        for _ in 0..100 {
            capacity.learn(1_000_000_000, 20_000, 20_000 * 4096);
        }
        assert!((capacity.iops - 20_000.0).abs() < 20.0);
    }
}
