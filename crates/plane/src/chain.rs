//! Descriptor chains: walked once, checked, and turned into buffers of this process.

use std::fmt;

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryMmap, Permissions};

/// Most buffers of one chain: the kernel takes no more in one readv (UIO_MAXIOV), and no driver that we know
/// comes near: a chain is at most as long as its queue, 1024, less the header.
pub const MAX_BUFFERS: usize = 1024;

/// A rule of virtio 1.3, 2.7 that a chain breaks. The device stops serving the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainError {
    /// Ends early: a loop, an index outside the table, an indirect table inside another or of a bad size, more
    /// than 4 GiB in all, or a table outside guest memory.
    Broken,
    /// A buffer that is not in guest memory.
    OutOfRange,
    /// A buffer of no bytes.
    Empty,
    /// A buffer for the driver's data after one for the device's (2.7.4.2).
    Order,
    /// More descriptors than the queue holds (2.7.5.3.1), or too many pieces.
    TooLong,
}

impl ChainError {
    /// A word for counting.
    pub fn kind(self) -> &'static str {
        match self {
            ChainError::Broken => "chain-broken",
            ChainError::OutOfRange => "chain-out-of-range",
            ChainError::Empty => "chain-empty-buffer",
            ChainError::Order => "chain-order",
            ChainError::TooLong => "chain-too-long",
        }
    }
}

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ChainError::Broken => "a descriptor chain loops, leaves its table or is longer than 4 GiB",
            ChainError::OutOfRange => "a descriptor points outside guest memory",
            ChainError::Empty => "a descriptor has no length",
            ChainError::Order => "a readable descriptor follows a writable one",
            ChainError::TooLong => "a descriptor chain is longer than its queue",
        })
    }
}

/// The buffers of one chain: first those that the device reads, then those it writes. Reused from chain to
/// chain, so that a request costs no allocation.
#[derive(Default)]
pub struct Buffers {
    /// What the driver wrote.
    pub readable: Vec<libc::iovec>,
    /// Where the device answers.
    pub writable: Vec<libc::iovec>,
}

impl Buffers {
    /// Replace the content by the buffers of `chain`, which are in `memory`. `limit` is the size of its queue.
    ///
    /// # Errors
    /// The rule that the chain breaks.
    pub fn fill(
        &mut self,
        memory: &GuestMemoryMmap<()>,
        chain: DescriptorChain<&GuestMemoryMmap<()>>,
        limit: u16,
    ) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        let mut complete = false;
        for (count, descriptor) in chain.enumerate() {
            if count >= limit.into() {
                return Err(ChainError::TooLong);
            }
            if descriptor.len() == 0 {
                return Err(ChainError::Empty);
            }
            complete = !descriptor.has_next();
            let (target, access) = if descriptor.is_write_only() {
                (&mut self.writable, Permissions::Write)
            } else if self.writable.is_empty() {
                (&mut self.readable, Permissions::Read)
            } else {
                return Err(ChainError::Order);
            };
            // A buffer may span regions of guest memory; each piece is contiguous here.
            let slices = memory.get_slices(descriptor.addr(), descriptor.len() as usize, access);
            for slice in slices.map_err(|_| ChainError::OutOfRange)? {
                let slice = slice.map_err(|_| ChainError::OutOfRange)?;
                if target.len() >= MAX_BUFFERS {
                    return Err(ChainError::TooLong);
                }
                let base = slice.ptr_guard_mut().as_ptr();
                target.push(libc::iovec { iov_base: base.cast(), iov_len: slice.len() });
            }
        }
        if complete { Ok(()) } else { Err(ChainError::Broken) }
    }
}

/// Bytes in `buffers`; cannot wrap, because a chain holds less than 4 GiB.
pub fn total(buffers: &[libc::iovec]) -> u64 {
    buffers.iter().map(|buffer| buffer.iov_len as u64).sum()
}

/// Copy the first `N` bytes out of `buffers` and remove them there; `None` if there are fewer.
pub fn take_front<const N: usize>(buffers: &mut Vec<libc::iovec>) -> Option<[u8; N]> {
    let mut bytes = [0u8; N];
    let mut filled = 0;
    let mut used = 0;
    for buffer in buffers.iter_mut() {
        let part = buffer.iov_len.min(N - filled);
        // SAFETY: a buffer is mapped memory (SIGBUS is handled) that nobody in this process holds a reference to.
        unsafe {
            std::ptr::copy_nonoverlapping(buffer.iov_base.cast::<u8>(), bytes.as_mut_ptr().add(filled), part);
            buffer.iov_base = buffer.iov_base.byte_add(part);
        }
        buffer.iov_len -= part;
        filled += part;
        used += usize::from(buffer.iov_len == 0);
        if filled == N {
            break;
        }
    }
    buffers.drain(..used);
    (filled == N).then_some(bytes)
}

/// Remove the last byte of `buffers` and return where it is.
pub fn take_last_byte(buffers: &mut Vec<libc::iovec>) -> Option<*mut u8> {
    let last = buffers.last_mut()?;
    last.iov_len -= 1;
    // SAFETY: the address stays inside the buffer, which had at least one byte (`Buffers::fill`).
    let byte = unsafe { last.iov_base.byte_add(last.iov_len).cast() };
    if last.iov_len == 0 {
        buffers.pop();
    }
    Some(byte)
}

/// Copy `bytes` to the front of `buffers`; returns how many fitted.
pub fn write_front(buffers: &[libc::iovec], bytes: &[u8]) -> usize {
    let mut done = 0;
    for buffer in buffers {
        let part = buffer.iov_len.min(bytes.len() - done);
        // SAFETY: as in `take_front`, for writing.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr().add(done), buffer.iov_base.cast::<u8>(), part)
        };
        done += part;
    }
    done
}

/// Copy the front of `buffers` to `bytes`, as much as there is.
pub fn read_front(buffers: &[libc::iovec], bytes: &mut [u8]) {
    let mut done = 0;
    for buffer in buffers {
        let part = buffer.iov_len.min(bytes.len() - done);
        // SAFETY: as in `take_front`.
        unsafe { std::ptr::copy_nonoverlapping(buffer.iov_base.cast(), bytes.as_mut_ptr().add(done), part) };
        done += part;
    }
}

/// Remove `count` bytes from the front of `buffers`; fewer if there are fewer.
pub fn skip_front(buffers: &mut Vec<libc::iovec>, mut count: usize) {
    let mut used = 0;
    for buffer in buffers.iter_mut() {
        let part = buffer.iov_len.min(count);
        // SAFETY: the address stays inside the buffer or one past its end.
        buffer.iov_base = unsafe { buffer.iov_base.byte_add(part) };
        buffer.iov_len -= part;
        count -= part;
        used += usize::from(buffer.iov_len == 0);
        if count == 0 {
            break;
        }
    }
    buffers.drain(..used);
}
