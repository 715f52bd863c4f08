//! A raw image, or a block device: guest byte n is file byte n.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::rc::Rc;

use io_uring::{opcode, squeue, types};

use crate::block::{Disk, Operation, Request, SECTOR};
use crate::chain;
use crate::uring::Uring;

/// Alignment of bounce buffers, enough for any device's direct I/O.
const BOUNCE_ALIGNMENT: usize = 4096;

/// Size of the bounce buffer: a guest must not make us hold more of its memory than this.
const BOUNCE_SIZE: usize = 256 * 1024;

/// Longest transfer that the page cache may serve while it is submitted; a thread of the kernel copies longer ones.
const INLINE: u64 = 1 << 20;

/// Longest read that is looked for in the page cache by a system call of its own, which then costs less than the ring.
const CACHED: u64 = 16 << 10;

/// A file or block device.
pub struct RawDisk {
    uring: Rc<Uring>,
    file: Rc<File>,
    fixed: types::Fixed,
    size: u64,
    /// What direct I/O asks of addresses and of lengths; 1 and 1 for buffered.
    memory_alignment: usize,
    offset_alignment: u64,
    /// Requests that wait for the bounce buffer, and whether a task serves them.
    bounces: Rc<RefCell<VecDeque<Request>>>,
    bouncing: Rc<Cell<bool>>,
}

impl RawDisk {
    /// Serve `file`; past the page cache if `direct` and its file system can, in units of a sector.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(uring: &Rc<Uring>, file: File, direct: bool) -> io::Result<RawDisk> {
        let size = file_size(&file)? / SECTOR * SECTOR;
        let alignment = if direct { direct_alignment(file.as_fd()) } else { None };
        set_direct(file.as_fd(), alignment.is_some())?;
        let (memory_alignment, offset_alignment) = alignment.unwrap_or((1, 1));
        let fixed = uring.register_fd(file.as_fd())?;
        Ok(RawDisk {
            uring: uring.clone(),
            file: Rc::new(file),
            fixed,
            size,
            memory_alignment,
            offset_alignment,
            bounces: Rc::default(),
            bouncing: Rc::default(),
        })
    }

    fn aligned(&self, iovecs: &[libc::iovec]) -> bool {
        let (memory, length) = (self.memory_alignment - 1, self.offset_alignment as usize - 1);
        iovecs.iter().all(|iovec| iovec.iov_base as usize & memory == 0 && iovec.iov_len & length == 0)
    }

    /// Through an aligned buffer, for a guest whose own is not. Such guests exist (small reads of boot code), but
    /// are not the fast path: one task and one small buffer serve them all, in order.
    fn bounce(&self, uring: &Rc<Uring>, request: Request) {
        self.bounces.borrow_mut().push_back(request);
        if self.bouncing.replace(true) {
            return;
        }
        let (ring, file) = (uring.clone(), self.file.clone());
        let (bounces, bouncing) = (self.bounces.clone(), self.bouncing.clone());
        uring.tasks.spawn_local(async move {
            let buffer = Aligned::new(BOUNCE_SIZE);
            loop {
                let Some(request) = bounces.borrow_mut().pop_front() else { break };
                let result = match &buffer {
                    Some(buffer) => bounced(&ring, &file, buffer, &request).await,
                    None => -libc::ENOMEM,
                };
                ring.post(request.token, result);
            }
            bouncing.set(false);
        });
    }

    /// Whether the page cache has all that is read, and it is there now.
    fn read_cached(&self, request: &Request, iovecs: &[libc::iovec]) -> bool {
        let (fd, count) = (self.file.as_raw_fd(), iovecs.len() as libc::c_int);
        let offset = request.offset as libc::off_t;
        // SAFETY: who submits the request vouches for the buffers. The kernel never waits here.
        let read = unsafe { libc::preadv2(fd, iovecs.as_ptr(), count, offset, libc::RWF_NOWAIT) };
        u64::try_from(read) == Ok(request.length)
    }

    fn zero(&self, mode: libc::c_int, request: &Request) -> squeue::Entry {
        opcode::Fallocate::new(self.fixed, request.length).offset(request.offset).mode(mode).build()
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    unsafe fn submit(&self, uring: &Rc<Uring>, request: &Request) -> usize {
        let moves = matches!(request.operation, Operation::Read | Operation::Write);
        // SAFETY: the caller vouches for the buffers.
        let iovecs = unsafe {
            if moves { std::slice::from_raw_parts(request.iovecs, request.iovec_count) } else { &[] }
        };
        if moves && !self.aligned(iovecs) {
            self.bounce(uring, *request);
            return 1;
        }
        let buffered = self.offset_alignment == 1;
        if buffered
            && request.operation == Operation::Read
            && request.length <= CACHED
            && self.read_cached(request, iovecs)
        {
            uring.post(request.token, request.length as i32);
            return 1;
        }
        let sqe = match (request.operation, iovecs) {
            // A single buffer needs no vector to be copied in.
            (Operation::Read, [one]) if one.iov_len <= u32::MAX as usize => {
                opcode::Read::new(self.fixed, one.iov_base.cast(), one.iov_len as u32)
                    .offset(request.offset)
                    .build()
            }
            (Operation::Write, [one]) if one.iov_len <= u32::MAX as usize => {
                opcode::Write::new(self.fixed, one.iov_base.cast(), one.iov_len as u32)
                    .offset(request.offset)
                    .build()
            }
            (Operation::Read, many) => opcode::Readv::new(self.fixed, many.as_ptr(), many.len() as u32)
                .offset(request.offset)
                .build(),
            (Operation::Write, many) => opcode::Writev::new(self.fixed, many.as_ptr(), many.len() as u32)
                .offset(request.offset)
                .build(),
            (Operation::Flush, _) => {
                opcode::Fsync::new(self.fixed).flags(types::FsyncFlags::DATASYNC).build()
            }
            // A range that was punched reads as zeroes, so a discard and a write-zeroes that may unmap are one.
            (Operation::Discard | Operation::WriteZeroes { unmap: true }, _) => {
                self.zero(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, request)
            }
            (Operation::WriteZeroes { unmap: false }, _) => {
                self.zero(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, request)
            }
        };
        let sqe = if buffered && request.length > INLINE { sqe.flags(squeue::Flags::ASYNC) } else { sqe };
        // SAFETY: the caller vouches for the buffers; the file is registered.
        unsafe { uring.push(sqe.user_data(request.token)) };
        1
    }
}

