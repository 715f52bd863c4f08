//! Which blocks are plugged: a bit each, in the device's page, so that it outlives a worker.

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::config::MemConfig;

/// Most blocks of a region.
pub const MAX_BLOCKS: usize = 65536;

/// What a guest has plugged. All zero at first. Its worker alone writes it, but for `requested`, and the holder once no
/// queue runs.
#[repr(C)]
pub struct MemState {
    /// Bytes that the guest is to have.
    pub requested: AtomicU64,
    /// The change under way, packed; 0 if none is. A successor finds here what a killed worker was doing.
    change: [AtomicU64; 2],
    blocks: [AtomicU64; MAX_BLOCKS / 64],
}

impl MemState {
    /// Note that the bits of `range` are about to become `plugged`.
    pub fn begin(&self, range: &Range<usize>, plugged: bool) {
        self.change[1].store(range.start as u64, Relaxed);
        // A worker may be killed at any instruction: program order is enough.
        self.change[0].store((range.len() as u64) << 2 | u64::from(plugged) << 1 | 1, Release);
    }

    /// They are.
    pub fn end(&self) {
        self.change[0].store(0, Release);
    }

    /// Whether that very change was noted and has not come to its end.
    pub fn is_changing(&self, range: &Range<usize>, plugged: bool) -> bool {
        let noted = self.change[0].load(Acquire);
        noted == (range.len() as u64) << 2 | u64::from(plugged) << 1 | 1
            && self.change[1].load(Relaxed) == range.start as u64
    }

    /// Nothing is plugged.
    pub fn clear(&self) {
        self.end();
        for word in &self.blocks {
            word.store(0, Relaxed);
        }
    }

    /// How many blocks of `range` are plugged.
    pub fn plugged(&self, range: Range<usize>) -> usize {
        words(range).map(|(word, mask)| (self.blocks[word].load(Relaxed) & mask).count_ones() as usize).sum()
    }

    /// Plug or unplug all blocks of `range`.
    pub fn set(&self, range: Range<usize>, plugged: bool) {
        for (word, mask) in words(range) {
            let before = self.blocks[word].load(Relaxed);
            let after = if plugged { before | mask } else { before & !mask };
            self.blocks[word].store(after, Relaxed);
        }
    }

    /// Bytes of `config`'s region that are plugged.
    pub fn plugged_bytes(&self, config: &MemConfig) -> u64 {
        self.plugged(0..MAX_BLOCKS) as u64 * config.block()
    }
}

/// The words that `range` touches, with its bits in each.
fn words(range: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let Range { start, end } = range;
    (start / 64..end.div_ceil(64)).map(move |word| {
        let (first, last) = (start.saturating_sub(word * 64), (end - word * 64).min(64));
        (word, (u64::MAX << first) & (u64::MAX >> (64 - last)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Shared;

    proptest::proptest! {
        #[test]
        fn bits_are_those_of_a_list_of_booleans(
            changes in proptest::collection::vec((0_usize..300, 1_usize..200, proptest::bool::ANY), 1..40),
        ) {
            let page = Shared::create().unwrap();
            let mut model = vec![false; 512];
            for (start, count, plugged) in changes {
                page.mem.set(start..start + count, plugged);
                model[start..start + count].fill(plugged);
                for (from, to) in [(0, 512), (start, start + count), (start / 2, start + 1)] {
                    let expected = model[from..to].iter().filter(|bit| **bit).count();
                    proptest::prop_assert_eq!(page.mem.plugged(from..to), expected);
                }
            }
        }
    }

    #[test]
    fn a_change_is_known_until_it_ends_and_no_other_is_taken_for_it() {
        let page = Shared::create().unwrap();
        assert!(!page.mem.is_changing(&(0..0), false));
        page.mem.begin(&(7..9), true);
        assert!(page.mem.is_changing(&(7..9), true));
        assert!(!page.mem.is_changing(&(7..9), false) && !page.mem.is_changing(&(7..10), true));
        assert!(!page.mem.is_changing(&(6..8), true));
        page.mem.end();
        assert!(!page.mem.is_changing(&(7..9), true));
        page.mem.set(0..MAX_BLOCKS, true);
        assert_eq!(page.mem.plugged(0..MAX_BLOCKS), MAX_BLOCKS);
        page.mem.clear();
        assert_eq!(page.mem.plugged(0..MAX_BLOCKS), 0);
    }
}
