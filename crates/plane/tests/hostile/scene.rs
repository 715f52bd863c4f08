//! One hostile guest: memory with a header, data, a status byte and room for tables, and a queue to offer them on.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nagaya_client::{Descriptor, Device, Queue};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_IN,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_INDIRECT_DESC, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

use crate::house::{Disk, House, PATIENCE};

pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Descriptors of the hostile ring.
pub const QUEUE_SIZE: u16 = 64;
/// Bytes that the data descriptors may span.
pub const DATA_LEN: u64 = 0x2_0000;
/// The status byte before the device writes it.
pub const UNWRITTEN: u8 = 0xff;

/// How the device ended a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// In the used ring, with this status byte.
    Used(u8),
    /// The queue is given up: counted, told, never served again.
    Broken,
}

/// A connected guest with one queue.
pub struct Scene<'a> {
    house: &'a House,
    id: &'a str,
    pub device: Device,
    pub queue: Queue,
    pub header: u64,
    pub data: u64,
    pub status: u64,
    /// Room for indirect tables.
    pub table: u64,
    violations: u64,
}

impl<'a> Scene<'a> {
    pub fn new(house: &'a House, disk: &'a Disk) -> Self {
        Self::with_features(house, disk, 1 << VIRTIO_RING_F_INDIRECT_DESC)
    }

    pub fn with_features(house: &'a House, disk: &'a Disk, features: u64) -> Self {
        let violations = house.violations(&disk.id);
        let device = connect(&disk.socket, features).expect("connect");
        let memory = &device.memory;
        let header = memory.alloc(16, 4096);
        let status = memory.alloc(1, 4096);
        let table = memory.alloc(16 * 0x1_0000, 4096);
        let data = memory.alloc(DATA_LEN, 4096);
        memory.put(status, UNWRITTEN);
        device.share_memory().expect("share memory");
        let mut device = device;
        let queue = device.start_queue(0, QUEUE_SIZE).expect("start queue");
        Self { house, id: &disk.id, device, queue, header, data, status, table, violations }
    }

    /// Write the request header.
    pub fn request(&self, kind: u32, sector: u64) {
        self.device.memory.put(self.header, [kind, 0, sector as u32, (sector >> 32) as u32]);
    }

    /// The header's descriptor, chained to `next`.
    pub fn head(&self, next: u16) -> Descriptor {
        Descriptor { addr: self.header, len: 16, flags: NEXT, next }
    }

    /// A data descriptor of `len` bytes, chained to `next`.
    pub fn body(&self, len: u32, write: bool, next: u16) -> Descriptor {
        Descriptor { addr: self.data, len, flags: NEXT | if write { WRITE } else { 0 }, next }
    }

    /// The status byte's descriptor, the last.
    pub fn tail(&self) -> Descriptor {
        Descriptor { addr: self.status, len: 1, flags: WRITE, next: 0 }
    }

    /// Write descriptors from 0 on.
    pub fn chain(&self, descriptors: &[Descriptor]) {
        self.queue.ring.set_descs(0, descriptors);
    }

    /// Write an indirect table and descriptor 0 that points to it.
    pub fn indirect(&self, descriptors: &[Descriptor]) {
        for (index, descriptor) in descriptors.iter().enumerate() {
            self.device.memory.put(self.table + 16 * index as u64, *descriptor);
        }
        let len = 16 * descriptors.len() as u32;
        self.queue.ring.set_desc(0, Descriptor { addr: self.table, len, flags: INDIRECT, next: 0 });
    }

    /// Make every descriptor of the ring a head that reads `len` bytes, `times` over, and make them all available;
    /// returns the used index at which all are done.
    pub fn offer_all(&self, len: u32, times: u16) -> u16 {
        self.request(VIRTIO_BLK_T_IN, 0);
        let mut table = vec![self.head(1)];
        table.extend((0..times).map(|index| self.body(len, true, index + 2)));
        table.push(self.tail());
        self.indirect(&table);
        let (table, len) = (self.table, 16 * table.len() as u32);
        let index = self.queue.ring.avail_index();
        for head in 0..QUEUE_SIZE {
            self.queue.ring.set_desc(head, Descriptor { addr: table, len, flags: INDIRECT, next: 0 });
            self.queue.ring.set_avail(index.wrapping_add(head), head);
        }
        self.queue.ring.publish(index.wrapping_add(QUEUE_SIZE));
        self.queue.kick.write(1).expect("kick");
        index.wrapping_add(QUEUE_SIZE)
    }

    /// Make descriptor `head` available, kick, and wait for the device's answer.
    pub fn offer(&self, head: u16) -> Option<Answer> {
        let used = self.queue.ring.used_index();
        self.queue.push(head).expect("kick");
        self.answer(used.wrapping_add(1))
    }

    /// Wait until the used index reaches `index` or the queue is given up; `None` if neither happens.
    pub fn answer(&self, index: u16) -> Option<Answer> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if self.queue.used_reaches(index, Duration::from_millis(2)).expect("call eventfd") {
                return Some(Answer::Used(self.device.memory.get(self.status)));
            }
            if self.house.violations(self.id) > self.violations {
                return Some(Answer::Broken);
            }
        }
        None
    }

    /// Whether the err eventfd was signalled.
    pub fn told(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.queue.err.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd.
        (unsafe { libc::poll(&mut poll, 1, PATIENCE.as_millis() as i32) }) == 1
    }
}

/// Connect with every block feature and `features`, in 4 MiB of memory.
pub fn connect(socket: &Path, features: u64) -> io::Result<Device> {
    let wanted = [
        VIRTIO_F_VERSION_1,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_RO,
        VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES,
    ];
    Device::connect(socket, wanted.iter().fold(features, |bits, bit| bits | 1 << bit), 0x40_0000)
}
