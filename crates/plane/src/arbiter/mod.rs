//! Who goes first: one arbiter for each physical device.
//!
//! A tree of nodes shares the device: tenants, their machines, their disks. Requests are offered at leaves and come
//! back in the order of mClock (Gulati, Merchant, Varman: "mClock: Handling Throughput Variability for Hypervisor IO
//! Scheduling", OSDI 2010), at each level of the tree:
//!
//! 1. a node whose **reservation** is due goes first, the longest due before others;
//! 2. what is left of the device is shared by **weight** among the children of each node;
//! 3. no request passes a node whose **limit** is used up, be it reserved or not.
//!
//! As many requests as the window allows are at the device at the same time; the others wait here, where their order
//! can still change.
//!
//! This is a state machine without I/O, threads or a clock: the caller says what time it is. Times are ns of one
//! clock that never goes back. General layout: this file has the life of a request, `order` the choice of the next one;
//! `tree` nodes coming and going, `node` their tags and knobs, `cost` what a request counts as, `heap` the queue that
//! everything is ordered by, `queue` what waits in a leaf; `link` the same for frames; `window` how many may be at the device, `capacity` what it can do, `latency` objectives;
//! `waits` who waited for whom, `stats` the state for people, `demand` what is asked and how the device answers, to be replayed.
//!
//! # Use
//! ```
//! use nagaya_plane::arbiter::{Arbiter, Ask, Kind, Knobs};
//!
//! let mut arbiter = Arbiter::new(0);
//! let disk = arbiter.set_node(0, "m1/disk0", None, Knobs { weight: 200, ..Knobs::default() }).unwrap();
//! let admission = arbiter.offer(1_000, disk, Ask { ticket: 7, kind: Kind::Read, bytes: 4096 });
//! assert!(admission.now, "nobody else is there: start it at once");
//! arbiter.complete(90_000, admission.request);
//! while let Some(ticket) = arbiter.next(90_000) {
//!     unreachable!("would be started now: {ticket}");
//! }
//! assert_eq!(arbiter.wake_at(90_000), None, "nothing waits for a time to come");
//! ```

mod capacity;
mod cost;
mod demand;
mod heap;
mod histogram;
mod latency;
mod link;
mod node;
mod order;
mod queue;
mod stats;
mod tree;
mod waits;
mod window;

pub use cost::{Ask, IO_BYTES, Kind};
pub use demand::{Busy, Cell, Class, Demand, Mix, PARTS, Pattern};
pub use histogram::Histogram;
pub use latency::Objective;
pub use link::{Frame, LARGEST_FRAME};
pub use node::{Knobs, MAX_WEIGHT};
pub use stats::{NodeStats, ObjectiveChange, Stats};
pub use tree::{Leaf, TreeError};
pub use waits::{Cause, Wait};

use demand::{Profile, Recorder};
use heap::Heap;
use node::{By, Node};
use waits::Waits;
use window::Window;

/// ns of the caller's clock.
pub type Nanos = u64;

/// A request that was offered and is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request(u32);

/// Answer to an offer.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// What [`Arbiter::complete`] and [`Arbiter::withdraw`] know the request by.
    pub request: Request,
    /// Whether it is to be started at once; otherwise [`Arbiter::next`] returns its ticket later.
    pub now: bool,
}

/// The node that all others are below.
const ROOT: u32 = 0;

/// Virtual time that is far, but not at the end: weeks of a fast device at the least weight.
const REBASE: u64 = 1 << 63;

/// How often the window, objectives and accounts are looked after, at the next request after.
const TICK: Nanos = 20_000_000;

const SECOND: Nanos = 1_000_000_000;

#[derive(Clone, Copy)]
struct Entry {
    ticket: u64,
    offered: Nanos,
    started: Nanos,
    bytes: u64,
    leaf: u32,
    cost: u32,
    ios: u32,
    class: Class,
    /// What was at the device when it was started, with itself.
    load: u64,
    waits: bool,
    /// The device got it as a part of another.
    joined: bool,
}

