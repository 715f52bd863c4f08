//! Guest memory that is taken away, described wrongly, or changed under a running queue.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nagaya_client::{Memory, Ring};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_S_OK, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use vmm_sys_util::eventfd::EventFd;

use crate::house::{Disk, House, PATIENCE, beside_a_neighbour};
use crate::scene::{Answer, QUEUE_SIZE, Scene, connect};

/// Wait until a violation more than `before` is counted.
fn assert_breaks(house: &House, disk: &Disk, before: u64, what: &str) {
    let end = Instant::now() + PATIENCE;
    while house.violations(&disk.id) == before {
        assert!(Instant::now() < end, "{what}: not noticed");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn memory_cut_off_under_the_ring_breaks_the_device_alone() {
    beside_a_neighbour(|house, disk| {
        for round in 0..5 {
            let scene = Scene::new(house, disk);
            scene.request(VIRTIO_BLK_T_IN, 0);
            scene.chain(&[scene.head(1), scene.body(512, true, 2), scene.tail()]);
            assert_eq!(scene.offer(0), Some(Answer::Used(VIRTIO_BLK_S_OK as u8)));
            let before = house.violations(&disk.id);
            // Nothing of the memory may be touched here any more.
            scene.device.memory.truncate(0).unwrap();
            scene.queue.kick.write(1).unwrap();
            assert_breaks(house, disk, before, &format!("round {round}"));
        }
    });
}

#[test]
fn memory_cut_off_under_the_data_is_an_error_of_the_request_or_breaks_the_device() {
    beside_a_neighbour(|house, disk| {
        for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT] {
            let scene = Scene::new(house, disk);
            scene.request(kind, 0);
            scene.chain(&[scene.head(1), scene.body(4096, kind == VIRTIO_BLK_T_IN, 2), scene.tail()]);
            // The data is what lies highest (`Scene::with_features`), the rings come behind it: only its last page
            // cannot be cut off alone, so the rings go with it and the device may be given up for that.
            let before = house.violations(&disk.id);
            scene.device.memory.truncate(scene.data - scene.device.memory.start()).unwrap();
            scene.queue.kick.write(1).unwrap();
            assert_breaks(house, disk, before, "a request into memory that is gone");
        }
    });
}

#[test]
fn memory_cut_off_under_load_breaks_the_device_alone() {
    beside_a_neighbour(|house, disk| {
        for delay in [0, 1, 5, 20] {
            let scene = Scene::new(house, disk);
            scene.offer_all(0x1_0000, 60);
            thread::sleep(Duration::from_millis(delay));
            scene.device.memory.truncate(0).unwrap();
            for _ in 0..10 {
                scene.queue.kick.write(1).unwrap();
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
}

#[test]
fn memory_tables_that_make_no_sense_are_never_served() {
    type Edit = (&'static str, fn(VhostUserMemoryRegionInfo) -> Vec<VhostUserMemoryRegionInfo>);
    let edits: [Edit; 8] = [
        ("the same region twice", |r| vec![r, r]),
        ("regions that overlap by a page", |r| {
            vec![
                r,
                VhostUserMemoryRegionInfo { guest_phys_addr: r.guest_phys_addr + r.memory_size - 4096, ..r },
            ]
        }),
        ("a region longer than its file", |r| {
            vec![VhostUserMemoryRegionInfo { memory_size: r.memory_size + 4096, ..r }]
        }),
        ("a region far longer than its file", |r| {
            vec![VhostUserMemoryRegionInfo { memory_size: 1 << 46, ..r }]
        }),
        ("an offset behind the file", |r| {
            vec![VhostUserMemoryRegionInfo { mmap_offset: r.memory_size, ..r }]
        }),
        ("an offset that wraps", |r| vec![VhostUserMemoryRegionInfo { mmap_offset: u64::MAX - 4095, ..r }]),
        ("a guest address that wraps", |r| {
            vec![VhostUserMemoryRegionInfo { guest_phys_addr: u64::MAX - 4095, ..r }]
        }),
        ("an offset that is not of a page", |r| {
            vec![VhostUserMemoryRegionInfo { mmap_offset: 1, memory_size: r.memory_size - 4096, ..r }]
        }),
    ];
    beside_a_neighbour(|_, disk| {
        for (name, edit) in edits {
            let mut device = connect(&disk.socket, 0).unwrap();
            let _ = device.frontend.set_mem_table(&edit(device.memory.region()));
            assert_not_served(&mut device, name);
        }
    });
}

#[test]
fn memory_that_cannot_be_mapped_is_never_served() {
    beside_a_neighbour(|_, disk| {
        let event = EventFd::new(0).unwrap();
        let null = File::open("/dev/null").unwrap();
        let read_only = File::open(&disk.image).unwrap();
        for (name, fd) in [
            ("an eventfd", event.as_raw_fd()),
            ("/dev/null", null.as_raw_fd()),
            ("a file open for reading only", read_only.as_raw_fd()),
        ] {
            let mut device = connect(&disk.socket, 0).unwrap();
            let region = VhostUserMemoryRegionInfo { mmap_handle: fd, ..device.memory.region() };
            let _ = device.frontend.set_mem_table(&[region]);
            assert_not_served(&mut device, name);
        }
    });
}

#[test]
fn a_table_without_the_rings_stops_a_running_queue() {
    beside_a_neighbour(|house, disk| {
        let scene = Scene::new(house, disk);
        scene.request(VIRTIO_BLK_T_IN, 0);
        scene.chain(&[scene.head(1), scene.body(512, true, 2), scene.tail()]);
        assert_eq!(scene.offer(0), Some(Answer::Used(VIRTIO_BLK_S_OK as u8)));
        // As if all memory but another page had been unplugged.
        let other = Memory::new(0x8000_0000, 4096).unwrap();
        let before = house.violations(&disk.id);
        let _ = scene.device.frontend.set_mem_table(&[other.region()]);
        // Nothing acknowledges the message, so the worker may be a while behind.
        assert_breaks(house, disk, before, "a table without the rings");
        let used = scene.queue.ring.used_index();
        scene.queue.push(0).unwrap();
        assert!(
            !scene.queue.used_reaches(used.wrapping_add(1), Duration::from_millis(100)).unwrap(),
            "served from memory that the frontend took back"
        );
    });
}

#[test]
fn new_tables_under_load_lose_nothing() {
    beside_a_neighbour(|house, disk| {
        let scene = Scene::new(house, disk);
        for _ in 0..20 {
            let done = scene.offer_all(0x1_0000, 4);
            // The same memory again, as when a region elsewhere is plugged in.
            scene.device.share_memory().unwrap();
            assert_eq!(scene.answer(done), Some(Answer::Used(VIRTIO_BLK_S_OK as u8)));
        }
    });
}

/// Go on as if the memory had been taken, and see that no request is.
fn assert_not_served(device: &mut nagaya_client::Device, name: &str) {
    let ring = Ring::new(&Arc::clone(&device.memory), QUEUE_SIZE);
    let head = nagaya_client::Descriptor { addr: device.memory.end() - 4096, len: 512, flags: 2, next: 0 };
    ring.set_desc(0, head);
    if let Ok(queue) = device.start_ring(0, ring.clone()) {
        let _ = queue.push(0);
    }
    thread::sleep(Duration::from_millis(10));
    assert_eq!(ring.used_index(), 0, "{name}: served");
}
