//! Host work: a copy is whole, whoever dies meanwhile, can be given up at any time, and takes little from machines.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nagaya_plane::block::qcow2::layout;
use serde_json::json;

use crate::yard::{Client, DISK_LEN, PATIENCE, Yard, completed, once};

const COPY: &str = "%copy/test";

/// Half of it zeroes, in pieces.
fn content() -> Vec<u8> {
    (0..DISK_LEN)
        .map(|at| if at >> 17 & 1 == 0 { 0 } else { (at.wrapping_mul(0x9e37_79b9) >> 9) as u8 })
        .collect()
}

/// Wait for the end of the copy; its errno.
fn await_end(yard: &Yard) -> i64 {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(ended) = yard.take_events("JOB_ENDED").pop() {
            assert_eq!(ended["id"], COPY);
            return ended["errno"].as_i64().unwrap();
        }
        assert!(Instant::now() < end, "the copy does not end: {}", yard.device(COPY));
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_copy_of_an_overlay_has_every_byte_and_leaves_holes_for_zeroes() {
    let yard = Yard::new();
    let (base, top, target) = (yard.path("base"), yard.path("top"), yard.path("target"));
    std::fs::write(&base, content()).unwrap();
    layout::create(&top, DISK_LEN, Some((base.to_str().unwrap(), "raw"))).unwrap();
    let layers = [("qcow2", &top), ("raw", &base)];
    yard.copy(COPY, &layers, &target, &json!([])).unwrap();
    assert_eq!(await_end(&yard), 0);
    let state = yard.device(COPY);
    assert_eq!((state["copied"].as_u64(), state["to_copy"].as_u64()), (Some(DISK_LEN), Some(DISK_LEN)));
    yard.end_job(COPY);
    assert!(std::fs::read(&target).unwrap() == content());
    assert!(target.metadata().unwrap().blocks() * 512 < DISK_LEN * 3 / 4);
    assert!(yard.device(COPY).is_null());
}

#[test]
fn a_copy_goes_on_where_a_killed_worker_was() {
    let yard = Yard::new();
    let (from, target) = (yard.path("from"), yard.path("target"));
    std::fs::write(&from, content()).unwrap();
    // What was there before is gone, also where the source has zeroes.
    std::fs::write(&target, vec![7; DISK_LEN as usize]).unwrap();
    let shares = json!([{"id": "%copy", "limit": 16 << 20}]);
    yard.copy(COPY, &[("raw", &from)], &target, &shares).unwrap();
    let mut worker = yard.worker(0);
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(40));
        worker = yard.kill(worker);
    }
    let copied = yard.device(COPY)["copied"].as_u64().unwrap();
    assert!(copied < DISK_LEN, "killed too late");
    yard.set(&json!([{"id": "%copy", "remove": true}]));
    assert_eq!(await_end(&yard), 0);
    assert!(std::fs::read(&target).unwrap() == content());
}

/// A base, a layer on it and one on that; each layer with pieces of its own: 0 nothing, 1 data, 2 zeroes.
struct Stack {
    yard: Yard,
    base: PathBuf,
    lower: PathBuf,
    upper: PathBuf,
}

impl Stack {
    fn new() -> Stack {
        let yard = Yard::new();
        let [base, lower, upper] = ["base", "lower", "upper"].map(|name| yard.path(name));
        std::fs::write(&base, vec![9; DISK_LEN as usize]).unwrap();
        layout::create(&lower, DISK_LEN, Some((base.to_str().unwrap(), "raw"))).unwrap();
        layout::create(&upper, DISK_LEN, Some((lower.to_str().unwrap(), "qcow2"))).unwrap();
        let stack = Stack { yard, base, lower, upper };
        stack.fill(&stack.lower, 3, 1);
        stack.fill(&stack.upper, 1, 2);
        stack
    }

