//! Where a frame goes: admitted by its sender's port, looked up, and judged between the sender and each receiver.

use super::fdb::{GUEST_ADDRESSES, Learnt, Mac, UPLINK_ADDRESSES};
use super::frame::{Address, Frame, Network};
use super::guard::{self, Claim, is_local};
use super::port::Port;
use super::private;
use super::security::Passage;
use super::{Delivery, DropReason, HEADER, Ip, PortId, PortKind, Switch, Tag, Verdict};
use crate::clock::Nanos;
use crate::net::switch::faults::{Fate, Way};

/// To whom a frame is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    One(PortId),
    /// A group, or an address that nobody is known to have.
    Many {
        group: bool,
    },
}

impl Switch {
    /// [`Switch::decide`], without counting.
    pub(super) fn forward(
        &mut self,
        now: Nanos,
        from: PortId,
        header: &mut [u8],
        (length, segments): (usize, u32),
        out: &mut Vec<Delivery>,
    ) -> Result<Verdict, DropReason> {
        if header.len() < length.min(HEADER) || header.len() > length {
            return Err(DropReason::Malformed);
        }
        if let Some((delivery, verdict)) = self.continues(now, from, header, (length, segments)) {
            out.push(delivery);
            return Ok(verdict);
        }
        self.end_run();
        let frame = Frame::parse(header, length)?;
        let vlan = self.admit(now, from, header, &frame)?;
        if frame.tag == Some(0) {
            // A tag with only a priority says nothing about the VLAN; with one it does.
            let priority = u16::from_be_bytes([header[14], header[15]]) & 0xf000;
            header[14..16].copy_from_slice(&(priority | vlan).to_be_bytes());
        }
        let to = self.look_up(now, from, vlan, &frame.destination, segments)?;
        let passage = Passage {
            now,
            vlan,
            network: &frame.network,
            header,
            length,
            segments,
            generation: self.generation,
            group: to == To::Many { group: true },
            resumed: now < self.resumed,
        };
        match to {
            To::One(port) => {
                if let Err((at, reason)) = self.between(&passage, frame.tag, from, port, out) {
                    if at == from {
                        return Err(reason);
                    }
                    self.count(at, reason, segments);
                }
            }
            To::Many { group } => self.flood(&passage, frame.tag, from, group, out)?,
        }
        let Network::Ip(packet) = &frame.network else { return Ok(Verdict { flow: 0, ip: None }) };
        let (protocol, fragment) = (packet.protocol, packet.fragment.is_some());
        let ip = Ip { v4: packet.is_v4(), protocol, upper: packet.span.0, fragment };
        let verdict = Verdict { flow: self.keyed.flow(packet), ip: Some(ip) };
        if let (To::One(_), [delivery]) = (to, out.as_slice()) {
            self.begin_run((now, from, vlan), (header, length), frame.network, (*delivery, verdict));
        }
        Ok(verdict)
    }

    /// Whether the port may send the frame; its VLAN.
    fn admit(&mut self, now: Nanos, from: PortId, header: &[u8], frame: &Frame) -> Result<u16, DropReason> {
        let Some(Some(port)) = self.ports.get_mut(from as usize) else { return Err(DropReason::LinkDown) };
        if matches!(frame.destination, [1, 0x80, 0xc2, 0, 0, 0..16]) {
            return Err(DropReason::Reserved);
        }
        let vlan = port.vlan_of(frame.tag)?;
        if let Claim::Local(address, reason) = guard::check(port, header, frame)? {
            if !port.has_local(now, address) {
                self.claim(now, from, address).then_some(()).ok_or(reason)?;
            }
        } else if port.is_free() && port.owner.is_none() {
            self.learn(now, from, vlan, frame)?;
        }
        Ok(vlan)
    }

    /// Whether a guest gets the link-local address: nobody else has it, and it is not made from another MAC address.
    fn claim(&mut self, now: Nanos, from: PortId, address: Address) -> bool {
        let own = self.port(from).and_then(|port| port.mac);
        let foreign = guard::made_from(address).is_some_and(|mac| Some(mac) != own);
        let known = |port: &Port| {
            port.locals.iter().any(|(local, _)| *local == address)
                || port.owner.is_some() && port.addresses.contains(&address)
        };
        if foreign || self.uplink_locals.contains(&address) || self.ports.iter().flatten().any(known) {
            return false;
        }
        self.port_mut(from).is_some_and(|port| port.add_local(now, address))
    }

    /// Where the sender is, if it is not always the same.
    fn learn(&mut self, now: Nanos, from: PortId, vlan: u16, frame: &Frame) -> Result<(), DropReason> {
        let Some(port) = self.port(from) else { return Err(DropReason::LinkDown) };
        let (kind, ports) = (port.kind, &self.ports);
        let most = if kind == PortKind::Uplink { UPLINK_ADDRESSES } else { GUEST_ADDRESSES };
        let room = port.learnt < most;
        let may_move = |other: PortId| {
            let other = ports.get(other as usize).and_then(Option::as_ref);
            kind == PortKind::Uplink || other.is_none_or(|other| other.kind == PortKind::Guest)
        };
        let (learnt, lost) = self.fdb.learn(now, (vlan, &frame.source), from, may_move, room);
        if let Some(loser) = lost.and_then(|id| self.port_mut(id)) {
            loser.learnt = loser.learnt.saturating_sub(1);
        }
        match learnt {
            Learnt::Known => {}
            Learnt::New => {
                if let Some(port) = self.port_mut(from) {
                    port.learnt += 1;
                }
            }
            Learnt::Full => self.forget_old(now),
            Learnt::Taken => return Err(DropReason::MacInUse),
        }
        match &frame.network {
            Network::Ip(packet) if kind == PortKind::Uplink && is_local(packet.source) => {
                self.learn_local(packet.source);
            }
            _ => {}
        }
        Ok(())
    }

