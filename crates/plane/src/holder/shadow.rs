//! What the holder knows of a device: enough to give it to another worker at any time.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::block::faults::FaultPlan;
use crate::config::DeviceConfig;
use crate::control::{QueueSetup, Region, ToWorker};
use crate::holder::ports::PortOrders;
use crate::page::Shared;

/// A message and the fds that go with it, kept open until it is sent.
pub struct Outgoing {
    /// The message.
    pub message: ToWorker,
    /// In the order that the message's documentation gives.
    pub fds: Vec<Arc<OwnedFd>>,
}

impl Outgoing {
    /// The fds' numbers.
    pub fn raw_fds(&self) -> Vec<RawFd> {
        self.fds.iter().map(|fd| fd.as_raw_fd()).collect()
    }
}

/// A queue that runs.
#[derive(Clone)]
pub struct RunningQueue {
    /// How.
    pub setup: QueueSetup,
    /// In-flight file, kick, call, err; the latter two if the setup says so.
    pub fds: Vec<Arc<OwnedFd>>,
    /// The serial of the request to stop it, once there is one.
    pub stopping: Option<u64>,
}

/// A device.
pub struct Shadow {
    /// What it is.
    pub config: DeviceConfig,
    /// Counters and port states.
    pub page: Arc<Shared>,
    page_fd: Arc<OwnedFd>,
    backend: Vec<Arc<OwnedFd>>,
    /// It is being opened anew on other files: until then its worker is told nothing of it.
    pub switching: bool,
    /// Whether it waits for space on the host, as far as has been told.
    pub no_space: bool,
    /// The guest's memory, and the file of each region.
    pub memory: Vec<(Region, Arc<OwnedFd>)>,
    /// By index.
    pub queues: BTreeMap<u16, RunningQueue>,
    /// The serial of the request to close it, once there is one.
    pub closing: Option<u64>,
    /// Whether its worker could open it, once the worker has said so.
    pub opened: Option<Result<(), String>>,
    /// Whether a frontend is connected.
    pub connected: bool,
    /// What its requests are to suffer.
    pub faults: Option<FaultPlan>,
    /// The serial of the request that said so.
    pub faults_serial: u64,
    /// What was asked of it as a port of a network.
    pub port: PortOrders,
    /// A second open file of the disk that is written. Linux tells each open file of a lost write once: if a worker
    /// takes that to its grave, this one can still be asked.
    witness: Option<Arc<OwnedFd>>,
    /// Rules broken, by kind.
    pub violations: BTreeMap<String, u64>,
    /// The latest of them, in words.
    pub last_violation: Option<String>,
}

impl Shadow {
    /// A device that no frontend has connected to.
    ///
    /// # Errors
    /// If there are no more fds.
    pub fn new(config: DeviceConfig, page: Arc<Shared>, backend: Vec<OwnedFd>) -> std::io::Result<Shadow> {
        let page_fd = Arc::new(page.as_fd().try_clone_to_owned()?);
        let Files { config, backend, witness } = Files::new(config, backend)?;
        if let DeviceConfig::Mem(mem) = &config {
            page.mem.requested.store(mem.requested, Relaxed);
        }
        Ok(Shadow {
            config,
            page,
            page_fd,
            backend,
            switching: false,
            no_space: false,
            memory: Vec::new(),
            queues: BTreeMap::new(),
            closing: None,
            opened: None,
            connected: false,
            faults: None,
            port: PortOrders::default(),
            faults_serial: 0,
            witness,
            violations: BTreeMap::new(),
            last_violation: None,
        })
    }

    /// Serve `files` from now on; returns those of before.
    pub fn swap(&mut self, files: Files) -> Files {
        Files {
            config: std::mem::replace(&mut self.config, files.config),
            backend: std::mem::replace(&mut self.backend, files.backend),
            witness: std::mem::replace(&mut self.witness, files.witness),
        }
    }

    /// The file that is written.
    pub fn written(&self) -> Written {
        Written { page: self.page.clone(), witness: self.witness.clone() }
    }

    /// Count a violation.
    pub fn violated(&mut self, kind: &str, detail: &str) {
        *self.violations.entry(kind.to_owned()).or_default() += 1;
        self.last_violation = Some(detail.to_owned());
    }

