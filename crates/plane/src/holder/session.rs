//! One vhost-user connection: what the frontend has said so far, and what follows from it for the worker.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vhost::vhost_user::{Error, Result};

use crate::config::MAX_QUEUE_SIZE;
use crate::control::{QueueSetup, Region};
use crate::holder::events::Events;
use crate::holder::fds;
use crate::holder::link::{Link, State, ask_to_stop};
use crate::holder::offer::Offer;
use crate::holder::shadow::RunningQueue;
use crate::inflight;
use crate::page::{JUMP, sealed_memfd};

/// Most memory regions: the crate takes no more in one message; QEMU starts with fewer than ten.
pub const MAX_REGIONS: usize = 32;

/// How long a queue may take to finish what it has in flight. Longer than any disk that still works needs; a
/// frontend that waits for us must get an answer some day.
const PATIENCE: Duration = Duration::from_secs(120);

/// Violations are reported at most this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// What the frontend has set of a queue.
#[derive(Default)]
pub struct Vring {
    /// Descriptors; 0 until it is set.
    pub size: u16,
    /// Where to go on in the available ring.
    pub base: u16,
    /// Addresses in the frontend's process: descriptors, used, available.
    pub addresses: Option<(u64, u64, u64)>,
    /// From the driver: there are requests.
    pub kick: Option<Arc<OwnedFd>>,
    /// To the driver: there are answers.
    pub call: Option<Arc<OwnedFd>>,
    /// To the driver: the queue is broken.
    pub err: Option<Arc<OwnedFd>>,
    /// By SET_VRING_ENABLE.
    pub enabled: bool,
}

/// The in-flight file, the frontend's or our own.
pub struct InflightFile {
    /// A memfd.
    pub file: Arc<OwnedFd>,
    /// Where the region starts.
    pub offset: u64,
    /// Entries of each queue's part.
    pub queue_size: u16,
    /// The frontend kept it, so what it says about requests in flight holds.
    pub frontends: bool,
}

/// The state of a connection.
pub struct Session {
    /// Its number at its worker.
    pub(super) device: u32,
    /// Its worker.
    pub(super) link: Arc<Link>,
    /// What the device offers.
    pub offer: Arc<Offer>,
    events: Arc<Events>,
    /// Feature bits that the driver took.
    pub features: u64,
    /// By index.
    pub vrings: BTreeMap<u16, Vring>,
    /// Once there is one.
    pub inflight: Option<InflightFile>,
    /// A balloon has grown, and is to grow on. One that shrank by itself is left in peace.
    pub given: bool,
    last_report: Option<Instant>,
}

