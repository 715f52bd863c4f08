//! A hostile driver of the balloon: what it gives is its own, what it says is believed nowhere, and nobody waits for it.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nagaya_client::balloon::{Balloon, PAGE, PAGE_POISON, REPORTING, STATS};
use nagaya_client::{Descriptor, Queue};
use nagaya_plane::holder::PlaneError;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::house::House;
use crate::scene::{NEXT, WRITE};

const PATIENCE: Duration = Duration::from_secs(5);
const PAGES: u32 = 512;
const ALL: u64 = STATS | PAGE_POISON | REPORTING;

/// A house with a balloon, and its driver. Each page that can be given says which it is.
fn scene(features: u64, stats_ms: u32) -> (House, Balloon) {
    let house = House::new();
    house.balloon("balloon", stats_ms);
    let guest = reopen(&house, features);
    (house, guest)
}

fn reopen(house: &House, features: u64) -> Balloon {
    let guest = Balloon::open(&house.path("balloon.sock"), features, PAGES.into()).unwrap();
    fill(&guest, 0..PAGES);
    guest
}

fn fill(guest: &Balloon, pages: std::ops::Range<u32>) {
    for page in pages {
        guest.device.memory.put(address(guest, page), page + 1);
    }
}

fn address(guest: &Balloon, page: u32) -> u64 {
    u64::from(guest.first() + page) * PAGE
}

/// Pages that do not say who they are any more.
fn lost(guest: &Balloon) -> BTreeSet<u32> {
    let said = |page| guest.device.memory.get::<u32>(address(guest, page));
    (0..PAGES).filter(|page| said(*page) != page + 1).collect()
}

fn wait_until(house: &House, what: &str, mut holds: impl FnMut(&Value) -> bool) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let row = house.query_balloon();
        if holds(&row) {
            return row;
        }
        assert!(Instant::now() < end, "{what}: {row}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_a_guest_gives_the_host_has() {
    let (house, mut guest) = scene(ALL, 0);
    house.set_balloon("balloon", &json!({ "size": 5 * PAGE })).unwrap();
    assert_eq!(guest.wanted().unwrap(), 5);
    let before = guest.device.memory.held().unwrap();
    let first = guest.first();
    assert!(guest.inflate(&[first + 9, first + 3, first + 4, first + 9, first + 2]).unwrap());
    assert!(guest.report(&[(first + 100, 50), (first + 200, 1)]).unwrap());
    assert_eq!(guest.device.memory.held().unwrap(), before - 55 * PAGE);
    let given: BTreeSet<u32> = [2, 3, 4, 9].into_iter().chain(100..150).chain([200]).collect();
    assert_eq!(lost(&guest), given);
    guest.write(4, 5).unwrap();
    guest.deflate(&[first + 9]).unwrap();
    guest.write(4, 4).unwrap();
    let row = house.query_balloon();
    let told = |name: &str| row[name].as_u64().unwrap() / PAGE;
    assert_eq!(["size", "actual", "inflated", "deflated", "reported"].map(told), [5, 4, 4, 1, 51]);
    assert_eq!((&row["driver"], &row["taken_back"]), (&json!(true), &json!(1)));
    drop(guest);
    let gone = |row: &Value| row["driver"] == false && row["actual"] == 0;
    assert_eq!(wait_until(&house, "the guest has gone", gone)["size"], 5 * PAGE);
    house.assert_one_worker();
}

#[test]
fn a_guest_is_asked_for_the_next_bite_when_it_has_given_one() {
    let (house, mut guest) = scene(ALL, 0);
    house.set_balloon("balloon", &json!({ "size": 200 * PAGE })).unwrap();
    // 256 KiB beyond what it has given, at most all that is wanted; one that takes some back is left in peace.
    for (given, wanted) in [(0, 64), (64, 128), (100, 164), (164, 200), (200, 200), (150, 200)] {
        guest.write(4, given).unwrap();
        let end = Instant::now() + PATIENCE;
        while guest.wanted().unwrap() != wanted {
            assert!(Instant::now() < end, "{given} given: {} wanted", guest.wanted().unwrap());
        }
    }
    house.set_balloon("balloon", &json!({ "size": 10 * PAGE })).unwrap();
    assert_eq!(guest.wanted().unwrap(), 10);
    house.assert_one_worker();
}

