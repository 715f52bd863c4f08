//! Host work: the content of one disk is copied to another, in turns that the arbiter gives, as it does to guests.
//!
//! A copy of a whole disk, or of a part: what only the source's top layer has, what the target does not have itself, what is
//! not the same in a third disk. By these, layers are merged and get another base.

use std::sync::atomic::Ordering::Relaxed;

use crate::arbiter::{Ask, Kind, Leaf, Request as Asked};
use crate::block::raw::Aligned;
use crate::block::{Disk, Operation, Request, UNFLUSHED};
use crate::config::CopyConfig;
use crate::worker::device::{Context, Device, Fault};
use crate::worker::queue::Violation;

/// Bytes that are read and written at a time: what a guest of the same disk waits for is one of these.
const CHUNK: u64 = 64 << 10;

/// Chunks that are under way at once.
const CHUNKS: usize = 16;

/// Bytes that are looked at for something to copy with one question, in chunks.
const LOOK: u64 = 1 << 30;

/// What happens to a chunk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Idle,
    /// Whether the source's top layer has it.
    LookAtSource,
    /// Whether the target's top layer has it.
    LookAtTarget,
    Read,
    /// What it is compared with is read.
    Compare,
    Write,
    /// It is all zeroes.
    Zero,
    /// After the last one: all of it is made durable.
    Flush,
}

struct Chunk {
    buffer: Aligned,
    /// What it is compared with; `None` in a copy that compares nothing.
    other: Option<Aligned>,
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

/// What a copy works on.
pub struct Ends {
    /// The source.
    pub from: Box<dyn Disk>,
    /// The target, at least as large.
    pub to: Box<dyn Disk>,
    /// What reads the same here is not copied.
    pub unlike: Option<Box<dyn Disk>>,
}

/// A copy. It goes on where its page says that it was, begins when it is opened, and ends by itself or by closing.
pub struct Copy {
    ends: Ends,
    top_only: bool,
    keep: bool,
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
    /// Copy as `config` says; requests are offered at `leaf`. `None` without memory.
    pub fn new(config: &CopyConfig, ends: Ends, leaf: Option<Leaf>) -> Option<Copy> {
        let chunks: Option<Vec<Chunk>> = (0..CHUNKS).map(|_| Chunk::new(ends.unlike.is_some())).collect();
        let chunks = chunks?.into_boxed_slice();
        let (top_only, keep) = (config.top_only, config.keep);
        Some(Copy { ends, top_only, keep, leaf, chunks, next: 0, flushed: false, error: 0, ended: false })
    }

