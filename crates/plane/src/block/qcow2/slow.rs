//! Requests that the cluster cache cannot answer: one task each.

use std::io;
use std::pin::Pin;
use std::rc::Rc;

use imago::io_buffers::IoBuffer;
use imago::{Mapping, ShallowMapping, Storage};

use super::allocate::{self, Content};
use super::map::Place;
use super::{Shared, aligned};
use crate::block::storage::{FileStorage, iovec};
use crate::block::{Operation, Request, UNFLUSHED};
use crate::chain::{read_front, skip_front, write_front};
use crate::executor::join_all;

/// Clusters that one zeroing request hands to the allocator at once.
const ZERO_CLUSTERS: usize = 256;

pub(super) type Job<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + 'a>>;

/// What a range of the disk is backed by.
enum Source<'a> {
    /// A layer's file, at a byte.
    File(&'a FileStorage, u64),
    Zero,
    /// Compressed: only imago can read it.
    Special,
}

/// Serves `request` and returns the bytes moved.
///
/// # Safety
/// The buffers stay valid until the future is ready or dropped, and it is not forgotten.
pub(super) async unsafe fn serve(shared: &Rc<Shared>, request: &Request) -> io::Result<u64> {
    let (offset, length) = (request.offset, request.length);
    if shared.allocator.is_broken() {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    match request.operation {
        Operation::Flush => {
            allocate::flush(shared).await.map_err(|error| match error.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => io::Error::from_raw_os_error(-UNFLUSHED),
                _ => error,
            })?;
            shared.top.sync().await?;
            Ok(0)
        }
        Operation::Discard => zero(shared, offset, length, true, true).await,
        Operation::WriteZeroes { unmap } => zero(shared, offset, length, unmap, false).await,
        Operation::Read | Operation::Write => {
            // SAFETY: the caller vouches for the list.
            let guest = unsafe { std::slice::from_raw_parts(request.iovecs, request.iovec_count) }.to_vec();
            let read = request.operation == Operation::Read;
            if aligned(&guest, shared.align) {
                transfer(shared, guest, offset, length, read).await?;
                return Ok(length);
            }
            let size = usize::try_from(length).map_err(io::Error::other)?;
            let mut bounce = IoBuffer::new(size, shared.align)?;
            let buffer = iovec(bounce.as_mut().as_ptr(), size);
            if !read {
                read_front(&guest, bounce.as_mut().into_slice());
            }
            transfer(shared, vec![buffer], offset, length, read).await?;
            if read {
                write_front(&guest, bounce.as_ref().into_slice());
            }
            Ok(length)
        }
    }
}

/// How many bytes from `offset` on the top layer leaves to those below it.
pub(super) async fn left_to_others(shared: &Rc<Shared>, offset: u64, length: u64) -> io::Result<u64> {
    let (mut at, end) = (offset, offset + length);
    while at < end {
        shared.allocator.settled(at >> shared.cluster_bits).await;
        let (mapping, known) = shared.image.get_shallow_mapping(at, end - at).await?;
        match mapping {
            ShallowMapping::Indirect { .. } | ShallowMapping::Zero { explicit: false, .. } if known > 0 => {
                at += shared.before_unsettled(at, known);
            }
            _ => break,
        }
    }
    Ok(at - offset)
}

async fn transfer(
    shared: &Rc<Shared>,
    iovecs: Vec<libc::iovec>,
    offset: u64,
    length: u64,
    read: bool,
) -> io::Result<()> {
    let jobs = if read {
        read_jobs(shared, iovecs, offset, length).await?
    } else {
        write_jobs(shared, iovecs, offset, length).await?
    };
    join_all(jobs).await.into_iter().collect()
}

async fn read_jobs(
    shared: &Rc<Shared>,
    mut iovecs: Vec<libc::iovec>,
    offset: u64,
    length: u64,
) -> io::Result<Vec<Job<'_>>> {
    let (mut at, end) = (offset, offset + length);
    let mut jobs: Vec<Job<'_>> = Vec::new();
    while at < end {
        shared.allocator.settled(at >> shared.cluster_bits).await;
        let (source, known) = shared.lookup(at, end - at).await?;
        let known = shared.before_unsettled(at, known);
        if known == 0 {
            continue;
        }
        let chunk = split(&mut iovecs, known);
        match source {
            Source::File(file, place) if (place | known).is_multiple_of(shared.align as u64) => {
                // SAFETY: the request's buffers outlive its task, and the task its jobs.
                jobs.push(Box::pin(unsafe { file.read(chunk, place) }))
            }
            Source::Zero => {
                // SAFETY: as above.
                chunk.iter().for_each(|iov| unsafe { iov.iov_base.cast::<u8>().write_bytes(0, iov.iov_len) });
            }
            // Compressed, or the last bytes of a file that ends inside a sector.
            Source::File(..) | Source::Special => {
                let size = known as usize;
                let mut buffer = IoBuffer::new(size, shared.align)?;
                shared.image.read(&mut buffer, at).await?;
                write_front(&chunk, buffer.as_ref().into_slice());
            }
        }
        at += known;
    }
    Ok(jobs)
}

