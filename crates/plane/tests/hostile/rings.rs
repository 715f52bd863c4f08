//! Rings and eventfds that no driver makes: indexes that jump, rings in odd places, floods, and traps.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nagaya_client::{Descriptor, Ring};
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_T_IN;
use vmm_sys_util::eventfd::EventFd;

use crate::house::{Access, DISK_LEN, Disk, House, PATIENCE, beside_a_neighbour};
use crate::scene::{Answer, DATA_LEN, QUEUE_SIZE, Scene, WRITE, connect};

/// SET_VRING_CALL and SET_VRING_KICK by number, for fds that are no eventfds.
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;

/// Lay a plain read as chain 0.
fn lay_read(scene: &Scene) {
    scene.request(VIRTIO_BLK_T_IN, 0);
    scene.chain(&[scene.head(1), scene.body(512, true, 2), scene.tail()]);
}

#[test]
fn an_available_index_that_jumps_beyond_the_ring_breaks_the_queue() {
    beside_a_neighbour(|house, disk| {
        for jump in [QUEUE_SIZE + 1, 0x8000, 0xffff] {
            let scene = Scene::new(house, disk);
            lay_read(&scene);
            scene.queue.ring.publish(jump);
            scene.queue.kick.write(1).unwrap();
            let used = scene.queue.ring.used_index();
            assert_eq!(scene.answer(used.wrapping_sub(1)), Some(Answer::Broken), "jump to {jump}");
        }
    });
}

#[test]
fn a_head_outside_the_table_breaks_the_queue() {
    beside_a_neighbour(|house, disk| {
        for head in [QUEUE_SIZE, 0x7fff, 0xffff] {
            let scene = Scene::new(house, disk);
            lay_read(&scene);
            assert_eq!(scene.offer(head), Some(Answer::Broken), "head {head}");
        }
    });
}

#[test]
fn one_head_offered_many_times_at_once_is_answered_or_breaks_the_queue() {
    beside_a_neighbour(|house, disk| {
        let scene = Scene::new(house, disk);
        lay_read(&scene);
        for _ in 0..QUEUE_SIZE {
            scene.queue.ring.offer(0);
        }
        scene.queue.kick.write(1).unwrap();
        assert!(scene.answer(QUEUE_SIZE).is_some());
    });
}

#[test]
fn a_broken_queue_stays_broken() {
    beside_a_neighbour(|house, disk| {
        let scene = Scene::new(house, disk);
        scene.chain(&[Descriptor { next: 0, ..scene.head(0) }]);
        assert_eq!(scene.offer(0), Some(Answer::Broken));
        let (violations, used) = (house.violations(&disk.id), scene.queue.ring.used_index());
        lay_read(&scene);
        for _ in 0..100 {
            scene.queue.push(0).unwrap();
        }
        assert!(!scene.queue.used_reaches(used.wrapping_add(1), Duration::from_millis(200)).unwrap());
        assert_eq!(house.violations(&disk.id), violations, "a broken queue was looked at again");
    });
}

