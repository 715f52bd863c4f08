//! imago's `Storage` on the worker's io_uring: one open file of a disk, never a path.

use std::cell::OnceCell;
use std::fmt::{self, Debug, Display, Formatter};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::thread::{self, ThreadId};

use imago::Storage;
use imago::io_buffers::{IoBuffer, IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{opcode, squeue};

use super::qcow2::tables::Tables;
use super::raw::{direct_alignment, set_direct};
use crate::chain::skip_front;
use crate::page::Shared as Page;
use crate::uring::Uring;

/// Alignment of memory, offsets and lengths that O_DIRECT needs. Files that ask for more are opened buffered.
pub const DIRECT_ALIGN: usize = 512;

/// `UIO_MAXIOV`: the kernel refuses more buffers in one request.
const MAX_IOVECS: usize = 1024;

/// Zeroes that are written at once where a file system cannot deallocate.
const ZEROES: usize = 1 << 20;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// An open image file. It may be used and dropped only in the thread that made it.
pub struct FileStorage {
    /// Position in the chain of layers, 0 on top.
    pub layer: usize,
    bound: ThreadBound<Bound>,
    helper: CommonStorageHelper,
}

struct Bound {
    file: Rc<File>,
    tables: Option<Rc<Tables>>,
}

struct File {
    uring: Rc<Uring>,
    fd: OwnedFd,
    fixed: Fixed,
    direct: bool,
    page: OnceCell<Rc<Page>>,
}

impl FileStorage {
    /// Takes over `fd`, layer number `layer` of a disk; past the page cache if `direct`, and if sectors can be.
    pub fn new(uring: &Rc<Uring>, fd: OwnedFd, layer: usize, direct: bool) -> io::Result<FileStorage> {
        let alignment = if direct { direct_alignment(fd.as_fd()) } else { None };
        // Direct I/O is not to be had where the device has blocks larger than a guest's sector.
        let direct = alignment.is_some_and(|(memory, offset)| memory.max(offset as usize) <= DIRECT_ALIGN);
        set_direct(fd.as_fd(), direct)?;
        let fixed = uring.register_fd(fd.as_fd())?;
        let file = Rc::new(File { uring: uring.clone(), fd, fixed, direct, page: OnceCell::new() });
        Ok(FileStorage::of(layer, file, None))
    }

    /// The same file once more; the top layer of an overlay that is written goes to imago with these tables.
    pub fn share(&self, tables: Option<Rc<Tables>>) -> FileStorage {
        FileStorage::of(self.layer, self.bound.get().file.clone(), tables)
    }

    fn of(layer: usize, file: Rc<File>, tables: Option<Rc<Tables>>) -> FileStorage {
        let bound = ThreadBound::new(Bound { file, tables });
        FileStorage { layer, bound, helper: CommonStorageHelper::default() }
    }

    /// Have `page` remember a sync that failed: no other succeeds until the disk is opened anew.
    pub fn remember_failures(&self, page: &Rc<Page>) {
        // Set once, by the disk that opened the file.
        let _ = self.file().page.set(page.clone());
    }

    fn file(&self) -> &File {
        &self.bound.get().file
    }

    /// The registered file, for SQEs that go past imago.
    pub fn fixed(&self) -> Fixed {
        self.file().fixed
    }

    /// Alignment of the memory, offset and length of every request.
    pub fn align(&self) -> usize {
        if self.file().direct { DIRECT_ALIGN } else { 1 }
    }

    /// Reads into `iovecs`; what is behind the end of the file reads as zeroes.
    ///
    /// # Safety
    /// The buffers stay valid until the future is ready or dropped, and it is not forgotten.
    pub async unsafe fn read(&self, mut iovecs: Vec<libc::iovec>, mut offset: u64) -> io::Result<()> {
        let file = self.file();
        while !iovecs.is_empty() {
            let count = iovecs.len().min(MAX_IOVECS) as u32;
            let sqe = opcode::Readv::new(file.fixed, iovecs.as_ptr(), count).offset(offset).build();
            // SAFETY: the caller vouches for the buffers; the list lives across the await.
            let read = check(unsafe { file.uring.op(sqe) }.await)?;
            // A direct read that ends inside a block has met the end of the file.
            if read == 0 || (file.direct && !read.is_multiple_of(DIRECT_ALIGN)) {
                skip_front(&mut iovecs, read);
                // SAFETY: as above; the kernel is done with the buffers.
                iovecs
                    .iter()
                    .for_each(|iov| unsafe { iov.iov_base.cast::<u8>().write_bytes(0, iov.iov_len) });
                return Ok(());
            }
            skip_front(&mut iovecs, read);
            offset += read as u64;
        }
        Ok(())
    }

    /// Writes all of `iovecs`.
    ///
    /// # Safety
    /// As for [`read`](Self::read).
    pub async unsafe fn write(&self, mut iovecs: Vec<libc::iovec>, mut offset: u64) -> io::Result<()> {
        let file = self.file();
        while !iovecs.is_empty() {
            #[cfg(test)]
            fuse::burn().await?;
            let count = iovecs.len().min(MAX_IOVECS) as u32;
            #[cfg(test)]
            let recorded = fuse::begin(offset, fuse::bytes(&iovecs));
            let sqe = opcode::Writev::new(file.fixed, iovecs.as_ptr(), count).offset(offset).build();
            // SAFETY: as in `read`.
            let written = check(unsafe { file.uring.op(sqe) }.await)?;
            #[cfg(test)]
            fuse::end(recorded);
            if written == 0 {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            skip_front(&mut iovecs, written);
            offset += written as u64;
        }
        Ok(())
    }

    /// Makes a range read as zeroes; gives its space back if `unmap`.
    pub async fn zero(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let mode = if unmap { PUNCH } else { libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE };
        let file = self.file();
        let sqe = opcode::Fallocate::new(file.fixed, length).offset(offset).mode(mode).build();
        #[cfg(test)]
        let recorded = fuse::begin(offset, vec![0; length as usize]);
        let result = check(self.run(sqe).await);
        #[cfg(test)]
        fuse::end(recorded);
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.write_zeroes_as_data(offset, length).await
            }
            result => result.map(drop),
        }
    }

    /// fdatasync.
    pub fn sync_sqe(&self) -> squeue::Entry {
        opcode::Fsync::new(self.file().fixed).flags(FsyncFlags::DATASYNC).build()
    }

    async fn write_table(&self, tables: &Tables, table: &[u8], offset: u64) -> io::Result<()> {
        tables.admit(offset, self.sync()).await?;
        let range = tables.changed(offset, table);
        if !range.is_empty() {
            let part = &table[range.clone()];
            let iovecs = vec![iovec(part.as_ptr().cast_mut(), part.len())];
            // SAFETY: imago's caller holds the table across this await.
            let result = unsafe { self.write(iovecs, offset + range.start as u64) }.await;
            result.inspect_err(|_| tables.forget(offset))?;
        }
        tables.remember(offset, table);
        Ok(())
    }

    async fn write_zeroes_as_data(&self, offset: u64, length: u64) -> io::Result<()> {
        let size = ZEROES.min(usize::try_from(length).unwrap_or(ZEROES));
        let mut zeroes = IoBuffer::new(size, DIRECT_ALIGN)?;
        zeroes.as_mut().into_slice().fill(0);
        let mut done = 0;
        while done < length {
            let chunk = (length - done).min(size as u64);
            let iovec =
                libc::iovec { iov_base: zeroes.as_ref().as_ptr().cast_mut().cast(), iov_len: chunk as usize };
            // SAFETY: `zeroes` outlives the await.
            unsafe { self.write(vec![iovec], offset + done) }.await?;
            done += chunk;
        }
        Ok(())
    }

    /// For SQEs that name no memory.
    async fn run(&self, sqe: squeue::Entry) -> i32 {
        // SAFETY: the callers pass fallocate and fsync, which name no memory; the file outlives the future.
        unsafe { self.file().uring.op(sqe) }.await
    }
}