/// The arbiter of a device.
pub struct Arbiter {
    /// What it shares out is a link, not a disk.
    is_link: bool,
    nodes: Vec<Node>,
    free_nodes: Vec<u32>,
    entries: Vec<Entry>,
    free_entries: Vec<u32>,
    waiting: usize,
    in_flight: usize,
    /// Nodes with work and a reservation, by when they are due.
    reserved: Heap,
    /// Nodes with work whose limit is used up, by when it lets the next request pass.
    limited: Heap,
    window: Window,
    /// How many nodes have a limit.
    bounds: u32,
    /// Leaves with a latency objective.
    goals: Vec<u32>,
    changes: Vec<ObjectiveChange>,
    waits: Waits,
    profile: Profile,
    tick_at: Nanos,
    period_at: Nanos,
    second_at: Nanos,
}

impl Arbiter {
    /// Without nodes.
    pub fn new(now: Nanos) -> Arbiter {
        let mut root = Node::new("", ROOT, 0);
        root.set(Knobs::default(), now);
        Arbiter {
            is_link: false,
            nodes: vec![root],
            free_nodes: Vec::new(),
            entries: Vec::new(),
            free_entries: Vec::new(),
            waiting: 0,
            in_flight: 0,
            reserved: Heap::default(),
            limited: Heap::default(),
            window: Window::new(now),
            bounds: 0,
            goals: Vec::new(),
            changes: Vec::new(),
            waits: Waits::default(),
            profile: Profile::new(),
            tick_at: now + TICK,
            period_at: now + waits::PERIOD,
            second_at: now + SECOND,
        }
    }

    /// A request of `leaf` is there. If the answer says so it is to be started at once; otherwise it waits.
    ///
    /// `leaf` must be a node without children that has not been removed.
    pub fn offer(&mut self, now: Nanos, leaf: Leaf, ask: Ask) -> Admission {
        if now >= self.tick_at {
            self.tick(now);
        }
        let index = leaf.0;
        self.window.seen(now, index);
        let request = self.enter(Entry {
            ticket: ask.ticket,
            offered: now,
            started: now,
            bytes: ask.paced(),
            leaf: index,
            cost: ask.cost(),
            ios: ask.ios(),
            class: Class::new(ask.kind, ask.bytes),
            load: 0,
            waits: true,
            joined: false,
        });
        self.settle(now, index);
        let full = !self.window.admits(now);
        let node = &mut self.nodes[index as usize];
        node.bytes += ask.moved();
        let recorder = node.recorder.get_or_insert_with(|| Box::new(Recorder::new(now)));
        recorder.asked(now, Class::new(ask.kind, ask.bytes), ask.moved());
        if self.waiting == 0 && node.plain && !full {
            self.start_unordered(now, request);
            return Admission { request: Request(request), now: true };
        }
        let alone = node.queue.is_empty() && node.in_flight == 0;
        if full && alone && self.is_quiet(index) {
            self.window.seen_quiet(now);
        }
        let node = &mut self.nodes[index as usize];
        node.queue.push(request, 0, 0);
        self.waiting += 1;
        if node.queue.len() == 1 {
            self.refresh(now, index);
        }
        let started = match (full, self.waiting) {
            (true, _) => self.next_beyond(now, index),
            (false, 1) => self.next_request(now),
            (false, _) => None,
        };
        Admission { request: Request(request), now: started.is_some() }
    }

    /// The ticket of a request to be started now, in the arbiter's order. Call it until there is none: after offers,
    /// after completions, and at [`wake_at`](Self::wake_at).
    pub fn next(&mut self, now: Nanos) -> Option<u64> {
        let request = self.next_request(now)?;
        let ticket = self.entries[request as usize].ticket;
        if self.is_link {
            self.forget(now, request);
        }
        Some(ticket)
    }

