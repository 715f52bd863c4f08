//! Host work: a copy is whole, whoever dies meanwhile, can be given up at any time, and takes little from machines.

use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use nagaya_plane::block::qcow2::layout;
use serde_json::json;

use crate::yard::{Client, DISK_LEN, PATIENCE, Yard, completed};

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
    completed(&clients, 200);
    yard.copy_simulated(COPY, &yard.path("target"));
    // A window that has room for all of the machine's requests keeps nothing in order.
    let end = Instant::now() + PATIENCE;
    while yard.window() >= 30 {
        assert!(Instant::now() < end, "the window stays at {}", yard.window());
        completed(&clients, 400);
    }
    let dispatched = |id| yard.node(id)["dispatched"].as_u64().unwrap_or(0);
    let before = (dispatched("m0"), dispatched("%copy"));
    completed(&clients, 2000);
    let (machine, copy) = (dispatched("m0") - before.0, dispatched("%copy") - before.1);
    // Without turns it would have half as many as the machine: it keeps 16 in flight, and the machine 32. By weight it
    // has one of 25, and more while the machine's client has no CPU to ask.
    assert!(copy > 0 && copy * 8 < machine, "{copy} requests of the copy beside {machine}");
    let [client] = clients;
    client.leave();
}
