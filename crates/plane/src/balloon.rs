//! virtio-balloon (virtio 1.3, 5.5): memory that a guest does not need goes back to the host, and comes again when it does.
//!
//! What the guest gives (inflated pages, and free ones that it reports) is punched out of the file that its memory is in, so
//! the host has it at once, whoever else has that file mapped. A page that the guest still uses loses its content: that is
//! the guest's own. How large the balloon is to be is in the configuration space, which the holder serves; so is what
//! the guest says of its size. Statistics are asked for once a period: the guest's buffer stays in the ring until then.

pub mod discard;
mod state;
mod stats;

use std::sync::atomic::Ordering::Relaxed;

use io_uring::opcode;
use io_uring::types::Timespec;

use crate::chain::{self, Buffers};
use crate::config::BalloonConfig;
use crate::page::add;
use crate::worker::device::{Context, Device, Fault, IGNORED};
use crate::worker::queue::Violation;

use discard::Pages;

pub use state::BalloonState;
pub use stats::{NAMES as STAT_NAMES, Stats};

/// Feature bits (5.5.3). VIRTIO_BALLOON_F_MUST_TELL_HOST is of no use: a page is there again when it is touched. Of a page that
/// VIRTIO_BALLOON_F_FREE_PAGE_HINT names, all that is known is that it was free: Linux uses it again when it needs memory, also
/// before the hint has been looked at. Who can tell what was written since may leave it out of a copy; nobody may take it.
const FEATURE_STATS: u64 = 1 << 1;
const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
const FEATURE_PAGE_POISON: u64 = 1 << 4;
const FEATURE_PAGE_REPORTING: u64 = 1 << 5;

/// What is offered.
pub const FEATURES: u64 =
    FEATURE_STATS | FEATURE_DEFLATE_ON_OOM | FEATURE_PAGE_POISON | FEATURE_PAGE_REPORTING;

/// Bytes of a page of the balloon, whatever the guest's or the host's are (5.5.6).
pub const PAGE: u64 = 4096;

/// Most pages that one chain may name: Linux names 256, and more would hold up the others.
const MAX_PAGES: u64 = 64 * 1024;

/// Work for one queue in a turn, in bytes given back, and what a piece of them costs in any case: a millisecond or two.
const BUDGET: u64 = 16 << 20;
const PIECE: u64 = 256 << 10;

/// Where in the configuration space (5.5.4) the driver finds the size that is wanted, and where it writes.
pub mod place {
    /// `num_pages`.
    pub const WANTED: usize = 0;
    /// `actual`.
    pub const ACTUAL: usize = 4;
    /// `poison_val`.
    pub const POISON: usize = 12;
    /// Bytes in all.
    pub const SIZE: usize = 16;
}

/// The configuration space (5.5.4) of a balloon that nobody has filled.
pub fn config_space(config: &BalloonConfig) -> Vec<u8> {
    let mut space = vec![0; place::SIZE];
    space[place::WANTED..place::ACTUAL].copy_from_slice(&wanted_pages(config.size).to_le_bytes());
    space
}

/// `num_pages` of a balloon of `size` bytes.
pub fn wanted_pages(size: u64) -> u32 {
    u32::try_from(size / PAGE).unwrap_or(u32::MAX)
}

/// The device.
pub struct Balloon {
    buffers: Buffers,
    pages: Pages,
    /// How long statistics are good; `None` is for ever.
    period: Option<Timespec>,
    stats: Asking,
}

/// Where the guest's buffer for statistics is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// In the ring, as a worker before us has read it.
    Stale,
    /// On its way here.
    Wanted,
    /// In the ring, and has been read; nobody asks again.
    Read,
    /// The same, and a timer runs.
    Timed,
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Stats,
    Report,
}

