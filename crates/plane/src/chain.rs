//! Descriptor chains: walked once, checked, and turned into buffers of this process.

use std::fmt;

use virtio_queue::DescriptorChain;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

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
            let target = if descriptor.is_write_only() {
                &mut self.writable
            } else if self.writable.is_empty() {
                &mut self.readable
            } else {
                return Err(ChainError::Order);
            };
            // A buffer may span regions of guest memory; each piece is contiguous here. By hand: vm-memory's
            // iterator was 15% of the samples of a worker with a null disk, for what is nearly always one piece.
            let (mut address, mut left) = (descriptor.addr(), descriptor.len() as usize);
            while left > 0 {
                let place = GuestMemoryBackend::to_region_addr(memory, address);
                let (region, start) = place.ok_or(ChainError::OutOfRange)?;
                let length = left.min((region.len() - start.raw_value()) as usize);
                let slice = region.get_slice(start, length).map_err(|_| ChainError::OutOfRange)?;
                if target.len() >= MAX_BUFFERS {
                    return Err(ChainError::TooLong);
                }
                let base = slice.ptr_guard_mut().as_ptr();
                target.push(libc::iovec { iov_base: base.cast(), iov_len: slice.len() });
                left -= length;
                address = GuestAddress(address.raw_value().wrapping_add(length as u64));
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use virtio_bindings::bindings::virtio_ring::{
        VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    };
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::{Queue, QueueOwnedT, QueueT};
    use vm_memory::Bytes;

    const SIZE: u16 = 16;
    const TABLE: u64 = 0x1000;
    const INDIRECT: u64 = 0x2000;
    const AVAIL: u64 = 0x3000;
    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    const TABLE_ELSEWHERE: u16 = VRING_DESC_F_INDIRECT as u16;

    /// Guest memory with a hole: 64 KiB at 0, and 64 KiB right behind it as a region of its own.
    fn memory() -> GuestMemoryMmap<()> {
        let ranges = [(GuestAddress(0), 0x10000), (GuestAddress(0x10000), 0x10000)];
        GuestMemoryMmap::from_ranges(&ranges).unwrap()
    }

    fn fill(table: &[Descriptor], indirect: &[Descriptor]) -> (Buffers, Result<(), ChainError>) {
        let memory = memory();
        for (base, descriptors) in [(TABLE, table), (INDIRECT, indirect)] {
            for (index, descriptor) in descriptors.iter().enumerate() {
                memory.write_obj(*descriptor, GuestAddress(base + 16 * index as u64)).unwrap();
            }
        }
        memory.write_obj(1u16.to_le(), GuestAddress(AVAIL + 2)).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(TABLE)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAIL)).unwrap();
        queue.set_ready(true);
        let chain = queue.iter(&memory).unwrap().next().unwrap();
        let mut buffers = Buffers::default();
        let result = buffers.fill(&memory, chain, SIZE);
        (buffers, result)
    }

    fn error(table: &[Descriptor], indirect: &[Descriptor]) -> ChainError {
        fill(table, indirect).1.unwrap_err()
    }

    #[test]
    fn an_honest_chain_becomes_its_buffers() {
        let table = [
            Descriptor::new(0x4000, 16, NEXT, 1),
            // Over the border of two regions: two pieces.
            Descriptor::new(0xff00, 0x200, NEXT | WRITE, 2),
            Descriptor::new(0x5000, 1, WRITE, 0),
        ];
        let (buffers, result) = fill(&table, &[]);
        result.unwrap();
        assert_eq!((total(&buffers.readable), total(&buffers.writable)), (16, 0x201));
        assert_eq!((buffers.readable.len(), buffers.writable.len()), (1, 3));
        let indirect = [Descriptor::new(0x4000, 16, NEXT, 1), Descriptor::new(0x5000, 1, WRITE, 0)];
        let (buffers, result) = fill(&[Descriptor::new(INDIRECT, 32, TABLE_ELSEWHERE, 0)], &indirect);
        result.unwrap();
        assert_eq!((buffers.readable.len(), buffers.writable.len()), (1, 1));
    }

    #[test]
    fn each_broken_rule_has_its_name() {
        let one = |address, length, flags, next| [Descriptor::new(address, length, flags, next)];
        assert_eq!(error(&one(0x4000, 16, NEXT, 0), &[]), ChainError::Broken, "a loop");
        assert_eq!(error(&one(0x4000, 16, NEXT, SIZE), &[]), ChainError::Broken, "next beyond the table");
        assert_eq!(error(&one(0x4000, 0, 0, 0), &[]), ChainError::Empty);
        assert_eq!(error(&one(0x1f000, 0x2000, 0, 0), &[]), ChainError::OutOfRange);
        assert_eq!(error(&one(u64::MAX - 8, 16, 0, 0), &[]), ChainError::OutOfRange, "wraps");
        let order = [Descriptor::new(0x4000, 1, NEXT | WRITE, 1), Descriptor::new(0x4000, 1, 0, 0)];
        assert_eq!(error(&order, &[]), ChainError::Order);
        let table = |length| one(INDIRECT, length, TABLE_ELSEWHERE, 0);
        assert_eq!(error(&table(32), &table(16)), ChainError::Broken, "indirect in indirect");
        assert_eq!(error(&table(24), &one(0x4000, 1, 0, 0)), ChainError::Broken, "half a descriptor");
        assert_eq!(error(&table(0), &one(0x4000, 1, 0, 0)), ChainError::Broken, "an empty table");
        let far = one(1 << 40, 16, TABLE_ELSEWHERE, 0);
        assert_eq!(error(&far, &[]), ChainError::Broken, "a table outside memory");
        let long: Vec<_> = (1..=17).map(|next| Descriptor::new(0x4000, 1, NEXT, next)).collect();
        assert_eq!(error(&one(INDIRECT, 17 * 16, TABLE_ELSEWHERE, 0), &long), ChainError::TooLong);
        let huge = [Descriptor::new(0, 0x1_0000, NEXT, 1), Descriptor::new(0, u32::MAX, 0, 0)];
        assert!(matches!(error(&huge, &[]), ChainError::Broken | ChainError::OutOfRange));
    }

    fn descriptor() -> impl Strategy<Value = Descriptor> {
        let address = prop_oneof![0..0x20000u64, any::<u64>(), Just(INDIRECT)];
        let length = prop_oneof![0..64u32, any::<u32>()];
        (address, length, 0..8u16, 0..20u16)
            .prop_map(|(address, length, flags, next)| Descriptor::new(address, length, flags, next))
    }

    proptest! {
        #[test]
        fn whatever_the_guest_writes_buffers_are_in_its_memory(
            table in prop::collection::vec(descriptor(), 16),
            indirect in prop::collection::vec(descriptor(), 16),
        ) {
            let (buffers, result) = fill(&table, &indirect);
            if result.is_ok() {
                let all: Vec<_> = buffers.readable.iter().chain(&buffers.writable).collect();
                // Each descriptor spans at most two regions here.
                prop_assert!(!all.is_empty() && all.len() <= 2 * usize::from(SIZE));
                prop_assert!(all.iter().all(|buffer| buffer.iov_len > 0 && buffer.iov_len <= 0x10000));
            }
        }

        #[test]
        fn cutting_and_copying_keep_every_byte(
            lengths in prop::collection::vec(1usize..40, 1..8), count in 0usize..400, skip in 0usize..400,
        ) {
            let mut memory: Vec<Vec<u8>> = Vec::new();
            let mut next = 0u8;
            for length in &lengths {
                memory.push((0..*length).map(|_| { next = next.wrapping_add(1); next }).collect());
            }
            let flat: Vec<u8> = memory.concat();
            let mut buffers: Vec<libc::iovec> = memory.iter_mut()
                .map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() })
                .collect();
            skip_front(&mut buffers, skip);
            let rest = &flat[skip.min(flat.len())..];
            prop_assert_eq!(total(&buffers), rest.len() as u64);
            let mut copy = vec![0; count.min(rest.len())];
            read_front(&buffers, &mut copy);
            prop_assert_eq!(&copy[..], &rest[..copy.len()]);
            let front = take_front::<16>(&mut buffers);
            prop_assert_eq!(front.map(Vec::from), (rest.len() >= 16).then(|| rest[..16].to_vec()));
        }
    }
}
