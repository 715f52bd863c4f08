//! A frame's headers, parsed once: Ethernet II, one 802.1Q tag, ARP (RFC 826), IPv4 (RFC 791), IPv6 (RFC 8200), and of TCP, UDP,
//! ICMP and ICMPv6 what tells connections apart.
//!
//! What the frame is too short for is malformed; what lies beyond the part that we look at is too deep. Neither is forwarded.

use super::fdb::Mac;
use super::reason::DropReason;

/// Most extension headers of an IPv6 packet; real ones have none or one.
const MAX_EXTENSIONS: usize = 6;

/// The IPv4 part of the address space below, `::ffff:0:0/96`.
const MAPPED: u128 = 0xffff << 32;

/// An IP address; IPv4 as `::ffff:a.b.c.d`, which no IPv6 packet that we forward has.
pub type Address = u128;

/// ICMP.
pub const ICMP: u8 = 1;
/// IGMP.
pub const IGMP: u8 = 2;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMPv6.
pub const ICMP6: u8 = 58;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const OPTIONS: u8 = 60;

/// TCP flags (RFC 9293, 3.1).
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Begin.
    pub const SYN: u8 = 2;
    /// There is no connection.
    pub const RST: u8 = 4;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
}

/// The headers of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// To whom.
    pub destination: Mac,
    /// From whom.
    pub source: Mac,
    /// VLAN of its tag; 0 in a tag that has only a priority.
    pub tag: Option<u16>,
    /// What it carries.
    pub network: Network,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// ARP for IPv4 on Ethernet.
    Arp(Arp),
    /// IPv4 or IPv6.
    Ip(Packet),
    /// Something else: its ethertype, or a length below 1536 (IEEE 802.3).
    Other(u16),
}

/// An ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 asks, 2 answers.
    pub operation: u16,
    /// Who speaks.
    pub mac: Mac,
    /// And with which address.
    pub sender: Address,
    /// Whom it asks for, or answers.
    pub target: Address,
}

/// An IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// From whom.
    pub source: Address,
    /// To whom.
    pub destination: Address,
    /// Of its upper layer, after all extension headers.
    pub protocol: u8,
    /// Where the upper layer begins in the frame, and where the packet ends.
    pub span: (usize, usize),
    /// If it is a part of a packet.
    pub fragment: Option<Fragment>,
    /// What the upper layer says.
    pub upper: Upper,
}

/// A part of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The same in all parts.
    pub id: u32,
    /// It has the upper layer's header.
    pub first: bool,
}

/// The upper layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upper {
    /// TCP.
    Tcp {
        /// Of the sender.
        source: u16,
        /// Of the receiver.
        destination: u16,
        /// See [`flags`].
        flags: u8,
    },
    /// UDP.
    Udp {
        /// Of the sender.
        source: u16,
        /// Of the receiver.
        destination: u16,
    },
    /// ICMP or ICMPv6.
    Icmp {
        /// Its type.
        kind: u8,
        /// Of an echo; means nothing in others.
        id: u16,
    },
    /// Another protocol, or a part without the header.
    Other,
}

/// The part of a frame that is looked at.
#[derive(Clone, Copy)]
struct Window<'a> {
    header: &'a [u8],
    /// Bytes of all that may be read, from the start of the frame; the rest is padding.
    end: usize,
}

impl Window<'_> {
    fn get<const N: usize>(&self, at: usize) -> Result<[u8; N], DropReason> {
        if at + N > self.end {
            return Err(DropReason::Malformed);
        }
        let bytes = self.header.get(at..at + N).and_then(|bytes| bytes.first_chunk());
        bytes.copied().ok_or(DropReason::TooDeep)
    }

    fn word(&self, at: usize) -> Result<u16, DropReason> {
        Ok(u16::from_be_bytes(self.get(at)?))
    }
}

impl Packet {
    /// Whether it is IPv4.
    pub fn is_v4(&self) -> bool {
        is_v4(self.source)
    }

    /// The ports of both ends; of an echo its id twice, 0 where there are none.
    pub fn ports(&self) -> (u16, u16) {
        match self.upper {
            Upper::Tcp { source, destination, .. } | Upper::Udp { source, destination } => {
                (source, destination)
            }
            Upper::Icmp { id, .. } => (id, id),
            Upper::Other => (0, 0),
        }
    }
}

/// The IPv4 address.
pub fn v4(bytes: [u8; 4]) -> Address {
    MAPPED | u128::from(u32::from_be_bytes(bytes))
}

/// Whether the address is one of IPv4.
pub fn is_v4(address: Address) -> bool {
    address >> 32 == MAPPED >> 32
}

