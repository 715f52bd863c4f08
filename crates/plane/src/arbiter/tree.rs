//! Nodes coming and going, and what is known of them.

use serde::{Deserialize, Serialize};

use super::node::{Knobs, Node};
use super::{Arbiter, Nanos, ROOT};

/// A node, for [`Arbiter::offer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf(pub(super) u32);

/// A node that cannot be there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The parent is the node itself, or below it.
    #[error("{0} cannot be below {1}, which is below it")]
    Loop(String, String),
    /// Requests are offered at the parent, which can therefore have no children.
    #[error("{0} has requests of its own, so nothing can be below it")]
    Leaf(String),
    /// There is no such node.
    #[error("there is no node {0}")]
    Unknown(String),
}

/// The state of an arbiter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// How many requests of 4 KiB may be at the device at once; 0 while there is no window.
    pub window: u64,
    /// Requests at the device.
    pub in_flight: u64,
    /// Requests that wait here.
    pub waiting: u64,
    /// All nodes, parents before their children.
    pub nodes: Vec<NodeStats>,
}

/// The state of a node. The counts are of it and of all below it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStats {
    /// Its name.
    pub id: String,
    /// Its parent's name, if it has one.
    pub parent: Option<String>,
    /// Its knobs.
    #[serde(flatten)]
    pub knobs: Knobs,
    /// Requests that went to the device.
    pub dispatched: u64,
    /// Bytes of the requests that were offered.
    pub bytes: u64,
    /// Requests that wait.
    pub waiting: u64,
    /// Requests at the device.
    pub in_flight: u64,
}

impl Arbiter {
    /// Make the node `id` below `parent`, or change it: what it has in flight and what waits is kept. Knobs hold from
    /// the next request on. `parent` must be there; without one the node is at the top. A node that was removed
    /// and still has requests is taken back.
    ///
    /// # Errors
    /// If it cannot be below `parent`.
    pub fn set_node(
        &mut self,
        now: Nanos,
        id: &str,
        parent: Option<&str>,
        knobs: Knobs,
    ) -> Result<Leaf, TreeError> {
        let above = match parent {
            None => ROOT,
            Some(name) => self.find(name).ok_or_else(|| TreeError::Unknown(name.to_owned()))?,
        };
        let node = &self.nodes[above as usize];
        if !node.queue.is_empty() || node.in_flight > 0 {
            return Err(TreeError::Leaf(node.name.clone()));
        }
        let index = match self.find(id) {
            Some(index) => index,
            None => self.insert(id, above),
        };
        if self.is_below(above, index) {
            return Err(TreeError::Loop(id.to_owned(), parent.unwrap_or_default().to_owned()));
        }
        self.hang(now, index, above);
        let node = &mut self.nodes[index as usize];
        node.leaving = false;
        node.set(knobs, now);
        self.refresh(now, index);
        Ok(Leaf(index))
    }

    /// The node `id`, if it is there and has not been removed.
    pub fn node(&self, id: &str) -> Option<Leaf> {
        self.find(id).filter(|index| !self.nodes[*index as usize].leaving).map(Leaf)
    }

    /// Forget the node `id`, once it has no more requests and nothing below it. True if there was such a node.
    pub fn remove_node(&mut self, id: &str) -> bool {
        let Some(index) = self.find(id) else { return false };
        self.nodes[index as usize].leaving = true;
        self.reap(index);
        true
    }

    /// The state of the device and of all nodes.
    pub fn stats(&self, now: Nanos) -> Stats {
        let mut nodes = Vec::new();
        self.describe(ROOT, &mut nodes);
        nodes.remove(0);
        Stats {
            window: self.window.requests(now),
            in_flight: self.in_flight as u64,
            waiting: self.waiting as u64,
            nodes,
        }
    }

    /// Add `index` and all below it; returns where it is.
    fn describe(&self, index: u32, into: &mut Vec<NodeStats>) -> usize {
        let node = &self.nodes[index as usize];
        let place = into.len();
        into.push(NodeStats {
            id: node.name.clone(),
            parent: (node.parent != ROOT).then(|| self.nodes[node.parent as usize].name.clone()),
            knobs: node.knobs,
            dispatched: node.dispatched,
            bytes: node.bytes,
            waiting: node.queue.len() as u64,
            in_flight: u64::from(node.in_flight),
        });
        for child in node.children.iter().flatten() {
            let below = self.describe(*child, into);
            let below = into[below].clone();
            let here = &mut into[place];
            here.dispatched += below.dispatched;
            here.bytes += below.bytes;
            here.waiting += below.waiting;
            here.in_flight += below.in_flight;
        }
        place
    }

    /// Forgotten nodes have no name.
    fn find(&self, id: &str) -> Option<u32> {
        let place = self.nodes.iter().skip(1).position(|node| node.name == id && !id.is_empty())?;
        Some(place as u32 + 1)
    }

    fn is_below(&self, mut node: u32, top: u32) -> bool {
        loop {
            if node == top {
                return true;
            }
            if node == ROOT {
                return false;
            }
            node = self.nodes[node as usize].parent;
        }
    }

    fn insert(&mut self, id: &str, parent: u32) -> u32 {
        let node = Node::new(id, parent, u32::MAX);
        match self.free_nodes.pop() {
            Some(index) => {
                self.nodes[index as usize] = node;
                index
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        }
    }

    /// Make `index` a child of `parent`.
    fn hang(&mut self, now: Nanos, index: u32, parent: u32) {
        let node = &self.nodes[index as usize];
        let (before, place) = (node.parent, node.place);
        if place != u32::MAX {
            if before == parent {
                return;
            }
            self.unhang(index);
            self.refresh(now, before);
        }
        let above = &mut self.nodes[parent as usize];
        let place = above.children.iter().position(Option::is_none).unwrap_or(above.children.len());
        if place == above.children.len() {
            above.children.push(None);
        }
        above.children[place] = Some(index);
        let served = above.served;
        let node = &mut self.nodes[index as usize];
        (node.parent, node.place, node.share) = (parent, place as u32, served);
    }

    fn unhang(&mut self, index: u32) {
        let (parent, place) = (self.nodes[index as usize].parent, self.nodes[index as usize].place);
        let above = &mut self.nodes[parent as usize];
        above.ready.remove(place);
        above.children[place as usize] = None;
        self.reserved.remove(index);
        self.limited.remove(index);
    }

    /// Forget a node that is to leave, if nothing holds it, and those above it that waited for this.
    pub(super) fn reap(&mut self, mut index: u32) {
        while index != ROOT {
            let node = &self.nodes[index as usize];
            let held = !node.queue.is_empty() || node.in_flight > 0 || node.has_children();
            if held || !node.leaving {
                return;
            }
            let parent = node.parent;
            self.unhang(index);
            self.nodes[index as usize].name.clear();
            self.free_nodes.push(index);
            index = parent;
        }
    }
}
