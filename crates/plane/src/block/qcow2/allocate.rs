//! Clusters for writes that have none yet.
//!
//! A write that does not cover its cluster reads the old content first, by itself. Then
//! 1. one task per disk maps clusters, in imago's memory only, for all writes that wait. From here on the clusters are
//!    *unsettled*: readers wait, and so do other writes to them;
//! 2. the content is written, runs of clusters side by side;
//! 3. the mapping goes into the log in shared memory, which a worker's successor reads ([`super::replay`]), and the
//!    write is answered;
//! 4. at a flush of the guest's, or when the log is full, and with no content on its way, imago's tables go into the
//!    file: refcounts, sync, L2 tables ([`Tables`](super::tables::Tables)). Then the log is emptied.
//!
//! If content could not be written, its cluster gets its old mapping back before anything else is mapped.
//!
//! Mapping before writing lets the writes of a table run side by side: a mapping that imago has yet to commit keeps
//! its whole L2 table locked. It is safe because imago writes tables on its own only when its caches are full, which
//! [`super::layout`] rules out.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

use imago::io_buffers::IoBuffer;

use super::Shared;
use super::map::Place;
use super::plan::{Action, Plan, errno};
use super::replay::ZERO;
use crate::block::storage::DIRECT_ALIGN;
use crate::page::MAPPINGS;

/// Bytes of clusters that are mapped at a time at most, and clusters: an empty log has room for them.
const BATCH_BYTES: u64 = 8 << 20;
const BATCH_CLUSTERS: u64 = if MAPPINGS < 64 { MAPPINGS as u64 } else { 64 };

/// Bytes of old content that wait for their clusters at most.
const OLD_BYTES: u64 = 16 << 20;

/// The state of a disk's allocations.
#[derive(Default)]
pub(super) struct Allocator {
    queue: RefCell<VecDeque<Piece>>,
    /// Writes to clusters that are unsettled.
    parked: RefCell<Vec<Piece>>,
    running: Cell<bool>,
    unsettled: RefCell<HashSet<u64>>,
    /// Runs of clusters whose content is on its way.
    writing: Cell<usize>,
    /// Clusters whose content could not be written.
    failed: RefCell<Vec<Plan>>,
    /// Who waits for clusters to settle.
    waiting: RefCell<Vec<Waker>>,
    state: Cell<State>,
    old_bytes: Cell<u64>,
    /// How many mappings were taken back.
    undone: Cell<u64>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Clean,
    /// Tables could not be written. Before that has succeeded, imago may write them whenever it pleases.
    Unflushed,
    /// Memory maps clusters without content and this could not be undone, or a sync failed: nothing may be written any more.
    Broken,
}

/// What a write puts into a cluster.
pub(super) enum Content {
    /// The guest's buffers.
    Guest(Vec<libc::iovec>),
    Zeroes,
    /// Nothing; it waits for the flush of its batch.
    Flush,
}

/// A write, or the part of it that lies in one cluster.
pub(super) struct Piece {
    cluster: u64,
    /// Within the cluster.
    pub start: u64,
    pub length: u64,
    pub content: Content,
    /// What the whole cluster held before, unless the piece covers it.
    pub old: Option<IoBuffer>,
    pub done: Rc<Done>,
}

/// How a piece ends.
#[derive(Default)]
pub(super) struct Done {
    result: Cell<Option<Result<(), i32>>>,
    waker: Cell<Option<Waker>>,
}

/// Writes `content` to a range inside one cluster.
pub(super) async fn write(shared: &Rc<Shared>, offset: u64, length: u64, content: Content) -> io::Result<()> {
    let (cluster, start) = (offset >> shared.cluster_bits, shared.cluster_start(offset));
    let whole = shared.cluster_end(offset) - start;
    let allocator = &shared.allocator;
    if length == whole {
        return enqueue(shared, cluster, 0, length, content, None).await;
    }
    allocator
        .until(|| allocator.old_bytes.get() == 0 || allocator.old_bytes.get() + whole <= OLD_BYTES)
        .await;
    allocator.old_bytes.set(allocator.old_bytes.get() + whole);
    let result = match read_old(shared, cluster, start, whole).await {
        Ok(old) => enqueue(shared, cluster, offset - start, length, content, Some(old)).await,
        Err(error) => Err(error),
    };
    allocator.old_bytes.set(allocator.old_bytes.get() - whole);
    allocator.wake();
    result
}