#[test]
fn rings_outside_memory_or_unaligned_are_refused() {
    beside_a_neighbour(|house, disk| {
        type Place = (&'static str, fn(&mut Ring, u64));
        let places: [Place; 9] = [
            ("descriptors behind memory", |ring, end| ring.desc = end),
            ("descriptors across the end", |ring, end| ring.desc = end - 16),
            ("available ring behind memory", |ring, end| ring.avail = end),
            ("available ring across the end", |ring, end| ring.avail = end - 4),
            ("used ring behind memory", |ring, end| ring.used = end),
            ("used ring across the end", |ring, end| ring.used = end - 4),
            ("used ring at the end of the address space", |ring, _| ring.used = u64::MAX - 3),
            ("descriptors at an odd address", |ring, _| ring.desc += 1),
            ("used ring at an odd address", |ring, _| ring.used += 1),
        ];
        for (name, misplace) in places {
            let mut device = connect(&disk.socket, 0).unwrap();
            device.share_memory().unwrap();
            let memory_end = device.memory.end();
            let good = Ring::new(&device.memory, QUEUE_SIZE);
            let mut ring = good.clone();
            misplace(&mut ring, memory_end);
            // Refused at once, or broken when it is looked at: never served.
            let before = house.violations(&disk.id);
            if let Ok(queue) = device.start_ring(0, ring) {
                queue.kick.write(1).unwrap();
                let end = Instant::now() + PATIENCE;
                while house.violations(&disk.id) == before {
                    assert!(Instant::now() < end, "{name}: neither refused nor broken");
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    });
}

#[test]
fn rings_on_top_of_each_other_harm_only_their_guest() {
    beside_a_neighbour(|_, disk| {
        for shift in [0, 2, 4, 64] {
            let mut device = connect(&disk.socket, 0).unwrap();
            device.share_memory().unwrap();
            let mut ring = Ring::new(&device.memory, QUEUE_SIZE);
            ring.used = ring.avail + shift;
            let Ok(queue) = device.start_ring(0, ring) else { continue };
            let addr = device.memory.start() + 0x10_0000;
            queue.ring.set_desc(0, Descriptor { addr, len: 512, flags: WRITE, next: 0 });
            for head in 0..8 {
                queue.push(head).unwrap();
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
}

#[test]
fn kicks_without_requests_do_not_starve_the_neighbour() {
    beside_a_neighbour(|house, disk| {
        let scene = Scene::new(house, disk);
        let end = Instant::now() + Duration::from_secs(1);
        let mut kicks = 0_u64;
        while Instant::now() < end {
            scene.queue.kick.write(1).unwrap();
            kicks += 1;
        }
        lay_read(&scene);
        assert_eq!(scene.offer(0), Some(Answer::Used(0)), "after {kicks} kicks");
    });
}

#[test]
fn full_rings_of_the_longest_requests_do_not_starve_the_neighbour() {
    beside_a_neighbour(|house, disk| {
        let scene = Scene::new(house, disk);
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            // 7.5 MiB each: 60 times the same 128 KiB, a trick that costs the guest nothing.
            let done = scene.offer_all(DATA_LEN as u32, 60);
            assert_eq!(scene.answer(done), Some(Answer::Used(0)));
        }
    });
}

#[test]
fn misaligned_buffers_cost_the_worker_bounded_memory() {
    let house = House::new();
    let image = house.path("direct.raw");
    let file = File::options().read(true).write(true).create_new(true).open(&image).unwrap();
    file.set_len(DISK_LEN).unwrap();
    let disk = house.add("direct", Access { direct: true, ..Access::default() }, &["raw"], &[&file]);
    let neighbour = house.neighbour();
    let mut scene = Scene::new(&house, &disk);
    // Direct I/O wants aligned buffers, so these need copies: 64 requests of 7.5 MiB each.
    scene.data += 1;
    let before = house.worker_peak_memory();
    let done = scene.offer_all(DATA_LEN as u32 - 512, 60);
    assert!(scene.answer(done).is_some());
    let grown = house.worker_peak_memory() - before;
    // Guest memory that it touches counts: 4 MiB here, and the neighbour's.
    assert!(grown < 64 << 20, "the worker grew by {} MiB", grown >> 20);
    neighbour.leave();
    house.assert_one_worker();
}

#[test]
fn a_call_eventfd_that_is_full_blocks_nobody() {
    beside_a_neighbour(|house, disk| {
        let scene = Scene::new(house, disk);
        lay_read(&scene);
        // One more would overflow: a write waits for a reader that never comes.
        scene.queue.call.write(u64::MAX - 1).unwrap();
        for turn in 0..10 {
            // The flag is the file's, not the holder's: a frontend can take it back at any time.
            set_flags(scene.queue.call.as_raw_fd(), 0);
            let ring = &scene.queue.ring;
            let used = ring.used_index().wrapping_add(1);
            scene.queue.push(0).unwrap();
            let end = Instant::now() + PATIENCE;
            while ring.used_index() != used {
                assert!(Instant::now() < end, "turn {turn}: no completion");
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
}

#[test]
fn a_kick_eventfd_that_the_guest_drains_itself_blocks_nobody() {
    beside_a_neighbour(|house, disk| {
        let scene = Scene::new(house, disk);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let kick = scene.queue.kick.try_clone().unwrap();
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    kick.write(1).unwrap();
                    drain(&kick);
                }
            });
            thread::sleep(Duration::from_secs(1));
            stop.store(true, Ordering::Relaxed);
        });
        lay_read(&scene);
        assert_eq!(scene.offer(0), Some(Answer::Used(0)));
    });
}

#[test]
fn fds_that_are_no_eventfds_block_nobody() {
    beside_a_neighbour(|house, disk| {
        let mut pipe = [-1; 2];
        // SAFETY: room for two fds.
        assert_eq!(unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        // SAFETY: both are new and ours.
        let (reader, writer) = unsafe { (OwnedFd::from_raw_fd(pipe[0]), OwnedFd::from_raw_fd(pipe[1])) };
        fill_pipe(&writer);
        let file = std::fs::File::open("/dev/zero").unwrap();
        let image = disk_fd(disk);
        for fd in [reader.as_raw_fd(), writer.as_raw_fd(), file.as_raw_fd(), image.as_raw_fd()] {
            for message in [SET_VRING_CALL, SET_VRING_KICK] {
                let scene = Scene::new(house, disk);
                lay_read(&scene);
                scene.device.send_raw(message, 1, 8, &0_u64.to_ne_bytes(), &[fd]).unwrap();
                for _ in 0..4 {
                    scene.queue.push(0).unwrap();
                    thread::sleep(Duration::from_millis(5));
                }
            }
        }
    });
}

#[test]
fn a_kick_fd_that_is_always_ready_does_not_make_the_worker_spin() {
    let house = House::new();
    let disk = house.disk("hostile", false);
    let full = EventFd::new(0).unwrap();
    full.write(u64::MAX - 1).unwrap();
    let (socket, other_end) = UnixStream::pair().unwrap();
    drop(other_end);
    let (file, image) = (File::open("/dev/zero").unwrap(), disk_fd(&disk));
    for (name, fd) in [
        ("a full eventfd", full.as_raw_fd()),
        ("a socket without another end", socket.as_raw_fd()),
        ("/dev/zero", file.as_raw_fd()),
        ("a regular file", image.as_raw_fd()),
    ] {
        let scene = Scene::new(&house, &disk);
        scene.device.send_raw(SET_VRING_KICK, 1, 8, &0_u64.to_ne_bytes(), &[fd]).unwrap();
        thread::sleep(Duration::from_millis(50));
        let before = house.worker_cpu();
        thread::sleep(Duration::from_millis(300));
        let spent = house.worker_cpu() - before;
        assert!(spent < Duration::from_millis(100), "{name}: {spent:?} of CPU in 300 ms without a request");
    }
}

/// Take what is there without waiting, as a hostile VMM may.
fn drain(kick: &EventFd) {
    let mut value = 0_u64;
    set_flags(kick.as_raw_fd(), libc::O_NONBLOCK);
    // SAFETY: eight bytes to fill.
    unsafe { libc::read(kick.as_raw_fd(), (&raw mut value).cast(), 8) };
    // The worker's copy shares the flag: leave it blocking, the worse case.
    set_flags(kick.as_raw_fd(), 0);
}

/// Fill a pipe so that the next write waits.
fn fill_pipe(writer: &OwnedFd) {
    let zeroes = [0_u8; 4096];
    set_flags(writer.as_raw_fd(), libc::O_NONBLOCK);
    // SAFETY: the buffer is as long as stated.
    while unsafe { libc::write(writer.as_raw_fd(), zeroes.as_ptr().cast(), zeroes.len()) } > 0 {}
    set_flags(writer.as_raw_fd(), 0);
}

fn set_flags(fd: RawFd, flags: i32) {
    // SAFETY: passes no pointer.
    unsafe { libc::fcntl(fd, libc::F_SETFL, flags) };
}

fn disk_fd(disk: &Disk) -> File {
    File::open(&disk.image).unwrap()
}
