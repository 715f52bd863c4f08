//! Who sends how much, and whose turn it is: frames that must wait for a limit or for the uplink do so here.
//!
//! A frame passes a gate where it leaves its machine: that of the uplink, whose rate is shared by reservation, limit
//! and weight, or that between machines, which knows limits alone. Where it comes to a machine it passes that machine's limit,
//! which those who send to it share by weight (`pairs`).
//! Where nothing is to be waited for a gate costs a comparison; what must wait is copied, and its sender's ring goes on.

use std::collections::HashMap;

use crate::arbiter::{Arbiter, Frame, Leaf, NodeStats, Stats, TreeError, Wait};
use crate::clock::Nanos;
use crate::net::header::Offload;
use crate::net::switch::{Delivery, PortId};
use crate::shares::{ShareNode, Tree};

mod pairs;

use pairs::Pairs;

/// What waits at a gate is at most what passes in so long, within these bounds: enough for a connection over a long way,
/// and not so much that a connection which uses all of it waits for ever.
const BACKLOG: Nanos = 20_000_000;
const LEAST_BACKLOG: u64 = 192 << 10;
const MOST_BACKLOG: u64 = 4 << 20;

/// Buffers that are kept for the next frames that wait.
const SPARE: usize = 64;

/// Where frames wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Out of the network.
    Uplink = 0,
    /// From a machine to others.
    Local = 1,
    /// To a machine.
    Machine = 2,
}

const GATES: [Gate; 3] = [Gate::Uplink, Gate::Local, Gate::Machine];

/// A frame that waits.
pub struct Parked {
    /// The port that has sent it.
    pub from: PortId,
    /// Where it goes when it may.
    pub deliveries: Vec<Delivery>,
    /// Of which connection it is.
    pub flow: u32,
    /// What is left to be done to it.
    pub offload: Offload,
    /// How many frames it is on the wire, and their bytes.
    pub segments: u32,
    /// See `segments`.
    pub wire: u32,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// Where a frame is to be parked.
#[must_use]
pub struct Room {
    gate: Gate,
    leaf: Leaf,
    place: usize,
}

/// The gates of a network.
pub struct Traffic {
    gates: [Arbiter; 3],
    tree: Tree,
    pairs: Pairs,
    /// By port: its id, and its leaf at each gate.
    ports: Vec<Option<(String, [Leaf; 3])>>,
    parked: Vec<Option<Parked>>,
    free: Vec<usize>,
    spare: Vec<Vec<u8>>,
    /// Which gate is asked first next time: with a limit over two, neither is to have all of it.
    turn: usize,
}

impl Default for Traffic {
    /// A network without ports; nothing is known of its uplink.
    fn default() -> Traffic {
        Traffic {
            gates: std::array::from_fn(|_| Arbiter::link(0, None)),
            tree: Tree::default(),
            pairs: Pairs::default(),
            ports: Vec::new(),
            parked: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            turn: 0,
        }
    }
}

impl Traffic {
    /// The uplink has so many bytes a second; `None` if that is not known.
    pub fn set_rate(&mut self, now: Nanos, rate: Option<u64>) {
        self.gates[Gate::Uplink as usize].set_rate(now, rate);
    }

    /// Share by `nodes` from now on.
    pub fn set_shares(&mut self, now: Nanos, nodes: &[ShareNode]) {
        self.tree.set(now, &mut self.gates, nodes);
        self.pairs.set_shares(now, &mut self.gates[Gate::Machine as usize], self.tree.shares());
    }

    /// The NIC `id` is at `port`.
    ///
    /// # Errors
    /// If something is a NIC that other nodes are below.
    pub fn join(&mut self, now: Nanos, port: PortId, id: &str) -> Result<(), TreeError> {
        self.tree.join(now, &mut self.gates, id)?;
        let mut leaves = Vec::with_capacity(GATES.len());
        for gate in &self.gates {
            leaves.push(gate.node(id).ok_or_else(|| TreeError::Unknown(id.to_owned()))?);
        }
        let place = port as usize;
        if self.ports.len() <= place {
            self.ports.resize_with(place + 1, || None);
        }
        self.ports[place] = Some((id.to_owned(), [leaves[0], leaves[1], leaves[2]]));
        Ok(())
    }

    /// The port goes, and what it has sent, or should have got, and that waits.
    pub fn leave(&mut self, now: Nanos, port: PortId) {
        let [gates @ .., machines] = &mut self.gates;
        let mut tickets = self.pairs.leave(now, machines, self.tree.shares(), port);
        if let Some((id, leaves)) = self.ports.get_mut(port as usize).and_then(Option::take) {
            for (gate, leaf) in gates.iter_mut().zip(leaves) {
                tickets.extend(gate.withdraw_all(now, leaf));
            }
            self.tree.leave(now, &mut self.gates, &id);
        }
        for ticket in tickets {
            self.take(ticket);
        }
    }