    /// Begin what can be begun, and say when there is nothing left.
    fn advance(&mut self, context: &mut Context<'_>) {
        let total = self.ends.from.size();
        for number in 0..CHUNKS as u16 {
            if self.next >= total || self.error != 0 {
                break;
            }
            let chunk = &mut self.chunks[usize::from(number)];
            if chunk.step == Step::Idle {
                (chunk.offset, chunk.length) = (self.next, CHUNK.min(total - self.next));
                self.next += chunk.length;
                self.consider(context, number);
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

    /// Find out whether the chunk is to be copied, and read it if so.
    fn consider(&mut self, context: &mut Context<'_>, number: u16) {
        let chunk = &self.chunks[usize::from(number)];
        let step = match chunk.step {
            Step::Idle if self.top_only => Step::LookAtSource,
            Step::Idle | Step::LookAtSource if self.keep => Step::LookAtTarget,
            _ => return self.ask(context, number, Step::Read),
        };
        self.look(context, number, step);
    }

    /// Ask a layer's tables, which takes no turn.
    fn look(&mut self, context: &mut Context<'_>, number: u16, step: Step) {
        let (source, total) = (step == Step::LookAtSource, self.ends.from.size());
        let chunk = &mut self.chunks[usize::from(number)];
        (chunk.step, chunk.moved, chunk.error, chunk.pending) = (step, 0, 0, 1);
        let length = if source { LOOK.min(total - chunk.offset) } else { chunk.length };
        let disk = if source { &self.ends.from } else { &self.ends.to };
        // At most LOOK.
        disk.left_to_others(context.uring, chunk.offset, length as u32, context.io(number));
    }

    /// What a layer's tables say of the chunk.
    fn looked(&mut self, context: &mut Context<'_>, number: u16) {
        let chunk = &mut self.chunks[usize::from(number)];
        let left = chunk.moved;
        if chunk.step == Step::LookAtTarget {
            if left == chunk.length {
                return self.ask(context, number, Step::Read);
            }
        } else if left < chunk.length {
            return self.consider(context, number);
        } else {
            // Nor is there anything in the chunks behind it.
            let end = chunk.offset + left;
            let chunks = if end == self.ends.from.size() { end } else { end / CHUNK * CHUNK };
            self.next = self.next.max(chunks);
        }
        chunk.step = Step::Idle;
        self.advance(context);
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
        let buffer = match &chunk.other {
            Some(other) if chunk.step == Step::Compare => other,
            _ => &chunk.buffer,
        };
        chunk.iovec = libc::iovec { iov_base: buffer.pointer().cast(), iov_len: chunk.length as usize };
        let Ends { from, to, unlike } = &self.ends;
        let (disk, operation) = match chunk.step {
            Step::Idle | Step::LookAtSource | Step::LookAtTarget => return,
            Step::Read => (from, Operation::Read),
            Step::Compare => (unlike.as_ref().unwrap_or(from), Operation::Read),
            Step::Write => (to, Operation::Write),
            // What is kept apart from the layers below it is to be zero by itself.
            Step::Zero => (to, Operation::WriteZeroes { unmap: !self.keep }),
            Step::Flush => (to, Operation::Flush),
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
        if matches!(chunk.step, Step::Read | Step::Compare | Step::Write)
            && chunk.error == 0
            && chunk.moved != chunk.length
        {
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
            Step::LookAtSource | Step::LookAtTarget if self.error == 0 => {
                return self.looked(context, number);
            }
            Step::Read if self.error == 0 && self.ends.compares(chunk) => {
                return self.ask(context, number, Step::Compare);
            }
            Step::Read | Step::Compare if self.error == 0 && !chunk.is_same() => {
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
        self.next = context.page.copied.load(Relaxed).min(self.ends.from.size());
        context.page.to_copy.store(self.ends.from.size(), Relaxed);
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
            chunk.error = if result == UNFLUSHED { -libc::ENOSPC } else { result };
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

impl Ends {
    /// Whether there is something to compare the chunk with.
    fn compares(&self, chunk: &Chunk) -> bool {
        self.unlike.as_ref().is_some_and(|disk| chunk.offset + chunk.length <= disk.size())
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // A copy that has ended has flushed; of another one nobody relies on what was copied.
        if let Err(error) = self.ends.to.close() {
            eprintln!("closing a copy's target: {error}");
        }
    }
}

impl Chunk {
    fn new(compared: bool) -> Option<Chunk> {
        let iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let buffer = Aligned::new(CHUNK as usize)?;
        let other = if compared { Some(Aligned::new(CHUNK as usize)?) } else { None };
        let (step, asked, waits) = (Step::Idle, None, false);
        Some(Chunk {
            buffer,
            other,
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
            Step::Idle | Step::LookAtSource | Step::LookAtTarget | Step::Read | Step::Compare => Kind::Read,
            Step::Write => Kind::Write,
            Step::Zero => Kind::Discard,
            Step::Flush => Kind::Flush,
        }
    }

    fn bytes<'a>(&self, buffer: &'a Aligned) -> &'a [u8] {
        // SAFETY: the buffer has so many bytes, initialised, and nobody writes them between two steps.
        unsafe { std::slice::from_raw_parts(buffer.pointer(), self.length as usize) }
    }

    /// Whether it has been compared and is no different.
    fn is_same(&self) -> bool {
        self.step == Step::Compare
            && self.other.as_ref().is_some_and(|other| self.bytes(&self.buffer) == self.bytes(other))
    }

    fn is_zero(&self) -> bool {
        let bytes = self.bytes(&self.buffer);
        // SAFETY: any bytes are a u64.
        let (head, words, tail) = unsafe { bytes.align_to::<u64>() };
        words.iter().all(|word| *word == 0) && head.iter().chain(tail).all(|byte| *byte == 0)
    }
}
