//! Descriptor chains: walked once, checked, and turned into buffers of this process.

use std::fmt;

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use crate::memory::Memory;

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

/// A table of descriptors.
#[derive(Clone, Copy)]
pub enum Table {
    /// A queue's own, here in this process, aligned, of so many.
    Ring(*const u64, u16),
    /// An indirect one, at this guest address.
    Indirect(u64, u16),
}

impl Table {
    fn size(self) -> u16 {
        let (Table::Ring(_, size) | Table::Indirect(_, size)) = self;
        size
    }
}

/// A descriptor (2.7.5).
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// That at `index` of `table`; `None` if it is outside the table or guest memory. It is read once: the guest may
    /// change it at any time.
    #[inline]
    fn read(memory: &Memory, table: Table, index: u16) -> Option<Descriptor> {
        let [address, word] = match table {
            // SAFETY: inside the table, which whoever names it vouches for.
            Table::Ring(base, size) if index < size => unsafe { fetch(base.add(2 * usize::from(index))) },
            Table::Indirect(base, size) if index < size => {
                let address = base.checked_add(16 * u64::from(index))?;
                match memory.slice(address, 16).map(|host| host.cast::<u64>()) {
                    // SAFETY: 16 bytes of guest memory.
                    Some(host) if host.is_aligned() => unsafe { fetch(host) },
                    _ => fetch_bytes(memory, address)?,
                }
            }
            _ => return None,
        };
        let (length, flags, next) = (word as u32, (word >> 32) as u16, (word >> 48) as u16);
        Some(Descriptor { address, length, flags, next })
    }

    fn is(&self, flag: u32) -> bool {
        u32::from(self.flags) & flag != 0
    }
}

/// Two words.
///
/// # Safety
/// They are mapped.
unsafe fn fetch(host: *const u64) -> [u64; 2] {
    // SAFETY: the caller's.
    unsafe { [u64::from_le(host.read_volatile()), u64::from_le(host.add(1).read_volatile())] }
}

/// The same, wherever it lies.
#[cold]
fn fetch_bytes(memory: &Memory, address: u64) -> Option<[u64; 2]> {
    let mut words = [0; 2];
    for place in 0..16 {
        let (host, _) = memory.piece(address.checked_add(place)?, 1)?;
        // SAFETY: a byte of guest memory.
        let byte = unsafe { host.read_volatile() };
        words[place as usize / 8] |= u64::from(byte) << (8 * (place % 8));
    }
    Some(words)
}