#[test]
fn wishes_out_of_bounds_are_refused_and_change_nothing() {
    let (house, mut guest) = scene(ALL, 0);
    for wish in [
        json!({ "size": 1_u64 << 44 }),
        json!({ "size": -1 }),
        json!({ "stats_ms": 99 }),
        json!({ "size": PAGE, "stats_ms": 86_400_001 }),
        json!({ "colour": 1 }),
    ] {
        let error = house.set_balloon("balloon", &wish).unwrap_err();
        assert!(matches!(error, PlaneError::Config(_)), "{wish}: {error}");
    }
    assert!(matches!(house.set_balloon("moon", &json!({ "size": 0 })), Err(PlaneError::NoDevice(_))));
    assert!(matches!(house.set_balloon("neighbour", &json!({ "size": 0 })), Err(PlaneError::Config(_))));
    assert_eq!(guest.wanted().unwrap(), 0);
}

#[test]
fn a_driver_writes_the_two_fields_that_are_its_own() {
    let (house, mut guest) = scene(ALL, 0);
    guest.write(4, u32::MAX).unwrap();
    assert_eq!(house.query_balloon()["actual"], u64::from(u32::MAX) * PAGE);
    for place in [0, 1, 5, 8, 13, 16, 252] {
        guest.write(place, 1).unwrap_err();
    }
    assert_eq!(guest.wanted().unwrap(), 0);
    house.assert_one_worker();
}

#[test]
fn pages_of_nobody_break_the_queue_and_nothing_is_given() {
    let (house, guest) = scene(ALL, 0);
    let before = guest.device.memory.held().unwrap();
    let (first, mut guest) = (guest.first(), guest);
    for wrong in [0, first + PAGES, u32::MAX, (guest.device.memory.start() / PAGE) as u32 - 1] {
        let violations = house.violations("balloon");
        let addr = guest.device.memory.start() + 0x8_0000;
        guest.device.memory.put(addr, [first, wrong]);
        let queue = &guest.queues[0];
        queue.ring.set_desc(0, Descriptor { addr, len: 8, flags: 0, next: 0 });
        queue.push(0).unwrap();
        wait_for_failure(queue);
        wait_until(&house, "counted", |_| house.violations("balloon") == violations + 1);
        assert_eq!(queue.ring.used_index(), 0);
        assert_eq!((guest.device.memory.held().unwrap(), lost(&guest).len()), (before, 0));
        // The next one is served when this one has gone.
        drop(guest);
        guest = reopen(&house, ALL);
    }
    assert_eq!(house.violations_by_kind("balloon")["balloon-page"], 4);
    assert!(guest.inflate(&[first]).unwrap());
    house.assert_one_worker();
}

#[test]
fn a_chain_that_names_more_pages_than_a_turn_can_do_breaks_the_queue() {
    let (house, guest) = scene(ALL, 0);
    let addr = address(&guest, 0);
    let queue = &guest.queues[0];
    for index in 0..60 {
        let flags = if index < 59 { NEXT } else { 0 };
        queue.ring.set_desc(index, Descriptor { addr, len: 0x20_0000, flags, next: index + 1 });
    }
    queue.push(0).unwrap();
    wait_for_failure(queue);
    wait_until(&house, "counted", |_| house.violations("balloon") == 1);
    assert_eq!(house.violations_by_kind("balloon")["balloon-pages"], 1);
    assert_eq!(lost(&guest), BTreeSet::new());
    house.assert_one_worker();
}

#[test]
fn poisoned_pages_stay() {
    let (house, mut guest) = scene(ALL, 0);
    guest.write(12, 0xaaaa_aaaa).unwrap();
    assert!(guest.report(&[(guest.first(), 10)]).unwrap());
    assert_eq!((lost(&guest).len(), &house.query_balloon()["reported"]), (0, &json!(0)));
    guest.write(12, 0).unwrap();
    assert!(guest.report(&[(guest.first(), 10)]).unwrap());
    assert_eq!(lost(&guest).len(), 10);
}