/// Brings the mappings of all writes that were answered into the file.
pub(super) async fn flush(shared: &Rc<Shared>) -> io::Result<()> {
    enqueue(shared, 0, 0, 0, Content::Flush, None).await
}

/// Reads a cluster at a time when imago tells the truth about it. If it is allocated later, its plan will see.
async fn read_old(shared: &Shared, cluster: u64, start: u64, length: u64) -> io::Result<IoBuffer> {
    let allocator = &shared.allocator;
    let mut old = IoBuffer::new(length as usize, DIRECT_ALIGN)?;
    loop {
        allocator.settled(cluster).await;
        let undone = allocator.undone.get();
        shared.image.read(&mut old, start).await?;
        if !allocator.is_unsettled(cluster) && allocator.undone.get() == undone {
            return Ok(old);
        }
    }
}

async fn enqueue(
    shared: &Rc<Shared>,
    cluster: u64,
    start: u64,
    length: u64,
    content: Content,
    old: Option<IoBuffer>,
) -> io::Result<()> {
    let done = Rc::new(Done::default());
    let piece = Piece { cluster, start, length, content, old, done: done.clone() };
    shared.allocator.queue.borrow_mut().push_back(piece);
    rouse(shared);
    let result = poll_fn(|cx| match done.result.get() {
        Some(result) => Poll::Ready(result),
        None => {
            done.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        }
    });
    result.await.map_err(io::Error::from_raw_os_error)
}

/// Has the task run if there is something for it to do.
fn rouse(shared: &Rc<Shared>) {
    let allocator = &shared.allocator;
    let idle = allocator.queue.borrow().is_empty() && allocator.failed.borrow().is_empty();
    if !idle && !allocator.running.replace(true) {
        let shared = shared.clone();
        shared.uring.clone().tasks.spawn_local(async move { run(&shared).await });
    }
}

async fn run(shared: &Rc<Shared>) {
    let allocator = &shared.allocator;
    loop {
        let (clusters, flushes) =
            allocator.take((BATCH_BYTES >> shared.cluster_bits).clamp(1, BATCH_CLUSTERS));
        let failed = !allocator.failed.borrow().is_empty();
        if clusters.is_empty() && flushes.is_empty() && !failed {
            allocator.running.set(false);
            return;
        }
        let room = shared.log().room();
        let full = room < allocator.unsettled.borrow().len() + clusters.len();
        let first = failed || full || allocator.state.get() != State::Clean;
        let mut flushed = Ok(());
        if first || !flushes.is_empty() {
            allocator.until(|| allocator.writing.get() == 0).await;
            flushed = undo_and_flush(shared).await;
            flushes.iter().for_each(|piece| piece.done.finish(flushed));
        }
        if first && flushed.is_err() {
            clusters.into_values().flatten().for_each(|piece| piece.done.finish(flushed));
        } else {
            give(shared, clusters).await;
        }
    }
}

/// Maps clusters and has their content written.
async fn give(shared: &Rc<Shared>, clusters: BTreeMap<u64, Vec<Piece>>) {
    let mut plans = Vec::with_capacity(clusters.len());
    for (cluster, pieces) in clusters {
        plans.push(Plan::new(shared, cluster, pieces).await);
    }
    let changes = plans.iter().filter(|plan| plan.changes_metadata()).map(|plan| plan.cluster);
    shared.allocator.unsettled.borrow_mut().extend(changes);
    map_clusters(shared, &mut plans).await;
    let mut plans = plans.into_iter().peekable();
    while let Some(first) = plans.next() {
        let mut run = vec![first];
        while let Some(next) = plans.next_if(|next| next.follows(&run[run.len() - 1])) {
            run.push(next);
        }
        let shared = shared.clone();
        shared.allocator.writing.set(shared.allocator.writing.get() + 1);
        shared.uring.clone().tasks.spawn_local(async move {
            let result = write_run(&shared, &run).await;
            settle(&shared, run, result);
        });
    }
}

