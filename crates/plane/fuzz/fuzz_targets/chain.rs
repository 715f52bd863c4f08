//! A guest's whole memory is the input: rings, tables, buffers. Every chain that can be taken is walked, and every
//! buffer that comes out must lie in guest memory.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nagaya_plane::block::request::{Parsed, parse};
use nagaya_plane::chain::{Buffers, MAX_BUFFERS, total};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const SIZE: u16 = 16;
const DESC: GuestAddress = GuestAddress(0);
const AVAIL: GuestAddress = GuestAddress(0x100);
const USED: GuestAddress = GuestAddress(0x200);

/// Bytes of the disk that requests are parsed for.
const DISK: u64 = 1 << 20;

/// Two regions that touch, so that a buffer may cross, then a hole, then another at the very end.
static MEMORY: LazyLock<GuestMemoryMmap<()>> = LazyLock::new(|| {
    let ranges = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000), (GuestAddress(0x4000), 0x1000)];
    GuestMemoryMmap::from_ranges(&ranges).expect("memory")
});

fuzz_target!(|bytes: &[u8]| {
    let memory = &*MEMORY;
    let mut image = [0; 0x1000];
    let len = bytes.len().min(image.len());
    image[..len].copy_from_slice(&bytes[..len]);
    memory.write_slice(&image, GuestAddress(0)).expect("inside");

    let mut queue = Queue::new(SIZE).expect("size");
    queue.set_size(SIZE);
    queue.try_set_desc_table_address(DESC).expect("aligned");
    queue.try_set_avail_ring_address(AVAIL).expect("aligned");
    queue.try_set_used_ring_address(USED).expect("aligned");
    queue.set_ready(true);
    let Ok(chains) = queue.iter(memory) else { return };
    let mut buffers = Buffers::default();
    for chain in chains.take(SIZE.into()) {
        if buffers.fill(memory, chain, SIZE).is_err() {
            continue;
        }
        assert!(buffers.readable.len() <= MAX_BUFFERS && buffers.writable.len() <= MAX_BUFFERS);
        buffers.readable.iter().chain(&buffers.writable).for_each(inside);
        let moved = (total(&buffers.readable), total(&buffers.writable));
        if let Ok((parsed, status)) = parse(&mut buffers, DISK, false) {
            inside(&libc::iovec { iov_base: status.cast(), iov_len: 1 });
            buffers.readable.iter().chain(&buffers.writable).for_each(inside);
            check(parsed, moved);
        }
    }
});

/// What was parsed moves no more than the chain holds, inside the disk.
fn check(parsed: Parsed, (readable, writable): (u64, u64)) {
    use nagaya_plane::block::Operation::{Discard, Flush, Read, Write, WriteZeroes};
    let Parsed::Disk { operation, offset, length } = parsed else { return };
    assert!(offset.checked_add(length).is_some_and(|end| end <= DISK), "{parsed:?}");
    match operation {
        Read => assert!(length > 0 && length == writable - 1),
        Write => assert!(length > 0 && length == readable - 16),
        Flush => assert_eq!((offset, length), (0, 0)),
        Discard | WriteZeroes { .. } => assert!(length > 0 && length % 512 == 0),
    }
}

/// Fail unless the buffer lies in one region of guest memory.
fn inside(buffer: &libc::iovec) {
    let (start, len) = (buffer.iov_base as usize, buffer.iov_len);
    let found = [0_u64, 0x1000, 0x4000].iter().any(|region| {
        let base = MEMORY.get_host_address(GuestAddress(*region)).expect("mapped") as usize;
        start >= base && start + len <= base + 0x1000
    });
    assert!(found && len > 0, "{len} bytes at {start:#x} are not in guest memory");
}
