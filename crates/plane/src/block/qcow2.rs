//! A disk of qcow2 layers, with imago for the metadata.
//!
//! - Fast path ([`Qcow2Disk::fast`]): where the cluster cache knows all of a request, the data goes between guest memory
//!   and the file by raw SQEs.
//! - Slow path ([`slow`]): a task per request, which asks imago.
//! - Allocation ([`allocate`]): one task, which gives clusters to writes.
//!
//! What a killed worker leaves behind: before a write to a new cluster is answered, its data has been written to the file,
//! and its mapping to a log in memory that outlives the worker ([`crate::page::MappingLog`]). The next worker brings
//! the log's mappings into the file ([`replay`]). What a host that stops leaves behind: every write that was flushed, of
//! others any part, and at worst clusters that nothing refers to.

mod allocate;
pub mod layout;
mod map;
mod plan;
mod replay;
mod slow;
pub mod tables;

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};
use io_uring::types::Fixed;
use io_uring::{opcode, squeue};

use self::allocate::Allocator;
use self::layout::Layout;
use self::map::{ClusterMap, Place};
use self::tables::Tables;
use super::storage::{FileStorage, iovec};
use super::{Disk, Operation, Request, SECTOR};
use crate::config::Format;
use crate::page::{MappingLog, Shared as Page};
use crate::uring::Uring;

/// Unit of the cache for a disk that is only read, whatever its cluster size.
const READ_ONLY_CLUSTER_BITS: u32 = 16;

/// An open image file and what is in it.
pub struct Layer {
    /// The file, opened for what it is used for.
    pub fd: OwnedFd,
    /// Its format, never guessed.
    pub format: Format,
}

/// A disk whose top layer is qcow2.
pub struct Qcow2Disk(Rc<Shared>);

/// What the tasks of a disk share.
struct Shared {
    uring: Rc<Uring>,
    image: FormatAccess<FileStorage>,
    /// The top layer's file, for what goes past imago.
    top: FileStorage,
    /// The layers' files, top first.
    files: Vec<Fixed>,
    /// For all memory, offsets and lengths.
    align: usize,
    size: u64,
    cluster_bits: u32,
    /// Of a disk that is writable.
    tables: Option<Rc<Tables>>,
    page: Option<Rc<Page>>,
    map: RefCell<ClusterMap>,
    allocator: Allocator,
    sync: squeue::Entry,
}

/// A part of a request that is contiguous in a file.
struct Run {
    layer: usize,
    offset: u64,
    length: u64,
}

impl Qcow2Disk {
    /// Opens `layers`, top first; only the top one is ever written, and only with a `page`, whose log remembers the mappings
    /// of writes that are not in the file. What a killed worker has left there is brought into the file first. Blocks.
    ///
    /// `direct` is for the top layer. Those below are shared by machines, and so is what the page cache holds of them.
    ///
    /// # Errors
    /// `InvalidData` for an image that is damaged or, with a `page`, not made by [`layout::create`].
    pub fn open(
        uring: &Rc<Uring>,
        layers: Vec<Layer>,
        page: Option<&Rc<Page>>,
        direct: bool,
    ) -> io::Result<Qcow2Disk> {
        if layers.first().is_none_or(|top| top.format != Format::Qcow2) {
            return Err(invalid("the top layer is not qcow2"));
        }
        let mut files = Vec::new();
        let (mut align, mut cluster_bits) = (1, READ_ONLY_CLUSTER_BITS);
        let (mut top, mut tables, mut below) = (None, None, None);
        for (index, layer) in layers.into_iter().enumerate().rev() {
            let mut file = FileStorage::new(uring, layer.fd, index, direct && index == 0)?;
            files.insert(0, file.fixed());
            align = align.max(file.align());
            top = Some(file.share(None));
            let page = page.filter(|_| index == 0);
            if let Some(page) = page {
                file.remember_failures(page);
                let layout = uring.block_on(verify(&file))??;
                cluster_bits = layout.cluster_bits;
                uring.block_on(replay::replay(&file, &layout, &page.mappings))??;
                let of_file = Rc::new(Tables::new(&layout));
                file = file.share(Some(of_file.clone()));
                tables = Some(of_file);
            }
            below = Some(uring.block_on(open_layer(file, layer.format, below, page.is_some()))??);
        }
        let (Some(image), Some(top)) = (below, top) else {
            return Err(invalid("a disk without layers"));
        };
        let size = image.size();
        if size == 0 || !size.is_multiple_of(SECTOR) || size > i64::MAX as u64 {
            return Err(invalid(&format!("a disk of {size} bytes: not a positive multiple of {SECTOR}")));
        }
        Ok(Qcow2Disk(Rc::new(Shared {
            uring: uring.clone(),
            image,
            files,
            align,
            size,
            cluster_bits,
            tables,
            page: page.cloned(),
            map: RefCell::new(ClusterMap::new(size.div_ceil(1 << cluster_bits))),
            allocator: Allocator::default(),
            sync: top.sync_sqe(),
            top,
        })))
    }