#[test]
fn statistics_come_as_often_as_they_are_asked_for() {
    let (house, guest) = scene(STATS, 100);
    let size = guest.device.memory.size();
    for round in 0_u16..3 {
        guest.tell(&[(4, 1000), (5, u64::MAX), (2, round.into())]).unwrap();
        wait_until(&house, "told", |row| row["stats"]["major_faults"] == round);
        assert!(guest.stats().used_reaches(round + 1, PATIENCE).unwrap(), "it is not asked again");
    }
    let stats = house.query_balloon()["stats"].clone();
    assert_eq!((&stats["free"], &stats["total"]), (&json!(1000), &json!(size)));
    assert_eq!(stats["caches"], Value::Null);
    // From now on never; then soon.
    house.set_balloon("balloon", &json!({ "stats_ms": 0 })).unwrap();
    guest.tell(&[(2, 7)]).unwrap();
    wait_until(&house, "told", |row| row["stats"]["major_faults"] == 7);
    assert!(!guest.stats().used_reaches(4, Duration::from_millis(300)).unwrap());
    house.set_balloon("balloon", &json!({ "stats_ms": 86_400_000 })).unwrap();
    assert!(!guest.stats().used_reaches(4, Duration::from_millis(300)).unwrap());
    house.set_balloon("balloon", &json!({ "stats_ms": 100 })).unwrap();
    assert!(guest.stats().used_reaches(4, PATIENCE).unwrap());
    house.assert_one_worker();
}

#[test]
fn the_next_worker_does_not_take_old_statistics_for_new_ones() {
    let (house, guest) = scene(STATS, 86_400_000);
    guest.tell(&[(2, 1)]).unwrap();
    let told = wait_until(&house, "told", |row| row["stats"]["major_faults"] == 1);
    house.kill_worker();
    // It asks again at once.
    assert!(guest.stats().used_reaches(1, PATIENCE).unwrap());
    assert_eq!(house.query_balloon()["stats_at"], told["stats_at"]);
    guest.tell(&[(2, 2)]).unwrap();
    wait_until(&house, "told", |row| row["stats"]["major_faults"] == 2);
}

#[test]
fn many_buffers_for_statistics_are_looked_at_one_a_period() {
    let (house, guest) = scene(STATS, 100);
    let stats = guest.stats();
    let addr = address(&guest, 0);
    let start = Instant::now();
    for head in 0..64 {
        stats.ring.set_desc(head, Descriptor { addr, len: 0x10_0000, flags: 0, next: 0 });
        stats.push(head).unwrap();
    }
    assert!(stats.used_reaches(3, PATIENCE).unwrap());
    assert!(start.elapsed() >= Duration::from_millis(300), "three periods in {:?}", start.elapsed());
    house.assert_one_worker();
}

#[test]
fn each_chain_is_answered_once_when_workers_die() {
    let (house, mut guest) = scene(ALL, 100);
    house.set_balloon("balloon", &json!({ "size": 99 * PAGE })).unwrap();
    guest.write(4, 7).unwrap();
    let first = guest.first();
    for round in 0..20_u32 {
        let pages: Vec<u32> = (0..PAGES).map(|page| first + page).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_micros(u64::from(round) * 211 % 1500));
                house.kill_worker();
            });
            for part in pages.chunks(64) {
                assert!(guest.inflate(part).unwrap());
                assert!(guest.report(&[(part[0], 64)]).unwrap());
            }
        });
        assert_eq!(lost(&guest).len(), PAGES as usize);
        fill(&guest, 0..PAGES);
    }
    for queue in [&guest.queues[0], guest.reports()] {
        assert_eq!(queue.ring.used_index(), queue.ring.avail_index(), "answered more than once");
    }
    let row = house.query_balloon();
    assert_eq!((row["size"].as_u64(), row["actual"].as_u64()), (Some(99 * PAGE), Some(7 * PAGE)));
    assert!(row["reported"].as_u64() >= Some(20 * u64::from(PAGES) * PAGE), "{row}");
}

#[test]
fn endless_gifts_starve_nobody() {
    let (house, guest) = scene(ALL, 100);
    let neighbour = house.neighbour();
    let (addr, len) = (address(&guest, 0), PAGES * PAGE as u32);
    let numbers: Vec<u8> =
        (0..PAGES).flat_map(|page| (guest.first() + 2 * (page % 256)).to_le_bytes()).collect();
    let named = guest.device.memory.start() + 0x8_0000;
    guest.device.memory.put_bytes(named, &numbers);
    for head in 0..64 {
        let inflate = Descriptor { addr: named, len: numbers.len() as u32, flags: 0, next: 0 };
        guest.queues[0].ring.set_desc(head, inflate);
        guest.reports().ring.set_desc(head, Descriptor { addr, len, flags: WRITE, next: 0 });
    }
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        for queue in [&guest.queues[0], guest.reports()] {
            let mut offered = queue.ring.avail_index();
            while offered.wrapping_sub(queue.ring.used_index()) < 64 {
                queue.ring.set_avail(offered, offered % 64);
                offered = offered.wrapping_add(1);
            }
            queue.ring.publish(offered);
            queue.kick.write(1).unwrap();
        }
    }
    let tally = neighbour.leave();
    // A worker that served nobody else before the rings are empty would give it none: they never are.
    assert!(tally.writes > 30, "{tally:?} in a second beside {}", house.query_balloon());
    house.assert_one_worker();
}

