use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::*;
use crate::block::UNFLUSHED;
use crate::block::storage::fuse;
use proptest::prelude::*;

mod hostile;
mod kill;
mod power;

const CLUSTER: u64 = 64 << 10;

/// A disk with a loop of its own, and the memory of its requests.
struct Bench {
    uring: Rc<Uring>,
    disk: Qcow2Disk,
    pending: RefCell<HashMap<u64, Pending>>,
    next: RefCell<u64>,
}

struct Pending {
    completions: usize,
    result: i64,
    memory: Vec<u8>,
    _iovecs: Vec<libc::iovec>,
}

impl Bench {
    /// With a page of its own: what is not flushed is lost with it.
    fn open(paths: &[(&Path, Format)], writable: bool, direct: bool) -> io::Result<Bench> {
        let page = Rc::new(Page::create()?);
        Bench::with(paths, writable.then_some(&page), direct)
    }

    /// With a page that outlives it, as a worker's does.
    fn with(paths: &[(&Path, Format)], page: Option<&Rc<Page>>, direct: bool) -> io::Result<Bench> {
        let writable = page.is_some();
        let uring = Rc::new(Uring::new(64)?);
        let layers = paths.iter().enumerate().map(|(index, (path, format))| {
            let file = OpenOptions::new().read(true).write(writable && index == 0).open(path)?;
            Ok(Layer { fd: file.into(), format: *format })
        });
        let disk = Qcow2Disk::open(&uring, layers.collect::<io::Result<_>>()?, page, direct)?;
        Ok(Bench { uring, disk, pending: RefCell::default(), next: RefCell::new(0) })
    }

    /// Starts a request whose buffers have the given lengths and returns its token.
    fn start(&self, operation: Operation, offset: u64, length: u64, memory: Vec<u8>, cuts: &[usize]) -> u64 {
        let mut iovecs = Vec::new();
        let mut at = 0;
        for cut in cuts.iter().copied().chain([memory.len()]).filter(|cut| *cut <= memory.len()) {
            if cut > at {
                iovecs.push(iovec(memory[at..].as_ptr().cast_mut(), cut - at));
                at = cut;
            }
        }
        let token = self.next.replace_with(|token| *token + 1);
        let request =
            Request { operation, offset, length, iovecs: iovecs.as_ptr(), iovec_count: iovecs.len(), token };
        // SAFETY: `pending` keeps list and memory until the last completion.
        let completions = unsafe { self.disk.submit(&self.uring, &request) };
        assert!(completions > 0);
        let pending = Pending { completions, result: 0, memory, _iovecs: iovecs };
        self.pending.borrow_mut().insert(token, pending);
        token
    }

    /// Runs until `token` is complete.
    fn finish(&self, token: u64) -> Result<Vec<u8>, i32> {
        while self.pending.borrow()[&token].completions > 0 {
            self.uring.tasks.run_ready();
            if fuse::burnt() {
                return Err(libc::ESHUTDOWN);
            }
            self.uring.submit_and_wait(Some(Duration::from_secs(10))).unwrap();
            self.uring.reap(|token, result, _| {
                let mut pending = self.pending.borrow_mut();
                let entry = pending.get_mut(&token).unwrap();
                entry.completions = entry.completions.checked_sub(1).expect("completed once");
                entry.result = match result {
                    _ if entry.result < 0 => entry.result,
                    error if error < 0 => error.into(),
                    count => entry.result + i64::from(count),
                };
            });
        }
        let entry = self.pending.borrow_mut().remove(&token).unwrap();
        if entry.result < 0 { Err(-(entry.result as i32)) } else { Ok(entry.memory) }
    }

    fn write(&self, offset: u64, content: &[u8]) -> Result<(), i32> {
        let memory = content.to_vec();
        self.finish(self.start(Operation::Write, offset, content.len() as u64, memory, &[])).map(drop)
    }

    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, i32> {
        self.finish(self.start(Operation::Read, offset, length, vec![0xee; length as usize], &[]))
    }

    fn simple(&self, operation: Operation, offset: u64, length: u64) -> Result<(), i32> {
        self.finish(self.start(operation, offset, length, Vec::new(), &[])).map(drop)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Tasks that cannot go on hold the ring, and the ring holds the tasks.
        self.uring.tasks.abandon();
    }
}

