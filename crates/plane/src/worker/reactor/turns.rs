//! Disks take turns: what the arbiter says goes, and when it has more to say.

use std::time::Duration;

use io_uring::opcode;
use io_uring::types::Timespec;
use serde_json::{Value, json};

use super::Reactor;
use crate::arbiter::Leaf;
use crate::block::device::BATCH;
use crate::clock;
use crate::config::DeviceConfig;
use crate::control::{FromWorker, NODES, PATTERNS};
use crate::uring::Uring;
use crate::worker::device::{IGNORED, Kind, Peers, Token};

/// How often the holder is told who waited for whom, while anything happens.
static PERIOD: Timespec = Timespec::new().sec(1);

/// Value of the token of that timeout, whose kind is that of the holder's socket.
pub(super) const REPORT: u16 = 1;

/// Messages that the holder has not taken; with more there is no use in another.
const BACKLOG: usize = 64;

impl Reactor {
    /// Start the requests whose turn it is.
    pub(super) fn admit(&mut self) {
        self.release_frames();
        while let Some(ticket) = self.sharing.arbiter.next(self.now) {
            let token = Token::unpack(ticket);
            if self.is_current(token) {
                self.with(token.slot, |device, context| device.admitted(context, token.value));
            }
            // If the ring is broken, the next turn ends the worker.
            let _ = self.uring.submit_batch(BATCH);
        }
    }

    /// Pass on the frames whose turn it is.
    fn release_frames(&mut self) {
        for network in self.networks.all() {
            let mut network = network.borrow_mut();
            if network.has_waiting() {
                let peers =
                    &mut Peers { before: &mut self.devices, after: &mut [], effects: &mut self.effects };
                network.release(self.now, &self.uring, peers);
            }
        }
        self.spread();
    }

    /// The device at `slot` has worked: if something may wait since then, the holder will be told for whom.
    pub(super) fn note_waits(&mut self, slot: u16) {
        let entry = self.devices.get(usize::from(slot)).and_then(Option::as_ref);
        let is_disk = entry.is_some_and(|entry| entry.disk.is_some());
        if !self.reporting && (is_disk || self.networks.all().any(|network| network.borrow().has_waiting())) {
            self.reporting = report_later(&self.uring);
        }
    }

    /// How long until an arbiter lets go what waits for a time and not for a completion, or a guest is to be interrupted.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let networks = self.networks.all().filter_map(|network| network.borrow().wake_at(self.now));
        let at = networks.chain(self.sharing.arbiter.wake_at(self.now)).chain(self.next_call()).min()?;
        Some(Duration::from_nanos(at.saturating_sub(clock::now())))
    }

    /// Tell the holder who waited for whom, and which objectives are met or missed now.
    pub(super) fn report_waits(&mut self) {
        self.reporting = false;
        for change in self.sharing.arbiter.take_changes() {
            self.outbox.push_back(FromWorker::Objective { id: change.id, met: change.met });
        }
        let mut rows = self.sharing.arbiter.take_waits(self.now);
        for network in self.networks.all() {
            rows.extend(network.borrow_mut().take_waits(self.now));
        }
        if !rows.is_empty() && self.outbox.len() < BACKLOG {
            self.outbox.push_back(FromWorker::Waits { rows: json!(rows) });
        }
    }

    /// Where the arbiter knows the requests of a device, if it is a disk or works on disks.
    pub(super) fn join(&mut self, config: &DeviceConfig) -> Option<Leaf> {
        match config {
            DeviceConfig::Blk(blk) if blk.arbitrated => {}
            DeviceConfig::Copy(_) => {}
            _ => return None,
        }
        let joined = self.sharing.join(self.now, config.id());
        joined.inspect_err(|error| eprintln!("plane worker: {}: {error}", config.id())).ok()
    }

    /// Tell the holder the state of the arbiter.
    pub(super) fn tell_arbiter(&mut self, serial: u64) {
        let network = self.networks.all().next().map(|network| network.borrow().stats(self.now));
        let resource = if network.is_some() { "network" } else { "disk" };
        let mut status = json!(network.unwrap_or_else(|| self.sharing.arbiter.stats(self.now)));
        status["resource"] = resource.into();
        let mut nodes = status["nodes"].as_array_mut().map(std::mem::take).unwrap_or_default();
        loop {
            let rest = nodes.split_off(nodes.len().min(NODES));
            status["nodes"] = nodes.into();
            let last = rest.is_empty();
            self.outbox.push_back(FromWorker::Arbiter { serial, status: status.clone(), last });
            if last {
                return;
            }
            nodes = rest;
        }
    }

    /// Tell the holder what is asked of the device: how it answers first, then some patterns at a time.
    pub(super) fn tell_demand(&mut self, anew: bool, serial: u64) {
        let demand = self.sharing.arbiter.demand(self.now, anew);
        let patterns = demand.patterns.chunks(PATTERNS).map(|some| json!({"patterns": some}));
        let mut parts: Vec<Value> = std::iter::once(json!({"cells": demand.cells})).chain(patterns).collect();
        let end = parts.pop();
        for (status, last) in parts.into_iter().map(|part| (part, false)).chain(end.map(|part| (part, true)))
        {
            self.outbox.push_back(FromWorker::Arbiter { serial, status, last });
        }
    }
}

/// Have the ring say when the next report is due. A timeout of every sleep would cost more than one a second.
fn report_later(uring: &Uring) -> bool {
    let token = Token { kind: Kind::Control, value: REPORT, ..IGNORED };
    // SAFETY: the time is static.
    unsafe { uring.push(opcode::Timeout::new(&PERIOD).build().user_data(token.pack())) };
    true
}
