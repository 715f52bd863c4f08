//! virtio-blk as the guest sees it (virtio 1.3, 5.2).

use std::sync::atomic::Ordering::Relaxed;

use io_uring::{opcode, types::Timespec};
use virtio_bindings::bindings::virtio_blk::*;

use crate::arbiter::Leaf;
use crate::block::faults::{FaultPlan, Faults};
use crate::block::flushes::Flushes;
use crate::block::request::{Parsed, Status, parse};
use crate::block::writelog::WriteLog;
use crate::block::{Disk, Operation, Request, UNFLUSHED};
use crate::chain::{Buffers, write_front};
use crate::config::BlkConfig;
use crate::page::add;
use crate::worker::device::{Context, Device, Fault};
use crate::worker::queue::Violation;

pub use offer::{config_space, features};

use merge::Neighbours;
use slot::Slot;

mod errors;
mod merge;
mod offer;
mod slot;
mod turns;

/// Requests that one queue may start in a turn before others have theirs, and before answers are looked for. While a guest
/// that polls makes use of one turn's answers we are at the next turn; docs/benchmarks.md has the measurements.
const BUDGET: usize = 4;

/// Requests that go to the disk with one system call: larger batches leave the disk idle while they are gathered.
/// docs/benchmarks.md has the measurements.
pub const BATCH: usize = 2;

/// And bytes: what is in the page cache is copied while it is submitted, at about 10 GB/s.
const BUDGET_BYTES: u64 = 2 << 20;

/// A transfer that came out short without an error is tried again as a whole, this often: it can happen when a
/// signal or a full queue of the kernel splits it.
const RETRIES: u8 = 3;

/// Requests that a device has taken and the arbiter keeps waiting; more are left in the virtqueues. Enough to keep the
/// disk busy in between two turns.
const AHEAD: usize = 256;

/// How often requests that found no space on the host are tried again.
static SPACE_PAUSE: Timespec = Timespec::new().nsec(250_000_000);

/// Value of the completion that ends the pause; slots are fewer.
const SPACE_PAUSED: u16 = u16::MAX;

/// Value of the completion after which requests that faults have held may go.
const FAULTS_DUE: u16 = u16::MAX - 1;

/// The device.
pub struct Blk {
    disk: Box<dyn Disk>,
    read_only: bool,
    serial: [u8; 20],
    slots: Vec<Slot>,
    free: Vec<u16>,
    buffers: Buffers,
    /// Where its requests are offered; without it they go at once.
    leaf: Option<Leaf>,
    /// Requests that the arbiter keeps waiting.
    waiting: usize,
    neighbours: Neighbours,
    /// Queues that found no room at the disk, and those that found some for a part of what they have: they are behind.
    starved: Vec<u16>,
    half_fed: Vec<u16>,
    /// Slots whose requests found no space on the host. They are not answered: a guest that is told of an error takes
    /// its file system for damaged, one that waits goes on where it was.
    spaceless: Vec<u16>,
    /// The pause before they are tried again is in the ring.
    pausing: bool,
    flushes: Flushes,
    flush_failure_told: bool,
    log: Option<WriteLog>,
    /// What somebody who tests the guest's software has asked for.
    faults: Option<Faults>,
}

impl Blk {
    /// Serve `disk`, whose requests are offered to the arbiter at `leaf`.
    pub fn new(config: &BlkConfig, disk: Box<dyn Disk>, leaf: Option<Leaf>, log: Option<WriteLog>) -> Blk {
        let mut serial = [0; 20];
        serial[..config.serial.len()].copy_from_slice(config.serial.as_bytes());
        let read_only = config.read_only;
        Blk {
            disk,
            read_only,
            serial,
            slots: Vec::new(),
            free: Vec::new(),
            buffers: Buffers::default(),
            leaf,
            waiting: 0,
            neighbours: Neighbours::default(),
            starved: Vec::new(),
            half_fed: Vec::new(),
            spaceless: Vec::new(),
            pausing: false,
            flushes: Flushes::default(),
            flush_failure_told: false,
            log,
            faults: None,
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Act on the chain at `head`, which is in `self.buffers` and came from `place` in the available ring; returns how
    /// many bytes it moves.
    fn begin(
        &mut self,
        context: &mut Context<'_>,
        index: u16,
        (head, place): (u16, Option<u16>),
    ) -> Result<u64, Violation> {
        let parsed = parse(&mut self.buffers, self.disk.size(), self.read_only);
        let (parsed, status) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                if let Some(queue) = context.queue(index) {
                    queue.give_up();
                }
                return Err(Violation::new("blk-request", error.0));
            }
        };
        match parsed {
            Parsed::Disk { operation, offset, length } => {
                self.submit(context, (index, head, place, status), (operation, offset, length));
                Ok(length)
            }
            Parsed::GetId => {
                let written = write_front(&self.buffers.writable, &self.serial) as u32;
                answer(context, index, head, status, Status::Ok, written);
                Ok(0)
            }
            Parsed::Refused(refusal) => {
                context.page.errors.fetch_add(1, Relaxed);
                answer(context, index, head, status, refusal, 0);
                Ok(0)
            }
        }
    }

