//! Weights, limits and attribution with real frames. Shares are compared with one another, never with a clock.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nagaya_client::{Net, NetOptions};
use serde_json::{Value, json};

use crate::street::{PATIENCE, Street, frame, mac, received, send};

/// Of the uplink in these tests, in bytes a second: little, so that a slow host keeps up.
const RATE: u64 = 10_000_000;

const OUTSIDE: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// Reads what leaves by a stream, and counts it by sender.
struct World {
    stream: UnixStream,
    bytes: Vec<u8>,
    /// By the last byte of the sender's address.
    sums: [u64; 8],
}

impl World {
    fn new(mut stream: UnixStream) -> World {
        // The switch is to know where it is: there is a bound for frames to nobody.
        let hello = frame([0xff; 6], OUTSIDE, &[0; 46]);
        stream.write_all(&[&(hello.len() as u32).to_be_bytes()[..], &hello].concat()).unwrap();
        stream.set_nonblocking(true).unwrap();
        World { stream, bytes: Vec::new(), sums: [0; 8] }
    }

    fn read(&mut self) {
        let mut chunk = [0; 1 << 16];
        match self.stream.read(&mut chunk) {
            Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        let mut at = 0;
        while let Some(prefix) = self.bytes.get(at..at + 4) {
            let length = u32::from_be_bytes(prefix.try_into().unwrap()) as usize;
            let Some(frame) = self.bytes.get(at + 4..at + 4 + length) else { break };
            self.sums[usize::from(frame[11])] += length as u64;
            at += 4 + length;
        }
        self.bytes.drain(..at);
    }

    /// Have all `guests` send as much as they can, until so many bytes have left.
    fn until(&mut self, bytes: u64, guests: &mut [(u8, &mut Net)]) -> [u64; 8] {
        let before = self.sums;
        let end = Instant::now() + PATIENCE;
        let sent = |world: &World| world.sums.iter().sum::<u64>() - before.iter().sum::<u64>();
        while sent(self) < bytes {
            assert!(Instant::now() < end, "{:?}", self.sums);
            for (number, guest) in &mut *guests {
                let bulk = frame(OUTSIDE, mac(*number), &[0; 1500]);
                for _ in 0..32 {
                    if !guest.send(&bulk).unwrap() {
                        break;
                    }
                }
                guest.kick().unwrap();
                guest.unsent().unwrap();
            }
            self.read();
            // What waits is a tenth of a second's worth at least.
            std::thread::sleep(Duration::from_millis(1));
        }
        std::array::from_fn(|number| self.sums[number] - before[number])
    }
}

/// Whether machines 1, 2 and 3 have what is theirs by `weights`.
fn as_weighted(sums: &[u64; 8], weights: [f64; 3]) -> bool {
    let each = sums.iter().sum::<u64>() as f64 / weights.iter().sum::<f64>();
    sums[1..].iter().zip(weights).all(|(sum, weight)| near(*sum as f64, each * weight, 3.0))
}

#[must_use]
fn near(value: f64, expected: f64, percent: f64) -> bool {
    (value / expected - 1.0).abs() * 100.0 <= percent
}

/// One of five measurements is as it has to be. A host that is busy for a moment keeps a guest from asking for its share.
#[track_caller]
fn once(mut measure: impl FnMut() -> [u64; 8], is_right: impl Fn(&[u64; 8]) -> bool) {
    let mut wrong = Vec::new();
    while wrong.len() < 5 {
        let sums = measure();
        if is_right(&sums) {
            return;
        }
        wrong.push(sums);
    }
    panic!("{wrong:?}");
}

fn node(id: &str, knobs: &Value) -> Value {
    let mut node = json!({"id": id});
    for (key, value) in knobs.as_object().unwrap() {
        node[key] = value.clone();
    }
    node
}

#[test]
fn weights_share_the_uplink_and_knobs_change_live() {
    let street = Street::new();
    street.share(&json!([
        node("m1", &json!({"weight": 100})),
        node("m2", &json!({"weight": 200})),
        node("m3", &json!({"weight": 400}))
    ]));
    let mut world = World::new(street.stream_of(Some(RATE)));
    let [mut a, mut b, mut c] = [1, 2, 3].map(|number| street.guest(number, NetOptions::default()));
    let mut guests = [(1, &mut a), (2, &mut b), (3, &mut c)];
    world.until(400_000, &mut guests);
    once(|| world.until(4_000_000, &mut guests), |sums| as_weighted(sums, [1.0, 2.0, 4.0]));
    street.await_drops("m1/net0", "queue-full", 1);
    street.share(&json!([
        node("m1", &json!({"weight": 800})),
        node("m3", &json!({"weight": 400, "limit": 1_000_000}))
    ]));
    world.until(1_000_000, &mut guests);
    // By weight m3 would have two sevenths; a limit is of time, of which a busy host takes some from the others.
    once(
        || world.until(4_000_000, &mut guests),
        |sums| {
            let tenth = sums.iter().sum::<u64>() as f64 / 10.0;
            near(sums[1] as f64, sums[2] as f64 * 4.0, 3.0) && near(sums[3] as f64, tenth, 40.0)
        },
    );
    let has = |rows: &[Value], waiter: &str, cause: &str, whom: &str| {
        rows.iter().any(|row| row["waiter"] == waiter && row["cause"] == cause && row["whom"] == whom)
    };
    let waits = street.waits(|rows| has(rows, "m2", "machine", "m1") && has(rows, "m3", "limit", "m3"));
    assert!(!has(&waits, "m1", "limit", "m1"), "{waits:?}");
}

#[test]
fn weights_share_what_a_machine_with_a_limit_gets() {
    let street = Street::new();
    street.share(&json!([
        node("m2", &json!({"weight": 200})),
        node("m3", &json!({"weight": 400})),
        node("m4", &json!({"limit": RATE}))
    ]));
    let mut guests = [1, 2, 3].map(|number| street.guest(number, NetOptions::default()));
    let mut sink = street.guest(4, NetOptions::default());
    let mut received = |bytes: u64| {
        let end = Instant::now() + PATIENCE;
        let mut sums = [0; 8];
        while sums.iter().sum::<u64>() < bytes {
            assert!(Instant::now() < end, "{sums:?}");
            for (number, guest) in (1..).zip(&mut guests) {
                let bulk = frame(mac(4), mac(number), &[0; 1500]);
                for _ in 0..32 {
                    if !guest.send(&bulk).unwrap() {
                        break;
                    }
                }
                guest.kick().unwrap();
            }
            while let Some((_, frame)) = sink.receive().unwrap() {
                sums[usize::from(frame[11])] += frame.len() as u64;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        sums
    };
    // The first megabyte is of before all had come.
    received(1_000_000);
    once(|| received(4_000_000), |sums| as_weighted(sums, [1.0, 2.0, 4.0]));
    street.await_drops("m1/net0", "queue-full", 1);
}

/// A small datagram of UDP over IPv4.
fn datagram(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    let ip = [0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 3, 10, 0, 0, 2];
    let udp = [0x13, 0x88, 0x13, 0x89, 0, 26, 0, 0];
    let mut datagram = frame(to, from, &[&ip[..], &udp, &[2; 18]].concat());
    datagram[12..14].copy_from_slice(&[8, 0]);
    datagram
}

#[test]
fn a_limit_holds_for_what_comes_too() {
    let street = Street::new();
    street.share(&json!([node("m2", &json!({"limit": 20_000}))]));
    let [mut a, mut b, mut c] = [1, 2, 3].map(|number| street.guest(number, NetOptions::default()));
    let bulk = frame(mac(2), mac(1), &[0; 1500]);
    for _ in 0..200 {
        send(&mut a, &bulk);
        while a.unsent().unwrap() > 100 {}
    }
    // It waits behind nothing of the other's.
    let free = frame(mac(3), mac(1), &[1; 1500]);
    send(&mut a, &free);
    assert_eq!(received(&mut c), free);
    street.await_drops("m1/net0", "queue-full", 1);
    // What is small and of another connection goes before what waits.
    let small = datagram(mac(2), mac(3));
    send(&mut c, &small);
    let first = Instant::now();
    let mut before = 0;
    while received(&mut b) != small {
        before += 1;
        assert!(first.elapsed() < PATIENCE);
    }
    assert!(before < 100, "{before} frames before it");
}
