//! An honest virtio-blk driver (virtio 1.3, 5.2) over one queue, that checks each request completes exactly once.

use std::io;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};

use crate::device::{Device, Queue};
use crate::ring::Descriptor;

/// Bytes of a sector, whatever the block size of the device (virtio 1.3, 5.2.4).
pub const SECTOR: u64 = 512;

/// What the status byte holds until the device writes it.
const UNWRITTEN: u8 = 0xff;

/// Descriptors of the longest request: header, data, status.
const CHAIN: u16 = 3;

/// How the driver uses the device.
#[derive(Clone, Copy, Debug)]
pub struct BlkOptions {
    /// Requests in flight at most; each has a buffer of its own.
    pub slots: u16,
    /// Bytes of each buffer.
    pub buffer_len: u32,
    /// Descriptors of the ring; at least three a slot, unless indirect.
    pub queue_size: u16,
    /// Put each chain in an indirect table, if the device can.
    pub indirect: bool,
    /// Use the event index, if the device can.
    pub event_idx: bool,
}

impl Default for BlkOptions {
    fn default() -> Self {
        Self { slots: 32, buffer_len: 4096, queue_size: 128, indirect: false, event_idx: true }
    }
}

/// One request; lengths in bytes are of the slot's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read `len` bytes from `sector` on.
    Read {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u32,
    },
    /// Write `len` bytes from `sector` on.
    Write {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u32,
    },
    /// Make all completed writes durable.
    Flush,
    /// The sectors' contents are no longer needed.
    Discard {
        /// First sector.
        sector: u64,
        /// Number of sectors.
        sectors: u32,
    },
    /// The sectors shall read as zeroes.
    WriteZeroes {
        /// First sector.
        sector: u64,
        /// Number of sectors.
        sectors: u32,
    },
    /// Read the serial, 20 bytes.
    GetId,
}

/// A completed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The slot it was submitted in, free again.
    pub slot: u16,
    /// VIRTIO_BLK_S_*.
    pub status: u8,
    /// Bytes that the device says it wrote to memory.
    pub len: u32,
}

/// The driver. Submit into free slots, [`Blk::kick`], then take completions by [`Blk::poll`] or [`Blk::wait`].
pub struct Blk {
    /// The connection.
    pub device: Device,
    /// The request queue.
    pub queue: Queue,
    options: BlkOptions,
    /// Guest physical address of the slots' headers, statuses and indirect tables, [`CELL`] bytes each.
    cells: u64,
    /// Guest physical address of the slots' buffers.
    buffers: u64,
    in_flight: Vec<bool>,
    in_flight_count: usize,
    /// Available index, including what is not yet published.
    next_avail: u16,
    /// Used index up to which completions were taken.
    last_used: u16,
    event_idx: bool,
    indirect: bool,
}

/// A slot's cell: indirect table of 3 descriptors (48); in a cache line of their own, as drivers have them, header (16), range of
/// a discard (16) and status (1).
const CELL: u64 = 128;
const HEADER: u64 = 64;
const RANGE: u64 = 80;
const STATUS: u64 = 96;

impl Blk {
    /// Connect to the device at `path` and start its first queue.
    pub fn open(path: &Path, options: BlkOptions) -> io::Result<Self> {
        let mut wanted = [
            VIRTIO_F_VERSION_1,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_DISCARD,
            VIRTIO_BLK_F_WRITE_ZEROES,
            VIRTIO_BLK_F_RO,
            VIRTIO_BLK_F_MQ,
        ]
        .into_iter()
        .fold(0_u64, |bits, bit| bits | 1 << bit);
        wanted |= u64::from(options.indirect) << VIRTIO_RING_F_INDIRECT_DESC;
        wanted |= u64::from(options.event_idx) << VIRTIO_RING_F_EVENT_IDX;
        let slots = u64::from(options.slots);
        let memory_len = 0x10_0000 + slots * (CELL + u64::from(options.buffer_len).next_multiple_of(4096));
        let device = Device::connect(path, wanted, memory_len)?;
        device.share_memory()?;
        Self::start(device, options)
    }

