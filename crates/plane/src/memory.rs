//! Guest memory as a worker sees it: the frontend's fds, mapped, and what happens when one is truncated.
//!
//! A frontend may shrink its memory file at any time, and then an access by the CPU raises SIGBUS. The handler
//! puts zero pages under the whole mapping and marks it lost; the reactor stops serving the device.
//! (I/O by the kernel on such memory fails with EFAULT and needs no care.)

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vm_memory::mmap::MmapRegion;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::control::Region;

/// Most mappings of guest memory in one worker: 64 devices with 32 regions each, far above what hosts run.
const MAX_MAPPINGS: usize = 8192;

/// Bytes of the host's pages, where they are not huge ones.
const PAGE_SIZE: usize = 4096;

/// The mappings that the SIGBUS handler knows; a slot is free while `start` is 0.
static MAPPINGS: [Mapping; MAX_MAPPINGS] = [const { Mapping::new() }; MAX_MAPPINGS];

struct Mapping {
    start: AtomicUsize,
    length: AtomicUsize,
    lost: AtomicBool,
}

impl Mapping {
    const fn new() -> Mapping {
        Mapping { start: AtomicUsize::new(0), length: AtomicUsize::new(0), lost: AtomicBool::new(false) }
    }
}

/// A range of this process's memory that the handler guards, until dropped.
pub struct Guard {
    slot: usize,
}

impl Guard {
    /// Guard `length` bytes at `start`, which are mapped from a file that others can truncate.
    ///
    /// # Errors
    /// If all slots are taken.
    pub fn new(start: usize, length: usize) -> io::Result<Guard> {
        for (slot, mapping) in MAPPINGS.iter().enumerate() {
            if mapping.start.load(Ordering::Relaxed) == 0 {
                mapping.length.store(length, Ordering::Relaxed);
                mapping.lost.store(false, Ordering::Relaxed);
                mapping.start.store(start, Ordering::Release);
                return Ok(Guard { slot });
            }
        }
        Err(io::Error::other(format!("more than {MAX_MAPPINGS} memory regions in one worker")))
    }

    /// Whether an access has found the file too short.
    pub fn lost(&self) -> bool {
        MAPPINGS[self.slot].lost.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        MAPPINGS[self.slot].start.store(0, Ordering::Release);
    }
}

/// A region of guest memory: bytes `start..end` of the guest are at `host` on.
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
    host: *mut u8,
}

/// A guest's memory.
pub struct Memory {
    guest: GuestMemoryMmap<()>,
    spans: Vec<Span>,
    page_size: usize,
    // Dropped after `guest`: a range is guarded for as long as it is mapped.
    guards: Vec<Guard>,
}

impl Memory {
    /// Map `regions` from `fds`, in the same order. A file that is too short is found by the first access beyond its end.
    ///
    /// # Errors
    /// Regions that overlap or wrap, or what the kernel says.
    pub fn map(regions: &[Region], fds: Vec<OwnedFd>) -> io::Result<Memory> {
        if regions.len() != fds.len() {
            return Err(io::Error::other(format!("{} regions, {} fds", regions.len(), fds.len())));
        }
        let mut page_size = PAGE_SIZE;
        let mut guards = Vec::new();
        let mut maps = Vec::new();
        for (region, fd) in regions.iter().zip(fds) {
            let size = usize::try_from(region.size).map_err(io::Error::other)?;
            let file = File::from(fd);
            page_size = page_size.max(page_size_of(&file)?);
            let file = FileOffset::new(file, region.offset);
            let map = MmapRegion::<()>::from_file(file, size).map_err(io::Error::other)?;
            guards.push(Guard::new(map.as_ptr() as usize, size)?);
            let map = GuestRegionMmap::new(map, GuestAddress(region.guest))
                .ok_or_else(|| io::Error::other("a region wraps around the end of guest memory"))?;
            maps.push(map);
        }
        maps.sort_by_key(|map| map.start_addr().0);
        let guest = GuestMemoryMmap::from_regions(maps).map_err(io::Error::other)?;
        let spans = guest.iter().map(|region| {
            let start = region.start_addr().0;
            Span { start, end: start + region.len(), host: region.as_ptr() }
        });
        Ok(Memory { spans: spans.collect(), page_size, guest, guards })
    }

    /// Where byte `address` of the guest is, and how many bytes from there on lie together, `length` at most.
    pub fn piece(&self, address: u64, length: usize) -> Option<(*mut u8, usize)> {
        let span = self.spans.iter().find(|span| (span.start..span.end).contains(&address))?;
        let skip = address - span.start;
        // SAFETY: the address is inside the mapping.
        let host = unsafe { span.host.add(skip as usize) };
        Some((host, length.min((span.end - address) as usize)))
    }

    /// Where `length` bytes from `address` on are; `None` if they are not all there, or not together.
    pub fn slice(&self, address: u64, length: usize) -> Option<*mut u8> {
        self.piece(address, length).filter(|(_, here)| *here == length).map(|(host, _)| host)
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.spans.iter().map(|span| span.end - span.start).sum()
    }

