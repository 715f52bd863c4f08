//! An honest virtio-net driver (virtio 1.3, 5.1) with one pair of queues: sends frames and receives them.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};

use crate::device::{Device, Queue};
use crate::ring::Descriptor;

/// Bytes of the header before each frame (5.1.6).
pub const HEADER: usize = 12;

/// How the driver uses the device.
#[derive(Clone, Copy, Debug)]
pub struct NetOptions {
    /// Descriptors of both rings; each has a buffer of its own.
    pub queue_size: u16,
    /// Bytes of each receive buffer, with the header.
    pub buffer_len: u32,
    /// Receive buffers that are offered; at most the queue size.
    pub offered: u16,
    /// Feature bits beside VERSION_1, EVENT_IDX, MAC and MRG_RXBUF, taken if offered.
    pub features: u64,
    /// Let frames spread over several buffers.
    pub mergeable: bool,
}

impl Default for NetOptions {
    fn default() -> Self {
        Self { queue_size: 256, buffer_len: 2048, offered: 256, features: 0, mergeable: true }
    }
}

/// One direction: where we are in both rings.
struct Direction {
    queue: Queue,
    /// Available index, including what is not yet published.
    next_avail: u16,
    /// Used index up to which completions were taken.
    last_used: u16,
    /// Guest physical address of the buffers, one a descriptor.
    buffers: u64,
    /// Bytes of each, rounded.
    stride: u64,
}

/// The driver.
pub struct Net {
    /// The connection.
    pub device: Device,
    receive: Direction,
    transmit: Direction,
    event_idx: bool,
    options: NetOptions,
    /// Descriptors of the transmit ring that no frame is in.
    free: Vec<u16>,
    in_flight: Vec<bool>,
}

impl Net {
    /// Connect to the device at `path`, start both queues, offer receive buffers.
    pub fn open(path: &Path, options: NetOptions) -> io::Result<Self> {
        let mut wanted = options.features;
        for bit in [VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_NET_F_MAC] {
            wanted |= 1 << bit;
        }
        wanted |= u64::from(options.mergeable) << VIRTIO_NET_F_MRG_RXBUF;
        let count = u64::from(options.queue_size);
        let strides = [u64::from(options.buffer_len).next_multiple_of(64), LARGEST];
        let memory_len = 0x10_0000 + count * (strides[0] + strides[1]);
        let mut device = Device::connect(path, wanted, memory_len)?;
        device.share_memory()?;
        let mut start = |index: usize| -> io::Result<Direction> {
            let stride = strides[index];
            let buffers = device.memory.alloc(count * stride, 4096);
            let queue = device.start_queue(index, options.queue_size)?;
            Ok(Direction { queue, next_avail: 0, last_used: 0, buffers, stride })
        };
        let (receive, transmit) = (start(0)?, start(1)?);
        let event_idx = device.has(VIRTIO_RING_F_EVENT_IDX);
        let free = (0..options.queue_size).rev().collect();
        let in_flight = vec![false; options.queue_size.into()];
        let mut net = Self { device, receive, transmit, event_idx, options, free, in_flight };
        for head in 0..options.offered {
            net.offer(head);
        }
        net.receive.publish(event_idx)?;
        for direction in [&net.receive, &net.transmit] {
            direction.disarm(event_idx);
        }
        Ok(net)
    }

