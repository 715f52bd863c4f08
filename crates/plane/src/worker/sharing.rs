//! The arbiter of a worker's disks, and the part of the tree that they need.

use crate::arbiter::{Arbiter, Leaf, TreeError};
use crate::clock::Nanos;
use crate::shares::{ShareNode, Tree};

/// The disks of a worker and how they share its device.
pub struct Sharing {
    /// Whose turn it is.
    pub arbiter: Arbiter,
    tree: Tree,
}

impl Sharing {
    /// Without disks.
    pub fn new(now: Nanos) -> Sharing {
        Sharing { arbiter: Arbiter::new(now), tree: Tree::default() }
    }

    /// A disk comes; its requests are offered at the leaf.
    ///
    /// # Errors
    /// If something is a disk that other nodes are below.
    pub fn join(&mut self, now: Nanos, id: &str) -> Result<Leaf, TreeError> {
        self.tree.join(now, &mut self.arbiter, id)?;
        self.arbiter.node(id).ok_or_else(|| TreeError::Unknown(id.to_owned()))
    }

    /// A disk has gone; so do the nodes that only it needed.
    pub fn leave(&mut self, now: Nanos, id: &str) {
        self.tree.leave(now, &mut self.arbiter, id);
    }

    /// Share by `nodes` from now on. A disk whose place in the tree cannot be what they say keeps the one it has.
    pub fn set(&mut self, now: Nanos, nodes: &[ShareNode]) {
        self.tree.set(now, &mut self.arbiter, nodes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::Knobs;

    fn node(id: &str, parent: Option<&str>, weight: u32) -> ShareNode {
        let knobs = Knobs { weight, ..Knobs::default() };
        ShareNode { id: id.to_owned(), parent: parent.map(str::to_owned), remove: false, knobs }
    }

    /// Id, parent and weight of each node.
    fn tree(sharing: &Sharing) -> Vec<(String, Option<String>, u32)> {
        let nodes = sharing.arbiter.stats(0).nodes;
        let mut tree: Vec<_> =
            nodes.into_iter().map(|node| (node.id, node.parent, node.knobs.weight)).collect();
        tree.sort();
        tree
    }

    fn row(id: &str, parent: Option<&str>, weight: u32) -> (String, Option<String>, u32) {
        (id.to_owned(), parent.map(str::to_owned), weight)
    }

    #[test]
    fn the_tree_holds_what_the_disks_need_and_no_more() {
        let mut sharing = Sharing::new(0);
        sharing.set(0, &[node("m1", Some("@acme"), 300), node("m9", None, 7)]);
        assert!(tree(&sharing).is_empty());
        sharing.join(0, "m1/disk0").unwrap();
        let m1 = [row("@acme", None, 100), row("m1", Some("@acme"), 300), row("m1/disk0", Some("m1"), 100)];
        assert_eq!(tree(&sharing), m1);
        sharing.set(0, &[node("@acme", None, 50), node("m1/disk0", None, 20)]);
        let m1 = [row("@acme", None, 50), row("m1", Some("@acme"), 300), row("m1/disk0", Some("m1"), 20)];
        assert_eq!(tree(&sharing), m1);
        sharing.set(0, &[node("m1", None, 10)]);
        assert_eq!(tree(&sharing), [row("m1", None, 10), row("m1/disk0", Some("m1"), 20)]);
        sharing.leave(0, "m1/disk0");
        assert!(tree(&sharing).is_empty());
        sharing.join(0, "m9/disk0").unwrap();
        assert_eq!(tree(&sharing), [row("m9", None, 7), row("m9/disk0", Some("m9"), 100)]);
    }

    #[test]
    fn a_leaf_keeps_its_place_while_the_tree_changes() {
        let mut sharing = Sharing::new(0);
        let leaf = sharing.join(0, "m1/disk0").unwrap();
        sharing.set(0, &[node("m1", Some("@acme"), 300)]);
        assert_eq!(sharing.arbiter.node("m1/disk0"), Some(leaf));
        sharing.set(0, &[ShareNode { remove: true, ..node("m1", None, 1) }]);
        assert_eq!(sharing.arbiter.node("m1/disk0"), Some(leaf));
        assert_eq!(tree(&sharing), [row("m1", None, 100), row("m1/disk0", Some("m1"), 100)]);
    }
}
