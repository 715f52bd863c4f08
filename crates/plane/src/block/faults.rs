//! Faults on purpose: a disk that is slow, fails, tears, sticks or is full, for testing what runs in the guest.
//!
//! They are laid upon requests before these reach the disk, and the disk knows nothing of them: a flush that is made to
//! fail has lost nothing, and flushes succeed again when the faults are gone.

use std::rc::Rc;
use std::time::{Duration, Instant};

use io_uring::opcode;
use io_uring::types::Timespec;
use serde::{Deserialize, Serialize};

use crate::block::{Operation, Request, SECTOR};
use crate::uring::Uring;

/// Longest delay, of latency and of jitter. What is to wait for longer can be stuck.
pub const LONGEST: Duration = Duration::from_secs(60);

/// What fails a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum FaultError {
    /// The guest is told of an I/O error.
    #[default]
    #[serde(rename = "EIO")]
    Io,
    /// As on a host without space: a write waits, and is tried again. Others ask for no space.
    #[serde(rename = "ENOSPC")]
    NoSpace,
}

/// What a plan may be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes, also those that follow a write for a driver without flushes of its own.
    Flush,
    /// Discards and write-zeroes.
    Discard,
}

/// What is to happen to a disk's requests.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultPlan {
    /// Every request waits so long before it is served, in µs.
    pub latency_us: u32,
    /// And up to so much longer, at random.
    pub jitter_us: u32,
    /// Part of the requests that fail, 0 to 1.
    pub error_rate: f64,
    /// How they fail.
    pub error: FaultError,
    /// Part of the writes of which only the first sectors are written; they fail with EIO.
    pub torn_write_rate: f64,
    /// No request is answered.
    pub stuck: bool,
    /// Writes and write-zeroes find no space.
    pub full: bool,
    /// What all this is about; all of them if empty.
    pub operations: Vec<Kind>,
    /// Start of the random numbers: the same requests meet the same faults.
    pub seed: u64,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The disk serves it.
    Serve,
    /// It ends with this negated errno.
    Fail(i32),
    /// Of its bytes only so many are written, and it fails.
    Tear(u64),
}

/// How long it is held before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Not at all.
    No,
    /// For a while.
    For(Duration),
    /// Until the plan changes.
    Stuck,
}

/// The faults of a disk: a plan, and the requests that are held because of it.
pub struct Faults {
    plan: FaultPlan,
    random: u64,
    held: Vec<(u16, Option<Instant>, Fate)>,
}

impl FaultPlan {
    /// From JSON; `None` for `null`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(json: &str) -> Result<Option<FaultPlan>, String> {
        let plan: Option<FaultPlan> = serde_json::from_str(json).map_err(|error| error.to_string())?;
        if let Some(plan) = &plan {
            for (name, rate) in [("error_rate", plan.error_rate), ("torn_write_rate", plan.torn_write_rate)] {
                if !(0.0..=1.0).contains(&rate) {
                    return Err(format!("{name} is {rate}, not between 0 and 1"));
                }
            }
            for (name, us) in [("latency_us", plan.latency_us), ("jitter_us", plan.jitter_us)] {
                if u128::from(us) > LONGEST.as_micros() {
                    return Err(format!("{name} is {us}, over {}", LONGEST.as_micros()));
                }
            }
        }
        Ok(plan)
    }

    fn concerns(&self, operation: Operation) -> bool {
        let kind = match operation {
            Operation::Read => Kind::Read,
            Operation::Write => Kind::Write,
            Operation::Flush => Kind::Flush,
            Operation::Discard | Operation::WriteZeroes { .. } => Kind::Discard,
        };
        self.operations.is_empty() || self.operations.contains(&kind)
    }
}

impl Faults {
    /// As `plan` has it.
    pub fn new(plan: FaultPlan) -> Faults {
        // Any odd number serves; the seeds 0 and 1 must not be the same.
        let random = plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6e61_6761_7961_0001;
        Faults { plan, random: random | 1, held: Vec::new() }
    }

    /// What happens to `request`.
    pub fn judge(&mut self, request: &Request) -> (Hold, Fate) {
        if !self.plan.concerns(request.operation) {
            return (Hold::No, Fate::Serve);
        }
        if self.plan.stuck {
            return (Hold::Stuck, Fate::Serve);
        }
        let jitter = (self.draw() * f64::from(self.plan.jitter_us)) as u64;
        let delay = Duration::from_micros(u64::from(self.plan.latency_us) + jitter);
        let hold = if delay.is_zero() { Hold::No } else { Hold::For(delay) };
        (hold, self.fate(request))
    }

    fn fate(&mut self, request: &Request) -> Fate {
        let (error, tear) = (self.draw() < self.plan.error_rate, self.draw() < self.plan.torn_write_rate);
        let fills = matches!(request.operation, Operation::Write | Operation::WriteZeroes { .. });
        if self.plan.full && fills {
            return Fate::Fail(-libc::ENOSPC);
        }
        let no_space = self.plan.error == FaultError::NoSpace;
        if error && (fills || !no_space) {
            return Fate::Fail(if no_space { -libc::ENOSPC } else { -libc::EIO });
        }
        let sectors = request.length / SECTOR;
        if tear && request.operation == Operation::Write && sectors > 1 {
            return Fate::Tear(SECTOR * (1 + self.next() % (sectors - 1)));
        }
        Fate::Serve
    }

