//! What a worker says.

use std::sync::MutexGuard;

use serde_json::json;

use super::{Link, State};
use crate::config::DeviceConfig;
use crate::control::FromWorker;

impl Link {
    /// Take note of what the worker says, and tell those who wait for it.
    pub(super) fn hear(&self, message: FromWorker) {
        let mut state = self.state();
        match message {
            FromWorker::Opened { device, error } => self.opened(state, device, error),
            FromWorker::Space { device, enough } => {
                let Some(shadow) = state.devices.get_mut(&device) else { return };
                shadow.no_space = !enough;
                let event = if enough { "DEVICE_SPACE" } else { "DEVICE_NO_SPACE" };
                self.events.push(event, json!({"id": shadow.config.id()}));
            }
            FromWorker::FlushFailed { device, errno } => {
                let Some(shadow) = state.devices.get(&device) else { return };
                let data = json!({"id": shadow.config.id(), "errno": errno});
                self.events.push("DEVICE_FLUSH_FAILED", data);
            }
            FromWorker::Ended { device, errno } => {
                let Some(shadow) = state.devices.get(&device) else { return };
                let uplink = matches!(shadow.config, DeviceConfig::Uplink(_));
                let event = if uplink { "UPLINK_LOST" } else { "JOB_ENDED" };
                self.events.push(event, json!({"id": shadow.config.id(), "errno": errno}));
            }
            FromWorker::Stopped { serial, base } => {
                for shadow in state.devices.values_mut() {
                    shadow.queues.retain(|_, queue| queue.stopping != Some(serial));
                }
                state.answers.insert(serial, base);
                self.answered.notify_all();
            }
            FromWorker::Pong => {} // the watch has heard it
            FromWorker::FaultsSet { serial } => {
                state.answers.insert(serial, 0);
                self.answered.notify_all();
            }
            FromWorker::Closed { serial } => {
                state.devices.retain(|_, shadow| shadow.closing != Some(serial));
                state.answers.insert(serial, 0);
                self.answered.notify_all();
            }
            FromWorker::Arbiter { serial, status, last } => {
                // Nobody waits any more for an answer that came too late.
                let Some((parts, all)) = state.reports.get_mut(&serial) else { return };
                parts.push(status);
                *all = last;
                self.answered.notify_all();
            }
            FromWorker::Port { serial, answer } => {
                // One that was said again to a new worker is awaited by nobody.
                let Some((parts, all)) = state.reports.get_mut(&serial) else { return };
                parts.push(answer);
                *all = true;
                self.answered.notify_all();
            }
            FromWorker::Waits { rows } => {
                self.events.push("ARBITER_WAITS", json!({"worker": self.name, "rows": rows}));
            }
            FromWorker::Objective { id, met } => {
                self.events.push("ARBITER_OBJECTIVE", json!({"worker": self.name, "id": id, "met": met}));
            }
            FromWorker::Violation { device, queue, kind, detail } => {
                let Some(shadow) = state.devices.get_mut(&device) else { return };
                shadow.violated(&kind, &detail);
                let id = shadow.config.id().to_owned();
                let data = json!({"id": id, "queue": queue, "kind": kind, "detail": detail});
                self.events.push("DEVICE_VIOLATION", data);
            }
        }
    }

    fn opened(&self, mut state: MutexGuard<'_, State>, device: u32, error: Option<String>) {
        let Some(shadow) = state.devices.get_mut(&device) else { return };
        let (served, disk) = (shadow.opened == Some(Ok(())), matches!(shadow.config, DeviceConfig::Blk(_)));
        if let (Some(detail), true, true) = (&error, served, disk) {
            shadow.last_violation = Some(format!("it cannot be opened again: {detail}"));
            state.reopen.later(device);
            return;
        }
        if error.is_none() && std::mem::take(&mut shadow.no_space) {
            // If it has still to wait, the worker will say so.
            self.events.push("DEVICE_SPACE", json!({"id": shadow.config.id()}));
        }
        if let Some(detail) = &error {
            shadow.violated("open", detail);
            let data = json!({"id": shadow.config.id(), "queue": null, "kind": "open", "detail": detail});
            self.events.push("DEVICE_VIOLATION", data);
        }
        if error.is_some() && shadow.opened.is_some() && matches!(shadow.config, DeviceConfig::Copy(_)) {
            let data = json!({"id": shadow.config.id(), "errno": libc::EIO});
            self.events.push("JOB_ENDED", data);
        }
        shadow.opened = Some(error.map_or(Ok(()), Err));
        self.answered.notify_all();
    }
}