    /// The message that opens the device.
    pub fn open_message(&self, device: u32) -> Outgoing {
        let fds = std::iter::once(&self.page_fd).chain(&self.backend).cloned().collect();
        Outgoing { message: ToWorker::Open { device, config: self.config.clone() }, fds }
    }

    /// The message with its faults.
    pub fn faults_message(&self, device: u32) -> Outgoing {
        Outgoing {
            message: ToWorker::Faults { device, plan: self.faults.clone(), serial: self.faults_serial },
            fds: Vec::new(),
        }
    }

    /// What to ask after a worker that died while a flush was at the disk; see [`Doubt::resolve`].
    pub fn doubt(&self) -> Option<Doubt> {
        let in_doubt = self.page.flushing.load(Relaxed) + self.page.syncing.load(Relaxed) != 0;
        let witness = self.witness.as_ref().filter(|_| in_doubt)?;
        Some(Doubt { page: self.page.clone(), witness: witness.clone() })
    }

    /// The message with its memory.
    pub fn memory_message(&self, device: u32) -> Outgoing {
        let regions = self.memory.iter().map(|(region, _)| *region).collect();
        let fds = self.memory.iter().map(|(_, fd)| fd.clone()).collect();
        Outgoing { message: ToWorker::Memory { device, regions }, fds }
    }

    /// Everything, for a new worker; what was asked of the last one is asked again.
    pub fn snapshot(&self, device: u32) -> Vec<Outgoing> {
        let mut all = vec![self.open_message(device)];
        if self.faults_serial != 0 {
            all.push(self.faults_message(device));
        }
        all.extend(self.port.messages(device));
        if !self.memory.is_empty() {
            all.push(self.memory_message(device));
        }
        for (index, queue) in &self.queues {
            all.push(queue.message(device));
            if let Some(serial) = queue.stopping {
                let message = ToWorker::Stop { device, queue: *index, serial };
                all.push(Outgoing { message, fds: Vec::new() });
            }
        }
        if let Some(serial) = self.closing {
            all.push(Outgoing { message: ToWorker::Close { device, serial }, fds: Vec::new() });
        }
        all
    }
}

/// What a device is served from.
pub struct Files {
    config: DeviceConfig,
    backend: Vec<Arc<OwnedFd>>,
    witness: Option<Arc<OwnedFd>>,
}

impl Files {
    /// For a device of `config`.
    ///
    /// # Errors
    /// If there are no more fds.
    pub fn new(config: DeviceConfig, backend: Vec<OwnedFd>) -> std::io::Result<Files> {
        let witness = match (&config, backend.first()) {
            (DeviceConfig::Blk(blk), Some(top)) if !blk.read_only => Some(Arc::new(reopen(top)?)),
            _ => None,
        };
        Ok(Files { config, backend: backend.into_iter().map(Arc::new).collect(), witness })
    }
}

/// The file of a disk that is written.
pub struct Written {
    page: Arc<Shared>,
    witness: Option<Arc<OwnedFd>>,
}

impl Written {
    /// Make durable what was written to it. True if that failed, which the device's page keeps.
    pub fn sync(&self) -> bool {
        self.witness.as_ref().is_some_and(|witness| sync(&self.page, witness))
    }
}

/// A flush of which nobody knows how it ended.
pub struct Doubt {
    page: Arc<Shared>,
    witness: Arc<OwnedFd>,
}

impl Doubt {
    /// Ask the kernel, which may take as long as a flush; what failed is noted in the device's page. True if it did.
    pub fn resolve(&self) -> bool {
        let failed = sync(&self.page, &self.witness);
        self.page.flushing.store(0, Relaxed);
        self.page.syncing.store(0, Relaxed);
        failed
    }
}

/// Sync `file`; true, and a note in `page`, if that fails.
fn sync(page: &Shared, file: &OwnedFd) -> bool {
    // SAFETY: passes no pointer.
    let failed = unsafe { libc::fdatasync(file.as_raw_fd()) } < 0;
    if failed {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        page.flush_error.store(errno.unsigned_abs(), Relaxed);
    }
    failed
}

/// Another open file of the same inode, with an error state of its own.
fn reopen(fd: &OwnedFd) -> std::io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/self/fd/{}", fd.as_raw_fd()))?.into())
}

impl RunningQueue {
    /// The message that starts or updates it.
    pub fn message(&self, device: u32) -> Outgoing {
        Outgoing { message: ToWorker::Queue { device, setup: self.setup.clone() }, fds: self.fds.clone() }
    }
}
