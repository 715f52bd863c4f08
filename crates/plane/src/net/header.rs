//! The header before each frame, `struct virtio_net_hdr` (virtio 1.3, 5.1.6): what is left to be done to the frame.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};

use crate::net::switch::frame::{ICMP, ICMP6, TCP, UDP};
use crate::net::switch::{DropReason, Ip};

/// Bytes of the header, with VIRTIO_F_VERSION_1 or VIRTIO_NET_F_MRG_RXBUF; and without (5.1.6.1).
pub const LENGTH: usize = 12;
/// See [`LENGTH`].
pub const LEGACY_LENGTH: usize = 10;

/// Bytes of an Ethernet header without a tag.
pub const ETHERNET: usize = 14;

/// Where TCP and UDP have their checksums (RFC 9293, RFC 768), and bytes of a UDP header.
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
const UDP_HEADER: usize = 8;

/// Most segments that one frame may stand for: Linux sends at most 64 KiB, in segments of 536 bytes or more unless
/// somebody asks for less. What a frame may cost us is bounded by it.
pub const MAX_SEGMENTS: u32 = 256;

/// Of what protocol a frame's segments are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

/// How a frame is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// Of what.
    pub kind: Gso,
    /// TCP that signals congestion: CWR is for the first segment alone.
    pub ecn: bool,
    /// Bytes of payload in each segment but the last.
    pub size: u16,
    /// Bytes of all headers.
    pub headers: u16,
}

/// Where a checksum is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Where what it covers begins.
    pub start: u16,
    /// Where it belongs, from `start`.
    pub offset: u16,
}

/// What is left to be done to a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Fill in a checksum; the field holds that of the pseudo header (5.1.6.2).
    pub checksum: Option<Checksum>,
    /// Cut it into segments, each with a checksum.
    pub segmentation: Option<Segmentation>,
}

/// Nothing is left to be done.
pub const PLAIN: Offload = Offload { checksum: None, segmentation: None };

impl Offload {
    /// Whether the header in `bytes` leaves nothing to be done.
    pub fn is_plain(bytes: &[u8; LEGACY_LENGTH]) -> bool {
        let (flags, kind) = (u32::from(bytes[0]), u32::from(bytes[1]));
        flags & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 && kind & !VIRTIO_NET_HDR_GSO_ECN == VIRTIO_NET_HDR_GSO_NONE
    }

