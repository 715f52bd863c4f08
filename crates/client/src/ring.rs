//! A split virtqueue (virtio 1.3, 2.7) laid by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use vhost::VringConfigData;

use crate::memory::Memory;

/// One descriptor, as it lies in memory (virtio 1.3, 2.7.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Descriptor {
    /// Guest physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// VRING_DESC_F_*.
    pub flags: u16,
    /// Index of the next descriptor, if the flags say there is one.
    pub next: u16,
}

/// The three parts of a split virtqueue in guest memory. Indexes are not checked against the ring's size beyond
/// what keeps the store inside guest memory.
#[derive(Clone)]
pub struct Ring {
    memory: Arc<Memory>,
    /// Number of descriptors that memory was laid out for.
    pub size: u16,
    /// Guest physical address of the descriptor table.
    pub desc: u64,
    /// Guest physical address of the available ring.
    pub avail: u64,
    /// Guest physical address of the used ring.
    pub used: u64,
}

impl Ring {
    /// Lay out a ring of `size` descriptors in memory of its own.
    pub fn new(memory: &Arc<Memory>, size: u16) -> Self {
        let count = u64::from(size);
        // Cache lines of their own, so that the two sides share only what the protocol makes them share.
        let desc = memory.alloc(16 * count, 64);
        let avail = memory.alloc(6 + 2 * count, 64);
        let used = memory.alloc(6 + 8 * count, 64);
        Self { memory: Arc::clone(memory), size, desc, avail, used }
    }

    /// The addresses as SET_VRING_ADDR wants them; a hostile test edits the fields.
    pub fn addresses(&self) -> VringConfigData {
        VringConfigData {
            queue_max_size: self.size,
            queue_size: self.size,
            flags: 0,
            desc_table_addr: self.memory.user_address(self.desc),
            used_ring_addr: self.memory.user_address(self.used),
            avail_ring_addr: self.memory.user_address(self.avail),
            log_addr: None,
        }
    }

    /// Write descriptor `index` of the table.
    pub fn set_desc(&self, index: u16, descriptor: Descriptor) {
        self.memory.put(self.desc + 16 * u64::from(index), descriptor);
    }

    /// Write descriptors from `first` on, one behind the other.
    pub fn set_descs(&self, first: u16, descriptors: &[Descriptor]) {
        for (index, descriptor) in (first..).zip(descriptors) {
            self.set_desc(index, *descriptor);
        }
    }

    /// Put a head into the available ring's place for the running index `at`; not visible before [`Ring::publish`].
    pub fn set_avail(&self, at: u16, head: u16) {
        self.memory.put(self.avail + 4 + 2 * u64::from(at % self.size), head);
    }

    /// Store the available index: all before it is visible to the device.
    pub fn publish(&self, index: u16) {
        self.index(self.avail + 2).store(index, Ordering::Release);
    }

    /// The available index last published.
    pub fn avail_index(&self) -> u16 {
        self.index(self.avail + 2).load(Ordering::Relaxed)
    }

    /// Make one head available and publish it, at the index after the last; no kick.
    pub fn offer(&self, head: u16) {
        let index = self.avail_index();
        self.set_avail(index, head);
        self.publish(index.wrapping_add(1));
    }

    /// Ask for no interrupts, where the event index was not negotiated.
    pub fn set_avail_flags(&self, flags: u16) {
        self.index(self.avail).store(flags, Ordering::Relaxed);
    }

    /// The device's used index.
    pub fn used_index(&self) -> u16 {
        self.index(self.used + 2).load(Ordering::Acquire)
    }

    /// The used element for the running index `at`: head and length written.
    pub fn used_element(&self, at: u16) -> (u32, u32) {
        self.memory.get(self.used + 4 + 8 * u64::from(at % self.size))
    }

    /// The device's flags: VRING_USED_F_NO_NOTIFY.
    pub fn used_flags(&self) -> u16 {
        self.index(self.used).load(Ordering::Relaxed)
    }

    /// The available index whose publication the device wants to be kicked for.
    pub fn avail_event(&self) -> u16 {
        self.index(self.used + 4 + 8 * u64::from(self.size)).load(Ordering::Relaxed)
    }

    /// Ask for an interrupt once the used index goes beyond `index`, and order that before what is read next.
    pub fn set_used_event(&self, index: u16) {
        self.index(self.avail + 4 + 2 * u64::from(self.size)).store(index, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn index(&self, gpa: u64) -> &AtomicU16 {
        // SAFETY: inside the mapping, which `self.memory` keeps alive; two-byte aligned by layout.
        unsafe { AtomicU16::from_ptr(self.memory.ptr(gpa, 2).cast()) }
    }
}
