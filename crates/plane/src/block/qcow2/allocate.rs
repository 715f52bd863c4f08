//! Clusters for writes that have none yet: one task per disk, which works in batches.
//!
//! A batch goes through these steps; nobody else changes or writes metadata meanwhile:
//! 1. read the old content of the clusters that are not wholly overwritten, and lay the new over it;
//! 2. allocate and map the clusters, in memory only; from here on they are *unsettled*, and readers wait;
//! 3. write the data; a cluster whose write failed gets its old mapping back;
//! 4. flush imago's caches, refcounts before L2 tables; only now is a mapping in the file;
//! 5. answer.
//!
//! Step 2 before step 3 lets all data writes of a batch run side by side: a mapping that imago has yet to commit keeps its
//! whole L2 table locked. It is safe because imago writes tables on its own only when its caches are full, which
//! [`super::layout`] rules out.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

use imago::ShallowMapping;
use imago::io_buffers::IoBuffer;

use super::Shared;
use super::map::Place;
use super::slow::{Direction, Job, copy};
use crate::block::storage::{FileStorage, iovec};
use crate::executor::join_all;

/// Bytes of clusters that a batch allocates at most; they may all need a buffer.
const BATCH_BYTES: u64 = 8 << 20;
const BATCH_CLUSTERS: u64 = 64;

/// The state of a disk's allocations.
#[derive(Default)]
pub(super) struct Allocator {
    queue: RefCell<VecDeque<Piece>>,
    running: Cell<bool>,
    unsettled: RefCell<HashSet<u64>>,
    waiting: RefCell<Vec<Waker>>,
    state: Cell<State>,
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
struct Piece {
    cluster: u64,
    /// Within the cluster.
    start: u64,
    length: u64,
    content: Content,
    done: Rc<Done>,
}

#[derive(Default)]
struct Done {
    result: Cell<Option<Result<(), i32>>>,
    waker: Cell<Option<Waker>>,
}

/// What a batch does about one cluster.
struct Plan<'a> {
    cluster: u64,
    start: u64,
    length: u64,
    pieces: Vec<Piece>,
    action: Action<'a>,
    /// Whether the top layer itself said that it reads as zeroes.
    was_zero: bool,
    result: Result<(), i32>,
}

