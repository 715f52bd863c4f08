//! The requests of the vhost-user protocol, in the terms of [`Session`].

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use vhost::vhost_user::message::*;
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use crate::config::MAX_QUEUE_SIZE;
use crate::control::Region;
use crate::holder::fds;
use crate::holder::session::{InflightFile, MAX_REGIONS, Session, refused};
use crate::inflight;

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
        self.restart_balloon();
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
        let space = self.config_space().into_iter().chain(std::iter::repeat(0));
        Ok(space.skip(offset as usize).take(size as usize).collect())
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        self.write_config(offset, buf)
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
