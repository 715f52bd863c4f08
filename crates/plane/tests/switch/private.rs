//! Ways out of one machine alone: what gets there, what comes from there, and what does not.

use std::net::Ipv6Addr;

use nagaya_plane::net::switch::{DropReason, PortId, PortKind, Rules};

use crate::scene::{
    BROADCAST, Ends, GATEWAY, Scene, UPLINK, arp, discovery, guests, guests6, local, mac, rules, v4, v6,
    world,
};

/// The ways out of guests 1 and 2; 3 and 4 have none.
const FIRST: PortId = 101;
const SECOND: PortId = 102;
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

fn scene() -> Scene {
    let mut scene = Scene::new();
    scene.switch.remove_port(UPLINK);
    for (guest, uplink) in [(1, FIRST), (2, SECOND)] {
        scene.switch.set_name(guest, &format!("m{guest}/net0"));
        add(&mut scene, uplink, &format!("m{guest}/net0"));
    }
    scene
}

fn add(scene: &mut Scene, uplink: PortId, owner: &str) {
    let rules = Rules { addresses: vec![v4(254).into(), ROUTER.into()], ..Rules::uplink() };
    scene.switch.add_port(uplink, PortKind::Uplink, None, rules).unwrap();
    scene.switch.set_name(uplink, &format!("%{owner}"));
    scene.switch.set_owner(uplink, owner);
}

fn world6(from: u8) -> Ends {
    guests6(from, 0).to(GATEWAY, "2001:db8::1")
}

#[test]
fn each_has_its_own_and_guests_have_one_another() {
    let mut scene = scene();
    for (guest, uplink, other) in [(1, FIRST, SECOND), (2, SECOND, FIRST)] {
        let number = guest as u8;
        assert!(scene.arrives(guest, uplink, &world(number).udp(1, 2)));
        assert!(scene.arrives(guest, uplink, &world6(number).udp(1, 2)));
        assert!(scene.arrives(uplink, guest, &world(number).back().udp(1, 2)));
        assert_eq!(scene.send(other, &world(number).back().udp(1, 2)), Err(DropReason::Isolated));
    }
    assert!(scene.arrives(1, 2, &guests(1, 2).udp(1, 2)));
    assert_eq!(scene.send(3, &world(3).udp(1, 2)), Ok(vec![]), "no way out");
    // However much: it is no flood.
    for _ in 0..10_000 {
        assert!(scene.arrives(1, FIRST, &world(1).udp(1, 2)));
    }
}

#[test]
fn it_is_asked_for_its_own_addresses_alone() {
    let mut scene = scene();
    let ask = |target| arp(mac(1), true, (mac(1), v4(1)), target);
    assert_eq!(scene.send(1, &ask(v4(254))), Ok(vec![2, 3, 4, FIRST]));
    assert_eq!(scene.send(1, &ask(v4(2))), Ok(vec![2, 3, 4]));
    assert_eq!(scene.send(1, &ask(v4(99))), Ok(vec![2, 3, 4]));
    let many = guests6(1, 0).to([0x33, 0x33, 0xff, 0, 0, 1], "ff02::1:ff00:1");
    assert_eq!(scene.send(1, &discovery(many, 135, ROUTER, Some(mac(1)))), Ok(vec![2, 3, 4, FIRST]));
    assert_eq!(scene.send(1, &discovery(many, 135, v6(2), Some(mac(1)))), Ok(vec![2, 3, 4]));
    let one = guests6(1, 0).to(GATEWAY, "fe80::1");
    assert!(scene.arrives(1, FIRST, &discovery(one, 135, ROUTER, Some(mac(1)))));
    assert!(scene.arrives(1, FIRST, &discovery(one, 136, v6(1), Some(mac(1)))));
}

