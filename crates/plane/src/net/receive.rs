//! Frames into a guest's receive buffers (virtio 1.3, 5.1.6.3 and 5.1.6.4).

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use crate::chain::{self, Buffers};
use crate::net::frame::scatter;
use crate::net::header::{LEGACY_LENGTH, LENGTH};
use crate::worker::queue::{Violation, VirtQueue};

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The guest will find it.
    Done,
    /// The guest has offered too few buffers.
    NoBuffer,
    /// It does not fit into the buffers that the guest offers.
    TooLarge,
}

/// Reused from frame to frame.
#[derive(Default)]
pub struct Receiver {
    chain: Buffers,
    buffers: Vec<libc::iovec>,
    /// Of each chain: head and room.
    heads: Vec<(u16, usize)>,
}

/// Bytes of the virtio-net header for a driver that took `features` (5.1.6.1).
pub fn header_length(features: u64) -> usize {
    if features & (1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_NET_F_MRG_RXBUF) == 0 {
        LEGACY_LENGTH
    } else {
        LENGTH
    }
}

impl Receiver {
    /// Put a frame into `queue`, staged: `front` is its virtio-net header and its first bytes, `rest` what is behind.
    ///
    /// # Errors
    /// A rule that the receiving driver broke.
    pub fn put(
        &mut self,
        queue: &mut VirtQueue,
        mut front: &mut [u8],
        rest: &[libc::iovec],
    ) -> Result<Put, Violation> {
        if header_length(queue.features) == LEGACY_LENGTH {
            front.copy_within(..LEGACY_LENGTH, LENGTH - LEGACY_LENGTH);
            front = &mut front[LENGTH - LEGACY_LENGTH..];
        }
        let length = front.len() + chain::total(rest) as usize;
        let Some(head) = queue.take_in_order(&mut self.chain)? else { return Ok(Put::NoBuffer) };
        let room = chain::total(&self.chain.writable) as usize;
        if room >= length {
            scatter(front, rest, &self.chain.writable);
            queue.stage(head, length as u32);
            return Ok(Put::Done);
        }
        if queue.features & 1 << VIRTIO_NET_F_MRG_RXBUF == 0 {
            queue.untake(1);
            return Ok(Put::TooLarge);
        }
        self.put_merged(queue, (head, room), front, rest)
    }

    /// The same, into several chains, of which the first is taken already.
    fn put_merged(
        &mut self,
        queue: &mut VirtQueue,
        first: (u16, usize),
        front: &mut [u8],
        rest: &[libc::iovec],
    ) -> Result<Put, Violation> {
        let length = front.len() + chain::total(rest) as usize;
        self.heads.clear();
        self.heads.push(first);
        self.buffers.clear();
        self.buffers.append(&mut self.chain.writable);
        let mut room = first.1;
        while room < length {
            let Some(head) = queue.take_in_order(&mut self.chain)? else {
                queue.untake(self.heads.len() as u16);
                return Ok(Put::NoBuffer);
            };
            let more = chain::total(&self.chain.writable) as usize;
            self.heads.push((head, more));
            self.buffers.append(&mut self.chain.writable);
            room += more;
        }
        // num_buffers (5.1.6.1)
        front[LEGACY_LENGTH..LENGTH].copy_from_slice(&(self.heads.len() as u16).to_le_bytes());
        scatter(front, rest, &self.buffers);
        let mut left = length;
        for (head, room) in &self.heads {
            let part = left.min(*room);
            queue.stage(*head, part as u32);
            left -= part;
        }
        Ok(Put::Done)
    }
}
