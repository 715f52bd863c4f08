//! A link: a device that serves so many bytes a second, and never answers.
//!
//! What disks have is used as it is: tree, knobs, order, attribution. The link's rate is a limit at the top of the tree.
//! A frame that may go has gone, so nothing is in flight and there is no window. A leaf's frames wait by flow, and a
//! small frame of a flow that sends little does not wait for the link at all: it goes at once, and what waits goes
//! later by as much. [`AHEAD`] bounds by how much.

use super::node::{By, Knobs, Manner};
use super::queue::{Flows, Queue};
use super::{Arbiter, Entry, Leaf, Nanos, ROOT};

/// The largest frame: as the guest hands it over, for the other side or the network card to cut up (virtio 1.3 5.1.6.2).
pub const LARGEST_FRAME: u32 = 64 << 10;

/// A small frame may go before a limit, or the link, is free again, as long as it is then for at most the time of the
/// largest frame and so much longer.
pub(super) const AHEAD: Nanos = 2_000_000;

/// By so many bytes a machine's small frames may be ahead of its share.
const LEAD: u64 = 96 << 10;

/// A frame, as the arbiter sees it.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// What the caller knows it by; [`next`](Arbiter::next) returns it.
    pub ticket: u64,
    /// On the link: of one that is to be cut up, with the headers of all its parts.
    pub bytes: u32,
    /// Frames of one flow keep their order. Flows with the same last 8 bits share their turns.
    pub flow: u32,
}

impl Arbiter {
    /// The arbiter of a link with so many bytes a second; none if that is not known. Then only the limits of nodes keep
    /// frames waiting.
    pub fn link(now: Nanos, rate: Option<u64>) -> Arbiter {
        let mut arbiter = Arbiter::new(now);
        arbiter.is_link = true;
        arbiter.nodes[ROOT as usize].manner = Manner::LINK;
        arbiter.set_rate(now, rate);
        arbiter
    }

    /// From now on the link has so many bytes a second.
    pub fn set_rate(&mut self, now: Nanos, rate: Option<u64>) {
        self.nodes[ROOT as usize].set(Knobs { limit: rate, ..Knobs::default() }, now);
        self.note_bounds();
        self.refresh(now, ROOT);
    }

    /// Whether frames of `leaf` have nothing to wait for: neither the link nor a node has a limit. They need not be
    /// offered then.
    pub fn is_free(&self, leaf: Leaf) -> bool {
        self.bounds == 0 || self.nodes[leaf.0 as usize].plain
    }

    /// Whether `leaf`, or a node above it, has a limit of its own.
    pub fn has_limit(&self, leaf: Leaf) -> bool {
        let mut index = leaf.0;
        while self.bounds > 0 && index != ROOT {
            let node = &self.nodes[index as usize];
            if node.has_limit() {
                return true;
            }
            index = node.parent;
        }
        false
    }

    /// Whether anything waits.
    pub fn has_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// How many frames wait in `leaf`.
    pub fn waiting_of(&self, leaf: Leaf) -> usize {
        self.nodes[leaf.0 as usize].queue.len()
    }

    /// Bytes a second that the tightest limit above `leaf`, or the link, lets pass.
    pub fn bound_of(&self, leaf: Leaf) -> Option<u64> {
        let (mut index, mut bound) = (leaf.0, self.nodes[ROOT as usize].knobs.limit);
        while index != ROOT {
            let node = &self.nodes[index as usize];
            bound = bound.into_iter().chain(node.knobs.limit).min();
            index = node.parent;
        }
        bound
    }