impl Storage for FileStorage {
    fn mem_align(&self) -> usize {
        self.align()
    }

    fn req_align(&self) -> usize {
        self.align()
    }

    fn zero_align(&self) -> usize {
        1
    }

    fn discard_align(&self) -> usize {
        1
    }

    fn size(&self) -> io::Result<u64> {
        Ok(stat(self.file().fd.as_raw_fd())?.st_size as u64)
    }

    async unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut buffers = bufv.into_inner();
        let iovecs = buffers.iter_mut().map(|b| iovec(b.as_mut_ptr(), b.len())).collect();
        // SAFETY: imago's caller holds the buffers across this await.
        unsafe { self.read(iovecs, offset) }.await?;
        if let (Some(tables), [table]) = (&self.bound.get().tables, &buffers[..])
            && tables.covers(offset, table.len())
        {
            tables.remember(offset, table);
        }
        Ok(())
    }

    async unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        let buffers = bufv.into_inner();
        if let (Some(tables), [table]) = (&self.bound.get().tables, &buffers[..])
            && tables.covers(offset, table.len())
        {
            return self.write_table(tables, table, offset).await;
        }
        let iovecs = buffers.iter().map(|b| iovec(b.as_ptr().cast_mut(), b.len())).collect();
        // SAFETY: imago's caller holds the buffers across this await.
        unsafe { self.write(iovecs, offset) }.await
    }

    async unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.zero(offset, length, true).await
    }

    async unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.zero(offset, length, true).await
    }

    /// Nothing is buffered here.
    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        let page = self.file().page.get();
        if let Some(page) = page {
            page.begin_sync()?;
        }
        #[cfg(test)]
        let recorded = fuse::begin(0, Vec::new());
        let result = self.run(self.sync_sqe()).await;
        if let Some(page) = page {
            page.end_sync(result);
        }
        check(result)?;
        #[cfg(test)]
        fuse::end_sync(recorded);
        Ok(())
    }

    async unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}

