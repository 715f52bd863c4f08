//! What the allocator does about one cluster.

use std::io;

use imago::ShallowMapping;
use imago::io_buffers::IoBuffer;

use super::Shared;
use super::allocate::{Content, Piece};
use crate::block::storage::iovec;
use crate::chain::read_front;

/// A cluster and the writes to it.
pub(super) struct Plan {
    pub cluster: u64,
    /// Byte in the disk.
    pub start: u64,
    /// Less than a cluster at the end of the disk.
    pub length: u64,
    pub pieces: Vec<Piece>,
    pub action: Action,
    /// Whether the top layer itself said that it reads as zeroes.
    pub was_zero: bool,
    pub result: Result<(), i32>,
}

pub(super) enum Action {
    Nothing,
    /// It has a cluster by now, here.
    InPlace(u64),
    /// Map it as zeroes.
    Zero,
    /// Without a buffer, one piece of the guest's covers the cluster.
    Allocate {
        buffer: Option<IoBuffer>,
        place: Option<u64>,
    },
}

impl Plan {
    /// Decides. Loads the cluster's L2 table, so that nothing after this waits for one.
    pub async fn new(shared: &Shared, cluster: u64, pieces: Vec<Piece>) -> Plan {
        let start = cluster << shared.cluster_bits;
        let length = shared.cluster_end(start) - start;
        let mut plan =
            Plan { cluster, start, length, pieces, action: Action::Nothing, was_zero: false, result: Ok(()) };
        match shared.image.get_shallow_mapping(start, length).await {
            Ok((ShallowMapping::Raw { offset, writable: true, .. }, known)) if known == length => {
                plan.action = Action::InPlace(offset);
                return plan;
            }
            Ok((ShallowMapping::Zero { explicit, .. }, _)) => plan.was_zero = explicit,
            Ok((ShallowMapping::Indirect { .. }, _)) => {}
            // Shared, compressed or cut short: an overlay of ours has no such clusters.
            Ok(_) => {
                plan.result = Err(libc::EIO);
                return plan;
            }
            Err(error) => {
                plan.result = Err(errno(&error));
                return plan;
            }
        }
        plan.decide().unwrap_or_else(|error| plan.result = Err(errno(&error)));
        plan
    }

    /// For a cluster that has to be mapped first.
    fn decide(&mut self) -> io::Result<()> {
        let zeroes = |piece: &Piece| matches!(piece.content, Content::Zeroes);
        self.action = match &self.pieces[..] {
            // Where only nothing below makes it zero, it may lie on something tomorrow.
            pieces if self.was_zero && pieces.iter().all(zeroes) => Action::Nothing,
            [piece] if piece.length == self.length && zeroes(piece) => Action::Zero,
            [piece] if piece.length == self.length => Action::Allocate { buffer: None, place: None },
            _ => Action::Allocate { buffer: Some(self.content()?), place: None },
        };
        Ok(())
    }

    /// The new content: the old, and the pieces over it.
    fn content(&mut self) -> io::Result<IoBuffer> {
        let old = self.pieces.iter_mut().find_map(|piece| piece.old.take());
        let mut buffer = match old {
            Some(old) => old,
            // Some piece covers all of it.
            None => IoBuffer::new(self.length as usize, crate::block::storage::DIRECT_ALIGN)?,
        };
        let slice = buffer.as_mut().into_slice();
        if self.was_zero {
            // Since the old content was read.
            slice.fill(0);
        }
        for piece in &self.pieces {
            let target = &mut slice[piece.start as usize..(piece.start + piece.length) as usize];
            match &piece.content {
                Content::Guest(iovecs) => read_front(iovecs, target),
                Content::Zeroes | Content::Flush => target.fill(0),
            }
        }
        Ok(buffer)
    }

    /// Whether the mapping of the cluster changes.
    pub fn changes_metadata(&self) -> bool {
        matches!(self.action, Action::Zero | Action::Allocate { .. })
    }

    pub fn needs_cluster(&self) -> bool {
        matches!(self.action, Action::Allocate { place: None, .. }) && self.result.is_ok()
    }

    /// The cluster that was allocated.
    pub fn allocated(&self) -> Option<u64> {
        match self.action {
            Action::Allocate { place, .. } => place,
            _ => None,
        }
    }

    pub fn set_allocated(&mut self, offset: u64) {
        if let Action::Allocate { place, .. } = &mut self.action {
            *place = Some(offset);
        }
    }

    /// Whether the same request to the kernel can write this cluster and the one of `before`.
    pub fn follows(&self, before: &Plan) -> bool {
        match (before.allocated(), self.allocated()) {
            (Some(earlier), Some(place)) => self.result.is_ok() && place == earlier + before.length,
            _ => false,
        }
    }

    /// What is written to an allocated cluster.
    pub fn iovecs(&self) -> Vec<libc::iovec> {
        match (&self.action, &self.pieces[..]) {
            (Action::Allocate { buffer: Some(buffer), .. }, _) => {
                vec![iovec(buffer.as_ref().as_ptr().cast_mut(), buffer.len())]
            }
            (_, [Piece { content: Content::Guest(iovecs), .. }]) => iovecs.clone(),
            _ => unreachable!("a cluster without a buffer has one piece, the guest's"),
        }
    }
}

impl Plan {
    /// Answers the writers.
    pub fn finish(&self) {
        self.pieces.iter().for_each(|piece| piece.done.finish(self.result));
    }
}

pub(super) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
