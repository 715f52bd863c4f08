//! A raw image, or a block device: guest byte n is file byte n.

use std::alloc::{Layout, alloc, dealloc};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::rc::Rc;

use io_uring::{opcode, squeue, types};

use crate::block::{Disk, Operation, Request, SECTOR};
use crate::chain;
use crate::uring::Uring;

/// Alignment of bounce buffers, enough for any device's direct I/O.
const BOUNCE_ALIGNMENT: usize = 4096;

/// A file or block device.
pub struct RawDisk {
    uring: Rc<Uring>,
    file: Rc<File>,
    fixed: types::Fixed,
    size: u64,
    /// What direct I/O asks of addresses and of lengths; 1 and 1 for buffered.
    memory_alignment: usize,
    offset_alignment: u64,
}

impl RawDisk {
    /// Serve `file`; past the page cache if `direct` and its file system can, in units of a sector.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(uring: &Rc<Uring>, file: File, direct: bool) -> io::Result<RawDisk> {
        let size = file_size(&file)? / SECTOR * SECTOR;
        let alignment = if direct { direct_alignment(&file) } else { None };
        set_direct(&file, alignment.is_some())?;
        let (memory_alignment, offset_alignment) = alignment.unwrap_or((1, 1));
        let fixed = uring.register_fd(file.as_fd())?;
        Ok(RawDisk {
            uring: uring.clone(),
            file: Rc::new(file),
            fixed,
            size,
            memory_alignment,
            offset_alignment,
        })
    }

    fn aligned(&self, iovecs: &[libc::iovec]) -> bool {
        let (memory, length) = (self.memory_alignment - 1, self.offset_alignment as usize - 1);
        iovecs.iter().all(|iovec| iovec.iov_base as usize & memory == 0 && iovec.iov_len & length == 0)
    }

    /// Through an aligned buffer, for a guest whose own is not. Such guests exist (small writes of boot code), but
    /// are not the fast path.
    fn bounce(&self, uring: &Rc<Uring>, request: Request) {
        let (ring, file) = (uring.clone(), self.file.clone());
        uring.tasks.spawn_local(async move {
            let result = bounced(&ring, &file, &request).await;
            ring.post(request.token, result);
        });
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

async fn bounced(uring: &Uring, file: &File, request: &Request) -> i32 {
    let length = request.length as usize;
    let Some(buffer) = Aligned::new(length) else { return -libc::ENOMEM };
    let fd = types::Fd(file.as_raw_fd());
    // SAFETY: the submitter keeps the iovecs valid until the completion is posted.
    let mut iovecs = unsafe { std::slice::from_raw_parts(request.iovecs, request.iovec_count) }.to_vec();
    let size = length as u32;
    if request.operation == Operation::Read {
        // SAFETY: `buffer` lives until the operation is done: it is dropped after this future.
        let result =
            unsafe { uring.op(opcode::Read::new(fd, buffer.pointer(), size).offset(request.offset).build()) }
                .await;
        if result > 0 {
            // SAFETY: `result` bytes have been read into it.
            let bytes = unsafe { std::slice::from_raw_parts(buffer.pointer(), result as usize) };
            chain::write_front(&iovecs, bytes);
        }
        return result;
    }
    let mut done = 0;
    while let Some(iovec) = iovecs.first() {
        // SAFETY: a buffer of guest memory; together the buffers are as long as `buffer`.
        unsafe {
            std::ptr::copy_nonoverlapping(
                iovec.iov_base.cast::<u8>(),
                buffer.pointer().add(done),
                iovec.iov_len,
            );
        }
        done += iovec.iov_len;
        iovecs.remove(0);
    }
    // SAFETY: as above.
    unsafe { uring.op(opcode::Write::new(fd, buffer.pointer(), size).offset(request.offset).build()) }.await
}

/// Memory for direct I/O.
struct Aligned {
    pointer: NonNull<u8>,
    layout: Layout,
}

impl Aligned {
    fn new(length: usize) -> Option<Aligned> {
        let layout = Layout::from_size_align(length.max(1), BOUNCE_ALIGNMENT).ok()?;
        // SAFETY: the size is not 0.
        let pointer = NonNull::new(unsafe { alloc(layout) })?;
        Some(Aligned { pointer, layout })
    }

    fn pointer(&self) -> *mut u8 {
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
fn direct_alignment(file: &File) -> Option<(usize, u64)> {
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
fn set_direct(file: &File, direct: bool) -> io::Result<()> {
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
