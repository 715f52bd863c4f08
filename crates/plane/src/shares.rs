//! Who gets how much, as the holder is told: nodes of a tree, by id. The same for all workers, which each keep what
//! their own arbiter needs of it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::arbiter::{Arbiter, Knobs, TreeError};
use crate::clock::Nanos;

/// Longest way from a disk to the top: the chain of an id's prefixes and of parents that were said.
pub const MAX_DEPTH: usize = 8;

/// Weight of host work.
const HOST_WEIGHT: u32 = 10;

/// What is shared out. Each has a tree of its own, and a worker serves one of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resource {
    /// The disks of the host.
    #[default]
    Disk,
    /// Its networks.
    Network,
}

/// A node: a tenant (`@acme`), a machine (`m1`), a disk (`m1/disk0`), or host work (`%copy`).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ShareNode {
    /// Its id.
    pub id: String,
    /// The node above; if not said, the longest prefix of the id before a `/`, or none.
    #[serde(default)]
    pub parent: Option<String>,
    /// Forget the node instead.
    #[serde(default)]
    pub remove: bool,
    /// What it gets.
    #[serde(flatten)]
    pub knobs: Knobs,
}

/// What was said of nodes so far.
#[derive(Clone, Debug, Default)]
pub struct Shares(BTreeMap<String, ShareNode>);

impl Shares {
    /// Take what `nodes` say.
    ///
    /// # Errors
    /// A sentence, if a node would be above itself or too far down; then nothing has changed.
    pub fn set(&mut self, nodes: &[ShareNode]) -> Result<(), String> {
        let mut after = self.0.clone();
        for node in nodes {
            if node.remove {
                after.remove(&node.id);
            } else {
                after.insert(node.id.clone(), node.clone());
            }
        }
        let after = Shares(after);
        for node in nodes.iter().filter(|node| !node.remove) {
            after.check(&node.id)?;
        }
        *self = after;
        Ok(())
    }

    /// All nodes that were named.
    pub fn nodes(&self) -> impl Iterator<Item = &ShareNode> {
        self.0.values()
    }

    /// Whether anything was said of `id`.
    pub fn contains(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    /// The node above `id`.
    pub fn parent<'a>(&'a self, id: &'a str) -> Option<&'a str> {
        let said = self.0.get(id).and_then(|node| node.parent.as_deref());
        said.or_else(|| id.rsplit_once('/').map(|(prefix, _)| prefix))
    }

    /// What `id` gets; if nothing was said, what nodes get by default, and host work a small part of that.
    pub fn knobs(&self, id: &str) -> Knobs {
        let weight = if id.starts_with('%') && !id.contains('/') { HOST_WEIGHT } else { 100 };
        self.0.get(id).map_or(Knobs { weight, ..Knobs::default() }, |node| node.knobs)
    }

    /// From the top down to `id`.
    pub fn path<'a>(&'a self, id: &'a str) -> Vec<&'a str> {
        let mut path = vec![id];
        let mut here = id;
        while let Some(above) = self.parent(here)
            && path.len() <= MAX_DEPTH
        {
            path.push(above);
            here = above;
        }
        path.reverse();
        path
    }

    fn check(&self, id: &str) -> Result<(), String> {
        let depth = self.path(id).len();
        if depth <= MAX_DEPTH {
            return Ok(());
        }
        Err(format!("{id} would be below more than {MAX_DEPTH} nodes, or below itself"))
    }
}

/// The part of the tree that some leaves need, in arbiters that all have the same.
#[derive(Default)]
pub struct Tree {
    shares: Shares,
    /// Ids of disks, or of NICs.
    leaves: BTreeSet<String>,
    /// Nodes of the arbiters.
    nodes: BTreeSet<String>,
}

/// One arbiter, or several.
pub trait Arbiters {
    /// Each of them.
    fn each(&mut self) -> &mut [Arbiter];
}

impl Arbiters for Arbiter {
    fn each(&mut self) -> &mut [Arbiter] {
        std::slice::from_mut(self)
    }
}

impl<const COUNT: usize> Arbiters for [Arbiter; COUNT] {
    fn each(&mut self) -> &mut [Arbiter] {
        self
    }
}

impl Tree {
    /// The leaf `id` comes.
    ///
    /// # Errors
    /// If something is a leaf that other nodes are below.
    pub fn join(&mut self, now: Nanos, arbiters: &mut impl Arbiters, id: &str) -> Result<(), TreeError> {
        self.hang(now, arbiters, id)?;
        self.leaves.insert(id.to_owned());
        Ok(())
    }

