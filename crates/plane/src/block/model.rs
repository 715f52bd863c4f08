//! Disks without a file, for tests and benches: `null` does nothing, `simulated` takes the time that it is told.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use io_uring::opcode;
use io_uring::types::{TimeoutFlags, Timespec};

use crate::block::{Disk, Operation, Request, SECTOR};
use crate::clock::{self, Nanos};
use crate::config::{Format, Model};
use crate::uring::Uring;

/// The simulated devices of a worker, by name.
#[derive(Default)]
pub struct ModelDevices(HashMap<String, Weak<ModelDevice>>);

impl ModelDevices {
    /// A disk on the device that `model` names. All disks of a device share its capacity; the first says how it is.
    pub fn open(&mut self, format: Format, model: &Model) -> ModelDisk {
        let known = self.0.get(&model.device).and_then(Weak::upgrade);
        let device = known.filter(|_| format == Format::Simulated).unwrap_or_else(|| {
            let device = Rc::new(ModelDevice::new(model.clone(), clock::now()));
            self.0.retain(|_, device| device.strong_count() > 0);
            if format == Format::Simulated {
                self.0.insert(model.device.clone(), Rc::downgrade(&device));
            }
            device
        });
        let times = [model.read_us, model.write_us, model.flush_us, model.bytes_per_second];
        let instant = format == Format::Null && times.iter().all(|time| *time == 0);
        ModelDisk { size: model.size / SECTOR * SECTOR, zeroes: format == Format::Simulated, instant, device }
    }
}

/// When requests of a device end: those that find all its places taken wait, in order.
pub struct ModelDevice {
    model: Model,
    begun: Nanos,
    /// When each place is free again.
    places: RefCell<Vec<Nanos>>,
    random: Cell<u64>,
}

impl ModelDevice {
    /// Idle at `now`.
    pub fn new(model: Model, now: Nanos) -> ModelDevice {
        let places = RefCell::new(vec![now; model.parallel as usize]);
        ModelDevice { model, begun: now, places, random: Cell::new(0x9E37_79B9_7F4A_7C15) }
    }

    /// When a request that arrives at `now` will be done.
    pub fn take(&self, now: Nanos, operation: Operation, length: u64) -> Nanos {
        let mut places = self.places.borrow_mut();
        let Some(place) = places.iter_mut().min() else {
            return now + self.service(now, operation, length);
        };
        let start = now.max(*place);
        *place = start + self.service(start, operation, length);
        *place
    }

    /// How long a request takes that is begun at `start`.
    fn service(&self, start: Nanos, operation: Operation, length: u64) -> Nanos {
        let model = &self.model;
        let (micros, bytes) = match operation {
            Operation::Read => (model.read_us, length),
            Operation::Write => (model.write_us, length),
            Operation::Flush => (model.flush_us, 0),
            Operation::Discard | Operation::WriteZeroes { .. } => (model.write_us, 0),
        };
        let moving = (bytes * 1_000_000_000).checked_div(model.bytes_per_second).unwrap_or(0);
        let age_ms = (start - self.begun) / 1_000_000;
        let speed = model.speeds.iter().rev().find(|speed| speed.after_ms <= age_ms);
        let time = (micros * 1000 + moving) * 100 / speed.map_or(100, |speed| speed.percent.into());
        let varying = time * u64::from(model.varies_percent) / 100;
        time - varying + if varying == 0 { 0 } else { (varying as f64 * self.exponential()) as Nanos }
    }

    /// A number whose mean is 1: xorshift64, and the inverse of the distribution.
    fn exponential(&self) -> f64 {
        let mut random = self.random.get();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        self.random.set(random);
        -(1.0 - (random >> 11) as f64 / (1u64 << 53) as f64).ln()
    }
}

/// A disk whose blocks are nowhere.
pub struct ModelDisk {
    size: u64,
    /// Whether reads answer zeroes; otherwise they leave the buffers as they are.
    zeroes: bool,
    /// No request takes any time.
    instant: bool,
    device: Rc<ModelDevice>,
}

impl Disk for ModelDisk {
    fn size(&self) -> u64 {
        self.size
    }

