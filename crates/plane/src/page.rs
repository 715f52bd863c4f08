//! A page of shared memory for each device: what must outlive a worker and what the holder reads without asking.

use std::fs::File;
use std::io;
use std::mem;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::balloon::BalloonState;
use crate::config::MAX_PORTS;
use crate::mem::MemState;
use crate::net::switch::DropReason;

/// Room for counters of drops.
pub const MAX_REASONS: usize = 64;

const _: () = assert!(DropReason::ALL.len() <= MAX_REASONS);

/// Counters of a device and the state of its ports. All zero at first.
#[repr(C)]
pub struct DevicePage {
    /// Reads completed.
    pub reads: AtomicU64,
    /// Writes completed.
    pub writes: AtomicU64,
    /// Flushes completed.
    pub flushes: AtomicU64,
    /// Discards and write-zeroes completed.
    pub discards: AtomicU64,
    /// Bytes read, or given to the guest.
    pub read_bytes: AtomicU64,
    /// Bytes written, or taken from the guest.
    pub written_bytes: AtomicU64,
    /// Requests answered with an error.
    pub errors: AtomicU64,
    /// Requests taken and not yet answered.
    pub inflight: AtomicU64,
    /// Of these, requests that wait for space on the host.
    pub spaceless: AtomicU64,
    /// Requests that a fault on purpose has met.
    pub faults: AtomicU64,
    /// The errno of a flush that failed, or 0: no other succeeds until the disk is opened anew.
    pub flush_error: AtomicU32,
    /// 1 while a flush of the guest's is at the disk: if its worker dies, nobody knows how it ended.
    pub flushing: AtomicU32,
    /// Syncs of the disk's own that are under way, likewise.
    pub syncing: AtomicU32,
    /// Bytes that a copy has behind it, and that it has in all.
    pub copied: AtomicU64,
    /// See `copied`.
    pub to_copy: AtomicU64,
    /// Frames dropped at a port of a network, by place in [`crate::net::switch::DropReason::ALL`].
    pub drops: [AtomicU64; MAX_REASONS],
    /// Addresses learnt from a port of a network.
    pub fdb: AtomicU32,
    /// Pairs of queues that the guest of a port uses; 0 until it has said so.
    pub pairs: AtomicU32,
    /// Ports of a console.
    pub ports: [PortState; MAX_PORTS],
    /// Of a balloon.
    pub balloon: BalloonState,
    /// Mappings of an overlay that its file does not have yet.
    pub mappings: MappingLog,
    /// Memory that a guest has plugged.
    pub mem: MemState,
}

impl DevicePage {
    /// A sync of the disk's own begins.
    ///
    /// # Errors
    /// `EIO` if one has failed, or a flush.
    pub fn begin_sync(&self) -> io::Result<()> {
        if self.flush_error.load(Relaxed) != 0 {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.syncing.fetch_add(1, Relaxed);
        Ok(())
    }

    /// It has ended with `result`, a negated errno if it failed.
    pub fn end_sync(&self, result: i32) {
        if result < 0 {
            self.flush_error.store(result.unsigned_abs(), Relaxed);
        }
        self.syncing.fetch_sub(1, Relaxed);
    }
}

/// Add to a counter of the page. Its worker alone writes it, so this is a load and a store, without a locked
/// instruction.
pub fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(count), Relaxed);
}

/// What a worker has to know of a port after another one crashed.
#[repr(C)]
#[derive(Default)]
pub struct PortState {
    /// 1 while the guest has the port open.
    pub guest_open: AtomicU32,
    /// Control messages that the guest has not been sent yet, a bit each.
    pub pending: AtomicU32,
    /// Where in the stream to the host the chains of the transmit queue begin.
    pub to_host: Position,
    /// Where in the stream to the guest the chains of the receive queue begin.
    pub to_guest: Position,
}

/// Who begins anew begins so much further in the stream to the host: what is left of a chain that a driver before it
/// never got back lies before that. More than a chain can have.
pub const JUMP: u64 = 1 << 32;