    /// What was said of nodes.
    pub fn shares(&self) -> &Shares {
        &self.shares
    }

    /// The leaf `id` has gone; so do the nodes that only it needed.
    pub fn leave(&mut self, now: Nanos, arbiters: &mut impl Arbiters, id: &str) {
        self.leaves.remove(id);
        self.prune(now, arbiters);
    }

    /// Share by `nodes` from now on. A leaf whose place in the tree cannot be what they say keeps the one it has.
    pub fn set(&mut self, now: Nanos, arbiters: &mut impl Arbiters, nodes: &[ShareNode]) {
        let changed: BTreeSet<&str> = nodes.iter().map(|node| node.id.as_str()).collect();
        if let Err(error) = self.shares.set(nodes) {
            // The holder has checked them.
            return eprintln!("plane worker: shares: {error}");
        }
        for id in self.leaves.clone() {
            if self.shares.path(&id).iter().any(|node| changed.contains(node))
                && let Err(error) = self.hang(now, arbiters, &id)
            {
                eprintln!("plane worker: shares: {error}");
            }
        }
        self.prune(now, arbiters);
    }

    /// Make `id` and all above it nodes of the arbiters, with their knobs.
    fn hang(&mut self, now: Nanos, arbiters: &mut impl Arbiters, id: &str) -> Result<(), TreeError> {
        let mut above = None;
        for node in self.shares.path(id) {
            for arbiter in arbiters.each() {
                arbiter.set_node(now, node, above, self.shares.knobs(node))?;
            }
            self.nodes.insert(node.to_owned());
            above = Some(node);
        }
        Ok(())
    }

    /// Remove the nodes that no leaf needs.
    fn prune(&mut self, now: Nanos, arbiters: &mut impl Arbiters) {
        let needed: BTreeSet<String> =
            self.leaves.iter().flat_map(|leaf| self.shares.path(leaf)).map(str::to_owned).collect();
        for node in self.nodes.difference(&needed) {
            for arbiter in arbiters.each() {
                arbiter.remove_node(now, node);
            }
        }
        self.nodes = needed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, parent: Option<&str>) -> ShareNode {
        let parent = parent.map(str::to_owned);
        ShareNode { id: id.to_owned(), parent, remove: false, knobs: Knobs::default() }
    }

    #[test]
    fn a_nodes_parent_is_what_is_said_or_its_longest_prefix() {
        let mut shares = Shares::default();
        assert_eq!(shares.path("m1/disk0"), ["m1", "m1/disk0"]);
        shares.set(&[node("m1", Some("@acme"))]).unwrap();
        assert_eq!(shares.path("m1/disk0"), ["@acme", "m1", "m1/disk0"]);
        assert_eq!(shares.path("%copy"), ["%copy"]);
        shares.set(&[ShareNode { remove: true, ..node("m1", None) }]).unwrap();
        assert_eq!(shares.path("m1/disk0"), ["m1", "m1/disk0"]);
    }

    #[test]
    fn a_loop_is_refused_and_changes_nothing() {
        let mut shares = Shares::default();
        shares.set(&[node("m1", Some("@acme"))]).unwrap();
        let error = shares.set(&[node("m2", None), node("@acme", Some("m1"))]).unwrap_err();
        assert!(error.contains("below itself"), "{error}");
        assert!(!shares.contains("m2") && shares.parent("@acme").is_none());
    }

    #[test]
    fn the_contract_parses() {
        let json = r#"{"id": "m1", "parent": null, "weight": 300, "limit_iops": 5, "latency_p99_us": null}"#;
        let node: ShareNode = serde_json::from_str(json).unwrap();
        let expected = Knobs { weight: 300, limit_iops: Some(5), ..Knobs::default() };
        assert_eq!((node.knobs, node.remove), (expected, false));
        let node: ShareNode = serde_json::from_str(r#"{"id": "m1", "remove": true}"#).unwrap();
        assert!(node.remove);
    }
}
