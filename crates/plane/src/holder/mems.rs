//! Memory that guests plug, as `set-memory` and `query-memory` know it.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use crate::config::DeviceConfig;
use crate::holder::events::lock;
use crate::holder::session::Session;
use crate::holder::shadow::Shadow;
use crate::holder::{Plane, PlaneError};
use crate::mem;

impl Plane {
    /// Ask the guest to have `requested` bytes plugged. It may take its time, or not do it at all.
    ///
    /// # Errors
    /// If there is no such device, or it cannot have so many bytes.
    pub fn set_memory(&self, id: &str, requested: u64) -> Result<(), PlaneError> {
        let inner = lock(&self.inner);
        let device = inner.devices.get(id).ok_or_else(|| PlaneError::NoDevice(id.to_owned()))?;
        device.link.change(|state| {
            let shadow = state.devices.get_mut(&device.number);
            let shadow = shadow.ok_or_else(|| PlaneError::NoDevice(id.to_owned()))?;
            let DeviceConfig::Mem(mem) = &mut shadow.config else {
                return Err(PlaneError::Config(format!("device {id} plugs no memory")));
            };
            mem.check_requested(requested).map_err(PlaneError::Config)?;
            mem.requested = requested;
            shadow.page.mem.requested.store(requested, Relaxed);
            Ok(())
        })?;
        device.reconfigure(device.config_space());
        Ok(())
    }

    /// All devices that plug memory, as JSON, see `_core.pyi`.
    pub fn query_memory(&self) -> String {
        let inner = lock(&self.inner);
        let links = inner.links.values().map(|(link, _)| link);
        let rows =
            links.flat_map(|link| link.state().devices.values().filter_map(describe).collect::<Vec<_>>());
        Value::from_iter(rows).to_string()
    }
}

impl Session {
    /// The configuration space as it is now.
    pub fn config_space(&self) -> Vec<u8> {
        let state = self.link.state();
        match state.devices.get(&self.device).map(|shadow| (&shadow.config, &shadow.page.mem)) {
            Some((DeviceConfig::Mem(config), mem)) => {
                mem::config_space(config, mem.requested.load(Relaxed), mem.plugged_bytes(config))
            }
            _ => lock(&self.offer.config).clone(),
        }
    }
}

fn describe(shadow: &Shadow) -> Option<Value> {
    let DeviceConfig::Mem(config) = &shadow.config else { return None };
    Some(json!({
        "id": config.id,
        "start": config.start,
        "size": config.size,
        "block": config.block(),
        "requested": config.requested,
        "plugged": shadow.page.mem.plugged_bytes(config),
        "connected": shadow.connected,
    }))
}