    /// The size of the pages that it is made of, the largest if there are several.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// The memory by guest physical address.
    pub fn guest(&self) -> &GuestMemoryMmap<()> {
        &self.guest
    }

    /// Whether a part of it has been lost to truncation.
    pub fn lost(&self) -> bool {
        self.guards.iter().any(Guard::lost)
    }
}

/// The size of the pages that `file` is made of: those of hugetlbfs are what it was mounted or created with.
fn page_size_of(file: &File) -> io::Result<usize> {
    // SAFETY: all zeroes is a valid statfs, which outlives the call.
    let stat = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        if libc::fstatfs(file.as_raw_fd(), &mut stat) < 0 {
            return Err(io::Error::last_os_error());
        }
        stat
    };
    let huge = stat.f_type == libc::HUGETLBFS_MAGIC;
    Ok(if huge { usize::try_from(stat.f_bsize).map_err(io::Error::other)? } else { PAGE_SIZE })
}

/// Survive SIGBUS on guarded ranges. For the whole process, once.
///
/// # Errors
/// What the kernel says.
pub fn install_sigbus_handler() -> io::Result<()> {
    // SAFETY: all zeroes is a valid sigaction; the handler has the signature that SA_SIGINFO asks for and is
    // async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        if libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo.
    let address = unsafe { (*info).si_addr() } as usize;
    for mapping in &MAPPINGS {
        let start = mapping.start.load(Ordering::Acquire);
        if start == 0 || address < start || address - start >= mapping.length.load(Ordering::Relaxed) {
            continue;
        }
        mapping.lost.store(true, Ordering::Relaxed);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let length = mapping.length.load(Ordering::Relaxed);
        // SAFETY: replaces a mapping of ours, whole, by one of the same size; nothing but guest data is in it.
        let mapped = unsafe { libc::mmap(start as *mut libc::c_void, length, protection, flags, -1, 0) };
        if mapped != libc::MAP_FAILED {
            return;
        }
    }
    // Not guest memory: let the access fault again and end the process.
    // SAFETY: passes no pointer.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use vm_memory::Bytes;

    fn memfd(size: u64) -> File {
        // SAFETY: the name is a C string; the fd is new.
        let file = unsafe {
            let fd = libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC);
            std::os::fd::FromRawFd::from_raw_fd(fd)
        };
        let file: File = file;
        file.set_len(size).unwrap();
        assert!(file.as_raw_fd() >= 0);
        file
    }

    fn region(guest: u64, size: u64) -> Region {
        Region { guest, size, user: guest, offset: 0 }
    }

    #[test]
    fn truncated_memory_is_lost_and_reads_zero() {
        install_sigbus_handler().unwrap();
        let file = memfd(0x4000);
        let other = memfd(0x1000);
        let fds =
            vec![file.as_fd().try_clone_to_owned().unwrap(), other.as_fd().try_clone_to_owned().unwrap()];
        let memory = Memory::map(&[region(0x10000, 0x4000), region(0, 0x1000)], fds).unwrap();
        memory.guest().write_obj(7u32, GuestAddress(0x11000)).unwrap();
        memory.guest().write_obj(8u32, GuestAddress(0)).unwrap();
        file.set_len(0).unwrap();
        assert!(!memory.lost());
        assert_eq!(memory.guest().read_obj::<u32>(GuestAddress(0x11000)).unwrap(), 0);
        assert!(memory.lost());
        assert_eq!(memory.guest().read_obj::<u32>(GuestAddress(0)).unwrap(), 8);
    }

    #[test]
    fn addresses_are_found_in_their_region_and_not_beyond_it() {
        let fds = vec![memfd(0x1000).into(), memfd(0x2000).into()];
        let memory = Memory::map(&[region(0x1000, 0x1000), region(0x2000, 0x2000)], fds).unwrap();
        let (first, here) = memory.piece(0x1ff0, 0x100).unwrap();
        assert_eq!(here, 0x10);
        assert_eq!(memory.slice(0x1ff0, 0x10), Some(first));
        assert_eq!((memory.slice(0x1ff0, 0x11), memory.slice(0xfff, 1)), (None, None));
        assert_eq!(memory.piece(0x3fff, usize::MAX).map(|(_, here)| here), Some(1));
        assert_eq!((memory.piece(0x4000, 1), memory.piece(u64::MAX, 1)), (None, None));
    }

    #[test]
    fn regions_that_overlap_or_wrap_are_refused() {
        let file = memfd(0x4000);
        let fd = || file.as_fd().try_clone_to_owned().unwrap();
        assert!(Memory::map(&[region(0, 0x4000), region(0x1000, 0x4000)], vec![fd(), fd()]).is_err());
        assert!(Memory::map(&[region(u64::MAX - 0xfff, 0x4000)], vec![fd()]).is_err());
    }
}
