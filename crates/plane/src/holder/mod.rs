//! The holder's half: speaks vhost-user and owns every fd that must outlive a worker.
//!
//! A device has a thread that serves its frontend ([`device`], [`relay`], [`protocol`], [`session`]); a worker has one that keeps it running
//! ([`link`]). They meet in the worker's lock, where each device's state is kept ([`shadow`]).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::block::faults::FaultPlan;
use crate::config::DeviceConfig;
use crate::holder::device::Device;
use crate::holder::events::{Events, lock};
use crate::holder::link::{Link, ask_to_close};
use crate::holder::offer::Offer;
use crate::holder::shadow::Shadow;
use crate::page::Shared;
use crate::scm::MAX_FDS;
use crate::shares::{Resource, ShareNode, Shares};

mod balloons;
mod device;
mod events;
mod fds;
mod jobs;
mod layers;
mod link;
mod mems;
mod offer;
mod ports;
mod protocol;
mod relay;
mod reopen;
mod session;
mod shadow;
mod watch;

/// How long a worker may take to forget a device that is idle; it may have to be started first.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a worker may take to say how its arbiter is.
const ARBITER_PATIENCE: Duration = Duration::from_secs(1);

/// Why a request to the plane was refused.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// The configuration breaks the contract.
    #[error("{0}")]
    Config(String),
    /// There is no such device.
    #[error("no device {0}")]
    NoDevice(String),
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// All devices and workers of a holder.
pub struct Plane {
    worker_argv: Vec<String>,
    events: Arc<Events>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    devices: BTreeMap<String, Device>,
    /// Devices that are on their way in or out, whose names are not to be taken, and their workers.
    reserved: BTreeMap<String, String>,
    /// Jobs and uplinks, with their workers and their numbers there.
    jobs: BTreeMap<String, (Arc<Link>, u32)>,
    links: BTreeMap<String, (Arc<Link>, JoinHandle<()>)>,
    disk_shares: Shares,
    network_shares: Shares,
    next_number: u32,
}

impl Inner {
    fn shares(&mut self, resource: Resource) -> &mut Shares {
        match resource {
            Resource::Disk => &mut self.disk_shares,
            Resource::Network => &mut self.network_shares,
        }
    }
}

impl Plane {
    /// `worker_argv` starts a worker; the number of its control fd, 0, is appended.
    ///
    /// # Errors
    /// If there is no program in it, or what the kernel says.
    pub fn new(worker_argv: Vec<String>) -> Result<Plane, PlaneError> {
        if worker_argv.is_empty() {
            return Err(PlaneError::Config("worker_argv is empty".into()));
        }
        Ok(Plane { worker_argv, events: Arc::new(Events::new()?), inner: Mutex::default() })
    }

    /// Serve a device: `fds` are the listener, if frontends connect to it, and the backend's.
    ///
    /// # Errors
    /// A wrong configuration, a name that is taken, or what the kernel says.
    pub fn device_add(&self, json: &str, fds: Vec<OwnedFd>) -> Result<(), PlaneError> {
        let config = DeviceConfig::parse(json).map_err(PlaneError::Config)?;
        match config {
            DeviceConfig::Uplink(_) => return self.attend(config, fds),
            DeviceConfig::Copy(_) => return Err(PlaneError::Config(format!("{} is a job", config.id()))),
            _ => {}
        }
        let expected = config.backend_fds() + 1;
        if fds.len() != expected || expected > MAX_FDS {
            let reason = format!("{} fds for device {}, needs {expected}", fds.len(), config.id());
            return Err(PlaneError::Config(reason));
        }
        let mut fds = fds.into_iter();
        let Some(listener) = fds.next() else { return Err(PlaneError::Config("no listener".into())) };
        let backend: Vec<OwnedFd> = fds.collect();
        let offer = Offer::of(&config, &backend)?;
        let page = Arc::new(Shared::create()?);

        let id = config.id().to_owned();
        let worker = config.worker().to_owned();
        let shadow = Shadow::new(config, page, backend)?;
        let resource = shadow.config.resource();
        let undo = self.share(resource, shadow.config.shares())?;
        let (link, number) = match self.reserve(&id, (&worker, resource)) {
            Ok(reserved) => reserved,
            Err(error) => return self.share(resource, &undo).and(Err(error)),
        };
        let added = self.start(&id, number, (&link, offer), listener, shadow);
        let mut inner = lock(&self.inner);
        inner.reserved.remove(&id);
        match added {
            Ok(device) => {
                inner.devices.insert(id, device);
                Ok(())
            }
            Err(error) => {
                drop(inner);
                link.change(|state| {
                    ask_to_close(state, number);
                    state.devices.remove(&number);
                });
                self.share(resource, &undo)?;
                self.end_idle_link(&link);
                Err(error.into())
            }
        }
    }

