//! A running virtqueue: its rings, the in-flight region beside them, and the driver's call fd.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use crate::chain::Buffers;
use crate::clock::Nanos;
use crate::control::QueueSetup;
use crate::inflight::Inflight;
use crate::memory::Memory;
use crate::uring::Uring;

use rings::{Place, Rings};
use signal::Signal;

mod in_order;
mod lazy;
mod rings;
mod signal;

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

/// Completions of requests that the driver is shown at once: with fewer the ring's index would go to and fro between CPUs for
/// each, with more a driver that polls would wait.
const SHOWN_AT_ONCE: usize = 4;

/// A busy queue's driver is asked for sure, with a fence, whether it wants an interrupt after so many.
const ASK_AFTER: u16 = 16;

/// How many chains ahead of the one that is taken descriptors and buffers are fetched into the CPU's cache.
const FETCH_DESCRIPTOR: u16 = 8;
const FETCH_BUFFER: u16 = 4;

/// A queue that the worker serves.
pub struct VirtQueue {
    place: Place,
    /// In `memory`.
    rings: Rings,
    memory: Rc<Memory>,
    event_idx: bool,
    /// Chains taken from the available ring, and offered there when we last looked, modulo 2^16.
    next_avail: u16,
    seen: u16,
    /// Chains that the driver has been shown in the used ring, modulo 2^16.
    next_used: u16,
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
    /// Completions that the driver is not shown yet, and those of them that the in-flight region has.
    staged: u16,
    staged_heads: Vec<u16>,
    /// The used index when the driver was last told of it.
    announced: u16,
    /// The driver is in no hurry to know what was used: see [`defers`](Self::defers).
    pub lazy: bool,
    /// Since when the driver does not know of what was used, if the queue is lazy, and the used index then.
    unknown_since: Option<(Nanos, u16)>,
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
        let place = Place { size: setup.size, desc: setup.desc, avail: setup.avail, used: setup.used };
        let rings = Rings::find(place, &memory)?;
        let mut inflight = Inflight::map(&region, setup.inflight_offset, setup.size)?;
        let used = rings.used_index();
        let recovery = inflight.recover(used, setup.base);
        Ok(VirtQueue {
            place,
            rings,
            memory,
            event_idx: setup.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
            next_avail: recovery.next_avail,
            seen: recovery.next_avail,
            next_used: used,
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
            staged_heads: Vec::with_capacity(SHOWN_AT_ONCE),
            announced: used,
            lazy: false,
            unknown_since: None,
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

    /// Use another map of guest memory from now on; false if the rings are not in it. Then the queue goes on with the old
    /// one, until its requests are done.
    pub fn set_memory(&mut self, memory: Rc<Memory>) -> bool {
        let Ok(rings) = Rings::find(self.place, &memory) else { return false };
        (self.rings, self.memory) = (rings, memory);
        true
    }

    /// Whether [`take`](Self::take) has something to give. One load from guest memory.
    pub fn has_work(&self) -> bool {
        self.runs() && (self.repeats() || self.rings.avail_index() != self.next_avail)
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
            if head >= self.rings.size() {
                return Err(Violation::new("recovery", format!("chain {head} was in flight")));
            }
            self.walk(head, buffers)?;
            self.taken += 1;
            return Ok(Some(head));
        }
        if self.stopping.is_some() {
            return Ok(None);
        }
        let Some(head) = self.next_head(true)? else { return Ok(None) };
        if self.inflight.is_taken(head) {
            let detail = format!("chain {head} is offered again before it was used");
            return Err(Violation::new("head-in-use", detail));
        }
        self.walk(head, buffers)?;
        self.inflight.take(head);
        self.taken += 1;
        Ok(Some(head))
    }

    /// Where the next chain of the available ring begins. `beside`: the driver has the place for the answer beside what it asks.
    fn next_head(&mut self, beside: bool) -> Result<Option<u16>, Violation> {
        let size = self.rings.size();
        if self.seen == self.next_avail {
            self.seen = self.rings.avail_index();
            let ahead = self.seen.wrapping_sub(self.next_avail);
            if ahead > size {
                let detail = format!("{ahead} chains are offered in a queue of {size} descriptors");
                return Err(Violation::new("avail-index", detail));
            }
            if ahead == 0 {
                return Ok(None);
            }
            for place in 0..ahead.min(FETCH_DESCRIPTOR) {
                self.rings.prefetch_descriptor(self.next_avail.wrapping_add(place));
            }
            for place in 0..ahead.min(FETCH_BUFFER) {
                self.rings.prefetch_buffer(&self.memory, self.next_avail.wrapping_add(place), beside);
            }
            self.rings.prefetch_used(self.next_used.wrapping_add(self.staged));
        }
        let ahead = self.seen.wrapping_sub(self.next_avail);
        if ahead > FETCH_DESCRIPTOR {
            self.rings.prefetch_descriptor(self.next_avail.wrapping_add(FETCH_DESCRIPTOR));
        }
        if ahead > FETCH_BUFFER {
            self.rings.prefetch_buffer(&self.memory, self.next_avail.wrapping_add(FETCH_BUFFER), beside);
        }
        let head = self.rings.avail(self.next_avail);
        self.next_avail = self.next_avail.wrapping_add(1);
        if head >= size {
            return Err(Violation::new("head", format!("chain {head} in a queue of {size} descriptors")));
        }
        Ok(Some(head))
    }

    /// The chain at `head`, in `buffers`.
    fn walk(&self, head: u16, buffers: &mut Buffers) -> Result<(), Violation> {
        let filled = buffers.fill(&self.memory, self.rings.table(), head, self.rings.size());
        filled.map_err(|error| Violation::new(error.kind(), error.to_string()))
    }

    /// A chain that was taken breaks a rule and will never be completed.
    pub fn give_up(&mut self) {
        self.taken -= 1;
    }

    /// Put the chain at `head` back, the last one taken from the available ring: a next run of the queue takes it.
    pub fn put_back(&mut self, head: u16) {
        self.taken -= 1;
        self.inflight.put_back(head);
        self.untake(1);
    }

    /// The chain at `head` is done, with `length` bytes written into it, and the driver sees it.
    pub fn complete(&mut self, head: u16, length: u32) {
        self.complete_soon(head, length);
        self.publish();
    }

    /// The same, but the driver sees it with others, at the latest at the next [`announce`](Self::announce).
    pub fn complete_soon(&mut self, head: u16, length: u32) {
        let unasked = self.next_used.wrapping_sub(self.announced);
        // Not behind the index, where the fence would wait until that got to the driver's CPU.
        if self.staged == 0 && unasked >= ASK_AFTER && std::mem::take(&mut self.unannounced) {
            self.owed |= self.wants_call();
        }
        self.taken -= 1;
        self.inflight.begin_completion(head);
        self.stage(head, length);
        self.staged_heads.push(head);
        if self.staged_heads.len() == SHOWN_AT_ONCE {
            self.publish();
        }
    }

    /// Tell the driver what was completed, if it wants to know. `token` comes back through the ring, and is to be
    /// given to [`called`](Self::called).
    pub fn announce(&mut self, uring: &Uring, token: u64) {
        self.publish();
        // A frontend that makes the write wait holds up nothing but its own interrupts. A queue that is served again in the next
        // turn is announced again then: a wish that is not seen yet is seen there.
        if self.calling || (self.ready && !self.owed && !self.wishes_call()) {
            return;
        }
        if std::mem::take(&mut self.unannounced) {
            self.unknown_since = None;
            // Asked in any case: the answer counts from the last question.
            self.owed |= self.wants_call();
        }
        if !std::mem::take(&mut self.owed) {
            return;
        }
        if let Some(call) = &self.call {
            self.calls = (self.calls + 1) % CALLS_PER_CHECK;
            self.calling = call.raise(uring, (self.calls == 0).then_some(token));
        }
    }

    /// Whether the driver wants to know of what was used since this was last asked (virtio 1.3, 2.7.7 and 2.7.10).
    fn wants_call(&mut self) -> bool {
        // The driver writes its wish, then looks at the used index; we the other way round.
        fence(Ordering::SeqCst);
        let wishes = self.wishes_call();
        self.announced = self.next_used;
        wishes
    }

    /// The same by what is seen of its wish already.
    fn wishes_call(&self) -> bool {
        if !self.event_idx {
            return !self.rings.no_interrupt();
        }
        let (new, old) = (self.next_used, self.announced);
        new.wrapping_sub(self.rings.used_event()).wrapping_sub(1) < new.wrapping_sub(old)
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

    /// Whether there is something to do that a look at the ring shows, and the reactor does not know of yet.
    pub fn wants_service(&self) -> bool {
        !self.ready && !self.parked && self.has_work() && (self.wanted == 1 || self.offered() >= self.wanted)
    }

    /// Ask the driver for no kicks, because we look at the ring anyway. True if it was to kick before.
    pub fn begin_polling(&mut self) -> bool {
        self.parked = false;
        if self.polled {
            return false;
        }
        self.polled = true;
        // With the event index it kicks once and then no more, unless it is asked again.
        if !self.event_idx {
            self.rings.set_no_notify(true);
        }
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
        self.ask_for_kick() >= self.wanted
    }

    /// Where a next run of the queue goes on in the available ring.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Chains completed, modulo 2^16, as the driver sees it.
    pub fn completed(&self) -> u16 {
        self.next_used
    }

    /// Chains taken and not completed.
    pub fn taken(&self) -> u16 {
        self.taken
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Rc<Memory> {
        &self.memory
    }

    /// The call fd, if there is one.
    pub fn call(&self) -> Option<&File> {
        self.call.as_ref().map(Signal::file)
    }

    /// The kick fd.
    pub fn kick(&self) -> &File {
        &self.kick
    }
}
