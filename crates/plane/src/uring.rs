//! One io_uring for one thread.
//!
//! Two ways to use it, side by side on the same ring:
//!
//! - raw, for the data path: [`Uring::push`] an SQE under a token of the caller's, [`Uring::reap`] hands the token back
//!   with the result. Nothing is allocated per operation.
//! - futures, for the slow paths (image metadata): [`Uring::op`] inside a task of [`Uring::tasks`].
//!
//! A turn of the owner's loop is: `reap`, `tasks.run_ready`, push what there is to do, `submit` or `submit_and_wait`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::types::{Fixed, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use crate::executor::Executor;

/// Tokens at and above this are the ring's own.
pub const TOKEN_LIMIT: u64 = 1 << 63;

/// The completion of a cancel request, which nobody waits for.
const TOKEN_IGNORED: u64 = u64::MAX;

/// Slots for registered files; the kernel refuses more than RLIMIT_NOFILE, whose usual soft value is 1024.
const FILES: u32 = 1024;

/// Completions that are taken off the ring at once.
const BATCH: usize = 64;

/// An io_uring, its operations in flight and the tasks that wait for them. Belongs to the thread that made it.
pub struct Uring {
    /// The tasks whose futures this ring completes.
    pub tasks: Executor,
    ring: RefCell<IoUring>,
    /// SQEs that found the submission queue full, in order.
    backlog: RefCell<VecDeque<squeue::Entry>>,
    /// Completions for the next `reap`: posted ones, and raw ones met while waiting for something else.
    stash: RefCell<VecDeque<(u64, i32, u32)>>,
    ops: RefCell<Ops>,
    files: RefCell<Files>,
    raw_inflight: Cell<usize>,
}

#[derive(Default)]
struct Ops {
    slots: Vec<OpState>,
    free: Vec<usize>,
}

enum OpState {
    Free,
    Pending(Option<Waker>),
    Done(i32),
}

struct Files {
    limit: u32,
    next: u32,
    free: Vec<u32>,
}

impl Uring {
    /// A ring with room for `entries` SQEs (a power of two) and four times as many completions.
    pub fn new(entries: u32) -> io::Result<Uring> {
        let ring = build(entries, IoUring::builder())?;
        let limit = FILES.min(soft_fd_limit());
        ring.submitter().register_files_sparse(limit)?;
        Ok(Uring::with(ring, limit))
    }

    /// The same, but the kernel takes nothing but `restrictions` from it, now and for ever: a system call filter does not
    /// see what goes through a ring.
    pub fn confined(entries: u32, restrictions: &mut [Restriction]) -> io::Result<Uring> {
        let mut builder = IoUring::builder();
        builder.setup_r_disabled();
        let ring = build(entries, builder)?;
        let limit = FILES.min(soft_fd_limit());
        ring.submitter().register_files_sparse(limit)?;
        ring.submitter().register_restrictions(restrictions)?;
        ring.submitter().register_enable_rings()?;
        Ok(Uring::with(ring, limit))
    }

    fn with(ring: IoUring, limit: u32) -> Uring {
        Uring {
            tasks: Executor::default(),
            ring: RefCell::new(ring),
            backlog: RefCell::default(),
            stash: RefCell::default(),
            ops: RefCell::default(),
            files: RefCell::new(Files { limit, next: 0, free: Vec::new() }),
            raw_inflight: Cell::new(0),
        }
    }

    /// Queues `sqe`, whose `user_data` is the caller's token, below [`TOKEN_LIMIT`]. Never fails: what does not fit waits
    /// in a backlog, which the caller's own bound on operations in flight bounds too.
    ///
    /// # Safety
    /// Memory and fds that `sqe` names stay valid until [`reap`](Self::reap) has returned its token.
    pub unsafe fn push(&self, sqe: squeue::Entry) {
        debug_assert!(sqe.get_user_data() < TOKEN_LIMIT);
        self.raw_inflight.set(self.raw_inflight.get() + 1);
        self.enqueue(sqe);
    }