    fn submit(
        &mut self,
        context: &mut Context<'_>,
        (queue, head, place, status): (u16, u16, Option<u16>, *mut u8),
        (operation, offset, length): (Operation, u64, u64),
    ) {
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::new());
            (self.slots.len() - 1) as u16
        });
        let token = context.io(number);
        let features = context.queue(queue).map_or(0, |queue| queue.features);
        let slot = &mut self.slots[usize::from(number)];
        match operation {
            Operation::Read => std::mem::swap(&mut slot.iovecs, &mut self.buffers.writable),
            Operation::Write => std::mem::swap(&mut slot.iovecs, &mut self.buffers.readable),
            _ => slot.iovecs.clear(),
        }
        let (iovecs, iovec_count) = (slot.iovecs.as_ptr(), slot.iovecs.len());
        slot.request = Request { operation, offset, length, iovecs, iovec_count, token };
        (slot.queue, slot.head, slot.place, slot.status) = (queue, head, place, status);
        (slot.moved, slot.error, slot.retries) = (0, 0, 0);
        slot.write_through = operation != Operation::Read
            && operation != Operation::Flush
            && features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
        slot.torn = false;
        add(&context.page.inflight, 1);
        self.start(context, number);
    }

    /// Give the request in slot `number` to the disk; once more, if it has been there; as a flush, if that is what is
    /// left of it.
    fn dispatch(&mut self, context: &mut Context<'_>, number: u16) {
        if self.slots[usize::from(number)].request.operation == Operation::Flush {
            if context.page.flush_error.load(Relaxed) != 0 {
                self.tell_flush_failed(context);
                return self.end(context, number, -libc::EIO);
            }
            if !self.flushes.begin(number) {
                return;
            }
        }
        self.ask(context, number);
    }

    /// Keep the request in `slot` until it is tried again.
    fn wait_for_space(&mut self, context: &mut Context<'_>, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        slot.retries = 0;
        slot.leave(context);
        self.spaceless.push(number);
        if !std::mem::replace(&mut slot.spaceless, true) && context.page.spaceless.fetch_add(1, Relaxed) == 0
        {
            context.tell_space(false);
        }
        if !std::mem::replace(&mut self.pausing, true) {
            let pause = opcode::Timeout::new(&SPACE_PAUSE).build();
            // SAFETY: the time is static.
            unsafe { context.uring.push(pause.user_data(context.io(SPACE_PAUSED))) };
        }
    }

    /// Try again what found no space.
    fn retry_spaceless(&mut self, context: &mut Context<'_>) {
        self.pausing = false;
        for number in std::mem::take(&mut self.spaceless) {
            self.start(context, number);
        }
    }

    /// All completions of a slot are there: answer, or try again.
    fn finish(&mut self, context: &mut Context<'_>, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        let operation = slot.request.operation;
        let short = matches!(operation, Operation::Read | Operation::Write)
            && slot.error == 0
            && slot.moved != slot.request.length;
        if (short || slot.error == -libc::EAGAIN || slot.error == -libc::EINTR) && slot.retries < RETRIES {
            slot.retries += 1;
            return self.dispatch(context, number);
        }
        if slot.torn {
            slot.error = -libc::EIO;
        } else if short {
            // A write that comes out short again and again has met the end of the space.
            slot.error = if operation == Operation::Write { -libc::ENOSPC } else { -libc::EIO };
        }
        let spaceless = match operation {
            Operation::Flush => slot.error == UNFLUSHED,
            _ => matches!(-slot.error, libc::ENOSPC | libc::EDQUOT),
        };
        let queue = slot.queue;
        if spaceless && context.queue(queue).is_some_and(|queue| queue.stopping.is_none()) {
            return self.wait_for_space(context, number);
        }
        if self.flushes.is_running(number) {
            self.flushed(context, number);
        }
        let slot = &mut self.slots[usize::from(number)];
        if let (Some(log), 0) = (&mut self.log, slot.error) {
            log.done(&slot.request);
        }
        if std::mem::take(&mut slot.spaceless) && context.page.spaceless.fetch_sub(1, Relaxed) == 1 {
            context.tell_space(true);
        }
        if slot.error == 0 && slot.write_through {
            slot.write_through = false;
            slot.request.operation = Operation::Flush;
            slot.leave(context);
            count(context, operation, slot.request.length);
            return self.start(context, number);
        }
        let (queue, head, status) = (slot.queue, slot.head, slot.status);
        let (result, length) = (slot.error, slot.request.length);
        slot.leave(context);
        self.free.push(number);
        add(&context.page.inflight, 1u64.wrapping_neg());
        self.feed(context);
        if result < 0 {
            context.page.errors.fetch_add(1, Relaxed);
            let status_value =
                if result == -libc::EOPNOTSUPP { Status::Unsupported } else { Status::IoError };
            return answer(context, queue, head, status, status_value, 0);
        }
        count(context, operation, length);
        // A chain holds less than 4 GiB, so the length fits.
        let written = if operation == Operation::Read { length as u32 } else { 0 };
        answer(context, queue, head, status, Status::Ok, written);
    }
}

