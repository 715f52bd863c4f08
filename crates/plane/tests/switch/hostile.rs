//! Whatever a guest sends, the switch answers, and keeps little.

use nagaya_plane::net::switch::{HEADER, PortId, Rules};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::scene::{GATEWAY, Scene, UPLINK, arp, discovery, guests, guests6, mac, part, tagged, v4, v6};

/// Frames that are nearly right.
fn frames() -> Vec<Vec<u8>> {
    let inner = guests(2, 1).udp(1, 2);
    vec![
        guests(1, 2).udp(5000, 53),
        guests(1, 2).tcp(5000, 80, "S"),
        guests6(1, 2).tcp(5000, 80, "A"),
        guests6(1, 2).icmp(128, [0; 4], b"ping"),
        guests(1, 2).icmp(3, [0; 4], &inner[14..]),
        arp(mac(1), true, (mac(1), v4(1)), v4(2)),
        discovery(guests6(1, 2), 135, v6(2), Some(mac(1))),
        discovery(guests6(1, 2), 136, v6(1), Some(mac(1))),
        part(guests(1, 2), 7, 0, true, &[0; 16]),
        part(guests(1, 2), 7, 2, false, &[0; 16]),
        tagged(7, &guests(1, 2).udp(1, 2)),
        guests6(1, 2).protocol(60, &[17, 0, 1, 4, 0, 0, 0, 0, 0, 1, 0, 2, 0, 8, 0, 0]),
        guests6(1, 2).protocol(44, &[17, 0, 0, 1, 0, 0, 0, 9, 0, 1, 0, 2, 0, 8, 0, 0]),
    ]
}

fn scene() -> Scene {
    let mut scene = Scene::new();
    scene.set(1, r#"{"trunk": [7]}"#);
    scene.set(2, r#"{"trunk": [7], "security": [{"direction": "in", "peer": "10.0.0.0/8"}]}"#);
    scene.switch.set_rules(3, Rules { spoof: true, ..Rules::default() }).unwrap();
    scene
}

proptest! {
    #[test]
    fn a_frame_with_some_bytes_wrong_goes_somewhere_or_nowhere(
        which in 0..13usize,
        wrong in vec((0..100usize, any::<u8>()), 0..6),
        cut in 0..200usize,
        from in prop_oneof![Just(1u32), Just(3), Just(UPLINK)],
    ) {
        let mut scene = scene();
        let mut frame = frames()[which].clone();
        for (place, byte) in wrong {
            let place = place % frame.len();
            frame[place] = byte;
        }
        frame.truncate(frame.len().saturating_sub(cut % 64));
        let ports = scene.send(from, &frame).unwrap_or_default();
        prop_assert!(!ports.contains(&from));
        let mut once: Vec<PortId> = ports.clone();
        once.dedup();
        prop_assert_eq!(once, ports);
    }

    /// What arrives from a guest that is not trusted has its addresses, whatever it tried.
    #[test]
    fn what_a_guest_sends_is_from_itself(
        which in 0..13usize,
        wrong in vec((6..60usize, any::<u8>()), 0..4),
    ) {
        let mut scene = scene();
        let mut frame = frames()[which].clone();
        for (place, byte) in wrong {
            let place = place % frame.len();
            frame[place] = byte;
        }
        if scene.send(1, &frame).is_ok() {
            prop_assert_eq!(&frame[6..12], &mac(1));
            let sliced = etherparse::SlicedPacket::from_ethernet(&frame);
            let net = sliced.ok().and_then(|packet| packet.net);
            match net {
                Some(etherparse::NetSlice::Ipv4(ip)) => {
                    let source = ip.header().source_addr();
                    prop_assert!(source == v4(1) || source.is_unspecified());
                }
                Some(etherparse::NetSlice::Ipv6(ip)) => {
                    let source = ip.header().source_addr();
                    let local = source.segments()[0] == 0xfe80;
                    prop_assert!(source == v6(1) || source.is_unspecified() || local);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn any_bytes_at_all(bytes in vec(any::<u8>(), 0..300), longer in 0..70000usize) {
        let mut scene = scene();
        let mut header = bytes[..bytes.len().min(HEADER)].to_vec();
        let length = if header.len() == HEADER { HEADER + longer } else { header.len() };
        for from in [1, 3, UPLINK, 77, u32::MAX] {
            let _ = scene.switch.decide(scene.now, from, &mut header, length, 1, &mut Vec::new());
        }
    }
}

#[test]
fn a_header_that_is_not_all_there_is_refused() {
    let mut scene = scene();
    let frame = guests(1, 2).udp(1, 2);
    for cut in 0..frame.len() {
        let mut short = frame[..cut].to_vec();
        let length = frame.len();
        scene.switch.decide(scene.now, 1, &mut short, length, 1, &mut Vec::new()).unwrap_err();
    }
    assert_eq!(scene.send(UPLINK, &guests(9, 1).to(mac(1), "10.77.0.1").udp(1, 2)), Ok(vec![1]));
    assert_ne!(GATEWAY, mac(9));
}
