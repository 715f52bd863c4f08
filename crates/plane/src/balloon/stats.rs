//! Statistics of a guest (virtio 1.3, 5.5.6.3 and 5.5.6.4): what it says, within what can be.

use crate::chain;

/// How many kinds there are that we know.
pub const STATS: usize = 8;

/// Their names, by the tags of the specification.
pub const NAMES: [&str; STATS] =
    ["swap_in", "swap_out", "major_faults", "minor_faults", "free", "total", "available", "caches"];

/// Those that are parts of the guest's memory: from VIRTIO_BALLOON_S_MEMFREE to VIRTIO_BALLOON_S_CACHES.
const PARTS: std::ops::RangeInclusive<usize> = 4..=7;

/// Bytes of an entry: a tag of 16 bits and a value of 64.
const ENTRY: usize = 10;

/// Most entries that are looked at: Linux has 16 at most.
const ENTRIES: usize = 64;

/// By tag, in bytes or events; `None` where the guest says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats(pub [Option<u64>; STATS]);

impl Stats {
    /// Those in `readable`, of a guest with `memory` bytes. A part of memory that is larger than all of it is as large as that, and
    /// nothing is more than fits into 63 bits. Unknown tags are passed over; of one that comes twice the last counts.
    pub fn parse(readable: &[libc::iovec], memory: u64) -> Stats {
        let mut bytes = [0; ENTRY * ENTRIES];
        let length = chain::total(readable).min(bytes.len() as u64) as usize;
        chain::read_front(readable, &mut bytes[..length]);
        let mut stats = Stats::default();
        for entry in bytes[..length].chunks_exact(ENTRY) {
            let tag = usize::from(u16::from_le_bytes([entry[0], entry[1]]));
            let mut value = [0; 8];
            value.copy_from_slice(&entry[2..]);
            let most = if PARTS.contains(&tag) { memory } else { i64::MAX as u64 };
            if let Some(place) = stats.0.get_mut(tag) {
                *place = Some(u64::from_le_bytes(value).min(most));
            }
        }
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(bytes: &mut [u8], cut: usize, memory: u64) -> Stats {
        let (front, back) = bytes.split_at_mut(cut);
        let buffers =
            [front, back].map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() });
        Stats::parse(&buffers, memory)
    }

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [tag.to_le_bytes().as_slice(), value.to_le_bytes().as_slice()].concat()
    }

    #[test]
    fn entries_are_found_by_their_tags() {
        let mut bytes = [entry(5, 900), entry(4, 300), entry(9, 7), entry(2, 11), vec![4, 0, 1]].concat();
        let stats = parse(&mut bytes, 13, 1000);
        let mut expected = Stats::default();
        (expected.0[5], expected.0[4], expected.0[2]) = (Some(900), Some(300), Some(11));
        assert_eq!(stats, expected);
        assert_eq!(parse(&mut [], 0, 1000), Stats::default());
    }

    #[test]
    fn lies_are_cut_to_what_can_be() {
        let mut bytes = [entry(4, u64::MAX), entry(7, 1001), entry(0, u64::MAX)].concat();
        let stats = parse(&mut bytes, 0, 1000);
        assert_eq!((stats.0[4], stats.0[7], stats.0[0]), (Some(1000), Some(1000), Some(i64::MAX as u64)));
    }

    proptest! {
        #[test]
        fn anything_is_parsed_wherever_it_is_cut(
            mut bytes in prop::collection::vec(any::<u8>(), 0..1500), cut in 0_usize..1500, memory: u64,
        ) {
            let cut = cut.min(bytes.len());
            let stats = parse(&mut bytes, cut, memory);
            prop_assert_eq!(stats, parse(&mut bytes, 0, memory));
            for part in PARTS {
                prop_assert!(stats.0[part].is_none_or(|value| value <= memory));
            }
        }
    }
}