/// The role of queue `index` for a driver that took `features`. The specification gives each queue its number (5.5.2). Linux
/// numbers those that are there without a gap; where the two differ, at most one of the numbers has a queue.
fn role(index: u16, features: u64) -> Option<Role> {
    let optional = [(FEATURE_STATS, 2, Role::Stats), (FEATURE_PAGE_REPORTING, 4, Role::Report)];
    match index {
        0 => Some(Role::Inflate),
        1 => Some(Role::Deflate),
        _ => {
            let taken = optional.iter().filter(|(feature, ..)| features & feature != 0);
            let by_place = taken.clone().nth(usize::from(index) - 2);
            let found = by_place.or(taken.clone().find(|(_, number, _)| *number == index));
            found.map(|(_, _, role)| *role)
        }
    }
}

impl Balloon {
    /// A balloon whose guest is asked for statistics as `config` says.
    pub fn new(config: &BalloonConfig) -> Balloon {
        let (buffers, pages) = (Buffers::default(), Pages::default());
        Balloon { buffers, pages, period: period(config.stats_ms), stats: Asking::Wanted }
    }

    /// Pages that the guest names, its own and not needed.
    fn inflate(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation> {
        let mut budget = BUDGET;
        while budget > 0 {
            let Some(queue) = context.queue(index) else { return Ok(false) };
            let Some(head) = queue.take(&mut self.buffers)? else { return Ok(false) };
            let memory = queue.memory().clone();
            let given = self.pages.read(&self.buffers.readable).and_then(|pages| pages.discard(&memory));
            let given = given.inspect_err(|_| queue.give_up())?;
            queue.complete(head, 0);
            budget = budget.saturating_sub(given.bytes.max(PIECE * given.pieces.max(1)));
            add(&context.page.balloon.inflated, given.bytes);
            add(&context.page.errors, given.errors);
        }
        Ok(true)
    }

    /// Pages that the guest takes back: they are there when they are touched.
    fn deflate(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation> {
        let mut budget = BUDGET;
        while budget > 0 {
            let Some(queue) = context.queue(index) else { return Ok(false) };
            let Some(head) = queue.take(&mut self.buffers)? else { return Ok(false) };
            queue.complete(head, 0);
            budget = budget.saturating_sub(PIECE);
            add(&context.page.balloon.deflated, chain::total(&self.buffers.readable) / 4 * PAGE);
        }
        Ok(true)
    }

    /// Free pages that the guest lays out as buffers (5.5.6.7), and does not touch before it has them back.
    fn report(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation> {
        let mut budget = BUDGET;
        // Then a page must come back with that value in it, and not with zeroes.
        let poisoned = context.page.balloon.poison.load(Relaxed) != 0;
        while budget > 0 {
            let Some(queue) = context.queue(index) else { return Ok(false) };
            let Some(head) = queue.take(&mut self.buffers)? else { return Ok(false) };
            let page_size = queue.memory().page_size();
            let ranges: &[libc::iovec] = if poisoned { &[] } else { &self.buffers.writable };
            let given = discard::discard_buffers(ranges, page_size);
            queue.complete(head, 0);
            budget = budget.saturating_sub(given.bytes.max(PIECE * given.pieces.max(1)));
            add(&context.page.balloon.reported, given.bytes);
            add(&context.page.errors, given.errors);
        }
        Ok(true)
    }

    /// The guest has written statistics. The buffer stays in the ring: giving it back asks for new ones (5.5.6.3).
    fn read_stats(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation> {
        let Some(queue) = context.queues.get_mut(usize::from(index)).and_then(Option::as_mut) else {
            return Ok(false);
        };
        if self.stats == Asking::Stale {
            let Some(head) = queue.take(&mut self.buffers)? else { return Ok(false) };
            queue.complete(head, 0);
            self.stats = Asking::Wanted;
            return Ok(true);
        }
        if self.stats == Asking::Wanted {
            let Some(head) = queue.take(&mut self.buffers)? else { return Ok(false) };
            let stats = Stats::parse(&self.buffers.readable, queue.memory().size());
            context.page.balloon.set_stats(&stats, context.now);
            queue.put_back(head);
            self.stats = Asking::Read;
        }
        queue.park();
        self.arm(context);
        Ok(false)
    }

    /// Ask in a period, unless that is under way.
    fn arm(&mut self, context: &Context<'_>) {
        if self.stats == Asking::Read
            && let Some(period) = &self.period
        {
            let timeout = opcode::Timeout::new(period).build();
            // SAFETY: the kernel reads the time when it is submitted, at the latest before the device goes.
            unsafe { context.uring.push(timeout.user_data(context.io(0))) };
            self.stats = Asking::Timed;
        }
    }

    fn disarm(&mut self, context: &Context<'_>) {
        if self.stats == Asking::Timed {
            let cancel = opcode::AsyncCancel::new(context.io(0)).build();
            // SAFETY: names no memory.
            unsafe { context.uring.push(cancel.user_data(IGNORED.pack())) };
            self.stats = Asking::Read;
        }
    }
}

fn period(stats_ms: u32) -> Option<Timespec> {
    let time = Timespec::new().sec(u64::from(stats_ms / 1000)).nsec(stats_ms % 1000 * 1_000_000);
    (stats_ms > 0).then_some(time)
}

/// The queue for statistics, if the driver has set one up.
fn stats_queue(context: &Context<'_>) -> Option<usize> {
    let mut queues = context.queues.iter().enumerate();
    queues.find_map(|(index, queue)| {
        let role = role(index as u16, queue.as_ref()?.features);
        (role == Some(Role::Stats)).then_some(index)
    })
}

impl Device for Balloon {
    fn opened(&mut self, context: &mut Context<'_>) {
        if context.page.balloon.stats().is_some() {
            self.stats = Asking::Stale;
        }
    }

    fn serve(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation> {
        let Some(queue) = context.queue(index) else { return Ok(false) };
        match role(index, queue.features) {
            Some(Role::Inflate) => self.inflate(context, index),
            Some(Role::Deflate) => self.deflate(context, index),
            Some(Role::Stats) => self.read_stats(context, index),
            Some(Role::Report) => self.report(context, index),
            None => {
                queue.park();
                Ok(false)
            }
        }
    }

    fn complete(&mut self, context: &mut Context<'_>, _value: u16, result: i32) -> Result<(), Fault> {
        if result != -libc::ETIME || self.stats != Asking::Timed {
            return Ok(());
        }
        self.stats = Asking::Read;
        let Some(index) = stats_queue(context) else { return Ok(()) };
        let Some(queue) = context.queues[index].as_mut() else { return Ok(()) };
        match queue.take(&mut self.buffers) {
            Ok(Some(head)) => queue.complete(head, 0),
            Ok(None) => {}
            Err(violation) => return Err((index as u16, violation)),
        }
        self.stats = Asking::Wanted;
        context.wake.push(index as u16);
        Ok(())
    }

    fn set_stats_period(&mut self, context: &mut Context<'_>, stats_ms: u32) {
        self.disarm(context);
        self.period = period(stats_ms);
        self.arm(context);
    }

    fn stopping(&mut self, context: &mut Context<'_>, index: u16) {
        if stats_queue(context) == Some(usize::from(index)) {
            self.disarm(context);
            self.stats = Asking::Wanted;
        }
    }

    fn closing(&mut self, context: &mut Context<'_>) {
        self.disarm(context);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_have_the_numbers_of_the_specification_and_those_of_linux() {
        let roles = |features| (0..6).map(|index| role(index, features)).collect::<Vec<_>>();
        let (inflate, deflate) = (Some(Role::Inflate), Some(Role::Deflate));
        let (stats, report) = (Some(Role::Stats), Some(Role::Report));
        assert_eq!(roles(FEATURES), [inflate, deflate, stats, report, report, None]);
        assert_eq!(roles(FEATURE_PAGE_REPORTING), [inflate, deflate, report, None, report, None]);
        assert_eq!(roles(0), [inflate, deflate, None, None, None, None]);
    }

    #[test]
    fn the_configuration_space_has_the_wanted_size_in_pages() {
        let config = |size| BalloonConfig { id: "b".into(), worker: "w".into(), size, stats_ms: 0 };
        assert_eq!(config_space(&config(0x234_5678_9000))[..4], [0x89, 0x67, 0x45, 0x23]);
        assert_eq!(config_space(&config(u64::MAX))[..4], [0xff; 4]);
        assert_eq!(config_space(&config(4095)), [0; 16]);
    }
}