    /// The address in the configuration space.
    pub fn mac(&mut self) -> io::Result<[u8; 6]> {
        self.device.config(0, 6)?.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Put a frame into the transmit ring, unpublished until [`Net::kick`]; false if the ring is full.
    pub fn send(&mut self, frame: &[u8]) -> io::Result<bool> {
        self.send_with(&[0; HEADER], frame)
    }

    /// The same with a header that says what is left to be done to the frame.
    pub fn send_with(&mut self, header: &[u8; HEADER], frame: &[u8]) -> io::Result<bool> {
        self.reclaim()?;
        let Some(head) = self.free.pop() else { return Ok(false) };
        let address = self.transmit.buffer(head);
        self.device.memory.put_bytes(address, header);
        self.device.memory.put_bytes(address + HEADER as u64, frame);
        self.in_flight[usize::from(head)] = true;
        self.transmit.offer(head, (HEADER + frame.len()) as u32, 0);
        Ok(true)
    }

    /// Send the buffer of a descriptor once more that a frame was in before, so that only the ring is touched.
    pub fn send_again(&mut self, length: u32) -> io::Result<bool> {
        self.reclaim()?;
        let Some(head) = self.free.pop() else { return Ok(false) };
        self.in_flight[usize::from(head)] = true;
        self.transmit.offer(head, HEADER as u32 + length, 0);
        Ok(true)
    }

    /// Fill all transmit buffers with `frame`, for [`Net::send_again`].
    pub fn fill(&mut self, frame: &[u8]) {
        for head in 0..self.options.queue_size {
            let address = self.transmit.buffer(head);
            self.device.memory.put_bytes(address, &[0; HEADER]);
            self.device.memory.put_bytes(address + HEADER as u64, frame);
        }
    }

    /// Publish what was sent, and kick if the device wants to be.
    pub fn kick(&mut self) -> io::Result<()> {
        self.transmit.publish(self.event_idx)
    }

    /// Frames that the device has not taken yet.
    pub fn unsent(&mut self) -> io::Result<usize> {
        self.reclaim()?;
        Ok(usize::from(self.options.queue_size) - self.free.len())
    }

    /// Have the device call once the next frame has gone.
    pub fn arm_transmit(&mut self) {
        self.transmit.arm(self.event_idx);
    }

    /// Whether it did within `timeout`.
    pub fn was_called(&self, timeout: Duration) -> io::Result<bool> {
        self.transmit.queue.called(timeout)
    }

    /// Whether the transmit ring has room for a frame.
    pub fn has_room(&mut self) -> io::Result<bool> {
        self.reclaim()?;
        Ok(!self.free.is_empty())
    }

    /// Sleep until a frame has come, `source` is readable and a frame can be sent, or `stop` is readable: then false.
    pub fn rest(&mut self, source: RawFd, stop: RawFd) -> io::Result<bool> {
        let room = self.has_room()?;
        let called = self.receive.arm(self.event_idx) || (!room && self.transmit.arm(self.event_idx));
        let fds = [
            stop,
            self.receive.queue.call.as_raw_fd(),
            if room { source } else { self.transmit.queue.call.as_raw_fd() },
        ];
        let mut polls = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        // SAFETY: three pollfds of ours.
        unsafe { libc::poll(polls.as_mut_ptr(), 3, if called { 0 } else { -1 }) };
        for (direction, poll) in [(&self.receive, polls[1]), (&self.transmit, polls[2])] {
            direction.disarm(self.event_idx);
            if poll.revents != 0 && poll.fd == direction.queue.call.as_raw_fd() {
                direction.queue.call.read()?;
            }
        }
        Ok(polls[0].revents == 0)
    }

    fn reclaim(&mut self) -> io::Result<()> {
        while let Some((head, _)) = self.transmit.used() {
            match self.in_flight.get_mut(head as usize) {
                Some(busy) if *busy => *busy = false,
                _ => return Err(io::Error::other(format!("transmit chain {head} was not in flight"))),
            }
            self.free.push(head as u16);
        }
        Ok(())
    }

    /// Take a received frame and its header, if there is one, and offer its buffers again.
    pub fn receive(&mut self) -> io::Result<Option<([u8; HEADER], Vec<u8>)>> {
        let Some(first) = self.receive.used() else { return Ok(None) };
        let mut bytes = self.take_buffer(first)?;
        let wrong = |why: &str| io::Error::other(format!("received {why}"));
        let (header, _) = bytes.split_first_chunk::<HEADER>().ok_or_else(|| wrong("half a header"))?;
        let header = *header;
        let merged = u16::from_le_bytes([header[10], header[11]]);
        if merged == 0 || (merged > 1 && !self.options.mergeable) {
            return Err(wrong(&format!("a frame in {merged} buffers")));
        }
        for _ in 1..merged {
            let more = self.receive.used().ok_or_else(|| wrong("a part of a frame"))?;
            bytes.extend(self.take_buffer(more)?);
        }
        self.receive.publish(self.event_idx)?;
        Ok(Some((header, bytes.split_off(HEADER))))
    }

    /// Take all received frames without looking at them; how many buffers they were in.
    pub fn discard(&mut self) -> io::Result<u32> {
        let mut count = 0;
        while let Some((head, _)) = self.receive.used() {
            self.offer(head as u16);
            count += 1;
        }
        if count > 0 {
            self.receive.publish(self.event_idx)?;
        }
        Ok(count)
    }

    fn take_buffer(&mut self, (head, length): (u32, u32)) -> io::Result<Vec<u8>> {
        if head >= u32::from(self.options.queue_size) || length > self.options.buffer_len {
            return Err(io::Error::other(format!("received {length} bytes in buffer {head}")));
        }
        let mut bytes = vec![0; length as usize];
        self.device.memory.get_bytes(self.receive.buffer(head as u16), &mut bytes);
        self.offer(head as u16);
        Ok(bytes)
    }

    fn offer(&mut self, head: u16) {
        self.receive.offer(head, self.options.buffer_len, VRING_DESC_F_WRITE as u16);
    }

    /// The next frame; `None` if none comes within `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Option<([u8; HEADER], Vec<u8>)>> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(frame) = self.receive()? {
                return Ok(Some(frame));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            if !self.receive.arm(self.event_idx) {
                self.receive.queue.called(left)?;
            }
            self.receive.disarm(self.event_idx);
        }
    }
}

