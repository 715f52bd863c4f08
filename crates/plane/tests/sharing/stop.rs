//! A queue is stopped while its requests wait: at once, and with none lost.

use std::time::Duration;

use nagaya_client::{Blk, BlkOptions, Request};
use serde_json::json;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::yard::{PATIENCE, Yard};

/// Take what has completed.
fn take(blk: &mut Blk) -> usize {
    let mut done = 0;
    while let Some(completion) = blk.poll().expect("each completes once") {
        assert_eq!(completion.status, 0);
        done += 1;
    }
    done
}

#[test]
fn a_stopped_queue_leaves_what_waits_in_the_ring_and_goes_on_with_it() {
    let yard = Yard::new();
    // One request may go; the next would in two hundred seconds.
    yard.set(&json!([{"id": "m0", "limit": 20}]));
    let mut blk = Blk::open(&yard.simulated("m0/disk0"), BlkOptions::default()).unwrap();
    for slot in 0..32 {
        blk.submit(slot, Request::Read { sector: 8 * u64::from(slot), len: 4096 });
    }
    blk.kick().unwrap();
    assert!(blk.wait(PATIENCE).unwrap());
    let mut done = take(&mut blk);
    assert!(done < 32, "the limit lets {done} requests pass");
    assert!(yard.node("m0/disk0")["waiting"].as_u64() > Some(0));

    let base = blk.device.frontend.get_vring_base(0).unwrap();
    done += take(&mut blk);
    assert_eq!(base as usize, done, "all that was taken is completed");
    assert_eq!(yard.node("m0/disk0")["waiting"], 0);

    yard.set(&json!([{"id": "m0", "remove": true}]));
    let frontend = &mut blk.device.frontend;
    frontend.set_vring_base(0, base as u16).unwrap();
    frontend.set_vring_addr(0, &blk.queue.ring.addresses()).unwrap();
    frontend.set_vring_call(0, &blk.queue.call).unwrap();
    frontend.set_vring_kick(0, &blk.queue.kick).unwrap();
    frontend.set_vring_enable(0, true).unwrap();
    while blk.in_flight() > 0 {
        assert!(blk.wait(PATIENCE).unwrap(), "{} requests are lost", blk.in_flight());
        take(&mut blk);
    }
}

#[test]
fn requests_that_wait_behind_a_stop_and_a_crash_are_done_once() {
    let yard = Yard::new();
    yard.set(&json!([{"id": "m0", "limit": 20}]));
    let mut blk = Blk::open(&yard.simulated("m0/disk0"), BlkOptions::default()).unwrap();
    for slot in 0..16 {
        blk.submit(slot, Request::Read { sector: 0, len: 4096 });
    }
    blk.kick().unwrap();
    assert!(blk.wait(PATIENCE).unwrap());
    // What the first worker took has no place in the ring for the second: it must be done before the queue stops.
    yard.kill(yard.worker(0));
    let end = std::time::Instant::now() + PATIENCE;
    while yard.node("m0/disk0")["waiting"].as_u64().unwrap_or(0) == 0 {
        assert!(std::time::Instant::now() < end, "the next worker takes nothing");
        std::thread::sleep(Duration::from_millis(1));
    }
    let base = blk.device.frontend.get_vring_base(0).unwrap();
    take(&mut blk);
    assert_eq!((base, blk.in_flight()), (16, 0));
}
