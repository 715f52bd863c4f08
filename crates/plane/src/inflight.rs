//! The in-flight region of a split virtqueue: which requests a crashed worker had taken and not answered.
//!
//! Layout and order of the writes are those of the vhost-user specification, "Inflight I/O tracking". The region
//! survives the worker, not the host, so program order is enough: atomics keep the compiler from changing it.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64};

use crate::memory::Guard;

/// Version of the layout; 0 is a region that nobody has used yet.
const VERSION: u16 = 1;

/// Each queue's part starts at a multiple of this (vhost-user: "queue region size is aligned").
const ALIGNMENT: u64 = 64;

#[repr(C)]
struct Header {
    features: AtomicU64,
    version: AtomicU16,
    desc_num: AtomicU16,
    last_batch_head: AtomicU16,
    used_idx: AtomicU16,
}

#[repr(C)]
struct Entry {
    inflight: AtomicU8,
    padding: [u8; 5],
    next: AtomicU16,
    counter: AtomicU64,
}

/// Bytes of one queue's part.
pub fn region_size(queue_size: u16) -> u64 {
    let bytes = size_of::<Header>() + usize::from(queue_size) * size_of::<Entry>();
    (bytes as u64).next_multiple_of(ALIGNMENT)
}

/// What a worker finds in the region when it starts a queue.
#[derive(Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The chains to submit again, in the order in which they were taken first.
    pub heads: Vec<u16>,
    /// Index in the available ring of the first entry that was never taken.
    pub next_avail: u16,
    /// Another worker has served the queue before; the driver may not have been told of its last completions.
    pub resumed: bool,
}

/// One queue's part of the region, mapped.
pub struct Inflight {
    map: NonNull<u8>,
    length: usize,
    header: NonNull<Header>,
    entries: NonNull<Entry>,
    size: u16,
    counter: u64,
    // The file may be the frontend's, who can truncate it. Dropped after the unmapping in `drop`.
    guard: Guard,
}