impl Frame {
    /// The headers of a frame of `length` bytes that begins with `header`.
    ///
    /// # Errors
    /// Why it cannot be forwarded.
    pub fn parse(header: &[u8], length: usize) -> Result<Frame, DropReason> {
        let window = Window { header, end: length };
        let (destination, source) = (window.get(0)?, window.get::<6>(6)?);
        if source[0] & 1 != 0 || source == [0; 6] {
            return Err(DropReason::Malformed);
        }
        let (mut tag, mut at) = (None, 14);
        let mut ethertype = window.word(12)?;
        if ethertype == 0x8100 {
            tag = Some(window.word(14)? & 0xfff);
            (ethertype, at) = (window.word(16)?, 18);
        }
        let network = match ethertype {
            0x8100 | 0x88a8 | 0x9100 | 0x9200 => return Err(DropReason::Vlan),
            0x0806 => arp(window, at)?,
            0x0800 => Network::Ip(ipv4(window, at)?),
            0x86dd => Network::Ip(ipv6(window, at)?),
            other => Network::Other(other),
        };
        Ok(Frame { destination, source, tag, network })
    }
}

fn arp(window: Window, at: usize) -> Result<Network, DropReason> {
    // Ethernet, IPv4, and the lengths of their addresses.
    if window.get(at)? != [0, 1, 8, 0, 6, 4] {
        return Err(DropReason::Malformed);
    }
    let (operation, mac) = (window.word(at + 6)?, window.get(at + 8)?);
    let (sender, target) = (v4(window.get(at + 14)?), v4(window.get(at + 24)?));
    Ok(Network::Arp(Arp { operation, mac, sender, target }))
}

fn ipv4(window: Window, at: usize) -> Result<Packet, DropReason> {
    let [version, _, ..] = window.get::<20>(at)?;
    let (words, size) = (usize::from(version & 15), usize::from(window.word(at + 2)?));
    if version >> 4 != 4 || words < 5 || size < words * 4 || at + size > window.end {
        return Err(DropReason::Malformed);
    }
    let [place, id] = [window.word(at + 6)?, window.word(at + 4)?];
    let (more, offset) = (place & 0x2000 != 0, place & 0x1fff);
    let [protocol] = window.get(at + 9)?;
    let fragment = (more || offset != 0).then_some(Fragment { id: id.into(), first: offset == 0 });
    let window = Window { end: at + size, ..window };
    let span = (at + words * 4, at + size);
    // The second part of a TCP header would replace what was checked in the first (RFC 3128).
    if protocol == TCP && offset == 1 {
        return Err(DropReason::Malformed);
    }
    let upper = if offset == 0 { upper(window, span.0, protocol)? } else { Upper::Other };
    let (source, destination) = (v4(window.get(at + 12)?), v4(window.get(at + 16)?));
    Ok(Packet { source, destination, protocol, span, fragment, upper })
}

fn ipv6(window: Window, at: usize) -> Result<Packet, DropReason> {
    let [version, ..] = window.get::<40>(at)?;
    let end = at + 40 + usize::from(window.word(at + 4)?);
    if version >> 4 != 6 || end > window.end {
        return Err(DropReason::Malformed);
    }
    let window = Window { end, ..window };
    let (source, destination) =
        (u128::from_be_bytes(window.get(at + 8)?), u128::from_be_bytes(window.get(at + 24)?));
    if is_v4(source) || is_v4(destination) {
        return Err(DropReason::Malformed);
    }
    let [next] = window.get(at + 6)?;
    let (protocol, begin, fragment) = extensions(window, at + 40, next)?;
    let first = fragment.is_none_or(|fragment| fragment.first);
    let upper = if first { upper(window, begin, protocol)? } else { Upper::Other };
    Ok(Packet { source, destination, protocol, span: (begin, end), fragment, upper })
}

