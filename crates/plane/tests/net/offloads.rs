//! What a sender leaves to be done is passed on to receivers that take it, and done for those that do not.

use nagaya_client::NetOptions;
use nagaya_client::net::HEADER;
use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4};

use crate::street::{Street, mac, nothing, received, send, send_with};

const TAKES_ALL: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;

/// A TCP segment over IPv4 without options, from machine 1 to machine `to`.
fn tcp(to: u8, payload: usize) -> Vec<u8> {
    let mut frame = [&mac(to)[..], &mac(1)[..], &[8, 0]].concat();
    let total = (40 + payload) as u16;
    frame.extend([
        0x45,
        0,
        (total >> 8) as u8,
        total as u8,
        0,
        1,
        0,
        0,
        64,
        6,
        0,
        0,
        10,
        0,
        0,
        1,
        10,
        0,
        0,
        to,
    ]);
    frame.extend([0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.resize(54 + payload, 7);
    frame
}

/// NEEDS_CSUM, a kind of segments, their size, where the checksum begins and where it belongs.
fn header(kind: u8, size: u16, start: u8, offset: u8) -> [u8; HEADER] {
    let [low, high] = size.to_le_bytes();
    [1, kind, 0, 0, low, high, start, 0, offset, 0, 0, 0]
}

#[test]
fn a_large_segment_arrives_whole_or_cut() {
    let street = Street::new();
    let mut a = street.guest(1, NetOptions::default());
    let mut able = street.guest(2, NetOptions { features: TAKES_ALL, ..NetOptions::default() });
    let mut plain = street.guest(3, NetOptions::default());
    let sent = tcp(2, 14_000);
    send_with(&mut a, &header(1, 1448, 34, 16), &sent);
    let (got, frame) = able.wait(crate::street::PATIENCE).unwrap().unwrap();
    assert_eq!((&frame, got[..2].to_vec(), got[2]), (&sent, vec![1, 1], 54));
    assert!(u16::from_le_bytes([got[10], got[11]]) >= 7, "in several buffers");
    send_with(&mut a, &header(1, 1448, 34, 16), &tcp(3, 14_000));
    let segments: Vec<Vec<u8>> = (0..10).map(|_| received(&mut plain)).collect();
    assert!(segments[..9].iter().all(|segment| segment.len() == 54 + 1448));
    assert_eq!(segments.iter().map(|segment| segment.len() - 54).sum::<usize>(), 14_000);
    nothing(&mut plain);
}

#[test]
fn a_header_that_would_change_what_was_checked_is_refused() {
    let street = Street::new();
    let mut a = street.guest(1, NetOptions::default());
    let mut b = street.guest(2, NetOptions { features: TAKES_ALL, ..NetOptions::default() });
    let frame = tcp(2, 100);
    let wrong = [
        header(0, 0, 14, 12),    // the source address
        header(0, 0, 34, 0),     // the source port
        header(0, 0, 34, 200),   // behind the end
        header(1, 0, 34, 16),    // segments of nothing
        header(3, 1448, 34, 16), // UFO was not offered
        header(4, 1448, 34, 16), // IPv6, which it is not
        header(5, 1448, 34, 6),  // UDP, which it is not
        [0, 1, 0, 0, 100, 0, 34, 0, 16, 0, 0, 0],
    ];
    for header in &wrong {
        send_with(&mut a, header, &frame);
    }
    nothing(&mut b);
    street.await_drops("m1/net0", "bad-header", wrong.len() as u64);
    send(&mut a, &frame);
    assert_eq!(received(&mut b), frame);
}
