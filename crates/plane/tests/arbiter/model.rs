//! mClock in its plainest form: all tags in a list, every choice a search through all of it. The arbiter must choose
//! what this would choose, after any history.

use nagaya_plane::arbiter::{Ask, IO_BYTES, Kind, Knobs, Nanos};

/// How much time a limit catches up with, how much of a reservation is owed, and by how many requests of 4 KiB
/// reserved service may be ahead of the share.
const LIMIT_SLACK: Nanos = 5_000_000;
const OWED: Nanos = 100_000_000;
const LEAD: u64 = 64;

pub const ROOT: usize = 0;

/// Why a request goes: it is its node's turn, it is in a hurry, or it adjoins one that has just been started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    Turn,
    Hurry,
    Join,
}

/// A rate, and when it lets the next request pass or owes it.
#[derive(Clone, Copy, Default)]
struct Tag {
    rate: u64,
    at: Nanos,
}

impl Tag {
    fn time(&self, units: u64) -> Nanos {
        (units as f64 * (1e9 / self.rate as f64)) as Nanos
    }

    fn set(&mut self, rate: u64, now: Nanos) {
        if rate != self.rate {
            *self = Tag { rate, at: now };
        }
    }
}

pub struct Node {
    pub id: String,
    pub parent: usize,
    weight: u64,
    reservations: [Tag; 2],
    limits: [Tag; 2],
    /// Virtual time at which its next request starts, and of its children.
    share: u64,
    served: u64,
    ready: bool,
    /// Tickets, cost, I/Os and bytes of what waits.
    pub queue: Vec<(u64, Ask)>,
}

pub struct Model {
    pub nodes: Vec<Node>,
}

/// Units of 4 KiB reads, times 256; what a request weighs in IOPS and bytes.
fn amounts(ask: &Ask) -> (u64, [u64; 2]) {
    let data = matches!(ask.kind, Kind::Read | Kind::Write);
    let bytes = if data { ask.bytes } else { 4096 };
    (256 * (16384 + bytes) / 20480, [if data { bytes.div_ceil(IO_BYTES).max(1) } else { 1 }, bytes.max(1)])
}

impl Model {
    pub fn new() -> Model {
        let mut model = Model { nodes: Vec::new() };
        model.add("", ROOT);
        model
    }

    pub fn add(&mut self, id: &str, parent: usize) -> usize {
        let share = self.nodes.get(parent).map_or(0, |node| node.served);
        self.nodes.push(Node {
            id: id.to_owned(),
            parent,
            weight: 100,
            reservations: Default::default(),
            limits: Default::default(),
            share,
            served: 0,
            ready: false,
            queue: Vec::new(),
        });
        self.nodes.len() - 1
    }

    pub fn set(&mut self, now: Nanos, node: usize, knobs: &Knobs) {
        let node = &mut self.nodes[node];
        node.weight = u64::from(knobs.weight);
        node.reservations[0].set(knobs.reservation_iops, now);
        node.reservations[1].set(knobs.reservation, now);
        node.limits[0].set(knobs.limit_iops.unwrap_or(0), now);
        node.limits[1].set(knobs.limit.unwrap_or(0), now);
        self.update(now);
    }

    pub fn move_below(&mut self, now: Nanos, node: usize, parent: usize) {
        if self.nodes[node].parent != parent {
            let share = self.nodes[parent].served;
            let node = &mut self.nodes[node];
            (node.parent, node.share, node.ready) = (parent, share, false);
            self.update(now);
        }
    }

    pub fn children(&self, node: usize) -> impl Iterator<Item = usize> {
        (1..self.nodes.len()).filter(move |other| self.nodes[*other].parent == node)
    }

    /// From `node` up, without the root.
    pub fn path(&self, mut node: usize) -> Vec<usize> {
        let mut path = Vec::new();
        while node != ROOT {
            path.push(node);
            node = self.nodes[node].parent;
        }
        path
    }

    fn opens(&self, node: usize) -> Nanos {
        self.nodes[node].limits.iter().filter(|tag| tag.rate > 0).map(|tag| tag.at).max().unwrap_or(0)
    }

    fn is_ready(&self, now: Nanos, node: usize) -> bool {
        let work =
            !self.nodes[node].queue.is_empty() || self.children(node).any(|child| self.is_ready(now, child));
        work && self.opens(node) <= now
    }