    fn forget_old(&mut self, now: Nanos) {
        let ports = &mut self.ports;
        self.fdb.sweep(now, |id| {
            if let Some(Some(port)) = ports.get_mut(id as usize) {
                port.learnt = port.learnt.saturating_sub(1);
            }
        });
    }

    /// A link-local address beyond an uplink; a guest that chose the same, other than from its MAC address, loses it.
    fn learn_local(&mut self, address: Address) {
        if self.uplink_locals.contains(&address) {
            return;
        }
        let made_from = guard::made_from(address);
        for port in self.ports.iter_mut().flatten() {
            if made_from.is_some() && port.mac == made_from {
                return;
            }
            for place in port.locals.iter_mut().filter(|(local, _)| *local == address) {
                *place = (0, 0);
            }
        }
        self.uplink_locals[self.next_local] = address;
        self.next_local = (self.next_local + 1) % self.uplink_locals.len();
    }

    fn look_up(
        &mut self,
        now: Nanos,
        from: PortId,
        vlan: u16,
        destination: &Mac,
        segments: u32,
    ) -> Result<To, DropReason> {
        let group = destination[0] & 1 == 1;
        let place = if group { None } else { self.fdb.find(now, vlan, destination) };
        match place {
            Some(place) if place.port == from => return Err(DropReason::Hairpin),
            Some(place) => return Ok(To::One(place.port)),
            None => {}
        }
        let own = self.port(from).filter(|port| port.kind == PortKind::Guest).and_then(|port| port.pair);
        if let (false, Some(own)) = (group, own) {
            return Ok(To::One(own));
        }
        let storm = match destination {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => DropReason::StormBroadcast,
            _ if group => DropReason::StormMulticast,
            _ => DropReason::StormUnknown,
        };
        if let Some(port) = self.port_mut(from) {
            port.storm(now, storm, segments)?;
        }
        Ok(To::Many { group })
    }

    /// To all in the VLAN; what is for an unknown address only to those who may have more than their own.
    fn flood(
        &mut self,
        passage: &Passage,
        tag: Option<u16>,
        from: PortId,
        group: bool,
        out: &mut Vec<Delivery>,
    ) -> Result<(), DropReason> {
        let begin = out.len();
        let mut refused = None;
        for id in 0..self.ports.len() as PortId {
            let wanted = self.port(id).is_some_and(|port| group || port.is_free());
            if !wanted || id == from {
                continue;
            }
            match self.between(passage, tag, from, id, out) {
                Err((at, reason)) if at == from => refused = Some(reason),
                Err((at, reason @ (DropReason::FaultLoss | DropReason::FaultPartition))) => {
                    self.count(at, reason, passage.segments);
                }
                _ => {}
            }
        }
        match refused {
            // That it may not talk with some is no drop while it does with others.
            Some(reason)
                if out.len() == begin && !matches!(reason, DropReason::Isolated | DropReason::Vlan) =>
            {
                Err(reason)
            }
            _ => Ok(()),
        }
    }

    /// Whether the frame goes from `from` to `to`, and how. An error has the port that it is to be counted at.
    fn between(
        &mut self,
        passage: &Passage,
        tag: Option<u16>,
        from: PortId,
        to: PortId,
        out: &mut Vec<Delivery>,
    ) -> Result<(), (PortId, DropReason)> {
        let Ok([Some(sender), Some(receiver)]) = self.ports.get_disjoint_mut([from as usize, to as usize])
        else {
            return Err((from, DropReason::LinkDown));
        };
        let tagged = receiver.tagged(passage.vlan).ok_or((from, DropReason::Vlan))?;
        match (sender.kind, receiver.kind) {
            // Two uplinks may be joined outside, and frames would go round.
            (PortKind::Uplink, PortKind::Uplink) => return Err((from, DropReason::Isolated)),
            (PortKind::Guest, PortKind::Guest) if sender.rules.isolated || receiver.rules.isolated => {
                return Err((from, DropReason::Isolated));
            }
            _ => {}
        }
        private::check(passage, (from, sender), (to, receiver)).map_err(|reason| (from, reason))?;
        passage.leaves((from, sender), (to, receiver)).map_err(|reason| (from, reason))?;
        passage.enters((to, receiver), (from, sender)).map_err(|reason| (to, reason))?;
        let there = meet(sender, passage.now, Way::Out, receiver).map_err(|reason| (from, reason))?;
        let here = meet(receiver, passage.now, Way::In, sender).map_err(|reason| (to, reason))?;
        let tag = match (tag.is_some(), tagged) {
            (true, false) => Tag::Strip,
            (false, true) => Tag::Add(passage.vlan),
            _ => Tag::Keep,
        };
        let delivery = Delivery { port: to, tag, delay: there.delay + here.delay };
        for _ in 0..1 + usize::from(there.twice) + usize::from(here.twice) {
            out.push(delivery);
        }
        Ok(())
    }
}

/// What the faults of `port` do.
fn meet(port: &mut Port, now: Nanos, way: Way, other: &Port) -> Result<Fate, DropReason> {
    port.faults.as_mut().map_or(Ok(Fate::default()), |faults| faults.judge(now, way, &other.name))
}
