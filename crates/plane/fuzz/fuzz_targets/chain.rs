//! A guest's whole memory is the input: table and buffers. The chain at every head is walked, and every buffer that comes
//! out must lie in guest memory.
#![no_main]

use std::cell::LazyCell;

use libfuzzer_sys::fuzz_target;
use nagaya_plane::block::request::{Parsed, parse};
use nagaya_plane::chain::{Buffers, MAX_BUFFERS, Table, total};
use nagaya_plane::control::Region;
use nagaya_plane::memory::Memory;
use nagaya_plane::page::sealed_memfd;

const SIZE: u16 = 16;

/// Bytes of the disk that requests are parsed for.
const DISK: u64 = 1 << 20;

/// Two regions that touch, so that a buffer may cross, then a hole, then another at the very end.
const REGIONS: [u64; 3] = [0, 0x1000, 0x4000];

thread_local! {
    static MEMORY: LazyCell<Memory> = const { LazyCell::new(memory) };
}

fn memory() -> Memory {
    let regions = REGIONS.map(|guest| Region { guest, size: 0x1000, user: guest, offset: 0 });
    let fds = REGIONS.map(|_| sealed_memfd(c"fuzz", 0x1000).expect("a memfd").into());
    Memory::map(&regions, fds.into()).expect("memory")
}

fuzz_target!(|bytes: &[u8]| MEMORY.with(|memory| walk(memory, bytes)));

fn walk(memory: &Memory, bytes: &[u8]) {
    let table = memory.slice(0, 0x1000).expect("the first region");
    let mut image = [0; 0x1000];
    let len = bytes.len().min(image.len());
    image[..len].copy_from_slice(&bytes[..len]);
    let mut buffers = Buffers::default();
    for head in 0..SIZE {
        // SAFETY: the region has so many bytes. A request that was parsed may have left a status there.
        unsafe { table.copy_from_nonoverlapping(image.as_ptr(), image.len()) };
        if buffers.fill(memory, Table::Ring(table.cast(), SIZE), head, SIZE).is_err() {
            continue;
        }
        assert!(buffers.readable.len() <= MAX_BUFFERS && buffers.writable.len() <= MAX_BUFFERS);
        let all_inside = |buffers: &Buffers| {
            buffers.readable.iter().chain(&buffers.writable).for_each(|buffer| inside(memory, buffer));
        };
        all_inside(&buffers);
        let moved = (total(&buffers.readable), total(&buffers.writable));
        if let Ok((parsed, status)) = parse(&mut buffers, DISK, false) {
            inside(memory, &libc::iovec { iov_base: status.cast(), iov_len: 1 });
            all_inside(&buffers);
            check(parsed, moved);
        }
    }
}

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
fn inside(memory: &Memory, buffer: &libc::iovec) {
    let (start, len) = (buffer.iov_base as usize, buffer.iov_len);
    let found = REGIONS.iter().any(|region| {
        let base = memory.slice(*region, 0x1000).expect("mapped") as usize;
        start >= base && start + len <= base + 0x1000
    });
    assert!(found && len > 0, "{len} bytes at {start:#x} are not in guest memory");
}
