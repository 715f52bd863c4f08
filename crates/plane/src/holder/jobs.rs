//! Host work on disks, and uplinks: like devices of a worker, but no frontend connects to them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::config::DeviceConfig;
use crate::holder::events::lock;
use crate::holder::shadow::Shadow;
use crate::holder::{PATIENCE, Plane, PlaneError};
use crate::page::Shared;
use crate::scm::MAX_FDS;

impl Plane {
    /// Begin a job: `fds` are those of its configuration. Its end is told by the event `JOB_ENDED`; until
    /// [`job_end`](Self::job_end) it is kept, and begun again where it was if its worker dies.
    ///
    /// # Errors
    /// A wrong configuration, a name that is taken, images that cannot be opened, or what the kernel says.
    pub fn job_start(&self, json: &str, fds: Vec<OwnedFd>) -> Result<(), PlaneError> {
        let config = DeviceConfig::parse(json).map_err(PlaneError::Config)?;
        if !matches!(config, DeviceConfig::Copy(_)) {
            return Err(PlaneError::Config(format!("{} is a device and no job", config.id())));
        }
        self.attend(config, fds)
    }

    /// Give the worker something that no frontend connects to.
    pub(super) fn attend(&self, config: DeviceConfig, fds: Vec<OwnedFd>) -> Result<(), PlaneError> {
        let expected = config.backend_fds();
        if fds.len() != expected || expected > MAX_FDS {
            let reason = format!("{} fds for {}, needs {expected}", fds.len(), config.id());
            return Err(PlaneError::Config(reason));
        }
        let (id, worker) = (config.id().to_owned(), config.worker().to_owned());
        let shadow = Shadow::new(config, Arc::new(Shared::create()?), fds)?;
        let resource = shadow.config.resource();
        let undo = self.share(resource, shadow.config.shares())?;
        let reserved = self.reserve(&id, (&worker, resource));
        let (link, number) = match reserved {
            Ok(reserved) => reserved,
            Err(error) => return self.share(resource, &undo).and(Err(error)),
        };
        link.change(|state| {
            state.tell(shadow.open_message(number));
            state.devices.insert(number, shadow);
        });
        let opened = link.wait_opened(number, PATIENCE);
        let mut inner = lock(&self.inner);
        if opened.is_ok() {
            inner.reserved.remove(&id);
            inner.jobs.insert(id, (link, number));
            return Ok(());
        }
        drop(inner);
        self.share(resource, &undo)?;
        self.forget(&id, &link, number)?;
        Ok(opened?)
    }

    /// Forget a job, wherever it is: what it has under way is finished, the rest is not begun.
    ///
    /// # Errors
    /// If there is no such job, or it does not come to an end.
    pub fn job_end(&self, id: &str) -> Result<(), PlaneError> {
        let (link, number) = {
            let mut inner = lock(&self.inner);
            let job = inner.jobs.remove(id).ok_or_else(|| PlaneError::NoDevice(id.to_owned()))?;
            inner.reserved.insert(id.to_owned(), job.0.name.clone());
            job
        };
        Ok(self.forget(id, &link, number)?)
    }
}
