//! Descriptor tables by chance, and tables that change while they are read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nagaya_client::Descriptor;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::house::{House, assert_serves};
use crate::scene::{DATA_LEN, INDIRECT, NEXT, QUEUE_SIZE, Scene, WRITE};

/// Descriptors and heads that chance fills in.
const TABLE: u16 = 12;
const HEADS: usize = 6;

/// Where a descriptor points, resolved once the guest's memory is laid out.
#[derive(Clone, Copy, Debug)]
enum Place {
    Header,
    Data(u32),
    Status,
    Table(u32),
    End(u32),
    Anywhere(u64),
}

#[derive(Clone, Copy, Debug)]
struct Draft {
    place: Place,
    len: u32,
    flags: u16,
    next: u16,
}

#[derive(Clone, Debug)]
struct Plan {
    kind: u32,
    sector: u64,
    ring: Vec<Draft>,
    indirect: Vec<Draft>,
    heads: Vec<u16>,
}

#[test]
fn every_random_table_gets_a_defined_answer() {
    let house = House::new();
    let disk = house.disk("hostile", false);
    let neighbour = house.neighbour();
    // Nothing is stored: a failure prints its plan, and the process under test is another one.
    let config = Config { cases: 400, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let outcome = TestRunner::new(config).run(&plan(), |plan| {
        let scene = Scene::new(&house, &disk);
        lay(&scene, &plan);
        for head in &plan.heads {
            scene.queue.ring.offer(*head);
        }
        scene.queue.kick.write(1).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let answer = scene.answer(plan.heads.len() as u16);
        prop_assert!(answer.is_some(), "neither answered nor broken");
        Ok(())
    });
    println!("violations: {:?}", house.violations_by_kind(&disk.id));
    outcome.unwrap();
    neighbour.leave();
    house.assert_one_worker();
    assert_serves(&disk.socket);
}

#[test]
fn tables_that_change_while_they_are_read_harm_only_their_guest() {
    let house = House::new();
    let disk = house.disk("hostile", false);
    let neighbour = house.neighbour();
    for seed in 1..=20_u64 {
        let scene = Scene::new(&house, &disk);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| scribble(&scene, seed, &stop));
            for _ in 0..200 {
                let _ = scene.queue.kick.write(1);
                thread::sleep(Duration::from_micros(200));
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
    neighbour.leave();
    house.assert_one_worker();
    assert_serves(&disk.socket);
}

/// Keep a valid read and an invalid chain alternating in the same places, and the index going.
fn scribble(scene: &Scene, seed: u64, stop: &AtomicBool) {
    let mut random = seed;
    while !stop.load(Ordering::Relaxed) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        scene.request((random >> 8) as u32 & 15, random >> 40);
        let bad = |bit: u64, good: u64| if random & bit == 0 { good } else { random };
        scene.chain(&[
            Descriptor { len: bad(1, 16) as u32, ..scene.head(bad(2, 1) as u16) },
            Descriptor { addr: bad(4, scene.data), ..scene.body(512 << (random >> 60), random & 8 != 0, 2) },
            Descriptor { flags: bad(16, WRITE.into()) as u16, ..scene.tail() },
        ]);
        let ring = &scene.queue.ring;
        ring.set_avail(random as u16, bad(32, 0) as u16);
        // Never further than the ring is long, or the first look would end it.
        ring.publish(ring.used_index().wrapping_add((random >> 50) as u16 % QUEUE_SIZE));
    }
}

fn plan() -> impl Strategy<Value = Plan> {
    let kind = prop_oneof![4 => Just(0_u32), 3 => Just(1_u32), 1 => 0_u32..16, 1 => any::<u32>()];
    let sector = prop_oneof![3 => 0_u64..16_384, 1 => 16_380_u64..16_390, 1 => any::<u64>()];
    let drafts = |count: usize| prop::collection::vec(draft(), count);
    let heads = prop::collection::vec(prop_oneof![8 => 0_u16..TABLE, 1 => any::<u16>()], 1..=HEADS);
    (kind, sector, drafts(TABLE.into()), drafts(8), heads)
        .prop_map(|(kind, sector, ring, indirect, heads)| Plan { kind, sector, ring, indirect, heads })
}

fn draft() -> impl Strategy<Value = Draft> {
    let place = prop_oneof![
        4 => Just(Place::Header),
        6 => (0..DATA_LEN as u32).prop_map(Place::Data),
        4 => Just(Place::Status),
        2 => (0_u32..64).prop_map(Place::Table),
        1 => (0_u32..0x2000).prop_map(Place::End),
        1 => any::<u64>().prop_map(Place::Anywhere),
    ];
    let len = prop_oneof![
        4 => Just(16_u32),
        4 => (1_u32..9).prop_map(|sectors| sectors * 512),
        3 => Just(1_u32),
        1 => Just(128_u32),
        1 => 0_u32..0x1_0000,
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![
        6 => Just(NEXT),
        6 => Just(NEXT | WRITE),
        4 => Just(WRITE),
        2 => Just(0_u16),
        2 => Just(INDIRECT),
        1 => any::<u16>(),
    ];
    let next = prop_oneof![10 => 0_u16..TABLE, 1 => any::<u16>()];
    (place, len, flags, next).prop_map(|(place, len, flags, next)| Draft { place, len, flags, next })
}

fn lay(scene: &Scene, plan: &Plan) {
    scene.request(plan.kind, plan.sector);
    let real = |draft: &Draft| {
        let addr = match draft.place {
            Place::Header => scene.header,
            Place::Data(offset) => scene.data + u64::from(offset),
            Place::Status => scene.status,
            Place::Table(offset) => scene.table + u64::from(offset),
            Place::End(before) => scene.device.memory.end() - u64::from(before),
            Place::Anywhere(addr) => addr,
        };
        Descriptor { addr, len: draft.len, flags: draft.flags, next: draft.next }
    };
    let indirect: Vec<_> = plan.indirect.iter().map(real).collect();
    scene.indirect(&indirect);
    let ring: Vec<_> = plan.ring.iter().map(real).collect();
    scene.chain(&ring);
}
