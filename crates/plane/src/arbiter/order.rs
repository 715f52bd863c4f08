//! mClock: which request is next, and what its start changes.

use super::cost::UNIT;
use super::node::{By, Spent};
use super::{Arbiter, Nanos, REBASE, ROOT};

/// How soon it is looked again whether an objective may take more, at the earliest.
const SOON: Nanos = 10_000;

/// How far behind its share somebody is whom a full window would hurt and who would not fill it: a cost.
const QUIET: u64 = 8 * UNIT;

impl Arbiter {
    /// Start the next request, if there is one that may.
    pub(super) fn next_request(&mut self, now: Nanos) -> Option<u32> {
        self.open_limits(now);
        let admits = self.window.admits(now);
        if !admits || self.waiting == 0 {
            self.window.mark(now, admits);
            return None;
        }
        // Looked at first: while a link is busy all reservations that are due would be gone through for nothing.
        if self.limited.contains(ROOT) {
            return None;
        }
        let (top, by) = self.due(now).unwrap_or((ROOT, By::Share));
        let Some(leaf) = self.descend(top) else {
            self.window.mark(now, true);
            return None;
        };
        self.start_first(now, leaf, by)
    }

    /// Start the request at the head of the queue of `leaf`.
    fn start_first(&mut self, now: Nanos, leaf: u32, by: By) -> Option<u32> {
        self.settle(now, leaf);
        let request = self.nodes[leaf as usize].queue.pop()?;
        self.dispatch(now, request, by);
        Some(request)
    }

    /// Start the only request of `leaf`, although the window is full, if it is its turn and it has none at the device:
    /// what it had to wait for otherwise is the window of others, and it takes little room.
    pub(super) fn next_beyond(&mut self, now: Nanos, leaf: u32) -> Option<u32> {
        let node = &self.nodes[leaf as usize];
        if node.in_flight > 0 || node.queue.len() != 1 || !self.window.admits_beyond() {
            return None;
        }
        self.open_limits(now);
        match self.due(now) {
            Some((due, by)) if self.descend(due) == Some(leaf) => self.start_first(now, leaf, by),
            None if self.is_first(leaf) => self.start_first(now, leaf, By::Share),
            _ => None,
        }
    }

    /// Whether nobody's share comes before that of `leaf`, at each level.
    fn is_first(&self, mut index: u32) -> bool {
        while index != ROOT {
            let node = &self.nodes[index as usize];
            let above = &self.nodes[node.parent as usize];
            if !above.ready.contains(node.place)
                || above.ready.first().is_some_and(|(share, _)| share < node.share)
            {
                return false;
            }
            index = node.parent;
        }
        true
    }

    /// Whether `leaf` has used far less than its share of late: by more than [`QUIET`] requests, at some level.
    pub(super) fn is_quiet(&self, mut index: u32) -> bool {
        while index != ROOT {
            let node = &self.nodes[index as usize];
            let parent = node.parent;
            if node.lag(self.nodes[parent as usize].served) > QUIET {
                return true;
            }
            index = parent;
        }
        false
    }

    /// Nodes whose limits let pass again can be served.
    fn open_limits(&mut self, now: Nanos) {
        while let Some((at, node)) = self.limited.first()
            && at <= now
        {
            self.refresh(now, node);
        }
    }

    /// The node whose reservation has been due for longest and can be served, or whose request is late.
    fn due(&mut self, now: Nanos) -> Option<(u32, By)> {
        while let Some((at, index)) = self.reserved.first()
            && at <= now
        {
            // A limit further up the tree holds for reservations too: they are due when it opens.
            if let Some(opens) = self.closed_above(index) {
                self.reserved.put(index, opens);
                continue;
            }
            let node = &self.nodes[index as usize];
            let reserved = node.due_at();
            if reserved.is_some_and(|due| due <= now) {
                return Some((index, By::Reservation));
            }
            if !self.is_ahead(index) {
                return Some((index, By::Objective));
            }
            // What an objective may take from the others is used up: they have their part first.
            let again = now + (node.goal.latency / 4).max(SOON);
            self.reserved.put(index, reserved.map_or(again, |due| due.min(again)));
        }
        None
    }

    /// Whether `node`, or one above it, has had more than its objective may take.
    fn is_ahead(&self, mut index: u32) -> bool {
        while index != ROOT {
            let node = &self.nodes[index as usize];
            if node.is_ahead(self.nodes[node.parent as usize].served) {
                return true;
            }
            index = node.parent;
        }
        false
    }

