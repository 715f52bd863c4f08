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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, word by word.
    fn reference(bytes: &[u8]) -> u16 {
        let words =
            bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum as u16
    }

    /// A frame of this kind with `payload`, its checksum's field holding that of the pseudo header, and what is left to be done.
    fn frame(kind: Gso, payload: &[u8], size: u16) -> (Vec<u8>, Checksum, Segmentation) {
        let v4 = kind == Gso::Tcp4;
        let udp = kind == Gso::Udp;
        let mut frame = vec![2; 12];
        frame.extend(if v4 { [8, 0] } else { [0x86, 0xdd] });
        let transport = if udp { 8 } else { 20 };
        let length = (transport + payload.len()) as u16;
        let protocol = if udp { PROTOCOL_UDP } else { PROTOCOL_TCP };
        if v4 {
            let total = (20 + length).to_be_bytes();
            frame.extend([
                0x45, 0, total[0], total[1], 0xff, 0xff, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
            ]);
        } else {
            frame.extend([0x60, 0, 0, 0, length.to_be_bytes()[0], length.to_be_bytes()[1], protocol, 64]);
            frame.extend((0..32).map(|at| at * 7));
        }
        let start = frame.len();
        if udp {
            frame.extend([0x12, 0x34, 0, 53, length.to_be_bytes()[0], length.to_be_bytes()[1], 0, 0]);
        } else {
            frame.extend([
                0x12,
                0x34,
                0,
                80,
                0xff,
                0xff,
                0xff,
                0xf0,
                0,
                0,
                0,
                1,
                0x50,
                CWR | PSH | FIN | 0x10,
                1,
                0,
                0,
                0,
                0,
                0,
            ]);
        }
        let headers = frame.len() as u16;
        frame.extend(payload);
        let checksum = Checksum { start: start as u16, offset: if udp { 6 } else { 16 } };
        let field = start + usize::from(checksum.offset);
        let pseudo = pseudo(&frame, start).to_be_bytes();
        frame[field..field + 2].copy_from_slice(&pseudo);
        (frame, checksum, Segmentation { kind, ecn: true, size, headers })
    }

    fn pseudo(frame: &[u8], start: usize) -> u16 {
        let (addresses, protocol) =
            if frame[14] >> 4 == 4 { (26..34, frame[23]) } else { (22..54, frame[20]) };
        let mut bytes = frame[addresses].to_vec();
        bytes.extend([0, protocol]);
        bytes.extend(((frame.len() - start) as u16).to_be_bytes());
        reference(&bytes)
    }

    /// Whether a receiver would take the frame: the sum over all is all ones.
    fn is_sound(frame: &[u8], start: usize) -> bool {
        let ip = frame[14] >> 4 == 6 || reference(&frame[14..start]) == 0xffff;
        let mut bytes = pseudo(frame, start).to_be_bytes().to_vec();
        bytes.extend(&frame[start..]);
        ip && reference(&bytes) == 0xffff
    }

    fn kind() -> impl Strategy<Value = Gso> {
        prop_oneof![Just(Gso::Tcp4), Just(Gso::Tcp6), Just(Gso::Udp)]
    }

    #[test]
    fn a_checksum_of_zero_is_written_as_ones() {
        let mut frame = vec![0; 20];
        frame[14..16].copy_from_slice(&[0xff, 0xff]);
        complete(&mut frame, Checksum { start: 14, offset: 4 });
        assert_eq!(frame[18..20], [0xff, 0xff]);
    }

    proptest! {
        #[test]
        fn a_completed_frame_is_sound(kind in kind(), payload in prop::collection::vec(any::<u8>(), 0..3000)) {
            let (mut frame, checksum, _) = frame(kind, &payload, 1);
            // Of a frame that is not cut the header of IPv4 is whole.
            if kind == Gso::Tcp4 {
                let value = (!reference(&frame[14..34])).to_be_bytes();
                frame[24..26].copy_from_slice(&value);
            }
            complete(&mut frame, checksum);
            prop_assert!(is_sound(&frame, checksum.start.into()));
        }

        #[test]
        fn segments_are_sound_and_hold_the_payload(
            kind in kind(), payload in prop::collection::vec(any::<u8>(), 1..9000), size in 1_u16..2000,
        ) {
            let (frame, checksum, cut_by) = frame(kind, &payload, size);
            let (headers, start) = (usize::from(cut_by.headers), usize::from(checksum.start));
            let mut segments: Vec<Vec<u8>> = Vec::new();
            cut(&frame, (checksum, cut_by), &mut Vec::new(), |segment| {
                segments.push(segment.to_vec());
                true
            });
            prop_assert_eq!(segments.len(), payload.len().div_ceil(size.into()));
            let whole: Vec<u8> = segments.iter().flat_map(|segment| segment[headers..].to_vec()).collect();
            prop_assert_eq!(whole, payload);
            for (index, segment) in segments.iter().enumerate() {
                prop_assert!(is_sound(segment, start), "segment {index}");
                prop_assert!(segment.len() <= headers + usize::from(size));
                if kind != Gso::Udp {
                    let sequence = u32::from_be_bytes(segment[start + 4..start + 8].try_into().unwrap());
                    prop_assert_eq!(sequence, 0xffff_fff0_u32.wrapping_add(index as u32 * u32::from(size)));
                    let last = index + 1 == segments.len();
                    prop_assert_eq!(segment[start + TCP_FLAGS] & (FIN | PSH) != 0, last);
                    prop_assert_eq!(segment[start + TCP_FLAGS] & CWR != 0, index == 0);
                }
            }
        }

        #[test]
        fn nothing_that_a_guest_claims_makes_it_panic(
            bytes in prop::collection::vec(any::<u8>(), 14..400),
            (start, offset, size, headers) in (0_u16..500, 0_u16..500, 1_u16..500, 0_u16..500),
            kind in kind(), version in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()],
        ) {
            let mut bytes = bytes;
            if let Some(byte) = bytes.get_mut(14) {
                *byte = version;
            }
            let checksum = Checksum { start, offset };
            complete(&mut bytes, checksum);
            // As the header's check leaves it.
            let transport = if kind == Gso::Udp { 8 } else { 20 };
            let headers = headers.max(start.saturating_add(transport));
            let offset = if kind == Gso::Udp { 6 } else { 16 };
            let cut_by = Segmentation { kind, ecn: false, size, headers };
            cut(&bytes, (Checksum { start, offset }, cut_by), &mut Vec::new(), |_| true);
        }
    }
}