    /// Pushes SQEs for a request that the cache knows all of; returns how many, 0 if it does not.
    ///
    /// # Safety
    /// As for [`Disk::submit`].
    unsafe fn fast(&self, request: &Request) -> usize {
        let shared = &self.0;
        let write = request.operation == Operation::Write;
        // SAFETY: the caller vouches for the list.
        let iovecs = unsafe { std::slice::from_raw_parts(request.iovecs, request.iovec_count) };
        if !aligned(iovecs, shared.align) {
            return 0;
        }
        let map = shared.map.borrow();
        let Some(first) = shared.run(&map, request.offset, request.length, write) else { return 0 };
        if first.length == request.length {
            let sqe = shared.sqe(&first, iovecs, write);
            // SAFETY: the caller vouches for the list and the buffers until the completion.
            unsafe { shared.uring.push(sqe.user_data(request.token)) };
            return 1;
        }
        // Several runs: each must lie in one buffer, or a new list would have to live as long as the request.
        let mut check = Pieces::new(iovecs);
        let mut at = 0;
        while at < request.length {
            match shared.run(&map, request.offset + at, request.length - at, write) {
                Some(run) if check.take(run.length).is_some() => at += run.length,
                _ => return 0,
            }
        }
        let (mut pieces, mut at, mut count) = (Pieces::new(iovecs), 0, 0);
        while at < request.length {
            let run = shared.run(&map, request.offset + at, request.length - at, write);
            let run = run.expect("the map has not changed since the check");
            let piece = pieces.take(run.length).expect("the buffers have not changed since the check");
            let sqe = shared.sqe(&run, &[piece], write);
            // SAFETY: one buffer goes without a list, and the caller vouches for it until the completion.
            unsafe { shared.uring.push(sqe.user_data(request.token)) };
            at += run.length;
            count += 1;
        }
        count
    }
}

impl Disk for Qcow2Disk {
    fn size(&self) -> u64 {
        self.0.size
    }

    unsafe fn submit(&self, _uring: &Rc<Uring>, request: &Request) -> usize {
        #[cfg(test)]
        let recording = super::storage::fuse::recording();
        #[cfg(not(test))]
        let recording = false;
        let pushed = match request.operation {
            _ if recording => 0,
            // SAFETY: passed on from our caller.
            Operation::Read | Operation::Write => unsafe { self.fast(request) },
            Operation::Flush if self.0.is_flushed() => {
                // SAFETY: fsync names no memory, and the file is registered as long as the disk lives.
                unsafe { self.0.uring.push(self.0.sync.clone().user_data(request.token)) };
                1
            }
            Operation::Flush | Operation::Discard | Operation::WriteZeroes { .. } => 0,
        };
        if pushed > 0 {
            return pushed;
        }
        let (shared, request) = (self.0.clone(), *request);
        self.0.uring.tasks.spawn_local(async move {
            // SAFETY: our caller keeps the buffers until the completion that follows.
            let result = unsafe { slow::serve(&shared, &request) }.await;
            let result = match result {
                // A request is shorter than 2 GiB: at most IOV_MAX buffers, bounded by the device.
                Ok(count) => i32::try_from(count).unwrap_or(i32::MAX),
                Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
            };
            shared.uring.post(request.token, result);
        });
        1
    }

    fn left_to_others(&self, _uring: &Rc<Uring>, offset: u64, length: u32, token: u64) {
        let shared = self.0.clone();
        self.0.uring.tasks.spawn_local(async move {
            let result = match slow::left_to_others(&shared, offset, length.into()).await {
                Ok(bytes) => i32::try_from(bytes).unwrap_or(i32::MAX),
                Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
            };
            shared.uring.post(token, result);
        });
    }

    fn close(&self) -> io::Result<()> {
        if self.0.is_flushed() {
            return Ok(());
        }
        self.0.uring.block_on(allocate::flush(&self.0))?
    }
}

impl Shared {
    /// Whether every mapping of an answered write is in the file.
    fn is_flushed(&self) -> bool {
        self.allocator.is_clean() && self.page.as_ref().is_none_or(|page| page.mappings.is_empty())
    }

