//! Which address is where, and frames for many.

use nagaya_plane::net::switch::fdb::{AGE, GUEST_ADDRESSES};
use nagaya_plane::net::switch::{DropReason, PortKind, Rules};

use crate::scene::{BROADCAST, GATEWAY, SECOND, Scene, UPLINK, arp, guests, mac, rules, v4, world};

fn ask(number: u8) -> Vec<u8> {
    arp(mac(number), true, (mac(number), v4(number)), v4(99))
}

#[test]
fn a_broadcast_goes_to_all_others_and_a_known_address_to_one() {
    let mut scene = Scene::new();
    assert_eq!(scene.send(1, &ask(1)), Ok(vec![2, 3, 4, UPLINK]));
    assert_eq!(scene.send(1, &guests(1, 2).udp(1, 2)), Ok(vec![2]));
    // A guest has no other address than its own: what nobody has is beyond the uplink.
    assert_eq!(scene.send(1, &world(1).udp(1, 2)), Ok(vec![UPLINK]));
    assert_eq!(scene.send(UPLINK, &world(1).back().udp(1, 2)), Ok(vec![1]));
    scene.switch.set_rules(2, Rules { spoof: true, ..rules(2) }).unwrap();
    assert_eq!(scene.send(1, &world(1).udp(1, 2)), Ok(vec![UPLINK]));
    scene.now += AGE;
    assert_eq!(scene.send(1, &world(1).udp(1, 2)), Ok(vec![2, UPLINK]));
    assert_eq!(scene.send(1, &guests(1, 1).udp(1, 2)), Err(DropReason::Hairpin));
}

#[test]
fn nobody_takes_the_address_of_a_guest_or_of_the_gateway() {
    let mut scene = Scene::new();
    scene.switch.set_rules(2, Rules { spoof: true, ..rules(2) }).unwrap();
    assert_eq!(scene.send(UPLINK, &guests(1, 2).udp(1, 2)), Err(DropReason::MacInUse));
    assert_eq!(scene.send(2, &guests(1, 3).udp(1, 2)), Err(DropReason::MacInUse));
    scene.send(UPLINK, &world(1).back().udp(1, 2)).unwrap();
    assert_eq!(scene.send(2, &world(3).back().udp(1, 2)), Err(DropReason::MacInUse));
    assert_eq!(scene.dropped(2, DropReason::MacInUse), 2);
    // What a guest was only heard with moves to where it is heard next.
    let mut other = guests(2, 3);
    other.source.0 = [2, 0, 0, 0, 0, 1];
    assert_eq!(scene.send(2, &other.udp(1, 2)), Ok(vec![3]));
    let mut back = guests(3, 2);
    back.destination.0 = other.source.0;
    assert_eq!(scene.send(3, &back.udp(1, 2)), Ok(vec![2]));
    assert_eq!(scene.send(UPLINK, &other.udp(1, 2)), Ok(vec![3]));
    assert_eq!(scene.send(3, &back.udp(1, 2)), Ok(vec![UPLINK]));
    assert_eq!(scene.switch.learnt(2), 0);
}

#[test]
fn learnt_addresses_are_bounded_and_forgotten() {
    let mut scene = Scene::new();
    scene.switch.set_rules(1, Rules { spoof: true, ..rules(1) }).unwrap();
    let from = |scene: &mut Scene, number: u32| {
        let mut ends = guests(1, 2);
        ends.source.0[2..].copy_from_slice(&number.to_be_bytes());
        ends.source.0[0] = 2;
        scene.send(1, &ends.udp(1, 2)).unwrap();
    };
    (0..2 * GUEST_ADDRESSES).for_each(|number| from(&mut scene, number));
    assert_eq!(scene.switch.learnt(1), GUEST_ADDRESSES);
    scene.now += AGE;
    (0..2).for_each(|_| from(&mut scene, 1 << 31));
    assert_eq!(scene.switch.learnt(1), 1);
}