    /// Start the first queue of a connected device that has its memory.
    pub fn start(mut device: Device, options: BlkOptions) -> io::Result<Self> {
        let indirect = device.has(VIRTIO_RING_F_INDIRECT_DESC);
        let needed = if indirect { options.slots } else { CHAIN * options.slots };
        assert!(needed <= options.queue_size, "{} slots need {needed} descriptors", options.slots);
        let slots = u64::from(options.slots);
        let cells = device.memory.alloc(slots * CELL, 4096);
        let buffers = device.memory.alloc(slots * u64::from(options.buffer_len).next_multiple_of(4096), 4096);
        let queue = device.start_queue(0, options.queue_size)?;
        let event_idx = device.has(VIRTIO_RING_F_EVENT_IDX);
        let blk = Self {
            in_flight: vec![false; usize::from(options.slots)],
            in_flight_count: 0,
            next_avail: 0,
            last_used: 0,
            device,
            queue,
            options,
            cells,
            buffers,
            event_idx,
            indirect,
        };
        blk.disarm();
        Ok(blk)
    }

    /// Capacity in sectors, from the configuration space.
    pub fn capacity(&mut self) -> io::Result<u64> {
        let bytes = self.device.config(0, 8)?;
        Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| io::ErrorKind::InvalidData)?))
    }

    /// Guest physical address of a slot's buffer.
    pub fn buffer(&self, slot: u16) -> u64 {
        self.buffers + u64::from(slot) * u64::from(self.options.buffer_len).next_multiple_of(4096)
    }

    /// Whether a slot has a request in flight.
    pub fn is_in_flight(&self, slot: u16) -> bool {
        self.in_flight[usize::from(slot)]
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight_count
    }

    /// Lay a request out in a free slot and put it into the available ring, unpublished until [`Blk::kick`].
    pub fn submit(&mut self, slot: u16, request: Request) {
        assert!(!self.in_flight[usize::from(slot)], "slot {slot} is in flight");
        self.in_flight[usize::from(slot)] = true;
        self.in_flight_count += 1;
        let head = self.lay(slot, request);
        self.queue.ring.set_avail(self.next_avail, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Publish what was submitted, and kick if the device wants to be.
    pub fn kick(&mut self) -> io::Result<()> {
        let ring = &self.queue.ring;
        let old = ring.avail_index();
        if old == self.next_avail {
            return Ok(());
        }
        ring.publish(self.next_avail);
        // The device writes its wish before it looks at the index: one of us sees the other (virtio 1.3, 2.7.13.3.1).
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let published = self.next_avail.wrapping_sub(old);
            self.next_avail.wrapping_sub(ring.avail_event()).wrapping_sub(1) < published
        } else {
            u32::from(ring.used_flags()) & VRING_USED_F_NO_NOTIFY == 0
        };
        if wanted { self.queue.kick.write(1) } else { Ok(()) }
    }

    /// Take one completion, if there is one. Fails if the device returns a head that is not in flight.
    #[inline]
    pub fn poll(&mut self) -> io::Result<Option<Completion>> {
        if self.queue.ring.used_index() == self.last_used {
            return Ok(None);
        }
        let (head, len) = self.queue.ring.used_element(self.last_used);
        let slot = if self.indirect { head } else { head / u32::from(CHAIN) };
        let known = self.indirect || head % u32::from(CHAIN) == 0;
        match self.in_flight.get_mut(slot as usize) {
            Some(busy) if known && *busy => *busy = false,
            _ => {
                let at = self.last_used;
                return Err(io::Error::other(format!("used ring, index {at}: head {head} is not in flight")));
            }
        }
        self.in_flight_count -= 1;
        self.last_used = self.last_used.wrapping_add(1);
        let slot = slot as u16;
        let status = self.device.memory.get(self.cell(slot) + STATUS);
        Ok(Some(Completion { slot, status, len }))
    }

    /// Sleep until there is a completion or `timeout` passes; true if there is one. A call without a completion is
    /// slept through: the specification allows it. A completion without a call is an error.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        let (mut left, mut called) = (timeout, false);
        while !self.arm() && !left.is_zero() {
            called = self.queue.called(left)?;
            left = deadline.saturating_duration_since(Instant::now());
        }
        self.disarm();
        let completed = self.queue.ring.used_index() != self.last_used;
        // The call may be on its way; if it does not come we would have slept for ever.
        if completed && !called && left.is_zero() && !self.queue.called(Duration::from_millis(100))? {
            return Err(io::Error::other(format!("completed, but no call for {} ms", timeout.as_millis())));
        }
        Ok(completed)
    }

    /// One request from submission to completion; fails after `timeout`.
    pub fn run(&mut self, request: Request, timeout: Duration) -> io::Result<Completion> {
        self.submit(0, request);
        self.kick()?;
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(done) = self.poll()? {
                return Ok(done);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{request:?} did not complete")));
            }
            self.wait(left)?;
        }
    }

    /// Ask for an interrupt at the next completion; true if one is there already.
    fn arm(&self) -> bool {
        if self.event_idx {
            self.queue.ring.set_used_event(self.last_used);
        } else {
            self.queue.ring.set_avail_flags(0);
            fence(Ordering::SeqCst);
        }
        self.queue.ring.used_index() != self.last_used
    }

    /// Ask for no interrupts.
    fn disarm(&self) {
        if self.event_idx {
            // Behind what was used: crossed again only after 65,535 more, and then once.
            self.queue.ring.set_used_event(self.last_used.wrapping_sub(1));
        } else {
            self.queue.ring.set_avail_flags(VRING_AVAIL_F_NO_INTERRUPT as u16);
        }
    }

    fn cell(&self, slot: u16) -> u64 {
        self.cells + u64::from(slot) * CELL
    }

    /// Write header, status and descriptors of a request; returns its head.
    fn lay(&self, slot: u16, request: Request) -> u16 {
        let (memory, cell) = (&self.device.memory, self.cell(slot));
        let (kind, sector, body) = self.parts(slot, request);
        memory.put(cell + HEADER, [kind, 0, sector as u32, (sector >> 32) as u32]);
        memory.put(cell + STATUS, UNWRITTEN);
        let first = if self.indirect { 0 } else { CHAIN * slot };
        let mut chain = [Descriptor::default(); CHAIN as usize];
        let mut count = 0;
        for (addr, len, write) in
            [Some((cell + HEADER, 16, false)), body, Some((cell + STATUS, 1, true))].into_iter().flatten()
        {
            let flags = if write { VRING_DESC_F_WRITE as u16 } else { 0 };
            let next = first + count as u16 + 1;
            chain[count] = Descriptor { addr, len, flags: flags | VRING_DESC_F_NEXT as u16, next };
            count += 1;
        }
        chain[count - 1].flags &= !(VRING_DESC_F_NEXT as u16);
        if !self.indirect {
            self.queue.ring.set_descs(first, &chain[..count]);
            return first;
        }
        memory.put(cell, chain);
        let (len, flags) = (16 * count as u32, VRING_DESC_F_INDIRECT as u16);
        self.queue.ring.set_desc(slot, Descriptor { addr: cell, len, flags, next: 0 });
        slot
    }

    /// Request type, sector field, and the data part: address, length, whether the device writes it.
    fn parts(&self, slot: u16, request: Request) -> (u32, u64, Option<(u64, u32, bool)>) {
        let buffer = self.buffer(slot);
        let range = |kind, sector: u64, sectors: u32| {
            let at = self.cell(slot) + RANGE;
            self.device.memory.put(at, [sector as u32, (sector >> 32) as u32, sectors, 0]);
            (kind, 0, Some((at, 16, false)))
        };
        match request {
            Request::Read { sector, len } => (VIRTIO_BLK_T_IN, sector, Some((buffer, len, true))),
            Request::Write { sector, len } => (VIRTIO_BLK_T_OUT, sector, Some((buffer, len, false))),
            Request::Flush => (VIRTIO_BLK_T_FLUSH, 0, None),
            Request::Discard { sector, sectors } => range(VIRTIO_BLK_T_DISCARD, sector, sectors),
            Request::WriteZeroes { sector, sectors } => range(VIRTIO_BLK_T_WRITE_ZEROES, sector, sectors),
            Request::GetId => (VIRTIO_BLK_T_GET_ID, 0, Some((buffer, 20, true))),
        }
    }
}