    unsafe fn submit(&self, uring: &Rc<Uring>, request: &Request) -> usize {
        if self.zeroes && request.operation == Operation::Read {
            // SAFETY: the caller vouches for the buffers.
            let iovecs = unsafe { std::slice::from_raw_parts(request.iovecs, request.iovec_count) };
            for iovec in iovecs {
                // SAFETY: as above; nobody in this process has a reference to guest memory.
                unsafe { std::ptr::write_bytes(iovec.iov_base.cast::<u8>(), 0, iovec.iov_len) };
            }
        }
        let moved = match request.operation {
            Operation::Read | Operation::Write => request.length as i32,
            _ => 0,
        };
        if self.instant {
            uring.post(request.token, moved);
            return 1;
        }
        let now = clock::now();
        let done = self.device.take(now, request.operation, request.length);
        if done == now {
            uring.post(request.token, moved);
            return 1;
        }
        let (ring, token) = (uring.clone(), request.token);
        uring.tasks.spawn_local(async move {
            let time = Timespec::new().sec(done / 1_000_000_000).nsec((done % 1_000_000_000) as u32);
            let timeout = opcode::Timeout::new(&time).flags(TimeoutFlags::ABS).build();
            // SAFETY: the time lives as long as this task, and so does the operation.
            unsafe { ring.op(timeout) }.await;
            ring.post(token, moved);
        });
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Speed;

    const MS: Nanos = 1_000_000;

    fn model(parallel: u32) -> Model {
        Model {
            size: 1 << 20,
            device: String::new(),
            parallel,
            read_us: 1000,
            write_us: 2000,
            flush_us: 5000,
            bytes_per_second: 0,
            varies_percent: 0,
            speeds: Vec::new(),
        }
    }

    #[test]
    fn a_device_serves_so_many_at_once_and_the_rest_in_order() {
        let device = ModelDevice::new(model(2), 0);
        let ends: Vec<_> = (0..4).map(|_| device.take(0, Operation::Read, 4096)).collect();
        assert_eq!(ends, [MS, MS, 2 * MS, 2 * MS]);
        assert_eq!(device.take(10 * MS, Operation::Write, 4096), 12 * MS);
        assert_eq!(device.take(10 * MS, Operation::Flush, 0), 15 * MS);
    }

    #[test]
    fn without_a_bound_nobody_waits() {
        let device = ModelDevice::new(model(0), 0);
        assert!((0..100).all(|_| device.take(0, Operation::Read, 512) == MS));
    }

    #[test]
    fn bytes_take_time_and_speeds_change() {
        let speeds = vec![Speed { after_ms: 0, percent: 100 }, Speed { after_ms: 10, percent: 50 }];
        let device = ModelDevice::new(Model { bytes_per_second: 1 << 30, speeds, ..model(1) }, 0);
        assert_eq!(device.take(0, Operation::Read, 1 << 20), MS + 976_562);
        assert_eq!(device.take(20 * MS, Operation::Read, 0), 22 * MS);
    }

    #[test]
    fn a_part_of_the_times_varies_and_the_mean_stays() {
        let device = ModelDevice::new(Model { varies_percent: 40, ..model(0) }, 0);
        let times: Vec<_> = (0..10_000).map(|_| device.take(0, Operation::Read, 4096)).collect();
        let mean = times.iter().sum::<Nanos>() as f64 / 1e4;
        assert!((mean / MS as f64 - 1.0).abs() < 0.02, "{mean}");
        assert!(times.iter().all(|time| *time >= MS * 6 / 10));
        let slow = times.iter().filter(|time| **time > MS * 6 / 10 + MS * 4 / 10 * 3).count();
        assert!((400..600).contains(&slow), "{slow} of 10,000 take three times the mean; e^-3 are 498");
    }

    #[test]
    fn disks_of_one_device_share_it_and_null_disks_do_not() {
        let mut devices = ModelDevices::default();
        let (one, two) = (model(1), Model { size: 1 << 30, ..model(1) });
        let (a, b) = (devices.open(Format::Simulated, &one), devices.open(Format::Simulated, &two));
        assert!(Rc::ptr_eq(&a.device, &b.device));
        assert_eq!((a.size(), b.size()), (1 << 20, 1 << 30));
        let null = devices.open(Format::Null, &model(0));
        assert!(!Rc::ptr_eq(&a.device, &null.device));
        drop((a, b));
        assert!(devices.0[""].upgrade().is_none());
    }
}
