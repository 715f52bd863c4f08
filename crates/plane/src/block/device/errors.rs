//! What may become of a request beside being served: faults on purpose, and flushes that fail.

use std::sync::atomic::Ordering::Relaxed;

use super::{Blk, FAULTS_DUE};
use crate::block::UNFLUSHED;
use crate::block::faults::{Fate, Faults, Hold};
use crate::block::flushes::End;
use crate::worker::device::Context;

impl Blk {
    /// Start the request in slot `number`, as faults allow.
    pub(super) fn start(&mut self, context: &mut Context<'_>, number: u16) {
        let slot = &self.slots[usize::from(number)];
        let Some(faults) = &mut self.faults else { return self.dispatch(context, number) };
        // A queue that stops waits for its requests.
        if context.queue(slot.queue).is_none_or(|queue| queue.stopping.is_some()) {
            return self.dispatch(context, number);
        }
        let (hold, fate) = faults.judge(&slot.request);
        if (hold, fate) != (Hold::No, Fate::Serve) {
            context.page.faults.fetch_add(1, Relaxed);
        }
        if hold == Hold::No {
            return self.meet(context, number, fate);
        }
        faults.hold(context.uring, context.io(FAULTS_DUE), number, hold, fate);
    }

    /// What a fault has decided about the request in slot `number`.
    fn meet(&mut self, context: &mut Context<'_>, number: u16, fate: Fate) {
        match fate {
            Fate::Serve => {}
            Fate::Fail(error) => return self.end(context, number, error),
            Fate::Tear(bytes) => self.slots[usize::from(number)].tear(bytes),
        }
        self.dispatch(context, number);
    }

    /// Have the request in slot `number` end with `error`, in the next turn.
    pub(super) fn end(&mut self, context: &Context<'_>, number: u16, error: i32) {
        let slot = &mut self.slots[usize::from(number)];
        (slot.moved, slot.error, slot.pending) = (0, 0, 1);
        context.uring.post(context.io(number), error);
    }

    /// The flush in slot `number`, which was at the disk, has ended: so have those that joined it, and the next may go.
    pub(super) fn flushed(&mut self, context: &mut Context<'_>, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        if slot.error == 0 && context.page.flush_error.load(Relaxed) != 0 {
            // A sync of the disk's own has failed meanwhile, and was told what this one was not.
            slot.error = -libc::EIO;
        }
        let error = slot.error;
        let end = match error {
            0 => End::Durable,
            UNFLUSHED => End::Unfinished,
            _ => End::Failed,
        };
        if end == End::Failed {
            let _ = context.page.flush_error.compare_exchange(0, error.unsigned_abs(), Relaxed, Relaxed);
            self.tell_flush_failed(context);
        }
        context.page.flushing.store(0, Relaxed);
        if let (Some(log), End::Durable) = (&mut self.log, end)
            && let Err(error) = log.end_flush()
        {
            eprintln!("plane worker: the log of writes: {error}");
        }
        let (shared, next) = self.flushes.end(end);
        for number in shared {
            self.slots[usize::from(number)].error = error;
            self.finish(context, number);
        }
        if let Some(next) = next {
            self.dispatch(context, next);
        }
    }

    /// Once, whether it was the guest's flush that failed, or one of the disk's own.
    pub(super) fn tell_flush_failed(&mut self, context: &mut Context<'_>) {
        if !std::mem::replace(&mut self.flush_failure_told, true) {
            context.tell_flush_failed(-(context.page.flush_error.load(Relaxed) as i32));
        }
    }

    /// Requests that faults do not hold any more.
    pub(super) fn let_go(
        &mut self,
        context: &mut Context<'_>,
        which: impl FnOnce(&mut Faults) -> Vec<(u16, Fate)>,
    ) {
        for (number, fate) in self.faults.as_mut().map(which).unwrap_or_default() {
            self.meet(context, number, fate);
        }
    }
}
