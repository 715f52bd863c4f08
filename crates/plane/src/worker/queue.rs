//! A running virtqueue: `virtio-queue`'s rings, the in-flight region beside them, and the driver's call fd.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};

use io_uring::{opcode, types};
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_AVAIL_F_NO_INTERRUPT};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestRegionMmap};

use crate::chain::Buffers;
use crate::config::MAX_QUEUE_SIZE;
use crate::control::QueueSetup;
use crate::inflight::Inflight;
use crate::memory::Memory;
use crate::uring::Uring;

mod in_order;

/// A rule that a guest or a frontend broke; the queue is not served any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// A word for counting.
    pub kind: &'static str,
    /// A sentence.
    pub detail: String,
}

impl Violation {
    /// Of `kind`, explained by `detail`.
    pub fn new(kind: &'static str, detail: impl Into<String>) -> Violation {
        Violation { kind, detail: detail.into() }
    }
}

/// One in so many interrupts comes back through the ring, and no other is sent until it has: a frontend that keeps
/// its call fd full makes this many wait in the kernel, not more. The others cost no turn of the reactor.
const CALLS_PER_CHECK: u8 = 32;

/// A queue that the worker serves.
pub struct VirtQueue {
    queue: Queue,
    memory: Rc<Memory>,
    inflight: Inflight,
    /// Chains to take again, after a crash, before anything new.
    again: VecDeque<u16>,
    call: Option<Signal>,
    err: Option<Signal>,
    kick: File,
    /// Completions since the driver was last told.
    unannounced: bool,
    /// The driver is told at the next occasion, whether or not its event index asks for it: what a worker before us
    /// completed is not counted there.
    owed: bool,
    /// A write to the call fd is in the ring whose end we wait for.
    calling: bool,
    /// Writes to the call fd since the last such.
    calls: u8,
    /// The driver does not kick while this is set; we look at the ring ourselves.
    polled: bool,
    /// What the guest offers waits for the host: not looked at until the device wakes the queue.
    parked: bool,
    /// Chains that must be offered before there is something to do.
    wanted: u16,
    /// Chains taken and not completed.
    taken: u16,
    /// Completions that the driver is not shown yet.
    staged: u16,
    /// The used index when the driver was last told of it.
    announced: u16,
    /// Feature bits that the driver took.
    pub features: u64,
    /// Nothing is taken from the queue any more after a violation.
    pub broken: bool,
    /// Whether the reactor has it in its list of queues to serve.
    pub ready: bool,
    /// Set while the holder waits for the queue to be idle: the serial of its request.
    pub stopping: Option<u64>,
    /// Identifies this run of the queue in tokens.
    pub epoch: u32,
}

