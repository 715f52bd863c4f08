//! What is known of a worker, and what is still to be said to it.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde_json::Value;

use crate::config::DeviceConfig;
use crate::control::{NODES, ToWorker};
use crate::holder::reopen::Reopen;
use crate::holder::shadow::{Outgoing, Shadow};
use crate::shares::{ShareNode, Shares};

/// What the link's lock guards.
#[derive(Default)]
pub struct State {
    /// Devices by number.
    pub devices: BTreeMap<u32, Shadow>,
    /// Process id; 0 while none runs.
    pub pid: u32,
    /// How many workers there have been.
    pub generation: u64,
    pub(super) outbox: VecDeque<Outgoing>,
    /// Answers nobody has picked up: serial to the index of the available ring.
    pub(super) answers: HashMap<u64, u16>,
    /// States of the arbiter: parts that have come, and whether those are all. Of requests that somebody waits for.
    pub(super) reports: HashMap<u64, (Vec<Value>, bool)>,
    /// What somebody asks while there is no worker, by serial.
    pub(super) early: Vec<(u64, Outgoing)>,
    pub(super) shares: Shares,
    /// Devices that the worker could not open, though another could before.
    pub reopen: Reopen,
    pub(super) serial: u64,
    pub(super) ending: bool,
}

impl State {
    /// Queue a message for the worker, unless it is about a device that will be opened anew with all there is to say.
    pub fn tell(&mut self, outgoing: Outgoing) {
        let shadow = outgoing.message.device().and_then(|device| self.devices.get(&device));
        if !shadow.is_some_and(|shadow| shadow.switching) {
            self.say(outgoing);
        }
    }

    /// Queue a message for the worker.
    pub fn say(&mut self, outgoing: Outgoing) {
        // Without a worker there is nobody to tell: the next one gets a snapshot.
        if self.pid != 0 {
            self.outbox.push_back(outgoing);
        }
    }

    /// Have the worker, and those after it, share by `nodes`, which have been checked.
    pub fn set_shares(&mut self, nodes: &[ShareNode]) {
        if self.shares.set(nodes).is_ok() {
            share_messages(nodes).for_each(|message| self.tell(message));
        }
    }

    /// A worker is new: all that is known of shares is to be said to it.
    pub(super) fn begin(&mut self) {
        let shares: Vec<ShareNode> = self.shares.nodes().cloned().collect();
        self.outbox = share_messages(&shares).collect();
    }

    /// Queue a question, for the next worker if there is none now.
    pub(super) fn ask(&mut self, serial: u64, question: Outgoing) {
        self.reports.insert(serial, (Vec::new(), false));
        if self.pid == 0 { self.early.push((serial, question)) } else { self.tell(question) }
    }

    /// The questions that a new worker is to be asked.
    pub(super) fn ask_early(&mut self) {
        let early = std::mem::take(&mut self.early);
        let awaited = early.into_iter().filter(|(serial, _)| self.reports.contains_key(serial));
        self.outbox.extend(awaited.map(|(_, question)| question));
    }

    /// Whether it serves disks or networks, which are what there is to arbitrate.
    pub fn has_arbiter(&self) -> bool {
        use DeviceConfig::{Blk, Copy, Net, Uplink};
        let mut configs = self.devices.values().map(|shadow| &shadow.config);
        configs.any(|config| matches!(config, Blk(_) | Copy(_) | Net(_) | Uplink(_)))
    }

    /// A number for a request that will be answered.
    pub fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}

fn share_messages(nodes: &[ShareNode]) -> impl Iterator<Item = Outgoing> {
    nodes.chunks(NODES).map(|nodes| {
        let message = ToWorker::Shares { nodes: nodes.to_vec() };
        Outgoing { message, fds: Vec::new() }
    })
}

/// Ask the worker to stop `queue` of `device`; the serial of the answer, or `None` if it does not run.
pub fn ask_to_stop(state: &mut State, device: u32, queue: u16) -> Option<u64> {
    let serial = state.next_serial();
    let running = state.devices.get_mut(&device)?.queues.get_mut(&queue)?;
    if let Some(earlier) = running.stopping {
        return Some(earlier);
    }
    running.stopping = Some(serial);
    state.tell(Outgoing { message: ToWorker::Stop { device, queue, serial }, fds: Vec::new() });
    Some(serial)
}

/// Ask the worker to forget `device`; the serial of the answer.
pub fn ask_to_close(state: &mut State, device: u32) -> Option<u64> {
    let serial = state.next_serial();
    state.devices.get_mut(&device)?.closing = Some(serial);
    state.tell(Outgoing { message: ToWorker::Close { device, serial }, fds: Vec::new() });
    Some(serial)
}
