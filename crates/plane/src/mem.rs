//! virtio-mem (virtio 1.3, 5.15): memory that a guest plugs and unplugs while it runs, in blocks of a region.
//!
//! The file with the guest's memory has room for the whole region from the beginning, and the guest can reach all of it: to
//! plug is bookkeeping, pages come when they are touched. What is unplugged is punched out of the file, so the host has it
//! back. A guest that touches what it has not plugged takes pages all the same, as far as its control group lets it; they go
//! with the next request that unplugs everything, as a driver's first one does.

mod state;

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use crate::balloon::discard::discard_buffers;
use crate::chain::{self, Buffers};
use crate::config::MemConfig;
use crate::memory::Memory;
use crate::page::add;
use crate::worker::device::{Context, Device, Fault};
use crate::worker::queue::Violation;

pub use state::{MAX_BLOCKS, MemState};

/// Feature bits (5.15.3): the driver never touches what is unplugged.
pub const FEATURES: u64 = 1 << 1;

/// Bytes that are punched in a turn: some milliseconds.
const BUDGET: u64 = 64 << 20;

/// What a request costs of that in any case.
const COST: u64 = 256 << 10;

/// Bytes of `struct virtio_mem_req` and `struct virtio_mem_resp` (5.15.6).
const REQUEST: usize = 24;
const RESPONSE: u64 = 10;

/// What is answered (5.15.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Ack = 0,
    Nack = 1,
    Error = 3,
}

/// A request of the driver (5.15.6), the range in blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Request {
    Plug(Range<usize>),
    Unplug(Range<usize>),
    UnplugAll,
    State(Range<usize>),
    /// Of no known type, or with a range that is not in the region.
    Wrong,
}

impl Request {
    fn parse(bytes: &[u8; REQUEST], config: &MemConfig) -> Request {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let address = u64::from_le_bytes(std::array::from_fn(|at| bytes[8 + at]));
        let range = blocks(config, address, word(16));
        match (word(0), range) {
            (0, Some(range)) => Request::Plug(range),
            (1, Some(range)) => Request::Unplug(range),
            (2, _) => Request::UnplugAll,
            (3, Some(range)) => Request::State(range),
            _ => Request::Wrong,
        }
    }
}

/// The blocks from `address` on; `None` unless there are some, they are whole, and all in the region.
fn blocks(config: &MemConfig, address: u64, count: u16) -> Option<Range<usize>> {
    let offset = address.checked_sub(config.start)?;
    let first = offset / config.block();
    let end = first.checked_add(count.into())?;
    let fits = count > 0 && offset % config.block() == 0 && end <= config.size / config.block();
    fits.then_some(first as usize..end as usize)
}

/// The configuration space (5.15.4); `plugged` and what is requested change.
pub fn config_space(config: &MemConfig, requested: u64, plugged: u64) -> Vec<u8> {
    let (node, usable) = (0, config.size);
    [config.block(), node, config.start, config.size, usable, plugged, requested]
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect()
}

/// The device.
pub struct Mem {
    config: MemConfig,
    buffers: Buffers,
    /// No request has come yet: the first may be one that a worker before us was killed over.
    fresh: bool,
    work: Option<Work>,
}

/// Blocks whose memory is going back to the host, for the chain at `head`.
struct Work {
    head: u16,
    blocks: Range<usize>,
    next: usize,
}

impl Mem {
    /// A region as `config` has it.
    pub fn new(config: &MemConfig) -> Mem {
        Mem { config: config.clone(), buffers: Buffers::default(), fresh: true, work: None }
    }