impl Drop for RawDisk {
    fn drop(&mut self) {
        // The slot is lost if this fails, which it can only for a ring that is broken.
        let _ = self.uring.unregister_fd(self.fixed);
    }
}

/// Move `request` piece by piece through `buffer`.
async fn bounced(uring: &Uring, file: &File, buffer: &Aligned, request: &Request) -> i32 {
    let fd = types::Fd(file.as_raw_fd());
    // SAFETY: the submitter keeps the iovecs valid until the completion is posted.
    let mut rest = unsafe { std::slice::from_raw_parts(request.iovecs, request.iovec_count) }.to_vec();
    let mut done = 0;
    while done < request.length {
        let part = (request.length - done).min(BOUNCE_SIZE as u64) as usize;
        let (pointer, offset) = (buffer.pointer(), request.offset + done);
        let result = if request.operation == Operation::Read {
            let read = opcode::Read::new(fd, pointer, part as u32).offset(offset).build();
            // SAFETY: `buffer` has room for `part` and outlives the operation.
            let result = unsafe { uring.op(read) }.await;
            // SAFETY: at most `part` bytes, which are initialised: `Aligned` starts zeroed.
            let bytes = unsafe { std::slice::from_raw_parts(pointer, result.max(0) as usize) };
            chain::write_front(&rest, bytes);
            result
        } else {
            // SAFETY: as above; nothing else uses the buffer meanwhile.
            chain::read_front(&rest, unsafe { std::slice::from_raw_parts_mut(pointer, part) });
            // SAFETY: as above.
            unsafe { uring.op(opcode::Write::new(fd, pointer, part as u32).offset(offset).build()) }.await
        };
        if result <= 0 {
            return if done > 0 { done as i32 } else { result };
        }
        chain::skip_front(&mut rest, result as usize);
        done += result as u64;
    }
    done as i32
}

/// Memory for direct I/O.
pub(super) struct Aligned {
    pointer: NonNull<u8>,
    layout: Layout,
}

