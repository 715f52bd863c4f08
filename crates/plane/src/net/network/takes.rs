//! What receivers of frames take on themselves, and what is left to be done for them.

use crate::net::header::{Checksum, Gso, Offload, Segmentation};

/// What a receiver takes on itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Takes {
    /// Checksums.
    pub checksum: bool,
    /// Frames to be cut, of TCP over IPv4 and IPv6, and those that signal congestion.
    pub tcp4: bool,
    /// See `tcp4`.
    pub tcp6: bool,
    /// See `tcp4`.
    pub ecn: bool,
    /// Frames to be cut, of UDP.
    pub udp: bool,
}

/// What is to be done to a frame before a receiver gets it.
pub(super) enum Todo {
    Nothing,
    Checksum(Checksum),
    Cut(Checksum, Segmentation),
}

impl Offload {
    /// What is left to be done for one who takes so much.
    pub(super) fn for_one_who(&self, takes: &Takes) -> Todo {
        let Some(checksum) = self.checksum else { return Todo::Nothing };
        let Some(cut) = self.segmentation else {
            return if takes.checksum { Todo::Nothing } else { Todo::Checksum(checksum) };
        };
        let kind = match cut.kind {
            Gso::Tcp4 => takes.tcp4,
            Gso::Tcp6 => takes.tcp6,
            Gso::Udp => takes.udp,
        };
        if takes.checksum && kind && (takes.ecn || !cut.ecn) {
            Todo::Nothing
        } else {
            Todo::Cut(checksum, cut)
        }
    }
}