impl Inflight {
    /// Map the part at `offset`, for a queue of `size` descriptors.
    ///
    /// # Errors
    /// If it lies beyond the end of the file or is not aligned, or what the kernel says.
    pub fn map(file: &File, offset: u64, size: u16) -> io::Result<Inflight> {
        let page = offset & !0xfff;
        let skip = (offset - page) as usize;
        let length = skip + region_size(size) as usize;
        let end = offset.checked_add(region_size(size));
        if !offset.is_multiple_of(8)
            || end.is_none_or(|end| Ok(end) > file.metadata().map(|meta| meta.len()).map_err(|_| ()))
        {
            return Err(io::Error::other(format!(
                "no in-flight region of {size} entries at offset {offset}"
            )));
        }
        // SAFETY: a new mapping; `length` is not 0.
        let map = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(
                ptr::null_mut(),
                length,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                page as libc::off_t,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast::<u8>()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        let guard = Guard::new(map.as_ptr() as usize, length).inspect_err(|_| {
            // SAFETY: mapped above, not used yet.
            unsafe { libc::munmap(map.as_ptr().cast(), length) };
        })?;
        // SAFETY: header and entries are inside the mapping and aligned to 8 bytes.
        let (header, entries) =
            unsafe { (map.add(skip).cast::<Header>(), map.add(skip + size_of::<Header>()).cast()) };
        Ok(Inflight { map, length, header, entries, size, counter: 0, guard })
    }

    /// Whether the file has been truncated under the mapping.
    pub fn lost(&self) -> bool {
        self.guard.lost()
    }

    /// Take over the region when a queue starts. `used_idx` is what the used ring says; `base` is where to go on
    /// if the region is new.
    pub fn recover(&mut self, used_idx: u16, base: u16) -> Recovery {
        let header = self.header();
        if header.version.load(Relaxed) != VERSION || header.desc_num.load(Relaxed) != self.size {
            for head in 0..self.size {
                self.entry(head).inflight.store(0, Relaxed);
            }
            header.desc_num.store(self.size, Relaxed);
            header.used_idx.store(used_idx, Relaxed);
            header.version.store(VERSION, Release);
            return Recovery { heads: Vec::new(), next_avail: base, resumed: false };
        }
        self.finish_last_batch(used_idx);
        let mut taken: Vec<(u64, u16)> = (0..self.size)
            .filter(|head| self.entry(*head).inflight.load(Acquire) == 1)
            .map(|head| (self.entry(head).counter.load(Relaxed), head))
            .collect();
        taken.sort_unstable();
        self.counter = taken.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        let next_avail = used_idx.wrapping_add(taken.len() as u16);
        Recovery { heads: taken.into_iter().map(|(_, head)| head).collect(), next_avail, resumed: true }
    }

    /// The used ring is ahead of what the region knows: the crash came after the guest was told. Clears the
    /// marks of that batch. At most `size` steps, whatever a guest wrote into its used ring.
    fn finish_last_batch(&self, used_idx: u16) {
        let header = self.header();
        let mut head = header.last_batch_head.load(Acquire);
        let told = used_idx.wrapping_sub(header.used_idx.load(Acquire)).min(self.size);
        for _ in 0..told {
            if head >= self.size {
                break;
            }
            self.entry(head).inflight.store(0, Release);
            head = self.entry(head).next.load(Acquire);
        }
        header.used_idx.store(used_idx, Release);
    }

    /// The chain at `head` has been taken from the available ring.
    pub fn take(&mut self, head: u16) {
        let entry = self.entry(head);
        entry.counter.store(self.counter, Release);
        entry.inflight.store(1, Release);
        self.counter = self.counter.wrapping_add(1);
    }

    /// The chain at `head` is back in the available ring, as if it had never been taken.
    pub fn put_back(&mut self, head: u16) {
        self.entry(head).inflight.store(0, Release);
    }

    /// Whether the chain at `head` has been taken and not completed.
    pub fn is_taken(&self, head: u16) -> bool {
        self.entry(head).inflight.load(Relaxed) == 1
    }

    /// The chain at `head` is about to be put into the used ring.
    pub fn begin_completion(&mut self, head: u16) {
        let header = self.header();
        self.entry(head).next.store(header.last_batch_head.load(Relaxed), Release);
        header.last_batch_head.store(head, Release);
    }

    /// The used ring's index is now `used_idx`, and `heads`, all whose completion was begun since the last call, are below
    /// it.
    pub fn end_completions(&mut self, heads: &[u16], used_idx: u16) {
        for head in heads {
            self.entry(*head).inflight.store(0, Release);
        }
        self.header().used_idx.store(used_idx, Release);
    }

    fn header(&self) -> &Header {
        // SAFETY: inside the mapping for as long as `self` lives; all fields are atomics.
        unsafe { self.header.as_ref() }
    }

    fn entry(&self, head: u16) -> &Entry {
        assert!(head < self.size, "head {head} of {}", self.size);
        // SAFETY: `head` is below the number of entries that the mapping holds; all fields used are atomics.
        unsafe { self.entries.add(head.into()).as_ref() }
    }
}

impl Drop for Inflight {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length and not used any more.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::sealed_memfd;
    use proptest::prelude::*;
    use std::collections::{HashSet, VecDeque};

    const SIZE: u16 = 8;

    /// A queue and its driver: what is in guest memory, which outlives the worker.
    #[derive(Default)]
    struct Rings {
        available: Vec<u16>,
        used: Vec<u16>,
    }

    /// A worker in the making: what dies with it.
    struct Worker {
        inflight: Inflight,
        next_avail: usize,
        again: VecDeque<u16>,
        taken: VecDeque<u16>,
    }

    impl Worker {
        fn start(file: &File, rings: &Rings) -> Worker {
            let mut inflight = Inflight::map(file, 64, SIZE).unwrap();
            let recovery = inflight.recover(rings.used.len() as u16, 0);
            let next_avail = recovery.next_avail.into();
            Worker { inflight, next_avail, again: recovery.heads.into(), taken: VecDeque::new() }
        }

        /// Take a chain; false if there is none.
        fn take(&mut self, rings: &Rings) -> bool {
            if let Some(head) = self.again.pop_front() {
                self.taken.push_back(head);
                return true;
            }
            let Some(head) = rings.available.get(self.next_avail) else { return false };
            self.inflight.take(*head);
            self.next_avail += 1;
            self.taken.push_back(*head);
            true
        }

        /// Complete the chain at `place`, but die after `steps` of the four steps.
        fn complete(&mut self, rings: &mut Rings, place: usize, steps: usize) {
            let Some(head) = self.taken.remove(place % self.taken.len().max(1)) else { return };
            let (header, entry) = (self.inflight.header(), self.inflight.entry(head));
            if steps >= 1 {
                entry.next.store(header.last_batch_head.load(Relaxed), Release);
            }
            if steps >= 2 {
                header.last_batch_head.store(head, Release);
            }
            if steps >= 3 {
                rings.used.push(head);
            }
            if steps >= 4 {
                entry.inflight.store(0, Release);
            }
            if steps >= 5 {
                header.used_idx.store(rings.used.len() as u16, Release);
            }
        }
    }