    /// Chunk n of 256 KiB gets data, zeroes or nothing, all combinations of two layers in nine chunks.
    fn fill(&self, layer: &Path, divisor: u64, byte: u8) {
        const PIECE: u64 = 256 << 10;
        for number in 0..DISK_LEN / PIECE {
            let what = match number / divisor % 3 {
                0 => continue,
                1 => format!("write -P {byte} {} {PIECE}", number * PIECE),
                _ => format!("write -z {} {PIECE}", number * PIECE),
            };
            qemu_io(layer, &what);
        }
    }

    fn read(&self, top: &Path) -> Vec<u8> {
        let raw = self.yard.path("read");
        run("qemu-img", &["convert", "-O", "raw", top.to_str().unwrap(), raw.to_str().unwrap()]);
        std::fs::read(raw).unwrap()
    }

    /// Have the upper layer's header name what it lies on now.
    fn put_on(&self, layer: &Path, below: &Path, format: &str) {
        let below = below.to_str().unwrap();
        run("qemu-img", &["rebase", "-u", "-b", below, "-F", format, layer.to_str().unwrap()]);
        run("qemu-img", &["check", layer.to_str().unwrap()]);
    }
}

fn qemu_io(file: &Path, what: &str) {
    run("qemu-io", &["-f", "qcow2", "-c", what, file.to_str().unwrap()]);
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

#[test]
fn a_layer_gets_what_the_one_below_has_and_reads_the_same_without_it() {
    let stack = Stack::new();
    let (base, lower, upper) = (("raw", &stack.base), ("qcow2", &stack.lower), ("qcow2", &stack.upper));
    let before = stack.read(&stack.upper);
    let options = json!({"top_only": true, "keep": true, "shares": [{"id": "%copy", "limit": 4 << 20}]});
    stack.yard.move_layers(COPY, [&[lower], &[upper, lower, base], &[]], &options);
    let mut worker = stack.yard.worker(0);
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(60));
        worker = stack.yard.kill(worker);
    }
    stack.yard.set(&json!([{"id": "%copy", "remove": true}]));
    assert_eq!(await_end(&stack.yard), 0);
    stack.yard.end_job(COPY);
    assert!(stack.read(&stack.upper) == before, "on the layer below");
    stack.put_on(&stack.upper, &stack.base, "raw");
    assert!(stack.read(&stack.upper) == before, "without it");
}

#[test]
fn a_layer_gets_what_the_one_above_has() {
    let stack = Stack::new();
    let (base, lower, upper) = (("raw", &stack.base), ("qcow2", &stack.lower), ("qcow2", &stack.upper));
    let before = stack.read(&stack.upper);
    stack.yard.move_layers(COPY, [&[upper], &[lower, base], &[]], &json!({"top_only": true}));
    assert_eq!(await_end(&stack.yard), 0);
    stack.yard.end_job(COPY);
    assert!(stack.read(&stack.upper) == before);
    assert!(stack.read(&stack.lower) == before);
    run("qemu-img", &["check", stack.lower.to_str().unwrap()]);
}

#[test]
fn a_layer_on_another_base_reads_the_same_and_has_only_what_differs() {
    let stack = Stack::new();
    let other = stack.yard.path("other");
    let mut content = vec![9; DISK_LEN as usize / 4 * 3];
    content[..1 << 20].fill(7);
    std::fs::write(&other, &content).unwrap();
    let before = stack.read(&stack.lower);
    let blocks = stack.lower.metadata().unwrap().blocks() * 512;
    let (base, lower) = (("raw", &stack.base), ("qcow2", &stack.lower));
    let unlike = [("raw", &other)];
    stack.yard.move_layers(COPY, [&[base], &[lower, base], &unlike], &json!({"keep": true}));
    assert_eq!(await_end(&stack.yard), 0);
    stack.yard.end_job(COPY);
    stack.put_on(&stack.lower, &other, "raw");
    assert!(stack.read(&stack.lower) == before);
    // A third of the last quarter, which the other base does not have, and of its first MiB.
    let more = stack.lower.metadata().unwrap().blocks() * 512 - blocks;
    assert!(more < DISK_LEN / 4, "{more} bytes more");
}

