//! Faults on purpose: each has its effect, on its own disk alone, and ends when it is taken away.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use nagaya_client::{Blk, BlkOptions, Request};
use serde_json::{Value, json};

use crate::house::{Disk, House, PATIENCE};

/// A look at whether something is still held.
const LOOK: Duration = Duration::from_millis(100);
const OK: u8 = 0;
const ERROR: u8 = 1;

const READ: Request = Request::Read { sector: 8, len: 4096 };
const WRITE: Request = Request::Write { sector: 8, len: 4096 };
const DISCARD: Request = Request::Discard { sector: 8, sectors: 8 };

struct Guest<'a> {
    house: &'a House,
    disk: Disk,
    blk: Blk,
}

impl<'a> Guest<'a> {
    fn new(house: &'a House) -> Self {
        let disk = house.disk("patient", false);
        let blk = Blk::open(&disk.socket, BlkOptions::default()).unwrap();
        Self { house, disk, blk }
    }

    fn suffers(&self, plan: &Value) {
        self.house.set_faults(&self.disk.id, plan);
        assert_eq!(self.house.device(&self.disk.id)["faults"].is_null(), plan.is_null());
    }

    fn heals(&self) {
        self.suffers(&Value::Null);
    }

    fn status(&mut self, request: Request) -> u8 {
        self.blk.run(request, PATIENCE).unwrap().status
    }

    fn start(&mut self, slot: u16, request: Request) {
        self.blk.submit(slot, request);
        self.blk.kick().unwrap();
    }

    /// The statuses of the next `count` requests to end.
    fn answers(&mut self, count: usize) -> Vec<u8> {
        let mut answers = Vec::new();
        while answers.len() < count {
            assert!(self.blk.wait(PATIENCE).unwrap(), "{answers:?}, then nothing");
            while let Some(done) = self.blk.poll().unwrap() {
                answers.push(done.status);
            }
        }
        answers
    }

    fn counted(&self, what: &str) -> u64 {
        self.house.device(&self.disk.id)[what].as_u64().unwrap()
    }

