//! Several pairs of queues (virtio 1.3, 5.1.5): frames of a connection stay in order, also when the worker is killed.

use std::collections::HashMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use nagaya_client::net::HEADER;
use nagaya_client::{Descriptor, Device, Net, NetOptions, Queue};
use serde_json::json;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};
use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_WRITE;

use crate::street::{PATIENCE, Street, mac};

const SIZE: u16 = 256;
const BUFFER: u64 = 2048;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const CONNECTIONS: u32 = 64;

/// A guest with several pairs and a control queue; it receives.
struct Guest {
    device: Device,
    receive: Vec<(Queue, u64, u16)>,
    control: Queue,
    commands: u16,
}

impl Guest {
    fn new(socket: &Path, pairs: usize) -> Self {
        let features = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ;
        let mut device = Device::connect(socket, features, 0x80_0000).expect("connect");
        assert!(device.has(VIRTIO_NET_F_MQ));
        device.share_memory().expect("memory");
        let mut receive = Vec::new();
        for pair in 0..pairs {
            let queue = device.start_queue(2 * pair, SIZE).expect("a queue");
            device.start_queue(2 * pair + 1, SIZE).expect("a queue");
            let buffers = device.memory.alloc(BUFFER * u64::from(SIZE), 4096);
            for head in 0..SIZE {
                let addr = buffers + BUFFER * u64::from(head);
                queue.ring.set_desc(head, Descriptor { addr, len: BUFFER as u32, flags: WRITE, next: 0 });
                queue.ring.offer(head);
            }
            queue.kick.write(1).expect("kick");
            receive.push((queue, buffers, 0));
        }
        let control = device.start_queue(2 * pairs, SIZE).expect("the control queue");
        Self { device, receive, control, commands: 0 }
    }

    /// Use so many pairs from now on; whether the device agrees.
    fn use_pairs(&mut self, pairs: u16) -> bool {
        let at = self.device.memory.alloc(16, 16);
        let [low, high] = pairs.to_le_bytes();
        self.device.memory.put(at, [4, 0, low, high, 0x55]);
        let next = |addr, len, flags| Descriptor { addr, len, flags, next: 1 };
        self.control.ring.set_descs(0, &[next(at, 4, 1), next(at + 4, 1, WRITE)]);
        self.control.push(0).expect("kick");
        self.commands += 1;
        assert!(self.control.used_reaches(self.commands, PATIENCE).expect("used"));
        self.device.memory.get::<u8>(at + 4) == 0
    }

    /// What has come: queue, source port, and the number in the payload.
    fn take(&mut self) -> Vec<(usize, u16, u32)> {
        let mut frames = Vec::new();
        for (index, (queue, buffers, seen)) in self.receive.iter_mut().enumerate() {
            while queue.ring.used_index() != *seen {
                let (head, _) = queue.ring.used_element(*seen);
                *seen = seen.wrapping_add(1);
                let mut frame = [0; 46];
                self.device.memory.get_bytes(*buffers + BUFFER * u64::from(head) + HEADER as u64, &mut frame);
                let port = u16::from_be_bytes([frame[34], frame[35]]);
                frames.push((index, port, u32::from_be_bytes([frame[42], frame[43], frame[44], frame[45]])));
                queue.ring.offer(head as u16);
            }
            queue.kick.write(1).expect("kick");
        }
        frames
    }
}

/// A datagram with its number, of one connection after the other.
fn numbered(number: u32) -> Vec<u8> {
    let port = 1000 + (number % CONNECTIONS) as u16;
    let mut bytes = Vec::new();
    let ip = PacketBuilder::ethernet2(mac(1), mac(2)).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    ip.udp(port, 9).write(&mut bytes, &number.to_be_bytes()).expect("a packet");
    bytes
}

/// Send frames of many connections until `until` says so, and take all of them; by which queue each connection came last, and how many frames did.
/// Each connection has its queue and its order, unless the worker is `killed` meanwhile: the next one hashes otherwise, and a
/// ring of frames may come twice.
fn exchange(
    street: &Street,
    (sender, guest): (&mut Net, &mut Guest),
    (first, killed): (u32, bool),
    mut until: impl FnMut(u32) -> bool,
) -> (HashMap<u16, usize>, u32) {
    let (mut sent, mut got, mut queues) = (first, 0, HashMap::new());
    let mut last: HashMap<u16, u32> = HashMap::new();
    let mut progress = Instant::now();
    let (mut sending, mut settled) = (true, false);
    while sending || !settled {
        while sending && sender.send(&numbered(sent)).expect("send") {
            sent += 1;
        }
        sender.kick().expect("kick");
        if !sending && sender.unsent().expect("the ring") == 0 {
            street.settle(1);
            settled = true;
        }
        for (queue, port, number) in guest.take() {
            let (queue_before, before) = (queues.insert(port, queue), last.insert(port, number));
            assert!(killed || queue_before.is_none_or(|before| before == queue), "{port} changes its queue");
            assert!(killed || before < Some(number), "{port}: {number} after {before:?}");
            assert!(number >= first && number < sent, "{number} was not sent");
            got += 1;
            progress = Instant::now();
        }
        assert!(progress.elapsed() < PATIENCE, "nothing comes after {got} frames");
        sending = sending && !until(got);
        thread::yield_now();
    }
    (queues, got)
}

#[test]
fn connections_are_spread_and_stay_in_order() {
    for pairs in [2, 4] {
        let street = Street::new();
        let mut sender = street.guest(1, NetOptions::default());
        let mut guest = Guest::new(&street.port(2, &json!({"queues": pairs})), pairs.into());
        let (queues, got) = exchange(&street, (&mut sender, &mut guest), (0, false), |got| got > 2000);
        assert!(got > 2000 && queues.values().all(|queue| *queue == 0), "the driver uses one pair at first");
        assert!(guest.use_pairs(pairs) && !guest.use_pairs(0) && !guest.use_pairs(pairs + 1));
        let (queues, _) = exchange(&street, (&mut sender, &mut guest), (1 << 20, false), |got| got > 5000);
        let used: std::collections::HashSet<usize> = queues.into_values().collect();
        assert_eq!(used.len(), usize::from(pairs), "64 connections, and a queue without any");
        assert!(guest.use_pairs(1));
        let (queues, _) = exchange(&street, (&mut sender, &mut guest), (1 << 21, false), |got| got > 1000);
        assert!(queues.values().all(|queue| *queue == 0));
    }
}

#[test]
fn several_pairs_outlive_workers() {
    let street = Street::new();
    let mut sender = street.guest(1, NetOptions::default());
    let mut guest = Guest::new(&street.port(2, &json!({"queues": 4})), 4);
    assert!(guest.use_pairs(4));
    let (mut kills, mut next, mut more) = (0, Instant::now(), 0);
    let (queues, got) = exchange(&street, (&mut sender, &mut guest), (0, true), |got| {
        // Each worker has carried some of every connection.
        if got >= more && Instant::now() >= next {
            let (pid, _) = street.worker();
            // SAFETY: passes no pointer; the process is a child of this one and not yet waited for.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            (next, more) = (Instant::now() + Duration::from_millis(30), got + 4 * CONNECTIONS);
            kills += 1;
        }
        kills > 10
    });
    let used: std::collections::HashSet<usize> = queues.into_values().collect();
    assert_eq!(used.len(), 4, "after a kill the pairs are as many as before");
    assert!(got > 1000, "{got} frames");
    let (_, after) = exchange(&street, (&mut sender, &mut guest), (1 << 24, false), |got| got > 1000);
    assert!(after > 1000);
}