    /// Take the next request, and answer it unless memory has to be punched; false if there is none.
    fn take(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation> {
        let Some(queue) = context.queue(index) else { return Ok(false) };
        let Some(head) = queue.take(&mut self.buffers)? else { return Ok(false) };
        let request = chain::take_front::<REQUEST>(&mut self.buffers.readable)
            .filter(|_| chain::total(&self.buffers.writable) >= RESPONSE);
        let Some(bytes) = request else {
            queue.give_up();
            return Err(Violation::new("mem-request", "a request or its answer is too short"));
        };
        let request = Request::parse(&bytes, &self.config);
        let memory = queue.memory().clone();
        let resumed = std::mem::replace(&mut self.fresh, false);
        let state = &context.page.mem;
        let answer = match request {
            Request::Plug(range) => self.plug(state, &memory, &range, resumed),
            Request::Unplug(range) => {
                if may_unplug(state, &range, resumed) {
                    return Ok(self.unplug(state, head, range));
                }
                Answer::Error
            }
            Request::UnplugAll => {
                let all = 0..(self.config.size / self.config.block()) as usize;
                return Ok(self.unplug(state, head, all));
            }
            Request::State(range) => {
                let plugged = state.plugged(range.clone());
                // 0 plugged, 1 unplugged, 2 both.
                let how = if plugged == range.len() { 0 } else { 2 - u16::from(plugged == 0) };
                self.answer(context, index, head, (Answer::Ack, how));
                return Ok(true);
            }
            Request::Wrong => Answer::Error,
        };
        self.answer(context, index, head, (answer, 0));
        context.page.mem.end();
        Ok(true)
    }

    fn plug(&self, state: &MemState, memory: &Memory, range: &Range<usize>, resumed: bool) -> Answer {
        if !(resumed && state.is_changing(range, true)) {
            let (address, length) = self.bytes(range);
            if state.plugged(range.clone()) > 0 || memory.slice(address, length as usize).is_none() {
                return Answer::Error;
            }
            if state.plugged_bytes(&self.config) + length > state.requested.load(Relaxed) {
                return Answer::Nack;
            }
            state.begin(range, true);
        }
        state.set(range.clone(), true);
        Answer::Ack
    }

    fn unplug(&mut self, state: &MemState, head: u16, blocks: Range<usize>) -> bool {
        state.begin(&blocks, false);
        self.work = Some(Work { head, next: blocks.start, blocks });
        true
    }

    /// Go on with what is being unplugged, `budget` bytes at most; how many it was.
    fn punch(&mut self, context: &mut Context<'_>, index: u16, budget: u64) -> u64 {
        let Some(queue) = context.queue(index) else { return 0 };
        let memory = queue.memory().clone();
        let Some(work) = self.work.as_mut() else { return 0 };
        let count = usize::try_from(budget / self.config.block()).unwrap_or(usize::MAX).max(1);
        let part = work.next..work.blocks.end.min(work.next.saturating_add(count));
        work.next = part.end;
        let done = (part.end == work.blocks.end).then_some((work.head, work.blocks.clone()));
        let (address, length) = self.bytes(&part);
        let host = memory.slice(address, length as usize);
        let range = host.map(|host| libc::iovec { iov_base: host.cast(), iov_len: length as usize });
        if discard_buffers(range.as_slice(), memory.page_size()).bytes != length {
            add(&context.page.errors, 1);
        }
        if let Some((head, blocks)) = done {
            self.work = None;
            context.page.mem.set(blocks, false);
            self.answer(context, index, head, (Answer::Ack, 0));
            context.page.mem.end();
        }
        length
    }

    /// Guest address and number of bytes of some blocks.
    fn bytes(&self, range: &Range<usize>) -> (u64, u64) {
        let block = self.config.block();
        (self.config.start + range.start as u64 * block, range.len() as u64 * block)
    }

    fn answer(&self, context: &mut Context<'_>, index: u16, head: u16, (answer, state): (Answer, u16)) {
        let mut bytes = [0; RESPONSE as usize];
        bytes[..2].copy_from_slice(&(answer as u16).to_le_bytes());
        bytes[8..].copy_from_slice(&state.to_le_bytes());
        let written = chain::write_front(&self.buffers.writable, &bytes);
        add(if answer == Answer::Ack { &context.page.writes } else { &context.page.errors }, 1);
        if let Some(queue) = context.queue(index) {
            queue.complete(head, written as u32);
        }
    }
}

/// Whether all of `range` is plugged, or a worker before us died while it unplugged that.
fn may_unplug(state: &MemState, range: &Range<usize>, resumed: bool) -> bool {
    state.plugged(range.clone()) == range.len() || resumed && state.is_changing(range, false)
}

impl Device for Mem {
    fn serve(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation> {
        let mut budget = BUDGET;
        while budget > 0 {
            if self.work.is_none() && !self.take(context, index)? {
                return Ok(false);
            }
            let punched = self.punch(context, index, budget);
            budget = budget.saturating_sub(punched.max(COST));
        }
        Ok(true)
    }

    fn complete(&mut self, _context: &mut Context<'_>, _value: u16, _result: i32) -> Result<(), Fault> {
        Ok(())
    }

    fn stopping(&mut self, context: &mut Context<'_>, index: u16) {
        while self.work.is_some() {
            self.punch(context, index, BUDGET);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Region;
    use crate::page::{Shared, sealed_memfd};

    const BLOCK: u64 = 2 << 20;

    fn config() -> MemConfig {
        MemConfig { id: "m".into(), worker: "w".into(), start: 1 << 32, size: 8 * BLOCK, requested: 0 }
    }

    fn request(kind: u16, address: u64, count: u16) -> Request {
        let mut bytes = [0; REQUEST];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&address.to_le_bytes());
        bytes[16..18].copy_from_slice(&count.to_le_bytes());
        Request::parse(&bytes, &config())
    }

    #[test]
    fn requests_name_whole_blocks_of_the_region() {
        let start = 1 << 32;
        assert_eq!(request(0, start, 8), Request::Plug(0..8));
        assert_eq!(request(1, start + 7 * BLOCK, 1), Request::Unplug(7..8));
        assert_eq!(request(2, 5, 0), Request::UnplugAll);
        assert_eq!(request(3, start + BLOCK, 2), Request::State(1..3));
        let wrong = [
            (0, start, 0),
            (0, start, 9),
            (0, start - BLOCK, 1),
            (1, start + 4096, 1),
            (3, start + 8 * BLOCK, 1),
            (0, u64::MAX, u16::MAX),
            (4, start, 1),
        ];
        for (kind, address, count) in wrong {
            assert_eq!(request(kind, address, count), Request::Wrong, "{kind} {address:#x} {count}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(20_000))]
        #[test]
        fn any_request_names_blocks_of_the_region_or_is_refused(
            kind in 0_u16..6, near in 0_u64..10 * BLOCK, whole: bool, far: u64, is_far: bool, count in 0_u16..12,
            many: u16, is_many: bool,
        ) {
            let start = config().start;
            let near = start - BLOCK + if whole { near / BLOCK * BLOCK } else { near };
            let (address, count) = (if is_far { far } else { near }, if is_many { many } else { count });
            let end = u128::from(address) + u128::from(count) * u128::from(BLOCK);
            let fits = count > 0 && address >= start && address % BLOCK == 0 && end <= u128::from(start + 8 * BLOCK);
            let range = || {
                let first = ((address - start) / BLOCK) as usize;
                first..first + usize::from(count)
            };
            let expected = match kind {
                0 if fits => Request::Plug(range()),
                1 if fits => Request::Unplug(range()),
                2 => Request::UnplugAll,
                3 if fits => Request::State(range()),
                _ => Request::Wrong,
            };
            proptest::prop_assert_eq!(request(kind, address, count), expected);
        }
    }

    #[test]
    fn what_a_killed_worker_did_by_half_is_done_once_more_and_only_then() {
        let page = Shared::create().unwrap();
        let (state, mem) = (&page.mem, Mem::new(&config()));
        state.requested.store(8 * BLOCK, Relaxed);
        let elsewhere = Region { guest: 0, size: 4096, user: 0, offset: 0 };
        let memory = Memory::map(&[elsewhere], vec![sealed_memfd(c"guest", 4096).unwrap().into()]).unwrap();
        state.begin(&(0..4), true);
        state.set(0..2, true);
        assert_eq!(mem.plug(state, &memory, &(0..4), false), Answer::Error);
        assert_eq!(mem.plug(state, &memory, &(1..4), true), Answer::Error);
        assert_eq!(mem.plug(state, &memory, &(0..4), true), Answer::Ack);
        assert_eq!(state.plugged(0..8), 4);
        state.begin(&(0..4), false);
        state.set(0..2, false);
        assert!(!may_unplug(state, &(0..4), false) && !may_unplug(state, &(0..3), true));
        assert!(may_unplug(state, &(0..4), true) && may_unplug(state, &(2..4), false));
    }

    #[test]
    fn the_configuration_space_is_laid_out_as_specified() {
        let space = config_space(&config(), 3 * BLOCK, BLOCK);
        let field = |at: usize| u64::from_le_bytes(space[at..at + 8].try_into().unwrap());
        assert_eq!(space.len(), 56);
        assert_eq!((field(0), field(16), field(24), field(32)), (BLOCK, 1 << 32, 8 * BLOCK, 8 * BLOCK));
        assert_eq!((field(40), field(48)), (BLOCK, 3 * BLOCK));
    }
}
