//! Interrupts: at the end of a turn, and of queues whose drivers are in no hurry a while later.

use super::Reactor;
use crate::clock::Nanos;
use crate::worker::device::{Kind, Token};

impl Reactor {
    /// Interrupt the guests of the devices that have worked, and those whose time has come.
    pub(super) fn announce(&mut self) {
        let now = self.now;
        while let Some(place) = self.deferred.iter().position(|(at, _)| *at <= now) {
            let (_, slot) = self.deferred.swap_remove(place);
            self.touch(slot);
        }
        let mut touched = std::mem::take(&mut self.touched);
        for slot in touched.drain(..) {
            self.deferred.retain(|(_, other)| *other != slot);
            let later = self.announce_device(slot);
            self.deferred.extend(later.map(|at| (at, slot)));
            self.finish_stops(slot);
            self.finish_close(slot);
        }
        self.touched = touched;
    }

    /// When the first interrupt is due that waits.
    pub(super) fn next_call(&self) -> Option<Nanos> {
        self.deferred.iter().map(|(at, _)| *at).min()
    }

    /// Interrupt the guest of the device at `slot`, as far as it is due; when there is more to do, if there is.
    fn announce_device(&mut self, slot: u16) -> Option<Nanos> {
        let entry = self.devices[usize::from(slot)].as_mut()?;
        entry.touched = false;
        let mut later = None;
        for (index, queue) in entry.queues.iter_mut().enumerate() {
            let Some(queue) = queue else { continue };
            if let Some(at) = queue.defers(self.now) {
                later = later.into_iter().chain([at]).min();
                continue;
            }
            let token = Token { kind: Kind::Call, epoch: queue.epoch, slot, value: index as u16 };
            queue.announce(&self.uring, token.pack());
        }
        later
    }
}