    /// The log of a disk that is writable.
    fn log(&self) -> &MappingLog {
        &self.page.as_ref().expect("only a disk with a page allocates").mappings
    }

    /// The run that `offset` begins, as far as the cache knows; `None` if it knows nothing, or nothing that fits.
    fn run(&self, map: &ClusterMap, offset: u64, length: u64, write: bool) -> Option<Run> {
        let place = |offset: u64| {
            let cluster = offset >> self.cluster_bits;
            Some(map.get(cluster)?.plus(offset - (cluster << self.cluster_bits)))
        };
        let Some(Place::File { layer, offset: start }) = place(offset) else { return None };
        if write && layer != 0 {
            return None;
        }
        let mut known = (self.cluster_end(offset) - offset).min(length);
        while known < length && place(offset + known) == Some(Place::File { layer, offset: start + known }) {
            known = (self.cluster_end(offset + known) - offset).min(length);
        }
        Some(Run { layer, offset: start, length: known })
    }

    fn sqe(&self, run: &Run, iovecs: &[libc::iovec], write: bool) -> squeue::Entry {
        let file = self.files[run.layer];
        let (list, count) = (iovecs.as_ptr(), iovecs.len() as u32);
        match (iovecs, write) {
            ([one], false) => {
                let (base, length) = (one.iov_base.cast(), one.iov_len as u32);
                opcode::Read::new(file, base, length).offset(run.offset).build()
            }
            ([one], true) => {
                let (base, length) = (one.iov_base.cast_const().cast(), one.iov_len as u32);
                opcode::Write::new(file, base, length).offset(run.offset).build()
            }
            (_, false) => opcode::Readv::new(file, list, count).offset(run.offset).build(),
            (_, true) => opcode::Writev::new(file, list, count).offset(run.offset).build(),
        }
    }

    fn cluster_start(&self, offset: u64) -> u64 {
        offset >> self.cluster_bits << self.cluster_bits
    }

    /// The end of the cluster that `offset` is in, or of the disk.
    fn cluster_end(&self, offset: u64) -> u64 {
        (self.cluster_start(offset) + (1 << self.cluster_bits)).min(self.size)
    }
}

/// Cuts buffers into pieces without a list.
struct Pieces<'a> {
    iovecs: &'a [libc::iovec],
    used: usize,
}

impl<'a> Pieces<'a> {
    fn new(iovecs: &'a [libc::iovec]) -> Self {
        Pieces { iovecs, used: 0 }
    }

    /// The next `length` bytes, if they are in one buffer.
    fn take(&mut self, length: u64) -> Option<libc::iovec> {
        while self.iovecs.first().is_some_and(|iov| self.used == iov.iov_len) {
            (self.iovecs, self.used) = (&self.iovecs[1..], 0);
        }
        let (first, length) = (self.iovecs.first()?, usize::try_from(length).ok()?);
        if first.iov_len - self.used < length {
            return None;
        }
        let base = first.iov_base.wrapping_byte_add(self.used);
        self.used += length;
        Some(iovec(base.cast(), length))
    }
}

async fn verify(file: &FileStorage) -> io::Result<Layout> {
    Layout::verify(async |offset, length| {
        let mut bytes = vec![0; length];
        imago::StorageExt::read(file, bytes.as_mut_slice(), offset).await.map(|()| bytes)
    })
    .await
}

async fn open_layer(
    file: FileStorage,
    format: Format,
    below: Option<FormatAccess<FileStorage>>,
    writable: bool,
) -> io::Result<FormatAccess<FileStorage>> {
    let layer = file.layer;
    match format {
        Format::Raw if below.is_some() => {
            Err(invalid(&format!("layer {layer} is raw and hides the layers below it")))
        }
        Format::Raw => Raw::open_image(file, writable).await.map(FormatAccess::new),
        Format::Null | Format::Simulated => Err(invalid(&format!("layer {layer} has no file"))),
        Format::Qcow2 => {
            let builder = Qcow2::<FileStorage>::builder(file).backing(below).data_file(None);
            let qcow2 = builder.write(writable).open(DenyImplicitOpenGate::default()).await?;
            if qcow2.requires_external_data_file() {
                return Err(invalid(&format!("layer {layer} keeps its data in another file")));
            }
            Ok(FormatAccess::new(qcow2))
        }
    }
}

fn aligned(iovecs: &[libc::iovec], align: usize) -> bool {
    align == 1 || iovecs.iter().all(|iov| (iov.iov_base.addr() | iov.iov_len) & (align - 1) == 0)
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests;