    /// Wait until the worker has taken up what was started and counts so many.
    fn await_count(&self, what: &str, count: u64) {
        let end = Instant::now() + PATIENCE;
        while self.counted(what) != count {
            assert!(Instant::now() < end, "{what} is {}, not {count}", self.counted(what));
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Wait until this is told, once.
fn await_event(house: &House, name: &str) {
    let end = Instant::now() + PATIENCE;
    let told = loop {
        match house.take_events(name) {
            0 => assert!(Instant::now() < end, "nobody tells {name}"),
            told => break told,
        }
        thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(told, 1, "{name}");
}

#[test]
fn latency_is_added_and_taken_away() {
    let house = House::new();
    let mut guest = Guest::new(&house);
    let latency = Duration::from_millis(200);
    guest.suffers(&json!({"latency_us": latency.as_micros()}));
    // One after the other they would always take eight times as long; a busy host may take as long once.
    let mut together = || {
        let start = Instant::now();
        (0..8).for_each(|slot| guest.start(slot, READ));
        assert_eq!(guest.answers(8), [OK; 8]);
        assert!(start.elapsed() >= latency, "{:?}", start.elapsed());
        start.elapsed()
    };
    let rounds = (1..=5).find(|_| together() < 8 * latency).expect("they wait side by side");
    assert_eq!(guest.counted("faulted"), 8 * rounds);
    guest.heals();
    let quick = (0..50).map(|_| {
        let start = Instant::now();
        guest.status(READ);
        start.elapsed()
    });
    assert!(quick.min().unwrap() < latency / 4);
    assert_eq!(guest.counted("faulted"), 8 * rounds);
}

#[test]
fn errors_are_made_at_their_rate_and_for_their_operations() {
    let house = House::new();
    let mut guest = Guest::new(&house);
    guest.suffers(&json!({"error_rate": 1.0, "operations": ["write", "flush"]}));
    assert_eq!(
        [READ, WRITE, Request::Flush, DISCARD].map(|request| guest.status(request)),
        [OK, ERROR, ERROR, OK]
    );
    guest.suffers(&json!({"error_rate": 0.5, "seed": 3}));
    let failed = (0..200).filter(|_| guest.status(READ) == ERROR).count();
    assert!((60..140).contains(&failed), "{failed} of 200");
    guest.heals();
    // A flush that was made to fail has lost nothing, and is no reason to fail others.
    assert_eq!([READ, WRITE, Request::Flush, DISCARD].map(|request| guest.status(request)), [OK; 4]);
    assert_eq!(guest.counted("flush_error"), 0);
}

#[test]
fn a_torn_write_fails_and_leaves_its_first_sectors() {
    let house = House::new();
    let mut guest = Guest::new(&house);
    let image = File::open(&guest.disk.image).unwrap();
    let mut bytes = [0; 4096];
    for round in 1..=20_u8 {
        guest.blk.device.memory.put_bytes(guest.blk.buffer(0), &[round; 4096]);
        guest.suffers(&json!({"torn_write_rate": 1.0, "seed": round}));
        guest.start(0, WRITE);
        assert_eq!(guest.answers(1), [ERROR]);
        image.read_exact_at(&mut bytes, 4096).unwrap();
        let written = bytes.iter().position(|byte| *byte != round).expect("not all of it");
        assert!(written >= 512 && written.is_multiple_of(512), "{written}");
        assert!(bytes[written..].iter().all(|byte| *byte == round - 1), "the rest is as it was");
        guest.heals();
        assert_eq!(guest.status(WRITE), OK);
        image.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(bytes, [round; 4096]);
    }
}

#[test]
fn a_stuck_disk_answers_nobody_until_it_is_freed_and_holds_up_no_other() {
    let house = House::new();
    let mut guest = Guest::new(&house);
    let neighbour = house.neighbour();
    guest.suffers(&json!({"stuck": true}));
    [READ, WRITE, Request::Flush].into_iter().zip(0..).for_each(|(request, slot)| guest.start(slot, request));
    guest.await_count("inflight", 3);
    assert!(!guest.blk.wait(LOOK).unwrap());
    guest.heals();
    assert_eq!(guest.answers(3), [OK; 3]);
    neighbour.leave();
    house.assert_one_worker();
}

#[test]
fn faults_outlive_a_killed_worker() {
    let house = House::new();
    let mut guest = Guest::new(&house);
    guest.suffers(&json!({"stuck": true}));
    (0..4).for_each(|slot| guest.start(slot, WRITE));
    guest.await_count("inflight", 4);
    assert!(!guest.blk.wait(LOOK).unwrap());
    let (pid, generation) = house.current_worker();
    // SAFETY: passes no pointer; the process is a child of this one and not yet waited for.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
    while house.current_worker().1 == generation {
        thread::sleep(Duration::from_millis(1));
    }
    guest.await_count("inflight", 4);
    assert!(!guest.blk.wait(LOOK).unwrap());
    guest.heals();
    // The driver fails if one of them completes twice.
    assert_eq!(guest.answers(4), [OK; 4]);
    assert_eq!(guest.status(READ), OK);
}

#[test]
fn a_full_disk_makes_writes_wait_and_says_so() {
    let house = House::new();
    let mut guest = Guest::new(&house);
    guest.suffers(&json!({"full": true}));
    guest.start(0, WRITE);
    await_event(&house, "DEVICE_NO_SPACE");
    assert!(!guest.blk.wait(LOOK).unwrap());
    assert_eq!((guest.counted("spaceless"), house.take_events("DEVICE_NO_SPACE")), (1, 0));
    guest.start(1, READ);
    assert_eq!(guest.answers(1), [OK]);
    guest.heals();
    assert_eq!(guest.answers(1), [OK]);
    assert_eq!(guest.counted("spaceless"), 0);
    await_event(&house, "DEVICE_SPACE");
}

#[test]
fn a_guest_that_leaves_a_stuck_disk_is_not_kept() {
    let house = House::new();
    let mut guest = Guest::new(&house);
    guest.suffers(&json!({"stuck": true, "seed": 1}));
    (0..4).for_each(|slot| guest.start(slot, WRITE));
    guest.await_count("inflight", 4);
    assert!(!guest.blk.wait(LOOK).unwrap());
    drop(guest.blk);
    house.set_faults("patient", &json!({"latency_us": 1000}));
    guest.blk = Blk::open(&guest.disk.socket, BlkOptions::default()).unwrap();
    assert_eq!(guest.status(READ), OK);
    assert_eq!(house.violations("patient"), 0);
}

#[test]
fn a_plan_for_nobody_or_out_of_bounds_is_refused() {
    let house = House::new();
    house.rng("random");
    let refused = |id: &str, plan: &str| house.try_faults(id, plan).unwrap_err().to_string();
    assert_eq!(refused("nobody", "null"), "no device nobody");
    assert_eq!(refused("random", "null"), "device random is no disk");
    assert_eq!(refused("neighbour", r#"{"error_rate": 2}"#), "error_rate is 2, not between 0 and 1");
}