    /// Check the header in `bytes`, of a frame of `length` bytes that begins with `front`. Nothing in it is believed that
    /// the frame itself can tell.
    ///
    /// # Errors
    /// [`DropReason::BadHeader`].
    pub fn parse(
        bytes: &[u8; LEGACY_LENGTH],
        front: &[u8],
        length: usize,
    ) -> Result<(Offload, u32), DropReason> {
        if Offload::is_plain(bytes) {
            return Ok((PLAIN, 1));
        }
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let (flags, kind) = (u32::from(bytes[0]), u32::from(bytes[1]));
        if flags & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
            return Err(DropReason::BadHeader);
        }
        let checksum = Checksum { start: word(6), offset: word(8) };
        let start = usize::from(checksum.start);
        if start < ETHERNET || start + usize::from(checksum.offset) + 2 > length {
            return Err(DropReason::BadHeader);
        }
        let ecn = kind & VIRTIO_NET_HDR_GSO_ECN != 0;
        let kind = match kind & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_NONE => {
                return Ok((Offload { checksum: Some(checksum), segmentation: None }, 1));
            }
            VIRTIO_NET_HDR_GSO_TCPV4 => Gso::Tcp4,
            VIRTIO_NET_HDR_GSO_TCPV6 => Gso::Tcp6,
            VIRTIO_NET_HDR_GSO_UDP_L4 => Gso::Udp,
            _ => return Err(DropReason::BadHeader),
        };
        let headers = headers(kind, checksum, front).ok_or(DropReason::BadHeader)?;
        let size = word(4);
        if size == 0 || usize::from(headers) >= length {
            return Err(DropReason::BadHeader);
        }
        let segments = (length - usize::from(headers)).div_ceil(size.into()) as u32;
        if segments > MAX_SEGMENTS {
            return Err(DropReason::BadHeader);
        }
        let segmentation = Some(Segmentation { kind, ecn, size, headers });
        Ok((Offload { checksum: Some(checksum), segmentation }, segments))
    }

    /// Whether what is left to be done stays behind what the switch has looked at: whoever fills in a checksum writes two bytes
    /// of the sender's choice, and must not change addresses or ports with them.
    pub fn fits(&self, ip: Option<Ip>) -> bool {
        let Some(checksum) = self.checksum else { return true };
        let Some(ip) = ip.filter(|ip| !ip.fragment) else { return false };
        let start = usize::from(checksum.start);
        let at_upper = start == ip.upper;
        if let Some(cut) = self.segmentation {
            let kind = match cut.kind {
                Gso::Tcp4 => ip.v4 && ip.protocol == TCP,
                Gso::Tcp6 => !ip.v4 && ip.protocol == TCP,
                Gso::Udp => ip.protocol == UDP,
            };
            return kind && at_upper;
        }
        match ip.protocol {
            TCP => at_upper && checksum.offset == TCP_CHECKSUM,
            // Or of what is in a tunnel.
            UDP => at_upper && checksum.offset == UDP_CHECKSUM || start >= ip.upper + UDP_HEADER,
            ICMP | ICMP6 => false,
            _ => start >= ip.upper,
        }
    }

    /// As bytes, for a receiver that gets the frame in so many `buffers`.
    pub fn bytes(&self, buffers: u16) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[10..12].copy_from_slice(&buffers.to_le_bytes());
        let Some(checksum) = self.checksum else { return bytes };
        bytes[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
        bytes[6..8].copy_from_slice(&checksum.start.to_le_bytes());
        bytes[8..10].copy_from_slice(&checksum.offset.to_le_bytes());
        let Some(segmentation) = self.segmentation else { return bytes };
        let kind = match segmentation.kind {
            Gso::Tcp4 => VIRTIO_NET_HDR_GSO_TCPV4,
            Gso::Tcp6 => VIRTIO_NET_HDR_GSO_TCPV6,
            Gso::Udp => VIRTIO_NET_HDR_GSO_UDP_L4,
        };
        bytes[1] = kind as u8 | if segmentation.ecn { VIRTIO_NET_HDR_GSO_ECN as u8 } else { 0 };
        bytes[2..4].copy_from_slice(&segmentation.headers.to_le_bytes());
        bytes[4..6].copy_from_slice(&segmentation.size.to_le_bytes());
        bytes
    }

    /// Bytes on the wire of a frame of `length` bytes that is `segments` there: each has the headers.
    pub fn wire(&self, length: usize, segments: u32) -> u32 {
        let headers = self.segmentation.map_or(0, |cut| u32::from(cut.headers));
        length as u32 + headers * segments.saturating_sub(1)
    }

    /// The same of a frame that has `by` bytes more (or less) before the checksum's start: its VLAN tag.
    #[must_use]
    pub fn shifted(mut self, by: i16) -> Offload {
        if let Some(checksum) = &mut self.checksum {
            checksum.start = checksum.start.saturating_add_signed(by);
        }
        if let Some(segmentation) = &mut self.segmentation {
            segmentation.headers = segmentation.headers.saturating_add_signed(by);
        }
        self
    }

    /// Bytes of the largest frame that comes of one of `length` bytes.
    pub fn largest(&self, length: usize) -> usize {
        let segment = self.segmentation.map(|cut| usize::from(cut.headers) + usize::from(cut.size));
        segment.map_or(length, |segment| segment.min(length))
    }
}