#[test]
fn a_port_that_went_is_forgotten_and_its_number_free() {
    let mut scene = Scene::new();
    scene.switch.add_port(2, PortKind::Guest, Some(mac(9)), rules(9)).unwrap_err();
    scene.switch.add_port(9, PortKind::Guest, Some(mac(2)), rules(9)).unwrap_err();
    scene.switch.remove_port(2);
    assert_eq!(scene.send(1, &guests(1, 2).udp(1, 2)), Ok(vec![UPLINK]));
    assert_eq!(scene.send(2, &guests(2, 1).udp(1, 2)), Err(DropReason::LinkDown));
    scene.switch.add_port(2, PortKind::Guest, Some(mac(2)), rules(2)).unwrap();
    assert_eq!(scene.send(1, &guests(1, 2).udp(1, 2)), Ok(vec![2]));
}

#[test]
fn isolated_guests_talk_with_uplinks_only() {
    let mut scene = Scene::new();
    scene.set(1, r#"{"isolated": true}"#);
    assert_eq!(scene.send(1, &guests(1, 2).udp(1, 2)), Err(DropReason::Isolated));
    assert_eq!(scene.send(2, &guests(2, 1).udp(1, 2)), Err(DropReason::Isolated));
    assert_eq!(scene.send(1, &ask(1)), Ok(vec![UPLINK]));
    assert_eq!(scene.send(2, &ask(2)), Ok(vec![3, 4, UPLINK]));
    assert_eq!(scene.send(UPLINK, &world(1).back().udp(1, 2)), Ok(vec![1]));
}

#[test]
fn two_uplinks_do_not_make_a_loop() {
    let mut scene = Scene::new();
    scene.switch.add_port(101, PortKind::Uplink, None, Rules::uplink()).unwrap();
    let mut ends = world(1).back();
    assert_eq!(scene.send(101, &arp(GATEWAY, true, (GATEWAY, v4(1)), v4(2))), Ok(vec![1, 2, 3, 4]));
    ends.destination.0 = [2; 6];
    assert_eq!(scene.send(UPLINK, &ends.udp(1, 2)), Ok(vec![]));
    // Bridges' own frames are theirs.
    ends.destination.0 = [1, 0x80, 0xc2, 0, 0, 0];
    assert_eq!(scene.send(UPLINK, &ends.udp(1, 2)), Err(DropReason::Reserved));
}

#[test]
fn storms_are_limited_and_unicast_is_not() {
    let mut scene = Scene::new();
    scene.set(1, r#"{"storm_pps": 100}"#);
    let mut many = [0; 3];
    for _ in 0..1000 {
        many[0] += usize::from(scene.send(1, &ask(1)).is_ok());
        let multicast = guests(1, 0).to([1, 0, 0x5e, 0, 0, 1], "224.0.0.1");
        many[1] += usize::from(scene.send(1, &multicast.udp(1, 2)).is_ok());
        many[2] += usize::from(scene.send(1, &world(1).udp(1, 2)).is_ok());
        scene.send(1, &guests(1, 2).udp(1, 2)).unwrap();
        scene.now += SECOND / 100;
    }
    assert!(many.iter().all(|frames| *frames == 1000), "{many:?}");
    scene.now += SECOND;
    let broadcasts = (0..1000).filter(|_| scene.send(1, &ask(1)).is_ok()).count();
    assert_eq!(broadcasts, 25);
    assert_eq!(scene.send(1, &ask(1)), Err(DropReason::StormBroadcast));
    assert_eq!(scene.send(2, &ask(2)), Ok(vec![1, 3, 4, UPLINK]));
    assert_eq!(scene.dropped(1, DropReason::StormBroadcast), 976);
    assert_eq!(ask(1)[..6], BROADCAST);
}

#[test]
fn both_directions_of_a_connection_are_one_flow() {
    let mut scene = Scene::new();
    let mut flow = |from, frame: &[u8]| {
        let mut header = frame.to_vec();
        scene.switch.decide(SECOND, from, &mut header, frame.len(), 1, &mut Vec::new()).unwrap().flow
    };
    let one = flow(1, &guests(1, 2).udp(1000, 53));
    assert_eq!(one, flow(2, &guests(2, 1).udp(53, 1000)));
    assert_ne!(one, flow(1, &guests(1, 2).udp(1001, 53)));
    assert_ne!(one, flow(1, &guests(1, 3).udp(1000, 53)));
}