    /// Keep the request in `slot` for as long as `hold` says; `token` comes back when some may go.
    pub fn hold(&mut self, uring: &Rc<Uring>, token: u64, slot: u16, hold: Hold, fate: Fate) {
        let Hold::For(delay) = hold else { return self.held.push((slot, None, fate)) };
        self.held.push((slot, Some(Instant::now() + delay), fate));
        let ring = uring.clone();
        uring.tasks.spawn_local(async move {
            let time = Timespec::from(delay);
            // SAFETY: the time lives until the future is ready, and names no other memory.
            unsafe { ring.op(opcode::Timeout::new(&time).build()) }.await;
            ring.post(token, 0);
        });
    }

    /// Those whose time has come.
    pub fn due(&mut self) -> Vec<(u16, Fate)> {
        let now = Instant::now();
        self.let_go(|_, until| until.is_some_and(|until| until <= now))
    }

    /// All that are held.
    pub fn release(&mut self) -> Vec<(u16, Fate)> {
        self.let_go(|_, _| true)
    }

    /// Those in slots that `of` names, and whether they would ever have gone.
    pub fn give_up(&mut self, of: impl Fn(u16) -> bool) -> Vec<(u16, Fate)> {
        let stuck = self.let_go(|slot, until| of(slot) && until.is_none());
        let mut all: Vec<_> = stuck.into_iter().map(|(slot, _)| (slot, Fate::Fail(-libc::EIO))).collect();
        all.extend(self.let_go(|slot, _| of(slot)));
        all
    }

    fn let_go(&mut self, which: impl Fn(u16, Option<Instant>) -> bool) -> Vec<(u16, Fate)> {
        let gone: Vec<_> = self.held.extract_if(.., |(slot, until, _)| which(*slot, *until)).collect();
        gone.into_iter().map(|(slot, _, fate)| (slot, fate)).collect()
    }

    /// From 0 to 1, without 1.
    fn draw(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// xorshift64* (Vigna, 2016): enough to choose requests.
    fn next(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(operation: Operation, length: u64) -> Request {
        Request { operation, offset: 0, length, iovecs: std::ptr::null(), iovec_count: 0, token: 0 }
    }

    fn fates(plan: &str, operation: Operation) -> Vec<(Hold, Fate)> {
        let mut faults = Faults::new(FaultPlan::parse(plan).unwrap().unwrap());
        (0..4000).map(|_| faults.judge(&request(operation, 4096))).collect()
    }

    #[test]
    fn a_rate_is_kept_and_a_seed_repeats_it() {
        let plan = r#"{"error_rate": 0.25, "seed": 7}"#;
        let first = fates(plan, Operation::Read);
        let failed = first.iter().filter(|(_, fate)| *fate == Fate::Fail(-libc::EIO)).count();
        assert!((900..1100).contains(&failed), "{failed} of 4000");
        assert_eq!(first, fates(plan, Operation::Read));
        assert_ne!(first, fates(r#"{"error_rate": 0.25, "seed": 8}"#, Operation::Read));
    }

    #[test]
    fn a_torn_write_keeps_whole_sectors_and_never_all() {
        for (_, fate) in fates(r#"{"torn_write_rate": 1}"#, Operation::Write) {
            let Fate::Tear(bytes) = fate else { panic!("{fate:?}") };
            assert!(bytes.is_multiple_of(SECTOR) && (SECTOR..4096).contains(&bytes));
        }
        let mut faults = Faults::new(FaultPlan { torn_write_rate: 1.0, ..FaultPlan::default() });
        assert_eq!(faults.judge(&request(Operation::Write, SECTOR)).1, Fate::Serve);
        assert_eq!(faults.judge(&request(Operation::Read, 4096)).1, Fate::Serve);
    }

    #[test]
    fn only_the_operations_named_are_concerned() {
        let plan = r#"{"error_rate": 1, "latency_us": 5, "operations": ["flush"]}"#;
        assert!(fates(plan, Operation::Write).iter().all(|fate| *fate == (Hold::No, Fate::Serve)));
        let late = (Hold::For(Duration::from_micros(5)), Fate::Fail(-libc::EIO));
        assert!(fates(plan, Operation::Flush).iter().all(|fate| *fate == late));
    }

    #[test]
    fn a_full_disk_refuses_what_fills_it() {
        let plan = r#"{"full": true}"#;
        let full = (Hold::No, Fate::Fail(-libc::ENOSPC));
        assert_eq!(fates(plan, Operation::WriteZeroes { unmap: false })[0], full);
        assert_eq!(fates(plan, Operation::Write)[0], full);
        assert_eq!(fates(plan, Operation::Flush)[0], (Hold::No, Fate::Serve));
    }

    #[test]
    fn jitter_stays_below_its_bound() {
        for (hold, _) in fates(r#"{"latency_us": 100, "jitter_us": 50}"#, Operation::Read) {
            let Hold::For(time) = hold else { panic!("{hold:?}") };
            assert!((100..150).contains(&time.as_micros()));
        }
    }

    #[test]
    fn plans_out_of_bounds_are_refused() {
        assert_eq!(FaultPlan::parse("null"), Ok(None));
        for wrong in [r#"{"error_rate": 1.5}"#, r#"{"latency_us": 60000001}"#, r#"{"loud": true}"#] {
            assert!(FaultPlan::parse(wrong).is_err(), "{wrong}");
        }
    }
}
