//! A device in the reactor's table, with its queues and memory.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::arbiter::{Arbiter, Leaf};
use crate::balloon::Balloon;
use crate::block::Disk;
use crate::block::copy::{Copy, Ends};
use crate::block::device::Blk;
use crate::block::model::ModelDevices;
use crate::block::qcow2::{Layer as ImageLayer, Qcow2Disk};
use crate::block::raw::RawDisk;
use crate::block::writelog::WriteLog;
use crate::clock::Nanos;
use crate::config::{BlkConfig, CopyConfig, DeviceConfig, Format, Layer};
use crate::console::Console;
use crate::mem::Mem;
use crate::memory::Memory;
use crate::net::device::Net;
use crate::net::network::Networks;
use crate::net::uplink::Uplink;
use crate::page::{DevicePage, Shared};
use crate::rng::Rng;
use crate::uring::Uring;
use crate::worker::device::{Context, Device, Kind, Peers, Token};
use crate::worker::queue::VirtQueue;

/// A device that the worker serves.
pub struct Entry {
    /// The holder's number.
    pub number: u32,
    /// Tells it from others that had its place.
    pub epoch: u32,
    /// Its id in the arbiter's tree, if it is a disk.
    pub disk: Option<String>,
    /// Its queues; `None` where none runs.
    pub queues: Vec<Option<VirtQueue>>,
    /// Whether the reactor has it in its list of devices with completions to announce.
    pub touched: bool,
    /// Whether threads of the kernel do its requests, as they do writes to the page cache.
    pub threaded: bool,
    /// Requests taken and not answered, when the reactor last looked.
    pub seen_taken: usize,
    /// Its guest's memory.
    pub memory: Option<Rc<Memory>>,
    /// Set while the holder waits for the device to be idle and gone: the serial of its request.
    pub closing: Option<u64>,
    device: Box<dyn Device>,
    page: Rc<Shared>,
    /// Memory that was replaced while requests were in flight on it.
    retired: Vec<Rc<Memory>>,
}

impl Entry {
    /// Open a device; `fds` as with [`crate::control::ToWorker::Open`]. A disk's requests are offered at `leaf`.
    ///
    /// # Errors
    /// What opening the image says.
    pub fn open(
        (uring, (models, networks)): (&Rc<Uring>, (&mut ModelDevices, &mut Networks)),
        (number, epoch): (u32, u32),
        leaf: Option<Leaf>,
        config: &DeviceConfig,
        fds: Vec<OwnedFd>,
    ) -> io::Result<Entry> {
        let mut fds = fds.into_iter();
        let page = fds.next().ok_or_else(|| io::Error::other("a device without its page"))?;
        let page = Rc::new(Shared::map(File::from(page))?);
        let device: Box<dyn Device> = match config {
            DeviceConfig::Blk(blk) => {
                let mut files: Vec<File> = fds.map(File::from).collect();
                let log = if blk.write_log { files.pop().map(WriteLog::new).transpose()? } else { None };
                let disk = open_disk((uring, models), blk, files, &page)?;
                Box::new(Blk::new(blk, disk, leaf, log))
            }
            DeviceConfig::Console(console) => Box::new(Console::new(console, fds.collect())),
            DeviceConfig::Rng(_) => Box::new(Rng::default()),
            DeviceConfig::Balloon(balloon) => Box::new(Balloon::new(balloon)),
            DeviceConfig::Mem(mem) => Box::new(Mem::new(mem)),
            DeviceConfig::Copy(copy) => {
                let ends = open_copy((uring, models), copy, fds.map(File::from).collect(), &page)?;
                Box::new(Copy::new(copy, ends, leaf).ok_or(io::ErrorKind::OutOfMemory)?)
            }
            DeviceConfig::Net(net) => Box::new(Net::new(net, networks)),
            DeviceConfig::Uplink(uplink) => {
                let file = fds.next().ok_or_else(|| io::Error::other("an uplink without its fd"))?;
                Box::new(Uplink::new(uplink, file.into(), networks))
            }
        };
        // What was in flight in a crashed worker is counted again when it is taken again.
        page.inflight.store(0, std::sync::atomic::Ordering::Relaxed);
        page.spaceless.store(0, std::sync::atomic::Ordering::Relaxed);
        let queues = (0..config.queues()).map(|_| None).collect();
        let disk = leaf.map(|_| config.id().to_owned());
        let threaded = matches!(config, DeviceConfig::Blk(blk) if !blk.direct);
        Ok(Entry {
            number,
            epoch,
            disk,
            queues,
            touched: false,
            threaded,
            seen_taken: 0,
            memory: None,
            closing: None,
            device,
            page,
            retired: Vec::new(),
        })
    }