    /// A frame of `leaf` is there. True: it may go, and has gone as far as the arbiter is concerned. Otherwise it waits,
    /// and [`next`](Self::next) returns its ticket when it may go.
    pub fn offer_frame(&mut self, now: Nanos, leaf: Leaf, frame: Frame) -> bool {
        if now >= self.tick_at {
            self.tick(now);
        }
        let (index, flow) = (leaf.0, frame.flow as u8);
        let request = self.enter(Entry {
            ticket: frame.ticket,
            offered: now,
            started: now,
            bytes: frame.bytes.into(),
            leaf: index,
            cost: frame.bytes,
            ios: 0,
            class: super::Class::default(),
            load: 0,
            waits: true,
            joined: false,
        });
        let node = &mut self.nodes[index as usize];
        node.bytes += u64::from(frame.bytes);
        if self.waiting == 0 && node.plain {
            self.start_unordered(now, request);
            self.forget(now, request);
            return true;
        }
        self.settle(now, index);
        if self.may_overtake(now, index, flow, frame.bytes) {
            self.overtake(now, request, flow);
            return true;
        }
        let node = &mut self.nodes[index as usize];
        node.queue.push(request, flow, frame.bytes);
        self.waiting += 1;
        if node.queue.len() == 1 {
            self.refresh(now, index);
        }
        if self.waiting == 1 && self.next_request(now).is_some() {
            self.forget(now, request);
            return true;
        }
        false
    }

    /// If more than `most` bytes wait in `leaf`: the ticket of a frame that is not to wait any more, of the flow that
    /// has the most. Call it until there is none.
    pub fn shed(&mut self, now: Nanos, leaf: Leaf, most: u64) -> Option<u64> {
        let flows = self.nodes[leaf.0 as usize].queue.flows()?;
        if flows.bytes() <= most {
            return None;
        }
        self.settle(now, leaf.0);
        let request = self.nodes[leaf.0 as usize].queue.flows().and_then(Flows::shed)?;
        Some(self.take_back(now, request))
    }

    /// Nothing of `leaf` is to wait any more: the tickets of what did.
    pub fn withdraw_all(&mut self, now: Nanos, leaf: Leaf) -> Vec<u64> {
        self.settle(now, leaf.0);
        let mut tickets = Vec::new();
        while let Some(request) = self.nodes[leaf.0 as usize].queue.pop() {
            tickets.push(self.take_back(now, request));
        }
        tickets
    }

    /// So many bytes of `leaf` went another way than over this link: its limits, and those above it, count them too.
    pub fn spend(&mut self, now: Nanos, leaf: Leaf, bytes: u32) {
        let mut index = leaf.0;
        while index != ROOT {
            let node = &mut self.nodes[index as usize];
            node.charge_limits(now, 0, bytes.into());
            index = node.parent;
        }
        self.refresh(now, leaf.0);
    }

    /// A request that has been taken out of its queue is forgotten; its ticket.
    fn take_back(&mut self, now: Nanos, request: u32) -> u64 {
        let entry = self.entries[request as usize];
        self.waiting -= 1;
        self.refresh(now, entry.leaf);
        self.forget(now, request);
        entry.ticket
    }

    /// Whether a small frame need not wait for the link and limits to be free: at each level its node is not ahead of
    /// its share by more than [`LEAD`], and no limit by more than [`AHEAD`].
    fn may_overtake(&self, now: Nanos, leaf: u32, flow: u8, bytes: u32) -> bool {
        let Queue::Flows(flows) = &self.nodes[leaf as usize].queue else { return false };
        if !flows.is_sparse(flow, bytes) {
            return false;
        }
        let mut index = leaf;
        while index != ROOT {
            let node = &self.nodes[index as usize];
            let served = self.nodes[node.parent as usize].served;
            if !node.lets_ahead(now, bytes) || node.lead(served) > LEAD {
                return false;
            }
            index = node.parent;
        }
        self.nodes[ROOT as usize].lets_ahead(now, bytes)
    }

    /// A small frame goes now. It counts as any other.
    fn overtake(&mut self, now: Nanos, request: u32, flow: u8) {
        let entry = self.entries[request as usize];
        if let Some(flows) = self.nodes[entry.leaf as usize].queue.flows() {
            flows.pass(flow, entry.cost);
        }
        let mut index = entry.leaf;
        while index != ROOT {
            let (parent, place) = (self.nodes[index as usize].parent, self.nodes[index as usize].place);
            let share = self.nodes[index as usize].share;
            let above = &mut self.nodes[parent as usize];
            if above.ready.is_empty() {
                // Nobody is there to be compared with.
                above.served = above.served.max(share);
            }
            let (served, was_ready) = (above.served, above.ready.contains(place));
            if !was_ready {
                self.nodes[index as usize].awake(served, now);
            }
            index = parent;
        }
        self.waiting += 1;
        self.dispatch(now, request, By::Share);
        self.forget(now, request);
    }
}