/// Where in a stream of bytes a queue is, to the byte, whenever its worker dies.
///
/// The queue serves one chain after the other, so the number of completed ones (the used ring's index) names the next.
/// There is a place for even numbers and one for odd ones: before chain n completes, where n + 1 begins is written
/// to the place that n does not use. So whichever number a new worker finds in the ring, its place is right.
#[repr(C)]
#[derive(Default)]
pub struct Position {
    /// `position << 16 | number`.
    places: [AtomicU64; 2],
}

impl Position {
    /// Where chain `number` begins; `None` if that is not known.
    pub fn of(&self, number: u16) -> Option<u64> {
        let place = self.places[usize::from(number % 2)].load(Relaxed);
        (place & 0xffff == u64::from(number)).then_some(place >> 16)
    }

    /// Chain `number` begins at `position`.
    pub fn set(&self, number: u16, position: u64) {
        // A worker may be killed at any instruction: program order is enough.
        self.places[usize::from(number % 2)].store(position << 16 | u64::from(number), Release);
    }

    /// The queue begins anew, at `position`, whether its driver counts from 0 or goes on after 65535.
    pub fn restart(&self, position: u64) {
        self.set(0, position);
        self.set(u16::MAX, position);
    }

    /// The last position that is known of any chain.
    pub fn last(&self) -> u64 {
        self.places.iter().map(|place| place.load(Relaxed) >> 16).max().unwrap_or(0)
    }
}

/// Most mappings that a [`MappingLog`] holds: at 64 KiB a cluster, 256 MiB of first writes. Few in unit tests, so that
/// full logs are met.
pub const MAPPINGS: usize = if cfg!(test) { 16 } else { 4096 };

/// What an overlay's writes have mapped since its tables were last brought into its file, in order. A worker's
/// successor finds here what the file lacks; should the host stop, it is lost, as writes are that nobody flushed.
#[repr(C)]
pub struct MappingLog {
    count: AtomicU64,
    /// Cluster of the disk, and byte in the file.
    entries: [[AtomicU64; 2]; MAPPINGS],
}

impl MappingLog {
    /// Add that `cluster` of the disk is at byte `place` of the file. It must have room.
    pub fn append(&self, cluster: u64, place: u64) {
        let count = self.count.load(Relaxed);
        let [first, second] = &self.entries[count as usize];
        first.store(cluster, Relaxed);
        second.store(place, Relaxed);
        // A worker may be killed here: program order is enough, and keeps a half-written entry from counting.
        self.count.store(count + 1, Release);
    }

    /// How many more fit.
    pub fn room(&self) -> usize {
        MAPPINGS.saturating_sub(self.count.load(Relaxed) as usize)
    }

    /// Whether the file has everything.
    pub fn is_empty(&self) -> bool {
        self.count.load(Relaxed) == 0
    }

    /// Everything, in order.
    pub fn entries(&self) -> Vec<(u64, u64)> {
        let count = self.count.load(Acquire).min(MAPPINGS as u64) as usize;
        self.entries[..count]
            .iter()
            .map(|[first, second]| (first.load(Relaxed), second.load(Relaxed)))
            .collect()
    }

    /// Forget everything: the file has it.
    pub fn clear(&self) {
        self.count.store(0, Release);
    }
}

/// A [`DevicePage`] in a sealed memfd, mapped.
pub struct Shared {
    file: File,
    address: NonNull<DevicePage>,
}

// SAFETY: all access through the mapping is by atomics.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// New, zeroed. Its size is sealed, so no other process can make an access fault.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create() -> io::Result<Shared> {
        let file = sealed_memfd(c"nagaya-device", mem::size_of::<DevicePage>() as u64)?;
        Shared::map(file)
    }

    /// Map what `create` made in another process.
    ///
    /// # Errors
    /// If it is too small, or what the kernel says.
    pub fn map(file: File) -> io::Result<Shared> {
        let size = mem::size_of::<DevicePage>();
        if file.metadata()?.len() < size as u64 {
            return Err(io::Error::other("the device's page is too small"));
        }
        // SAFETY: a new mapping of a file that is large enough.
        let address = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), size, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Shared { file, address })
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Deref for Shared {
    type Target = DevicePage;

    fn deref(&self) -> &DevicePage {
        // SAFETY: mapped for as long as `self` lives, aligned to a page, only atomics inside.
        unsafe { self.address.as_ref() }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this size and not used any more.
        unsafe { libc::munmap(self.address.as_ptr().cast(), mem::size_of::<DevicePage>()) };
    }
}