impl Debug for FileStorage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}", self.layer)
    }
}

impl Display for FileStorage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Debug::fmt(self, f)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // Fails only for an index that is not ours; the fd itself closes anyhow.
        let _ = self.uring.unregister_fd(self.fixed);
    }
}

/// A value that imago must believe to be `Send` and `Sync`, but that never leaves its thread.
struct ThreadBound<T> {
    value: ManuallyDrop<T>,
    thread: ThreadId,
}

// SAFETY: the value can be reached, and is dropped, only in the thread that made it: `get` panics elsewhere, `drop` leaks.
unsafe impl<T> Send for ThreadBound<T> {}
// SAFETY: as for `Send`.
unsafe impl<T> Sync for ThreadBound<T> {}

impl<T> ThreadBound<T> {
    fn new(value: T) -> Self {
        ThreadBound { value: ManuallyDrop::new(value), thread: thread::current().id() }
    }

    fn get(&self) -> &T {
        assert!(thread::current().id() == self.thread, "a disk is used outside of its worker's thread");
        &self.value
    }
}

impl<T> Drop for ThreadBound<T> {
    fn drop(&mut self) {
        if thread::current().id() == self.thread {
            // SAFETY: dropped once, here, in its own thread.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

/// A result of the kernel: a count or a negated errno.
pub fn check(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// A buffer for the kernel.
pub fn iovec(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast(), iov_len: len }
}

fn stat(fd: RawFd) -> io::Result<libc::stat> {
    // SAFETY: `stat` is a plain structure that the call fills.
    let mut status = unsafe { std::mem::zeroed::<libc::stat>() };
    // SAFETY: `status` outlives the call.
    if unsafe { libc::fstat(fd, &mut status) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(status)
}

/// What tests do to a disk's writes, and what they write down of them.
#[cfg(test)]
#[path = "storage/fuse.rs"]
pub mod fuse;