#[test]
fn of_what_goes_to_many_it_gets_dhcp_and_discovery() {
    let mut scene = scene();
    let all = guests(1, 0).to(BROADCAST, "255.255.255.255");
    assert_eq!(scene.send(1, &all.from("0.0.0.0").udp(68, 67)), Ok(vec![2, 3, 4, FIRST]));
    assert_eq!(scene.send(1, &all.udp(68, 137)), Ok(vec![2, 3, 4]));
    let group = guests(1, 0).to([1, 0, 0x5e, 0, 0, 0xfb], "224.0.0.251");
    assert_eq!(scene.send(1, &group.udp(5353, 5353)), Ok(vec![2, 3, 4]));
    let routers = guests6(1, 0).from(&local(1).to_string()).to([0x33, 0x33, 0, 0, 0, 2], "ff02::2");
    assert_eq!(scene.send(1, &routers.icmp(133, [0; 4], &[])), Ok(vec![2, 3, 4, FIRST]));
    assert_eq!(scene.send(1, &routers.icmp(143, [0; 4], &[0; 20])), Ok(vec![2, 3, 4]));
    let servers = guests6(1, 0).to([0x33, 0x33, 0, 1, 0, 2], "ff02::1:2");
    assert_eq!(scene.send(1, &servers.udp(546, 547)), Ok(vec![2, 3, 4, FIRST]));
}

#[test]
fn the_host_itself_is_out_of_reach() {
    let mut scene = scene();
    let (four, six) = (guests(1, 0), guests6(1, 0));
    for address in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "169.254.169.254", "240.0.0.1"] {
        assert_eq!(
            scene.send(1, &four.to(GATEWAY, address).udp(1, 2)),
            Err(DropReason::Martian),
            "{address}"
        );
    }
    for address in ["::", "::1", "::7f00:1", "fe80::2", "fd00:ec2::254"] {
        assert_eq!(scene.send(1, &six.to(GATEWAY, address).udp(1, 2)), Err(DropReason::Martian), "{address}");
    }
    assert_eq!(scene.dropped(1, DropReason::Martian), 11);
    for address in ["192.0.2.1", "10.0.0.1", "169.253.0.1"] {
        assert!(scene.arrives(1, FIRST, &four.to(GATEWAY, address).udp(1, 2)), "{address}");
    }
    for address in ["2001:db8::1", "fd00:ec3::254", "64:ff9b::7f00:1", "fe80::1"] {
        assert!(scene.arrives(1, FIRST, &six.to(GATEWAY, address).udp(1, 2)), "{address}");
    }
}

#[test]
fn nobody_else_is_the_router() {
    let mut scene = Scene::new();
    scene.switch.remove_port(UPLINK);
    let claim = |from: u8| discovery(guests6(from, 3).from("fe80::1"), 136, ROUTER, Some(mac(from)));
    assert!(scene.send(2, &claim(2)).is_ok(), "while there is none");
    scene.switch.set_name(1, "m1/net0");
    add(&mut scene, FIRST, "m1/net0");
    for guest in [1, 2, 4] {
        assert_eq!(scene.send(guest.into(), &claim(guest)), Err(DropReason::NdSpoof));
    }
}

#[test]
fn machine_and_way_out_come_and_go_in_any_order() {
    let mut scene = scene();
    let frame = world(1).udp(1, 2);
    scene.switch.remove_port(FIRST);
    assert_eq!(scene.send(1, &frame), Ok(vec![]));
    add(&mut scene, 7, "m1/net0");
    assert!(scene.arrives(1, 7, &frame));
    scene.switch.remove_port(1);
    assert_eq!(scene.send(7, &world(1).back().udp(1, 2)), Ok(vec![]));
    // Another machine at the same place is another machine.
    scene.switch.add_port(1, PortKind::Guest, Some(mac(1)), rules(1)).unwrap();
    scene.switch.set_name(1, "m9/net0");
    assert_eq!(scene.send(1, &frame), Ok(vec![]));
    assert_eq!(scene.send(7, &world(1).back().udp(1, 2)), Err(DropReason::Isolated));
    scene.switch.remove_port(1);
    scene.switch.add_port(8, PortKind::Guest, Some(mac(1)), rules(1)).unwrap();
    scene.switch.set_name(8, "m1/net0");
    assert!(scene.arrives(8, 7, &frame));
}
