//! The state of an arbiter, for people and for the other side of a socket.

use serde::{Deserialize, Serialize};

use super::latency::{Latencies, Objective};
use super::node::Knobs;
use super::{Arbiter, Nanos, ROOT};

/// The state of an arbiter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// How many requests of 4 KiB may be at the device at once; 0 while there is no window.
    pub window: u64,
    /// The tightest latency objective that the window is kept small for, in µs; 0 for none.
    pub target_us: u64,
    /// Requests at the device.
    pub in_flight: u64,
    /// Requests that wait here.
    pub waiting: u64,
    /// Small requests a second that the device did when it was busy; 0 until it has been seen so.
    pub capacity_iops: u64,
    /// Bytes a second that it did when it was busy with large requests; 0 until it has been seen so. The rate of a link.
    pub capacity: u64,
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
    /// Those of them that the device got as a part of another.
    pub joined: u64,
    /// Bytes of the requests that were offered.
    pub bytes: u64,
    /// Requests that wait.
    pub waiting: u64,
    /// Requests at the device.
    pub in_flight: u64,
    /// The latency that 99% of its requests of the last seconds stayed below, in µs; 0 if there were none.
    pub p99_us: u64,
    /// How its latency objective fares, or that of the disk below it that fares worst.
    pub objective: Objective,
}

/// An objective is met again, or not any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectiveChange {
    /// The leaf: a disk, or host work.
    pub id: String,
    /// Whether it is met.
    pub met: bool,
}

impl Arbiter {
    /// The state of the device and of all nodes.
    pub fn stats(&self, now: Nanos) -> Stats {
        let mut nodes = Vec::new();
        let top = self.nodes[ROOT as usize].children.iter().flatten();
        for child in top {
            self.describe(*child, &mut nodes);
        }
        let pursued = self.goals.iter().map(|leaf| &self.nodes[*leaf as usize].goal);
        let target = pursued.filter(|goal| goal.is_pursued(now)).map(|goal| goal.latency).min();
        let rate = self.nodes[ROOT as usize].knobs.limit.unwrap_or(0);
        Stats {
            window: self.window.shown(now),
            target_us: target.unwrap_or(0) / 1000,
            in_flight: self.in_flight as u64,
            waiting: self.waiting as u64,
            capacity_iops: self.window.capacity.iops as u64,
            capacity: if self.is_link { rate } else { self.window.capacity.bytes as u64 },
            nodes,
        }
    }

    /// Objectives that are met or missed since the last call and were not before.
    pub fn take_changes(&mut self) -> Vec<ObjectiveChange> {
        std::mem::take(&mut self.changes)
    }

    /// A second has passed.
    pub(super) fn age(&mut self, now: Nanos) {
        for node in &mut self.nodes {
            node.latencies.age();
            if node.goal.latency > 0 && node.goal.judge(now) {
                let met = node.goal.state == Objective::Met;
                self.changes.push(ObjectiveChange { id: node.name.clone(), met });
            }
        }
    }

    /// Add `index` and all below it; returns what to count for the parent.
    fn describe(&self, index: u32, into: &mut Vec<NodeStats>) -> (NodeStats, Latencies) {
        let node = &self.nodes[index as usize];
        let mut latencies = Latencies::default();
        latencies.merge(&node.latencies);
        let mut stats = NodeStats {
            id: node.name.clone(),
            parent: (node.parent != ROOT).then(|| self.nodes[node.parent as usize].name.clone()),
            knobs: node.knobs,
            dispatched: node.dispatched,
            joined: node.joined,
            bytes: node.bytes,
            waiting: node.queue.len() as u64,
            in_flight: u64::from(node.in_flight),
            p99_us: 0,
            objective: node.goal.state,
        };
        let place = into.len();
        into.push(stats.clone());
        for child in node.children.iter().flatten() {
            let (below, more) = self.describe(*child, into);
            stats.dispatched += below.dispatched;
            stats.joined += below.joined;
            stats.bytes += below.bytes;
            stats.waiting += below.waiting;
            stats.in_flight += below.in_flight;
            stats.objective = stats.objective.max(below.objective);
            latencies.merge(&more);
        }
        stats.p99_us = latencies.p99_us();
        into[place] = stats.clone();
        (stats, latencies)
    }
}