    /// Call `run` with the device and its context.
    pub fn with<T>(
        &mut self,
        uring: &Rc<Uring>,
        (arbiter, now): (&mut Arbiter, Nanos),
        slot: u16,
        (wake, peers): (&mut Vec<u16>, Peers<'_>),
        run: impl FnOnce(&mut dyn Device, &mut Context<'_>) -> T,
    ) -> T {
        let token = Token { kind: Kind::Io, epoch: self.epoch, slot, value: 0 };
        let mut context =
            Context { uring, queues: &mut self.queues, page: &self.page, token, arbiter, now, wake, peers };
        run(self.device.as_mut(), &mut context)
    }

    /// Queues and page, for another device to pass something on.
    pub fn lend(&mut self) -> (&mut [Option<VirtQueue>], &DevicePage) {
        (&mut self.queues, &self.page)
    }

    /// Whether nothing is left to wait for before it can be dropped.
    pub fn is_idle(&self) -> bool {
        self.device.is_idle()
    }

    /// Requests taken and not answered, of all queues.
    pub fn taken(&self) -> usize {
        self.queues.iter().flatten().map(|queue| usize::from(queue.taken())).sum()
    }

    /// Use `memory` from now on; what is in flight keeps the old. Returns the queues whose rings are not in it.
    pub fn set_memory(&mut self, memory: Memory) -> Vec<u16> {
        let memory = Rc::new(memory);
        self.release_retired();
        self.retired.extend(self.memory.replace(memory.clone()));
        let mut lost = Vec::new();
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if queue.as_mut().is_some_and(|queue| !queue.set_memory(memory.clone())) {
                lost.push(index as u16);
            }
        }
        lost
    }

    /// The frontend has gone; its queues have been stopped.
    pub fn drop_memory(&mut self) {
        self.retired.extend(self.memory.take());
        self.release_retired();
    }

    /// Unmap memory that no request uses any more.
    pub fn release_retired(&mut self) {
        if self.taken() == 0 {
            self.retired.clear();
        }
    }
}

/// The disk that is copied, the one that it is copied to, as large as that, and what it is compared with.
fn open_copy(
    (uring, models): (&Rc<Uring>, &mut ModelDevices),
    config: &CopyConfig,
    mut files: Vec<File>,
    page: &Rc<Shared>,
) -> io::Result<Ends> {
    let mut open = |layers: &[Layer], files, writable: bool| {
        open_disk((uring, models), &config.disk(layers, !writable), files, page)
    };
    let unlike = files.split_off(files.len() - config.unlike.len());
    let target = files.split_off(files.len() - config.target.len());
    let from = open(&config.layers, files, false)?;
    if let ([layer], [file]) = (config.target.as_slice(), target.as_slice())
        && layer.format == Format::Raw
        && file.metadata()?.is_file()
        && file.metadata()?.len() < from.size()
    {
        file.set_len(from.size())?;
    }
    let to = open(&config.target, target, true)?;
    if to.size() < from.size() {
        let reason = format!("the target has {} bytes, the source {}", to.size(), from.size());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    let unlike = if unlike.is_empty() { None } else { Some(open(&config.unlike, unlike, false)?) };
    Ok(Ends { from, to, unlike })
}

fn open_disk(
    (uring, models): (&Rc<Uring>, &mut ModelDevices),
    config: &BlkConfig,
    mut files: Vec<File>,
    page: &Rc<Shared>,
) -> io::Result<Box<dyn Disk>> {
    if let Some(layer) = config.layers.first()
        && let Some(model) = &layer.model
    {
        return Ok(Box::new(models.open(layer.format, model)));
    }
    if config.layers.len() != files.len() {
        return Err(io::Error::other(format!("{} layers, {} files", config.layers.len(), files.len())));
    }
    if let ([layer], 1) = (config.layers.as_slice(), files.len())
        && layer.format == Format::Raw
        && let Some(file) = files.pop()
    {
        return Ok(Box::new(RawDisk::open(uring, file, config.direct)?));
    }
    let layers = config.layers.iter().zip(files);
    let layers = layers.map(|(layer, file)| ImageLayer { fd: file.into(), format: layer.format }).collect();
    Ok(Box::new(Qcow2Disk::open(uring, layers, (!config.read_only).then_some(page), config.direct)?))
}