#[test]
fn a_layer_on_nothing_gets_a_base_and_stays_zero_where_it_was() {
    let stack = Stack::new();
    let alone = stack.yard.path("alone");
    layout::create(&alone, DISK_LEN, None).unwrap();
    stack.fill(&alone, 1, 3);
    let before = stack.read(&alone);
    let top = [("qcow2", &alone)];
    stack.yard.move_layers(COPY, [&top, &top, &[("raw", &stack.base)]], &json!({"keep": true}));
    assert_eq!(await_end(&stack.yard), 0);
    stack.yard.end_job(COPY);
    stack.put_on(&alone, &stack.base, "raw");
    assert!(stack.read(&alone) == before);
}

#[test]
fn a_copy_to_qcow2_is_whole_and_sparse() {
    let yard = Yard::new();
    let (from, target) = (yard.path("from"), yard.path("target"));
    std::fs::write(&from, content()).unwrap();
    layout::create(&target, DISK_LEN, None).unwrap();
    yard.move_layers(COPY, [&[("raw", &from)], &[("qcow2", &target)], &[]], &json!({}));
    assert_eq!(await_end(&yard), 0);
    yard.end_job(COPY);
    run("qemu-img", &["compare", from.to_str().unwrap(), target.to_str().unwrap()]);
    assert!(target.metadata().unwrap().blocks() * 512 < DISK_LEN * 3 / 4);
}

#[test]
fn a_copy_that_waits_is_given_up_at_once_and_its_name_is_free() {
    let yard = Yard::new();
    let (from, target) = (yard.path("from"), yard.path("target"));
    std::fs::write(&from, content()).unwrap();
    let shares = json!([{"id": "%copy", "limit": 1}]);
    for _ in 0..2 {
        yard.copy(COPY, &[("raw", &from)], &target, &shares).unwrap();
        let end = Instant::now() + PATIENCE;
        while yard.node("%copy")["waiting"].as_u64().unwrap_or(0) == 0 {
            assert!(Instant::now() < end, "it does not begin");
            thread::sleep(Duration::from_millis(1));
        }
        yard.end_job(COPY);
        assert!(yard.node("%copy").is_null());
    }
}

#[test]
fn a_copy_that_cannot_be_says_why() {
    let yard = Yard::new();
    let (from, target) = (yard.path("from"), yard.path("target"));
    std::fs::write(&from, b"not a qcow2").unwrap();
    let error =
        yard.copy(COPY, &[("qcow2", &from)], &target, &json!([{"id": "%copy", "weight": 3}])).unwrap_err();
    assert!(!error.to_string().is_empty());
    assert!(yard.device(COPY).is_null());
    std::fs::write(&from, content()).unwrap();
    yard.copy(COPY, &[("raw", &from)], &target, &json!([])).unwrap();
    assert_eq!(await_end(&yard), 0);
}

#[test]
fn a_machine_loses_little_to_a_copy() {
    let yard = Yard::new();
    let clients = [Client::start(&yard.simulated("m0/disk0"), 32)];
    completed(&clients, 100);
    yard.copy_simulated(COPY, &yard.path("target"));
    // A window that has room for all of the machine's requests keeps nothing in order.
    let end = Instant::now() + PATIENCE;
    while yard.window() >= 30 {
        assert!(Instant::now() < end, "the window stays at {}", yard.window());
        completed(&clients, 200);
    }
    let dispatched = |id| yard.node(id)["dispatched"].as_u64().unwrap_or(0);
    let measure = || {
        let before = (dispatched("m0"), dispatched("%copy"));
        completed(&clients, 1000);
        (dispatched("m0") - before.0, dispatched("%copy") - before.1)
    };
    // Without turns it would have half as many as the machine: it keeps 16 in flight, and the machine 32. By weight it
    // has one of 25, and more while the machine's client has no CPU to ask.
    once(measure, |(machine, copy)| *copy > 0 && copy * 8 < *machine);
    let [client] = clients;
    client.leave();
}
