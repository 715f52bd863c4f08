//! What a request costs: how much of the device it takes, and how many I/Os it counts as.

use serde::{Deserialize, Serialize};

/// What a request does, as far as its cost is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// Make earlier writes durable.
    Flush,
    /// Discard or write zeroes: a change of metadata, whatever the length.
    Discard,
}

/// A request, as the arbiter sees it.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// What the caller knows the request by; [`next`](super::Arbiter::next) returns it.
    pub ticket: u64,
    /// What it does.
    pub kind: Kind,
    /// How many bytes it moves, or frees.
    pub bytes: u64,
}

/// The cost of a read of 4 KiB. The window and the shares count in this unit.
pub const UNIT: u64 = 256;

/// An I/O of `limit_iops` and `reservation_iops` has at most so many bytes; a larger request counts as several.
/// (VMware's arrays of disks are shared out in the same way, with 32 KiB; block stores of clouds take 16 to 256.)
pub const IO_BYTES: u64 = 64 << 10;

/// The bytes that take a device as long as beginning another request does: 100,000 IOPS at 2 GB/s make 20 KiB.
const START_BYTES: u64 = 16 << 10;

/// What beginning a request costs, whatever its length.
pub const START: u32 = (START_BYTES * UNIT / (START_BYTES + 4096)) as u32;

impl Ask {
    /// Share of the device, in 1/256 of a read of 4 KiB.
    pub(super) fn cost(&self) -> u32 {
        let bytes = match self.kind {
            Kind::Read | Kind::Write => self.bytes,
            Kind::Flush | Kind::Discard => 4096,
        };
        u32::try_from((START_BYTES + bytes) * UNIT / (START_BYTES + 4096)).unwrap_or(u32::MAX)
    }

    /// How many I/Os of the knobs in IOPS it is.
    pub(super) fn ios(&self) -> u32 {
        u32::try_from(self.moved().div_ceil(IO_BYTES)).unwrap_or(u32::MAX).max(1)
    }

    /// How many bytes of the knobs in bytes/s it is: those that it moves; what moves none counts as 4 KiB.
    pub(super) fn paced(&self) -> u64 {
        match self.moved() {
            0 => 4096,
            bytes => bytes,
        }
    }

    /// How many bytes it moves.
    pub(super) fn moved(&self) -> u64 {
        match self.kind {
            Kind::Read | Kind::Write => self.bytes,
            Kind::Flush | Kind::Discard => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(kind: Kind, bytes: u64) -> Ask {
        Ask { ticket: 0, kind, bytes }
    }

    #[test]
    fn a_large_request_costs_more_than_a_small_one_and_less_than_many() {
        assert_eq!(u64::from(ask(Kind::Read, 4096).cost()), UNIT);
        let mebibyte = u64::from(ask(Kind::Write, 1 << 20).cost());
        assert!(mebibyte > 50 * UNIT && mebibyte < 256 * UNIT);
        assert_eq!((ask(Kind::Read, 4096).ios(), ask(Kind::Write, 1 << 20).ios()), (1, 16));
    }

    #[test]
    fn a_flush_and_a_discard_count_but_move_nothing() {
        for kind in [Kind::Flush, Kind::Discard] {
            let ask = ask(kind, 1 << 30);
            assert_eq!((u64::from(ask.cost()), ask.ios(), ask.paced(), ask.moved()), (UNIT, 1, 4096, 0));
        }
    }

    #[test]
    fn no_length_overflows() {
        assert_eq!(ask(Kind::Read, 1 << 50).cost(), u32::MAX);
    }
}
