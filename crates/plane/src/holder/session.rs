//! One vhost-user connection: what the frontend has said so far, and what follows from it for the worker.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::*;
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use crate::config::MAX_QUEUE_SIZE;
use crate::control::{QueueSetup, Region};
use crate::holder::events::Events;
use crate::holder::fds;
use crate::holder::link::{Link, State, ask_to_stop};
use crate::holder::offer::Offer;
use crate::holder::shadow::RunningQueue;
use crate::inflight;
use crate::page::sealed_memfd;

/// Most memory regions: the crate takes no more in one message; QEMU starts with fewer than ten.
const MAX_REGIONS: usize = 32;

/// How long a queue may take to finish what it has in flight. Longer than any disk that still works needs; a
/// frontend that waits for us must get an answer some day.
const PATIENCE: Duration = Duration::from_secs(120);

/// Violations are reported at most this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// What the frontend has set of a queue.
#[derive(Default)]
struct Vring {
    size: u16,
    base: u16,
    /// Addresses in the frontend's process: descriptors, used, available.
    addresses: Option<(u64, u64, u64)>,
    kick: Option<Arc<OwnedFd>>,
    call: Option<Arc<OwnedFd>>,
    err: Option<Arc<OwnedFd>>,
    enabled: bool,
}

/// The in-flight file, the frontend's or our own.
struct InflightFile {
    file: Arc<OwnedFd>,
    offset: u64,
    queue_size: u16,
    /// The frontend kept it, so what it says about requests in flight holds.
    frontends: bool,
}

/// The state of a connection.
pub struct Session {
    device: u32,
    link: Arc<Link>,
    offer: Arc<Offer>,
    events: Arc<Events>,
    features: u64,
    vrings: BTreeMap<u16, Vring>,
    inflight: Option<InflightFile>,
    last_report: Option<Instant>,
}

