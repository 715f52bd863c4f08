//! A way out that is one machine's alone: a program of the host (passt) that makes the machine's connections as its own.
//!
//! It answers whatever address it is asked for, so it is asked for its own only. It connects to wherever a packet
//! says, as a program of the host: to what only such a program reaches, no guest's packet goes.

use super::PortId;
use super::frame::{Address, ICMP6, Network, Packet, Upper, discovery};
use super::guard::is_local;
use super::port::Port;
use super::reason::DropReason;
use super::security::Passage;

/// Whether a frame passes between two ports of which one may be such a way out.
///
/// # Errors
/// `Isolated` for another machine's, or for what only machines are asked; `Martian` for an address that only the host itself
/// may connect to.
pub fn check(passage: &Passage, from: (PortId, &Port), to: (PortId, &Port)) -> Result<(), DropReason> {
    if from.1.owner.is_some() {
        return if from.1.pair == Some(to.0) { Ok(()) } else { Err(DropReason::Isolated) };
    }
    if to.1.owner.is_none() {
        return Ok(());
    }
    if to.1.pair != Some(from.0) {
        return Err(DropReason::Isolated);
    }
    match passage.network {
        Network::Arp(arp) if to.1.addresses.contains(&arp.target) => Ok(()),
        Network::Ip(packet) if packet.is_v4() => ipv4(packet),
        Network::Ip(packet) => ipv6(passage, packet, to.1),
        _ => Err(DropReason::Isolated),
    }
}

/// Of broadcasts and groups DHCP alone (RFC 2131). Not "this network", loopback (RFC 1122, 3.2.1.3) or link-local (RFC 3927),
/// where a cloud tells its host secrets.
fn ipv4(packet: &Packet) -> Result<(), DropReason> {
    let address = packet.destination as u32;
    match (address >> 24, packet.upper) {
        _ if address == u32::MAX => match packet.upper {
            Upper::Udp { destination: 67, .. } => Ok(()),
            _ => Err(DropReason::Isolated),
        },
        (224..240, _) => Err(DropReason::Isolated),
        (0 | 127 | 240.., _) => Err(DropReason::Martian),
        _ if address >> 16 == 0xa9fe => Err(DropReason::Martian),
        _ => Ok(()),
    }
}

/// Of groups DHCPv6 and router and neighbour discovery alone. Not `::`, loopback (RFC 4291, 2.5), and of link-local ones only its
/// own. IPv4 in disguise (`::ffff:0:0/96`) is malformed already.
fn ipv6(passage: &Passage, packet: &Packet, port: &Port) -> Result<(), DropReason> {
    let address = packet.destination;
    if let (ICMP6, Upper::Icmp { kind: 135, .. }) = (packet.protocol, packet.upper) {
        let said = discovery(passage.header, packet, 135, &[0; 6])?;
        let known = said.target.is_some_and(|target| port.addresses.contains(&target));
        return if known { Ok(()) } else { Err(DropReason::Isolated) };
    }
    if address >> 120 == 0xff {
        return match packet.upper {
            Upper::Udp { destination: 547, .. } => Ok(()),
            Upper::Icmp { kind: 133, .. } if packet.protocol == ICMP6 => Ok(()),
            _ => Err(DropReason::Isolated),
        };
    }
    if is_somewhere(address) || port.addresses.contains(&address) { Ok(()) } else { Err(DropReason::Martian) }
}

/// Whether it is an IPv6 address of a host that is not on this link. EC2 tells its hosts secrets at fd00:ec2::254.
fn is_somewhere(address: Address) -> bool {
    const EC2: Address = 0xfd00_0ec2 << 96;
    address >> 96 != 0 && !is_local(address) && address >> 32 != EC2 >> 32
}
