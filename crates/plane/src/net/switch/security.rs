//! Which connections a port may make and take, and what belongs to those that it has.
//!
//! A packet that begins a connection is compared with the rows of both ports. What follows in either direction is found in the
//! table ([`super::track`]), with the ICMP errors about it. Sequence numbers are left to the ends.
//! Outside of the rows are what a machine needs to get an address and to find its neighbours, and the metadata service.

use super::PortId;
use super::frame::{Address, ICMP, ICMP6, IGMP, Network, Packet, TCP, UDP, Upper, flags, inner, v4};
use super::port::{Port, address};
use super::reason::DropReason;
use super::rules::{Direction, Peer, PortKind, Protocol, Row};
use super::track::{Entry, Key, State};
use crate::clock::Nanos;

/// Where machines ask for their metadata, on port 80.
const METADATA: [u8; 4] = [169, 254, 169, 254];

/// A frame between two ports.
pub struct Passage<'a> {
    /// The time.
    pub now: Nanos,
    /// Its VLAN.
    pub vlan: u16,
    /// What it carries.
    pub network: &'a Network,
    /// What of it was copied.
    pub header: &'a [u8],
    /// Bytes of all of it.
    pub length: usize,
    /// Packets that it stands for.
    pub segments: u32,
    /// Of all rules together.
    pub generation: u32,
    /// It goes to many.
    pub group: bool,
    /// Connections may be older than the switch.
    pub resumed: bool,
}

/// One end of a passage, seen from the port there.
struct End<'a> {
    port: &'a mut Port,
    peer: (PortId, &'a [String]),
    /// The other port, or this one, may be a DHCP server.
    serves: bool,
    /// The port sends.
    outbound: bool,
    /// The port that sends.
    creator: PortId,
}

impl Passage<'_> {
    /// Whether the sender's rows let the frame out.
    ///
    /// # Errors
    /// Why not.
    pub fn leaves(&self, from: (PortId, &mut Port), to: (PortId, &Port)) -> Result<(), DropReason> {
        let (creator, serves) = (from.0, is_server(from.1) || is_server(to.1));
        let peer = (to.0, to.1.rules.groups.as_slice());
        self.judge(End { port: from.1, peer, serves, outbound: true, creator }, to.0)
    }

    /// Whether the receiver's rows let the frame in.
    ///
    /// # Errors
    /// Why not.
    pub fn enters(&self, to: (PortId, &mut Port), from: (PortId, &Port)) -> Result<(), DropReason> {
        let peer = (from.0, from.1.rules.groups.as_slice());
        let serves = is_server(from.1) || is_server(to.1);
        self.judge(End { port: to.1, peer, serves, outbound: false, creator: from.0 }, to.0)
    }

    fn judge(&self, end: End, to: PortId) -> Result<(), DropReason> {
        let rows = end.port.rules.security.is_some();
        if !rows && !end.port.is_observed(self.now) {
            return Ok(());
        }
        let packet = match self.network {
            Network::Ip(packet) => packet,
            Network::Other(_) if rows => return Err(DropReason::Ethertype),
            _ => return Ok(()),
        };
        let allowed = match packet.fragment {
            Some(fragment) if !fragment.first => {
                !rows || end.port.fragments.passed(self.now, packet, fragment, to)
            }
            _ => self.passes(packet, end, to),
        };
        if allowed || !rows { Ok(()) } else { Err(DropReason::Security) }
    }

    /// Whether a packet with its upper layer's header passes.
    fn passes(&self, packet: &Packet, end: End, to: PortId) -> bool {
        let End { port, peer, serves, outbound, creator } = end;
        let allowed = if is_discovery(packet) || serves && is_dhcp(packet) {
            true
        } else if self.group {
            allows(port, &self.key(packet, outbound), outbound, peer.1)
        } else if is_error(packet) {
            self.is_related(port, packet, outbound)
        } else {
            self.belongs(packet, port, outbound, peer, creator)
        };
        if let (true, Some(fragment)) = (allowed, packet.fragment) {
            port.fragments.pass(self.now, packet, fragment, to);
        }
        allowed
    }

    fn key(&self, packet: &Packet, outbound: bool) -> Key {
        let (source, destination) = packet.ports();
        let (local, remote, ports) = if outbound {
            (packet.source, packet.destination, (source, destination))
        } else {
            (packet.destination, packet.source, (destination, source))
        };
        Key { local, remote, ports, protocol: packet.protocol, vlan: self.vlan }
    }

    /// An ICMP error passes if it is about a connection that the port has, and goes to who sent what it is about.
    fn is_related(&self, port: &mut Port, packet: &Packet, outbound: bool) -> bool {
        let Some(about) = inner(self.header, packet) else { return false };
        if about.source != packet.destination {
            return false;
        }
        // An error that the port sends is about what it got.
        let (local, remote, ports) = if outbound {
            (about.destination, about.source, (about.ports.1, about.ports.0))
        } else {
            (about.source, about.destination, about.ports)
        };
        let key = Key { local, remote, ports, protocol: about.protocol, vlan: self.vlan };
        port.track.find(self.now, &key).is_some_and(|entry| !entry.refused)
    }

    /// Whether the packet belongs to a connection that is allowed, or may begin one; then it is counted.
    fn belongs(
        &self,
        packet: &Packet,
        port: &mut Port,
        outbound: bool,
        peer: (PortId, &[String]),
        creator: PortId,
    ) -> bool {
        let key = self.key(packet, outbound);
        let tcp = if let Upper::Tcp { flags, .. } = packet.upper { flags } else { 0 };
        let begins = packet.protocol == TCP && tcp & (flags::SYN | flags::ACK) == flags::SYN;
        if let Some(entry) = port.track.find(self.now, &key) {
            let again =
                begins && (entry.outbound != outbound || entry.refused || entry.state == State::Closing);
            let fresh = entry.generation == self.generation && entry.peer == peer.0;
            if fresh && !again {
                self.count(entry, outbound, tcp);
                return !entry.refused;
            }
            let mut entry = *entry;
            if !again {
                (entry.generation, entry.peer) = (self.generation, peer.0);
                entry.refused = !allows(port, &key, entry.outbound, peer.1);
                self.count(&mut entry, outbound, tcp);
                port.track.insert(self.now, entry);
                return !entry.refused;
            }
        }
        let Some(initiator) = self.initiator(packet, port, &key, outbound, peer.1) else { return false };
        let mut entry = Entry {
            key,
            outbound: initiator,
            state: State::New,
            creator,
            peer: peer.0,
            generation: self.generation,
            refused: false,
            created: self.now,
            seen: self.now,
            packets: [0; 2],
            bytes: [0; 2],
        };
        entry.note(self.now, outbound, tcp, self.segments, self.length);
        port.track.insert(self.now, entry);
        true
    }

    fn count(&self, entry: &mut Entry, outbound: bool, tcp: u8) {
        if entry.refused {
            entry.seen = self.now;
        } else {
            entry.note(self.now, outbound, tcp, self.segments, self.length);
        }
    }

    /// Whether the port began (true) the connection of which this is the first packet that we see. `None` if it may not be.
    fn initiator(
        &self,
        packet: &Packet,
        port: &Port,
        key: &Key,
        outbound: bool,
        groups: &[String],
    ) -> Option<bool> {
        let first = match packet.upper {
            Upper::Tcp { flags, .. } => {
                flags & flags::RST == 0 && flags & (flags::SYN | flags::ACK) != flags::SYN | flags::ACK
            }
            // Of the queries, those with answers (RFC 792): echo and timestamp.
            Upper::Icmp { kind, .. } if packet.protocol == ICMP => matches!(kind, 8 | 13),
            Upper::Icmp { kind, .. } => kind == 128,
            _ => true,
        };
        if port.rules.security.is_none() || first && allows(port, key, outbound, groups) {
            return Some(outbound);
        }
        let answers = matches!(packet.upper, Upper::Tcp { flags, .. } if flags & flags::ACK != 0)
            || matches!(packet.upper, Upper::Udp { .. });
        (self.resumed && answers && allows(port, key, !outbound, groups)).then_some(!outbound)
    }
}