fn refused(reason: String) -> Error {
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
                port.sent.store(0, Relaxed);
            }
            let message = shadow.memory_message(device);
            state.tell(message);
        });
        self.vrings.clear();
        self.inflight = None;
    }

    fn vring(&mut self, index: u32) -> Result<(u16, &mut Vring)> {
        let queues = self.offer.queues;
        match u16::try_from(index) {
            Ok(index) if index < queues => Ok((index, self.vrings.entry(index).or_default())),
            _ => Err(refused(format!("queue {index}, the device has {queues}"))),
        }
    }

    /// Stop a queue if it runs, and remember where to go on.
    fn stop(&mut self, index: u16) {
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
    fn sync(&mut self, index: u16) -> Result<()> {
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

    fn new_inflight_file(&self, queue_size: u16) -> Result<(File, u64)> {
        let size = u64::from(self.offer.queues) * inflight::region_size(queue_size);
        let file = sealed_memfd(c"nagaya-inflight", size).map_err(Error::ReqHandlerError)?;
        Ok((file, size))
    }

    /// Replace the memory table. Queues that run go on: the worker checks that their rings are still there.
    fn set_regions(
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

/// A kick, call or err fd.
fn signal_fd(file: Option<File>) -> Result<Option<Arc<OwnedFd>>> {
    let Some(file) = file else { return Ok(None) };
    fds::check_signal(&file).map_err(Error::ReqHandlerError)?;
    // Lets the ring write it at once; if the frontend clears the flag again, a thread of the kernel waits, not we.
    // SAFETY: passes no pointer. If it fails the fd is one that does not block.
    unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK);
    }
    Ok(Some(Arc::new(file.into())))
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        for index in 0..self.offer.queues {
            self.stop(index);
        }
        self.vrings.clear();
        self.features = 0;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offer.features)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.offer.features;
        if unknown != 0 {
            return Err(refused(format!("feature bits {unknown:#x} were not offered")));
        }
        self.features = features;
        Ok(())
    }

    fn set_mem_table(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        let table = regions.iter().zip(files).map(|(region, file)| {
            let (guest, user) = (region.guest_phys_addr, region.user_addr);
            let region = Region { guest, size: region.memory_size, user, offset: region.mmap_offset };
            (region, Arc::new(OwnedFd::from(file)))
        });
        let table = table.collect();
        self.set_regions(|memory| {
            *memory = table;
            Ok(())
        })
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let (_, vring) = self.vring(index)?;
        match u16::try_from(num) {
            Ok(size) if size.is_power_of_two() && size <= MAX_QUEUE_SIZE => vring.size = size,
            _ => {
                return Err(refused(format!(
                    "queue size {num}, must be a power of two up to {MAX_QUEUE_SIZE}"
                )));
            }
        }
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let (index, vring) = self.vring(index)?;
        vring.addresses = Some((descriptor, used, available));
        self.sync(index)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let (_, vring) = self.vring(index)?;
        vring.base =
            u16::try_from(base).map_err(|_| refused(format!("index {base} in a ring of 16 bits")))?;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let (number, _) = self.vring(index)?;
        self.stop(number);
        let (_, vring) = self.vring(index)?;
        // The ring is stopped; the kick that comes next starts it anew.
        (vring.kick, vring.enabled) = (None, false);
        Ok(VhostUserVringState::new(index, vring.base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let (index, vring) = self.vring(index.into())?;
        let fd =
            fd.ok_or_else(|| refused(format!("queue {index} without a kick fd would have to be polled")))?;
        fds::check_signal(&fd).map_err(Error::ReqHandlerError)?;
        vring.kick = Some(Arc::new(fd.into()));
        // A ring that runs gets the new fd by starting again.
        self.stop(index);
        self.sync(index)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let (index, vring) = self.vring(index.into())?;
        vring.call = signal_fd(fd)?;
        self.sync(index)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let (index, vring) = self.vring(index.into())?;
        vring.err = signal_fd(fd)?;
        self.sync(index)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.offer.queues.into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let (index, vring) = self.vring(index)?;
        vring.enabled = enable;
        if enable {
            return self.sync(index);
        }
        // The driver may free the rings as soon as this is answered, so what is in flight ends first.
        self.stop(index);
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        // Beyond what we have, fields of a newer specification read as 0.
        let space = self.offer.config.iter().copied().chain(std::iter::repeat(0));
        Ok(space.skip(offset as usize).take(size as usize).collect())
    }

    fn set_config(&mut self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Err(refused("no field of the configuration can be written".into()))
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let queue_size = wanted.queue_size.min(MAX_QUEUE_SIZE);
        let (file, size) = self.new_inflight_file(queue_size)?;
        Ok((VhostUserInflight::new(size, 0, self.offer.queues, queue_size), file))
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let part = inflight::region_size(inflight.queue_size);
        let needed = u64::from(inflight.num_queues) * part;
        let end = inflight.mmap_offset.checked_add(needed.max(inflight.mmap_size));
        fds::check_memory(&file).map_err(Error::ReqHandlerError)?;
        let length = file.metadata().map_err(Error::ReqHandlerError)?.size();
        if needed > inflight.mmap_size
            || end.is_none_or(|end| end > length)
            || inflight.num_queues < self.offer.queues
        {
            return Err(refused(format!(
                "an in-flight region of {} bytes for this device",
                inflight.mmap_size
            )));
        }
        let (offset, queue_size) = (inflight.mmap_offset, inflight.queue_size);
        let file = Arc::new(OwnedFd::from(file));
        self.inflight = Some(InflightFile { file, offset, queue_size, frontends: true });
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(&mut self, region: &VhostUserSingleMemoryRegion, file: File) -> Result<()> {
        let (guest, user) = (region.guest_phys_addr, region.user_addr);
        let region = Region { guest, size: region.memory_size, user, offset: region.mmap_offset };
        self.set_regions(|memory| {
            memory.push((region, Arc::new(file.into())));
            Ok(())
        })
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (guest, size) = (region.guest_phys_addr, region.memory_size);
        self.set_regions(|memory| {
            let place = memory.iter().position(|(old, _)| old.guest == guest && old.size == size);
            memory.remove(place.ok_or_else(|| refused(format!("no memory region at {guest:#x}")))?);
            Ok(())
        })
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        Err(refused("not a GPU".into()))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(refused("no shared objects".into()))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(refused("no device state to transfer".into()))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(refused("no device state to transfer".into()))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(refused("no shared memory regions".into()))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(refused("no dirty page log".into()))
    }
}