/// Room for the largest frame and its header.
const LARGEST: u64 = 0x1_1000;

impl Direction {
    fn buffer(&self, head: u16) -> u64 {
        self.buffers + u64::from(head) * self.stride
    }

    fn offer(&mut self, head: u16, len: u32, flags: u16) {
        let descriptor = Descriptor { addr: self.buffer(head), len, flags, next: 0 };
        self.queue.ring.set_desc(head, descriptor);
        self.queue.ring.set_avail(self.next_avail, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    fn publish(&mut self, event_idx: bool) -> io::Result<()> {
        let ring = &self.queue.ring;
        let old = ring.avail_index();
        if old == self.next_avail {
            return Ok(());
        }
        ring.publish(self.next_avail);
        // The device writes its wish before it looks at the index: one of us sees the other (2.7.13.3.1).
        fence(Ordering::SeqCst);
        let wanted = if event_idx {
            let published = self.next_avail.wrapping_sub(old);
            self.next_avail.wrapping_sub(ring.avail_event()).wrapping_sub(1) < published
        } else {
            u32::from(ring.used_flags()) & VRING_USED_F_NO_NOTIFY == 0
        };
        if wanted { self.queue.kick.write(1) } else { Ok(()) }
    }

    fn used(&mut self) -> Option<(u32, u32)> {
        if self.queue.ring.used_index() == self.last_used {
            return None;
        }
        let element = self.queue.ring.used_element(self.last_used);
        self.last_used = self.last_used.wrapping_add(1);
        Some(element)
    }

    /// Ask for an interrupt at the next completion; true if one is there already.
    fn arm(&self, event_idx: bool) -> bool {
        if event_idx {
            self.queue.ring.set_used_event(self.last_used);
        } else {
            self.queue.ring.set_avail_flags(0);
            fence(Ordering::SeqCst);
        }
        self.queue.ring.used_index() != self.last_used
    }

    /// Ask for no interrupts.
    fn disarm(&self, event_idx: bool) {
        if event_idx {
            self.queue.ring.set_used_event(self.last_used.wrapping_sub(1));
        } else {
            self.queue.ring.set_avail_flags(VRING_AVAIL_F_NO_INTERRUPT as u16);
        }
    }
}