/// Allocates clusters, adjacent ones together, and maps them in memory.
async fn map_clusters(shared: &Shared, plans: &mut [Plan]) {
    let mut rest = plans;
    while let [first, ..] = rest {
        if matches!(first.action, Action::Zero) {
            first.result = match shared.image.inner().ensure_zero_mapping(first.start, first.length).await {
                Ok(zeroed) if zeroed == (first.start, first.length) => Ok(()),
                Ok(_) => Err(libc::EIO),
                Err(error) => Err(errno(&error)),
            };
        }
        if !first.needs_cluster() {
            rest = &mut rest[1..];
            continue;
        }
        let start = first.start;
        let adjacent = rest
            .windows(2)
            .take_while(|pair| pair[1].needs_cluster() && pair[0].start + pair[0].length == pair[1].start);
        let run = 1 + adjacent.count();
        let length = rest[..run].iter().map(|plan| plan.length).sum();
        let mut mapped = 0;
        match map_run(shared, start, length).await {
            Ok((place, length)) => {
                let plans = rest[..run].iter_mut();
                for plan in plans.take_while(|plan| plan.start + plan.length <= start + length) {
                    plan.set_allocated(place + (plan.start - start));
                    mapped += 1;
                }
                if mapped == 0 {
                    rest[0].result = Err(libc::EIO);
                }
            }
            Err(error) => rest[0].result = Err(errno(&error)),
        }
        rest = &mut rest[mapped.max(1)..];
    }
}

/// Maps clusters from `start` on, at most `length` bytes; returns where they are and how many bytes were mapped.
async fn map_run(shared: &Shared, start: u64, length: u64) -> io::Result<(u64, u64)> {
    let mapping = shared.image.prepare_data_mapping(start, length, true).await?;
    let (place, mapped) = (mapping.offset(), mapping.length());
    shared.image.commit_data_mapping(mapping).await?;
    Ok((place, mapped))
}

/// Writes what goes into clusters that are neighbours in the disk and in the file, or into one.
async fn write_run(shared: &Shared, run: &[Plan]) -> Result<(), i32> {
    let [first, ..] = run else { return Ok(()) };
    first.result?;
    let written = if let Action::InPlace(place) = first.action {
        overwrite(shared, place, &first.pieces).await
    } else if let Some(place) = first.allocated() {
        let iovecs = run.iter().flat_map(Plan::iovecs).collect();
        // SAFETY: the plans own the buffers, or the writers do until their pieces are done.
        unsafe { shared.top.write(iovecs, place) }.await
    } else {
        Ok(())
    };
    written.map_err(|error| errno(&error))
}

/// Writes pieces one after the other to a cluster that is there.
async fn overwrite(shared: &Shared, place: u64, pieces: &[Piece]) -> io::Result<()> {
    for piece in pieces {
        let start = place + piece.start;
        match &piece.content {
            // SAFETY: the writer's buffers are valid until its piece is done.
            Content::Guest(iovecs) => unsafe { shared.top.write(iovecs.clone(), start) }.await?,
            Content::Zeroes | Content::Flush => shared.top.zero(start, piece.length, true).await?,
        }
    }
    Ok(())
}

/// The content of a run has been written, or not: the log and the cache are told, and the writers answered.
fn settle(shared: &Rc<Shared>, run: Vec<Plan>, result: Result<(), i32>) {
    let allocator = &shared.allocator;
    for mut plan in run {
        plan.result = plan.result.and(result);
        let mut map = shared.map.borrow_mut();
        match (plan.allocated(), plan.result) {
            (Some(_), Err(_)) => {
                allocator.failed.borrow_mut().push(plan);
                continue;
            }
            (Some(offset), Ok(())) => {
                shared.log().append(plan.cluster, offset);
                map.insert(plan.cluster, Place::File { layer: shared.top.layer, offset });
            }
            (None, Ok(())) if plan.changes_metadata() => {
                shared.log().append(plan.cluster, ZERO);
                map.remove(plan.cluster);
            }
            (None, _) => {}
        }
        allocator.unsettled.borrow_mut().remove(&plan.cluster);
        plan.finish();
    }
    allocator.writing.set(allocator.writing.get() - 1);
    allocator.queue.borrow_mut().extend(allocator.parked.take());
    allocator.wake();
    rouse(shared);
}

