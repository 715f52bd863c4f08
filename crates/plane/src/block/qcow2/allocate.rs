//! Clusters for writes that have none yet: one task per disk, which works in batches.
//!
//! A write that does not cover its cluster reads the old content first, by itself. Then a batch of them goes through these
//! steps; nobody else changes or writes metadata meanwhile:
//! 1. allocate and map the clusters, in memory only; from here on they are *unsettled*, and readers wait;
//! 2. write the data, and beside it the refcounts;
//! 3. write the L2 tables: only now is a mapping in the file. [`Tables`](super::tables::Tables) holds them back until
//!    here. If a data write failed they are not written, its cluster gets its old mapping back, and the rest is flushed;
//! 4. answer.
//!
//! Mapping before writing lets all data writes of a batch run side by side: a mapping that imago has yet to commit keeps
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
use super::slow::Job;
use super::tables::Gate;
use crate::block::storage::{DIRECT_ALIGN, FileStorage};
use crate::executor::join_all;

/// Bytes of clusters that a batch allocates at most.
const BATCH_BYTES: u64 = 8 << 20;
const BATCH_CLUSTERS: u64 = 64;

/// Bytes of old content that wait for their batch at most.
const OLD_BYTES: u64 = 16 << 20;

/// The state of a disk's allocations.
#[derive(Default)]
pub(super) struct Allocator {
    queue: RefCell<VecDeque<Piece>>,
    running: Cell<bool>,
    unsettled: RefCell<HashSet<u64>>,
    /// Who waits for a batch to end.
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
    /// A flush failed: mappings in memory may not be in the file. Every write waits for one that succeeds.
    Unflushed,
    /// Memory maps clusters without content, and this could not be undone: nothing may be written any more.
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
    done: Rc<Done>,
}

#[derive(Default)]
struct Done {
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

/// Brings all metadata into the file.
pub(super) async fn flush(shared: &Rc<Shared>) -> io::Result<()> {
    enqueue(shared, 0, 0, 0, Content::Flush, None).await
}

/// Reads a cluster at a time when imago tells the truth about it. If it is allocated later, the batch will see.
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
    if !shared.allocator.running.replace(true) {
        let shared = shared.clone();
        shared.uring.clone().tasks.spawn_local(async move { run(&shared).await });
    }
    let result = poll_fn(|cx| match done.result.get() {
        Some(result) => Poll::Ready(result),
        None => {
            done.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        }
    });
    result.await.map_err(io::Error::from_raw_os_error)
}

async fn run(shared: &Shared) {
    let limit = (BATCH_BYTES >> shared.cluster_bits).clamp(1, BATCH_CLUSTERS) as usize;
    loop {
        let mut clusters: BTreeMap<u64, Vec<Piece>> = BTreeMap::new();
        let mut flushes = Vec::new();
        loop {
            // Not `while let`: the queue would stay borrowed in the loop.
            let next = shared.allocator.queue.borrow_mut().pop_front();
            let Some(piece) = next else { break };
            if matches!(piece.content, Content::Flush) {
                flushes.push(piece);
            } else if clusters.len() < limit || clusters.contains_key(&piece.cluster) {
                clusters.entry(piece.cluster).or_default().push(piece);
            } else {
                shared.allocator.queue.borrow_mut().push_front(piece);
                break;
            }
        }
        if clusters.is_empty() && flushes.is_empty() {
            shared.allocator.running.set(false);
            return;
        }
        batch(shared, clusters, flushes).await;
    }
}

async fn batch(shared: &Shared, clusters: BTreeMap<u64, Vec<Piece>>, flushes: Vec<Piece>) {
    let allocator = &shared.allocator;
    let mut plans = Vec::with_capacity(clusters.len());
    for (cluster, pieces) in clusters {
        plans.push(Plan::new(shared, cluster, pieces).await);
    }
    let changes = plans.iter().filter(|plan| plan.changes_metadata()).map(|plan| plan.cluster);
    allocator.unsettled.borrow_mut().extend(changes);
    let flush = !allocator.unsettled.borrow().is_empty() || !flushes.is_empty() || !allocator.is_clean();
    let metadata = if allocator.is_broken() {
        Err(libc::EIO)
    } else {
        map_clusters(shared, &mut plans).await;
        write_and_flush(shared, &mut plans, flush).await
    };
    settle(shared, &plans, metadata);
    for plan in plans {
        let result = plan.result.and(metadata);
        plan.pieces.iter().for_each(|piece| piece.done.finish(result));
    }
    flushes.iter().for_each(|piece| piece.done.finish(metadata));
    allocator.wake();
}

