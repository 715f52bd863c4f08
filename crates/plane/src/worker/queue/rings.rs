//! The three parts of a split virtqueue (virtio 1.3, 2.7), found once in guest memory and then read and written in place.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use crate::chain::Table;
use crate::config::MAX_QUEUE_SIZE;
use crate::memory::Memory;

/// Of either ring: where its index and its first element are (2.7.6 and 2.7.8).
const INDEX: usize = 2;
const RING: usize = 4;

/// Bytes of a descriptor, and of an element of the available and of the used ring.
const DESCRIPTOR: usize = 16;
const AVAILABLE: usize = 2;
const USED: usize = 8;

/// Where the driver said that the parts are, by guest address, and of how many descriptors.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
}

/// A queue's rings in this process's memory. Valid for as long as the [`Memory`] they were found in.
pub(super) struct Rings {
    size: u16,
    desc: *mut u8,
    avail: *mut u8,
    used: *mut u8,
}

impl Rings {
    /// Find the rings in `memory`.
    ///
    /// # Errors
    /// A size that is no power of two or too large (2.7), parts that are not aligned or not, each for itself, in one
    /// region of `memory`.
    pub fn find(place: Place, memory: &Memory) -> io::Result<Rings> {
        let Place { size, desc, avail, used } = place;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(io::Error::other(format!("a queue of {size} descriptors")));
        }
        let count = usize::from(size);
        let part = |what: &str, address: u64, length: usize, alignment: usize| {
            let host = memory.slice(address, length).filter(|host| host.addr().is_multiple_of(alignment));
            let error = || {
                io::Error::other(format!("{what}, {length} bytes at {address:#x}, is not in guest memory"))
            };
            if address.is_multiple_of(alignment as u64) { host.ok_or_else(error) } else { Err(error()) }
        };
        Ok(Rings {
            size,
            desc: part("the descriptor table", desc, DESCRIPTOR * count, 16)?,
            // Behind the elements of each ring is the other side's event index.
            avail: part("the available ring", avail, RING + AVAILABLE * count + 2, 2)?,
            used: part("the used ring", used, RING + USED * count + 2, 4)?,
        })
    }

    /// Descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The descriptor table, to walk chains in.
    pub fn table(&self) -> Table {
        Table::Ring(self.desc.cast(), self.size)
    }

    /// The available index: how many chains the driver has offered, modulo 2^16. What it wrote before is seen after.
    pub fn avail_index(&self) -> u16 {
        self.word(self.avail, INDEX).load(Ordering::Acquire)
    }

    /// The chain that the driver offered as number `at`.
    pub fn avail(&self, at: u16) -> u16 {
        let place = RING + AVAILABLE * self.wrap(at);
        self.word(self.avail, place).load(Ordering::Relaxed)
    }

    /// Have the CPU fetch the first descriptors of the chain that the driver, on another CPU, offered as number `at`.
    #[inline]
    pub fn prefetch_descriptor(&self, at: u16) {
        if let Some(descriptor) = self.first(at) {
            prefetch(descriptor.cast());
            prefetch(descriptor.wrapping_add(4).cast());
        }
    }

    /// Have it fetch the first buffer of that chain, whose descriptor is here by now; to write there if the answer is `beside`
    /// what is asked.
    #[inline]
    pub fn prefetch_buffer(&self, memory: &Memory, at: u16, beside: bool) {
        if let Some(descriptor) = self.first(at) {
            // SAFETY: the first word of a descriptor of the table.
            let address = u64::from_le(unsafe { descriptor.read_volatile() });
            match memory.piece(address, 1) {
                Some((host, _)) if beside => prefetch_to_write(host),
                // The header and the shortest frame are in two lines.
                Some((host, _)) => [host, host.wrapping_add(64)].into_iter().for_each(|line| prefetch(line)),
                None => {}
            }
        }
    }

    /// Have it fetch the place in the used ring for completion number `at`.
    pub fn prefetch_used(&self, at: u16) {
        prefetch_to_write(self.used.wrapping_add(RING + USED * self.wrap(at)));
    }

    /// The first descriptor of the chain that the driver offered as number `at`.
    fn first(&self, at: u16) -> Option<*const u64> {
        let head = self.avail(at);
        // SAFETY: inside the table.
        (head < self.size)
            .then(|| unsafe { self.desc.add(DESCRIPTOR * usize::from(head)).cast_const().cast() })
    }

    /// Whether the driver, who does not use the event index, wants no interrupts.
    pub fn no_interrupt(&self) -> bool {
        u32::from(self.word(self.avail, 0).load(Ordering::Relaxed)) & VRING_AVAIL_F_NO_INTERRUPT != 0
    }

    /// The used index after which the driver wants an interrupt (2.7.10).
    pub fn used_event(&self) -> u16 {
        let place = RING + AVAILABLE * usize::from(self.size);
        self.word(self.avail, place).load(Ordering::Relaxed)
    }

    /// The used index.
    pub fn used_index(&self) -> u16 {
        self.word(self.used, INDEX).load(Ordering::Acquire)
    }

    /// Put the chain at `head`, with `length` bytes written into it, into place `at` of the used ring.
    pub fn put_used(&self, at: u16, head: u16, length: u32) {
        let place = RING + USED * self.wrap(at);
        let element = [u32::from(head).to_le(), length.to_le()];
        // SAFETY: inside the used ring, which is aligned to four bytes and mapped; nobody has a reference to it.
        unsafe { self.used.add(place).cast::<[u32; 2]>().write_volatile(element) };
    }

    /// Show the driver all that was put before `index`.
    pub fn set_used_index(&self, index: u16) {
        self.word(self.used, INDEX).store(index, Ordering::Release);
    }

    /// Ask a driver that uses the event index to kick once it offers chain `index` (2.7.10).
    pub fn set_avail_event(&self, index: u16) {
        let place = RING + USED * usize::from(self.size);
        self.word(self.used, place).store(index, Ordering::Relaxed);
    }

    /// Ask one that does not to kick, or not to.
    pub fn set_no_notify(&self, on: bool) {
        let flags = if on { VRING_USED_F_NO_NOTIFY as u16 } else { 0 };
        self.word(self.used, 0).store(flags, Ordering::Relaxed);
    }

    fn wrap(&self, at: u16) -> usize {
        usize::from(at & (self.size - 1))
    }

    fn word(&self, ring: *mut u8, place: usize) -> &AtomicU16 {
        const { assert!(cfg!(target_endian = "little"), "the rings are little-endian") };
        // SAFETY: `place` is even and inside the ring, which is aligned to two bytes and mapped. The guest, who writes it
        // too, is another process.
        unsafe { AtomicU16::from_ptr(ring.add(place).cast()) }
    }
}

fn prefetch(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which touches nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(place.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// One transfer between CPUs, where a read and then a write would be two.
fn prefetch_to_write(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which touches nothing; CPUs without it take it for a no-op. (There is an intrinsic, but without the
    // target feature it becomes a prefetch to read.)
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) place, options(nostack, preserves_flags, readonly))
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