    /// Whether a frame of so many bytes on the wire that `from` has sent must wait at `gate`, where it counts for `port`: then it
    /// is to be parked at once. Otherwise it may go on.
    pub fn stops(
        &mut self,
        now: Nanos,
        (gate, port): (Gate, PortId),
        (from, flow, wire): (PortId, u32, u32),
    ) -> Option<Room> {
        let mut leaf = self.leaf(gate, port)?;
        if self.gates[gate as usize].is_free(leaf) {
            return None;
        }
        if gate == Gate::Machine {
            leaf = self.leaf_of_pair(now, (port, from))?;
        }
        let arbiter = &mut self.gates[gate as usize];
        let place = self.free.last().copied().unwrap_or(self.parked.len());
        let frame = Frame { ticket: place as u64, bytes: wire, flow };
        if arbiter.offer_frame(now, leaf, frame) {
            self.spend_elsewhere(now, gate, port, wire);
            return None;
        }
        Some(Room { gate, leaf, place })
    }

    /// Keep the frame until it is [`next`](Self::next). Returns those that are not kept any more: there were too many.
    pub fn park(&mut self, now: Nanos, room: &Room, parked: Parked) -> Vec<Parked> {
        self.free.pop();
        match self.parked.get_mut(room.place) {
            Some(place) => *place = Some(parked),
            None => self.parked.push(Some(parked)),
        }
        self.shed(now, room.gate, room.leaf)
    }

    /// For the copy of a frame.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// The next frame whose turn has come, and at which gate it waited.
    pub fn next(&mut self, now: Nanos) -> Option<(Gate, Parked)> {
        for _ in GATES {
            self.turn = (self.turn + 1) % GATES.len();
            let gate = GATES[self.turn];
            if self.gates[self.turn].has_waiting()
                && let Some(ticket) = self.gates[self.turn].next(now)
                && let Some(parked) = self.take(ticket)
            {
                self.spend_elsewhere(now, gate, parked.from, parked.wire);
                return Some((gate, parked));
            }
        }
        None
    }

    /// Whether frames wait.
    pub fn has_waiting(&self) -> bool {
        self.gates.iter().any(Arbiter::has_waiting)
    }

    /// When there may be a next one, if any waits.
    pub fn wake_at(&self, now: Nanos) -> Option<Nanos> {
        let waiting = self.gates.iter().filter(|gate| gate.has_waiting());
        waiting.filter_map(|gate| gate.wake_at(now)).min()
    }

    /// The frame has gone; what it was kept in is for another.
    pub fn reuse(&mut self, parked: Parked) {
        if self.spare.len() < SPARE {
            self.spare.push(parked.bytes);
        }
    }

    /// Who waited for whom since the last call.
    pub fn take_waits(&mut self, now: Nanos) -> Vec<Wait> {
        self.gates.iter_mut().flat_map(|gate| gate.take_waits(now)).collect()
    }

    /// The state of the arbiter of the uplink, with what waits at all gates.
    pub fn stats(&self, now: Nanos) -> Stats {
        let [mut stats, others @ ..] = self.gates.each_ref().map(|gate| gate.stats(now));
        for other in others {
            stats.waiting += other.waiting;
            let by_id: HashMap<&str, &NodeStats> =
                other.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
            for node in &mut stats.nodes {
                let Some(more) = by_id.get(node.id.as_str()) else { continue };
                node.waiting += more.waiting;
                node.dispatched += more.dispatched;
                node.bytes += more.bytes;
                node.p99_us = node.p99_us.max(more.p99_us);
            }
        }
        stats
    }

    fn leaf_of_pair(&mut self, now: Nanos, (to, from): (PortId, PortId)) -> Option<Leaf> {
        let id = |port: PortId| self.ports.get(port as usize)?.as_ref().map(|(id, _)| id.as_str());
        let gate = &mut self.gates[Gate::Machine as usize];
        self.pairs.leaf(now, (gate, self.tree.shares()), (to, from), (id(to)?, id(from)))
    }

    fn leaf(&self, gate: Gate, port: PortId) -> Option<Leaf> {
        let (_, leaves) = self.ports.get(port as usize)?.as_ref()?;
        Some(leaves[gate as usize])
    }

    /// What a machine sends through one gate counts in its limits at the other.
    fn spend_elsewhere(&mut self, now: Nanos, gate: Gate, port: PortId, wire: u32) {
        let other = match gate {
            Gate::Uplink => Gate::Local,
            Gate::Local => Gate::Uplink,
            Gate::Machine => return,
        };
        if let Some(leaf) = self.leaf(other, port)
            && self.gates[other as usize].has_limit(leaf)
        {
            self.gates[other as usize].spend(now, leaf, wire);
        }
    }

    /// What is too much at a gate.
    fn shed(&mut self, now: Nanos, gate: Gate, leaf: Leaf) -> Vec<Parked> {
        let arbiter = &mut self.gates[gate as usize];
        let passes = arbiter.bound_of(leaf).unwrap_or(u64::MAX) as f64 * BACKLOG as f64 / 1e9;
        let most = (passes as u64).clamp(LEAST_BACKLOG, MOST_BACKLOG);
        let mut lost = Vec::new();
        while let Some(ticket) = self.gates[gate as usize].shed(now, leaf, most) {
            lost.extend(self.take(ticket));
        }
        lost
    }

    fn take(&mut self, ticket: u64) -> Option<Parked> {
        let parked = self.parked.get_mut(ticket as usize)?.take()?;
        self.free.push(ticket as usize);
        Some(parked)
    }
}

#[cfg(test)]
mod tests;