    /// Keep the name for a device on its way in; its worker, started if there is none, and its number there.
    fn reserve(
        &self,
        id: &str,
        (worker, resource): (&str, Resource),
    ) -> Result<(Arc<Link>, u32), PlaneError> {
        let mut inner = lock(&self.inner);
        if inner.devices.contains_key(id) || inner.jobs.contains_key(id) || inner.reserved.contains_key(id) {
            return Err(PlaneError::Config(format!("there is a device {id} already")));
        }
        if !inner.links.contains_key(worker) {
            let shares = (resource, inner.shares(resource).clone());
            let started = Link::start(worker, &self.worker_argv, shares, self.events.clone())?;
            inner.links.insert(worker.to_owned(), started);
        }
        inner.reserved.insert(id.to_owned(), worker.to_owned());
        let number = inner.next_number;
        inner.next_number += 1;
        Ok((inner.links[worker].0.clone(), number))
    }

    /// Give the device to its worker, and its listener to a thread. Images are opened first: only they can turn
    /// out to be unusable.
    fn start(
        &self,
        id: &str,
        number: u32,
        (link, offer): (&Arc<Link>, Offer),
        listener: OwnedFd,
        shadow: Shadow,
    ) -> io::Result<Device> {
        let may_fail = matches!(shadow.config, DeviceConfig::Blk(_));
        link.change(|state| {
            state.tell(shadow.open_message(number));
            state.devices.insert(number, shadow);
        });
        if may_fail {
            link.wait_opened(number, PATIENCE)?;
        }
        Device::start((id, number), listener, link.clone(), offer, self.events.clone())
    }

    /// Stop serving a device; waits for what is in flight.
    ///
    /// # Errors
    /// If there is no such device, or it does not come to an end.
    pub fn device_del(&self, id: &str) -> Result<(), PlaneError> {
        if lock(&self.inner).jobs.contains_key(id) {
            return self.job_end(id);
        }
        let device = {
            let mut inner = lock(&self.inner);
            let device = inner.devices.remove(id).ok_or_else(|| PlaneError::NoDevice(id.to_owned()))?;
            inner.reserved.insert(id.to_owned(), device.link.name.clone());
            device
        };
        let (link, number) = (device.link.clone(), device.number);
        device.stop();
        Ok(self.forget(id, &link, number)?)
    }