impl Aligned {
    /// `size` bytes, not 0, all zero; `None` if there are none left.
    pub fn new(size: usize) -> Option<Aligned> {
        let layout = Layout::from_size_align(size, BOUNCE_ALIGNMENT).ok()?;
        // SAFETY: the size is not 0.
        let pointer = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Aligned { pointer, layout })
    }

    /// Where they are.
    pub fn pointer(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { dealloc(self.pointer.as_ptr(), self.layout) };
    }
}

/// Bytes of a file or block device.
///
/// # Errors
/// What the kernel says.
pub fn file_size(file: &File) -> io::Result<u64> {
    // SAFETY: passes no pointer. Works for block devices, whose metadata has no length; nobody uses the position.
    let size = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) };
    if size < 0 { Err(io::Error::last_os_error()) } else { Ok(size as u64) }
}

/// Alignment of addresses and of offsets for direct I/O (statx, Linux 6.1); `None` if the file cannot do it, or
/// only in units larger than a sector, in which guests may write.
pub fn direct_alignment(file: BorrowedFd<'_>) -> Option<(usize, u64)> {
    // SAFETY: all zeroes is a valid statx; the path is a C string.
    let (result, stat) = unsafe {
        let mut stat: libc::statx = std::mem::zeroed();
        let flags = libc::AT_EMPTY_PATH;
        (libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_DIOALIGN, &mut stat), stat)
    };
    if result < 0 || stat.stx_mask & libc::STATX_DIOALIGN == 0 {
        // An older kernel: what every device with 512 byte sectors takes. With others writes would fail.
        return set_direct(file, true).is_ok().then_some((512, SECTOR));
    }
    let (memory, offset) = (stat.stx_dio_mem_align as usize, u64::from(stat.stx_dio_offset_align));
    (memory > 0 && offset > 0 && offset <= SECTOR && set_direct(file, true).is_ok())
        .then_some((memory, offset))
}

/// Set or clear O_DIRECT, whatever the file was opened with.
///
/// # Errors
/// What the kernel says.
pub fn set_direct(file: BorrowedFd<'_>, direct: bool) -> io::Result<()> {
    // SAFETY: passes no pointer.
    unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        let wanted = if direct { flags | libc::O_DIRECT } else { flags & !libc::O_DIRECT };
        if flags < 0 || (wanted != flags && libc::fcntl(file.as_raw_fd(), libc::F_SETFL, wanted) < 0) {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Read from the beginning: results that are there at once, and those that come later.
    fn read(disk: &RawDisk, uring: &Rc<Uring>, bytes: &mut [u8]) -> (Vec<i32>, Vec<i32>) {
        let iovec = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let request = Request {
            operation: Operation::Read,
            offset: 0,
            length: bytes.len() as u64,
            iovecs: &raw const iovec,
            iovec_count: 1,
            token: 7,
        };
        // SAFETY: the buffer and its vector outlive the request, which has ended when this returns.
        assert_eq!(unsafe { disk.submit(uring, &request) }, 1);
        let (mut at_once, mut later) = (Vec::new(), Vec::new());
        uring.reap_posted(|_, result, _| at_once.push(result));
        while at_once.len() + later.len() < 1 {
            uring.submit_and_wait(None).unwrap();
            uring.reap(|_, result, _| later.push(result));
        }
        (at_once, later)
    }

    #[test]
    fn what_the_page_cache_has_is_read_at_once_and_the_rest_by_the_ring() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[5; 32 << 10]).unwrap();
        let uring = Rc::new(Uring::new(8).unwrap());
        let disk = RawDisk::open(&uring, file.try_clone().unwrap(), false).unwrap();
        let mut bytes = vec![0; CACHED as usize];
        assert_eq!(read(&disk, &uring, &mut bytes), (vec![CACHED as i32], vec![]));
        assert!(bytes.iter().all(|byte| *byte == 5));
        let mut longer = vec![0; CACHED as usize + 512];
        assert_eq!(read(&disk, &uring, &mut longer), (vec![], vec![CACHED as i32 + 512]));
        // The page cache cannot have what is not in the file.
        file.set_len(1024).unwrap();
        assert_eq!(read(&disk, &uring, &mut bytes), (vec![], vec![1024]));
    }
}
