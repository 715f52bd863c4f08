//! Who a guest may say it is: MAC, IPv4 and IPv6 source addresses, ARP and neighbour discovery, DHCP and routers.
//!
//! What a system sends before it has an address passes: DHCP from 0.0.0.0, duplicate address detection and router solicitation
//! from `::` (RFC 4862, 5.4; RFC 4861, 6.3.7), multicast reports (RFC 3810, 5), and link-local addresses.

use super::fdb::Mac;
use super::frame::{self, Address, Frame, ICMP6, IGMP, Network, Packet, Upper, is_v4, v4};
use super::port::Port;
use super::reason::DropReason;
use super::rules::PortKind;

/// An address that a guest uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It may.
    Its,
    /// It may if this link-local address is free, or already its own; else that is the reason for a drop.
    Local(Address, DropReason),
}

/// Whether a guest at `port` may say what `frame` says.
///
/// # Errors
/// What it may not.
pub fn check(port: &Port, header: &[u8], frame: &Frame) -> Result<Claim, DropReason> {
    if port.kind == PortKind::Uplink {
        return Ok(Claim::Its);
    }
    servers(port, frame)?;
    if port.rules.spoof {
        return Ok(Claim::Its);
    }
    let Some(mac) = port.mac.filter(|mac| *mac == frame.source) else { return Err(DropReason::MacSpoof) };
    match &frame.network {
        Network::Arp(arp) => {
            let asks = matches!(arp.operation, 1 | 2);
            let silent = arp.operation == 1 && arp.sender == v4([0; 4]);
            let good = asks && arp.mac == mac && (silent || owns(port, arp.sender));
            if good { Ok(Claim::Its) } else { Err(DropReason::ArpSpoof) }
        }
        Network::Ip(packet) if packet.is_v4() => {
            let begins = packet.source == v4([0; 4]) && (is_dhcp_client(packet) || packet.protocol == IGMP);
            if begins || owns(port, packet.source) { Ok(Claim::Its) } else { Err(DropReason::Ipv4Spoof) }
        }
        Network::Ip(packet) => ipv6(port, header, packet, &mac),
        // Others name no sender that could be checked.
        Network::Other(_) if port.addresses.is_empty() => Ok(Claim::Its),
        Network::Other(_) => Err(DropReason::Ethertype),
    }
}

/// Servers that others believe: DHCP (RFC 2131, RFC 8415), routers (RFC 4861, 4.2, 4.5; RFC 2894).
fn servers(port: &Port, frame: &Frame) -> Result<(), DropReason> {
    let Network::Ip(packet) = &frame.network else { return Ok(()) };
    match packet.upper {
        Upper::Udp { source: 67, .. } if packet.is_v4() && !port.rules.dhcp_server => {
            Err(DropReason::DhcpServer)
        }
        Upper::Udp { source: 547, .. } if !packet.is_v4() && !port.rules.dhcp_server => {
            Err(DropReason::DhcpServer)
        }
        Upper::Icmp { kind: 134 | 137 | 138, .. }
            if packet.protocol == ICMP6 && !port.rules.router_advertisements =>
        {
            Err(DropReason::RouterAdvertisement)
        }
        _ => Ok(()),
    }
}

fn is_dhcp_client(packet: &Packet) -> bool {
    matches!(packet.upper, Upper::Udp { source: 68, destination: 67 })
}

fn ipv6(port: &Port, header: &[u8], packet: &Packet, mac: &Mac) -> Result<Claim, DropReason> {
    let kind = match packet.upper {
        Upper::Icmp { kind, .. } if packet.protocol == ICMP6 => kind,
        _ => 0,
    };
    let discovers = matches!(kind, 133..=138 | 141 | 142);
    // Of a discovery in parts, the receiver could see other parts than we (RFC 6980).
    if discovers && packet.fragment.is_some() || matches!(kind, 141 | 142) {
        return Err(DropReason::NdSpoof);
    }
    if matches!(kind, 133 | 135 | 136) {
        let said = frame::discovery(header, packet, kind, mac)?;
        // An advertisement speaks for its target; a solicitation without a source is for an address to be.
        let speaks_for = said.target.filter(|_| kind == 136 || packet.source == 0);
        if !said.own || packet.source == 0 && kind == 136 {
            return Err(DropReason::NdSpoof);
        }
        if let Some(target) = speaks_for {
            let target = (target, claim(port, target, DropReason::NdSpoof)?);
            return if kind == 136 { speaker(port, packet.source, target) } else { Ok(target.1) };
        }
    }
    // Without an address, one solicits and reports groups.
    if packet.source == 0 && matches!(kind, 131..=133 | 135 | 143) {
        return Ok(Claim::Its);
    }
    claim(port, packet.source, DropReason::Ipv6Spoof)
}

/// What an advertisement from `source` about `target` claims: one new address at most.
fn speaker(port: &Port, source: Address, target: (Address, Claim)) -> Result<Claim, DropReason> {
    match (claim(port, source, DropReason::NdSpoof)?, target) {
        (source, (_, Claim::Its)) => Ok(source),
        (Claim::Its, (_, target)) => Ok(target),
        (_, (address, target)) if source == address => Ok(target),
        _ => Err(DropReason::NdSpoof),
    }
}

fn claim(port: &Port, address: Address, reason: DropReason) -> Result<Claim, DropReason> {
    if owns(port, address) {
        Ok(Claim::Its)
    } else if is_local(address) {
        Ok(Claim::Local(address, reason))
    } else {
        Err(reason)
    }
}

fn owns(port: &Port, address: Address) -> bool {
    port.addresses.contains(&address) || port.addresses.is_empty() && is_somebody(address)
}

/// Whether a machine can have the address, of whatever network: not `::`, loopback, multicast or broadcast.
fn is_somebody(address: Address) -> bool {
    if is_v4(address) {
        let first = (address as u32) >> 24;
        return first != 0 && first != 127 && first < 224;
    }
    address > 1 && address >> 120 != 0xff
}

/// Whether it is of `fe80::/64`, where systems choose addresses by themselves (RFC 4291, 2.5.6).
pub fn is_local(address: Address) -> bool {
    (address >> 64) as u64 == 0xfe80 << 48
}

/// The MAC address from which a link-local address was made (RFC 4291, appendix A), if it was.
pub fn made_from(address: Address) -> Option<Mac> {
    let [a, b, c, 0xff, 0xfe, d, e, f] = (address as u64).to_be_bytes() else { return None };
    Some([a ^ 2, b, c, d, e, f])
}
