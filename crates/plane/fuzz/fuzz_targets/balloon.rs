//! A guest's first page is the input: a table of descriptors and what they name. What each chain gives back to the host must be
//! what it names, statistics must be within what can be, and the rest of the guest's memory must stay as it was.
#![no_main]

use std::cell::LazyCell;
use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use nagaya_plane::balloon::discard::Pages;
use nagaya_plane::balloon::{PAGE, Stats};
use nagaya_plane::chain::{Buffers, Table};
use nagaya_plane::control::Region;
use nagaya_plane::memory::Memory;
use nagaya_plane::page::sealed_memfd;

const SIZE: u16 = 16;

/// First page of each region, and how many it has: the table's, some right behind, a hole, and some more.
const REGIONS: [(u64, u64); 3] = [(0, 1), (1, 6), (10, 6)];

thread_local! {
    static MEMORY: LazyCell<Memory> = const { LazyCell::new(memory) };
}

fn memory() -> Memory {
    let regions = REGIONS.map(|(first, count)| Region {
        guest: first * PAGE,
        size: count * PAGE,
        user: first * PAGE,
        offset: 0,
    });
    let fds = REGIONS.map(|(_, count)| sealed_memfd(c"fuzz", count * PAGE).expect("a memfd").into());
    Memory::map(&regions, fds.into()).expect("memory")
}

fuzz_target!(|bytes: &[u8]| MEMORY.with(|memory| give(memory, bytes)));

fn give(memory: &Memory, bytes: &[u8]) {
    let table = memory.slice(0, PAGE as usize).expect("the first region");
    let mut image = [0; PAGE as usize];
    let len = bytes.len().min(image.len());
    image[..len].copy_from_slice(&bytes[..len]);
    let mut buffers = Buffers::default();
    let mut pages = Pages::default();
    for head in 0..SIZE {
        // SAFETY: the region has so many bytes.
        unsafe { table.copy_from_nonoverlapping(image.as_ptr(), image.len()) };
        // SAFETY: eight bytes of guest memory, aligned; likewise below.
        others().for_each(|page| unsafe { word(memory, page).write_volatile(page + 1) });
        if buffers.fill(memory, Table::Ring(table.cast(), SIZE), head, SIZE).is_err() {
            continue;
        }
        let stats = Stats::parse(&buffers.readable, 1000);
        assert!(stats.0[4..8].iter().flatten().all(|part| *part <= 1000), "{stats:?}");
        let Ok(pages) = pages.read(&buffers.readable) else { continue };
        let named: BTreeSet<u64> = pages.runs().flat_map(|(first, count)| first..first + count).collect();
        let given = pages.discard(memory);
        assert_eq!(given.is_ok(), named.iter().all(|page| is_there(*page)));
        let is_lost = |page: &u64| unsafe { word(memory, *page).read_volatile() } != page + 1;
        let lost: BTreeSet<u64> = others().filter(is_lost).collect();
        match given {
            Ok(given) => {
                assert_eq!((given.bytes, given.errors), (named.len() as u64 * PAGE, 0));
                assert!(lost.iter().eq(named.iter().filter(|page| **page != 0)));
            }
            Err(_) => assert!(lost.is_empty()),
        }
    }
}

fn is_there(page: u64) -> bool {
    REGIONS.iter().any(|(first, count)| (*first..first + count).contains(&page))
}

/// All pages but that of the table.
fn others() -> impl Iterator<Item = u64> {
    (1..16).filter(|page| is_there(*page))
}

/// The first word of a page, which says which it is.
fn word(memory: &Memory, page: u64) -> *mut u64 {
    memory.slice(page * PAGE, 8).expect("mapped").cast()
}
