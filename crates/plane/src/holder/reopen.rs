//! Devices that a worker's successor could not open, as on a host without space: tried again, for ever, as their guests
//! wait for it.

use std::time::{Duration, Instant};

use crate::holder::link::State;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(250);

/// The devices, and when they are tried again.
#[derive(Default)]
pub struct Reopen {
    due: Vec<(u32, Instant)>,
}

impl Reopen {
    /// Try `device` again after a pause.
    pub fn later(&mut self, device: u32) {
        self.due.push((device, Instant::now() + PAUSE));
    }

    /// How long there is nothing to do, `longest` at most.
    pub fn rest(&self, longest: Duration) -> Duration {
        let now = Instant::now();
        let waits = self.due.iter().map(|(_, due)| due.saturating_duration_since(now));
        waits.map(|wait| wait + Duration::from_millis(1)).fold(longest, Duration::min)
    }

    /// Forget them: another worker is told of all devices.
    pub fn clear(&mut self) {
        self.due.clear();
    }

    fn take(&mut self) -> Vec<u32> {
        let now = Instant::now();
        self.due.extract_if(.., |(_, due)| *due <= now).map(|(device, _)| device).collect()
    }
}

/// Tell the worker once more of the devices whose time has come.
pub fn retry(state: &mut State) {
    for device in state.reopen.take() {
        let messages = state.devices.get(&device).map(|shadow| shadow.snapshot(device)).unwrap_or_default();
        messages.into_iter().for_each(|message| state.tell(message));
    }
}