async fn write_jobs(
    shared: &Rc<Shared>,
    mut iovecs: Vec<libc::iovec>,
    offset: u64,
    length: u64,
) -> io::Result<Vec<Job<'_>>> {
    let (mut at, end) = (offset, offset + length);
    let mut jobs: Vec<Job<'_>> = Vec::new();
    while at < end {
        match shared.lookup(at, end - at).await? {
            (Source::File(file, place), known)
                if file.layer == 0 && shared.before_unsettled(at, known) > 0 =>
            {
                let known = shared.before_unsettled(at, known);
                let chunk = split(&mut iovecs, known);
                // SAFETY: the request's buffers outlive its task, and the task its jobs.
                jobs.push(Box::pin(unsafe { file.write(chunk, place) }));
                at += known;
            }
            _ => {
                let length = (shared.cluster_end(at) - at).min(end - at);
                let content = Content::Guest(split(&mut iovecs, length));
                jobs.push(Box::pin(allocate::write(shared, at, length, content)));
                at += length;
            }
        }
    }
    Ok(jobs)
}

/// Discards, or makes a range read as zeroes. Data clusters stay where they are and lose their content.
async fn zero(shared: &Rc<Shared>, offset: u64, length: u64, unmap: bool, discard: bool) -> io::Result<u64> {
    let (mut at, end) = (offset, offset + length);
    let mut jobs: Vec<Job<'_>> = Vec::new();
    while at < end {
        shared.allocator.settled(at >> shared.cluster_bits).await;
        let (source, known) = shared.lookup(at, end - at).await?;
        let known = shared.before_unsettled(at, known);
        match source {
            _ if known == 0 => continue,
            Source::File(file, place) if file.layer == 0 && shared.tables.is_some() => {
                jobs.push(Box::pin(file.zero(place, known, unmap)));
                at += known;
            }
            // What a discarded range reads as is undefined: the content of the layers below will do.
            _ if discard => at += known,
            // Without `unmap` it is to be zero by itself, whatever will lie below.
            Source::Zero if unmap => at += known,
            Source::Zero | Source::File(..) | Source::Special => {
                let length = (shared.cluster_end(at) - at).min(end - at);
                jobs.push(Box::pin(allocate::write(shared, at, length, Content::Zeroes)));
                at += length;
            }
        }
        if jobs.len() == ZERO_CLUSTERS {
            join_all(std::mem::take(&mut jobs)).await.into_iter().collect::<io::Result<()>>()?;
        }
    }
    join_all(jobs).await.into_iter().collect::<io::Result<()>>()?;
    Ok(0)
}

impl Shared {
    /// What is at `offset`, and for how many bytes, up to `length`. Whole clusters are remembered.
    async fn lookup(&self, offset: u64, length: u64) -> io::Result<(Source<'_>, u64)> {
        let start = self.cluster_start(offset);
        let end = self.cluster_end(offset + length - 1);
        let (source, known) = self.ask(start, end - start).await?;
        if start + known <= offset {
            // A layer below has smaller clusters, or ends inside this one.
            return self.ask(offset, length).await;
        }
        self.remember(start, &source, known);
        let source = match source {
            Source::File(file, place) => Source::File(file, place + (offset - start)),
            other => other,
        };
        Ok((source, (start + known - offset).min(length)))
    }

    async fn ask(&self, offset: u64, length: u64) -> io::Result<(Source<'_>, u64)> {
        let (mapping, known) = self.image.get_mapping(offset, length).await?;
        if known == 0 || known > length {
            let message = format!("nothing is known about byte {offset} of a disk of {} bytes", self.size);
            return Err(io::Error::other(message));
        }
        let source = match mapping {
            Mapping::Raw { storage, writable, offset, .. } => {
                if storage.layer == 0 && self.tables.is_some() && !writable {
                    return Err(io::Error::other(format!("byte {offset} of the top layer is shared")));
                }
                Source::File(storage, offset)
            }
            Mapping::Zero { .. } | Mapping::Eof { .. } => Source::Zero,
            _ => Source::Special,
        };
        Ok((source, known))
    }

    fn remember(&self, start: u64, source: &Source<'_>, known: u64) {
        let place = match source {
            Source::File(file, offset) => Place::File { layer: file.layer, offset: *offset },
            Source::Zero => Place::Zero,
            Source::Special => return,
        };
        let mut map = self.map.borrow_mut();
        let mut at = start;
        while at < start + known && self.cluster_end(at) <= start + known {
            let cluster = at >> self.cluster_bits;
            if !self.allocator.is_unsettled(cluster) {
                map.insert(cluster, place.plus(at - start));
            }
            at = self.cluster_end(at);
        }
    }

    /// How many of the `known` bytes at `offset` lie before the first cluster that is being allocated: what imago says of
    /// such a cluster is not true yet.
    fn before_unsettled(&self, offset: u64, known: u64) -> u64 {
        let mut at = offset;
        while at < offset + known && !self.allocator.is_unsettled(at >> self.cluster_bits) {
            at = self.cluster_end(at);
        }
        (at - offset).min(known)
    }
}

/// Takes the first `length` bytes off `iovecs`.
fn split(iovecs: &mut Vec<libc::iovec>, length: u64) -> Vec<libc::iovec> {
    let mut left = length as usize;
    let mut head = Vec::new();
    for iov in iovecs.iter() {
        let take = iov.iov_len.min(left);
        if take > 0 {
            head.push(iovec(iov.iov_base.cast(), take));
        }
        left -= take;
    }
    skip_front(iovecs, length as usize);
    head
}