    /// Completes `token` with `result` at the next [`reap`](Self::reap), without the kernel: the end of work that was not
    /// one raw SQE.
    pub fn post(&self, token: u64, result: i32) {
        debug_assert!(token < TOKEN_LIMIT);
        self.stash.borrow_mut().push_back((token, result, 0));
    }

    /// Queues `sqe`, of whose end nobody is told.
    ///
    /// # Safety
    /// What `sqe` names stays valid for as long as the kernel may use it.
    pub unsafe fn push_silent(&self, sqe: squeue::Entry) {
        // Only a failure still makes a completion.
        self.enqueue(sqe.flags(squeue::Flags::SKIP_SUCCESS).user_data(TOKEN_IGNORED));
    }

    /// Queues `sqe` and returns the future of its result (a count, or a negated errno).
    ///
    /// A future that is dropped early cancels its operation and waits until the kernel has let go of its memory.
    ///
    /// # Safety
    /// Memory and fds that `sqe` names stay valid until the future is ready or dropped, and it is never forgotten.
    pub unsafe fn op(&self, sqe: squeue::Entry) -> Op<'_> {
        let slot = self.ops.borrow_mut().insert();
        self.enqueue(sqe.user_data(TOKEN_LIMIT | slot as u64));
        Op { ring: self, slot: Some(slot) }
    }

    /// Calls `each(token, result, flags)` for every raw completion there is (`flags` as in the CQE: see
    /// [`io_uring::cqueue::more`] for multishot), and wakes the tasks of the others. Returns how many there were of both.
    pub fn reap(&self, mut each: impl FnMut(u64, i32, u32)) -> usize {
        let mut count = self.reap_posted(&mut each);
        self.run_deferred_work();
        let mut batch = [const { MaybeUninit::uninit() }; BATCH];
        loop {
            let entries = self.ring.borrow_mut().completion().fill(&mut batch);
            let taken = entries.len();
            for entry in entries {
                if self.settle(entry) {
                    each(entry.user_data(), entry.result(), entry.flags());
                }
            }
            count += taken;
            if taken < BATCH {
                return count;
            }
        }
    }

    /// The same for what needs no look at the ring: what was posted, and what was met while waiting for something else.
    pub fn reap_posted(&self, mut each: impl FnMut(u64, i32, u32)) -> usize {
        // Not more than there are now: `each` may post others.
        let count = self.stash.borrow().len();
        for _ in 0..count {
            let (token, result, flags) =
                self.stash.borrow_mut().pop_front().expect("only reap takes from the stash");
            each(token, result, flags);
        }
        count
    }

    /// Hands what is queued to the kernel; does nothing, cheaply, if nothing is.
    pub fn submit(&self) -> io::Result<()> {
        self.enter(0, None)
    }

    /// Hands what is queued to the kernel once it is `count` operations, so that the device works while the caller
    /// prepares more.
    pub fn submit_batch(&self, count: usize) -> io::Result<()> {
        let queued = self.ring.borrow_mut().submission().len();
        if queued >= count { self.submit() } else { Ok(()) }
    }

    /// Submits, then sleeps until there is something to reap, a task to run, a signal, or `timeout` has passed.
    pub fn submit_and_wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let idle = self.stash.borrow().is_empty() && !self.tasks.has_ready();
        self.enter(usize::from(idle), timeout)
    }

    /// Raw operations that have been pushed and not reaped; a multishot operation counts once.
    pub fn raw_inflight(&self) -> usize {
        self.raw_inflight.get()
    }

    /// Whether [`reap`](Self::reap) has something to do; costs no system call, for polling loops.
    pub fn has_completions(&self) -> bool {
        let mut ring = self.ring.borrow_mut();
        let pending = ring.submission().taskrun() || !ring.completion().is_empty();
        pending || !self.stash.borrow().is_empty()
    }

    /// Registers a file; operations on the returned index are cheaper than on the fd, which may be closed after.
    pub fn register_fd(&self, fd: BorrowedFd<'_>) -> io::Result<Fixed> {
        let mut files = self.files.borrow_mut();
        let index = files.free.pop().unwrap_or(files.next);
        if index >= files.limit {
            return Err(io::Error::other(format!("no free slot among {} registered files", files.limit)));
        }
        self.ring.borrow().submitter().register_files_update(index, &[fd.as_raw_fd()])?;
        files.next = files.next.max(index + 1);
        Ok(Fixed(index))
    }

    /// Gives a registered file back. Operations in flight on it keep it open until they are done.
    pub fn unregister_fd(&self, file: Fixed) -> io::Result<()> {
        self.ring.borrow().submitter().register_files_update(file.0, &[-1])?;
        self.files.borrow_mut().free.push(file.0);
        Ok(())
    }

    /// Runs `future` and the other tasks to its end. Raw completions meanwhile are kept for the next `reap`.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> io::Result<T> {
        let mut future = pin!(future);
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let waker = Waker::from(woken.clone());
        loop {
            if woken.0.swap(false, Ordering::AcqRel)
                && let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker))
            {
                return Ok(value);
            }
            self.tasks.run_ready();
            // Not `submit_and_wait`: it returns at once for a stash that only the caller of this function empties.
            let idle = !woken.0.load(Ordering::Acquire) && !self.tasks.has_ready();
            self.enter(usize::from(idle), None)?;
            self.stash_completions();
        }
    }

    fn enqueue(&self, sqe: squeue::Entry) {
        let mut backlog = self.backlog.borrow_mut();
        // SAFETY: the caller of `push` or `op` vouches for the memory and the fds of `sqe`.
        if !backlog.is_empty() || unsafe { self.ring.borrow_mut().submission().push(&sqe) }.is_err() {
            backlog.push_back(sqe);
        }
    }

    /// Moves SQEs from the backlog to the queue; returns how many the queue then holds.
    fn refill(&self) -> usize {
        let (mut ring, mut backlog) = (self.ring.borrow_mut(), self.backlog.borrow_mut());
        let mut queue = ring.submission();
        while let Some(sqe) = backlog.front() {
            // SAFETY: as in `enqueue`.
            if unsafe { queue.push(sqe) }.is_err() {
                break;
            }
            backlog.pop_front();
        }
        queue.len()
    }

    fn enter(&self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        let timespec = timeout.map(Timespec::from);
        loop {
            let queued = self.refill();
            if want == 0 && queued == 0 {
                return Ok(());
            }
            // With a backlog there is more to submit before there is time to sleep.
            let want = if self.backlog.borrow().is_empty() { want } else { 0 };
            let result = {
                let ring = self.ring.borrow();
                match &timespec {
                    Some(time) if want > 0 => {
                        ring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(time))
                    }
                    _ => ring.submit_and_wait(want),
                }
            };
            match result.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO)) {
                Ok(_) if self.backlog.borrow().is_empty() => return Ok(()),
                Ok(_) => {}
                Err(libc::ETIME) => return Ok(()),
                Err(libc::EINTR) if want > 0 => return Ok(()),
                Err(libc::EINTR) => {}
                // The completion queue is full, or the kernel is short of memory: make room. If there is nothing to take
                // the SQEs stay queued for the next turn.
                Err(libc::EBUSY | libc::EAGAIN) => {
                    if self.stash_completions() == 0 {
                        return Ok(());
                    }
                }
                Err(errno) => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }

    /// Takes all completions off the ring: wakes tasks, keeps raw ones for the next `reap`.
    fn stash_completions(&self) -> usize {
        self.run_deferred_work();
        let mut ring = self.ring.borrow_mut();
        let mut count = 0;
        for entry in ring.completion() {
            if self.settle(&entry) {
                self.stash.borrow_mut().push_back((entry.user_data(), entry.result(), entry.flags()));
            }
            count += 1;
        }
        count
    }

    /// Accounts for a completion; true if it is a raw one, the caller's.
    fn settle(&self, entry: &cqueue::Entry) -> bool {
        let token = entry.user_data();
        if token < TOKEN_LIMIT {
            if !cqueue::more(entry.flags()) {
                self.raw_inflight.set(self.raw_inflight.get() - 1);
            }
            return true;
        }
        if token != TOKEN_IGNORED {
            self.ops.borrow_mut().complete((token & !TOKEN_LIMIT) as usize, entry.result());
        }
        false
    }

    /// With DEFER_TASKRUN, and after an overflow, completions appear only when the kernel is asked for them.
    fn run_deferred_work(&self) {
        let mut ring = self.ring.borrow_mut();
        let queue = ring.submission();
        let needed = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if needed {
            // SAFETY: submits nothing and passes no argument. A failure (EINTR) leaves the flag set for the next turn.
            let _ = unsafe { ring.submitter().enter::<()>(0, 0, EnterFlags::GETEVENTS.bits(), None) };
        }
    }
}

