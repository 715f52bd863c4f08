//! Other image files below a disk that runs: a snapshot puts an empty one on top, growth a larger one, a merge takes
//! some away.
//!
//! To the worker it is a device that goes and comes back: its queues are stopped, it is closed, opened on the new files,
//! and its queues go on where they were. The guest's requests wait meanwhile, as while a worker is replaced. A worker that
//! dies on the way leaves a log of what belongs into the old files, so the next one serves those first.

use std::io;
use std::os::fd::OwnedFd;

use serde_json::json;

use crate::config::DeviceConfig;
use crate::control::ToWorker;
use crate::holder::events::lock;
use crate::holder::link::{Link, State, Waited};
use crate::holder::offer::Offer;
use crate::holder::shadow::{Files, Outgoing, Shadow, Written};
use crate::holder::{PATIENCE, Plane, PlaneError};

impl Plane {
    /// Serve the disk from other files from now on: `json` is its configuration with other `layers`, `fds` are theirs.
    /// What the guest has written so far is in the old files, durable, when this returns, and all that follows in the
    /// new ones.
    ///
    /// # Errors
    /// If there is no such disk, more than its layers would change, or the files cannot be opened: it goes on with
    /// the old ones then.
    pub fn set_layers(&self, id: &str, json: &str, fds: Vec<OwnedFd>) -> Result<(), PlaneError> {
        let config = DeviceConfig::parse(json).map_err(PlaneError::Config)?;
        if config.id() != id || fds.len() != config.backend_fds() {
            return Err(PlaneError::Config(format!("{} files for the layers of {id}", fds.len())));
        }
        let space = lock(&Offer::of(&config, &fds)?.config).clone();
        let (link, number, before) = {
            let inner = lock(&self.inner);
            let device = inner.devices.get(id).ok_or_else(|| PlaneError::NoDevice(id.to_owned()))?;
            (device.link.clone(), device.number, device.config_space())
        };
        let link = &*link;
        self.check(link, number, &config, (&before, &space))?;
        let switch = Switch { link, number };
        // Most of it while the guest still works: little is left for when it waits.
        let ahead = switch.sync_ahead();
        if switch.run(Files::new(config, fds)?)? || ahead {
            self.events.push("DEVICE_FLUSH_FAILED", json!({"id": id}));
        }
        if space != before
            && let Some(device) = lock(&self.inner).devices.get(id)
        {
            device.reconfigure(space);
        }
        Ok(())
    }

    /// Nothing that a guest knows of its disk may change, but that it grows.
    fn check(
        &self,
        link: &Link,
        number: u32,
        config: &DeviceConfig,
        (before, space): (&[u8], &[u8]),
    ) -> Result<(), PlaneError> {
        let state = link.state();
        let shadow =
            state.devices.get(&number).ok_or_else(|| PlaneError::NoDevice(config.id().to_owned()))?;
        let (DeviceConfig::Blk(now), DeviceConfig::Blk(new)) = (&shadow.config, config) else {
            return Err(PlaneError::Config(format!("device {} is no disk", config.id())));
        };
        let mut same = new.clone();
        same.layers.clone_from(&now.layers);
        same.direct = now.direct;
        same.shares.clone_from(&now.shares);
        if same != *now {
            return Err(PlaneError::Config(format!("more than the layers of {} would change", config.id())));
        }
        if capacity(space) < capacity(before) {
            return Err(PlaneError::Config(format!("the new layers of {} are smaller", config.id())));
        }
        Ok(())
    }
}

/// The first field of a disk's configuration space, in sectors (virtio 1.3, 5.2.4).
fn capacity(space: &[u8]) -> Option<u64> {
    space.first_chunk().copied().map(u64::from_le_bytes)
}

/// Workers that may die over one change.
const ATTEMPTS: usize = 20;

/// One change of files.
struct Switch<'a> {
    link: &'a Link,
    number: u32,
}