impl VirtQueue {
    /// Set up the queue and take over its in-flight region. `fds` as with [`QueueSetup`].
    ///
    /// # Errors
    /// Addresses outside guest memory, wrong alignment or size, or what the kernel says.
    pub fn start(
        setup: &QueueSetup,
        memory: Rc<Memory>,
        fds: Vec<OwnedFd>,
        epoch: u32,
    ) -> io::Result<VirtQueue> {
        let mut fds = fds.into_iter().map(File::from);
        let mut next = || fds.next().ok_or_else(|| io::Error::other("a queue without its fds"));
        let (region, kick) = (next()?, next()?);
        let call = if setup.call { Some(Signal::new(next()?)) } else { None };
        let err = if setup.err { Some(Signal::new(next()?)) } else { None };
        let mut queue = Queue::new(MAX_QUEUE_SIZE).map_err(io::Error::other)?;
        queue.try_set_size(setup.size).map_err(io::Error::other)?;
        queue.try_set_desc_table_address(GuestAddress(setup.desc)).map_err(io::Error::other)?;
        queue.try_set_avail_ring_address(GuestAddress(setup.avail)).map_err(io::Error::other)?;
        queue.try_set_used_ring_address(GuestAddress(setup.used)).map_err(io::Error::other)?;
        queue.set_event_idx(setup.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        queue.set_ready(true);
        if !queue.is_valid(memory.guest()) {
            return Err(io::Error::other(format!(
                "the rings of queue {} are outside guest memory",
                setup.index
            )));
        }
        let mut inflight = Inflight::map(&region, setup.inflight_offset, setup.size)?;
        let used = queue.used_idx(memory.guest(), Ordering::Acquire).map_err(io::Error::other)?.0;
        let recovery = inflight.recover(used, setup.base);
        queue.set_next_used(used);
        queue.set_next_avail(recovery.next_avail);
        Ok(VirtQueue {
            queue,
            memory,
            inflight,
            unannounced: recovery.resumed,
            owed: recovery.resumed,
            calling: false,
            calls: 0,
            again: recovery.heads.into(),
            call,
            err,
            kick,
            polled: false,
            parked: false,
            wanted: 1,
            taken: 0,
            staged: 0,
            announced: used,
            features: setup.features,
            broken: false,
            ready: false,
            stopping: None,
            epoch,
        })
    }

    /// Take other call and err fds. What is still to come under the old epoch is not for this queue any more.
    pub fn update(&mut self, setup: &QueueSetup, fds: Vec<OwnedFd>, epoch: u32) {
        self.epoch = epoch;
        let mut fds = fds.into_iter().map(File::from).skip(2).map(Signal::new);
        self.call = if setup.call { fds.next() } else { None };
        self.err = if setup.err { fds.next() } else { None };
        self.calling = false;
        // Interrupts between the old fd and the new one may be lost.
        (self.unannounced, self.owed) = (true, true);
    }

    /// Use another map of guest memory from now on; false if the rings are not in it.
    pub fn set_memory(&mut self, memory: Rc<Memory>) -> bool {
        self.memory = memory;
        self.queue.is_valid(self.memory.guest())
    }

    /// Whether [`take`](Self::take) has something to give. One load from guest memory.
    pub fn has_work(&self) -> bool {
        let index = self.queue.avail_idx(self.memory.guest(), Ordering::Acquire);
        self.runs() && (self.repeats() || index.is_ok_and(|index| index.0 != self.queue.next_avail()))
    }

    /// Whether chains are taken from it. What a crashed worker had taken is, also while the queue stops: nobody else
    /// knows of it.
    pub fn runs(&self) -> bool {
        !self.broken && (self.stopping.is_none() || self.repeats())
    }

    /// Whether the next chain is one that a crashed worker had taken.
    pub fn repeats(&self) -> bool {
        !self.again.is_empty()
    }

    /// Whether it was asked to stop and has nothing left to do.
    pub fn stopped(&self) -> Option<u64> {
        self.stopping.filter(|_| self.taken == 0 && (self.broken || !self.repeats()))
    }

    /// Take the next chain and fill `buffers` from it. `None` if there is none.
    ///
    /// # Errors
    /// A rule that the driver broke.
    pub fn take(&mut self, buffers: &mut Buffers) -> Result<Option<u16>, Violation> {
        if self.memory.lost() || self.inflight.lost() {
            return Err(Violation::new("memory-lost", "the frontend has truncated guest memory"));
        }
        if let Some(head) = self.again.pop_front() {
            self.take_again(head, buffers)?;
            self.taken += 1;
            return Ok(Some(head));
        }
        if self.stopping.is_some() {
            return Ok(None);
        }
        let Some(head) = self.next_chain(buffers)? else { return Ok(None) };
        self.inflight.take(head);
        self.taken += 1;
        Ok(Some(head))
    }

    /// The next chain of the available ring, in `buffers`.
    fn next_chain(&mut self, buffers: &mut Buffers) -> Result<Option<u16>, Violation> {
        let size = self.queue.size();
        let mut chains = self
            .queue
            .iter(self.memory.guest())
            .map_err(|error| Violation::new("avail-index", format!("the available ring: {error}")))?;
        let Some(chain) = chains.next() else { return Ok(None) };
        let head = chain.head_index();
        if head >= size {
            return Err(Violation::new("head", format!("chain {head} in a queue of {size} descriptors")));
        }
        if self.inflight.is_taken(head) {
            return Err(Violation::new(
                "head-in-use",
                format!("chain {head} is offered again before it was used"),
            ));
        }
        buffers
            .fill(self.memory.guest(), chain, size)
            .map_err(|error| Violation::new(error.kind(), error.to_string()))?;
        Ok(Some(head))
    }

    /// Walk the chain at `head`, whose place in the available ring may hold another one by now: through a
    /// ring of one entry of our own, beside guest memory.
    fn take_again(&mut self, head: u16, buffers: &mut Buffers) -> Result<(), Violation> {
        let failed =
            |error: &dyn std::fmt::Display| Violation::new("recovery", format!("chain {head}: {error}"));
        // Above what any CPU addresses, so no region of the guest is there.
        let ring = GuestAddress(1 << 62);
        let map = MmapRegion::<()>::new(4096).map_err(|error| failed(&error))?;
        let map = GuestRegionMmap::new(map, ring).ok_or_else(|| failed(&"no address"))?;
        let memory = self.memory.guest().insert_region(map.into()).map_err(|error| failed(&error))?;
        let entry: [u16; 3] = [0, 1, head];
        for (index, value) in entry.iter().enumerate() {
            let address = GuestAddress(ring.0 + 2 * index as u64);
            memory.write_obj(value.to_le(), address).map_err(|error| failed(&error))?;
        }
        let mut queue = Queue::new(MAX_QUEUE_SIZE).map_err(|error| failed(&error))?;
        queue.set_size(self.queue.size());
        queue
            .try_set_desc_table_address(GuestAddress(self.queue.desc_table()))
            .map_err(|error| failed(&error))?;
        queue.try_set_avail_ring_address(ring).map_err(|error| failed(&error))?;
        queue.set_ready(true);
        let chain =
            queue.iter(&memory).map_err(|error| failed(&error))?.next().ok_or_else(|| failed(&"lost"))?;
        buffers
            .fill(self.memory.guest(), chain, self.queue.size())
            .map_err(|error| Violation::new(error.kind(), error.to_string()))
    }

    /// A chain that was taken breaks a rule and will never be completed.
    pub fn give_up(&mut self) {
        self.taken -= 1;
    }

    /// Put the chain at `head` back, the last one taken from the available ring: a next run of the queue takes it.
    pub fn put_back(&mut self, head: u16) {
        self.taken -= 1;
        self.inflight.put_back(head);
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
    }

    /// The chain at `head` is done, with `length` bytes written into it.
    ///
    /// # Errors
    /// If the used ring is not in guest memory any more.
    pub fn complete(&mut self, head: u16, length: u32) -> Result<(), Violation> {
        self.taken -= 1;
        self.inflight.begin_completion(head);
        self.queue
            .add_used(self.memory.guest(), head, length)
            .map_err(|error| Violation::new("used-ring", format!("the used ring: {error}")))?;
        self.inflight.end_completion(head, self.queue.next_used());
        self.unannounced = true;
        Ok(())
    }

    /// Tell the driver what was completed, if it wants to know. `token` comes back through the ring, and is to be
    /// given to [`called`](Self::called).
    pub fn announce(&mut self, uring: &Uring, token: u64) {
        // A frontend that makes the write wait holds up nothing but its own interrupts.
        if !self.unannounced || self.calling {
            return;
        }
        self.unannounced = false;
        // Asked in any case: the answer counts from the last question.
        let wanted = self.wants_call().unwrap_or(true);
        if !std::mem::take(&mut self.owed) && !wanted {
            return;
        }
        if let Some(call) = &self.call {
            self.calls = (self.calls + 1) % CALLS_PER_CHECK;
            self.calling = call.raise(uring, (self.calls == 0).then_some(token));
        }
    }

    /// Whether the driver wants to know of what was used since this was last asked (virtio 1.3, 2.7.7 and 2.7.10).
    fn wants_call(&mut self) -> Result<bool, GuestMemoryError> {
        let (new, driver) = (self.queue.next_used(), self.queue.avail_ring());
        let old = std::mem::replace(&mut self.announced, new);
        // The driver writes its wish, then looks at the used index; we the other way round.
        fence(Ordering::SeqCst);
        let word = |address| self.memory.guest().load(GuestAddress(address), Ordering::Relaxed);
        if !self.queue.event_idx_enabled() {
            return Ok(u32::from(u16::from_le(word(driver)?)) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let event = u16::from_le(word(driver + 4 + 2 * u64::from(self.queue.size()))?);
        Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    /// The write that `announce` started is done.
    pub fn called(&mut self) {
        self.calling = false;
    }

    /// Break the queue, and tell the driver so if it gave an err fd.
    pub fn fail(&mut self, uring: &Uring) {
        self.broken = true;
        if let Some(err) = &self.err {
            err.raise(uring, None);
        }
    }

    /// Leave what is offered where it is until the device wakes the queue: it has nothing for the guest, or the host
    /// takes nothing from it. Without this, buffers that wait would look like work for ever.
    pub fn park(&mut self) {
        self.parked = true;
    }

    /// Whether there is something to do that a look at the ring shows.
    pub fn wants_service(&self) -> bool {
        !self.parked && self.has_work() && (self.wanted == 1 || self.offered() >= self.wanted)
    }

    /// Ask the driver for no kicks, because we look at the ring anyway. True if it was to kick before.
    pub fn begin_polling(&mut self) -> bool {
        self.parked = false;
        if self.polled {
            return false;
        }
        self.polled = true;
        // If the ring is not there any more, the next `take` says so.
        let _ = self.queue.disable_notification(self.memory.guest());
        true
    }

    /// Ask the driver for kicks. True if something came meanwhile, for which there will be none.
    pub fn end_polling(&mut self) -> bool {
        if !self.polled || !self.runs() {
            return false;
        }
        self.polled = false;
        if self.parked {
            return false;
        }
        if self.wanted > 1 {
            return self.ask_for_kick() >= self.wanted;
        }
        self.queue.enable_notification(self.memory.guest()).unwrap_or(false)
    }

    /// Where a next run of the queue goes on in the available ring.
    pub fn next_avail(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Chains completed, modulo 2^16, as the driver sees it.
    pub fn completed(&self) -> u16 {
        self.queue.next_used()
    }

    /// Chains taken and not completed.
    pub fn taken(&self) -> u16 {
        self.taken
    }

    /// The call fd, if there is one.
    pub fn call(&self) -> Option<&File> {
        self.call.as_ref().map(|call| &call.file)
    }

    /// The kick fd.
    pub fn kick(&self) -> &File {
        &self.kick
    }
}

/// What is written to a call fd.
static ONE: [u8; 8] = 1u64.to_ne_bytes();

/// The driver's call or err fd: an eventfd, or a pipe or socket as User-mode Linux uses them.
struct Signal {
    file: File,
    socket: bool,
}

impl Signal {
    fn new(file: File) -> Signal {
        let mut kind: libc::c_int = 0;
        let mut length = std::mem::size_of_val(&kind) as libc::socklen_t;
        // SAFETY: both pointers are valid for the call.
        let result = unsafe {
            let kind = std::ptr::from_mut(&mut kind).cast();
            libc::getsockopt(file.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TYPE, kind, &mut length)
        };
        Signal { file, socket: result == 0 }
    }

    /// Add one, without ever waiting for a frontend that has let its fd fill up. Sockets are told so; other fds are
    /// written by the ring, for a flag like O_NONBLOCK is the frontend's to change. True if `token` will come back.
    fn raise(&self, uring: &Uring, token: Option<u64>) -> bool {
        let fd = self.file.as_raw_fd();
        if self.socket {
            // SAFETY: eight readable bytes.
            unsafe {
                libc::send(fd, ONE.as_ptr().cast(), ONE.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            };
            return false;
        }
        // Offset -1: the file's own position, as write() has it.
        let write =
            opcode::Write::new(types::Fd(fd), ONE.as_ptr(), ONE.len() as u32).offset(u64::MAX).build();
        // SAFETY: the bytes are static; the file is open until after the next submission.
        unsafe {
            match token {
                Some(token) => uring.push(write.user_data(token)),
                None => uring.push_silent(write),
            }
        }
        token.is_some()
    }
}
