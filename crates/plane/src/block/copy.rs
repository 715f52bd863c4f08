//! Host work: the content of one disk is copied to another, in turns that the arbiter gives, as it does to guests.

use std::sync::atomic::Ordering::Relaxed;

use crate::arbiter::{Ask, Kind, Leaf, Request as Asked};
use crate::block::raw::Aligned;
use crate::block::{Disk, Operation, Request};
use crate::worker::device::{Context, Device, Fault};
use crate::worker::queue::Violation;

/// Bytes that are read and written at a time: what a guest of the same disk waits for is one of these.
const CHUNK: u64 = 64 << 10;

/// Chunks that are under way at once.
const CHUNKS: usize = 16;

/// What happens to a chunk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Idle,
    Read,
    Write,
    /// It is all zeroes.
    Zero,
    /// After the last one: all of it is made durable.
    Flush,
}

struct Chunk {
    buffer: Aligned,
    iovec: libc::iovec,
    step: Step,
    offset: u64,
    length: u64,
    /// What the arbiter knows it by.
    asked: Option<Asked>,
    waits: bool,
    /// Completions still to come.
    pending: usize,
    moved: u64,
    error: i32,
}

/// A copy. It goes on where its page says that it was, begins when it is opened, and ends by itself or by closing.
pub struct Copy {
    from: Box<dyn Disk>,
    to: Box<dyn Disk>,
    leaf: Option<Leaf>,
    /// Does not move: requests name the buffers and vectors in it.
    chunks: Box<[Chunk]>,
    /// Offset of the next chunk to read.
    next: u64,
    flushed: bool,
    /// The first error; nothing new is begun after it.
    error: i32,
    ended: bool,
}

impl Copy {
    /// Copy `from` to `to`, which is at least as large; requests are offered at `leaf`. `None` without memory.
    pub fn new(from: Box<dyn Disk>, to: Box<dyn Disk>, leaf: Option<Leaf>) -> Option<Copy> {
        let chunks: Option<Vec<Chunk>> = (0..CHUNKS).map(|_| Chunk::new()).collect();
        let chunks = chunks?.into_boxed_slice();
        Some(Copy { from, to, leaf, chunks, next: 0, flushed: false, error: 0, ended: false })
    }

    /// Begin what can be begun, and say when there is nothing left.
    fn advance(&mut self, context: &mut Context<'_>) {
        let total = self.from.size();
        for number in 0..CHUNKS as u16 {
            if self.next >= total || self.error != 0 {
                break;
            }
            let chunk = &mut self.chunks[usize::from(number)];
            if chunk.step == Step::Idle {
                (chunk.offset, chunk.length) = (self.next, CHUNK.min(total - self.next));
                self.next += chunk.length;
                self.ask(context, number, Step::Read);
            }
        }
        let busy = self.chunks.iter().filter(|chunk| chunk.step != Step::Idle);
        let done = busy.clone().map(|chunk| chunk.offset).min().unwrap_or(self.next);
        // Here a next worker goes on; not behind a chunk that failed.
        if self.error == 0 {
            context.page.copied.store(done, Relaxed);
        }
        if busy.count() > 0 || self.ended {
            return;
        }
        if self.error == 0 && !self.flushed {
            self.chunks[0].offset = total;
            return self.ask(context, 0, Step::Flush);
        }
        self.ended = true;
        context.tell_ended(self.error);
    }

    /// Do `step` with the chunk when it is its turn.
    fn ask(&mut self, context: &mut Context<'_>, number: u16, step: Step) {
        let chunk = &mut self.chunks[usize::from(number)];
        chunk.step = step;
        let Some(leaf) = self.leaf else { return self.launch(context, number) };
        let ask = Ask { ticket: context.io(number), kind: chunk.kind(), bytes: chunk.length };
        let admission = context.arbiter.offer(context.now, leaf, ask);
        chunk.asked = Some(admission.request);
        chunk.waits = !admission.now;
        if admission.now {
            self.launch(context, number);
        }
    }