/// A raw base of `size` bytes, each sector of which says where it is, and an overlay of `disk` bytes over it.
fn overlay(dir: &Path, base: u64, disk: u64) -> (PathBuf, PathBuf) {
    let (top, raw) = (dir.join("top.qcow2"), dir.join("base.raw"));
    let file = File::create(&raw).unwrap();
    let content: Vec<u8> = (0..base).map(base_byte).collect();
    file.write_all_at(&content, 0).unwrap();
    layout::create(&top, disk, Some((raw.to_str().unwrap(), "raw"))).unwrap();
    (top, raw)
}

fn base_byte(at: u64) -> u8 {
    (1 + at / 512 % 251) as u8
}

fn check_image(path: &Path, leaks: bool) {
    let output = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(path).output().unwrap();
    let code = output.status.code().unwrap();
    assert!(code == 0 || (leaks && code == 3), "{output:?}");
}

#[test]
fn more_clusters_at_once_than_a_batch_takes() {
    let dir = tempfile::tempdir().unwrap();
    let (top, raw) = overlay(dir.path(), 0, 300 * CLUSTER);
    let bench = Bench::open(&[(&top, Format::Qcow2), (&raw, Format::Raw)], true, false).unwrap();
    let tokens: Vec<u64> = (0..300)
        .map(|cluster| {
            bench.start(
                Operation::Write,
                cluster * CLUSTER,
                512,
                vec![(cluster as u8).wrapping_add(1); 512],
                &[],
            )
        })
        .collect();
    tokens.into_iter().for_each(|token| drop(bench.finish(token).unwrap()));
    for cluster in 0..300 {
        assert_eq!(bench.read(cluster * CLUSTER, 512).unwrap(), vec![(cluster as u8).wrapping_add(1); 512]);
    }
}

/// Of 200 writes, each is answered or finds no space, and flushes too; nothing else, and in the end all is there.
#[test]
fn a_full_host_refuses_writes_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (top, raw) = overlay(dir.path(), 8 * CLUSTER, 2000 * CLUSTER);
    let layers = [(top.as_path(), Format::Qcow2), (raw.as_path(), Format::Raw)];
    let page = Rc::new(Page::create().unwrap());
    let bench = Bench::with(&layers, Some(&page), false).unwrap();
    let mut rest: Vec<u64> = (0..200).map(|index| index * 7 % 200).collect();
    fuse::fill(true);
    for round in 0..20 {
        fuse::fill(round < 19);
        let started: Vec<(u64, u64)> = rest
            .drain(..)
            .map(|index| {
                let memory = vec![1 + index as u8; 4096];
                (index, bench.start(Operation::Write, index * 9 * CLUSTER + 512, 4096, memory, &[]))
            })
            .collect();
        let flush = bench.start(Operation::Flush, 0, 0, Vec::new(), &[]);
        for (index, token) in started {
            match bench.finish(token) {
                Err(libc::ENOSPC) => rest.push(index),
                result => drop(result.unwrap()),
            }
        }
        if let Err(code) = bench.finish(flush) {
            assert_eq!((code, round < 19), (-UNFLUSHED, true));
        }
    }
    assert!(rest.is_empty());
    let bench = {
        drop(bench);
        Bench::with(&layers, Some(&page), false).unwrap()
    };
    for index in 0..200 {
        assert_eq!(bench.read(index * 9 * CLUSTER + 512, 4096).unwrap(), vec![1 + index as u8; 4096]);
    }
    check_image(&top, true);
}

/// One step of the model test.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Read(u64, u64),
    Flush,
    Reopen,
}

