//! The switch: where a frame goes, what of it must not go there, and why.
//!
//! Pure: time is an argument, nothing is read or written, and what guests send cannot make it keep more than a bound.
//!
//! - [`rules`]: what a port may do; [`port`]: what that means for each frame; [`reason`]: why a frame was dropped;
//! - [`frame`]: headers, parsed once; [`guard`]: who a guest may say it is; [`storm`]: how much it may send to many;
//! - [`fdb`]: which address is at which port; [`forward`]: where a frame goes;
//! - [`private`]: ways out of one machine alone;
//! - [`run`]: frames that share a decision; [`security`]: which connections are allowed; [`track`]: those that there are; [`fragments`]: packets in parts;
//! - [`faults`]: a link that is bad on purpose; [`keyed`]: hashes that guests cannot guess.

pub mod faults;
pub mod fdb;
mod forward;
mod fragments;
pub mod frame;
mod guard;
pub mod keyed;
pub mod port;
mod private;
pub mod reason;
pub mod rules;
mod run;
mod security;
mod storm;
pub mod track;

use crate::clock::Nanos;
use faults::Faults;
use fdb::{Fdb, Mac};
use frame::Address;
use keyed::Keyed;
use port::{OBSERVED, Port};
pub use reason::{DropReason, Drops};
pub use rules::{PortKind, Rules};
use run::Run;
use track::Entry;

/// A port: a small number that the caller chooses, below [`MAX_PORTS`]; free again after [`Switch::remove_port`].
pub type PortId = u32;

/// Most ports of a switch.
pub const MAX_PORTS: u32 = 4096;

/// How much of a frame is looked at. The longest headers that a guest needs: Ethernet with a tag (18), IPv6 (40) with 40 of
/// extensions, an ICMPv6 error (8) with the headers that it is about (40 + 8); and all of an ordinary neighbour discovery.
pub const HEADER: usize = 192;

/// Most link-local addresses of uplinks that are known.
const UPLINK_LOCALS: usize = 32;

/// What becomes of a frame's VLAN tag on the way to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// It stays as it is in the header.
    Keep,
    /// The four bytes at offset 12 go.
    Strip,
    /// Four bytes come in at offset 12: 0x8100 and this, big-endian.
    Add(u16),
}

/// A port that gets the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Which.
    pub port: PortId,
    /// What becomes of its tag.
    pub tag: Tag,
    /// How long it is to be held before, ns; 0 but for faults on purpose.
    pub delay: Nanos,
}

/// What was found out of a frame that goes somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The same for all frames of a connection, in both directions: for queues, and for being fair among them.
    pub flow: u32,
    /// If it is an IP packet.
    pub ip: Option<Ip>,
}

/// An IP packet, as far as it concerns what is left to be done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// IPv4 or IPv6.
    pub v4: bool,
    /// Of the upper layer.
    pub protocol: u8,
    /// Where the upper layer begins in the frame.
    pub upper: usize,
    /// It is a part of a packet.
    pub fragment: bool,
}

/// A switch with its ports.
#[derive(Default)]
pub struct Switch {
    ports: Vec<Option<Port>>,
    fdb: Fdb,
    keyed: Keyed,
    /// Link-local addresses of the host and what is beyond, which guests cannot have.
    uplink_locals: [Address; UPLINK_LOCALS],
    next_local: usize,
    /// Of all rules together: what they allowed before is looked at again.
    generation: u32,
    /// Until when connections may be older than the switch.
    resumed: Nanos,
    /// The last decision, if the next frame may share it.
    run: Option<Run>,
}

impl Switch {
    /// Without ports.
    pub fn new() -> Switch {
        Switch::default()
    }

    /// Until `until`, accept answers to connections that a switch before this one knew: those that the rows would have allowed.
    pub fn resume(&mut self, until: Nanos) {
        self.end_run();
        self.resumed = until;
    }

    /// A port comes. `mac` is a guest's own address, from which alone it may send unless its rules say otherwise.
    ///
    /// # Errors
    /// If the number is taken or too large, another port has the address, or the rules are out of bounds.
    pub fn add_port(
        &mut self,
        id: PortId,
        kind: PortKind,
        mac: Option<Mac>,
        rules: Rules,
    ) -> Result<(), String> {
        rules.check()?;
        self.end_run();
        if id >= MAX_PORTS || self.port(id).is_some() {
            return Err(format!("port {id} exists, or is not below {MAX_PORTS}"));
        }
        if let Some(mac) = mac.filter(|_| kind == PortKind::Guest) {
            if mac[0] & 1 != 0 || mac == [0; 6] {
                return Err("the MAC address is none of a machine".into());
            }
            if self.ports.iter().flatten().any(|port| port.mac == Some(mac)) {
                return Err("another port has the MAC address".into());
            }
        }
        let place = id as usize;
        if self.ports.len() <= place {
            self.ports.resize_with(place + 1, || None);
        }
        self.ports[place] = Some(Port::new(kind, mac, rules));
        self.generation = self.generation.wrapping_add(1);
        self.fix(id);
        Ok(())
    }

    /// A port goes, with all that was learnt from it.
    pub fn remove_port(&mut self, id: PortId) {
        self.end_run();
        self.fdb.forget(id);
        self.generation = self.generation.wrapping_add(1);
        let gone = self.ports.get_mut(id as usize).and_then(Option::take);
        if let Some(other) = gone.and_then(|port| port.pair).and_then(|pair| self.port_mut(pair)) {
            other.pair = None;
        }
    }

