//! virtio-mem against a driver that asks for anything, with real workers that are killed meanwhile.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nagaya_client::device::{Device, Queue};
use nagaya_client::ring::Descriptor;
use nagaya_plane::holder::Plane;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

const BLOCK: u64 = 2 << 20;
const BLOCKS: u64 = 6;
/// Behind the rings, which begin where the client's memory does.
const START: u64 = 0x1000_0000 + (8 << 20);
const SIZE: u64 = BLOCKS * BLOCK;
const PATIENCE: Duration = Duration::from_secs(60);

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

struct House {
    plane: Plane,
    _directory: TempDir,
    device: Device,
    queue: Queue,
    request: u64,
    response: u64,
    sent: u16,
}

impl House {
    fn new(requested: u64) -> House {
        let plane = Plane::new(vec![env!("CARGO_BIN_EXE_nagaya-worker").to_owned()]).expect("plane");
        let directory = tempfile::Builder::new().prefix("ng").tempdir_in("/tmp").expect("directory");
        let socket = directory.path().join("mem.sock");
        let listener = UnixListener::bind(&socket).expect("listen");
        let config = json!({"driver": "mem", "id": "mem", "worker": "memory", "start": START, "size": SIZE,
            "requested": requested});
        plane.device_add(&config.to_string(), vec![OwnedFd::from(listener)]).expect("device_add");
        let mut device = Device::connect(&socket, u64::MAX, (8 << 20) + SIZE).expect("connect");
        device.share_memory().expect("memory");
        let queue = device.start_queue(0, 16).expect("queue");
        let (request, response) = (device.memory.alloc(24, 8), device.memory.alloc(16, 8));
        House { plane, _directory: directory, device, queue, request, response, sent: 0 }
    }

    fn row(&self) -> Value {
        serde_json::from_str::<Value>(&self.plane.query_memory()).expect("JSON")[0].clone()
    }

    fn plugged(&mut self) -> u64 {
        let told = self.row()["plugged"].as_u64().expect("a number");
        assert_eq!(self.field(40), told, "configuration space and query agree");
        told
    }

    fn field(&mut self, at: u32) -> u64 {
        u64::from_le_bytes(self.device.config(at, 8).expect("config").try_into().expect("8 bytes"))
    }

    fn send(&mut self, kind: u16, address: u64, count: u16) {
        let memory = &self.device.memory;
        memory.put_bytes(self.request, &[0; 24]);
        memory.put(self.request, kind);
        memory.put(self.request + 8, address);
        memory.put(self.request + 16, count);
        memory.put_bytes(self.response, &[0xff; 16]);
        let ring = &self.queue.ring;
        ring.set_desc(0, Descriptor { addr: self.request, len: 24, flags: NEXT, next: 1 });
        ring.set_desc(1, Descriptor { addr: self.response, len: 10, flags: WRITE, next: 0 });
        self.queue.push(0).expect("kick");
        self.sent = self.sent.wrapping_add(1);
    }

    fn answer(&mut self) -> (u16, u16) {
        assert!(self.queue.used_reaches(self.sent, PATIENCE).expect("wait"), "no answer");
        (self.device.memory.get(self.response), self.device.memory.get(self.response + 8))
    }

    fn ask(&mut self, kind: u16, block: u64, count: u16) -> (u16, u16) {
        self.send(kind, START + block * BLOCK, count);
        self.answer()
    }

