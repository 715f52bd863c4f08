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
//! clock that never goes back. General layout: this file has the life of a request, `tree` nodes coming and
//! going; `node` tags and knobs, `cost` what a request counts as, `window` how many may be at the device, `heap` the
//! queue that everything is ordered by.
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

use node::{Node, Spent};

mod cost;
mod heap;
mod node;
mod tree;
mod window;

pub use cost::{Ask, IO_BYTES, Kind};
pub use node::{Knobs, MAX_WEIGHT};
pub use tree::{Leaf, NodeStats, Stats, TreeError};

use heap::Heap;
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

#[derive(Clone, Copy)]
struct Entry {
    ticket: u64,
    bytes: u64,
    leaf: u32,
    cost: u32,
    ios: u32,
    waits: bool,
}

/// The arbiter of a device.
pub struct Arbiter {
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
}

impl Arbiter {
    /// Without nodes.
    pub fn new(now: Nanos) -> Arbiter {
        let mut root = Node::new("", ROOT, 0);
        root.set(Knobs::default(), now);
        Arbiter {
            nodes: vec![root],
            free_nodes: Vec::new(),
            entries: Vec::new(),
            free_entries: Vec::new(),
            waiting: 0,
            in_flight: 0,
            reserved: Heap::default(),
            limited: Heap::default(),
            window: Window::new(),
        }
    }

    /// A request of `leaf` is there. If the answer says so it is to be started at once; otherwise it waits.
    ///
    /// `leaf` must be a node without children that has not been removed.
    pub fn offer(&mut self, now: Nanos, leaf: Leaf, ask: Ask) -> Admission {
        let index = leaf.0;
        self.window.seen(now, index);
        let request = self.enter(Entry {
            ticket: ask.ticket,
            bytes: ask.paced(),
            leaf: index,
            cost: ask.cost(),
            ios: ask.ios(),
            waits: true,
        });
        let node = &mut self.nodes[index as usize];
        node.bytes += ask.moved();
        node.queue.push_back(request);
        self.waiting += 1;
        if node.queue.len() == 1 {
            self.refresh(now, index);
        }
        let now = self.waiting == 1 && self.next_request(now).is_some();
        Admission { request: Request(request), now }
    }

    /// The ticket of a request to be started now, in the arbiter's order. Call it until there is none: after offers,
    /// after completions, and at [`wake_at`](Self::wake_at).
    pub fn next(&mut self, now: Nanos) -> Option<u64> {
        let request = self.next_request(now)?;
        Some(self.entries[request as usize].ticket)
    }

    /// A request that was started is done, or failed, or is to be offered again later: the device is rid of it.
    pub fn complete(&mut self, _now: Nanos, request: Request) {
        let entry = self.entries[request.0 as usize];
        self.window.leave(entry.cost);
        self.in_flight -= 1;
        self.nodes[entry.leaf as usize].in_flight -= 1;
        self.forget(request.0);
    }

    /// Take back a request that waits: it will not be started. True if it did wait; one that was started is to be
    /// completed instead.
    pub fn withdraw(&mut self, now: Nanos, request: Request) -> bool {
        let entry = self.entries[request.0 as usize];
        if !entry.waits {
            return false;
        }
        let node = &mut self.nodes[entry.leaf as usize];
        node.queue.retain(|other| *other != request.0);
        self.waiting -= 1;
        self.refresh(now, entry.leaf);
        self.forget(request.0);
        true
    }

    /// Start a request that waits before its turn, whatever the window and limits say. It counts as any other: what its
    /// node offers next waits the longer.
    pub fn hurry(&mut self, now: Nanos, request: Request) {
        let entry = self.entries[request.0 as usize];
        if entry.waits {
            self.nodes[entry.leaf as usize].queue.retain(|other| *other != request.0);
            self.dispatch(now, request.0, false);
        }
    }

    /// When a limit lets the next request pass, if it is only limits that requests wait for. To be asked after
    /// [`next`](Self::next) returned none.
    pub fn wake_at(&self, now: Nanos) -> Option<Nanos> {
        let (at, _) = self.limited.first()?;
        self.window.admits(now).then_some(at)
    }

