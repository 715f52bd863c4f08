//! Guest memory: one memfd, mapped here and shared with the backend.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::MetadataExt;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use vhost::VhostUserMemoryRegionInfo;

/// One region of guest memory, starting at guest physical address [`Memory::start`].
///
/// Addresses are checked against the region and panic outside it: a test that wants a backend to use a wrong
/// address writes that address into a ring, it does not dereference it here.
pub struct Memory {
    file: File,
    base: *mut u8,
    len: u64,
    start: u64,
    /// Guest physical address of the first byte that [`Memory::alloc`] has not given out.
    free: AtomicU64,
}

// SAFETY: the mapping lives as long as the value and every access is volatile or atomic through raw pointers.
unsafe impl Send for Memory {}
// SAFETY: as above; two threads that race on one byte get what a guest's CPUs would.
unsafe impl Sync for Memory {}

impl Memory {
    /// Create `len` bytes (rounded up to whole pages) of zeroed memory at guest physical address `start`.
    pub fn new(start: u64, len: u64) -> io::Result<Self> {
        let len = len.next_multiple_of(4096);
        // SAFETY: the name is a NUL-terminated constant.
        let fd = unsafe { libc::memfd_create(c"guest-memory".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fd was just returned and belongs to nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len)?;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { file, base: base.cast(), len, start, free: AtomicU64::new(start) })
    }

    /// Guest physical address of the first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Guest physical address just behind the last byte.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Take `len` bytes, aligned to `align` (a power of two); they are never given back. Panics when full.
    pub fn alloc(&self, len: u64, align: u64) -> u64 {
        let from = self.free.load(Ordering::Relaxed).next_multiple_of(align);
        assert!(
            from + len <= self.end(),
            "guest memory is full: {len} bytes at {from:#x}, end {:#x}",
            self.end()
        );
        self.free.store(from + len, Ordering::Relaxed);
        from
    }

    /// The address in this process of `len` bytes at guest physical address `gpa`; panics outside the region.
    pub fn ptr(&self, gpa: u64, len: u64) -> *mut u8 {
        let offset = gpa.checked_sub(self.start).expect("address below guest memory");
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at {gpa:#x}: outside"
        );
        // SAFETY: offset + len is inside the mapping, checked above.
        unsafe { self.base.add(offset as usize) }
    }

    /// The address in this process, as the vhost-user ring messages want it; any address, inside or not.
    pub fn user_address(&self, gpa: u64) -> u64 {
        (self.base as u64).wrapping_add(gpa.wrapping_sub(self.start))
    }

    /// Store a value, unordered.
    pub fn put<T: Copy>(&self, gpa: u64, value: T) {
        let at = self.ptr(gpa, size_of::<T>() as u64).cast::<T>();
        // SAFETY: inside the mapping; a guest may store anywhere.
        unsafe { if at.is_aligned() { at.write_volatile(value) } else { at.write_unaligned(value) } }
    }

    /// Load a value, unordered. `T` must be plain integers.
    pub fn get<T: Copy>(&self, gpa: u64) -> T {
        let at = self.ptr(gpa, size_of::<T>() as u64).cast::<T>();
        // SAFETY: inside the mapping; T is plain data by contract.
        unsafe { if at.is_aligned() { at.read_volatile() } else { at.read_unaligned() } }
    }

    /// Copy bytes into guest memory.
    pub fn put_bytes(&self, gpa: u64, bytes: &[u8]) {
        let to = self.ptr(gpa, bytes.len() as u64);
        // SAFETY: inside the mapping; a caller's slice cannot overlap it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Copy bytes out of guest memory.
    pub fn get_bytes(&self, gpa: u64, bytes: &mut [u8]) {
        let from = self.ptr(gpa, bytes.len() as u64);
        // SAFETY: inside the mapping; a caller's slice cannot overlap it.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// The region as SET_MEM_TABLE describes it; a hostile test edits the fields.
    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: self.start,
            memory_size: self.len,
            userspace_addr: self.base as u64,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// Bytes that the host holds of it.
    pub fn held(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// Cut the file below the mapping to `len` bytes: what lies behind raises SIGBUS in every process that maps it.
    pub fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; no pointer outlives the value.
        unsafe { libc::munmap(self.base.cast(), self.len as usize) };
    }
}