    /// Who has become ready is owed nothing for the time before.
    pub fn update(&mut self, now: Nanos) {
        let ready: Vec<bool> = (0..self.nodes.len()).map(|node| self.is_ready(now, node)).collect();
        for (index, ready) in ready.into_iter().enumerate().skip(1) {
            let served = self.nodes[self.nodes[index].parent].served;
            let node = &mut self.nodes[index];
            if ready && !std::mem::replace(&mut node.ready, ready) {
                node.share = node.share.max(served);
                for tag in &mut node.reservations {
                    tag.at = tag.at.max(now);
                }
            }
            node.ready = ready;
        }
    }

    /// No limit is in the way from the leaf to the top.
    pub fn passes(&self, now: Nanos, leaf: usize) -> bool {
        self.path(leaf).iter().all(|node| self.opens(*node) <= now)
    }

    fn due(&self, node: usize) -> Option<Nanos> {
        self.nodes[node].reservations.iter().filter(|tag| tag.rate > 0).map(|tag| tag.at).min()
    }

    /// Nodes whose reservation is due.
    fn due_nodes(&self, now: Nanos) -> Vec<usize> {
        (1..self.nodes.len())
            .filter(|node| self.nodes[*node].ready && self.passes(now, *node))
            .filter(|node| self.due(*node).is_some_and(|due| due <= now))
            .collect()
    }

    /// Leaves below `top` that the weights choose: several, if they are equal.
    fn by_weight(&self, top: usize) -> Vec<usize> {
        if !self.nodes[top].queue.is_empty() {
            return vec![top];
        }
        let ready: Vec<usize> = self.children(top).filter(|child| self.nodes[*child].ready).collect();
        let least = ready.iter().map(|child| self.nodes[*child].share).min();
        let first = ready.into_iter().filter(|child| Some(self.nodes[*child].share) == least);
        first.flat_map(|child| self.by_weight(child)).collect()
    }

    /// The leaves of which one may be served next; empty if none may.
    pub fn choices(&self, now: Nanos) -> Vec<usize> {
        let due = self.due_nodes(now);
        if due.is_empty() {
            return self.by_weight(ROOT);
        }
        // A reservation below a limit is due at the earliest when the limit opens: it may be later than its tag.
        let held = |node: &usize| {
            self.path(*node)[1..].iter().any(|above| self.nodes[*above].limits.iter().any(|tag| tag.rate > 0))
        };
        let least = due.iter().filter(|node| !held(node)).filter_map(|node| self.due(*node)).min();
        let first = due.iter().filter(|node| least.is_none_or(|least| self.due(**node) <= Some(least)));
        let mut leaves: Vec<usize> = first.flat_map(|node| self.by_weight(*node)).collect();
        leaves.extend(due.iter().filter(|node| held(node)).flat_map(|node| self.by_weight(*node)));
        leaves
    }

    /// `leaf` serves `ticket`. Under a reservation, if one is due anywhere and it was its turn.
    pub fn serve(&mut self, now: Nanos, leaf: usize, ticket: u64, by: By) {
        let reserved = by == By::Turn && !self.due_nodes(now).is_empty();
        let queue = &mut self.nodes[leaf].queue;
        let place = queue.iter().position(|(other, _)| *other == ticket).expect("it waits");
        let (_, ask) = queue.remove(place);
        let (mut cost, units) = amounts(&ask);
        if by == By::Join {
            cost -= 256 * 16384 / 20480;
        }
        for index in self.path(leaf) {
            let parent = self.nodes[index].parent;
            let shares = self.children(parent).filter(|child| self.nodes[*child].ready);
            if let Some(least) = shares.map(|child| self.nodes[child].share).min() {
                self.nodes[parent].served = self.nodes[parent].served.max(least);
            }
            let served = self.nodes[parent].served;
            self.nodes[index].charge(now, cost, units, served, reserved);
        }
        self.update(now);
    }
}

impl Node {
    fn charge(&mut self, now: Nanos, cost: u64, units: [u64; 2], served: u64, reserved: bool) {
        let inverse = (1 << 24) / self.weight;
        self.share += cost * inverse;
        for (tag, units) in self.limits.iter_mut().zip(units).filter(|(tag, _)| tag.rate > 0) {
            tag.at = tag.at.max(now.saturating_sub(LIMIT_SLACK)) + tag.time(units);
        }
        if reserved {
            self.share = self.share.min(served + cost.max(LEAD * 256) * inverse);
            for (tag, units) in self.reservations.iter_mut().zip(units).filter(|(tag, _)| tag.rate > 0) {
                let next = tag.at.max(now.saturating_sub(OWED)) + tag.time(units);
                tag.at = next.min(now + tag.time(units).max(OWED));
            }
        }
    }
}
