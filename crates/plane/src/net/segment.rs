//! What a receiver does not take on itself, done here: checksums, and cutting large frames into segments.

use crate::net::header::{Checksum, Gso, Segmentation};

/// Offsets of the fields that differ between segments: IPv4's (RFC 791), IPv6's (RFC 8200), TCP's (RFC 9293), UDP's.
const IPV4_LENGTH: usize = 2;
const IPV4_ID: usize = 4;
const IPV4_CHECKSUM: usize = 10;
const IPV6_LENGTH: usize = 4;
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const UDP_LENGTH: usize = 4;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// The sum of RFC 1071 over `bytes`, not complemented, on top of `sum`.
fn sum(bytes: &[u8], sum: u64) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let add = |sum: u64, word: u64| {
        let (sum, carry) = sum.overflowing_add(word);
        sum + u64::from(carry)
    };
    let total = words.iter().fold(sum, |sum, word| add(sum, u64::from_ne_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    add(total, u64::from_ne_bytes(last))
}

/// As 16 bits in the order of the bytes, complemented.
fn fold(mut sum: u64) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!(sum as u16)).to_ne_bytes()
}

/// Fill in the checksum that is missing in `frame`; its field holds that of the pseudo header.
pub fn complete(frame: &mut [u8], checksum: Checksum) {
    let (start, offset) = (usize::from(checksum.start), usize::from(checksum.offset));
    let Some(covered) = frame.get_mut(start..) else { return };
    let value = fold(sum(covered, 0));
    if let Some(field) = covered.get_mut(offset..offset + 2) {
        // 0 would say that there is none (RFC 768); the other protocols take both for the same.
        field.copy_from_slice(if value == [0, 0] { &[0xff, 0xff] } else { &value });
    }
}

/// Give each segment of `frame` to `each`, whole and with its checksums, until that returns false. `segment` is room for one.
/// A frame whose headers do not fit its kind gives none.
pub fn cut(
    frame: &[u8],
    (checksum, cut): (Checksum, Segmentation),
    segment: &mut Vec<u8>,
    mut each: impl FnMut(&mut [u8]) -> bool,
) {
    let headers = usize::from(cut.headers);
    let Some((network, least)) = network(frame, cut.kind) else { return };
    if frame.len() <= headers || usize::from(checksum.start) < network + least {
        return;
    }
    let count = (frame.len() - headers).div_ceil(cut.size.into());
    for (index, payload) in frame[headers..].chunks(cut.size.into()).enumerate() {
        segment.clear();
        segment.extend_from_slice(&frame[..headers]);
        segment.extend_from_slice(payload);
        let place = Place { index, last: index + 1 == count };
        finish(segment, network, (checksum, cut), place);
        if !each(segment) {
            return;
        }
    }
}

/// Which of the segments.
struct Place {
    index: usize,
    last: bool,
}

/// Where the network header of a frame of this kind begins, and its least length.
fn network(frame: &[u8], kind: Gso) -> Option<(usize, usize)> {
    let tagged = frame.get(12..14)? == [0x81, 0];
    let network = if tagged { 18 } else { 14 };
    let version = frame.get(network)? >> 4;
    let header = if version == 4 { 20 } else { 40 };
    let fits = match kind {
        Gso::Tcp4 => version == 4,
        Gso::Tcp6 => version == 6,
        Gso::Udp => version == 4 || version == 6,
    };
    (fits && frame.len() >= network + header).then_some((network, header))
}

/// Make the headers those of this segment.
fn finish(segment: &mut [u8], network: usize, (checksum, cut): (Checksum, Segmentation), place: Place) {
    let transport = usize::from(checksum.start);
    let put = |segment: &mut [u8], at: usize, value: u16| {
        segment[at..at + 2].copy_from_slice(&value.to_be_bytes());
    };
    let length = segment.len();
    let addresses = if segment[network] >> 4 == 4 {
        put(segment, network + IPV4_LENGTH, (length - network) as u16);
        let id = u16::from_be_bytes([segment[network + IPV4_ID], segment[network + IPV4_ID + 1]]);
        put(segment, network + IPV4_ID, id.wrapping_add(place.index as u16));
        put(segment, network + IPV4_CHECKSUM, 0);
        let value = fold(sum(&segment[network..transport], 0));
        segment[network + IPV4_CHECKSUM..network + IPV4_CHECKSUM + 2].copy_from_slice(&value);
        network + 12..network + 20
    } else {
        put(segment, network + IPV6_LENGTH, (length - network - 40) as u16);
        network + 8..network + 40
    };
    let protocol = if cut.kind == Gso::Udp {
        put(segment, transport + UDP_LENGTH, (length - transport) as u16);
        PROTOCOL_UDP
    } else {
        let at = transport + TCP_SEQUENCE;
        let sequence = u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]]);
        let sequence = sequence.wrapping_add(place.index as u32 * u32::from(cut.size));
        segment[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
        let flags = &mut segment[transport + TCP_FLAGS];
        *flags &= !(if place.last { 0 } else { FIN | PSH } | if place.index == 0 { 0 } else { CWR });
        PROTOCOL_TCP
    };
    let pseudo = sum(&[0, protocol], sum(&segment[addresses], 0));
    let pseudo = sum(&((length - transport) as u16).to_be_bytes(), pseudo);
    let field = fold(pseudo).map(|byte| !byte);
    let at = transport + usize::from(checksum.offset);
    segment[at..at + 2].copy_from_slice(&field);
    complete(segment, checksum);
}
