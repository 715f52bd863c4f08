//! `nagaya._core.HeapImage`: the objects of a Python process in a sealed file, which its forks share.
//!
//! A fork of Python copies each page that it touches, because an object's reference count is in the object, and many of
//! these copies are soon the same as before. The kernel does not take back a copy of anonymous memory, but of a private
//! mapping of a file it does (MADV_DONTNEED): the next access finds the file's page.

use std::fs::{self, File};
use std::io::{self, Read};
use std::mem::{self, ManuallyDrop};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::ptr;
use std::slice;

use pyo3::prelude::*;

const PAGE: usize = 4096;
const MAX_REGIONS: usize = 256; // a Python process has about ten
const MAX_MAPS: u64 = 1 << 20; // a line takes about 100 bytes, and a process may have 65,530 mappings: then it keeps its copies

#[pyclass(module = "nagaya._core")]
pub struct HeapImage {
    inode: u64,
    view: Option<View>,
}

#[pymethods]
impl HeapImage {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self::take()?)
    }

    /// The GIL is kept, which all writers of Python's objects need.
    fn restore(&mut self, maps: RawFd) -> PyResult<usize> {
        let Some(view) = self.view.take() else { return Ok(0) };
        // What was freed since the image may be nobody's memory now, or another's: only what still is of the file counts.
        let mapped = read_all(maps)?;
        let regions: Vec<Region> =
            mapped.lines().filter_map(|line| of_file(line, self.inode, view.len)).collect();
        let base = view.address as usize;
        Ok(regions.iter().map(|region| region.restore(base)).sum::<io::Result<usize>>()?)
    }
}

impl HeapImage {
    fn take() -> io::Result<Self> {
        if fs::read_dir("/proc/self/task")?.count() != 1 {
            return Err(io::Error::other("an image is of a process with one thread"));
        }
        // Between here and the last mapping nothing is allocated or freed: the regions would be others.
        let mut regions = Vec::with_capacity(MAX_REGIONS);
        let maps = fs::read_to_string("/proc/self/maps")?;
        let size = find_regions(&maps, &mut regions);
        let file = memory_file(size)?;
        with_signals_blocked(|| regions.iter().try_for_each(|region| region.move_to(&file)))?;
        drop(maps);
        seal(&file)?;
        let view = Some(View::new(&file, size)?);
        Ok(Self { inode: file.metadata()?.ino(), view })
    }
}

/// A range of memory and its place in the file.
struct Region {
    start: usize,
    len: usize,
    offset: usize,
}

impl Region {
    /// Into the file, of which it is a private mapping from then on. What is read here does not change.
    fn move_to(&self, file: &File) -> io::Result<()> {
        // SAFETY: it is mapped, by /proc/self/maps, and nobody writes to it meanwhile.
        let bytes = unsafe { slice::from_raw_parts(self.start as *const u8, self.len) };
        for (index, page) in bytes.chunks(PAGE).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                file.write_all_at(page, (self.offset + index * PAGE) as u64)?; // the rest stays a hole
            }
        }
        map(self.start, self.len, libc::PROT_READ | libc::PROT_WRITE, file, self.offset)?;
        // A fork gets what is mapped; what is not costs it a fault. Kernels before 5.14 do not know this.
        // SAFETY: it reads.
        unsafe { libc::madvise(self.start as *mut _, self.len, libc::MADV_POPULATE_READ) };
        Ok(())
    }

    /// Give back what is as in the file, whose mapping is at `view`; how many bytes. It writes to the stack alone.
    fn restore(&self, view: usize) -> io::Result<usize> {
        let mut given = 0;
        let mut equal = 0;
        for at in (0..=self.len).step_by(PAGE) {
            if at < self.len && same_page(self.start + at, view + self.offset + at) {
                equal += PAGE;
            } else if equal > 0 {
                let first = (self.start + at - equal) as *mut libc::c_void;
                // SAFETY: the file has the same content at this place, so nobody sees a change.
                check(unsafe { libc::madvise(first, equal, libc::MADV_DONTNEED) })?;
                given += equal;
                equal = 0;
            }
        }
        Ok(given)
    }
}

/// Fill `regions` with anonymous mappings (proc_pid_maps(5)); the bytes of all.
///
/// Left out is what a thread writes without the GIL: malloc's heap, where its locks are, the data of libraries, stacks, and
/// a thread's own storage, to which the kernel writes too (rseq(2)).
fn find_regions(maps: &str, regions: &mut Vec<Region>) -> usize {
    // SAFETY: no preconditions.
    let own = unsafe { libc::__errno_location() } as usize;
    let mut size = 0;
    for (mut start, end) in maps.lines().filter_map(anonymous) {
        start = start.max(zeroes_end(start)); // the kernel makes one mapping of those and what follows
        if start < end && !(start..end).contains(&own) && regions.len() < MAX_REGIONS {
            regions.push(Region { start, len: end - start, offset: size });
            size += end - start;
        }
    }
    size
}

