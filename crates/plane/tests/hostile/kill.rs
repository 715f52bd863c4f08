//! `kill -9` of the worker, again and again, under load: the guest sees a pause, no error, and each request
//! completes exactly once.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nagaya_client::stamp::{Stamper, Tally};
use nagaya_client::{Blk, BlkOptions, Request};
use nagaya_plane::block::qcow2::layout;

use crate::house::{Access, DISK_LEN, Disk, House, PATIENCE};

const DEPTH: u16 = 32;
const BLOCKS: usize = (DISK_LEN / 4096) as usize;
/// Kills of one test, and the work between two: at random, so that they meet every step of a restart.
const KILLS: u64 = 60;

#[test]
fn a_raw_disk_survives_the_killing_of_its_worker() {
    let house = House::new();
    let disk = house.disk("victim", false);
    let tally = work_under_fire(&house, &disk, BlkOptions::default());
    println!("raw: {tally:?}");
}

#[test]
fn a_direct_disk_with_indirect_descriptors_survives_the_killing_of_its_worker() {
    let house = House::new();
    let image = house.path("direct.raw");
    let file = open(&image, libc::O_DIRECT | libc::O_CREAT);
    file.set_len(DISK_LEN).unwrap();
    let disk = house.add("direct", Access { direct: true, ..Access::default() }, &["raw"], &[&file]);
    let options = BlkOptions { indirect: true, queue_size: 64, ..BlkOptions::default() };
    let tally = work_under_fire(&house, &disk, options);
    println!("direct: {tally:?}");
}

#[test]
fn an_overlay_survives_the_killing_of_its_worker_and_stays_sound() {
    let house = House::new();
    let (base, top, disk) = overlay(&house);
    let tally = work_under_fire(&house, &disk, BlkOptions::default());
    println!("overlay: {tally:?}");
    let _images = house.close();
    // Leaked clusters cost space, not data: a writer that is killed may leave some. Errors may not be.
    let status = Command::new("qemu-img").args(["check", "-q", "-f", "qcow2", text(&top)]).status();
    let status = status.expect("qemu-img (package qemu-utils)");
    assert!(matches!(status.code(), Some(0 | 3)), "qemu-img check: {status}");
    assert!(std::fs::read(&base).unwrap().iter().all(|byte| *byte == 0xb5), "the base image was written");
}

#[test]
fn an_overlay_serves_at_depth() {
    let house = House::new();
    let (_, _, disk) = overlay(&house);
    let blk = Blk::open(&disk.socket, BlkOptions::default()).unwrap();
    let mut stamper = Stamper::new(blk, DEPTH, BLOCKS, 13);
    stamper.run(Duration::from_secs(1), PATIENCE).unwrap();
    println!("overlay, nobody killed: {:?}", stamper.verify(PATIENCE).unwrap());
    house.assert_one_worker();
}

#[test]
fn frontends_that_come_and_go_meet_a_dying_worker() {
    let house = House::new();
    let disk = house.disk("victim", false);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let killer = scope.spawn(|| kill_until(&house, &disk.id, &stop, u64::MAX));
        for turn in 0..40_u32 {
            let mut blk = Blk::open(&disk.socket, BlkOptions::default()).unwrap();
            for slot in 0..DEPTH {
                blk.submit(slot, Request::Write { sector: u64::from(slot) * 8, len: 4096 });
            }
            blk.kick().unwrap();
            // Every other one leaves in the middle of its requests.
            while turn % 2 == 0 && blk.in_flight() > 0 {
                assert!(blk.wait(PATIENCE).unwrap(), "turn {turn}: {} requests lost", blk.in_flight());
                while let Some(done) = blk.poll().unwrap() {
                    assert_eq!(done.status, 0, "turn {turn}");
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        println!("{} kills", killer.join().unwrap());
    });
}

/// Work at depth 32 while the worker is killed [`KILLS`] times, then verify every block.
fn work_under_fire(house: &House, disk: &Disk, options: BlkOptions) -> Tally {
    let blk = Blk::open(&disk.socket, options).unwrap();
    let mut stamper = Stamper::new(blk, DEPTH, BLOCKS, 11);
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let kills = kill_until(house, &disk.id, &stop, KILLS);
            stop.store(true, Ordering::Relaxed);
            kills
        });
        while !stop.load(Ordering::Relaxed) {
            if let Err(error) = stamper.run(Duration::from_millis(100), PATIENCE) {
                stop.store(true, Ordering::Relaxed);
                panic!("after {:?}: {error}", started.elapsed());
            }
        }
        assert_eq!(killer.join().unwrap(), KILLS);
    });
    let tally = stamper.verify(PATIENCE).unwrap();
    assert!(tally.writes > 0 && tally.reads > 0 && tally.flushes > 0);
    tally
}

/// Kill the worker at random moments until told to stop or `most` are dead; returns how many.
fn kill_until(house: &House, id: &str, stop: &AtomicBool, most: u64) -> u64 {
    let mut random = 0x9e37_79b9_u64;
    let mut kills = 0;
    let (mut pid, _) = house.current_worker();
    while kills < most && !stop.load(Ordering::Relaxed) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Most in the middle of its work, some while it still recovers or before it has begun to.
        let end = Instant::now() + PATIENCE;
        let done = house.completions(id);
        while !random.is_multiple_of(4) && house.completions(id) == done && !stop.load(Ordering::Relaxed) {
            assert!(Instant::now() < end, "worker {pid}, after {kills} kills, does nothing");
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_micros((random >> 8) % 30_000));
        // SAFETY: passes no pointer; the process is a child of this one and not yet waited for.
        unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        kills += 1;
        let end = Instant::now() + PATIENCE;
        let dead = pid;
        while pid == dead {
            assert!(Instant::now() < end, "no new worker {PATIENCE:?} after kill {kills}");
            thread::sleep(Duration::from_micros(200));
            (pid, _) = house.current_worker();
        }
    }
    kills
}

/// A base image of one byte's value, an empty overlay, and the disk that they make.
fn overlay(house: &House) -> (PathBuf, PathBuf, Disk) {
    let (base, top) = (house.path("base.raw"), house.path("top.qcow2"));
    std::fs::write(&base, vec![0xb5; DISK_LEN as usize]).unwrap();
    layout::create(&top, DISK_LEN, Some((text(&base), "raw"))).unwrap();
    let layers = [open(&top, 0), open(&base, 0)];
    let disk = house.add("overlay", Access::default(), &["qcow2", "raw"], &[&layers[0], &layers[1]]);
    (base, top, disk)
}

fn open(path: &PathBuf, flags: i32) -> File {
    File::options().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