    fn launch(&mut self, context: &mut Context<'_>, number: u16) {
        let chunk = &mut self.chunks[usize::from(number)];
        (chunk.waits, chunk.moved, chunk.error) = (false, 0, 0);
        chunk.iovec = libc::iovec { iov_base: chunk.buffer.pointer().cast(), iov_len: chunk.length as usize };
        let (disk, operation) = match chunk.step {
            Step::Idle => return,
            Step::Read => (&self.from, Operation::Read),
            Step::Write => (&self.to, Operation::Write),
            Step::Zero => (&self.to, Operation::WriteZeroes { unmap: true }),
            Step::Flush => (&self.to, Operation::Flush),
        };
        let (offset, length) = if chunk.step == Step::Flush { (0, 0) } else { (chunk.offset, chunk.length) };
        let token = context.io(number);
        let request = Request { operation, offset, length, iovecs: &chunk.iovec, iovec_count: 1, token };
        // SAFETY: the chunk's buffer and vector stay where they are until it is idle again, and the device until then.
        chunk.pending = unsafe { disk.submit(context.uring, &request) };
    }

    /// The chunk's step is done.
    fn finish(&mut self, context: &mut Context<'_>, number: u16) {
        let chunk = &mut self.chunks[usize::from(number)];
        if let Some(asked) = chunk.asked.take() {
            context.arbiter.complete(context.now, asked);
        }
        if matches!(chunk.step, Step::Read | Step::Write) && chunk.error == 0 && chunk.moved != chunk.length {
            chunk.error = -libc::EIO;
        }
        // Not every device can release space.
        if chunk.step == Step::Zero && chunk.error == -libc::EOPNOTSUPP {
            return self.ask(context, number, Step::Write);
        }
        if chunk.error != 0 && self.error == 0 {
            self.error = chunk.error;
        }
        match chunk.step {
            Step::Read if self.error == 0 => {
                let step = if chunk.is_zero() { Step::Zero } else { Step::Write };
                return self.ask(context, number, step);
            }
            Step::Flush => self.flushed = true,
            _ => {}
        }
        chunk.step = Step::Idle;
        self.advance(context);
    }
}

impl Device for Copy {
    fn opened(&mut self, context: &mut Context<'_>) {
        self.next = context.page.copied.load(Relaxed).min(self.from.size());
        context.page.to_copy.store(self.from.size(), Relaxed);
        self.advance(context);
    }

    fn serve(&mut self, _context: &mut Context<'_>, _index: u16) -> Result<bool, Violation> {
        Ok(false)
    }

    fn admitted(&mut self, context: &mut Context<'_>, value: u16) {
        self.launch(context, value);
    }

    fn complete(&mut self, context: &mut Context<'_>, value: u16, result: i32) -> Result<(), Fault> {
        let Some(chunk) = self.chunks.get_mut(usize::from(value)) else { return Ok(()) };
        chunk.pending -= 1;
        if result < 0 {
            chunk.error = result;
        } else {
            chunk.moved += result as u64;
        }
        if chunk.pending == 0 {
            self.finish(context, value);
        }
        Ok(())
    }

    fn closing(&mut self, context: &mut Context<'_>) {
        self.error = -libc::ECANCELED;
        self.ended = true;
        for chunk in self.chunks.iter_mut().filter(|chunk| chunk.waits) {
            (chunk.waits, chunk.step) = (false, Step::Idle);
            if let Some(asked) = chunk.asked.take() {
                context.arbiter.withdraw(context.now, asked);
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.chunks.iter().all(|chunk| chunk.step == Step::Idle)
    }
}

impl Chunk {
    fn new() -> Option<Chunk> {
        let iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let buffer = Aligned::new(CHUNK as usize)?;
        let (step, asked, waits) = (Step::Idle, None, false);
        Some(Chunk {
            buffer,
            iovec,
            step,
            offset: 0,
            length: 0,
            asked,
            waits,
            pending: 0,
            moved: 0,
            error: 0,
        })
    }

    fn kind(&self) -> Kind {
        match self.step {
            Step::Idle | Step::Read => Kind::Read,
            Step::Write => Kind::Write,
            Step::Zero => Kind::Discard,
            Step::Flush => Kind::Flush,
        }
    }

    fn is_zero(&self) -> bool {
        // SAFETY: the buffer has so many bytes, initialised, and nobody writes them between two steps.
        let bytes = unsafe { std::slice::from_raw_parts(self.buffer.pointer(), self.length as usize) };
        // SAFETY: any bytes are a u64.
        let (head, words, tail) = unsafe { bytes.align_to::<u64>() };
        words.iter().all(|word| *word == 0) && head.iter().chain(tail).all(|byte| *byte == 0)
    }
}
