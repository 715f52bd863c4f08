//! Nodes coming and going, and what is known of them.

use super::latency::Goal;
use super::node::{Knobs, Manner, Node};
use super::queue::{Flows, Queue};
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
        self.note_bounds();
        self.refresh(now, index);
        self.order_reserved(now);
        Ok(Leaf(index))
    }

    /// The node `id`, if it is there and has not been removed.
    pub fn node(&self, id: &str) -> Option<Leaf> {
        self.find(id).filter(|index| !self.nodes[*index as usize].leaving).map(Leaf)
    }

    /// Forget the node `id`, once it has no more requests and nothing below it. True if there was such a node.
    pub fn remove_node(&mut self, now: Nanos, id: &str) -> bool {
        let Some(index) = self.find(id) else { return false };
        self.nodes[index as usize].leaving = true;
        self.reap(now, index);
        true
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
        let mut node = Node::new(id, parent, u32::MAX);
        if self.is_link {
            (node.queue, node.manner) = (Queue::Flows(Flows::default()), Manner::LINK);
        }
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
    pub(super) fn reap(&mut self, now: Nanos, mut index: u32) {
        while index != ROOT {
            let node = &self.nodes[index as usize];
            let held = !node.queue.is_empty() || node.in_flight > 0 || node.has_children();
            if held || !node.leaving {
                return;
            }
            let parent = node.parent;
            self.keep_waits_of(now, index);
            self.unhang(index);
            self.nodes[index as usize] = Node::new("", ROOT, u32::MAX);
            self.free_nodes.push(index);
            self.note_bounds();
            index = parent;
        }
    }

    /// What is to be looked after because some node has a limit or a latency objective.
    pub(super) fn note_bounds(&mut self) {
        self.bounds = self.nodes.iter().filter(|node| node.has_limit()).count() as u32;
        self.goals.clear();
        for index in 1..self.nodes.len() as u32 {
            let latency =
                if self.nodes[index as usize].has_children() { 0 } else { self.objective_of(index) };
            let plain = self.is_plain(index);
            self.nodes[index as usize].plain = plain;
            let goal = &mut self.nodes[index as usize].goal;
            if goal.latency != latency {
                *goal = Goal::new(latency);
            }
            if latency > 0 {
                self.goals.push(index);
            }
        }
    }

    fn is_plain(&self, mut index: u32) -> bool {
        while index != ROOT {
            let node = &self.nodes[index as usize];
            if node.has_limit() || node.has_reservation() {
                return false;
            }
            index = node.parent;
        }
        !self.nodes[ROOT as usize].has_limit()
    }

    /// The latency objective of a node or the nearest above it, in ns; 0 if there is none.
    fn objective_of(&self, mut index: u32) -> Nanos {
        while index != ROOT {
            let node = &self.nodes[index as usize];
            if let Some(latency) = node.knobs.latency_p99_us {
                return latency.saturating_mul(1000);
            }
            index = node.parent;
        }
        0
    }
}