    fn next_request(&mut self, now: Nanos) -> Option<u32> {
        if self.waiting == 0 || !self.window.admits(now) {
            return None;
        }
        self.open_limits(now);
        let (top, reserved) = match self.due(now) {
            Some(node) => (node, true),
            None => (ROOT, false),
        };
        let leaf = self.descend(top)?;
        let request = self.nodes[leaf as usize].queue.pop_front()?;
        self.dispatch(now, request, reserved);
        Some(request)
    }

    /// Nodes whose limits let pass again can be served.
    fn open_limits(&mut self, now: Nanos) {
        while let Some((at, node)) = self.limited.first()
            && at <= now
        {
            self.refresh(now, node);
        }
    }

    /// The node whose reservation has been due for longest and can be served.
    fn due(&mut self, now: Nanos) -> Option<u32> {
        while let Some((at, node)) = self.reserved.first()
            && at <= now
        {
            // A limit further up the tree holds for reservations too: they are due when it opens.
            match self.closed_above(node) {
                Some(opens) => self.reserved.put(node, opens),
                None => return Some(node),
            }
        }
        None
    }

    fn closed_above(&self, mut node: u32) -> Option<Nanos> {
        while node != ROOT {
            node = self.nodes[node as usize].parent;
            if self.limited.contains(node) {
                return Some(self.nodes[node as usize].opens_at());
            }
        }
        None
    }

    /// From `node` down to a leaf, by weight.
    fn descend(&self, mut node: u32) -> Option<u32> {
        loop {
            let here = &self.nodes[node as usize];
            if !here.queue.is_empty() {
                return Some(node);
            }
            let (_, place) = here.ready.first()?;
            node = here.children[place as usize]?;
        }
    }

    fn dispatch(&mut self, now: Nanos, request: u32, reserved: bool) {
        let entry = &mut self.entries[request as usize];
        entry.waits = false;
        let (leaf, spent) = (entry.leaf, Spent { cost: entry.cost, ios: entry.ios, bytes: entry.bytes });
        self.waiting -= 1;
        self.in_flight += 1;
        self.window.enter(spent.cost);
        let node = &mut self.nodes[leaf as usize];
        node.in_flight += 1;
        node.dispatched += 1;
        let mut index = leaf;
        while index != ROOT {
            let parent = self.nodes[index as usize].parent;
            let above = &mut self.nodes[parent as usize];
            // The time of a start-time fair queue: the least tag of those that could have been served.
            if let Some((share, _)) = above.ready.first() {
                above.served = above.served.max(share);
            }
            let served = above.served;
            self.nodes[index as usize].charge(now, &spent, served, reserved);
            if served >= REBASE {
                self.rebase(parent);
            }
            index = parent;
        }
        self.refresh(now, leaf);
    }

    /// Before the virtual time of the children of `parent` overflows, all of them go back by the same amount.
    #[cold]
    fn rebase(&mut self, parent: u32) {
        let above = &mut self.nodes[parent as usize];
        above.served -= REBASE;
        above.ready.lower(REBASE);
        let children: Vec<u32> = above.children.iter().flatten().copied().collect();
        for child in children {
            let node = &mut self.nodes[child as usize];
            node.share = node.share.saturating_sub(REBASE);
        }
    }

    /// Put `node` and those above it into the heaps where they belong.
    fn refresh(&mut self, now: Nanos, mut index: u32) {
        loop {
            let node = &mut self.nodes[index as usize];
            let (work, opens) = (node.has_work(), node.opens_at());
            let ready = work && opens <= now;
            if work && !ready {
                self.limited.put(index, opens);
            } else {
                self.limited.remove(index);
            }
            if index == ROOT {
                return;
            }
            let (parent, place) = (node.parent, node.place);
            let above = &self.nodes[parent as usize];
            let (was_ready, served) = (above.ready.contains(place), above.served);
            let node = &mut self.nodes[index as usize];
            if ready && !was_ready {
                node.awake(served, now);
            }
            let share = node.share;
            match node.due_at() {
                Some(due) if ready => self.reserved.put(index, due),
                _ => self.reserved.remove(index),
            }
            let above = &mut self.nodes[parent as usize];
            if ready {
                above.ready.put(place, share);
            } else {
                above.ready.remove(place);
            }
            index = parent;
        }
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

    fn forget(&mut self, request: u32) {
        let leaf = self.entries[request as usize].leaf;
        self.free_entries.push(request);
        if self.nodes[leaf as usize].leaving {
            self.reap(leaf);
        }
    }
}