/// The upper layer's protocol, where it begins, and the fragment header (RFC 8200, 4).
fn extensions(
    window: Window,
    mut at: usize,
    mut next: u8,
) -> Result<(u8, usize, Option<Fragment>), DropReason> {
    let mut fragment = None;
    for place in 0..=MAX_EXTENSIONS {
        let length = match next {
            HOP_BY_HOP if place == 0 => 8 + 8 * usize::from(window.get::<2>(at)?[1]),
            OPTIONS => 8 + 8 * usize::from(window.get::<2>(at)?[1]),
            // Type 0 goes where it likes (RFC 5095).
            ROUTING if window.get::<3>(at)?[2] == 0 => return Err(DropReason::Malformed),
            ROUTING => 8 + 8 * usize::from(window.get::<2>(at)?[1]),
            AUTHENTICATION => 8 + 4 * usize::from(window.get::<2>(at)?[1]),
            FRAGMENT if fragment.is_none() => {
                let part = window.word(at + 2)?;
                let id = u32::from_be_bytes(window.get(at + 4)?);
                fragment = Some(Fragment { id, first: part & 0xfff8 == 0 });
                if part & 0xfff8 != 0 {
                    return Ok((window.get::<1>(at)?[0], at + 8, fragment));
                }
                8
            }
            HOP_BY_HOP | FRAGMENT => return Err(DropReason::Malformed),
            protocol => return Ok((protocol, at, fragment)),
        };
        [next] = window.get(at)?;
        at += length;
    }
    Err(DropReason::TooDeep)
}

fn upper(window: Window, at: usize, protocol: u8) -> Result<Upper, DropReason> {
    Ok(match protocol {
        TCP => {
            let header = window.get::<20>(at)?;
            if header[12] >> 4 < 5 {
                return Err(DropReason::Malformed);
            }
            Upper::Tcp { source: window.word(at)?, destination: window.word(at + 2)?, flags: header[13] }
        }
        UDP => {
            window.get::<8>(at)?;
            Upper::Udp { source: window.word(at)?, destination: window.word(at + 2)? }
        }
        ICMP | ICMP6 => {
            let header = window.get::<8>(at)?;
            Upper::Icmp { kind: header[0], id: window.word(at + 4)? }
        }
        _ => Upper::Other,
    })
}

/// What an ICMP error is about: the packet that the one who gets the error has sent (RFC 792, RFC 4443).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Who sent it.
    pub source: Address,
    /// To whom.
    pub destination: Address,
    /// Of its upper layer.
    pub protocol: u8,
    /// Of both ends, as of [`Packet::ports`].
    pub ports: (u16, u16),
}

/// What the ICMP error `packet` in `header` is about. `None` if that cannot be seen.
pub fn inner(header: &[u8], packet: &Packet) -> Option<Inner> {
    let window = Window { header, end: packet.span.1 };
    let at = packet.span.0 + 8;
    let (source, destination, protocol, begin) = if packet.protocol == ICMP {
        let [version] = window.get(at).ok()?;
        let [protocol] = window.get(at + 9).ok()?;
        let addresses = (v4(window.get(at + 12).ok()?), v4(window.get(at + 16).ok()?));
        (addresses.0, addresses.1, protocol, at + 4 * usize::from(version & 15).max(5))
    } else {
        let [next] = window.get(at + 6).ok()?;
        let (protocol, begin, _) = extensions(window, at + 40, next).ok()?;
        let addresses = (window.get(at + 8).ok()?, window.get(at + 24).ok()?);
        (u128::from_be_bytes(addresses.0), u128::from_be_bytes(addresses.1), protocol, begin)
    };
    let ports = match protocol {
        TCP | UDP => (window.word(begin).ok()?, window.word(begin + 2).ok()?),
        ICMP | ICMP6 => (window.word(begin + 4).ok()?, window.word(begin + 4).ok()?),
        _ => (0, 0),
    };
    Some(Inner { source, destination, protocol, ports })
}

/// What of a neighbour discovery (RFC 4861, 4) a sender could lie about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// The address that it is about, of a solicitation or an advertisement.
    pub target: Option<Address>,
    /// Whether each link-layer address in its options is `mac`.
    pub own: bool,
}

/// The neighbour discovery in `packet` of type `kind`, which says that its sender is `mac`.
///
/// # Errors
/// If it is malformed, or cannot be seen as a whole.
pub fn discovery(header: &[u8], packet: &Packet, kind: u8, mac: &Mac) -> Result<Discovery, DropReason> {
    let (begin, end) = packet.span;
    let window = Window { header, end };
    let target = matches!(kind, 135 | 136).then(|| window.get(begin + 8)).transpose()?;
    let mut at = begin + if target.is_some() { 24 } else { 8 };
    let mut own = true;
    while at < end {
        let [option, words] = window.get(at)?;
        if words == 0 {
            return Err(DropReason::Malformed);
        }
        // Source and target link-layer address.
        if matches!(option, 1 | 2) {
            own &= words == 1 && window.get::<6>(at + 2)? == *mac;
        }
        at += 8 * usize::from(words);
    }
    if at != end {
        return Err(DropReason::Malformed);
    }
    Ok(Discovery { target: target.map(u128::from_be_bytes), own })
}