/// A mapping that is ours to write and of the file with this inode and size.
fn of_file(line: &str, inode: u64, size: usize) -> Option<Region> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [range, "rw-p", offset, _device, number, name, ..] = fields[..] else { return None };
    if name != "/memfd:heap-image" || number.parse() != Ok(inode) {
        return None;
    }
    let (start, end) = addresses(range)?;
    let (offset, len) = (usize::from_str_radix(offset, 16).ok()?, end.checked_sub(start)?);
    (offset.checked_add(len)? <= size).then_some(Region { start, len, offset })
}

/// Start and end of a mapping that is ours to write and of no file.
fn anonymous(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let range = fields.next()?;
    if fields.next()? != "rw-p" || fields.nth(3).is_some() {
        return None;
    }
    addresses(range)
}

fn addresses(range: &str) -> Option<(usize, usize)> {
    let (start, end) = range.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

/// Without the calls that ask for the size first, which a jail refuses.
fn read_all(fd: RawFd) -> io::Result<String> {
    // SAFETY: the caller's, and not closed here.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    let mut text = String::new();
    (&*file).take(MAX_MAPS).read_to_string(&mut text)?;
    Ok(text)
}

/// Where the zeroes end that a library has at `start`, behind its data in the file (.bss); 0 if there are none.
fn zeroes_end(start: usize) -> usize {
    let mut search = (start, 0);
    // SAFETY: `in_segment` gets the pointer to `search`, and nothing keeps it.
    unsafe { libc::dl_iterate_phdr(Some(in_segment), (&raw mut search).cast()) };
    search.1
}

/// The end, in whole pages, of the segment that has the address.
extern "C" fn in_segment(library: *mut libc::dl_phdr_info, _: usize, search: *mut libc::c_void) -> i32 {
    // SAFETY: by dl_iterate_phdr(3) and its caller; headers are mapped while the library is.
    let (library, search) = unsafe { (&*library, &mut *search.cast::<(usize, usize)>()) };
    // SAFETY: the same.
    let headers = unsafe { slice::from_raw_parts(library.dlpi_phdr, library.dlpi_phnum.into()) };
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD) {
        let first = (library.dlpi_addr + header.p_vaddr) as usize;
        let end = (first + header.p_memsz as usize).next_multiple_of(PAGE);
        if (first..end).contains(&search.0) {
            search.1 = end;
        }
    }
    0
}

fn same_page(one: usize, other: usize) -> bool {
    // SAFETY: both are pages of mappings that live.
    unsafe { libc::memcmp(one as *const _, other as *const _, PAGE) == 0 }
}

fn memory_file(size: usize) -> io::Result<File> {
    // SAFETY: a literal that ends with a zero.
    let fd =
        unsafe { libc::memfd_create(c"heap-image".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    check(fd)?;
    // SAFETY: it is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size as u64)?;
    Ok(file)
}

/// Nobody may ever change what the mappings show, nor make it shorter.
fn seal(file: &File) -> io::Result<()> {
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })
}

/// A private mapping of the file, in place of what is `at` that address; 0: anywhere.
fn map(at: usize, len: usize, rights: i32, file: &File, offset: usize) -> io::Result<*mut libc::c_void> {
    let flags = libc::MAP_PRIVATE | if at == 0 { 0 } else { libc::MAP_FIXED };
    // SAFETY: what it replaces has the same content, and the same rights or more.
    let address =
        unsafe { libc::mmap(at as *mut _, len, rights, flags, file.as_raw_fd(), offset as libc::off_t) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address) }
}

/// A handler would write to memory that is just being copied.
fn with_signals_blocked<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: both sets are written before they are read.
    unsafe {
        let (mut all, mut before) = (mem::zeroed(), mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let done = work();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        done
    }
}

/// The whole file, to compare with.
struct View {
    address: *mut libc::c_void,
    len: usize,
}

// SAFETY: memory that is only read.
unsafe impl Send for View {}
// SAFETY: the same.
unsafe impl Sync for View {}

impl View {
    fn new(file: &File, len: usize) -> io::Result<Self> {
        Ok(Self { address: map(0, len, libc::PROT_READ, file, 0)?, len })
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing refers into it.
        unsafe { libc::munmap(self.address, self.len) };
    }
}

fn check(result: i32) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