/// Where the headers end, told by the frame: its transport header begins where its checksum does.
fn headers(kind: Gso, checksum: Checksum, front: &[u8]) -> Option<u16> {
    let start = usize::from(checksum.start);
    let transport = match kind {
        Gso::Udp => UDP_HEADER,
        Gso::Tcp4 | Gso::Tcp6 => usize::from(front.get(start + 12)? >> 4) * 4,
    };
    let (field, least) = if kind == Gso::Udp { (UDP_CHECKSUM, UDP_HEADER) } else { (TCP_CHECKSUM, 20) };
    let whole = transport >= least && start + transport <= front.len() && checksum.offset == field;
    whole.then_some((start + transport) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The front of a TCP frame without options, over IPv4.
    fn front() -> Vec<u8> {
        let mut front = vec![0; 54];
        front[34 + 12] = 5 << 4;
        front
    }

    fn bytes(flags: u8, kind: u8, size: u16, start: u16, offset: u16) -> [u8; LEGACY_LENGTH] {
        let mut bytes = [0; LEGACY_LENGTH];
        (bytes[0], bytes[1]) = (flags, kind);
        bytes[4..6].copy_from_slice(&size.to_le_bytes());
        bytes[6..8].copy_from_slice(&start.to_le_bytes());
        bytes[8..10].copy_from_slice(&offset.to_le_bytes());
        bytes
    }

    #[test]
    fn a_header_survives_the_way_through() {
        let header = bytes(1, 1 | 0x80, 1448, 34, 16);
        let (offload, segments) = Offload::parse(&header, &front(), 54 + 14480).unwrap();
        assert_eq!((segments, offload.segmentation.unwrap().headers), (10, 54));
        let mut expected = header;
        expected[2] = 54;
        assert_eq!(offload.bytes(1)[..10], expected);
        assert_eq!(offload.largest(54 + 14480), 54 + 1448);
        assert_eq!(offload.shifted(4).bytes(1)[6], 38);
        assert_eq!(Offload::parse(&[0; 10], &front(), 60), Ok((Offload::default(), 1)));
        // Flags that are not for devices to see are not passed on (5.1.6.2.1).
        assert_eq!(
            Offload::parse(&bytes(2 | 4, 0, 9, 9, 9), &front(), 60).unwrap().0.bytes(1)[..10],
            [0; 10]
        );
    }

    #[test]
    fn a_header_that_makes_no_sense_is_refused() {
        for (wrong, why) in [
            (bytes(0, 1, 1448, 34, 16), "segments without checksums"),
            (bytes(1, 1, 0, 34, 16), "segments of nothing"),
            (bytes(1, 1, 1, 34, 16), "too many segments"),
            (bytes(1, 3, 1448, 34, 16), "UFO was not offered"),
            (bytes(1, 0x7f, 1448, 34, 16), "no such kind"),
            (bytes(1, 1, 1448, 13, 16), "a checksum of the Ethernet header"),
            (bytes(1, 0, 0, 34, 15_000), "a checksum behind the end"),
            (bytes(1, 0, 0, 0xffff, 0xffff), "a checksum far behind the end"),
            (bytes(1, 1, 1448, 50, 16), "half a TCP header"),
            (bytes(1, 1, 1448, 34, 6), "TCP with the checksum of UDP"),
            (bytes(1, 5, 1448, 34, 16), "UDP with the checksum of TCP"),
        ] {
            assert_eq!(Offload::parse(&wrong, &front(), 14_534), Err(DropReason::BadHeader), "{why}");
        }
    }

    #[test]
    fn a_checksum_is_written_where_the_switch_has_not_looked() {
        let ip = |protocol| Some(Ip { v4: true, protocol, upper: 34, fragment: false });
        let at = |start, offset| Offload { checksum: Some(Checksum { start, offset }), segmentation: None };
        assert!(Offload::default().fits(None) && at(34, 16).fits(ip(TCP)) && at(34, 6).fits(ip(UDP)));
        assert!(at(42, 0).fits(ip(UDP)) && at(34, 4).fits(ip(47)), "what is in a tunnel is not looked at");
        assert!(!at(34, 16).fits(None), "of no IP packet");
        assert!(!at(34, 16).fits(ip(TCP).map(|ip| Ip { fragment: true, ..ip })));
        for (start, offset, protocol, what) in [
            (14, 12, TCP, "the source address"),
            (34, 0, TCP, "the source port"),
            (34, 2, UDP, "the destination port"),
            (18, 16, 47, "the destination address"),
            (34, 0, ICMP, "the type of a message"),
        ] {
            assert!(!at(start, offset).fits(ip(protocol)), "it would change {what}");
        }
        let (tcp, _) = Offload::parse(&bytes(1, 1, 1448, 34, 16), &front(), 14_534).unwrap();
        assert!(tcp.fits(ip(TCP)) && !tcp.fits(ip(UDP)));
        assert!(!tcp.fits(ip(TCP).map(|ip| Ip { v4: false, ..ip })), "IPv6 to be cut as IPv4");
        assert!(!tcp.fits(ip(TCP).map(|ip| Ip { upper: 38, ..ip })), "options cut away");
    }

    proptest! {
        #[test]
        fn what_is_believed_lies_in_the_frame(
            header in any::<[u8; LEGACY_LENGTH]>(),
            front in prop::collection::vec(any::<u8>(), 14..193),
            rest in 0_usize..65_536,
        ) {
            let length = front.len() + if front.len() == 192 { rest } else { 0 };
            if let Ok((offload, segments)) = Offload::parse(&header, &front, length) {
                prop_assert!((1..=MAX_SEGMENTS).contains(&segments));
                if let Some(checksum) = offload.checksum {
                    prop_assert!(usize::from(checksum.start) + usize::from(checksum.offset) + 2 <= length);
                }
                if let Some(cut) = offload.segmentation {
                    prop_assert!(usize::from(cut.headers) <= front.len() && usize::from(cut.headers) < length);
                }
            }
        }
    }
}
