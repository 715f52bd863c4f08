//! virtio-blk, and the disks behind it.
//!
//! The guest-facing device ([`device`]) parses requests ([`request`]); a [`Disk`] carries them out on the
//! worker's one [`Uring`].

use std::io;
use std::rc::Rc;

use crate::uring::Uring;

pub mod copy;
pub mod device;
pub mod faults;
pub mod flushes;
pub mod model;
pub mod qcow2;
pub mod raw;
pub mod request;
pub mod storage;
pub mod writelog;

/// Guests address disks in units of 512 bytes, whatever the block size (virtio 1.3, 5.2.6.4).
pub const SECTOR: u64 = 512;

/// Result of a flush that could not write all for want of space, and has lost nothing: it may be tried again. That
/// cannot be said of an fsync that failed, whatever its errno. No errno of the kernel.
pub const UNFLUSHED: i32 = -4000;

/// What a request does to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
    /// Make everything that was completed before durable.
    Flush,
    /// The content of the range is no longer needed.
    Discard,
    /// The range reads as zeroes afterwards; `unmap` allows to release its space.
    WriteZeroes {
        /// Whether the range may be deallocated.
        unmap: bool,
    },
}

/// One validated request: the range is inside the disk and, for reads and writes, as long as the buffers together.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What to do.
    pub operation: Operation,
    /// Byte offset in the disk.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Buffers of a read or a write.
    pub iovecs: *const libc::iovec,
    /// How many of them; at most `IOV_MAX`.
    pub iovec_count: usize,
    /// Comes back with every completion.
    pub token: u64,
}

/// What a device serves its requests from. Only the worker's thread uses it.
pub trait Disk {
    /// Bytes; a multiple of [`SECTOR`].
    fn size(&self) -> u64;

    /// Start `request` and return how many completions with `request.token` the ring will deliver for it: at
    /// least one. Each carries the number of bytes moved (reads and writes; their sum is `request.length`,
    /// or the transfer was short) or a negated errno. Work without a raw SQE of its own ends by
    /// [`Uring::post`]. Nothing is submitted to the kernel here: the reactor does that once a turn.
    ///
    /// # Safety
    /// `request.iovecs` and the memory they describe stay valid until the last completion was delivered.
    unsafe fn submit(&self, uring: &Rc<Uring>, request: &Request) -> usize;

    /// Find out how much of the range, from `offset` on, is left to the layers below the top one. One completion with
    /// `token`: the bytes, at most `length`, or a negated errno; 0 if the top layer itself has what is at `offset`.
    fn left_to_others(&self, uring: &Rc<Uring>, offset: u64, length: u32, token: u64) {
        let _ = (offset, length);
        uring.post(token, 0);
    }

    /// Number of requests that may be started without waiting for others; more are kept in the virtqueue.
    fn depth(&self) -> usize {
        // As many as the largest virtqueue that we offer.
        1024
    }

    /// Write back what is only in this process (nothing for raw); runs when the device is closed.
    ///
    /// # Errors
    /// What the file system says.
    fn close(&self) -> io::Result<()> {
        Ok(())
    }
}
