//! A request waits for its turn at the disk, which the arbiter gives.

use std::sync::atomic::Ordering::Relaxed;

use super::{Blk, Slot};
use crate::arbiter::Ask;
use crate::block::writelog::WriteLog;
use crate::block::{Operation, UNFLUSHED};
use crate::worker::device::Context;

impl Blk {
    /// Give the request in slot `number` to the disk when it is its turn. One that is at the disk already, and is
    /// tried again, does not wait once more.
    pub(super) fn ask(&mut self, context: &mut Context<'_>, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        let (Some(leaf), None) = (self.leaf, slot.asked) else { return self.launch(context, number) };
        let (ticket, bytes) = (slot.request.token, slot.request.length);
        let ask = Ask { ticket, kind: slot.kind(), bytes };
        let admission = context.arbiter.offer(context.now, leaf, ask);
        slot.asked = Some(admission.request);
        if admission.now {
            return self.launch(context, number);
        }
        self.wait(number);
        // A queue that stops waits for its requests, and its guest for us.
        if context.queue(self.slots[usize::from(number)].queue).is_none_or(|queue| queue.stopping.is_some()) {
            self.hurry(context, number);
        }
    }

    /// Give the request in slot `number` to the disk.
    pub(super) fn launch(&mut self, context: &mut Context<'_>, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        (slot.moved, slot.error, slot.place) = (0, 0, None);
        if slot.request.operation == Operation::Flush {
            context.page.flushing.store(1, Relaxed);
            self.log.as_mut().map(WriteLog::begin_flush);
        }
        let request = slot.to_submit();
        // SAFETY: the slot's buffers stay until the last completion; the reactor keeps guest memory mapped as
        // long as requests are in flight.
        slot.pending = unsafe { self.disk.submit(context.uring, &request) };
    }

    /// The request in slot `number`, which waits, goes before its turn. Its node pays for it later.
    fn hurry(&mut self, context: &mut Context<'_>, number: u16) {
        if let Some(asked) = self.slots[usize::from(number)].asked {
            context.arbiter.hurry(context.now, asked);
        }
        self.wait_no_more(number);
        self.launch(context, number);
    }

    /// The request in slot `number` was offered, and it is not its turn yet.
    fn wait(&mut self, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        slot.waits = true;
        self.waiting += 1;
        self.neighbours.add(number, slot);
    }

    pub(super) fn wait_no_more(&mut self, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        slot.waits = false;
        self.waiting -= 1;
        self.neighbours.remove(number, slot);
    }

    /// Queue `index` stops: what waits for its turn goes back into the available ring, from its end as far as that is
    /// possible; the guest, or a machine that goes on elsewhere, will offer it again. The rest goes to the disk now.
    pub(super) fn put_back(&mut self, context: &mut Context<'_>, index: u16) {
        let waits = |slot: &Slot| slot.waits && slot.queue == index;
        let mut waiting: Vec<u16> =
            (0..self.slots.len() as u16).filter(|number| waits(&self.slots[usize::from(*number)])).collect();
        while let Some(queue) = context.queue(index) {
            let last = Some(queue.next_avail().wrapping_sub(1));
            let found = waiting.iter().position(|number| self.slots[usize::from(*number)].place == last);
            let Some(found) = found else { break };
            let number = waiting.swap_remove(found);
            queue.put_back(self.slots[usize::from(number)].head);
            self.forget(context, number);
        }
        waiting.sort_unstable();
        for number in waiting {
            self.hurry(context, number);
        }
        self.feed(context);
    }

    /// The request in slot `number`, which waits, is none of ours any more.
    fn forget(&mut self, context: &mut Context<'_>, number: u16) {
        self.wait_no_more(number);
        if let Some(asked) = self.slots[usize::from(number)].asked.take() {
            context.arbiter.withdraw(context.now, asked);
        }
        self.free.push(number);
        context.page.inflight.fetch_sub(1, Relaxed);
        if self.flushes.is_running(number) {
            self.slots[usize::from(number)].error = UNFLUSHED;
            self.flushed(context, number);
        }
    }

    /// There is room again: queues that found none are served, those first that got nothing.
    pub(super) fn feed(&mut self, context: &mut Context<'_>) {
        context.wake.append(&mut self.starved);
        context.wake.append(&mut self.half_fed);
    }
}