    fn region() -> File {
        sealed_memfd(c"test", 64 + region_size(SIZE)).unwrap()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Offer,
        Take,
        Complete(usize),
        CompleteAndDie(usize, usize),
        Die,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Offer),
            4 => Just(Step::Take),
            3 => any::<usize>().prop_map(Step::Complete),
            1 => (any::<usize>(), 0..5usize).prop_map(|(place, steps)| Step::CompleteAndDie(place, steps)),
            1 => Just(Step::Die),
        ]
    }

    proptest! {
        /// Wherever workers die, each chain that the driver offered is used exactly once.
        #[test]
        fn every_chain_completes_exactly_once(steps in prop::collection::vec(step(), 1..200)) {
            let file = region();
            let mut rings = Rings::default();
            let mut worker = Worker::start(&file, &rings);
            for step in steps {
                match step {
                    Step::Offer => {
                        let used: HashSet<u16> = free_heads(&rings);
                        if let Some(head) = used.iter().min() {
                            rings.available.push(*head);
                        }
                    }
                    Step::Take => { worker.take(&rings); }
                    Step::Complete(place) => worker.complete(&mut rings, place, 5),
                    Step::CompleteAndDie(place, steps) => {
                        worker.complete(&mut rings, place, steps);
                        worker = Worker::start(&file, &rings);
                    }
                    Step::Die => worker = Worker::start(&file, &rings),
                }
                prop_assert!(rings.used.len() <= rings.available.len());
            }
            worker = Worker::start(&file, &rings);
            while worker.take(&rings) {
                worker.complete(&mut rings, 0, 5);
            }
            let (mut offered, mut used) = (rings.available.clone(), rings.used.clone());
            offered.sort_unstable();
            used.sort_unstable();
            prop_assert_eq!(offered, used);
        }

        /// The region may be the frontend's: whatever is in it, a worker ends its work.
        #[test]
        fn a_region_of_noise_is_survived(noise in prop::collection::vec(any::<u8>(), 16 + 16 * 8), used: u16) {
            use std::os::unix::fs::FileExt;
            let file = region();
            file.write_all_at(&noise, 64).unwrap();
            // Version 1 and the right number of entries, or all of it would be ignored.
            file.write_all_at(&[1, 0, SIZE as u8, 0], 64 + 8).unwrap();
            let mut inflight = Inflight::map(&file, 64, SIZE).unwrap();
            let recovery = inflight.recover(used, 0);
            prop_assert!(recovery.heads.len() <= usize::from(SIZE));
            prop_assert!(recovery.heads.iter().all(|head| *head < SIZE));
        }
    }

    /// Heads that the driver has not offered, or that came back.
    fn free_heads(rings: &Rings) -> HashSet<u16> {
        let mut owed = vec![0i32; SIZE.into()];
        rings.available.iter().for_each(|head| owed[usize::from(*head)] += 1);
        rings.used.iter().for_each(|head| owed[usize::from(*head)] -= 1);
        (0..SIZE).filter(|head| owed[usize::from(*head)] == 0).collect()
    }

    #[test]
    fn a_new_region_starts_at_the_base_and_an_old_one_in_the_order_of_taking() {
        let file = region();
        let mut inflight = Inflight::map(&file, 64, SIZE).unwrap();
        assert_eq!(inflight.recover(7, 9), Recovery { heads: vec![], next_avail: 9, resumed: false });
        for head in [5, 1, 3] {
            inflight.take(head);
        }
        drop(inflight);
        let mut inflight = Inflight::map(&file, 64, SIZE).unwrap();
        assert_eq!(inflight.recover(7, 0), Recovery { heads: vec![5, 1, 3], next_avail: 10, resumed: true });
        assert!(inflight.is_taken(3) && !inflight.is_taken(2));
    }

    #[test]
    fn a_region_beyond_its_file_is_refused() {
        let file = region();
        assert!(Inflight::map(&file, 128, SIZE).is_err());
        assert!(Inflight::map(&file, 4, SIZE).is_err());
        assert!(Inflight::map(&file, u64::MAX - 7, SIZE).is_err());
    }
}