enum Action<'a> {
    Nothing,
    /// It has a cluster by now.
    InPlace(&'a FileStorage, u64),
    /// Map it as zeroes.
    Zero,
    /// Without a buffer, one piece of the guest's covers the cluster.
    Allocate {
        buffer: Option<IoBuffer>,
        place: Option<(&'a FileStorage, u64)>,
    },
}

/// Writes `content` to a range inside one cluster.
pub(super) async fn write(shared: &Rc<Shared>, offset: u64, length: u64, content: Content) -> io::Result<()> {
    let start = offset - shared.cluster_start(offset);
    enqueue(shared, offset >> shared.cluster_bits, start, length, content).await
}

/// Brings all metadata into the file.
pub(super) async fn flush(shared: &Rc<Shared>) -> io::Result<()> {
    enqueue(shared, 0, 0, 0, Content::Flush).await
}

async fn enqueue(
    shared: &Rc<Shared>,
    cluster: u64,
    start: u64,
    length: u64,
    content: Content,
) -> io::Result<()> {
    let done = Rc::new(Done::default());
    let piece = Piece { cluster, start, length, content, done: done.clone() };
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

async fn run(shared: &Rc<Shared>) {
    let limit = (BATCH_BYTES >> shared.cluster_bits).clamp(1, BATCH_CLUSTERS) as usize;
    loop {
        let mut clusters: BTreeMap<u64, Vec<Piece>> = BTreeMap::new();
        let mut flushes = Vec::new();
        {
            let mut queue = shared.allocator.queue.borrow_mut();
            while let Some(piece) = queue.front() {
                if matches!(piece.content, Content::Flush) {
                    flushes.extend(queue.pop_front());
                } else if clusters.len() < limit || clusters.contains_key(&piece.cluster) {
                    clusters.entry(piece.cluster).or_default().extend(queue.pop_front());
                } else {
                    break;
                }
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
        plans.push(plan(shared, cluster, pieces).await);
    }
    prepare_contents(shared, &mut plans).await;
    let changes = plans.iter().filter(|plan| plan.changes_metadata()).map(|plan| plan.cluster);
    allocator.unsettled.borrow_mut().extend(changes);
    if allocator.is_broken() {
        plans.iter_mut().for_each(|plan| plan.result = Err(libc::EIO));
    } else {
        map_clusters(shared, &mut plans).await;
        write_contents(&mut plans).await;
        undo_failed(shared, &mut plans).await;
    }
    let metadata =
        match plans.iter().any(Plan::changes_metadata) || !flushes.is_empty() || !allocator.is_clean() {
            true => flush_metadata(shared).await,
            false => Ok(()),
        };
    settle(shared, &plans, metadata);
    for plan in plans {
        let result = plan.result.and(metadata);
        plan.pieces.iter().for_each(|piece| piece.done.finish(result));
    }
    flushes.iter().for_each(|piece| piece.done.finish(metadata));
}

/// Decides what to do about a cluster. Loads its L2 table, so that nothing after this waits for one.
async fn plan<'a>(shared: &'a Shared, cluster: u64, pieces: Vec<Piece>) -> Plan<'a> {
    let start = cluster << shared.cluster_bits;
    let length = shared.cluster_end(start) - start;
    let mut plan =
        Plan { cluster, start, length, pieces, action: Action::Nothing, was_zero: false, result: Ok(()) };
    let whole = |piece: &Piece| piece.length == length;
    let reads_zero = match shared.image.get_shallow_mapping(start, length).await {
        Err(error) => {
            plan.result = Err(errno(&error));
            return plan;
        }
        Ok((ShallowMapping::Raw { storage, offset, writable: true, .. }, known)) if known == length => {
            plan.action = Action::InPlace(storage, offset);
            return plan;
        }
        Ok((ShallowMapping::Zero { explicit, .. }, _)) => {
            plan.was_zero = explicit;
            true
        }
        Ok((ShallowMapping::Indirect { .. }, _)) => false,
        // Shared, compressed or cut short: an overlay of ours has no such clusters.
        Ok(_) => {
            plan.result = Err(libc::EIO);
            return plan;
        }
    };
    plan.action = match &plan.pieces[..] {
        pieces if pieces.iter().all(|piece| matches!(piece.content, Content::Zeroes)) && reads_zero => {
            Action::Nothing
        }
        [piece] if matches!(piece.content, Content::Zeroes) && whole(piece) => Action::Zero,
        [piece] if whole(piece) => Action::Allocate { buffer: None, place: None },
        _ => match IoBuffer::new(length as usize, shared.align) {
            Ok(buffer) => Action::Allocate { buffer: Some(buffer), place: None },
            Err(error) => {
                plan.result = Err(errno(&error));
                Action::Nothing
            }
        },
    };
    plan
}

/// Fills the buffers: the old content below, the new above.
async fn prepare_contents(shared: &Shared, plans: &mut [Plan<'_>]) {
    let jobs: Vec<Job<'_>> = plans.iter_mut().filter_map(|plan| plan.old_content(shared)).collect();
    join_all(jobs).await;
    for plan in plans {
        let Action::Allocate { buffer: Some(buffer), .. } = &mut plan.action else { continue };
        for piece in &plan.pieces {
            let (at, length) = (piece.start as usize, piece.length as usize);
            let target = &mut buffer.as_mut().into_slice()[at..at + length];
            match &piece.content {
                // SAFETY: the writer's buffers are valid until its piece is done, and as long as the piece.
                Content::Guest(iovecs) => unsafe {
                    copy(iovecs, target.as_mut_ptr(), length, Direction::FromGuest);
                },
                Content::Zeroes | Content::Flush => target.fill(0),
            }
        }
    }
}

/// Allocates clusters, adjacent ones together, and maps them in memory.
async fn map_clusters<'a>(shared: &'a Shared, plans: &mut [Plan<'a>]) {
    let mut index = 0;
    while index < plans.len() {
        let plan = &plans[index];
        if matches!(plan.action, Action::Zero) && plan.result.is_ok() {
            let result = shared.image.inner().ensure_zero_mapping(plan.start, plan.length).await;
            plans[index].result = match result {
                Ok((start, length)) if (start, length) == (plans[index].start, plans[index].length) => Ok(()),
                Ok(_) => Err(libc::EIO),
                Err(error) => Err(errno(&error)),
            };
        }
        if !plans[index].needs_cluster() {
            index += 1;
            continue;
        }
        let adjacent = plans[index..]
            .windows(2)
            .take_while(|pair| pair[1].needs_cluster() && pair[0].start + pair[0].length == pair[1].start);
        let count = 1 + adjacent.count();
        let start = plans[index].start;
        let length = plans[index..index + count].iter().map(|plan| plan.length).sum();
        index += match map_run(shared, start, length).await {
            Ok((file, place, mapped)) => {
                let mut done = 0;
                for plan in plans[index..index + count].iter_mut() {
                    if plan.start + plan.length > start + mapped {
                        break;
                    }
                    plan.place(file, place + (plan.start - start));
                    done += 1;
                }
                if done == 0 {
                    plans[index].result = Err(libc::EIO);
                }
                done.max(1)
            }
            Err(error) => {
                plans[index].result = Err(errno(&error));
                1
            }
        };
    }
}

/// Maps clusters from `start` on, at most `length` bytes; returns where they are and how many bytes were mapped.
async fn map_run(shared: &Shared, start: u64, length: u64) -> io::Result<(&FileStorage, u64, u64)> {
    let mapping = shared.image.prepare_data_mapping(start, length, true).await?;
    let (file, place, mapped) = (mapping.storage(), mapping.offset(), mapping.length());
    shared.image.commit_data_mapping(mapping).await?;
    Ok((file, place, mapped))
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
        match plans[first].action {
            Action::InPlace(file, place) => jobs.push(Box::pin(overwrite(file, place, &plans[first].pieces))),
            Action::Allocate { place: Some((file, place)), .. } => {
                let mut iovecs = plans[first].iovecs();
                while index < plans.len() && plans[index].follows(&plans[index - 1]) {
                    iovecs.extend(plans[index].iovecs());
                    index += 1;
                }
                // SAFETY: the plans own the buffers, or the writers do until their pieces are done.
                jobs.push(Box::pin(unsafe { file.write(iovecs, place) }));
            }
            _ => continue,
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
async fn undo_failed(shared: &Shared, plans: &mut [Plan<'_>]) {
    for plan in plans.iter().filter(|plan| plan.result.is_err() && plan.has_cluster()) {
        let image = &shared.image;
        let result = if plan.was_zero {
            // SAFETY: nobody uses the mapping that goes: it is unsettled, so no lookup has given it out.
            unsafe { image.discard_to_zero_unsafe(plan.start, plan.length) }.await
        } else {
            // SAFETY: as above.
            unsafe { image.discard_to_backing_unsafe(plan.start, plan.length) }.await
        };
        if result.is_err() {
            shared.allocator.state.set(State::Broken);
        }
    }
}

async fn flush_metadata(shared: &Shared) -> Result<(), i32> {
    if shared.allocator.is_broken() {
        return Err(libc::EIO);
    }
    let result = shared.image.flush().await;
    shared.allocator.state.set(if result.is_ok() { State::Clean } else { State::Unflushed });
    result.map_err(|error| errno(&error))
}

/// Lets the cache and the readers know what became of the clusters.
fn settle(shared: &Shared, plans: &[Plan<'_>], metadata: Result<(), i32>) {
    let mut map = shared.map.borrow_mut();
    for plan in plans.iter().filter(|plan| plan.changes_metadata()) {
        match &plan.action {
            Action::Allocate { place: Some((file, offset)), .. } if plan.result.and(metadata).is_ok() => {
                map.insert(plan.cluster, Place::File { layer: file.layer, offset: *offset });
            }
            _ => map.remove(plan.cluster),
        }
    }
    shared.allocator.unsettled.borrow_mut().clear();
    shared.allocator.waiting.borrow_mut().drain(..).for_each(Waker::wake);
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
        poll_fn(|cx| match self.is_unsettled(cluster) {
            false => Poll::Ready(()),
            true => {
                self.waiting.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
        })
        .await;
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

impl<'a> Plan<'a> {
    fn changes_metadata(&self) -> bool {
        matches!(self.action, Action::Zero | Action::Allocate { .. })
    }

    fn needs_cluster(&self) -> bool {
        matches!(self.action, Action::Allocate { place: None, .. }) && self.result.is_ok()
    }

    fn has_cluster(&self) -> bool {
        matches!(self.action, Action::Allocate { place: Some(_), .. })
    }

    fn place(&mut self, file: &'a FileStorage, offset: u64) {
        if let Action::Allocate { place, .. } = &mut self.action {
            *place = Some((file, offset));
        }
    }

    /// Whether the same request to the kernel can write this cluster and the one of `before`.
    fn follows(&self, before: &Plan<'_>) -> bool {
        match (&before.action, &self.action) {
            (
                Action::Allocate { place: Some((_, earlier)), .. },
                Action::Allocate { place: Some((_, place)), .. },
            ) => self.result.is_ok() && *place == earlier + before.length,
            _ => false,
        }
    }

    fn iovecs(&self) -> Vec<libc::iovec> {
        match (&self.action, &self.pieces[..]) {
            (Action::Allocate { buffer: Some(buffer), .. }, _) => {
                vec![iovec(buffer.as_ref().as_ptr().cast_mut(), buffer.len())]
            }
            (_, [Piece { content: Content::Guest(iovecs), .. }]) => iovecs.clone(),
            _ => unreachable!("a cluster without a buffer has one piece, the guest's"),
        }
    }

    fn old_content<'p>(&'p mut self, shared: &'p Shared) -> Option<Job<'p>> {
        let covered = self.pieces.iter().any(|piece| piece.length == self.length);
        let Action::Allocate { buffer: Some(buffer), .. } = &mut self.action else { return None };
        if covered {
            return None;
        }
        let (start, result) = (self.start, &mut self.result);
        Some(Box::pin(async move {
            *result = shared.image.read(buffer, start).await.map_err(|error| errno(&error));
            Ok(())
        }))
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