    /// End the worker; another one starts by itself.
    fn kill(&self) {
        let state: Value = serde_json::from_str(&self.plane.query()).expect("JSON");
        if let Some(pid) = state["workers"][0]["pid"].as_u64() {
            // SAFETY: passes no pointer. The worker is this plane's, which has not reaped it.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        }
    }

    fn mark(&self, block: u64, byte: u8) {
        self.device.memory.put_bytes(START + block * BLOCK + 77, &[byte; 8]);
    }

    fn reads(&self, block: u64) -> u8 {
        self.device.memory.get(START + block * BLOCK + 77)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ask(u16, u64, u16, bool),
    Want(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let ask = (0_u16..5, 0..BLOCKS + 2, 0_u16..5, prop::bool::weighted(0.1));
    prop_oneof![
        8 => ask.prop_map(|(kind, block, count, killed)| Step::Ask(kind, block, count, killed)),
        1 => (0..=BLOCKS).prop_map(Step::Want),
    ]
}

/// What the specification says of a request.
fn expected(model: &mut [bool], wanted: u64, (kind, block, count): (u16, u64, u16)) -> (u16, u16) {
    let (from, to) = (block as usize, block as usize + usize::from(count));
    if kind == UNPLUG_ALL {
        model.fill(false);
        return (ACK, 0);
    }
    if kind > STATE || count == 0 || to > model.len() {
        return (ERROR, 0);
    }
    let all = model.iter().filter(|bit| **bit).count() as u64;
    let plugged = model[from..to].iter().filter(|bit| **bit).count();
    match kind {
        PLUG if plugged > 0 => (ERROR, 0),
        PLUG if all + u64::from(count) > wanted => (NACK, 0),
        UNPLUG if plugged < to - from => (ERROR, 0),
        STATE if plugged == to - from => (ACK, 0),
        STATE => (ACK, if plugged == 0 { 1 } else { 2 }),
        _ => {
            model[from..to].fill(kind == PLUG);
            (ACK, 0)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn answers_are_those_of_the_specification_whenever_workers_die(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut house = House::new(3 * BLOCK);
        let (mut model, mut wanted) = (vec![false; BLOCKS as usize], 3);
        for step in steps {
            match step {
                Step::Want(blocks) => {
                    house.plane.set_memory("mem", blocks * BLOCK).unwrap();
                    wanted = blocks;
                    prop_assert_eq!(house.field(48), wanted * BLOCK);
                }
                Step::Ask(kind, block, count, killed) => {
                    let before = model.clone();
                    for block in 0..BLOCKS {
                        house.mark(block, 1 + block as u8);
                    }
                    house.send(kind, START + block * BLOCK, count);
                    if killed {
                        house.kill();
                    }
                    let answer = house.answer();
                    prop_assert_eq!(answer, expected(&mut model, wanted, (kind, block, count)));
                    for (block, (was, is)) in before.iter().zip(&model).enumerate() {
                        let gone = kind == UNPLUG_ALL || (*was && !is);
                        prop_assert_eq!(house.reads(block as u64), if gone { 0 } else { 1 + block as u8 });
                    }
                }
            }
            let count = model.iter().filter(|bit| **bit).count() as u64;
            prop_assert_eq!(house.plugged(), count * BLOCK);
        }
    }
}

#[test]
fn the_configuration_space_tells_the_region() {
    let mut house = House::new(BLOCK);
    let fields = [0, 8, 16, 24, 32, 40, 48].map(|at| house.field(at));
    assert_eq!(fields, [BLOCK, 0, START, SIZE, SIZE, 0, BLOCK]);
    assert!(house.device.has(1), "the driver is told not to touch what is unplugged");
    assert_eq!(house.row()["requested"], BLOCK);
}

#[test]
fn requests_beside_the_region_are_errors_and_change_nothing() {
    let mut house = House::new(SIZE);
    let wrong = [
        (PLUG, START + 4096, 1),
        (PLUG, START - BLOCK, 1),
        (PLUG, START + SIZE, 1),
        (PLUG, 0, u16::MAX),
        (PLUG, u64::MAX - BLOCK + 1, 2),
        (UNPLUG, START, u16::MAX),
        (STATE, START + 1, 1),
        (77, START, 1),
    ];
    for (kind, address, count) in wrong {
        house.send(kind, address, count);
        assert_eq!(house.answer().0, ERROR, "{kind} {address:#x} {count}");
    }
    assert_eq!(house.plugged(), 0);
}

#[test]
fn a_wish_that_does_not_fit_is_refused() {
    let house = House::new(0);
    for wrong in [1, BLOCK / 2, SIZE + BLOCK, u64::MAX] {
        assert!(house.plane.set_memory("mem", wrong).is_err(), "{wrong}");
    }
    assert!(house.plane.set_memory("other", 0).is_err());
    assert_eq!(house.row()["requested"], 0);
}

#[test]
fn a_request_that_is_too_short_breaks_the_queue() {
    let house = House::new(SIZE);
    let ring = &house.queue.ring;
    ring.set_desc(0, Descriptor { addr: house.request, len: 23, flags: NEXT, next: 1 });
    ring.set_desc(1, Descriptor { addr: house.response, len: 10, flags: WRITE, next: 0 });
    house.queue.push(0).expect("kick");
    let end = Instant::now() + PATIENCE;
    loop {
        let state: Value = serde_json::from_str(&house.plane.query()).expect("JSON");
        if state["devices"][0]["violations"]["mem-request"] == 1 {
            break;
        }
        assert!(Instant::now() < end, "no violation");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_frontend_that_comes_anew_has_nothing_plugged() {
    let mut house = House::new(SIZE);
    assert_eq!(house.ask(PLUG, 0, 4), (ACK, 0));
    assert_eq!(house.plugged(), 4 * BLOCK);
    let House { plane, _directory, device, queue, .. } = house;
    drop((device, queue));
    let end = Instant::now() + PATIENCE;
    while serde_json::from_str::<Value>(&plane.query_memory()).expect("JSON")[0]["plugged"] != 0 {
        assert!(Instant::now() < end, "still plugged");
        std::thread::sleep(Duration::from_millis(1));
    }
}