/// Allocates clusters, adjacent ones together, and maps them in memory.
async fn map_clusters<'a>(shared: &'a Shared, plans: &mut [Plan<'a>]) {
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
            Ok((file, place, length)) => {
                let plans = rest[..run].iter_mut();
                for plan in plans.take_while(|plan| plan.start + plan.length <= start + length) {
                    plan.set_allocated(file, place + (plan.start - start));
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
async fn map_run(shared: &Shared, start: u64, length: u64) -> io::Result<(&FileStorage, u64, u64)> {
    let mapping = shared.image.prepare_data_mapping(start, length, true).await?;
    let (file, place, mapped) = (mapping.storage(), mapping.offset(), mapping.length());
    shared.image.commit_data_mapping(mapping).await?;
    Ok((file, place, mapped))
}

/// Writes the data and, if `flush`, the metadata; returns what became of the latter.
async fn write_and_flush(shared: &Shared, plans: &mut [Plan<'_>], flush: bool) -> Result<(), i32> {
    let Some(tables) = shared.tables.as_ref().filter(|_| flush) else {
        write_contents(plans).await;
        return Ok(());
    };
    tables.set_gate(Gate::Held);
    let write: Job<'_> = Box::pin(async {
        write_contents(plans).await;
        let complete = plans.iter().all(|plan| plan.result.is_ok() || plan.allocated().is_none());
        tables.set_gate(if complete { Gate::Open } else { Gate::Refused });
        Ok(())
    });
    let results = join_all(vec![write, Box::pin(shared.image.flush())]).await;
    let mut result = results.into_iter().collect::<io::Result<()>>();
    if tables.gate() == Gate::Refused {
        undo_failed(shared, plans).await;
        tables.set_gate(Gate::Open);
        if shared.allocator.is_broken() {
            return Err(libc::EIO);
        }
        result = shared.image.flush().await;
    }
    shared.allocator.state.set(if result.is_ok() { State::Clean } else { State::Unflushed });
    result.map_err(|error| errno(&error))
}

/// Writes everything, side by side; clusters that are neighbours in the disk and in the file together.
async fn write_contents(plans: &mut [Plan<'_>]) {
    let mut jobs: Vec<Job<'_>> = Vec::new();
    let mut runs = Vec::new();
    let mut index = 0;
    while index < plans.len() {
        let first = index;
        index += 1;
        if plans[first].result.is_err() {
            continue;
        }
        if let Action::InPlace(file, place) = plans[first].action {
            jobs.push(Box::pin(overwrite(file, place, &plans[first].pieces)));
        } else if let Some((file, place)) = plans[first].allocated() {
            let mut iovecs = plans[first].iovecs();
            while index < plans.len() && plans[index].follows(&plans[index - 1]) {
                iovecs.extend(plans[index].iovecs());
                index += 1;
            }
            // SAFETY: the plans own the buffers, or the writers do until their pieces are done.
            jobs.push(Box::pin(unsafe { file.write(iovecs, place) }));
        } else {
            continue;
        }
        runs.push(first..index);
    }
    let results = join_all(jobs).await;
    for (run, result) in runs.into_iter().zip(results) {
        let result = result.map_err(|error| errno(&error));
        plans[run].iter_mut().for_each(|plan| plan.result = result);
    }
}

/// Writes pieces one after the other to a cluster that is there.
async fn overwrite(file: &FileStorage, place: u64, pieces: &[Piece]) -> io::Result<()> {
    for piece in pieces {
        match &piece.content {
            // SAFETY: the writer's buffers are valid until its piece is done.
            Content::Guest(iovecs) => unsafe { file.write(iovecs.clone(), place + piece.start) }.await?,
            Content::Zeroes | Content::Flush => file.zero(place + piece.start, piece.length, true).await?,
        }
    }
    Ok(())
}

/// Takes clusters whose data could not be written out of the map again.
async fn undo_failed(shared: &Shared, plans: &[Plan<'_>]) {
    let (allocator, image) = (&shared.allocator, &shared.image);
    for plan in plans.iter().filter(|plan| plan.result.is_err() && plan.allocated().is_some()) {
        let result = if plan.was_zero {
            // SAFETY: nobody uses the mapping that goes: it is unsettled, so no lookup has given it out.
            unsafe { image.discard_to_zero_unsafe(plan.start, plan.length) }.await
        } else {
            // SAFETY: as above.
            unsafe { image.discard_to_backing_unsafe(plan.start, plan.length) }.await
        };
        allocator.undone.set(allocator.undone.get() + 1);
        if result.is_err() {
            allocator.state.set(State::Broken);
        }
    }
}

/// Lets the cache know what became of the clusters.
fn settle(shared: &Shared, plans: &[Plan<'_>], metadata: Result<(), i32>) {
    let mut map = shared.map.borrow_mut();
    for plan in plans.iter().filter(|plan| plan.changes_metadata()) {
        match plan.allocated() {
            Some((file, offset)) if plan.result.and(metadata).is_ok() => {
                map.insert(plan.cluster, Place::File { layer: file.layer, offset });
            }
            _ => map.remove(plan.cluster),
        }
    }
    shared.allocator.unsettled.borrow_mut().clear();
}

impl Allocator {
    /// Whether every mapping in memory is in the file, but for unsettled ones.
    pub(super) fn is_clean(&self) -> bool {
        self.state.get() == State::Clean
    }

    /// Whether nothing can be served any more.
    pub(super) fn is_broken(&self) -> bool {
        self.state.get() == State::Broken
    }

    /// Whether the batch under way changes this cluster.
    pub(super) fn is_unsettled(&self, cluster: u64) -> bool {
        self.unsettled.borrow().contains(&cluster)
    }

    /// Waits for the batch that changes this cluster.
    pub(super) async fn settled(&self, cluster: u64) {
        self.until(|| !self.is_unsettled(cluster)).await;
    }

    /// Waits for what the end of a batch brings about.
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
    fn finish(&self, result: Result<(), i32>) {
        self.result.set(Some(result));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