impl Switch<'_> {
    fn sync_ahead(&self) -> bool {
        let old = self.link.state().devices.get(&self.number).map(Shadow::written);
        old.is_some_and(|old| old.sync())
    }

    /// Change to `files`. On an error the device is back on the old ones. True if those have lost writes, which
    /// the device's page keeps.
    fn run(&self, files: Files) -> io::Result<bool> {
        let (mut files, mut lost) = (Some(files), false);
        for _ in 0..ATTEMPTS {
            let (written, stops, generation) =
                self.link.change(|state| self.begin(state)).ok_or_else(gone)?;
            if !self.close(&stops, generation)? {
                continue;
            }
            // No flush of the guest reaches the old files any more, and none is answered before this.
            lost |= written.sync();
            let Some(old) = self.link.change(|state| self.swap(state, generation, &mut files))? else {
                continue;
            };
            let Err(error) = self.link.wait_opened(self.number, PATIENCE) else { return Ok(lost) };
            self.link.change(|state| {
                if let Some(shadow) = state.devices.get_mut(&self.number) {
                    shadow.swap(old);
                }
                self.reopen(state);
            });
            self.link.wait_opened(self.number, PATIENCE)?;
            return Err(error);
        }
        let reason = format!("worker {} dies whenever the device is closed", self.link.name);
        Err(io::Error::new(io::ErrorKind::Interrupted, reason))
    }

    /// Ask for the device's queues to be stopped.
    fn begin(&self, state: &mut State) -> Option<(Written, Vec<u64>, u64)> {
        let shadow = state.devices.get_mut(&self.number)?;
        shadow.switching = true;
        let written = shadow.written();
        let queues: Vec<u16> = shadow.queues.keys().copied().collect();
        let stop = |queue| {
            let serial = state.next_serial();
            state.say(order(ToWorker::Stop { device: self.number, queue, serial }));
            serial
        };
        let stops = queues.into_iter().map(stop).collect();
        Some((written, stops, state.generation))
    }

    /// Have its worker, number `generation`, close the device once its queues have stopped. False if there is another
    /// worker meanwhile, which serves the device as before: what the dead one had yet to write is its to write, into the
    /// files that it was for.
    fn close(&self, stops: &[u64], generation: u64) -> io::Result<bool> {
        let mut waited = self.link.wait_all(stops, generation, PATIENCE);
        if waited == Waited::All {
            let serial = self.link.change(|state| {
                let serial = state.next_serial();
                if state.generation == generation {
                    state.say(order(ToWorker::Close { device: self.number, serial }));
                }
                serial
            });
            waited = self.link.wait_all(&[serial], generation, PATIENCE);
        }
        if waited == Waited::TimedOut {
            self.link.kill();
            let reason = format!("worker {} does not finish what is in flight", self.link.name);
            return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
        }
        Ok(waited == Waited::All)
    }

    /// The device is closed: have it opened on `files`. Returns the old ones; `None` if there is another worker.
    fn swap(
        &self,
        state: &mut State,
        generation: u64,
        files: &mut Option<Files>,
    ) -> io::Result<Option<Files>> {
        if state.generation != generation {
            return Ok(None);
        }
        let shadow = state.devices.get_mut(&self.number).ok_or_else(gone)?;
        if !shadow.page.mappings.is_empty() {
            self.reopen(state);
            return Err(io::Error::other("what the guest has written cannot be brought into the old files"));
        }
        let old = files.take().map(|files| shadow.swap(files));
        self.reopen(state);
        Ok(old)
    }

    /// Have the worker open the device as it is now, with memory and queues.
    fn reopen(&self, state: &mut State) {
        let Some(shadow) = state.devices.get_mut(&self.number) else { return };
        shadow.switching = false;
        shadow.opened = None;
        let messages = shadow.snapshot(self.number);
        messages.into_iter().for_each(|message| state.tell(message));
    }
}

fn order(message: ToWorker) -> Outgoing {
    Outgoing { message, fds: Vec::new() }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the device has gone")
}