/// Whether the rows of `port` allow the connection, which it begins if `outbound`, with a peer in `groups`.
fn allows(port: &Port, key: &Key, outbound: bool, groups: &[String]) -> bool {
    let Some(rows) = &port.rules.security else { return true };
    let direction = if outbound { Direction::Out } else { Direction::In };
    let service = if outbound { key.ports.1 } else { key.ports.0 };
    let metadata = key.remote == v4(METADATA) && key.protocol == TCP && service == 80;
    outbound && metadata
        || rows.iter().any(|row| row.direction == direction && row.fits(key, service, groups))
}

impl Row {
    fn fits(&self, key: &Key, service: u16, groups: &[String]) -> bool {
        let protocol = match self.protocol {
            Protocol::Any => true,
            Protocol::Tcp => key.protocol == TCP,
            Protocol::Udp => key.protocol == UDP,
            Protocol::Icmp => matches!(key.protocol, ICMP | ICMP6),
        };
        let ports = self.ports.is_none_or(|(low, high)| (low..=high).contains(&service));
        let peer = match &self.peer {
            Peer::Any => true,
            Peer::Net(net, bits) => {
                is_within(key.remote, address(*net), bits + if net.is_ipv4() { 96 } else { 0 })
            }
            Peer::Group(name) => groups.contains(name),
        };
        protocol && ports && peer
    }
}

fn is_within(what: Address, net: Address, bits: u8) -> bool {
    // All of IPv6 is not IPv4.
    let shift = 128 - u32::from(bits);
    let same = (what ^ net).checked_shr(shift).unwrap_or(0) == 0;
    same && super::frame::is_v4(what) == super::frame::is_v4(net)
}

/// Whether the port may answer DHCP requests.
fn is_server(port: &Port) -> bool {
    port.kind == PortKind::Uplink || port.rules.dhcp_server
}

fn is_dhcp(packet: &Packet) -> bool {
    let Upper::Udp { source, destination } = packet.upper else { return false };
    let (client, server) = if packet.is_v4() { (68, 67) } else { (546, 547) };
    (source, destination) == (client, server) || (source, destination) == (server, client)
}

/// Neighbour discovery, and reports of multicast groups.
fn is_discovery(packet: &Packet) -> bool {
    match packet.upper {
        Upper::Icmp { kind: 130..=137 | 143, .. } => packet.protocol == ICMP6,
        _ => packet.protocol == IGMP,
    }
}

/// Whether it is an ICMP error (RFC 1122, 3.2.2; RFC 4443, 2.1). A redirect is none that we believe.
fn is_error(packet: &Packet) -> bool {
    match packet.upper {
        Upper::Icmp { kind, .. } if packet.protocol == ICMP => matches!(kind, 3 | 4 | 11 | 12),
        Upper::Icmp { kind, .. } => kind < 128,
        _ => false,
    }
}
