//! A hostile driver of the console and of the random number generator.

use std::time::{Duration, Instant};

use nagaya_client::{Descriptor, Device, Queue};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;

use crate::house::{Chars, House, PATIENCE};
use crate::scene::{NEXT, WRITE};

const MULTIPORT: u64 = 1 << 1;

/// Queues of a console with two ports (virtio 1.3, 5.3.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL_IN: usize = 2;
const CONTROL_OUT: usize = 3;

/// Events of control messages (5.3.6.2).
const DEVICE_READY: u16 = 0;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;

struct Guest {
    device: Device,
    queues: Vec<Queue>,
}

impl Guest {
    fn new(chars: &Chars, queues: usize) -> Self {
        let wanted = 1 << VIRTIO_F_VERSION_1 | MULTIPORT;
        let mut device = Device::connect(&chars.socket, wanted, 0x20_0000).unwrap();
        device.share_memory().unwrap();
        let queues = (0..queues).map(|index| device.start_queue(index, 64).unwrap()).collect();
        Self { device, queues }
    }

    /// Offer one buffer of `bytes` and wait until it is used; false if it is not within [`PATIENCE`].
    fn send(&self, queue: usize, bytes: &[u8]) -> bool {
        let memory = &self.device.memory;
        let addr = memory.start() + 0x10_0000;
        memory.put_bytes(addr, bytes);
        self.offer(queue, Descriptor { addr, len: bytes.len() as u32, flags: 0, next: 0 })
    }

    /// Offer one empty buffer of `len` bytes and wait until it is used; the bytes that came.
    fn receive(&self, queue: usize, len: u32) -> Option<Vec<u8>> {
        let addr = self.device.memory.start() + 0x11_0000;
        let at = self.queues[queue].ring.used_index();
        self.offer(queue, Descriptor { addr, len, flags: WRITE, next: 0 }).then(|| {
            let (_, written) = self.queues[queue].ring.used_element(at);
            let mut bytes = vec![0; written as usize];
            self.device.memory.get_bytes(addr, &mut bytes);
            bytes
        })
    }

    fn offer(&self, queue: usize, descriptor: Descriptor) -> bool {
        let queue = &self.queues[queue];
        let used = queue.ring.used_index().wrapping_add(1);
        queue.ring.set_desc(0, descriptor);
        queue.push(0).unwrap();
        queue.used_reaches(used, PATIENCE).unwrap()
    }

    fn control(&self, id: u32, event: u16, value: u16) {
        let mut message = id.to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        assert!(self.send(CONTROL_OUT, &message), "control message {message:?} was not taken");
    }
}

/// As a driver starts: the ports come, are opened, and carry bytes both ways.
fn assert_carries(chars: &mut Chars) {
    let guest = Guest::new(chars, 6);
    guest.control(0, DEVICE_READY, 1);
    for _ in 0..2 {
        assert!(guest.receive(CONTROL_IN, 64).is_some_and(|message| message.len() >= 8), "no port came");
    }
    guest.control(0, PORT_READY, 1);
    guest.control(0, PORT_OPEN, 1);
    let host = &mut chars.ports[0];
    host.drain();
    assert!(guest.send(TRANSMIT, b"from the guest"));
    assert_eq!(host.receive(PATIENCE).as_deref(), Some(&b"from the guest"[..]));
    host.send(b"from the host");
    let mut came = Vec::new();
    while !came.ends_with(b"from the host") {
        // What attacks have left comes first.
        came.extend(guest.receive(RECEIVE, 64).expect("bytes from the host"));
    }
}

#[test]
fn a_console_carries_bytes_for_an_honest_driver() {
    let house = House::new();
    let mut chars = house.console("console");
    assert_carries(&mut chars);
    assert_carries(&mut chars);
    house.assert_one_worker();
}

#[test]
fn any_control_messages_leave_the_console_working() {
    let house = House::new();
    let mut chars = house.console("console");
    let neighbour = house.neighbour();
    let word = || prop_oneof![0_u16..10, any::<u16>()];
    let message = (prop_oneof![0_u32..4, any::<u32>()], word(), word());
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    runner
        .run(&prop::collection::vec(message, 1..40), |messages| {
            let guest = Guest::new(&chars, 6);
            for (id, event, value) in messages {
                guest.control(id, event, value);
            }
            Ok(())
        })
        .unwrap();
    assert_carries(&mut chars);
    neighbour.leave();
    house.assert_one_worker();
}

#[test]
fn a_control_message_that_is_too_short_breaks_its_queue() {
    let house = House::new();
    let mut chars = house.console("console");
    for len in [1, 7] {
        let before = house.violations("console");
        let guest = Guest::new(&chars, 6);
        guest.send(CONTROL_OUT, &[0; 8][..len]);
        wait_for_violation(&house, before);
    }
    assert_carries(&mut chars);
    house.assert_one_worker();
}

#[test]
fn a_receive_buffer_that_cannot_be_written_breaks_its_queue() {
    let house = House::new();
    let mut chars = house.console("console");
    let before = house.violations("console");
    let guest = Guest::new(&chars, 6);
    guest.control(0, PORT_OPEN, 1);
    chars.ports[0].send(b"x");
    let addr = guest.device.memory.start() + 0x10_0000;
    guest.queues[RECEIVE].ring.set_desc(0, Descriptor { addr, len: 64, flags: 0, next: 0 });
    guest.queues[RECEIVE].push(0).unwrap();
    wait_for_violation(&house, before);
    drop(guest);
    chars.ports[0].drain();
    assert_carries(&mut chars);
    house.assert_one_worker();
}

