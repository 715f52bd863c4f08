//! A port, with what its rules mean for each frame.

use std::net::IpAddr;

use super::PortId;
use super::faults::Faults;
use super::fdb::Mac;
use super::fragments::Fragments;
use super::frame::{Address, v4};
use super::reason::{DropReason, Drops};
use super::rules::{PortKind, Rules};
use super::storm::Bucket;
use super::track::Track;
use crate::clock::Nanos;

/// Most link-local addresses of a guest. Systems make one themselves, and may make another after a reboot.
pub const LOCALS: usize = 2;

/// One of them may be replaced when it was not used for so long.
const LOCAL_AGE: Nanos = 60 * 1_000_000_000;

/// How long the flows of a port are counted after somebody asked for them.
pub const OBSERVED: Nanos = 60 * 1_000_000_000;

/// A port.
pub struct Port {
    /// Who is there.
    pub kind: PortKind,
    /// By which name others' faults mean it.
    pub name: String,
    /// The name of the only guest that it is the way out of; of uplinks.
    pub owner: Option<String>,
    /// A guest's way out that is its alone, or whose that is.
    pub pair: Option<PortId>,
    /// Its own address.
    pub mac: Option<Mac>,
    /// What it may do.
    pub rules: Rules,
    /// What it may send from.
    pub addresses: Vec<Address>,
    /// What was dropped.
    pub drops: Drops,
    /// Addresses learnt from it.
    pub learnt: u32,
    /// Link-local addresses that it uses, and when last.
    pub locals: [(Address, Nanos); LOCALS],
    /// Its connections.
    pub track: Track,
    /// Parts of packets that may follow.
    pub fragments: Fragments,
    /// What is bad about its link on purpose.
    pub faults: Option<Faults>,
    /// Until when its flows are counted, although nothing depends on them.
    pub observed: Nanos,
    /// For broadcasts, multicasts and frames to unknown addresses.
    storms: Option<[Bucket; 3]>,
}

/// An IP address as headers have it.
pub fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => v4(ip.octets()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

impl Port {
    /// A port with these rules.
    pub fn new(kind: PortKind, mac: Option<Mac>, rules: Rules) -> Port {
        let mut port = Port {
            kind,
            name: String::new(),
            owner: None,
            pair: None,
            mac,
            rules: Rules::default(),
            addresses: Vec::new(),
            drops: Drops::default(),
            learnt: 0,
            locals: [(0, 0); LOCALS],
            track: Track::default(),
            fragments: Fragments::default(),
            faults: None,
            observed: 0,
            storms: None,
        };
        port.set_rules(rules);
        port
    }

    /// From now on these.
    pub fn set_rules(&mut self, rules: Rules) {
        self.addresses = rules.addresses.iter().copied().map(address).collect();
        if rules.storm_pps != self.rules.storm_pps || self.storms.is_none() {
            self.storms = rules.storm_pps.map(|rate| std::array::from_fn(|_| Bucket::new(rate)));
        }
        self.rules = rules;
        self.learnt = 0;
    }

    /// Whether it may send from any MAC address, which are then learnt.
    pub fn is_free(&self) -> bool {
        self.kind == PortKind::Uplink || self.rules.spoof
    }

    /// The VLAN of a frame with this tag from the port; 0 is outside of all.
    ///
    /// # Errors
    /// If the port is not in it.
    pub fn vlan_of(&self, tag: Option<u16>) -> Result<u16, DropReason> {
        match tag {
            None | Some(0) => Ok(self.rules.vlan.unwrap_or(0)),
            Some(tag) if tag <= 4094 && self.has_trunk(tag) => Ok(tag),
            Some(_) => Err(DropReason::Vlan),
        }
    }

    /// Whether a frame of this VLAN goes to the port with a tag; `None` if it does not go there.
    pub fn tagged(&self, vlan: u16) -> Option<bool> {
        if vlan == self.rules.vlan.unwrap_or(0) {
            return Some(false);
        }
        (vlan != 0 && self.has_trunk(vlan)).then_some(true)
    }

    fn has_trunk(&self, vlan: u16) -> bool {
        let all = self.kind == PortKind::Uplink && self.rules.trunk.is_empty();
        all || self.rules.trunk.contains(&vlan)
    }

    /// Count frames of `reason`, one of the three storms, and refuse those that are too many.
    ///
    /// # Errors
    /// `reason`, if they are.
    pub fn storm(&mut self, now: Nanos, reason: DropReason, frames: u32) -> Result<(), DropReason> {
        let Some([broadcast, multicast, unknown]) = &mut self.storms else { return Ok(()) };
        let bucket = match reason {
            DropReason::StormBroadcast => broadcast,
            DropReason::StormMulticast => multicast,
            _ => unknown,
        };
        if bucket.take(now, frames) { Ok(()) } else { Err(reason) }
    }

    /// Whether it uses this link-local address; notes that it does.
    pub fn has_local(&mut self, now: Nanos, address: Address) -> bool {
        let place = self.locals.iter_mut().find(|(local, _)| *local == address);
        place.map(|(_, seen)| *seen = now).is_some()
    }

    /// From now on it uses this link-local address, if there is room.
    pub fn add_local(&mut self, now: Nanos, address: Address) -> bool {
        let free = |(local, seen): &&mut (Address, Nanos)| *local == 0 || *seen + LOCAL_AGE <= now;
        self.locals.iter_mut().find(free).map(|place| *place = (address, now)).is_some()
    }

    /// Whether its connections are counted.
    pub fn is_observed(&self, now: Nanos) -> bool {
        now < self.observed
    }
}