/// A request that cannot be granted; the connection goes on.
pub fn refused(reason: String) -> Error {
    Error::ReqHandlerError(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

impl Session {
    /// A fresh connection.
    pub fn new(device: u32, link: Arc<Link>, offer: Arc<Offer>, events: Arc<Events>) -> Session {
        Session {
            device,
            link,
            offer,
            events,
            features: 0,
            vrings: BTreeMap::new(),
            inflight: None,
            given: false,
            last_report: None,
        }
    }

    /// The frontend has gone: finish what is in flight, forget its memory.
    pub fn end(&mut self) {
        for index in 0..self.offer.queues {
            self.stop(index);
        }
        let device = self.device;
        self.link.change(|state| {
            let Some(shadow) = state.devices.get_mut(&device) else { return };
            shadow.memory.clear();
            for port in &shadow.page.ports {
                port.guest_open.store(0, Relaxed);
                port.pending.store(0, Relaxed);
                port.to_host.restart(port.to_host.last() + JUMP);
                port.to_guest.restart(port.to_guest.last());
            }
            shadow.page.mem.clear();
            let message = shadow.memory_message(device);
            state.tell(message);
        });
        self.restart_balloon();
        self.vrings.clear();
        self.inflight = None;
    }

    /// The queue's state; an error if the device has no such queue.
    pub fn vring(&mut self, index: u32) -> Result<(u16, &mut Vring)> {
        let queues = self.offer.queues;
        match u16::try_from(index) {
            Ok(index) if index < queues => Ok((index, self.vrings.entry(index).or_default())),
            _ => Err(refused(format!("queue {index}, the device has {queues}"))),
        }
    }

    /// Stop a queue if it runs, and remember where to go on.
    pub fn stop(&mut self, index: u16) {
        let device = self.device;
        let Some(serial) = self.link.change(|state| ask_to_stop(state, device, index)) else { return };
        match self.link.wait(serial, PATIENCE) {
            Some(base) => self.vrings.entry(index).or_default().base = base,
            None => {
                let detail = format!("queue {index} has requests in flight that do not end");
                self.violation("stuck", &detail);
            }
        }
    }

    /// Start the queue if it is ready and does not run; give it its new fds if it does.
    pub fn sync(&mut self, index: u16) -> Result<()> {
        let Some(vring) = self.vrings.get(&index) else { return Ok(()) };
        let (Some(addresses), Some(kick)) = (vring.addresses, vring.kick.clone()) else { return Ok(()) };
        let negotiated = self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0;
        if vring.size == 0 || (negotiated && !vring.enabled) {
            return Ok(());
        }
        let device = self.device;
        let running = self.link.change(|state| state.devices.get(&device)?.queues.get(&index).cloned());
        if let Some(queue) = running {
            return self.update(index, queue);
        }
        let (size, base) = (vring.size, vring.base);
        let (call, err) = (vring.call.clone(), vring.err.clone());
        let (file, inflight_offset) = self.inflight_part(index, size)?;
        let features = self.features;
        self.link.change(|state| -> Result<()> {
            let Some(shadow) = state.devices.get_mut(&device) else { return Ok(()) };
            let guest = |address: u64, what: &str| {
                translate(shadow.memory.iter().map(|(region, _)| region), address)
                    .ok_or_else(|| refused(format!("the {what} of queue {index} is outside guest memory")))
            };
            let setup = QueueSetup {
                index,
                size,
                desc: guest(addresses.0, "descriptor table")?,
                used: guest(addresses.1, "used ring")?,
                avail: guest(addresses.2, "available ring")?,
                base,
                features,
                inflight_offset,
                call: call.is_some(),
                err: err.is_some(),
            };
            let fds = [Some(file), Some(kick), call, err].into_iter().flatten().collect();
            start(state, device, RunningQueue { setup, fds, stopping: None });
            Ok(())
        })
    }

    /// A queue runs already: interrupts go elsewhere from now on.
    fn update(&mut self, index: u16, mut queue: RunningQueue) -> Result<()> {
        let Some(vring) = self.vrings.get(&index) else { return Ok(()) };
        queue.setup.call = vring.call.is_some();
        queue.setup.err = vring.err.is_some();
        queue.fds.truncate(2);
        queue.fds.extend(vring.call.clone());
        queue.fds.extend(vring.err.clone());
        let device = self.device;
        self.link.change(|state| start(state, device, queue));
        Ok(())
    }

    /// Where the queue's in-flight part is; our own is zeroed for each new start.
    fn inflight_part(&mut self, index: u16, size: u16) -> Result<(Arc<OwnedFd>, u64)> {
        if self.inflight.is_none() {
            let (file, _) = self.new_inflight_file(MAX_QUEUE_SIZE)?;
            let file = Arc::new(OwnedFd::from(file));
            self.inflight =
                Some(InflightFile { file, offset: 0, queue_size: MAX_QUEUE_SIZE, frontends: false });
        }
        let Some(inflight) = &self.inflight else { return Err(Error::BackendInternalError) };
        if size > inflight.queue_size {
            return Err(refused(format!("queue size {size}, in-flight region for {}", inflight.queue_size)));
        }
        let offset = inflight.offset + u64::from(index) * inflight::region_size(inflight.queue_size);
        if !inflight.frontends {
            let file = File::from(inflight.file.try_clone().map_err(Error::ReqHandlerError)?);
            let zeroes = vec![0; inflight::region_size(size) as usize];
            file.write_all_at(&zeroes, offset).map_err(Error::ReqHandlerError)?;
        }
        Ok((inflight.file.clone(), offset))
    }

    /// A new in-flight file for all queues of the device, and its size.
    pub fn new_inflight_file(&self, queue_size: u16) -> Result<(File, u64)> {
        let size = u64::from(self.offer.queues) * inflight::region_size(queue_size);
        let file = sealed_memfd(c"nagaya-inflight", size).map_err(Error::ReqHandlerError)?;
        Ok((file, size))
    }

    /// Replace the memory table. Queues that run go on: the worker checks that their rings are still there.
    pub fn set_regions(
        &mut self,
        change: impl FnOnce(&mut Vec<(Region, Arc<OwnedFd>)>) -> Result<()>,
    ) -> Result<()> {
        let device = self.device;
        self.link.change(|state| {
            let Some(shadow) = state.devices.get_mut(&device) else { return Ok(()) };
            let mut memory = shadow.memory.clone();
            change(&mut memory)?;
            check_regions(&memory)?;
            shadow.memory = memory;
            let message = shadow.memory_message(device);
            state.tell(message);
            Ok(())
        })
    }

    /// Count a rule broken by the frontend, and say so, but not more often than once a second: a hostile one must not
    /// fill logs.
    pub fn violation(&mut self, kind: &str, detail: &str) {
        let mut state = self.link.state();
        let Some(shadow) = state.devices.get_mut(&self.device) else { return };
        shadow.violated(kind, detail);
        if self.last_report.is_some_and(|last| last.elapsed() < REPORT_INTERVAL) {
            return;
        }
        self.last_report = Some(Instant::now());
        let data =
            serde_json::json!({"id": shadow.config.id(), "queue": null, "kind": kind, "detail": detail});
        self.events.push("DEVICE_VIOLATION", data);
    }
}

fn start(state: &mut State, device: u32, queue: RunningQueue) {
    let Some(shadow) = state.devices.get_mut(&device) else { return };
    let message = queue.message(device);
    shadow.queues.insert(queue.setup.index, queue);
    state.tell(message);
}

/// From an address in the frontend's process to the guest's.
fn translate<'a>(mut regions: impl Iterator<Item = &'a Region>, address: u64) -> Option<u64> {
    regions.find_map(|region| {
        let offset = address.checked_sub(region.user)?;
        if offset < region.size { region.guest.checked_add(offset) } else { None }
    })
}

/// Regions must not wrap, overlap or lie beyond their file, and not be too many.
fn check_regions(memory: &[(Region, Arc<OwnedFd>)]) -> Result<()> {
    if memory.len() > MAX_REGIONS {
        return Err(refused(format!("{} memory regions, at most {MAX_REGIONS}", memory.len())));
    }
    for (index, (region, fd)) in memory.iter().enumerate() {
        let end = |start: u64| start.checked_add(region.size);
        if region.size == 0 || end(region.guest).is_none() || end(region.user).is_none() {
            return Err(refused(format!("memory region {index} is empty or wraps: {region:?}")));
        }
        let file = File::from(fd.try_clone().map_err(Error::ReqHandlerError)?);
        fds::check_memory(&file).map_err(Error::ReqHandlerError)?;
        let length = file.metadata().map_err(Error::ReqHandlerError)?.size();
        if end(region.offset).is_none_or(|end| end > length) {
            return Err(refused(format!("memory region {index} ends beyond its file of {length} bytes")));
        }
        for (other, _) in &memory[..index] {
            if region.guest < other.guest + other.size && other.guest < region.guest + region.size {
                return Err(refused(format!("memory regions overlap at guest address {:#x}", region.guest)));
            }
        }
    }
    Ok(())
}