impl Device for Blk {
    fn serve(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation> {
        let mut bytes = 0;
        for turn in 0..BUDGET {
            if self.in_flight() >= self.disk.depth() || self.waiting >= AHEAD {
                let list = if turn == 0 { &mut self.starved } else { &mut self.half_fed };
                list.push(index);
                if let Some(queue) = context.queue(index) {
                    queue.park();
                }
                return Ok(false);
            }
            let Some(queue) = context.queue(index) else { return Ok(false) };
            let repeats = queue.repeats();
            let Some(head) = queue.take(&mut self.buffers)? else { return Ok(false) };
            let place = (!repeats).then(|| queue.next_avail().wrapping_sub(1));
            bytes += self.begin(context, index, (head, place))?;
            // If the ring is broken, the next turn ends the worker.
            let _ = context.uring.submit_batch(BATCH);
            if bytes > BUDGET_BYTES {
                break;
            }
        }
        Ok(true)
    }

    fn complete(&mut self, context: &mut Context<'_>, value: u16, result: i32) -> Result<(), Fault> {
        if value == SPACE_PAUSED {
            self.retry_spaceless(context);
            return Ok(());
        }
        if value == FAULTS_DUE {
            self.let_go(context, Faults::due);
            return Ok(());
        }
        let Some(slot) = self.slots.get_mut(usize::from(value)) else { return Ok(()) };
        slot.pending -= 1;
        if result < 0 {
            slot.error = result;
        } else {
            slot.moved += result as u64;
        }
        match (slot.pending, slot.parts.is_empty()) {
            (0, true) => self.finish(context, value),
            (0, false) => self.take_apart(context, value),
            _ => {}
        }
        Ok(())
    }

    fn admitted(&mut self, context: &mut Context<'_>, value: u16) {
        self.wait_no_more(value);
        self.gather(context, value);
        self.feed(context);
        self.launch(context, value);
    }

    fn set_faults(&mut self, context: &mut Context<'_>, plan: Option<FaultPlan>) {
        let held = self.faults.as_mut().map(Faults::release).unwrap_or_default();
        self.faults = plan.map(Faults::new);
        for (number, _) in held {
            self.start(context, number);
        }
    }

    fn stopping(&mut self, context: &mut Context<'_>, index: u16) {
        self.put_back(context, index);
        let of_queue: Vec<bool> = self.slots.iter().map(|slot| slot.queue == index).collect();
        self.let_go(context, |faults| faults.give_up(|number| of_queue[usize::from(number)]));
        // The guest goes, and would wait for the host: what it was never told to be written is not.
        let waiting = std::mem::take(&mut self.spaceless);
        let (gone, kept): (Vec<u16>, Vec<u16>) =
            waiting.into_iter().partition(|number| self.slots[usize::from(*number)].queue == index);
        self.spaceless = kept;
        for number in gone {
            self.finish(context, number);
        }
    }
}

/// Write the status and give the chain back; `written` is the number of data bytes before the status.
fn answer(context: &mut Context<'_>, index: u16, head: u16, status: *mut u8, value: Status, written: u32) {
    // SAFETY: `status` is a byte of guest memory (SIGBUS is handled), which the reactor keeps mapped while its
    // chain is taken.
    unsafe { status.write_volatile(value as u8) };
    if let Some(queue) = context.queue(index) {
        queue.complete_soon(head, written + 1);
    }
}

fn count(context: &Context<'_>, operation: Operation, length: u64) {
    let page = context.page;
    match operation {
        Operation::Read => {
            add(&page.reads, 1);
            add(&page.read_bytes, length);
        }
        Operation::Write => {
            add(&page.writes, 1);
            add(&page.written_bytes, length);
        }
        Operation::Flush => {
            add(&page.flushes, 1);
        }
        Operation::Discard | Operation::WriteZeroes { .. } => {
            add(&page.discards, 1);
        }
    }
}

impl Drop for Blk {
    fn drop(&mut self) {
        // Nobody is left to be told; what counts has been acknowledged as durable before.
        if let Err(error) = self.disk.close() {
            eprintln!("closing a disk: {error}");
        }
    }
}
