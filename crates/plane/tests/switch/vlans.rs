//! VLANs (IEEE 802.1Q).

use nagaya_plane::net::switch::{DropReason, Tag};

use crate::scene::{BROADCAST, Scene, UPLINK, arp, guests, mac, tagged, v4, world};

fn ask(number: u8) -> Vec<u8> {
    arp(mac(number), true, (mac(number), v4(number)), v4(99))
}

/// Guests 1 and 2 in VLAN 7, 3 with tags 7 and 8 and none, 4 in none.
fn scene() -> Scene {
    let mut scene = Scene::new();
    scene.set(1, r#"{"vlan": 7}"#);
    scene.set(2, r#"{"vlan": 7}"#);
    scene.set(3, r#"{"trunk": [7, 8]}"#);
    scene
}

#[test]
fn an_access_port_sees_its_vlan_and_a_trunk_sees_tags() {
    let mut scene = scene();
    let add = |port| (port, Tag::Add(7));
    assert_eq!(scene.tags(1, &ask(1)), Ok(vec![(2, Tag::Keep), add(3), add(UPLINK)]));
    assert_eq!(scene.tags(4, &ask(4)), Ok(vec![(3, Tag::Keep), (UPLINK, Tag::Keep)]));
    assert_eq!(
        scene.tags(3, &tagged(7, &ask(3))),
        Ok(vec![(1, Tag::Strip), (2, Tag::Strip), (UPLINK, Tag::Keep)])
    );
    assert_eq!(scene.tags(3, &tagged(8, &ask(3))), Ok(vec![(UPLINK, Tag::Keep)]));
    assert_eq!(scene.tags(3, &ask(3)), Ok(vec![(4, Tag::Keep), (UPLINK, Tag::Keep)]));
    assert_eq!(scene.tags(UPLINK, &tagged(7, &world(1).back().udp(1, 2))), Ok(vec![(1, Tag::Strip)]));
}

#[test]
fn nobody_leaves_its_vlan() {
    let mut scene = scene();
    for wrong in [tagged(7, &ask(1)), tagged(8, &ask(1)), tagged(7, &tagged(7, &ask(1)))] {
        assert_eq!(scene.send(1, &wrong), Err(DropReason::Vlan));
    }
    assert_eq!(scene.send(3, &tagged(9, &ask(3))), Err(DropReason::Vlan));
    assert_eq!(scene.send(3, &tagged(7, &tagged(8, &ask(3)))), Err(DropReason::Vlan));
    let mut service = tagged(7, &ask(3));
    service[12..14].copy_from_slice(&0x88a8u16.to_be_bytes());
    assert_eq!(scene.send(3, &service), Err(DropReason::Vlan));
    // Guest 4 is known, but not in VLAN 7.
    assert_eq!(scene.send(1, &guests(1, 4).udp(1, 2)), Ok(vec![UPLINK]));
    assert_eq!(scene.send(4, &guests(4, 1).udp(1, 2)), Ok(vec![UPLINK]));
}

#[test]
fn a_priority_tag_is_filled_in_or_goes() {
    let mut scene = scene();
    let frame = tagged(0xe000, &ask(1));
    let (mut header, mut out) = (frame.clone(), Vec::new());
    scene.switch.decide(scene.now, 1, &mut header, frame.len(), 1, &mut out).unwrap();
    assert_eq!(header[14..16], [0xe0, 7]);
    let tags: Vec<_> = out.iter().map(|delivery| (delivery.port, delivery.tag)).collect();
    assert_eq!(tags, [(2, Tag::Strip), (3, Tag::Keep), (UPLINK, Tag::Keep)]);
    assert_eq!(frame[..6], BROADCAST);
}