    /// A request that was started is done, or failed, or is to be offered again later: the device is rid of it.
    pub fn complete(&mut self, now: Nanos, request: Request) {
        if now >= self.tick_at {
            self.tick(now);
        }
        let entry = self.entries[request.0 as usize];
        self.settle(now, entry.leaf);
        self.window.leave(now, entry.cost, entry.bytes, entry.joined);
        self.in_flight -= 1;
        let latency = now.saturating_sub(entry.offered);
        let node = &mut self.nodes[entry.leaf as usize];
        node.in_flight -= 1;
        node.account.in_flight_cost -= u64::from(entry.cost);
        node.account.completed += 1;
        node.latencies.add(latency);
        if let Some(recorder) = &mut node.recorder {
            recorder.answered(now, Some(latency));
        }
        if !entry.joined {
            self.profile.add(entry.class, entry.bytes, entry.load, now.saturating_sub(entry.started));
        }
        if node.goal.latency > 0 {
            node.goal.add(latency, now.saturating_sub(entry.started));
        }
        self.forget(now, request.0);
    }

    /// Take back a request that waits: it will not be started. True if it did wait; one that was started is to be
    /// completed instead.
    pub fn withdraw(&mut self, now: Nanos, request: Request) -> bool {
        let entry = self.entries[request.0 as usize];
        if !entry.waits {
            return false;
        }
        self.settle(now, entry.leaf);
        self.take_out(request.0);
        self.waiting -= 1;
        if let Some(recorder) = &mut self.nodes[entry.leaf as usize].recorder {
            recorder.answered(now, None);
        }
        self.refresh(now, entry.leaf);
        self.forget(now, request.0);
        true
    }

    /// Start a request that waits before its turn, whatever the window and limits say. It counts as any other: what its
    /// node offers next waits the longer.
    pub fn hurry(&mut self, now: Nanos, request: Request) {
        let entry = self.entries[request.0 as usize];
        if entry.waits {
            self.settle(now, entry.leaf);
            self.take_out(request.0);
            self.dispatch(now, request.0, By::Share);
        }
    }

    /// Start a request that waits before its turn as a part of one of the same leaf that is just being started, which it
    /// adjoins: the device gets one request. It counts for its bytes, and as an I/O of the knobs in IOPS, but its start is
    /// paid for. False if a limit keeps it waiting.
    pub fn join(&mut self, now: Nanos, request: Request) -> bool {
        let entry = &mut self.entries[request.0 as usize];
        let leaf = entry.leaf;
        if !entry.waits || self.is_closed(now, leaf) {
            return false;
        }
        let entry = &mut self.entries[request.0 as usize];
        entry.joined = true;
        entry.cost = entry.cost.saturating_sub(cost::START).max(1);
        self.settle(now, leaf);
        self.take_out(request.0);
        self.nodes[leaf as usize].joined += 1;
        self.dispatch(now, request.0, By::Share);
        true
    }

    /// When a limit lets the next request pass, if it is only limits that requests wait for. To be asked after
    /// [`next`](Self::next) returned none.
    pub fn wake_at(&self, now: Nanos) -> Option<Nanos> {
        let (at, _) = self.limited.first()?;
        self.window.admits(now).then_some(at)
    }

    /// From the queue of its leaf.
    fn take_out(&mut self, request: u32) {
        self.nodes[self.entries[request as usize].leaf as usize].queue.remove(request);
    }

    fn enter(&mut self, entry: Entry) -> u32 {
        match self.free_entries.pop() {
            Some(number) => {
                self.entries[number as usize] = entry;
                number
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        }
    }

    fn forget(&mut self, now: Nanos, request: u32) {
        let leaf = self.entries[request as usize].leaf;
        self.free_entries.push(request);
        if self.nodes[leaf as usize].leaving {
            self.reap(now, leaf);
        }
    }

    /// Look after what changes slowly.
    #[cold]
    fn tick(&mut self, now: Nanos) {
        self.tick_at = now + TICK;
        let (window, left) = (self.window.centre(), self.window.left());
        let mut bound = f64::INFINITY;
        for leaf in &self.goals {
            let goal = &mut self.nodes[*leaf as usize].goal;
            goal.steer(now, window, left);
            bound = bound.min(goal.window);
        }
        self.window.bound = bound;
        if !self.is_link {
            self.window.adapt(now, self.waiting);
        }
        if now >= self.period_at {
            self.period_at = now + waits::PERIOD;
            self.close_period(now);
        }
        if now >= self.second_at {
            self.second_at = now + SECOND;
            self.age(now);
        }
    }
}
