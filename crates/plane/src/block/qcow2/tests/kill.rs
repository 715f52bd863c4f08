//! A process that serves an overlay is killed at random points; the next one must find every answered write.

use std::collections::HashSet;
use std::env;
use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};
use std::thread::{sleep, spawn as spawn_thread};

use super::*;
use crate::page::DevicePage;

pub(super) const BLOCK: u64 = 4096;
pub(super) const BLOCKS: u64 = 24 * CLUSTER / BLOCK;
pub(super) const BASE: u64 = 16 * CLUSTER;
const DEPTH: usize = 24;
const PATH_VARIABLE: &str = "NAGAYA_TEST_OVERLAY";

/// What may be done to a run of blocks. In the log: one byte of kind, and what `value` is for it.
const WRITE: u8 = 0;
const ZERO: u8 = 1;
const DISCARD: u8 = 2;
/// All before is durable; of no blocks.
pub(super) const FLUSH: u8 = 3;

/// One line of the child's log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub done: bool,
    pub kind: u8,
    first: u64,
    count: u64,
    /// What every 8 bytes of a written block hold.
    stamp: u64,
}

impl Entry {
    const SIZE: usize = 32;

    fn bytes(self) -> [u8; Entry::SIZE] {
        let mut bytes = [0; Entry::SIZE];
        let words = [u64::from(self.done) | u64::from(self.kind) << 8, self.first, self.count, self.stamp];
        for (chunk, word) in bytes.chunks_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The same, not answered.
    pub fn under_way(self) -> Entry {
        Entry { done: false, ..self }
    }

    fn parse(bytes: &[u8]) -> Entry {
        let word = |index: usize| u64::from_le_bytes(bytes[index * 8..][..8].try_into().unwrap());
        Entry {
            done: word(0) & 1 != 0,
            kind: (word(0) >> 8) as u8,
            first: word(1),
            count: word(2),
            stamp: word(3),
        }
    }
}

/// What a block may hold: the stamps of writes, 0 for zeroes, `None` for what the base has or anything else.
pub(super) type Possible = HashSet<Option<u64>>;

#[test]
fn no_answered_write_is_lost_when_the_process_is_killed() {
    let mut random = Random(0x6e61_6761_7961);
    for image in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let (top, raw) = overlay(dir.path(), BASE, BLOCKS * BLOCK);
        let mut model: Vec<Possible> = (0..BLOCKS)
            .map(|block| HashSet::from([if block * BLOCK < BASE { None } else { Some(0) }]))
            .collect();
        let mut answered = 0;
        for round in 0..8 {
            let child = spawn(dir.path());
            let log = kill(child, Duration::from_micros(random.below(40_000)));
            answered += log.iter().filter(|entry| entry.done).count();
            replay(&mut model, &log);
            let layers = [(top.as_path(), Format::Qcow2), (raw.as_path(), Format::Raw)];
            let bench = Bench::with(&layers, Some(&page_in(dir.path())), round % 2 == 0).unwrap();
            verify(&bench, &mut model, &format!("image {image} round {round}"));
            drop(bench);
            check_image(&top, true);
        }
        assert!(answered >= 8 * 8 / 2, "image {image}: {answered} requests answered");
    }
}

/// The same without chance: a disk stops before its first write, then before its second, and so on.
#[test]
fn no_answered_write_is_lost_when_a_disk_stops_before_any_write() {
    for seed in 1..3 {
        for writes in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let (top, raw) = overlay(dir.path(), BASE, BLOCKS * BLOCK);
            let layers = [(top.as_path(), Format::Qcow2), (raw.as_path(), Format::Raw)];
            let mut log = Vec::new();
            fuse::set(writes);
            let page = page_in(dir.path());
            let bench = Bench::with(&layers, Some(&page), false).unwrap();
            let stopped =
                serve(&bench, &mut Random(seed << 40 | 1), (6, 32), 110, &mut |entry| log.push(entry));
            drop(bench);
            fuse::set(u64::MAX);
            let mut model = untouched();
            replay(&mut model, &log);
            let bench = Bench::with(&layers, Some(&page), false).unwrap();
            verify(&bench, &mut model, &format!("seed {seed}, after {writes} writes"));
            drop(bench);
            check_image(&top, true);
            if !stopped {
                assert!(writes > 30, "{writes} writes in all");
                break;
            }
        }
    }
}

/// The page of the overlay in `dir`, in a file that both processes map.
fn page_in(dir: &Path) -> Rc<Page> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join("page"));
    let file = file.unwrap();
    file.set_len(size_of::<DevicePage>() as u64).unwrap();
    Rc::new(Page::map(file).unwrap())
}

/// The other process: random requests until it is killed, a line to stdout before and after each.
#[test]
#[ignore = "run by no_answered_write_is_lost_when_the_process_is_killed"]
fn child() {
    let Ok(dir) = env::var(PATH_VARIABLE) else { return };
    let dir = Path::new(&dir);
    let (top, raw) = (dir.join("top.qcow2"), dir.join("base.raw"));
    let layers = [(top.as_path(), Format::Qcow2), (raw.as_path(), Format::Raw)];
    let mut random = Random(u64::from(std::process::id()) << 20 | 1);
    let bench = Bench::with(&layers, Some(&page_in(dir)), random.below(2) == 0).unwrap();
    let mut log = File::create("/dev/fd/3").unwrap();
    serve(&bench, &mut random, (DEPTH, 32), usize::MAX, &mut |entry| log.write_all(&entry.bytes()).unwrap());
}

