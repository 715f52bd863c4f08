//! The switch: where a frame goes, what of it must not go there, and why.
//!
//! Pure: time is an argument, nothing is read or written, and what guests send cannot make it keep more than a bound.
//!
//! - [`rules`]: what a port may do; [`reason`]: why a frame was dropped;
//! - [`fdb`]: which address is at which port.

pub mod fdb;
pub mod reason;
pub mod rules;

use crate::clock::Nanos;
use fdb::{Fdb, GUEST_ADDRESSES, Learnt, Mac, UPLINK_ADDRESSES};
pub use reason::{DropReason, Drops};
pub use rules::{PortKind, Rules};

/// A port: a small number that the caller chooses, below [`MAX_PORTS`]; free again after [`Switch::remove_port`].
pub type PortId = u32;

/// Most ports of a switch.
pub const MAX_PORTS: u32 = 4096;

/// How much of a frame is looked at. The longest headers that a guest needs: Ethernet with a tag (18), IPv6 (40) with 40 of
/// extensions, an ICMPv6 error (8) with the headers that it is about (40 + 8); and all of an ordinary neighbour discovery.
pub const HEADER: usize = 192;

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
}

/// A switch with its ports.
#[derive(Default)]
pub struct Switch {
    ports: Vec<Option<Port>>,
    fdb: Fdb,
}

struct Port {
    kind: PortKind,
    mac: Option<Mac>,
    rules: Rules,
    drops: Drops,
    /// Addresses learnt from it.
    learnt: u32,
}

impl Switch {
    /// Without ports.
    pub fn new() -> Switch {
        Switch::default()
    }

    /// A port comes. `mac` is a guest's own address, from which alone it may send unless its rules say otherwise.
    ///
    /// # Errors
    /// If the number is taken or too large, or the rules are out of bounds.
    pub fn add_port(
        &mut self,
        id: PortId,
        kind: PortKind,
        mac: Option<Mac>,
        rules: Rules,
    ) -> Result<(), String> {
        rules.check()?;
        if id >= MAX_PORTS || self.port(id).is_some() {
            return Err(format!("port {id} exists, or is not below {MAX_PORTS}"));
        }
        let place = id as usize;
        if self.ports.len() <= place {
            self.ports.resize_with(place + 1, || None);
        }
        self.ports[place] = Some(Port { kind, mac, rules, drops: Drops::default(), learnt: 0 });
        self.fix(id);
        Ok(())
    }

    /// A port goes, with all that was learnt from it.
    pub fn remove_port(&mut self, id: PortId) {
        self.fdb.forget(id);
        if let Some(port) = self.ports.get_mut(id as usize) {
            *port = None;
        }
    }

    /// New rules for a port, from the next frame on.
    ///
    /// # Errors
    /// If there is no such port, or the rules are out of bounds.
    pub fn set_rules(&mut self, id: PortId, rules: Rules) -> Result<(), String> {
        rules.check()?;
        let port = self.port_mut(id).ok_or_else(|| format!("there is no port {id}"))?;
        port.rules = rules;
        port.learnt = 0;
        self.fdb.forget(id);
        self.fix(id);
        Ok(())
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
        let verdict = self.forward(now, from, header, length, out);
        if let Err(reason) = verdict {
            self.count(from, reason, segments);
        }
        verdict
    }

    /// Count what the caller dropped.
    pub fn count(&mut self, id: PortId, reason: DropReason, frames: u32) {
        if let Some(port) = self.port_mut(id) {
            port.drops.add(reason, frames);
        }
    }

    /// What was dropped at a port.
    pub fn drops(&self, id: PortId) -> Option<&Drops> {
        self.port(id).map(|port| &port.drops)
    }

    /// Addresses learnt from a port.
    pub fn learnt(&self, id: PortId) -> u32 {
        self.port(id).map_or(0, |port| port.learnt)
    }

    fn forward(
        &mut self,
        now: Nanos,
        from: PortId,
        header: &mut [u8],
        length: usize,
        out: &mut Vec<Delivery>,
    ) -> Result<Verdict, DropReason> {
        let Some((addresses, _)) = header.split_first_chunk::<12>() else {
            return Err(DropReason::Malformed);
        };
        let (destination, source) = addresses.split_at(6);
        let (destination, source) = (Mac::try_from(destination), Mac::try_from(source));
        let (Ok(destination), Ok(source)) = (destination, source) else { return Err(DropReason::Malformed) };
        if length < header.len() || source[0] & 1 != 0 {
            return Err(DropReason::Malformed);
        }
        self.learn(now, from, &source)?;
        let place = if destination[0] & 1 == 0 { self.fdb.find(now, 0, &destination) } else { None };
        let delivery = |port| Delivery { port, tag: Tag::Keep, delay: 0 };
        match place {
            Some(place) if place.port == from => return Err(DropReason::Hairpin),
            Some(place) => out.push(delivery(place.port)),
            None => {
                let others = self.ports.iter().enumerate().filter(|(_, port)| port.is_some());
                out.extend(others.map(|(id, _)| id as PortId).filter(|id| *id != from).map(delivery));
            }
        }
        Ok(Verdict { flow: 0 })
    }

    fn learn(&mut self, now: Nanos, from: PortId, source: &Mac) -> Result<(), DropReason> {
        let Some(port) = self.port(from) else { return Err(DropReason::LinkDown) };
        if port.kind == PortKind::Guest && !port.rules.spoof {
            return if port.mac == Some(*source) { Ok(()) } else { Err(DropReason::MacSpoof) };
        }
        let most = if port.kind == PortKind::Uplink { UPLINK_ADDRESSES } else { GUEST_ADDRESSES };
        let room = port.learnt < most;
        let (kind, ports) = (port.kind, &self.ports);
        let may_move = |other: PortId| {
            let other = ports.get(other as usize).and_then(Option::as_ref);
            kind == PortKind::Uplink || other.is_none_or(|other| other.kind == PortKind::Guest)
        };
        let (learnt, lost) = self.fdb.learn(now, (0, source), from, may_move, room);
        if let Some(loser) = lost.and_then(|id| self.port_mut(id)) {
            loser.learnt = loser.learnt.saturating_sub(1);
        }
        match learnt {
            Learnt::Known => Ok(()),
            Learnt::New => {
                if let Some(port) = self.port_mut(from) {
                    port.learnt += 1;
                }
                Ok(())
            }
            Learnt::Full => {
                let ports = &mut self.ports;
                self.fdb.sweep(now, |id| {
                    if let Some(Some(port)) = ports.get_mut(id as usize) {
                        port.learnt = port.learnt.saturating_sub(1);
                    }
                });
                Ok(())
            }
            Learnt::Taken => Err(DropReason::MacInUse),
        }
    }

    /// A guest's own address is known before it speaks.
    fn fix(&mut self, id: PortId) {
        let Some(port) = self.port(id) else { return };
        if let (PortKind::Guest, Some(mac)) = (port.kind, port.mac) {
            self.fdb.fix(0, &mac, id);
        }
    }

    fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id as usize)?.as_ref()
    }

    fn port_mut(&mut self, id: PortId) -> Option<&mut Port> {
        self.ports.get_mut(id as usize)?.as_mut()
    }
}

#[cfg(test)]
mod tests;
