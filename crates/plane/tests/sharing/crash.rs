//! `kill -9` of a worker that keeps requests waiting: each is done once, and the next worker shares as the last did.

use std::thread;
use std::time::Duration;

use nagaya_client::stamp::Stamper;
use nagaya_client::{Blk, BlkOptions};
use serde_json::json;

use crate::yard::{Client, DISK_LEN, PATIENCE, Yard, completed, once};

#[test]
fn requests_that_wait_when_their_worker_is_killed_are_done_exactly_once() {
    let yard = Yard::new();
    yard.set(&json!([{"id": "m0", "limit_iops": 2000}]));
    let socket = yard.raw("m0/disk0");
    let blk = Blk::open(&socket, BlkOptions::default()).unwrap();
    let mut stamper = Stamper::new(blk, 32, (DISK_LEN / 4096) as usize, 5);
    thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut worker = yard.worker(0);
            let mut while_they_wait = 0;
            for kill in 0..20 {
                thread::sleep(Duration::from_millis(10 + 7 * (kill % 5)));
                while_they_wait += u32::from(yard.node("m0")["waiting"].as_u64() > Some(0));
                worker = yard.kill(worker);
            }
            while_they_wait
        });
        while !killer.is_finished() {
            stamper.run(Duration::from_millis(50), PATIENCE).unwrap();
        }
        assert!(killer.join().unwrap() > 0, "nothing ever waited");
    });
    assert_eq!(yard.node("m0")["limit_iops"], 2000);
    yard.set(&json!([{"id": "m0", "remove": true}]));
    let tally = stamper.verify(PATIENCE).unwrap();
    assert!(tally.writes > 0 && tally.flushes > 0);
}

#[test]
fn the_next_worker_shares_as_the_last_did() {
    let yard = Yard::new();
    yard.set(&json!([{"id": "m0", "weight": 300}, {"id": "m1", "parent": "@acme"}]));
    let sockets = [yard.simulated("m0/disk0"), yard.simulated("m1/disk0")];
    let clients = sockets.map(|socket| Client::start(&socket, 32));
    completed(&clients, 100);
    yard.kill(yard.worker(0));
    completed(&clients, 200);
    // 3 to 1 are due.
    once(|| completed(&clients, 1000), |done| (675..=825).contains(&(done[0] * 1000 / (done[0] + done[1]))));
    assert_eq!(yard.node("m1")["parent"], "@acme");
    clients.into_iter().for_each(|client| assert!(client.leave() > 0));
}