    /// Whether a limit of `node` or of one above it keeps requests waiting.
    pub(super) fn is_closed(&self, now: Nanos, mut node: u32) -> bool {
        while node != ROOT {
            let here = &self.nodes[node as usize];
            if here.opens_at() > now {
                return true;
            }
            node = here.parent;
        }
        false
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

    /// Start `request` at once, while nothing waits and its node is plain: there is no order to find out. It counts
    /// all the same, for those who come.
    pub(super) fn start_unordered(&mut self, now: Nanos, request: u32) {
        let spent = self.enter_device(now, request);
        let mut index = self.entries[request as usize].leaf;
        while index != ROOT {
            let parent = self.nodes[index as usize].parent;
            let share = self.nodes[index as usize].share;
            let above = &mut self.nodes[parent as usize];
            above.served = above.served.max(share);
            let served = above.served;
            self.nodes[index as usize].charge_share(&spent, served);
            self.rebase_if_far(parent);
            index = parent;
        }
    }

    /// `request`, which waits but is in no queue any more, goes to the device.
    pub(super) fn dispatch(&mut self, now: Nanos, request: u32, by: By) {
        self.waiting -= 1;
        let spent = self.enter_device(now, request);
        let leaf = self.entries[request as usize].leaf;
        let mut index = leaf;
        while index != ROOT {
            let parent = self.nodes[index as usize].parent;
            let above = &mut self.nodes[parent as usize];
            // The time of a start-time fair queue: the least tag of those that could have been served.
            if let Some((share, _)) = above.ready.first() {
                above.served = above.served.max(share);
            }
            let served = above.served;
            self.nodes[index as usize].charge(now, &spent, served, by);
            self.rebase_if_far(parent);
            index = parent;
        }
        self.nodes[ROOT as usize].charge_limits(now, u64::from(spent.ios), spent.bytes);
        self.refresh(now, leaf);
    }

    /// `request` is at the device from now on; returns what it takes of each bound.
    fn enter_device(&mut self, now: Nanos, request: u32) -> Spent {
        let entry = &mut self.entries[request as usize];
        entry.waits = false;
        entry.started = now;
        let waited = entry.offered < now;
        let (leaf, joined) = (entry.leaf, entry.joined);
        let spent = Spent { cost: entry.cost, ios: entry.ios, bytes: entry.bytes };
        let latency = now.saturating_sub(entry.offered);
        let node = &mut self.nodes[leaf as usize];
        node.dispatched += 1;
        node.account.started += u64::from(waited);
        if self.is_link {
            node.account.occupy(spent.cost);
            node.latencies.add(latency);
        } else {
            node.in_flight += 1;
            node.account.in_flight_cost += u64::from(spent.cost);
            self.in_flight += 1;
            self.entries[request as usize].load = self.window.enter(spent.cost, joined);
        }
        spent
    }

    /// Before the virtual time of the children of `parent` overflows, all of them go back by the same amount.
    fn rebase_if_far(&mut self, parent: u32) {
        let above = &mut self.nodes[parent as usize];
        if above.served < REBASE {
            return;
        }
        above.served -= REBASE;
        above.ready.lower(REBASE);
        let children: Vec<u32> = above.children.iter().flatten().copied().collect();
        for child in children {
            let node = &mut self.nodes[child as usize];
            node.share = node.share.saturating_sub(REBASE);
        }
    }

    /// Knobs have changed: reservations are due when they say, and no more when a limit above them did.
    pub(super) fn order_reserved(&mut self, now: Nanos) {
        for index in 1..self.nodes.len() as u32 {
            if self.reserved.contains(index)
                && let Some(due) = self.due_at(now, index)
            {
                self.reserved.put(index, due);
            }
        }
    }

    /// When reservations, or a latency objective, entitle `index` to the next request; never without any. Half of the
    /// time that an objective allows is for waiting here, the other half for the device; what is late already does not
    /// go before a reservation that has been due before.
    fn due_at(&self, now: Nanos, index: u32) -> Option<Nanos> {
        let node = &self.nodes[index as usize];
        let reserved = node.due_at();
        let head = node.queue.front().filter(|_| node.goal.is_pursued(now));
        let hurried = head.map(|head| (self.entries[head as usize].offered + node.goal.latency / 2).max(now));
        [reserved, hurried].into_iter().flatten().min()
    }

    /// Put `node` and those above it into the heaps where they belong.
    pub(super) fn refresh(&mut self, now: Nanos, mut index: u32) {
        loop {
            let node = &mut self.nodes[index as usize];
            let (work, opens) = (node.has_work(), node.opens_at());
            let ready = work && opens <= now;
            if self.bounds > 0 || !self.limited.is_empty() {
                node.set_closed(now, work && !ready);
                if work && !ready {
                    self.limited.put(index, opens);
                } else {
                    self.limited.remove(index);
                }
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
            match self.due_at(now, index) {
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
}
