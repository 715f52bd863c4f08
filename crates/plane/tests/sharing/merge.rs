//! Neighbours that wait are one request to the device, and each guest request has its own end.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nagaya_client::stamp::Stamper;
use nagaya_client::{Blk, BlkOptions, Request};
use serde_json::json;

use crate::yard::{Client, PATIENCE, Yard, completed, once};

const BLOCK: u64 = 4096;

/// Have the requests of `blk` wait, and then go, all in one turn.
fn at_once(yard: &Yard, blk: &mut Blk, requests: &[Request]) -> Vec<u8> {
    yard.set(&json!([{"id": "m0", "limit_iops": 1}]));
    // An answer to this is one to the limit too.
    assert_eq!(yard.node("m0")["limit_iops"], 1);
    // What the limit lets pass at first; the next may go a second later.
    blk.run(Request::Flush, PATIENCE).unwrap();
    let mut statuses = vec![None; requests.len()];
    for (slot, request) in requests.iter().enumerate() {
        blk.submit(slot as u16, *request);
    }
    blk.kick().unwrap();
    let end = Instant::now() + PATIENCE;
    while yard.node("m0")["waiting"] != requests.len() {
        assert!(Instant::now() < end, "they do not wait: {}", yard.node("m0"));
        std::thread::sleep(Duration::from_millis(1));
    }
    yard.set(&json!([{"id": "m0", "remove": true}]));
    while blk.in_flight() > 0 {
        assert!(blk.wait(PATIENCE).unwrap(), "no completion");
        while let Some(done) = blk.poll().unwrap() {
            if let Some(status) = statuses.get_mut(usize::from(done.slot)) {
                assert_eq!(status.replace(done.status), None);
            }
        }
    }
    statuses.into_iter().map(|status| status.expect("each has an answer")).collect()
}

fn read(block: u64) -> Request {
    Request::Read { sector: block * 8, len: BLOCK as u32 }
}

fn write(block: u64) -> Request {
    Request::Write { sector: block * 8, len: BLOCK as u32 }
}

#[test]
fn neighbours_are_merged_and_each_has_its_own_bytes() {
    let yard = Yard::new();
    let mut blk =
        Blk::open(&yard.raw("m0/disk0"), BlkOptions { slots: 32, ..BlkOptions::default() }).unwrap();
    let image =
        File::options().read(true).write(true).open(yard.path("m0/disk0").with_extension("raw")).unwrap();
    // With a gap in the middle.
    let blocks: Vec<u64> = (0..32).map(|number| number + 8 * u64::from(number >= 16)).collect();
    for block in &blocks {
        image.write_all_at(&[*block as u8 + 1; BLOCK as usize], block * BLOCK).unwrap();
    }
    let reads: Vec<Request> = blocks.iter().map(|block| read(*block)).collect();
    assert_eq!(at_once(&yard, &mut blk, &reads), [0; 32]);
    for (slot, block) in blocks.iter().enumerate() {
        let mut bytes = [0; BLOCK as usize];
        blk.device.memory.get_bytes(blk.buffer(slot as u16), &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == *block as u8 + 1), "block {block}");
    }
    let joined = yard.node("m0")["joined"].as_u64();
    assert!(joined >= Some(28), "two requests of 64 KiB would do, {joined:?} joined others");

    for slot in 0..32 {
        blk.device.memory.put_bytes(blk.buffer(slot), &[100 + slot as u8; BLOCK as usize]);
    }
    let writes: Vec<Request> = blocks.iter().map(|block| write(*block)).collect();
    assert_eq!(at_once(&yard, &mut blk, &writes), [0; 32]);
    let mut bytes = [0; BLOCK as usize];
    for (slot, block) in blocks.iter().enumerate() {
        image.read_exact_at(&mut bytes, block * BLOCK).unwrap();
        assert!(bytes == [100 + slot as u8; BLOCK as usize], "block {block}");
    }
    assert!(yard.node("m0")["joined"].as_u64() >= Some(56));
}

#[test]
fn a_merged_request_that_fails_tells_each_guest_request_its_own_end() {
    let yard = Yard::new();
    let mut blk =
        Blk::open(&yard.raw("m0/disk0"), BlkOptions { slots: 16, ..BlkOptions::default() }).unwrap();
    let image = File::options().write(true).open(yard.path("m0/disk0").with_extension("raw")).unwrap();
    // The end of the file is gone: what lies there cannot be read.
    image.set_len(8 * BLOCK).unwrap();
    let reads: Vec<Request> = (0..16).map(read).collect();
    let statuses = at_once(&yard, &mut blk, &reads);
    assert!(yard.node("m0")["joined"].as_u64() >= Some(15));
    assert_eq!(statuses, [[0; 8], [1; 8]].concat());
}

#[test]
fn a_sequential_machine_gains_and_its_neighbour_keeps_its_share() {
    let yard = Yard::new();
    let sockets = [yard.flat("m0/disk0"), yard.flat("m1/disk0")];
    let clients = sockets.each_ref().map(|socket| Client::start(socket, 32));
    completed(&clients, 200);
    let start = Instant::now();
    let done = completed(&clients, 1000);
    let before = done[1] as f64 / start.elapsed().as_secs_f64();
    assert_eq!(yard.node("m0")["joined"], 0);
    let [random, other] = clients;
    random.leave();
    let clients = [Client::sequential(&sockets[0], 32), other];
    completed(&clients, 500);
    let measure = || {
        let start = Instant::now();
        let done = completed(&clients, 2000);
        let neighbour = done[1] as f64 / start.elapsed().as_secs_f64();
        (done, neighbour / before)
    };
    // Reads that adjoin gain, and the neighbour has as many a second as before.
    once(measure, |(done, neighbour)| done[0] * 10 >= done[1] * 13 && *neighbour >= 0.75);
    clients.into_iter().for_each(|client| assert!(client.leave() > 0));
}

#[test]
fn merged_requests_whose_worker_is_killed_are_done_exactly_once() {
    let yard = Yard::new();
    let other = Client::start(&yard.simulated("m1/disk0"), 32);
    let blk = Blk::open(&yard.raw("m0/disk0"), BlkOptions::default()).unwrap();
    // Few blocks: most of those that wait adjoin another.
    let mut stamper = Stamper::new(blk, 32, 96, 7);
    let mut joined = 0;
    let mut worker = yard.worker(0);
    for _ in 0..15 {
        std::thread::scope(|scope| {
            let run = scope.spawn(|| stamper.run(Duration::from_millis(120), PATIENCE));
            std::thread::sleep(Duration::from_millis(60));
            joined += yard.node("m0")["joined"].as_u64().unwrap_or(0);
            worker = yard.kill(worker);
            run.join().unwrap().unwrap();
        });
    }
    assert!(joined > 100, "only {joined} requests were merged");
    let tally = stamper.verify(PATIENCE).unwrap();
    assert!(tally.writes > 0 && tally.flushes > 0);
    other.leave();
}
