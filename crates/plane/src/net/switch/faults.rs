//! Faults on purpose: a link that loses, delays, doubles, reorders or cuts, for testing what runs in the guests.
//!
//! A port's faults are those of its cable: they meet what it sends and what it gets.

use serde::{Deserialize, Serialize};

use super::reason::DropReason;
use crate::clock::Nanos;

/// Longest delay, of delay and of jitter, µs. Frames are kept as long.
const LONGEST: u32 = 10_000_000;

/// Least time that others have to overtake a frame, ns.
const OVERTAKEN: Nanos = 1_000_000;

/// Most ports that one can be parted from by name.
const MAX_PARTED: usize = 256;

/// What is to happen to a port's frames.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultPlan {
    /// Part of the frames that are lost, 0 to 1.
    pub loss: f64,
    /// Every frame is so long under way, in µs.
    pub delay_us: u32,
    /// And up to so much longer, at random, in order.
    pub jitter_us: u32,
    /// Part of the frames that come twice.
    pub duplicate: f64,
    /// Part of the frames that take twice as long and a millisecond more, so that others overtake them.
    pub reorder: f64,
    /// No frame gets through.
    pub partition: Partition,
    /// Start of the random numbers: the same frames meet the same faults.
    pub seed: u64,
}

/// Between whom no frame gets through.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Partition {
    /// The port and all others, or none.
    All(bool),
    /// The port and those with these names.
    From(Vec<String>),
}

impl Default for Partition {
    fn default() -> Partition {
        Partition::All(false)
    }
}

impl FaultPlan {
    /// Check the bounds.
    ///
    /// # Errors
    /// A sentence that names the field, the value and the bound.
    pub fn check(&self) -> Result<(), String> {
        for (name, rate) in [("loss", self.loss), ("duplicate", self.duplicate), ("reorder", self.reorder)] {
            if !(0.0..=1.0).contains(&rate) {
                return Err(format!("{name} is {rate}, not between 0 and 1"));
            }
        }
        for (name, us) in [("delay_us", self.delay_us), ("jitter_us", self.jitter_us)] {
            if us > LONGEST {
                return Err(format!("{name} is {us}, over {LONGEST}"));
            }
        }
        match &self.partition {
            Partition::From(ids) if ids.len() > MAX_PARTED => {
                Err(format!("partition names {} ports, over {MAX_PARTED}", ids.len()))
            }
            _ => Ok(()),
        }
    }
}

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the port.
    Out = 0,
    /// To it.
    In = 1,
}

/// What becomes of a frame that is not lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// How long it is under way, ns.
    pub delay: Nanos,
    /// It comes twice.
    pub twice: bool,
}

/// The faults of a port.
#[derive(Clone, Debug)]
pub struct Faults {
    plan: FaultPlan,
    random: [u64; 2],
    /// When the last frame of each way arrives.
    last: [Nanos; 2],
}

impl Faults {
    /// As `plan` has it.
    pub fn new(plan: FaultPlan) -> Faults {
        // Any odd number serves; the seeds 0 and 1, and both ways, must not be the same.
        let seed = plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6e61_6761_7961_0001;
        Faults { plan, random: [seed | 1, seed.rotate_left(32) | 1], last: [0; 2] }
    }

    /// What becomes of a frame that goes `way`, between the port and `other`.
    ///
    /// # Errors
    /// Why it is lost.
    pub fn judge(&mut self, now: Nanos, way: Way, other: &str) -> Result<Fate, DropReason> {
        let parted = match &self.plan.partition {
            Partition::All(all) => *all,
            Partition::From(names) => names.iter().any(|name| name == other),
        };
        if parted {
            return Err(DropReason::FaultPartition);
        }
        let way = way as usize;
        // As many numbers for each frame, whatever becomes of it: one fault does not change the others.
        let [lost, jitter, twice, late] = std::array::from_fn(|_| self.draw(way));
        if lost < self.plan.loss {
            return Err(DropReason::FaultLoss);
        }
        let jitter = (jitter * f64::from(self.plan.jitter_us) * 1000.0) as Nanos;
        let delay = Nanos::from(self.plan.delay_us) * 1000 + jitter;
        let twice = twice < self.plan.duplicate;
        if late < self.plan.reorder {
            return Ok(Fate { delay: 2 * delay + OVERTAKEN, twice });
        }
        let due = (now + delay).max(self.last[way]);
        if delay > 0 {
            self.last[way] = due;
        }
        let delay = if delay == 0 { 0 } else { due - now };
        Ok(Fate { delay, twice })
    }

    /// From 0 to 1, without 1: xorshift64* (Vigna, 2016).
    fn draw(&mut self, way: usize) -> f64 {
        let random = &mut self.random[way];
        *random ^= *random >> 12;
        *random ^= *random << 25;
        *random ^= *random >> 27;
        (random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(plan: FaultPlan) -> Vec<Result<Fate, DropReason>> {
        let mut faults = Faults::new(plan);
        (0..4000).map(|frame| faults.judge(frame * 1000, Way::Out, "m1/net0")).collect()
    }

    #[test]
    fn a_rate_is_kept_and_a_seed_repeats_it() {
        let plan = FaultPlan { loss: 0.25, seed: 7, ..FaultPlan::default() };
        let first = fates(plan.clone());
        let lost = first.iter().filter(|fate| **fate == Err(DropReason::FaultLoss)).count();
        assert!((900..1100).contains(&lost), "{lost} of 4000");
        assert_eq!(first, fates(plan.clone()));
        assert_ne!(first, fates(FaultPlan { seed: 8, ..plan }));
    }

    #[test]
    fn jitter_keeps_the_order_and_reordering_does_not() {
        let arrivals = |plan| {
            let fates = fates(plan).into_iter().enumerate();
            fates.map(|(frame, fate)| frame as u64 * 1000 + fate.unwrap().delay).collect::<Vec<_>>()
        };
        let plan = FaultPlan { delay_us: 100, jitter_us: 50, ..FaultPlan::default() };
        let jitter = arrivals(plan.clone());
        assert!(jitter.is_sorted());
        assert!(
            jitter
                .iter()
                .enumerate()
                .all(|(frame, due)| (100_000..=150_000).contains(&(due - frame as u64 * 1000)))
        );
        assert!(!arrivals(FaultPlan { reorder: 0.1, ..plan }).is_sorted());
        assert!(!arrivals(FaultPlan { reorder: 0.1, ..FaultPlan::default() }).is_sorted());
    }

    #[test]
    fn a_partition_is_from_all_or_from_those_named() {
        let judge =
            |plan: &str, other| Faults::new(serde_json::from_str(plan).unwrap()).judge(0, Way::In, other);
        let some = r#"{"partition": ["web/net0"]}"#;
        assert_eq!(judge(some, "web/net0"), Err(DropReason::FaultPartition));
        assert_eq!(judge(some, "db/net0"), Ok(Fate::default()));
        assert_eq!(judge(r#"{"partition": true}"#, "db/net0"), Err(DropReason::FaultPartition));
        assert_eq!(judge(r#"{"partition": false}"#, "db/net0"), Ok(Fate::default()));
    }

    #[test]
    fn plans_out_of_bounds_are_refused() {
        for wrong in [r#"{"loss": 1.5}"#, r#"{"jitter_us": 10000001}"#, r#"{"duplicate": -1}"#] {
            serde_json::from_str::<FaultPlan>(wrong).unwrap().check().unwrap_err();
        }
        serde_json::from_str::<FaultPlan>(r#"{"partition": 7}"#).unwrap_err();
    }
}
