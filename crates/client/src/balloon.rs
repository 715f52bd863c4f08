//! A virtio-balloon driver (virtio 1.3, 5.5) that does what it is told, honest or not.

use std::io;
use std::path::Path;
use std::time::Duration;

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use crate::device::{Device, Queue};
use crate::ring::Descriptor;

/// Bytes of a page of the balloon, whatever the guest's are.
pub const PAGE: u64 = 4096;

/// Feature bits (5.5.3).
pub const STATS: u64 = 1 << 1;
/// See [`STATS`].
pub const PAGE_POISON: u64 = 1 << 4;
/// See [`STATS`].
pub const REPORTING: u64 = 1 << 5;

/// Descriptors of each queue.
const SIZE: u16 = 64;

/// Bytes of guest memory that the driver needs itself: rings and buffers. What is behind them is to be given.
const OWN: u64 = 0x10_0000;

/// No answer takes longer, unless there is none.
const PATIENCE: Duration = Duration::from_secs(5);

/// The driver. Its queues are numbered as Linux does: those that are there, without a gap.
pub struct Balloon {
    /// The connection.
    pub device: Device,
    /// Inflate, deflate, and where the features are taken statistics and reports.
    pub queues: Vec<Queue>,
    buffer: u64,
    features: u64,
}

impl Balloon {
    /// Connect to the device at `path` with `pages` that can be given, and start the queues.
    pub fn open(path: &Path, features: u64, pages: u64) -> io::Result<Self> {
        let wanted = 1 << VIRTIO_F_VERSION_1 | features;
        let mut device = Device::connect(path, wanted, OWN + pages * PAGE)?;
        device.share_memory()?;
        let count = 2 + (features & (STATS | REPORTING)).count_ones() as usize;
        let queues = (0..count).map(|index| device.start_queue(index, SIZE));
        let queues = queues.collect::<io::Result<_>>()?;
        let buffer = device.memory.alloc(0x4_0000, PAGE);
        Ok(Self { device, queues, buffer, features })
    }

    /// Number of the first page that can be given.
    pub fn first(&self) -> u32 {
        ((self.device.memory.start() + OWN) / PAGE) as u32
    }

    /// The queue of statistics.
    pub fn stats(&self) -> &Queue {
        &self.queues[2]
    }

    /// The queue of reports.
    pub fn reports(&self) -> &Queue {
        let behind = usize::from(self.features & STATS != 0);
        &self.queues[2 + behind]
    }

    /// Give `pages`; false if the device does not answer.
    pub fn inflate(&self, pages: &[u32]) -> io::Result<bool> {
        self.name(&self.queues[0], pages)
    }

    /// Take `pages` back; false if the device does not answer.
    pub fn deflate(&self, pages: &[u32]) -> io::Result<bool> {
        self.name(&self.queues[1], pages)
    }

    fn name(&self, queue: &Queue, pages: &[u32]) -> io::Result<bool> {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.device.memory.put_bytes(self.buffer, &bytes);
        let descriptor = Descriptor { addr: self.buffer, len: bytes.len() as u32, flags: 0, next: 0 };
        self.run(queue, &[descriptor])
    }

    /// Report runs of free pages, each the first page and how many; false if the device does not answer.
    pub fn report(&self, runs: &[(u32, u32)]) -> io::Result<bool> {
        let descriptors = runs.iter().map(|(first, count)| Descriptor {
            addr: u64::from(*first) * PAGE,
            len: count * PAGE as u32,
            flags: VRING_DESC_F_WRITE as u16,
            next: 0,
        });
        self.run(self.reports(), &descriptors.collect::<Vec<_>>())
    }

    /// Offer the only buffer for statistics, with `entries` of tag and value.
    pub fn tell(&self, entries: &[(u16, u64)]) -> io::Result<()> {
        let bytes =
            entries.iter().flat_map(|(tag, value)| tag.to_le_bytes().into_iter().chain(value.to_le_bytes()));
        let bytes: Vec<u8> = bytes.collect();
        let addr = self.buffer + 0x3_0000;
        self.device.memory.put_bytes(addr, &bytes);
        self.stats().ring.set_desc(0, Descriptor { addr, len: bytes.len() as u32, flags: 0, next: 0 });
        self.stats().push(0)
    }

    /// Offer one chain and wait until it is used; false if it is not.
    pub fn run(&self, queue: &Queue, chain: &[Descriptor]) -> io::Result<bool> {
        let used = queue.ring.used_index().wrapping_add(1);
        for (index, descriptor) in (0..).zip(chain) {
            let more = usize::from(index) + 1 < chain.len();
            let flags = descriptor.flags | if more { VRING_DESC_F_NEXT as u16 } else { 0 };
            queue.ring.set_desc(index, Descriptor { flags, next: index + 1, ..*descriptor });
        }
        queue.push(0)?;
        queue.used_reaches(used, PATIENCE)
    }

    /// How many pages the device wants.
    pub fn wanted(&mut self) -> io::Result<u32> {
        let space = self.device.config(0, 16)?;
        Ok(u32::from_le_bytes([space[0], space[1], space[2], space[3]]))
    }

    /// Say how many pages the balloon has (`actual`, at 4), or what fills free ones (`poison_val`, at 12).
    pub fn write(&mut self, place: u32, value: u32) -> io::Result<()> {
        let flags = VhostUserConfigFlags::WRITABLE;
        let written = self.device.frontend.set_config(place, flags, &value.to_le_bytes());
        written.map_err(|error| io::Error::other(format!("SET_CONFIG: {error}")))
    }
}