#[test]
fn a_guest_that_talks_to_a_deaf_host_holds_up_nobody() {
    let house = House::new();
    let mut chars = house.console("console");
    let neighbour = house.neighbour();
    for _ in 0..3 {
        let guest = Guest::new(&chars, 6);
        let queue = &guest.queues[TRANSMIT];
        let addr = guest.device.memory.start() + 0x10_0000;
        for head in 0..64 {
            queue.ring.set_desc(head, Descriptor { addr, len: 0x1_0000, flags: 0, next: 0 });
            queue.push(head).unwrap();
        }
        std::thread::sleep(Duration::from_millis(100));
        assert_ne!(queue.ring.used_index(), 64, "4 MiB went into a socket that nobody reads");
        // Hangs up with most of it unsent; the next frontend comes at once.
    }
    assert_carries(&mut chars);
    neighbour.leave();
    house.assert_one_worker();
}

#[test]
fn a_host_that_hangs_up_does_not_hold_up_the_guest() {
    let house = House::new();
    let mut chars = house.console("console");
    chars.ports.clear();
    let guest = Guest::new(&chars, 6);
    for _ in 0..100 {
        assert!(guest.send(TRANSMIT, &[b'x'; 4096]), "bytes for a host that has gone are dropped");
    }
    house.assert_one_worker();
}

/// The bytes of a stream: what is at a place follows from the place.
fn stream(from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(|place| (place * 7 + place / 251) as u8).collect()
}

#[test]
fn no_byte_is_lost_or_repeated_either_way_when_workers_die() {
    let house = House::new();
    let mut chars = house.console("console");
    let guest = Guest::new(&chars, 6);
    guest.control(0, PORT_OPEN, 1);
    let host = &mut chars.ports[0];
    let (mut said, mut heard, mut typed, mut came) = (0, 0, 0, 0);
    for round in 0..60 {
        let kill = || {
            std::thread::sleep(Duration::from_micros(round * 37 % 700));
            house.kill_worker();
        };
        std::thread::scope(|scope| {
            scope.spawn(kill);
            for size in [1, 16, 3000, 40_000] {
                let bytes = stream(said, size);
                assert!(guest.send(TRANSMIT, &bytes), "{size} bytes were not taken");
                said += size as u64;
                while heard < said {
                    let bytes = host.receive(PATIENCE).expect("what the guest said");
                    assert!(bytes == stream(heard, bytes.len()), "lost or repeated at {heard}");
                    heard += bytes.len() as u64;
                }
            }
            for size in [1, 200, 4096] {
                host.send(&stream(typed, size));
                typed += size as u64;
                while came < typed {
                    let bytes = guest.receive(RECEIVE, 100).expect("what the host typed");
                    assert!(bytes == stream(came, bytes.len()), "lost or repeated at {came}");
                    came += bytes.len() as u64;
                }
            }
        });
    }
    assert!(host.receive(Duration::from_millis(50)).is_none(), "something was repeated at the end");
}

#[test]
fn endless_requests_for_random_numbers_starve_nobody() {
    let house = House::new();
    let chars = house.rng("rng");
    let neighbour = house.neighbour();
    let guest = Guest::new(&chars, 1);
    let queue = &guest.queues[0];
    let addr = guest.device.memory.start() + 0x10_0000;
    let len = 0x8_0000;
    for head in 0..64 {
        queue.ring.set_desc(head, Descriptor { addr, len, flags: WRITE, next: 0 });
    }
    let begin = Instant::now();
    let (mut asked, mut served) = (0_u16, 0_u16);
    while begin.elapsed() < Duration::from_secs(1) || served < 256 {
        assert!(begin.elapsed() < PATIENCE, "{served} requests");
        served = queue.ring.used_index();
        while asked.wrapping_sub(queue.ring.used_index()) < 64 {
            queue.ring.set_avail(asked, asked % 64);
            asked = asked.wrapping_add(1);
        }
        queue.ring.publish(asked);
        queue.kick.write(1).unwrap();
    }
    let (_, written) = queue.ring.used_element(0);
    assert!(written > 0 && written <= len);
    let mut bytes = vec![0; 64];
    guest.device.memory.get_bytes(addr, &mut bytes);
    assert!(bytes.iter().any(|byte| *byte != 0));
    let tally = neighbour.leave();
    println!("{served} requests beside it");
    // A worker that looked at its other rings only when it had nothing else to do would serve four in 64 requests.
    assert!((tally.reads + tally.writes) * 8 > served.into(), "{tally:?} beside {served} requests");
    house.assert_one_worker();
}

#[test]
fn a_request_for_random_numbers_that_cannot_be_written_is_answered_or_breaks_the_queue() {
    let house = House::new();
    let chars = house.rng("rng");
    let before = house.violations("rng");
    let guest = Guest::new(&chars, 1);
    let queue = &guest.queues[0];
    let addr = guest.device.memory.start() + 0x10_0000;
    queue.ring.set_desc(0, Descriptor { addr, len: 64, flags: NEXT, next: 0 });
    queue.push(0).unwrap();
    let end = Instant::now() + PATIENCE;
    while queue.ring.used_index() == 0 && house.violations("rng") == before {
        assert!(Instant::now() < end, "neither answered nor broken");
    }
    house.assert_one_worker();
}

fn wait_for_violation(house: &House, before: u64) {
    let end = Instant::now() + PATIENCE;
    while house.violations("console") == before {
        assert!(Instant::now() < end, "no violation");
        std::thread::sleep(Duration::from_millis(1));
    }
}