    /// New rules for a port, from the next frame on. Connections that they do not allow end.
    ///
    /// # Errors
    /// If there is no such port, or the rules are out of bounds.
    pub fn set_rules(&mut self, id: PortId, rules: Rules) -> Result<(), String> {
        rules.check()?;
        self.end_run();
        let port = self.port_mut(id).ok_or_else(|| format!("there is no port {id}"))?;
        port.set_rules(rules);
        self.generation = self.generation.wrapping_add(1);
        self.fdb.forget(id);
        self.fix(id);
        Ok(())
    }

    /// The name of a port, for faults that part others from it and for ways out that are its alone.
    pub fn set_name(&mut self, id: PortId, name: &str) {
        self.end_run();
        if let Some(port) = self.port_mut(id) {
            port.name = name.to_owned();
        }
        let owned =
            |port: &Option<Port>| port.as_ref().is_some_and(|port| port.owner.as_deref() == Some(name));
        let uplink = self.ports.iter().position(owned);
        self.pair(Some(id), uplink.map(|place| place as PortId));
    }

    /// The uplink `id` is the way out of the guest `owner` alone. Its addresses are those that it answers for; nobody else has them.
    pub fn set_owner(&mut self, id: PortId, owner: &str) {
        self.end_run();
        let Some(uplink) = self.port_mut(id) else { return };
        uplink.owner = Some(owner.to_owned());
        let addresses = uplink.addresses.clone();
        for place in self.ports.iter_mut().flatten().flat_map(|port| port.locals.iter_mut()) {
            if addresses.contains(&place.0) {
                *place = (0, 0);
            }
        }
        let named = |port: &Option<Port>| {
            port.as_ref().is_some_and(|port| port.kind == PortKind::Guest && port.name == owner)
        };
        let guest = self.ports.iter().position(named);
        self.pair(guest.map(|place| place as PortId), Some(id));
    }

    fn pair(&mut self, guest: Option<PortId>, uplink: Option<PortId>) {
        if let (Some(guest), Some(uplink)) = (guest, uplink) {
            for (one, other) in [(guest, uplink), (uplink, guest)] {
                if let Some(port) = self.port_mut(one) {
                    port.pair = Some(other);
                }
            }
        }
    }

    /// Faults on purpose for a port; `None` ends them.
    pub fn set_faults(&mut self, id: PortId, faults: Option<Faults>) {
        self.end_run();
        if let Some(port) = self.port_mut(id) {
            port.faults = faults;
        }
    }

    /// Where a frame from `from` goes: appended to `out`, which may stay empty if each receiver refuses it. `header` is its
    /// first [`HEADER`] bytes, or all of a shorter one, copied out of the guest's memory: what is delivered must be this copy,
    /// as it is after the call. `length` is all of the frame, and it stands for `segments` on the wire.
    ///
    /// # Errors
    /// Why it goes nowhere; that is counted.
    pub fn decide(
        &mut self,
        now: Nanos,
        from: PortId,
        header: &mut [u8],
        length: usize,
        segments: u32,
        out: &mut Vec<Delivery>,
    ) -> Result<Verdict, DropReason> {
        let verdict = self.forward(now, from, header, (length, segments), out);
        if let Err(reason) = verdict {
            self.count(from, reason, segments);
        }
        verdict
    }

    /// Another number once ports or rules are others: what was decided before may be decided otherwise now.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Count what the caller dropped.
    pub fn count(&mut self, id: PortId, reason: DropReason, frames: u32) {
        if let Some(port) = self.port_mut(id) {
            port.drops.add(reason, frames);
        }
    }

    /// What a port is.
    pub fn kind(&self, id: PortId) -> Option<PortKind> {
        self.port(id).map(|port| port.kind)
    }

    /// What was dropped at a port.
    pub fn drops(&self, id: PortId) -> Option<&Drops> {
        self.port(id).map(|port| &port.drops)
    }

    /// Addresses learnt from a port.
    pub fn learnt(&self, id: PortId) -> u32 {
        self.port(id).map_or(0, |port| port.learnt)
    }

    /// The `limit` connections of a port with the most bytes. Of a port without security rules they are counted for a minute
    /// from this call on.
    pub fn flows(&mut self, now: Nanos, id: PortId, limit: usize) -> Vec<Entry> {
        self.end_run();
        let Some(port) = self.port_mut(id) else { return Vec::new() };
        port.observed = now + OBSERVED;
        let mut flows: Vec<Entry> = port.track.iter(now).filter(|entry| !entry.refused).copied().collect();
        flows.sort_unstable_by_key(|flow| std::cmp::Reverse(flow.bytes[0] + flow.bytes[1]));
        flows.truncate(limit);
        flows
    }

    /// A guest's own address is known before it speaks.
    fn fix(&mut self, id: PortId) {
        let Some(Some(port)) = self.ports.get(id as usize) else { return };
        if let (PortKind::Guest, Some(mac)) = (port.kind, port.mac) {
            for vlan in port.rules.trunk.iter().copied().chain([port.rules.vlan.unwrap_or(0)]) {
                self.fdb.fix(vlan, &mac, id);
            }
        }
    }

    fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id as usize)?.as_ref()
    }

    fn port_mut(&mut self, id: PortId) -> Option<&mut Port> {
        self.ports.get_mut(id as usize)?.as_mut()
    }
}