/// An operation in flight; see [`Uring::op`].
#[must_use = "dropping it waits for the operation"]
pub struct Op<'r> {
    ring: &'r Uring,
    slot: Option<usize>,
}

impl Future for Op<'_> {
    type Output = i32;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<i32> {
        let slot = self.slot.expect("an Op is not polled after it was ready");
        let poll = self.ring.ops.borrow_mut().poll(slot, cx);
        if poll.is_ready() {
            self.slot = None;
        }
        poll
    }
}

impl Drop for Op<'_> {
    fn drop(&mut self) {
        let Some(slot) = self.slot else { return };
        let mut cx = Context::from_waker(Waker::noop());
        if self.ring.ops.borrow_mut().poll(slot, &mut cx).is_ready() {
            return;
        }
        let cancel = opcode::AsyncCancel::new(TOKEN_LIMIT | slot as u64).build();
        self.ring.enqueue(cancel.user_data(TOKEN_IGNORED));
        while self.ring.ops.borrow_mut().poll(slot, &mut cx).is_pending() {
            if self.ring.enter(1, None).is_err() {
                // The kernel may still write to memory that is about to be freed: there is no safe way on.
                std::process::abort();
            }
            self.ring.stash_completions();
        }
    }
}

impl Ops {
    fn insert(&mut self) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(OpState::Free);
            self.slots.len() - 1
        });
        self.slots[slot] = OpState::Pending(None);
        slot
    }

    fn complete(&mut self, slot: usize, result: i32) {
        if let OpState::Pending(Some(waker)) = std::mem::replace(&mut self.slots[slot], OpState::Done(result))
        {
            waker.wake();
        }
    }

    fn poll(&mut self, slot: usize, cx: &mut Context<'_>) -> Poll<i32> {
        match &mut self.slots[slot] {
            OpState::Done(result) => {
                let result = *result;
                self.slots[slot] = OpState::Free;
                self.free.push(slot);
                Poll::Ready(result)
            }
            OpState::Pending(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            OpState::Free => unreachable!("slot {slot} has an owner"),
        }
    }
}

/// The waker of `block_on`.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// The fastest set of flags that this kernel takes: DEFER_TASKRUN is Linux 6.1, COOP_TASKRUN 5.19.
fn build(entries: u32, mut builder: io_uring::Builder) -> io::Result<IoUring> {
    builder.dontfork().setup_cqsize(4 * entries).setup_submit_all();
    let mut deferred = builder.clone();
    deferred.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    let mut cooperative = builder.clone();
    cooperative.setup_coop_taskrun().setup_taskrun_flag();
    deferred.build(entries).or_else(|_| cooperative.build(entries)).or_else(|_| builder.build(entries))
}

fn soft_fd_limit() -> u32 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call; the call cannot fail for RLIMIT_NOFILE.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    u32::try_from(limit.rlim_cur).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