const SECTORS: u64 = 5 * 128 + 7;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || {
        (0..SECTORS, prop_oneof![3 => 1..16u64, 1 => 1..300u64])
            .prop_map(|(start, length)| (start * 512, length.min(SECTORS - start) * 512))
    };
    let step = prop_oneof![
        6 => (range(), 1..255u8).prop_map(|((at, length), fill)| Step::Write(at, length, fill)),
        2 => (range(), any::<bool>()).prop_map(|((at, length), unmap)| Step::Zero(at, length, unmap)),
        1 => range().prop_map(|(at, length)| Step::Discard(at, length)),
        4 => range().prop_map(|(at, length)| Step::Read(at, length)),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Against a plain array; what was discarded may be anything.
    #[test]
    fn a_disk_behaves_like_an_array(steps in steps(), direct in any::<bool>(), base in 0..SECTORS) {
        let dir = tempfile::tempdir().unwrap();
        let (disk, base) = (SECTORS * 512, base * 512 + 100);
        let (top, raw) = overlay(dir.path(), base, disk);
        let page = Rc::new(Page::create().unwrap());
        let open = || Bench::with(&[(&top, Format::Qcow2), (&raw, Format::Raw)], Some(&page), direct).unwrap();
        let mut bench = Some(open());
        let mut model: Vec<Option<u8>> =
            (0..disk).map(|at| Some(if at < base { base_byte(at) } else { 0 })).collect();
        for step in steps {
            let now = bench.as_ref().unwrap();
            match step {
                Step::Write(at, length, fill) => {
                    now.write(at, &vec![fill; length as usize]).unwrap();
                    model[at as usize..(at + length) as usize].fill(Some(fill));
                }
                Step::Zero(at, length, unmap) => {
                    now.simple(Operation::WriteZeroes { unmap }, at, length).unwrap();
                    model[at as usize..(at + length) as usize].fill(Some(0));
                }
                Step::Discard(at, length) => {
                    now.simple(Operation::Discard, at, length).unwrap();
                    model[at as usize..(at + length) as usize].fill(None);
                }
                Step::Read(at, length) => same(&now.read(at, length).unwrap(), &model[at as usize..]),
                Step::Flush => now.simple(Operation::Flush, 0, 0).unwrap(),
                // Without `close`, as a killed worker would leave it.
                Step::Reopen => {
                    bench = None;
                    bench = bench.or_else(|| Some(open()));
                }
            }
        }
        same(&bench.as_ref().unwrap().read(0, disk).unwrap(), &model);
        drop(bench);
        same(&open().read(0, disk).unwrap(), &model);
        check_image(&top, false);
    }
}

fn same(bytes: &[u8], model: &[Option<u8>]) {
    let wrong = bytes.iter().zip(model).position(|(byte, model)| model.is_some_and(|model| model != *byte));
    if let Some(at) = wrong {
        panic!("byte {at} is {}, not {:?}", bytes[at], model[at]);
    }
}

#[test]
fn requests_side_by_side_in_the_same_new_clusters_all_arrive() {
    for direct in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (top, raw) = overlay(dir.path(), 4 * CLUSTER, 8 * CLUSTER);
        let bench = Bench::open(&[(&top, Format::Qcow2), (&raw, Format::Raw)], true, direct).unwrap();
        let blocks = 8 * CLUSTER / 4096;
        // A permutation: 37 and the count have no common divisor.
        let order = (0..blocks).map(|block| block * 37 % blocks);
        let write = |block: u64| {
            let memory = vec![block as u8; 4096];
            bench.start(Operation::Write, block * 4096, 4096, memory, &[100, 512, 2048])
        };
        let tokens: Vec<u64> = order.map(write).collect();
        for token in tokens {
            bench.finish(token).unwrap();
        }
        let content = bench.read(0, 8 * CLUSTER).unwrap();
        for (index, chunk) in content.chunks(4096).enumerate() {
            assert!(chunk.iter().all(|byte| *byte == index as u8), "block {index}");
        }
        drop(bench);
        check_image(&top, false);
    }
}

#[test]
fn a_mapped_request_takes_the_fast_path_and_an_unmapped_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let (top, raw) = overlay(dir.path(), 4 * CLUSTER, 8 * CLUSTER);
    let bench = Bench::open(&[(&top, Format::Qcow2), (&raw, Format::Raw)], true, false).unwrap();
    let fast = |operation, offset, length: u64| {
        let memory = vec![1; length as usize];
        let before = bench.uring.raw_inflight();
        let token = bench.start(operation, offset, length, memory, &[]);
        let pushed = bench.uring.raw_inflight() - before;
        bench.finish(token).unwrap();
        pushed
    };
    assert_eq!(fast(Operation::Read, 4096, 4096), 0);
    assert_eq!(fast(Operation::Read, 8192, 4096), 1, "the base, once it was looked up");
    assert_eq!(fast(Operation::Write, 4096, 4096), 0);
    assert_eq!(fast(Operation::Write, 8192, 4096), 1);
    assert_eq!(fast(Operation::Write, CLUSTER, 2 * CLUSTER), 0);
    assert_eq!(fast(Operation::Write, 0, 2 * CLUSTER), 1, "neighbours in the file are one request");
    fast(Operation::Write, 5 * CLUSTER, 4096);
    fast(Operation::Write, 4 * CLUSTER, 4096);
    assert_eq!(fast(Operation::Read, 4 * CLUSTER, 2 * CLUSTER), 2, "others are several");
    assert_eq!(fast(Operation::Flush, 0, 0), 0, "the tables go into the file");
    assert_eq!(fast(Operation::Flush, 0, 0), 1, "they are there");
}

