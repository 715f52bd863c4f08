//! vhost-user messages out of order, out of range and out of shape.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nagaya_client::{Device, Memory, Ring};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;

use crate::house::{House, assert_serves, beside_a_neighbour};
use crate::scene::{QUEUE_SIZE, connect};

const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;
const SET_INFLIGHT_FD: u32 = 32;

/// Version 1, and a reply wanted.
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;

fn state(index: u32, number: u32) -> [u8; 8] {
    let mut payload = [0; 8];
    payload[..4].copy_from_slice(&index.to_ne_bytes());
    payload[4..].copy_from_slice(&number.to_ne_bytes());
    payload
}

#[test]
fn queue_sizes_that_are_no_queue_sizes_are_refused() {
    beside_a_neighbour(|_, disk| {
        for size in [0_u32, 3, 100, 0x1_0000, 0x8000_0000, u32::MAX] {
            let device = connect(&disk.socket, 0).unwrap();
            device.share_memory().unwrap();
            device.send_raw(SET_VRING_NUM, VERSION, 8, &state(0, size), &[]).unwrap();
            let ring = Ring::new(&device.memory, QUEUE_SIZE);
            let started = device
                .frontend
                .set_vring_addr(0, &ring.addresses())
                .and_then(|()| device.frontend.set_vring_kick(0, &EventFd::new(0).unwrap()))
                .is_ok();
            // Whatever the messages said, nothing may be served with that size.
            ring.offer(0);
            std::thread::sleep(Duration::from_millis(10));
            assert_eq!(ring.used_index(), 0, "size {size}, started {started}");
        }
    });
}

#[test]
fn queues_that_do_not_exist_are_refused() {
    beside_a_neighbour(|_, disk| {
        for message in [SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE] {
            for index in [1_u32, 255, 256, u32::MAX] {
                let device = connect(&disk.socket, 0).unwrap();
                device.share_memory().unwrap();
                device.send_raw(message, VERSION | NEED_REPLY, 8, &state(index, 1), &[]).unwrap();
            }
        }
        let kick = EventFd::new(0).unwrap();
        let device = connect(&disk.socket, 0).unwrap();
        device.send_raw(SET_VRING_KICK, VERSION, 8, &255_u64.to_ne_bytes(), &[kick.as_raw_fd()]).unwrap();
    });
}

#[test]
fn queues_before_features_and_memory_are_not_served() {
    beside_a_neighbour(|_, disk| {
        let device = Device::unnegotiated(&disk.socket, 0x10_0000).unwrap();
        let kick = EventFd::new(0).unwrap();
        let ring = Ring::new(&device.memory, QUEUE_SIZE);
        // Each may be refused; what counts is that nothing is served.
        let _ = device.frontend.set_vring_num(0, QUEUE_SIZE);
        let _ = device.frontend.set_vring_addr(0, &ring.addresses());
        let _ = device.frontend.set_vring_kick(0, &kick);
        ring.offer(0);
        let _ = kick.write(1);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(ring.used_index(), 0);
    });
}

#[test]
fn a_message_without_its_fd_or_with_too_many_is_refused() {
    beside_a_neighbour(|_, disk| {
        let event = EventFd::new(0).unwrap();
        let many = [event.as_raw_fd(); 32];
        for message in 1..=44 {
            for fds in [&many[..0], &many[..1], &many[..8], &many[..32]] {
                let device = connect(&disk.socket, 0).unwrap();
                let _ = device.send_raw(message, VERSION | NEED_REPLY, 8, &[0; 8], fds);
            }
        }
    });
}

#[test]
fn sizes_that_lie_are_refused() {
    beside_a_neighbour(|_, disk| {
        for size in [0_u32, 1, 7, 9, 0x1000, 0x1001, 0x7fff_ffff, u32::MAX] {
            for message in [SET_MEM_TABLE, SET_VRING_NUM, GET_CONFIG, SET_INFLIGHT_FD, 0, 45, u32::MAX] {
                let device = connect(&disk.socket, 0).unwrap();
                let _ = device.send_raw(message, VERSION, size, &[0xff; 16], &[]);
            }
        }
    });
}