/// Takes clusters without content out of the map, and brings the others into the file. Nothing is on its way.
async fn undo_and_flush(shared: &Shared) -> Result<(), i32> {
    let (allocator, image) = (&shared.allocator, &shared.image);
    for plan in allocator.failed.take() {
        let undone = if plan.was_zero {
            // SAFETY: nobody uses the mapping that goes: it is unsettled, so no lookup has given it out.
            unsafe { image.discard_to_zero_unsafe(plan.start, plan.length) }.await
        } else {
            // SAFETY: as above.
            unsafe { image.discard_to_backing_unsafe(plan.start, plan.length) }.await
        };
        allocator.state.set(if undone.is_ok() { State::Unflushed } else { State::Broken });
        allocator.undone.set(allocator.undone.get() + 1);
        allocator.unsettled.borrow_mut().remove(&plan.cluster);
        plan.finish();
    }
    let result = match &shared.tables {
        Some(tables) if !allocator.is_broken() => {
            tables.open();
            let flushed = image.flush().await;
            tables.shut();
            let failed = if tables.failed() { State::Broken } else { State::Unflushed };
            allocator.state.set(if flushed.is_ok() { State::Clean } else { failed });
            flushed.map_err(|error| errno(&error))
        }
        _ => Err(libc::EIO),
    };
    if result.is_ok() {
        shared.log().clear();
    }
    allocator.queue.borrow_mut().extend(allocator.parked.take());
    allocator.wake();
    result
}

impl Allocator {
    /// What waits, up to `limit` clusters of it, and the flushes.
    fn take(&self, limit: u64) -> (BTreeMap<u64, Vec<Piece>>, Vec<Piece>) {
        let (mut clusters, mut flushes) = (BTreeMap::<u64, Vec<Piece>>::new(), Vec::new());
        let mut queue = self.queue.borrow_mut();
        while let Some(piece) = queue.pop_front() {
            if matches!(piece.content, Content::Flush) {
                flushes.push(piece);
            } else if self.is_unsettled(piece.cluster) {
                self.parked.borrow_mut().push(piece);
            } else if (clusters.len() as u64) < limit || clusters.contains_key(&piece.cluster) {
                clusters.entry(piece.cluster).or_default().push(piece);
            } else {
                queue.push_front(piece);
                break;
            }
        }
        (clusters, flushes)
    }

    /// Whether the tables were brought into the file when that was last tried.
    pub(super) fn is_clean(&self) -> bool {
        self.state.get() == State::Clean
    }

    /// Whether nothing can be served any more.
    pub(super) fn is_broken(&self) -> bool {
        self.state.get() == State::Broken
    }

    /// Whether this cluster has been mapped, and its content is not there yet.
    pub(super) fn is_unsettled(&self, cluster: u64) -> bool {
        self.unsettled.borrow().contains(&cluster)
    }

    /// Waits until the cluster is not unsettled.
    pub(super) async fn settled(&self, cluster: u64) {
        self.until(|| !self.is_unsettled(cluster)).await;
    }

    /// Waits for what the end of a write brings about.
    async fn until(&self, condition: impl Fn() -> bool) {
        poll_fn(|cx| match condition() {
            true => Poll::Ready(()),
            false => {
                self.waiting.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
        })
        .await;
    }

    fn wake(&self) {
        self.waiting.borrow_mut().drain(..).for_each(Waker::wake);
    }
}

impl Done {
    pub fn finish(&self, result: Result<(), i32>) {
        self.result.set(Some(result));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