/// A memfd of `size` zero bytes whose size nobody can change.
///
/// # Errors
/// What the kernel says.
pub fn sealed_memfd(name: &std::ffi::CStr, size: u64) -> io::Result<File> {
    // SAFETY: `name` is a C string; on success the fd is new and ours.
    let file = unsafe {
        let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(fd)
    };
    file.set_len(size)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: passes no pointer.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream through a queue whose workers die between any two of their steps: the receiver drops what it has had,
    /// and has each byte once. `steps` is how far each worker gets with its chain before it is killed.
    fn carry(steps: &[usize], lengths: &[u64]) -> Vec<u64> {
        let page = Shared::create().unwrap();
        let position = &page.ports[0].to_host;
        let (mut completed, mut chain) = (0_u16, 0);
        let (mut had, mut got) = (0, Vec::new());
        let content = |chain: usize| {
            let begin: u64 = lengths[..chain].iter().sum();
            begin..begin + lengths[chain]
        };
        for steps in steps {
            if chain == lengths.len() {
                break;
            }
            let at = position.of(completed).expect("known since the beginning");
            let end = at + lengths[chain];
            for step in 0..*steps {
                match step {
                    0 => {
                        // The worker sends all of it; the receiver's view of the stream.
                        for (place, byte) in (at..end).zip(content(chain)) {
                            if place >= had {
                                got.push(byte);
                                had = place + 1;
                            }
                        }
                    }
                    1 => position.set(completed.wrapping_add(1), end),
                    2 => (completed, chain) = (completed.wrapping_add(1), chain + 1),
                    _ => break,
                }
            }
        }
        got
    }

    proptest::proptest! {
        #[test]
        fn each_byte_arrives_once_wherever_workers_die(
            steps in proptest::collection::vec(0_usize..4, 1..300),
            lengths in proptest::collection::vec(0_u64..5, 1..50),
        ) {
            let got = carry(&steps, &lengths);
            proptest::prop_assert!(got.iter().copied().eq(0..got.len() as u64), "{got:?}");
        }
    }

    #[test]
    fn a_place_of_another_number_is_not_believed() {
        let page = Shared::create().unwrap();
        let position = &page.ports[0].to_host;
        assert_eq!((position.of(0), position.of(1)), (Some(0), None));
        position.set(65535, 7);
        position.set(0, 9);
        assert_eq!((position.of(65535), position.of(0), position.of(2)), (Some(7), Some(9), None));
        assert_eq!(position.last(), 9);
    }

    #[test]
    fn both_sides_see_one_page() {
        let holder = Shared::create().unwrap();
        let worker = Shared::map(File::from(holder.as_fd().try_clone_to_owned().unwrap())).unwrap();
        worker.ports[3].guest_open.store(1, Relaxed);
        worker.reads.fetch_add(2, Relaxed);
        assert_eq!((holder.ports[3].guest_open.load(Relaxed), holder.reads.load(Relaxed)), (1, 2));
        assert!(holder.file.set_len(0).is_err());
    }

    #[test]
    fn a_successor_finds_the_mappings_in_order_until_they_are_cleared() {
        let holder = Shared::create().unwrap();
        let worker = Shared::map(File::from(holder.as_fd().try_clone_to_owned().unwrap())).unwrap();
        for entry in 0..MAPPINGS as u64 {
            worker.mappings.append(entry, entry << 16);
        }
        assert_eq!(worker.mappings.room(), 0);
        let expected: Vec<_> = (0..MAPPINGS as u64).map(|entry| (entry, entry << 16)).collect();
        assert_eq!(holder.mappings.entries(), expected);
        worker.mappings.clear();
        assert!(holder.mappings.is_empty() && holder.mappings.entries().is_empty());
    }
}