    /// Have the worker close what nobody uses any more, and free its name.
    fn forget(&self, id: &str, link: &Arc<Link>, number: u32) -> io::Result<()> {
        let serial = link.change(|state| ask_to_close(state, number));
        let closed = serial.is_none_or(|serial| link.wait(serial, PATIENCE).is_some());
        link.change(|state| state.devices.remove(&number));
        lock(&self.inner).reserved.remove(id);
        self.end_idle_link(link);
        if closed {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("device {id} does not come to an end")))
    }

    /// Lay faults upon a disk, as `json` has them ([`FaultPlan`]); `null` ends them. They are in effect when this
    /// returns, and last as long as the device.
    ///
    /// # Errors
    /// If there is no such device, it is no disk, the plan is out of bounds, or the worker does not answer.
    pub fn set_faults(&self, id: &str, json: &str) -> Result<(), PlaneError> {
        let plan = FaultPlan::parse(json).map_err(PlaneError::Config)?;
        let (link, number) = {
            let inner = lock(&self.inner);
            let device = inner.devices.get(id).ok_or_else(|| PlaneError::NoDevice(id.to_owned()))?;
            (device.link.clone(), device.number)
        };
        let serial = link.change(|state| {
            let serial = state.next_serial();
            let Some(shadow) = state.devices.get_mut(&number) else {
                return Err(PlaneError::NoDevice(id.to_owned()));
            };
            if !matches!(shadow.config, DeviceConfig::Blk(_)) {
                return Err(PlaneError::Config(format!("device {id} is no disk")));
            }
            (shadow.faults, shadow.faults_serial) = (plan, serial);
            let message = shadow.faults_message(number);
            state.tell(message);
            Ok(serial)
        })?;
        if link.wait(serial, PATIENCE).is_some() {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("the worker of device {id} does not answer"))
            .into())
    }

    /// A worker without devices costs memory for nothing.
    fn end_idle_link(&self, link: &Arc<Link>) {
        let ended = {
            let mut inner = lock(&self.inner);
            // A device on its way in may be about to use it.
            let wanted = inner.reserved.values().any(|worker| *worker == link.name);
            let current = inner.links.get(&link.name).is_some_and(|(current, _)| Arc::ptr_eq(current, link));
            let idle = link.state().devices.is_empty() && !wanted && current;
            if idle { inner.links.remove(&link.name) } else { None }
        };
        if let Some((link, thread)) = ended {
            link.end();
            join(thread);
        }
    }

    /// Share all disks, or all networks, by `nodes`, a JSON list, from now on, also with devices that come later.
    ///
    /// # Errors
    /// A list that cannot be understood, or a node that would be above itself.
    pub fn set_shares(&self, resource: Resource, nodes: &str) -> Result<(), PlaneError> {
        let nodes: Vec<ShareNode> =
            serde_json::from_str(nodes).map_err(|error| PlaneError::Config(format!("shares: {error}")))?;
        self.share(resource, &nodes).map(|_| ())
    }

    /// Tell all workers whom it concerns; returns what makes those nodes forgotten that were not known before.
    fn share(&self, resource: Resource, nodes: &[ShareNode]) -> Result<Vec<ShareNode>, PlaneError> {
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let mut inner = lock(&self.inner);
        let shares = inner.shares(resource);
        let fresh = nodes.iter().filter(|node| !node.remove && !shares.contains(&node.id));
        let undo = fresh.map(|node| ShareNode { remove: true, ..node.clone() }).collect();
        shares.set(nodes).map_err(PlaneError::Config)?;
        for (link, _) in inner.links.values().filter(|(link, _)| link.resource == resource) {
            link.change(|state| state.set_shares(nodes));
        }
        Ok(undo)
    }

    /// The arbiter of each worker that has disks or a network, as JSON, see `_core.pyi`. A worker that is being replaced is left out.
    pub fn query_arbiter(&self) -> String {
        let links: Vec<Arc<Link>> = lock(&self.inner).links.values().map(|(link, _)| link.clone()).collect();
        let mut workers = Vec::new();
        for link in links.iter().filter(|link| link.state().has_arbiter()) {
            let Some(parts) = link.query_arbiter(ARBITER_PATIENCE) else { continue };
            let mut parts = parts.into_iter();
            let Some(mut whole) = parts.next() else { continue };
            for mut part in parts {
                if let (Some(nodes), Some(more)) =
                    (whole["nodes"].as_array_mut(), part["nodes"].as_array_mut())
                {
                    nodes.append(more);
                }
            }
            whole["worker"] = link.name.clone().into();
            workers.push(whole);
        }
        Value::from(workers).to_string()
    }

    /// What is asked of each worker's device, and how it answers, as JSON, see `_core.pyi`; with `anew` it is recorded anew
    /// from now on. A worker that is being replaced is left out.
    pub fn query_demand(&self, anew: bool) -> String {
        let links: Vec<Arc<Link>> = lock(&self.inner).links.values().map(|(link, _)| link.clone()).collect();
        let disks = links.iter().filter(|link| link.resource == Resource::Disk && link.state().has_arbiter());
        let ask = |link: &Arc<Link>| Some((link.name.clone(), link.query_demand(anew, ARBITER_PATIENCE)?));
        let mut workers = Vec::new();
        for (name, parts) in disks.filter_map(ask) {
            let (mut cells, mut patterns) = (Value::Array(Vec::new()), Vec::new());
            for mut part in parts {
                if let Some(found) = part.get_mut("cells") {
                    cells = found.take();
                }
                patterns.extend(part["patterns"].as_array_mut().map(std::mem::take).unwrap_or_default());
            }
            workers.push(json!({"worker": name, "cells": cells, "patterns": patterns}));
        }
        Value::from(workers).to_string()
    }

    /// State and counters as JSON, see `_core.pyi`.
    pub fn query(&self) -> String {
        let inner = lock(&self.inner);
        let (mut devices, mut workers) = (Vec::new(), Vec::new());
        for (link, _) in inner.links.values() {
            let state = link.state();
            let mut names = Vec::new();
            for shadow in state.devices.values() {
                names.push(shadow.config.id().to_owned());
                devices.push(describe(shadow));
            }
            // Not 0: whoever signals that ends itself.
            let pid = (state.pid != 0).then_some(state.pid);
            workers.push(json!({"name": link.name, "pid": pid, "generation": state.generation,
                "devices": names}));
        }
        json!({"devices": devices, "workers": workers}).to_string()
    }

    /// An eventfd, readable while there are events.
    pub fn event_fd(&self) -> RawFd {
        self.events.fd()
    }

    /// Events since the last call, JSON each.
    pub fn take_events(&self) -> Vec<String> {
        self.events.take()
    }

    /// Stop all devices and workers.
    pub fn close(&self) {
        let ids: Vec<String> = lock(&self.inner).devices.keys().cloned().collect();
        for id in ids {
            if let Err(error) = self.device_del(&id) {
                eprintln!("plane: {error}");
            }
        }
        let jobs: Vec<String> = lock(&self.inner).jobs.keys().cloned().collect();
        for id in jobs {
            if let Err(error) = self.job_end(&id) {
                eprintln!("plane: {error}");
            }
        }
        let links = std::mem::take(&mut lock(&self.inner).links);
        for (link, thread) in links.into_values() {
            link.end();
            join(thread);
        }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.close();
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        eprintln!("plane: the thread of a worker panicked");
    }
}

fn describe(shadow: &Shadow) -> Value {
    let page = &shadow.page;
    json!({
        "id": shadow.config.id(),
        "driver": shadow.config.driver(),
        "worker": shadow.config.worker(),
        "connected": shadow.connected,
        "reads": page.reads.load(Relaxed),
        "writes": page.writes.load(Relaxed),
        "flushes": page.flushes.load(Relaxed),
        "discards": page.discards.load(Relaxed),
        "read_bytes": page.read_bytes.load(Relaxed),
        "written_bytes": page.written_bytes.load(Relaxed),
        "errors": page.errors.load(Relaxed),
        "inflight": page.inflight.load(Relaxed),
        "spaceless": page.spaceless.load(Relaxed),
        "copied": page.copied.load(Relaxed),
        "to_copy": page.to_copy.load(Relaxed),
        "flush_error": page.flush_error.load(Relaxed),
        "faults": shadow.faults,
        "faulted": page.faults.load(Relaxed),
        "violations": shadow.violations,
        "last_violation": shadow.last_violation,
    })
}