#[test]
fn memory_that_is_cut_off_breaks_the_queue_alone() {
    let (house, guest) = scene(ALL, 0);
    let before = house.violations("balloon");
    guest.device.memory.truncate(0).unwrap();
    guest.queues[0].kick.write(1).unwrap();
    let end = Instant::now() + PATIENCE;
    while house.violations("balloon") == before {
        assert!(Instant::now() < end, "not noticed");
        thread::sleep(Duration::from_millis(1));
    }
    drop(guest);
    let guest = reopen(&house, ALL);
    assert!(guest.inflate(&[guest.first()]).unwrap());
    house.assert_one_worker();
}

/// Whether the device has given the queue up.
fn failed(queue: &Queue) -> bool {
    let mut err = libc::pollfd { fd: queue.err.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&mut err, 1, 0) == 1 }
}

fn wait_for_failure(queue: &Queue) {
    let end = Instant::now() + PATIENCE;
    while !failed(queue) {
        assert!(Instant::now() < end, "it goes on");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A chain of anything: where its buffers are and how long, and which of them are to be written.
fn chain() -> impl Strategy<Value = Vec<(u64, u32, bool)>> {
    let place = prop_oneof![6 => 0..u64::from(PAGES) * PAGE, 1 => any::<u64>()];
    let length = prop_oneof![3 => 1_u32..5000, 2 => 0x1000_u32..0x8000, 1 => any::<u32>()];
    prop::collection::vec((place, length, any::<bool>()), 1..6)
}

#[test]
fn whatever_is_offered_only_pages_that_were_named_are_lost() {
    let (house, _) = scene(ALL, 100);
    let neighbour = house.neighbour();
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    let named = prop::collection::vec((0_u32..PAGES, 1_u32..40), 0..20);
    runner
        .run(&(prop::collection::vec((0_usize..4, chain()), 0..8), named), |(chains, named)| {
            let guest = reopen(&house, ALL);
            let mut given = BTreeSet::new();
            for (first, count) in named {
                let count = count.min(PAGES - first);
                assert!(guest.report(&[(guest.first() + first, count)]).unwrap());
                given.extend(first..first + count);
            }
            prop_assert_eq!(&lost(&guest), &given);
            for (number, chain) in chains {
                let base = address(&guest, 0);
                let descriptors = chain.iter().map(|(place, len, write)| Descriptor {
                    addr: base.wrapping_add(*place),
                    len: *len,
                    flags: if *write { WRITE } else { 0 },
                    next: 0,
                });
                let descriptors: Vec<_> = descriptors.collect();
                let queue = &guest.queues[number];
                for (index, descriptor) in (0..).zip(&descriptors) {
                    let more = usize::from(index) + 1 < descriptors.len();
                    let flags = descriptor.flags | if more { NEXT } else { 0 };
                    queue.ring.set_desc(index, Descriptor { flags, next: index + 1, ..*descriptor });
                }
                queue.push(0).unwrap();
                let reported = chain.iter().filter(|(_, _, write)| *write && number == 3);
                given.extend(reported.flat_map(|(place, len, _)| {
                    let end = place.saturating_add(u64::from(*len)).div_ceil(PAGE).min(PAGES.into());
                    (place / PAGE).min(end) as u32..end as u32
                }));
            }
            for queue in [0, 1, 3].map(|number| &guest.queues[number]) {
                while queue.ring.used_index() != queue.ring.avail_index() && !failed(queue) {
                    thread::yield_now();
                }
            }
            // What numbers point at is below the guest's memory.
            prop_assert!(lost(&guest).is_subset(&given));
            Ok(())
        })
        .unwrap();
    let guest = reopen(&house, ALL);
    assert!(guest.inflate(&[guest.first()]).unwrap());
    neighbour.leave();
    house.assert_one_worker();
}
