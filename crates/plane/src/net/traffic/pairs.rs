//! Who sends to a machine that has a limit. At the gate of machines they are below its NIC, each with those above it in the tree of
//! shares: what the limit lets pass they share by their weights. Their reservations and limits are elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use crate::arbiter::{Arbiter, Knobs, Leaf};
use crate::clock::Nanos;
use crate::net::switch::PortId;
use crate::shares::Shares;

/// With more, those between which nothing waits are forgotten: a pair that waits has 16 KiB of queues.
const MOST: usize = 1024;

/// What comes from outside, which no node stands for.
const WORLD: &str = "world";

/// A receiver and a sender.
struct Pair {
    leaf: Leaf,
    /// Ids of both NICs.
    to: String,
    from: Option<String>,
}

/// Those that have had to wait.
#[derive(Default)]
pub(super) struct Pairs {
    /// By the ports of receiver and sender.
    pairs: BTreeMap<(PortId, PortId), Pair>,
    nodes: BTreeSet<String>,
}

impl Pairs {
    /// Where frames from `from` to `to` wait, which have these ids; none if they cannot.
    pub fn leaf(
        &mut self,
        now: Nanos,
        (gate, shares): (&mut Arbiter, &Shares),
        ports: (PortId, PortId),
        (to, from): (&str, Option<&str>),
    ) -> Option<Leaf> {
        if let Some(pair) = self.pairs.get(&ports) {
            return Some(pair.leaf);
        }
        if self.pairs.len() >= MOST {
            self.pairs.retain(|_, pair| gate.waiting_of(pair.leaf) > 0);
            self.prune(now, gate, shares);
        }
        let leaf = self.hang(now, (gate, shares), to, from)?;
        self.pairs.insert(ports, Pair { leaf, to: to.to_owned(), from: from.map(str::to_owned) });
        Some(leaf)
    }

    /// The shares have changed.
    pub fn set_shares(&mut self, now: Nanos, gate: &mut Arbiter, shares: &Shares) {
        for pair in std::mem::take(&mut self.pairs) {
            if self.hang(now, (gate, shares), &pair.1.to, pair.1.from.as_deref()).is_some() {
                self.pairs.insert(pair.0, pair.1);
            }
        }
        self.prune(now, gate, shares);
    }

    /// A port goes: the tickets of what it has sent, or should have got, and that waits.
    pub fn leave(&mut self, now: Nanos, gate: &mut Arbiter, shares: &Shares, port: PortId) -> Vec<u64> {
        let mut tickets = Vec::new();
        self.pairs.retain(|(to, from), pair| {
            let stays = *to != port && *from != port;
            if !stays {
                tickets.extend(gate.withdraw_all(now, pair.leaf));
            }
            stays
        });
        self.prune(now, gate, shares);
        tickets
    }

    fn hang(
        &mut self,
        now: Nanos,
        (gate, shares): (&mut Arbiter, &Shares),
        to: &str,
        from: Option<&str>,
    ) -> Option<Leaf> {
        let mut above = to.to_owned();
        let mut leaf = None;
        for (name, weight) in path(shares, to, from) {
            let knobs = Knobs { weight, ..Knobs::default() };
            leaf = Some(gate.set_node(now, &name, Some(&above), knobs).ok()?);
            self.nodes.insert(name.clone());
            above = name;
        }
        leaf
    }

    /// Remove the nodes that no pair needs.
    fn prune(&mut self, now: Nanos, gate: &mut Arbiter, shares: &Shares) {
        let paths = self.pairs.values().flat_map(|pair| path(shares, &pair.to, pair.from.as_deref()));
        let needed: BTreeSet<String> = paths.map(|(name, _)| name).collect();
        for name in self.nodes.difference(&needed) {
            gate.remove_node(now, name);
        }
        self.nodes = needed;
    }
}

/// Names and weights of the nodes from below the NIC `to` down to the sender.
fn path(shares: &Shares, to: &str, from: Option<&str>) -> Vec<(String, u32)> {
    let Some(from) = from else { return vec![(format!("{to}<{WORLD}"), Knobs::default().weight)] };
    shares.path(from).into_iter().map(|node| (format!("{to}<{node}"), shares.knobs(node).weight)).collect()
}
