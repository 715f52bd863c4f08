//! A switch with guests and an uplink, and frames to send through it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder, PacketBuilderStep, ip_number,
};
use nagaya_plane::clock::Nanos;
use nagaya_plane::net::switch::{Delivery, DropReason, HEADER, PortId, PortKind, Rules, Switch, Tag};

pub const SECOND: Nanos = 1_000_000_000;
pub const BROADCAST: [u8; 6] = [0xff; 6];
/// The uplink's port, and the MAC address beyond it.
pub const UPLINK: PortId = 100;
pub const GATEWAY: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];

pub struct Scene {
    pub switch: Switch,
    pub now: Nanos,
}

/// The MAC address of guest `number`.
pub fn mac(number: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, number]
}

pub fn v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

pub fn v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into())
}

/// The link-local address that is made from [`mac`].
pub fn local(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0x00ff, 0xfe00, number.into())
}

/// What a guest has by default: its own addresses.
pub fn rules(number: u8) -> Rules {
    Rules { addresses: vec![IpAddr::V4(v4(number)), IpAddr::V6(v6(number))], ..Rules::default() }
}

/// The guest's rules with what JSON adds.
pub fn with(number: u8, json: &str) -> Rules {
    let mut value = serde_json::to_value(rules(number)).unwrap();
    let more: serde_json::Value = serde_json::from_str(json).unwrap();
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(value).unwrap()
}

impl Scene {
    /// Guests 1 to 4 and an uplink.
    pub fn new() -> Scene {
        let mut switch = Switch::new();
        for number in 1..=4 {
            switch.add_port(number.into(), PortKind::Guest, Some(mac(number)), rules(number)).unwrap();
        }
        switch.add_port(UPLINK, PortKind::Uplink, None, Rules::uplink()).unwrap();
        Scene { switch, now: SECOND }
    }

    pub fn set(&mut self, number: u8, json: &str) {
        self.switch.set_rules(number.into(), with(number, json)).unwrap();
    }

    pub fn deliveries(&mut self, from: PortId, frame: &[u8]) -> Result<Vec<Delivery>, DropReason> {
        let (mut out, mut header) = (Vec::new(), frame[..frame.len().min(HEADER)].to_vec());
        self.switch.decide(self.now, from, &mut header, frame.len(), 1, &mut out)?;
        Ok(out)
    }

    /// Who gets the frame.
    pub fn send(&mut self, from: PortId, frame: &[u8]) -> Result<Vec<PortId>, DropReason> {
        Ok(self.deliveries(from, frame)?.iter().map(|delivery| delivery.port).collect())
    }

    /// Whether `to`, and nobody else, gets the frame.
    pub fn arrives(&mut self, from: PortId, to: PortId, frame: &[u8]) -> bool {
        self.send(from, frame).is_ok_and(|ports| ports == [to])
    }

    pub fn tags(&mut self, from: PortId, frame: &[u8]) -> Result<Vec<(PortId, Tag)>, DropReason> {
        Ok(self.deliveries(from, frame)?.iter().map(|delivery| (delivery.port, delivery.tag)).collect())
    }

    pub fn dropped(&self, port: PortId, reason: DropReason) -> u64 {
        self.switch.drops(port).unwrap().get(reason)
    }
}

pub type Mac = [u8; 6];

/// Who speaks to whom.
#[derive(Clone, Copy)]
pub struct Ends {
    pub source: (Mac, IpAddr),
    pub destination: (Mac, IpAddr),
}

/// Guests to guests over IPv4.
pub fn guests(from: u8, to: u8) -> Ends {
    Ends { source: (mac(from), v4(from).into()), destination: (mac(to), v4(to).into()) }
}

/// The same over IPv6.
pub fn guests6(from: u8, to: u8) -> Ends {
    Ends { source: (mac(from), v6(from).into()), destination: (mac(to), v6(to).into()) }
}

/// A guest and somebody beyond the uplink.
pub fn world(from: u8) -> Ends {
    Ends { source: (mac(from), v4(from).into()), destination: (GATEWAY, "192.0.2.1".parse().unwrap()) }
}

impl Ends {
    pub fn back(self) -> Ends {
        Ends { source: self.destination, destination: self.source }
    }

    pub fn from(self, source: &str) -> Ends {
        Ends { source: (self.source.0, source.parse().unwrap()), ..self }
    }

    pub fn to(self, mac: Mac, destination: &str) -> Ends {
        Ends { destination: (mac, destination.parse().unwrap()), ..self }
    }

    fn ip(self) -> PacketBuilderStep<etherparse::IpHeaders> {
        let ethernet = PacketBuilder::ethernet2(self.source.0, self.destination.0);
        match (self.source.1, self.destination.1) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                ethernet.ipv4(source.octets(), destination.octets(), 64)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                ethernet.ipv6(source.octets(), destination.octets(), 255)
            }
            _ => panic!("one of each"),
        }
    }

    pub fn udp(self, source: u16, destination: u16) -> Vec<u8> {
        let mut frame = Vec::new();
        self.ip().udp(source, destination).write(&mut frame, b"payload").unwrap();
        frame
    }

    /// TCP with `flags` of "S", "A", "F" and "R".
    pub fn tcp(self, source: u16, destination: u16, flags: &str) -> Vec<u8> {
        let mut tcp = self.ip().tcp(source, destination, 1000, 512);
        for flag in flags.chars() {
            tcp = match flag {
                'S' => tcp.syn(),
                'A' => tcp.ack(1),
                'F' => tcp.fin(),
                'R' => tcp.rst(),
                other => panic!("{other}"),
            };
        }
        let mut frame = Vec::new();
        tcp.write(&mut frame, b"").unwrap();
        frame
    }

    /// ICMP or ICMPv6, by the addresses: type, the four bytes after the checksum, the rest.
    pub fn icmp(self, kind: u8, four: [u8; 4], rest: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        if self.source.1.is_ipv4() {
            self.ip().icmpv4_raw(kind, 0, four).write(&mut frame, rest).unwrap();
        } else {
            self.ip().icmpv6_raw(kind, 0, four).write(&mut frame, rest).unwrap();
        }
        frame
    }

    pub fn protocol(self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        self.ip().write(&mut frame, protocol.into(), payload).unwrap();
        frame
    }
}

pub fn arp(source: Mac, asks: bool, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let operation = if asks { ArpOperation::REQUEST } else { ArpOperation::REPLY };
    let (mac, ip) = (sender.0, sender.1.octets());
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &mac,
        &ip,
        &[0; 6],
        &target.octets(),
    )
    .unwrap();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(source, BROADCAST).arp(packet).write(&mut frame).unwrap();
    frame
}

/// Neighbour solicitation (135) or advertisement (136) about `target`, with link-layer option `mac`.
pub fn discovery(ends: Ends, kind: u8, target: Ipv6Addr, mac: Option<Mac>) -> Vec<u8> {
    let mut rest = target.octets().to_vec();
    if let Some(mac) = mac {
        rest.extend([if kind == 135 { 1 } else { 2 }, 1]);
        rest.extend(mac);
    }
    ends.icmp(kind, [0; 4], &rest)
}

/// The same frame with a tag.
pub fn tagged(tag: u16, frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &tag.to_be_bytes(), &frame[12..]].concat()
}

/// A part of an IPv4 packet: the frame's UDP header or bytes after it, at `offset` in units of 8 bytes.
pub fn part(ends: Ends, id: u16, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = ends.protocol(ip_number::UDP.0, payload);
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    let place = offset | if more { 0x2000 } else { 0 };
    frame[20..22].copy_from_slice(&place.to_be_bytes());
    frame
}