/// Runs `requests` random requests, `depth` at a time, one in `flushes` followed by a flush, and says so before and after
/// each. Returns whether the fuse burnt.
pub(super) fn serve(
    bench: &Bench,
    random: &mut Random,
    (depth, flushes): (usize, u64),
    requests: usize,
    log: &mut dyn FnMut(Entry),
) -> bool {
    let mut busy: HashSet<u64> = HashSet::new();
    let mut running: Vec<(u64, Entry)> = Vec::new();
    let mut left = requests;
    while left > 0 || !running.is_empty() {
        while left > 0 && running.len() < depth {
            let entry = random.entry();
            let blocks = entry.first..entry.first + entry.count;
            if blocks.clone().any(|block| busy.contains(&block)) {
                break;
            }
            busy.extend(blocks);
            left -= 1;
            log(entry);
            running.push((start(bench, entry), entry));
            if random.below(flushes) == 0 {
                match bench.simple(Operation::Flush, 0, 0) {
                    Err(libc::ESHUTDOWN) => return true,
                    result => result.unwrap(),
                }
                log(Entry { done: true, kind: FLUSH, first: 0, count: 0, stamp: 0 });
            }
        }
        if running.is_empty() {
            continue;
        }
        let (token, entry) = running.swap_remove(random.below(running.len() as u64) as usize);
        match bench.finish(token) {
            Err(libc::ESHUTDOWN) => return true,
            result => result.unwrap(),
        };
        log(Entry { done: true, ..entry });
        (entry.first..entry.first + entry.count).for_each(|block| assert!(busy.remove(&block)));
    }
    false
}

fn start(bench: &Bench, entry: Entry) -> u64 {
    let (offset, length) = (entry.first * BLOCK, entry.count * BLOCK);
    match entry.kind {
        WRITE => {
            let memory = entry.stamp.to_le_bytes().repeat((length / 8) as usize);
            bench.start(Operation::Write, offset, length, memory, &[512, 1536])
        }
        ZERO => {
            let unmap = entry.stamp & 2 == 0;
            bench.start(Operation::WriteZeroes { unmap }, offset, length, Vec::new(), &[])
        }
        _ => bench.start(Operation::Discard, offset, length, Vec::new(), &[]),
    }
}

pub(super) fn untouched() -> Vec<Possible> {
    (0..BLOCKS).map(|block| HashSet::from([if block * BLOCK < BASE { None } else { Some(0) }])).collect()
}

/// Checks every block, and takes what it holds as the only possibility from now on.
pub(super) fn verify(bench: &Bench, model: &mut [Possible], when: &str) {
    let content = bench.read(0, BLOCKS * BLOCK).unwrap();
    for (block, (bytes, possible)) in content.chunks(BLOCK as usize).zip(model).enumerate() {
        if !is_base(bytes, block as u64) && !is_whole(bytes) {
            // A ring that is closed cancels what is under way, even a write that is half done.
            assert!(possible.len() > 1, "{when} block {block}: torn, and nothing was under way");
            continue;
        }
        let found = stamp_of(bytes, block as u64);
        assert!(possible.contains(&found), "{when} block {block}: {found:x?}, not {possible:x?}");
        *possible = HashSet::from([found]);
    }
}

fn spawn(dir: &Path) -> Child {
    Command::new("/bin/sh")
        .args([
            "-c",
            "exec \"$0\" --exact block::qcow2::tests::kill::child --ignored --nocapture 3>&1 >/dev/null",
        ])
        .arg(env::current_exe().unwrap())
        .env(PATH_VARIABLE, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until some requests have been answered, lets the child run for `time`, kills it and returns its whole log.
fn kill(mut child: Child, time: Duration) -> Vec<Entry> {
    let mut pipe = child.stdout.take().unwrap();
    let mut bytes = vec![0; (DEPTH + 8) * Entry::SIZE];
    pipe.read_exact(&mut bytes).unwrap();
    let reader = spawn_thread(move || {
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    });
    sleep(time);
    child.kill().unwrap();
    // The kernel lets a process go only when its I/O in flight has ended.
    child.wait().unwrap();
    reader.join().unwrap().chunks_exact(Entry::SIZE).map(Entry::parse).collect()
}

/// What the log allows: the last answered state of each block, or what was under way after it.
pub(super) fn replay(model: &mut [Possible], log: &[Entry]) {
    for entry in log {
        let value = match entry.kind {
            WRITE => Some(entry.stamp),
            ZERO => Some(0),
            _ => None,
        };
        for possible in &mut model[entry.first as usize..(entry.first + entry.count) as usize] {
            // A discarded block holds what it held, zeroes, or what the base has.
            if entry.kind == DISCARD {
                possible.extend([None, Some(0)]);
                continue;
            }
            if entry.done {
                possible.clear();
            }
            possible.insert(value);
        }
    }
}

/// The stamp of a whole block; what the base has is `None`.
fn stamp_of(bytes: &[u8], block: u64) -> Option<u64> {
    if is_base(bytes, block) {
        return None;
    }
    Some(u64::from_le_bytes(bytes[..8].try_into().unwrap()))
}

fn is_base(bytes: &[u8], block: u64) -> bool {
    bytes.iter().enumerate().all(|(at, byte)| *byte == base_byte(block * BLOCK + at as u64))
}

fn is_whole(bytes: &[u8]) -> bool {
    bytes.chunks(8).all(|word| *word == bytes[..8])
}

/// xorshift64: no more is needed to choose moments and blocks.
pub(super) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn entry(&mut self) -> Entry {
        let count = if self.below(8) == 0 { 1 + self.below(40) } else { 1 + self.below(3) };
        let first = self.below(BLOCKS - count);
        let kind = [WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, ZERO, DISCARD][self.below(8) as usize];
        self.below(2);
        Entry { done: false, kind, first, count, stamp: self.0 | 1 << 63 }
    }
}
