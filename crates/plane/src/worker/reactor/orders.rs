//! What the holder asks of a worker, carried out.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use serde_json::Value;

use super::Reactor;
use crate::block::faults::FaultPlan;
use crate::control::{FromWorker, QueueSetup, Region, ToWorker};
use crate::memory::Memory;
use crate::net::order::Order;
use crate::worker::device::{EPOCHS, Kind, Token};
use crate::worker::entry::Entry;
use crate::worker::queue::{Violation, VirtQueue};

impl Reactor {
    /// Carry out `message`.
    pub fn obey(&mut self, message: ToWorker, fds: Vec<OwnedFd>) {
        match message {
            ToWorker::Open { device, config } => {
                self.epoch = (self.epoch + 1) % EPOCHS;
                let leaf = self.join(&config);
                let places = (&mut self.models, &mut self.networks);
                let opened = Entry::open((&self.uring, places), (device, self.epoch), leaf, &config, fds);
                let error = opened.as_ref().err().map(ToString::to_string);
                self.outbox.push_back(FromWorker::Opened { device, error });
                match opened {
                    Ok(entry) => self.insert(entry),
                    Err(_) => self.sharing.leave(self.now, config.id()),
                }
            }
            ToWorker::Faults { device, plan, serial } => {
                self.set_faults(device, plan);
                self.outbox.push_back(FromWorker::FaultsSet { serial });
            }
            ToWorker::Port { device, order, serial } => {
                let answer = self.order(device, order, fds);
                self.outbox.push_back(FromWorker::Port { serial, answer });
            }
            ToWorker::StatsPeriod { device, stats_ms } => {
                if let Some(&slot) = self.slots.get(&device) {
                    self.with(slot, |device, context| device.set_stats_period(context, stats_ms));
                }
            }
            ToWorker::Memory { device, regions } => self.set_memory(device, &regions, fds),
            ToWorker::Queue { device, setup } => self.start(device, &setup, fds),
            ToWorker::Stop { device, queue, serial } => self.stop(device, queue, serial),
            ToWorker::Close { device, serial } => self.close(device, serial),
            // A worker serves disks or networks.
            ToWorker::Shares { nodes } => {
                self.sharing.set(self.now, &nodes);
                self.networks.set_shares(self.now, &nodes);
            }
            ToWorker::Ping => self.outbox.push_back(FromWorker::Pong),
            ToWorker::QueryArbiter { serial } => self.tell_arbiter(serial),
            ToWorker::QueryDemand { anew, serial } => self.tell_demand(anew, serial),
        }
    }

    fn insert(&mut self, entry: Entry) {
        let slot = self.devices.iter().position(Option::is_none).unwrap_or(self.devices.len());
        self.slots.insert(entry.number, slot as u16);
        if slot == self.devices.len() {
            self.devices.push(Some(entry));
        } else {
            self.devices[slot] = Some(entry);
        }
        self.with(slot as u16, |device, context| device.opened(context));
    }

    fn set_faults(&mut self, device: u32, plan: Option<FaultPlan>) {
        let Some(&slot) = self.slots.get(&device) else { return };
        self.with(slot, |device, context| device.set_faults(context, plan));
    }

    fn order(&mut self, device: u32, order: Order, fds: Vec<OwnedFd>) -> Value {
        let Some(&slot) = self.slots.get(&device) else { return Value::Null };
        let answer = self.with(slot, |device, context| device.order(context, order, fds.into_iter().next()));
        answer.unwrap_or_default()
    }

    fn set_memory(&mut self, device: u32, regions: &[Region], fds: Vec<OwnedFd>) {
        let Some((slot, entry)) = self.entry(device) else { return };
        if regions.is_empty() {
            return entry.drop_memory();
        }
        match Memory::map(regions, fds) {
            Ok(memory) => {
                for index in entry.set_memory(memory) {
                    self.fail(
                        slot,
                        index,
                        &Violation::new("ring-address", "the rings are outside guest memory"),
                    );
                }
            }
            Err(error) => self.report(device, None, "memory-table", &error.to_string()),
        }
    }

    fn start(&mut self, device: u32, setup: &QueueSetup, fds: Vec<OwnedFd>) {
        self.epoch = (self.epoch + 1) % EPOCHS;
        let epoch = self.epoch;
        let Some(&slot) = self.slots.get(&device) else { return };
        if self.queue(slot, setup.index).is_some() {
            return self.update(slot, setup, fds);
        }
        let Some((slot, entry)) = self.entry(device) else { return };
        let Some(place) = entry.queues.get_mut(usize::from(setup.index)) else { return };
        let memory = entry.memory.clone();
        let started = memory
            .ok_or_else(|| io::Error::other("no guest memory"))
            .and_then(|memory| VirtQueue::start(setup, memory, fds, epoch));
        match started {
            Ok(queue) => {
                let kick = queue.kick().as_raw_fd();
                *place = Some(queue);
                self.poll(kick, Token { kind: Kind::Kick, epoch, slot, value: setup.index });
                // Requests may have been waiting since before we looked: no kick will come for them.
                self.wake(slot, setup.index);
                self.touch(slot);
            }
            Err(error) => self.report(device, Some(setup.index), "queue", &error.to_string()),
        }
    }

    /// The driver wants its interrupts elsewhere.
    fn update(&mut self, slot: u16, setup: &QueueSetup, fds: Vec<OwnedFd>) {
        self.let_go_of_fds(slot, setup.index);
        self.epoch = (self.epoch + 1) % EPOCHS;
        let epoch = self.epoch;
        let Some(queue) = self.queue(slot, setup.index) else { return };
        queue.update(setup, fds, epoch);
        let kick = queue.kick().as_raw_fd();
        self.poll(kick, Token { kind: Kind::Kick, epoch, slot, value: setup.index });
        self.touch(slot);
    }

    fn stop(&mut self, device: u32, index: u16, serial: u64) {
        let Some((slot, entry)) = self.entry(device) else {
            return self.outbox.push_back(FromWorker::Stopped { serial, base: 0 });
        };
        let Some(queue) = entry.queues.get_mut(usize::from(index)).and_then(Option::as_mut) else {
            return self.outbox.push_back(FromWorker::Stopped { serial, base: 0 });
        };
        queue.stopping = Some(serial);
        self.with(slot, |device, context| device.stopping(context, index));
        // Chains of a crashed worker are still to be taken.
        self.wake(slot, index);
    }

    fn close(&mut self, device: u32, serial: u64) {
        let Some(slot) = self.slots.remove(&device) else {
            return self.outbox.push_back(FromWorker::Closed { serial });
        };
        self.with(slot, |device, context| device.closing(context));
        if let Some(entry) = self.devices[usize::from(slot)].as_mut() {
            entry.closing = Some(serial);
        }
        self.finish_close(slot);
    }

    /// Drop a device that is to be closed, as soon as the kernel has let go of what it has.
    pub(super) fn finish_close(&mut self, slot: u16) {
        let Some(entry) =
            self.devices[usize::from(slot)].take_if(|entry| entry.closing.is_some() && entry.is_idle())
        else {
            return;
        };
        self.taken -= entry.seen_taken;
        self.threaded -= if entry.threaded { entry.seen_taken } else { 0 };
        if let Some(disk) = &entry.disk {
            self.sharing.leave(self.now, disk);
        }
        // What names the device's fds must be with the kernel before they are closed. If it cannot be, the
        // next turn ends the worker.
        let _ = self.uring.submit();
        if let Some(serial) = entry.closing {
            self.outbox.push_back(FromWorker::Closed { serial });
        }
    }
}
