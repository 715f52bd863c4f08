//! Neighbours that wait go to the disk as one request. A request that does not have to wait has no part in this.

use std::collections::HashMap;

use super::Blk;
use super::slot::Slot;
use crate::arbiter::IO_BYTES;
use crate::block::{Operation, Request};
use crate::worker::device::Context;

/// Bytes of a merged request. What others wait for is at most one of these more, as for a copy's.
const MOST_BYTES: u64 = IO_BYTES;

/// Buffers of one: `IOV_MAX` is 1024, and to gather them takes time.
const MOST_BUFFERS: usize = 128;

/// Reads and writes of a disk that wait, by where they begin: of several at one place the first.
#[derive(Default)]
pub(super) struct Neighbours(HashMap<(bool, u64), u16>);

impl Neighbours {
    /// The request in `slot`, of this `number`, waits.
    pub fn add(&mut self, number: u16, slot: &Slot) {
        if let Some(place) = slot.begins() {
            self.0.entry(place).or_insert(number);
        }
    }

    /// It does not any more.
    pub fn remove(&mut self, number: u16, slot: &Slot) {
        if let Some(place) = slot.begins()
            && self.0.get(&place) == Some(&number)
        {
            self.0.remove(&place);
        }
    }

    /// The one that waits behind the end of `slot`.
    fn behind(&self, slot: &Slot) -> Option<u16> {
        let (write, begin) = slot.begins()?;
        self.0.get(&(write, begin + slot.request.length)).copied()
    }
}

impl Blk {
    /// Have those that wait behind the end of the request in slot `number`, which is about to be launched, go with it.
    pub(super) fn gather(&mut self, context: &mut Context<'_>, number: u16) {
        let first = &self.slots[usize::from(number)];
        let (mut length, mut buffers) = (first.request.length, first.iovecs.len());
        let mut last = number;
        while let Some(next) = self.neighbours.behind(&self.slots[usize::from(last)]) {
            let slot = &self.slots[usize::from(next)];
            length += slot.request.length;
            buffers += slot.iovecs.len();
            let (Some(asked), true) = (slot.asked, length <= MOST_BYTES && buffers <= MOST_BUFFERS) else {
                return;
            };
            if !context.arbiter.join(context.now, asked) {
                return;
            }
            self.wait_no_more(next);
            self.slots[usize::from(next)].place = None;
            self.unite(number, next);
            last = next;
        }
    }

    /// The request in slot `next` becomes a part of the one in slot `number`, behind its others.
    fn unite(&mut self, number: u16, next: u16) {
        let first = &mut self.slots[usize::from(number)];
        let (mut parts, mut whole) = (std::mem::take(&mut first.parts), std::mem::take(&mut first.whole));
        if parts.is_empty() {
            parts.push(number);
            whole.extend_from_slice(&first.iovecs);
        }
        parts.push(next);
        whole.extend_from_slice(&self.slots[usize::from(next)].iovecs);
        let first = &mut self.slots[usize::from(number)];
        (first.parts, first.whole) = (parts, whole);
    }

    /// The merged request of slot `number` has ended, and so has each of its parts. If not all of it was done, each is
    /// tried by itself: its guest is told what became of it, not of its neighbours.
    pub(super) fn take_apart(&mut self, context: &mut Context<'_>, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        let done = slot.error == 0 && slot.moved == slot.to_submit().length;
        let mut parts = std::mem::take(&mut slot.parts);
        slot.whole.clear();
        for part in parts.drain(..) {
            let slot = &mut self.slots[usize::from(part)];
            if done {
                (slot.moved, slot.error) = (slot.request.length, 0);
                self.finish(context, part);
            } else {
                self.launch(context, part);
            }
        }
        // Its capacity is used again.
        self.slots[usize::from(number)].parts = parts;
    }
}

impl Slot {
    /// What the disk is asked for.
    pub fn to_submit(&self) -> Request {
        if self.parts.is_empty() {
            return self.request;
        }
        let length = self.whole.iter().map(|iovec| iovec.iov_len as u64).sum();
        Request { length, iovecs: self.whole.as_ptr(), iovec_count: self.whole.len(), ..self.request }
    }

    /// Direction and offset of a request that may be merged; a torn one has its own end.
    fn begins(&self) -> Option<(bool, u64)> {
        match self.request.operation {
            Operation::Read if !self.torn => Some((false, self.request.offset)),
            Operation::Write if !self.torn => Some((true, self.request.offset)),
            _ => None,
        }
    }
}
