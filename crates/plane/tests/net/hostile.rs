//! Chains, headers, buffers and commands that no driver writes: no worker ends, and nobody gets anything malformed.

use std::time::{Duration, Instant};

use nagaya_client::net::HEADER;
use nagaya_client::{Descriptor, Device, Net, NetOptions, Queue};
use serde_json::{Value, json};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_INDIRECT_DESC, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

use crate::street::{PATIENCE, Street, frame, mac, received, send};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Descriptors of each hostile ring.
const SIZE: u16 = 64;
/// Bytes of the room that frames and buffers are in.
const ROOM: u64 = 0x2_0000;
/// Of the frame that is there at first, with its header.
const WHOLE: u32 = (HEADER + 60) as u32;

/// The lengths of no frames.
const NOTHING: [usize; 0] = [];

const TAKES_ALL: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;

/// What becomes of what was offered.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// The queue is given up, and this violation is counted.
    Broken(&'static str),
    /// It is used, and its frame dropped for this reason.
    Dropped(&'static str),
    /// Odd but legal: a frame of so many bytes arrives.
    Arrives(usize),
}

/// Machine 1, which has a header and a frame for machine 2 in its memory.
struct Hostile {
    device: Device,
    receive: Queue,
    transmit: Queue,
    room: u64,
    table: u64,
}

impl Hostile {
    fn new(street: &Street, socket: &std::path::Path, mergeable: bool) -> Self {
        let mut features =
            1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_NET_F_CTRL_VQ;
        features |= u64::from(mergeable) << VIRTIO_NET_F_MRG_RXBUF;
        street.await_disconnected("m1/net0");
        let mut device = Device::connect(socket, features, 0x40_0000).expect("connect");
        let (room, table) = (device.memory.alloc(ROOM, 4096), device.memory.alloc(16 * 0x1_0000, 4096));
        device.share_memory().expect("memory");
        let mut queue = |index| device.start_queue(index, SIZE).expect("queue");
        let (receive, transmit) = (queue(0), queue(1));
        let hostile = Self { device, receive, transmit, room, table };
        hostile.lay(&[0; HEADER], &frame(mac(2), mac(1), &[7; 46]));
        hostile
    }

    /// A header and a frame behind it.
    fn lay(&self, header: &[u8; HEADER], frame: &[u8]) {
        self.device.memory.put_bytes(self.room, header);
        self.device.memory.put_bytes(self.room + HEADER as u64, frame);
    }

    /// Bytes of what is there, from `at` on.
    fn part(&self, at: u64, len: u32, flags: u16, next: u16) -> Descriptor {
        Descriptor { addr: self.room + at, len, flags, next }
    }

    fn chain(&self, descriptors: &[Descriptor]) {
        self.transmit.ring.set_descs(0, descriptors);
    }

    /// Wait until both queues run, the second of which the worker starts last: it takes half a header.
    fn settle(&self) {
        self.chain(&[self.part(0, 11, 0, 0)]);
        self.transmit.push(0).expect("kick");
        assert!(self.transmit.used_reaches(1, PATIENCE).expect("used"), "the queues do not run");
    }

    fn indirect(&self, descriptors: &[Descriptor], len: u32) {
        for (index, descriptor) in descriptors.iter().enumerate() {
            self.device.memory.put(self.table + 16 * index as u64, *descriptor);
        }
        self.chain(&[Descriptor { addr: self.table, len, flags: INDIRECT, next: 0 }]);
    }
}

type Lay = fn(&Hostile);
type Buffer = fn(&Hostile) -> Descriptor;

const CHAINS: &[(&str, End, Lay)] = &[
    ("a loop", End::Broken("chain-broken"), |h| h.chain(&[h.part(0, WHOLE, NEXT, 0)])),
    ("a loop of two", End::Broken("chain-broken"), |h| {
        h.chain(&[h.part(0, 12, NEXT, 1), h.part(12, 60, NEXT, 0)]);
    }),
    ("next is the queue size", End::Broken("chain-broken"), |h| h.chain(&[h.part(0, WHOLE, NEXT, SIZE)])),
    ("a descriptor of no bytes", End::Broken("chain-empty-buffer"), |h| h.chain(&[h.part(0, 0, 0, 0)])),
    ("no bytes behind a frame", End::Broken("chain-empty-buffer"), |h| {
        h.chain(&[h.part(0, WHOLE, NEXT, 1), h.part(0, 0, 0, 0)]);
    }),
    ("behind memory", End::Broken("chain-out-of-range"), |h| {
        h.chain(&[Descriptor { addr: h.device.memory.end() - 8, ..h.part(0, WHOLE, 0, 0) }]);
    }),
    ("an end that wraps", End::Broken("chain-out-of-range"), |h| {
        h.chain(&[Descriptor { addr: u64::MAX - 8, ..h.part(0, WHOLE, 0, 0) }]);
    }),
    ("4 GiB", End::Broken("chain-out-of-range"), |h| h.chain(&[h.part(0, u32::MAX, 0, 0)])),
    ("readable behind writable", End::Broken("chain-order"), |h| {
        h.chain(&[h.part(0, 12, WRITE | NEXT, 1), h.part(12, 60, 0, 0)]);
    }),
    ("indirect in indirect", End::Broken("chain-broken"), |h| {
        h.indirect(&[Descriptor { addr: h.table, len: 16, flags: INDIRECT, next: 0 }], 16);
    }),
    ("an empty table", End::Broken("chain-broken"), |h| h.indirect(&[h.part(0, WHOLE, 0, 0)], 0)),
    ("half a descriptor", End::Broken("chain-broken"), |h| h.indirect(&[h.part(0, WHOLE, 0, 0)], 24)),
    ("a table outside", End::Broken("chain-broken"), |h| {
        h.chain(&[Descriptor { addr: h.device.memory.end(), len: 16, flags: INDIRECT, next: 0 }]);
    }),
    ("a straight table of 65,535", End::Broken("chain-too-long"), |h| {
        let line: Vec<_> = (1..=u16::MAX).map(|next| h.part(0, 1, NEXT, next)).collect();
        h.indirect(&line, 16 * 0xffff);
    }),
    ("nothing to read", End::Dropped("malformed"), |h| h.chain(&[h.part(0, WHOLE, WRITE, 0)])),
    ("half a header", End::Dropped("malformed"), |h| h.chain(&[h.part(0, 11, 0, 0)])),
    ("a header alone", End::Dropped("malformed"), |h| h.chain(&[h.part(0, 12, 0, 0)])),
    ("half an Ethernet header", End::Dropped("malformed"), |h| h.chain(&[h.part(0, 25, 0, 0)])),
    ("128 KiB", End::Dropped("oversize"), |h| h.chain(&[h.part(0, ROOM as u32, 0, 0)])),
    ("a byte more than the MTU and its headers", End::Dropped("oversize"), |h| {
        h.chain(&[h.part(0, 12 + 1500 + 22 + 1, 0, 0)]);
    }),
    ("as much as that", End::Arrives(1522), |h| h.chain(&[h.part(0, 12 + 1522, 0, 0)])),
    ("byte by byte", End::Arrives(52), |h| {
        let byte = |at: u16| h.part(at.into(), 1, if at == SIZE - 1 { 0 } else { NEXT }, at + 1);
        h.chain(&(0..SIZE).map(byte).collect::<Vec<_>>());
    }),
    ("an indirect table that is not aligned", End::Arrives(60), |h| {
        h.device.memory.put(h.table + 1, h.part(0, WHOLE, 0, 0));
        h.chain(&[Descriptor { addr: h.table + 1, len: 16, flags: INDIRECT, next: 0 }]);
    }),
    ("something to write behind the frame", End::Arrives(60), |h| {
        h.chain(&[h.part(0, WHOLE, NEXT, 1), h.part(0x1000, 100, WRITE, 0)]);
    }),
];

/// Flags, kind, hdr_len, gso_size, csum_start, csum_offset, num_buffers; of a TCP frame with 1,000 bytes of payload.
type Words = (u8, u8, u16, u16, u16, u16, u16);

const HEADERS: &[(&str, End, Words)] = &[
    ("all ones", End::Dropped("bad-header"), (0xff, 0xff, !0, !0, !0, !0, !0)),
    ("segments of nothing", End::Dropped("bad-header"), (1, 1, 54, 0, 34, 16, 0)),
    ("segments of a byte", End::Dropped("bad-header"), (1, 1, 54, 1, 34, 16, 0)),
    ("segments without a checksum", End::Dropped("bad-header"), (0, 1, 54, 500, 34, 16, 0)),
    ("a kind that there is not", End::Dropped("bad-header"), (1, 2, 54, 500, 34, 16, 0)),
    ("ECN alone", End::Arrives(1054), (0, 0x80, 0, 0, 0, 0, 0)),
    ("a checksum that begins behind the end", End::Dropped("bad-header"), (1, 0, 0, 0, 1055, 0, 0)),
    ("a checksum that belongs behind the end", End::Dropped("bad-header"), (1, 0, 0, 0, 34, 1020, 0)),
    ("a sum of both that wraps", End::Dropped("bad-header"), (1, 0, 0, 0, 34, 0xffff, 0)),
    ("a checksum of the Ethernet header", End::Dropped("bad-header"), (1, 0, 0, 0, 0, 16, 0)),
    ("a checksum over the addresses", End::Dropped("bad-header"), (1, 0, 0, 0, 14, 12, 0)),
    ("segments of 64 KiB", End::Arrives(1054), (1, 1, 54, 0xffff, 34, 16, 0)),
    ("a header length that lies", End::Arrives(1054), (1, 1, 0xffff, 900, 34, 16, 0)),
    ("buffers that are not its to count", End::Arrives(1054), (0, 0, 0, 0, 0, 0, 0xffff)),
    ("flags that nobody knows", End::Arrives(1054), (0xfe, 0, 0, 0, 0, 0, 0)),
];

/// A TCP segment over IPv4 from machine 1 to machine 2.
fn tcp() -> Vec<u8> {
    let mut bytes = Vec::new();
    let packet = etherparse::PacketBuilder::ethernet2(mac(1), mac(2)).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    packet.tcp(1, 2, 3, 4).ack(5).write(&mut bytes, &[7; 1000]).expect("a packet");
    bytes
}

struct Scene {
    street: Street,
    socket: std::path::PathBuf,
    victim: Net,
    honest: Net,
}

impl Scene {
    fn new() -> Self {
        let street = Street::new();
        let socket = street.port(1, &json!({}));
        let victim = street.guest(2, NetOptions { features: TAKES_ALL, ..NetOptions::default() });
        let honest = street.guest(3, NetOptions::default());
        Self { street, socket, victim, honest }
    }

    fn violations(&self) -> Value {
        self.street.device("m1/net0")["violations"].clone()
    }

    fn drops(&self, id: &str, reason: &str) -> u64 {
        self.street.query(id)["drops"][reason].as_u64().unwrap_or(0)
    }

    /// What has come to machine 2 from others than its honest neighbour, who still reaches it; fails if a header is malformed.
    fn arrived(&mut self) -> Vec<usize> {
        let marker = frame(mac(2), mac(3), &[9; 46]);
        send(&mut self.honest, &marker);
        let mut lengths = Vec::new();
        loop {
            let (header, frame) =
                self.victim.wait(PATIENCE).expect("receive").expect("the neighbour's frame");
            let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
            assert!(header[0] & !1 == 0 && word(8) + word(6) <= frame.len(), "{header:?}");
            assert!(header[1] == 0 || header[0] == 1 && word(4) > 0 && word(2) == 54, "{header:?}");
            if frame == marker {
                return lengths;
            }
            assert_eq!(frame[..12], [mac(2), mac(1)].concat());
            lengths.push(frame.len());
        }
    }

    /// Offer the chain at descriptor 0, and see what became of it.
    fn try_one(&mut self, name: &str, end: End, lay: impl FnOnce(&Hostile)) {
        let hostile = Hostile::new(&self.street, &self.socket, true);
        lay(&hostile);
        let before = self.violations();
        let dropped = if let End::Dropped(reason) = end { self.drops("m1/net0", reason) } else { 0 };
        hostile.transmit.push(0).expect("kick");
        match end {
            End::Broken(kind) => {
                self.await_violation(name, kind, &before);
                assert_eq!(self.arrived(), NOTHING, "{name}");
            }
            End::Dropped(reason) => {
                assert!(hostile.transmit.used_reaches(1, PATIENCE).expect("used"), "{name}: not used");
                self.street.await_drops("m1/net0", reason, dropped + 1);
                assert_eq!(self.arrived(), NOTHING, "{name}");
            }
            End::Arrives(length) => {
                assert!(hostile.transmit.used_reaches(1, PATIENCE).expect("used"), "{name}: not used");
                assert_eq!(self.arrived(), [length], "{name}");
                assert_eq!(self.violations(), before, "{name}");
            }
        }
    }

    fn await_violation(&self, name: &str, kind: &str, before: &Value) {
        let end = Instant::now() + PATIENCE;
        while self.violations()[kind] == before[kind] {
            assert!(Instant::now() < end, "{name}: want {kind}, have {}", self.violations());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn no_chain_that_is_sent_ends_a_worker() {
    let mut scene = Scene::new();
    let worker = scene.street.worker();
    for (name, end, lay) in CHAINS {
        scene.try_one(name, *end, lay);
    }
    assert_eq!(scene.street.worker(), worker, "the worker was replaced");
}

#[test]
fn no_header_is_believed() {
    let mut scene = Scene::new();
    let worker = scene.street.worker();
    for (name, end, (flags, kind, header, size, start, offset, buffers)) in HEADERS {
        let mut bytes = vec![*flags, *kind];
        for word in [header, size, start, offset, buffers] {
            bytes.extend(word.to_le_bytes());
        }
        scene.try_one(name, *end, |hostile| {
            hostile.lay(&bytes.try_into().expect("12 bytes"), &tcp());
            hostile.chain(&[hostile.part(0, (HEADER + tcp().len()) as u32, 0, 0)]);
        });
    }
    assert_eq!(scene.street.worker(), worker, "the worker was replaced");
}

#[test]
fn a_ring_that_jumps_is_given_up() {
    let mut scene = Scene::new();
    let worker = scene.street.worker();
    for (name, kind, head, index) in [
        ("a head outside the table", "head", SIZE, 1),
        ("more than the queue holds", "avail-index", 0, SIZE + 1),
        ("an index that goes back", "avail-index", 0, u16::MAX),
    ] {
        let hostile = Hostile::new(&scene.street, &scene.socket, true);
        hostile.chain(&[hostile.part(0, WHOLE, 0, 0)]);
        for queue in [&hostile.transmit, &hostile.receive] {
            let before = scene.violations();
            queue.ring.set_avail(0, head);
            queue.ring.publish(index);
            queue.kick.write(1).expect("kick");
            // Receive buffers are looked at when there is something to put into them.
            send(&mut scene.honest, &frame(mac(1), mac(3), &[1; 46]));
            scene.await_violation(name, kind, &before);
            assert_eq!(scene.arrived(), NOTHING, "{name}");
        }
    }
    assert_eq!(scene.street.worker(), worker, "the worker was replaced");
}

#[test]
fn receive_buffers_that_nothing_fits_into_get_nothing() {
    let mut scene = Scene::new();
    let worker = scene.street.worker();
    // What is offered, many times over; whether buffers may be merged; what becomes of a frame of 60 bytes.
    let cases: &[(&str, u16, bool, End, Buffer)] = &[
        ("a loop", 1, true, End::Broken("chain-broken"), |h| h.part(0, 2048, WRITE | NEXT, 0)),
        ("outside", 1, true, End::Broken("chain-out-of-range"), |h| Descriptor {
            addr: h.device.memory.end() - 8,
            ..h.part(0, 2048, WRITE, 0)
        }),
        ("nothing to write to", SIZE, true, End::Dropped("no-buffer"), |h| h.part(0, 2048, 0, 0)),
        ("64 bytes in as many buffers", SIZE, true, End::Dropped("no-buffer"), |h| h.part(0, 1, WRITE, 0)),
        ("room for the header", 1, false, End::Dropped("oversize"), |h| h.part(0, 12, WRITE, 0)),
        ("a byte too few", 1, false, End::Dropped("oversize"), |h| h.part(0, WHOLE - 1, WRITE, 0)),
        ("just enough", 1, false, End::Arrives(WHOLE as usize), |h| h.part(0, WHOLE, WRITE, 0)),
        ("two bytes in each", 36, true, End::Arrives(2), |h| h.part(0, 2, WRITE, 0)),
    ];
    for (name, count, mergeable, end, buffer) in cases {
        let hostile = Hostile::new(&scene.street, &scene.socket, *mergeable);
        hostile.settle();
        let ring = &hostile.receive.ring;
        for head in 0..*count {
            ring.set_desc(head, buffer(&hostile));
            ring.offer(head);
        }
        let before = scene.violations();
        let dropped = if let End::Dropped(reason) = end { scene.drops("m1/net0", reason) } else { 0 };
        // There is one too few if it is this: a frame for which buffers are awaited is dropped after a while.
        send(&mut scene.honest, &frame(mac(1), mac(3), &[1; 46]));
        match end {
            End::Broken(kind) => scene.await_violation(name, kind, &before),
            End::Dropped(reason) => {
                scene.street.await_drops("m1/net0", reason, dropped + 1);
                assert_eq!(ring.used_index(), 0, "{name}: a part of a frame is shown");
            }
            End::Arrives(each) => {
                assert!(
                    hostile.receive.used_reaches(*count, PATIENCE).expect("used"),
                    "{name}: nothing came"
                );
                let all = (0..*count).all(|at| ring.used_element(at) == (at.into(), *each as u32));
                assert!(all, "{name}");
            }
        }
        assert_eq!(scene.arrived(), NOTHING, "{name}");
    }
    assert_eq!(scene.street.worker(), worker, "the worker was replaced");
}

#[test]
fn commands_that_make_no_sense_are_refused() {
    let mut scene = Scene::new();
    let worker = scene.street.worker();
    let mut hostile = Hostile::new(&scene.street, &scene.socket, true);
    let control = hostile.device.start_queue(2, SIZE).expect("queue");
    let status = ROOM - 1;
    let mut used = 0;
    for (command, expected) in [
        (&[][..], 1),
        (&[4], 1),
        (&[0, 0], 1),
        (&[0, 0, 1], 0),
        (&[1, 1, 2, 0, 0, 0, 0, 9], 1),
        (&[4, 0, 0, 0], 1),
        (&[4, 0, 0xff, 0xff], 1),
        (&[4, 0, 1, 0], 0),
        (&[0xff; 4096], 1),
    ] {
        hostile.device.memory.put_bytes(hostile.room, command);
        hostile.device.memory.put(hostile.room + status, 0x55_u8);
        let answer = hostile.part(status, 1, WRITE, 0);
        let ask = hostile.part(0, command.len() as u32, NEXT, 1);
        let chain = if command.is_empty() { vec![answer] } else { vec![ask, answer] };
        control.ring.set_descs(0, &chain);
        control.push(0).expect("kick");
        used += 1;
        assert!(control.used_reaches(used, PATIENCE).expect("used"), "{command:?}");
        assert_eq!(hostile.device.memory.get::<u8>(hostile.room + status), expected, "{command:?}");
    }
    // Without room for an answer there is none.
    control.ring.set_descs(0, &[hostile.part(0, 4, 0, 0)]);
    control.push(0).expect("kick");
    assert!(control.used_reaches(used + 1, PATIENCE).expect("used"));
    assert_eq!(control.ring.used_element(used).1, 0);
    assert_eq!(scene.arrived(), NOTHING);
    assert_eq!(scene.street.worker(), worker, "the worker was replaced");
    assert_eq!(received_after(&mut scene, &hostile), frame(mac(2), mac(1), &[7; 46]));
}

/// The hostile guest's frame, sent as it should be.
fn received_after(scene: &mut Scene, hostile: &Hostile) -> Vec<u8> {
    hostile.lay(&[0; HEADER], &frame(mac(2), mac(1), &[7; 46]));
    hostile.chain(&[hostile.part(0, WHOLE, 0, 0)]);
    hostile.transmit.push(0).expect("kick");
    received(&mut scene.victim)
}