#[test]
fn layers_of_qcow2_below_are_read_and_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let (middle, raw) = overlay(dir.path(), 4 * CLUSTER, 4 * CLUSTER);
    {
        let bench = Bench::open(&[(&middle, Format::Qcow2), (&raw, Format::Raw)], true, false).unwrap();
        bench.write(CLUSTER + 512, &[7; 512]).unwrap();
        bench.disk.close().unwrap();
    }
    let compressed = dir.path().join("compressed.qcow2");
    let convert = Command::new("qemu-img")
        .args(["convert", "-c", "-O", "qcow2", "-o", "cluster_size=4k"])
        .args([&middle, &compressed])
        .status();
    assert!(convert.unwrap().success());
    let top = dir.path().join("third.qcow2");
    for layers in [
        vec![(middle.as_path(), Format::Qcow2), (&raw, Format::Raw)],
        vec![(compressed.as_path(), Format::Qcow2)],
    ] {
        let _ = std::fs::remove_file(&top);
        layout::create(&top, 4 * CLUSTER + 512, None).unwrap();
        let before: Vec<_> = layers.iter().map(|(path, _)| std::fs::read(path).unwrap()).collect();
        let chain: Vec<_> =
            [(top.as_path(), Format::Qcow2)].into_iter().chain(layers.iter().copied()).collect();
        let bench = Bench::open(&chain, true, false).unwrap();
        assert_eq!(bench.read(CLUSTER, 1536).unwrap()[512..1024], [7; 512]);
        assert_eq!(bench.read(0, 1).map(drop), Ok(()));
        bench.write(CLUSTER + 1024, &[9; 512]).unwrap();
        let content = bench.read(0, 4 * CLUSTER + 512).unwrap();
        for (at, byte) in content.iter().enumerate() {
            let at = at as u64;
            let expected = match at.checked_sub(CLUSTER).map(|at| at / 512) {
                Some(1) => 7,
                Some(2) => 9,
                _ if at >= 4 * CLUSTER => 0,
                _ => base_byte(at),
            };
            assert_eq!(*byte, expected, "byte {at}");
        }
        drop(bench);
        let after: Vec<_> = layers.iter().map(|(path, _)| std::fs::read(path).unwrap()).collect();
        assert!(before == after, "a layer below has changed");
        check_image(&top, false);
    }
}

#[test]
fn a_log_that_no_worker_writes_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (top, raw) = overlay(dir.path(), 4 * CLUSTER, 8 * CLUSTER);
    let before = std::fs::read(&top).unwrap();
    let layers = [(top.as_path(), Format::Qcow2), (raw.as_path(), Format::Raw)];
    let data = before.len() as u64;
    for (cluster, place) in [(8, data), (0, 0), (0, CLUSTER), (0, data + 512), (0, 1 << 50), (u64::MAX, 1)] {
        let page = Rc::new(Page::create().unwrap());
        page.mappings.append(1, data + CLUSTER);
        page.mappings.append(cluster, place);
        let error = Bench::with(&layers, Some(&page), true).map(drop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{cluster} to {place:#x}");
        assert!(std::fs::read(&top).unwrap() == before);
    }
}

#[test]
fn what_is_not_ours_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("foreign.qcow2");
    let create = Command::new("qemu-img").args(["create", "-f", "qcow2"]).arg(&path).arg("1M").output();
    assert!(create.unwrap().status.success());
    let kind = |result: io::Result<Bench>| result.map(drop).unwrap_err().kind();
    assert_eq!(kind(Bench::open(&[(&path, Format::Qcow2)], true, false)), io::ErrorKind::InvalidData);
    Bench::open(&[(&path, Format::Qcow2)], false, false).unwrap().read(0, 1 << 20).unwrap();
    assert_eq!(kind(Bench::open(&[(&path, Format::Raw)], false, false)), io::ErrorKind::InvalidData);
    let both = [(path.as_path(), Format::Qcow2), (&path, Format::Raw), (&path, Format::Raw)];
    assert_eq!(kind(Bench::open(&both, false, false)), io::ErrorKind::InvalidData);
}