#[test]
fn a_message_in_pieces_and_none_at_all_block_no_other_device() {
    beside_a_neighbour(|_, disk| {
        let silent = UnixStream::connect(&disk.socket).unwrap();
        let mut slow = UnixStream::connect(&disk.socket).unwrap();
        slow.write_all(&SET_VRING_NUM.to_ne_bytes()).unwrap();
        // The neighbour works on meanwhile; these two hold their own device only.
        std::thread::sleep(Duration::from_millis(300));
        drop(silent);
        drop(slow);
    });
}

#[test]
fn reading_the_configuration_out_of_bounds_is_refused() {
    beside_a_neighbour(|_, disk| {
        for (offset, size) in [(0_u32, 257_u32), (256, 1), (255, 2), (u32::MAX, 1), (1, u32::MAX), (0, 0)] {
            let device = connect(&disk.socket, 0).unwrap();
            let mut payload = Vec::new();
            for word in [offset, size, 0] {
                payload.extend_from_slice(&word.to_ne_bytes());
            }
            payload.extend_from_slice(&[0; 64]);
            device.send_raw(GET_CONFIG, VERSION, payload.len() as u32, &payload, &[]).unwrap();
        }
    });
}

#[test]
fn an_inflight_region_from_the_frontend_is_not_trusted() {
    beside_a_neighbour(|_, disk| {
        // A memfd of noise, and sizes and offsets that do not fit it.
        let memory = Memory::new(0, 0x4000).unwrap();
        let noise = memory.region().mmap_handle;
        for at in (0..memory.size()).step_by(8) {
            memory.put(at, 0xa5a5_a5a5_a5a5_a5a5_u64);
        }
        for (size, offset, queues, queue_size) in [
            (0x1000_u64, 0_u64, 1_u16, QUEUE_SIZE),
            (u64::MAX, 0, 1, QUEUE_SIZE),
            (0x1000, u64::MAX - 0xfff, 1, QUEUE_SIZE),
            (0x1000, 1, 1, QUEUE_SIZE),
            (0x1000, 0, 0xffff, 0xffff),
            (1, 0, 1, QUEUE_SIZE),
            (0, 0, 0, 0),
        ] {
            let mut attacker = connect(&disk.socket, 0).unwrap();
            attacker.share_memory().unwrap();
            let mut payload = Vec::new();
            payload.extend_from_slice(&size.to_ne_bytes());
            payload.extend_from_slice(&offset.to_ne_bytes());
            payload.extend_from_slice(&queues.to_ne_bytes());
            payload.extend_from_slice(&queue_size.to_ne_bytes());
            payload.extend_from_slice(&[0; 4]);
            let _ = attacker.send_raw(SET_INFLIGHT_FD, VERSION, payload.len() as u32, &payload, &[noise]);
            if let Ok(queue) = attacker.start_queue(0, QUEUE_SIZE) {
                let _ = queue.kick.write(1);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn any_bytes_as_messages_end_the_connection_at_most() {
    let message = (
        prop_oneof![0_u32..46, any::<u32>()],
        prop_oneof![Just(VERSION), Just(VERSION | NEED_REPLY), any::<u32>()],
        prop_oneof![Just(None), any::<u32>().prop_map(Some)],
        prop::collection::vec(prop_oneof![Just(0_u8), Just(0xff), any::<u8>()], 0..120),
        0_usize..3,
    );
    let house = House::new();
    let disk = house.disk("hostile", false);
    let neighbour = house.neighbour();
    let event = EventFd::new(0).unwrap();
    let fds = [event.as_raw_fd(); 3];
    // Nothing is stored: the seed of a failure is printed, and the process under test is another one.
    let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    runner
        .run(&prop::collection::vec(message, 1..8), |messages| {
            let device = connect(&disk.socket, 0).map_err(|error| TestCaseError::fail(error.to_string()))?;
            for (request, flags, size, payload, count) in messages {
                let size = size.unwrap_or(payload.len() as u32);
                // The backend may have hung up.
                let _ = device.send_raw(request, flags, size, &payload, &fds[..count]);
            }
            Ok(())
        })
        .unwrap();
    neighbour.leave();
    house.assert_one_worker();
    assert_serves(&disk.socket);
}