impl Buffers {
    /// Replace the content by the buffers of the chain that begins at `head` of `table` and is in `memory`. `limit` is the
    /// size of its queue.
    ///
    /// # Errors
    /// The rule that the chain breaks.
    pub fn fill(&mut self, memory: &Memory, table: Table, head: u16, limit: u16) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        let (mut table, mut index) = (table, head);
        let (mut count, mut bytes, mut left) = (0, 0_u32, table.size());
        loop {
            // More descriptors than the table has: a loop.
            left = left.checked_sub(1).ok_or(ChainError::Broken)?;
            let descriptor = Descriptor::read(memory, table, index).ok_or(ChainError::Broken)?;
            if descriptor.is(VRING_DESC_F_INDIRECT) {
                table = indirect(table, &descriptor).ok_or(ChainError::Broken)?;
                (index, left) = (0, table.size());
                continue;
            }
            bytes = bytes.checked_add(descriptor.length).ok_or(ChainError::Broken)?;
            if count == limit {
                return Err(ChainError::TooLong);
            }
            count += 1;
            self.add(memory, &descriptor)?;
            if !descriptor.is(VRING_DESC_F_NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
    }

    #[inline]
    fn add(&mut self, memory: &Memory, descriptor: &Descriptor) -> Result<(), ChainError> {
        if descriptor.length == 0 {
            return Err(ChainError::Empty);
        }
        let target = if descriptor.is(VRING_DESC_F_WRITE) {
            &mut self.writable
        } else if self.writable.is_empty() {
            &mut self.readable
        } else {
            return Err(ChainError::Order);
        };
        // A buffer may span regions of guest memory; each piece is contiguous here.
        let (mut address, mut left) = (descriptor.address, descriptor.length as usize);
        while left > 0 {
            let (host, length) = memory.piece(address, left).ok_or(ChainError::OutOfRange)?;
            if target.len() >= MAX_BUFFERS {
                return Err(ChainError::TooLong);
            }
            target.push(libc::iovec { iov_base: host.cast(), iov_len: length });
            left -= length;
            address = address.wrapping_add(length as u64);
        }
        Ok(())
    }
}

/// The table that `descriptor` of `table` names: not in another one, and of whole descriptors (2.7.5.3).
fn indirect(table: Table, descriptor: &Descriptor) -> Option<Table> {
    let size = u16::try_from(descriptor.length / 16).ok()?;
    let allowed = matches!(table, Table::Ring(..)) && descriptor.length.is_multiple_of(16);
    allowed.then_some(Table::Indirect(descriptor.address, size))
}

/// Bytes in `buffers`; cannot wrap, because a chain holds less than 4 GiB.
pub fn total(buffers: &[libc::iovec]) -> u64 {
    buffers.iter().map(|buffer| buffer.iov_len as u64).sum()
}

/// Copy the first `N` bytes out of `buffers` and remove them there; `None` if there are fewer.
pub fn take_front<const N: usize>(buffers: &mut Vec<libc::iovec>) -> Option<[u8; N]> {
    // As drivers lay their headers out; of a length that the compiler knows.
    if let Some(first) = buffers.first()
        && first.iov_len == N
    {
        // SAFETY: as below; bytes have no alignment.
        let bytes = unsafe { first.iov_base.cast::<[u8; N]>().read_unaligned() };
        buffers.remove(0);
        return Some(bytes);
    }
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
pub fn skip_front(buffers: &mut Vec<libc::iovec>, count: usize) {
    let left = behind_front(buffers, count).len();
    buffers.drain(..buffers.len() - left);
}

/// What is left of `buffers` behind their first `count` bytes.
pub fn behind_front(buffers: &mut [libc::iovec], mut count: usize) -> &mut [libc::iovec] {
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
    &mut buffers[used..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::{Queue, QueueOwnedT, QueueT};
    use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

    use crate::control::Region;
    use crate::page::sealed_memfd;

    const SIZE: u16 = 16;
    const TABLE: u64 = 0x1000;
    const INDIRECT: u64 = 0x2000;
    /// A table over the border of two regions.
    const SPLIT: u64 = 0xfff8;
    const AVAIL: u64 = 0x3000;
    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    const TABLE_ELSEWHERE: u16 = VRING_DESC_F_INDIRECT as u16;

    /// Guest memory: 64 KiB at 0, and 64 KiB right behind it as a region of its own.
    fn memory() -> Memory {
        let region = |guest| Region { guest, size: 0x10000, user: guest, offset: 0 };
        let fds = (0..2).map(|_| sealed_memfd(c"test", 0x10000).unwrap().into()).collect();
        Memory::map(&[region(0), region(0x10000)], fds).unwrap()
    }

    fn laid(tables: [(u64, &[Descriptor]); 3]) -> Memory {
        let memory = memory();
        for (base, descriptors) in tables {
            for (index, descriptor) in descriptors.iter().enumerate() {
                memory.guest().write_obj(*descriptor, GuestAddress(base + 16 * index as u64)).unwrap();
            }
        }
        memory
    }

    fn walk(memory: &Memory) -> (Buffers, Result<(), ChainError>) {
        let mut buffers = Buffers::default();
        let table = memory.slice(TABLE, 16 * usize::from(SIZE)).unwrap();
        let result = buffers.fill(memory, Table::Ring(table.cast(), SIZE), 0, SIZE);
        (buffers, result)
    }

    fn fill(table: &[Descriptor], indirect: &[Descriptor]) -> (Buffers, Result<(), ChainError>) {
        walk(&laid([(TABLE, table), (INDIRECT, indirect), (SPLIT, &[])]))
    }

    /// The same chain by `virtio-queue`: the bytes to read and to write, if it is whole and in order.
    fn walked_elsewhere(memory: &Memory) -> Option<(u64, u64)> {
        let guest = memory.guest();
        guest.write_obj([0_u16, 1, 0], GuestAddress(AVAIL)).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(TABLE)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAIL)).unwrap();
        queue.set_ready(true);
        let (mut sums, mut complete, mut count) = ((0, 0), false, 0);
        for descriptor in queue.iter(guest).unwrap().next().unwrap() {
            let length = u64::from(descriptor.len());
            let sum = if descriptor.is_write_only() { &mut sums.1 } else { &mut sums.0 };
            *sum += length;
            count += 1;
            let late = !descriptor.is_write_only() && sums.1 > 0;
            let inside = guest.check_range(descriptor.addr(), descriptor.len() as usize, Permissions::No);
            if late || length == 0 || !inside || count > SIZE {
                return None;
            }
            complete = !descriptor.has_next();
        }
        complete.then_some(sums)
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
        let address =
            prop_oneof![4 => 0..0x20000u64, 1 => any::<u64>(), 2 => Just(INDIRECT), 1 => Just(SPLIT)];
        let length = prop_oneof![4 => 0..64u32, 2 => Just(64), 1 => any::<u32>()];
        (address, length, 0..8u16, 0..20u16)
            .prop_map(|(address, length, flags, next)| Descriptor::new(address, length, flags, next))
    }

    proptest! {
        #[test]
        fn whatever_the_guest_writes_buffers_are_in_its_memory(
            table in prop::collection::vec(descriptor(), 16),
            indirect in prop::collection::vec(descriptor(), 16),
            split in prop::collection::vec(descriptor(), 4),
        ) {
            let memory = laid([(TABLE, &table), (INDIRECT, &indirect), (SPLIT, &split)]);
            let (buffers, result) = walk(&memory);
            let sums = (total(&buffers.readable), total(&buffers.writable));
            prop_assert_eq!(result.ok().map(|()| sums), walked_elsewhere(&memory));
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
