//! Who a guest may say it is.

use std::net::{Ipv4Addr, Ipv6Addr};

use nagaya_plane::net::switch::{DropReason, PortKind, Rules};

use crate::scene::{
    BROADCAST, Ends, GATEWAY, SECOND, Scene, UPLINK, arp, discovery, guests, guests6, local, mac, v4, v6,
};

const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Guest 1 to all, from `source`.
fn from(source: Ipv6Addr) -> Ends {
    Ends { source: (mac(1), source.into()), destination: (ALL_NODES, "ff02::1".parse().unwrap()) }
}

#[test]
fn a_guest_sends_from_its_own_addresses() {
    let mut scene = Scene::new();
    assert!(scene.arrives(1, 2, &guests(1, 2).udp(1, 2)));
    assert!(scene.arrives(1, 2, &guests6(1, 2).udp(1, 2)));
    let mut wrong = guests(1, 2);
    wrong.source.0 = mac(3);
    assert_eq!(scene.send(1, &wrong.udp(1, 2)), Err(DropReason::MacSpoof));
    for source in ["10.77.0.3", "0.0.0.0", "127.0.0.1", "255.255.255.255", "224.0.0.1"] {
        assert_eq!(
            scene.send(1, &guests(1, 2).from(source).udp(1, 2)),
            Err(DropReason::Ipv4Spoof),
            "{source}"
        );
    }
    for source in ["fd00::3", "::", "::1", "ff02::1", "fe80:1::1"] {
        assert_eq!(
            scene.send(1, &guests6(1, 2).from(source).udp(1, 2)),
            Err(DropReason::Ipv6Spoof),
            "{source}"
        );
    }
    assert_eq!(scene.dropped(1, DropReason::Ipv4Spoof), 5);
    // An IPv4 address in IPv6 is on no wire (RFC 4291, 2.5.5.2).
    let mapped = guests6(1, 2).from("::ffff:10.77.0.1").udp(1, 2);
    assert_eq!(scene.send(1, &mapped), Err(DropReason::Malformed));
}

#[test]
fn a_guest_without_a_list_has_any_address_that_a_machine_can_have() {
    let mut scene = Scene::new();
    scene.set(1, r#"{"addresses": []}"#);
    assert!(scene.arrives(1, 2, &guests(1, 2).from("10.77.0.3").udp(1, 2)));
    assert!(scene.arrives(1, 2, &guests6(1, 2).from("fe80::3").udp(1, 2)));
    assert_eq!(scene.send(1, &guests(1, 2).from("127.0.0.1").udp(1, 2)), Err(DropReason::Ipv4Spoof));
    let frame = arp(mac(1), true, (mac(2), v4(3)), v4(4));
    assert_eq!(scene.send(1, &frame), Err(DropReason::ArpSpoof));
}

#[test]
fn arp_speaks_for_its_sender_only() {
    let mut scene = Scene::new();
    for asks in [true, false] {
        let good = arp(mac(1), asks, (mac(1), v4(1)), v4(2));
        assert!(scene.send(1, &good).is_ok());
        for sender in [(mac(1), v4(2)), (mac(2), v4(1)), (GATEWAY, v4(1))] {
            let frame = arp(mac(1), asks, sender, v4(2));
            assert_eq!(scene.send(1, &frame), Err(DropReason::ArpSpoof), "{sender:?}");
        }
    }
    // A probe (RFC 5227, 2.1.1) has no sender; an answer has one.
    let none = (mac(1), Ipv4Addr::UNSPECIFIED);
    assert!(scene.send(1, &arp(mac(1), true, none, v4(1))).is_ok());
    assert_eq!(scene.send(1, &arp(mac(1), false, none, v4(1))), Err(DropReason::ArpSpoof));
    let mut reverse = arp(mac(1), true, (mac(1), v4(1)), v4(2));
    reverse[21] = 3;
    assert_eq!(scene.send(1, &reverse), Err(DropReason::ArpSpoof));
    reverse[12..14].copy_from_slice(&0x8035u16.to_be_bytes());
    assert_eq!(scene.send(1, &reverse), Err(DropReason::Ethertype));
}

#[test]
fn neighbour_discovery_speaks_for_its_sender_only() {
    let mut scene = Scene::new();
    let (own, other) = (guests6(1, 2), v6(2));
    for kind in [135, 136] {
        assert!(scene.arrives(1, 2, &discovery(own, kind, v6(1), Some(mac(1)))));
        let frame = discovery(own, kind, v6(1), Some(mac(2)));
        assert_eq!(scene.send(1, &frame), Err(DropReason::NdSpoof));
    }
    assert!(scene.arrives(1, 2, &discovery(own, 135, other, Some(mac(1)))));
    assert_eq!(scene.send(1, &discovery(own, 136, other, Some(mac(1)))), Err(DropReason::NdSpoof));
    assert_eq!(scene.send(1, &discovery(own, 136, other, None)), Err(DropReason::NdSpoof));
    // Options that end elsewhere than the packet, or nowhere.
    let mut endless = discovery(own, 135, other, Some(mac(1)));
    let option = endless.len() - 7;
    endless[option] = 0;
    assert_eq!(scene.send(1, &endless), Err(DropReason::Malformed));
    endless[option] = 9;
    assert_eq!(scene.send(1, &endless), Err(DropReason::Malformed));
}

#[test]
fn an_address_to_be_is_asked_for_and_used() {
    let mut scene = Scene::new();
    let nobody = Ipv6Addr::UNSPECIFIED;
    assert!(scene.send(1, &discovery(from(nobody), 135, v6(1), None)).is_ok());
    assert!(scene.send(1, &discovery(from(nobody), 135, local(1), None)).is_ok());
    assert_eq!(scene.send(1, &discovery(from(nobody), 135, v6(2), None)), Err(DropReason::NdSpoof));
    assert!(scene.send(1, &from(nobody).icmp(133, [0; 4], &[])).is_ok());
    assert!(scene.send(1, &from(local(1)).icmp(143, [0; 4], &[0; 20])).is_ok());
    let everybody = guests(1, 0).to(BROADCAST, "255.255.255.255").from("0.0.0.0");
    assert!(scene.send(1, &everybody.udp(68, 67)).is_ok());
    assert_eq!(scene.send(1, &everybody.udp(68, 69)), Err(DropReason::Ipv4Spoof));
}

#[test]
fn a_link_local_address_belongs_to_who_uses_it_first() {
    let mut scene = Scene::new();
    let random = "fe80::1234:5678:9abc:def0".parse().unwrap();
    assert!(scene.send(1, &from(random).icmp(143, [0; 4], &[0; 20])).is_ok());
    let mut thief = from(random);
    thief.source.0 = mac(2);
    assert_eq!(scene.send(2, &thief.udp(1, 2)), Err(DropReason::Ipv6Spoof));
    assert_eq!(scene.send(2, &discovery(thief, 136, random, Some(mac(2)))), Err(DropReason::NdSpoof));
    // Made from the MAC address of another.
    assert_eq!(scene.send(1, &from(local(2)).udp(1, 2)), Err(DropReason::Ipv6Spoof));
    // Two of them, and another when one was not used for a while.
    assert!(scene.send(1, &from(local(1)).udp(1, 2)).is_ok());
    let third = "fe80::3".parse().unwrap();
    assert_eq!(scene.send(1, &from(third).udp(1, 2)), Err(DropReason::Ipv6Spoof));
    scene.now += 61 * SECOND;
    assert!(scene.send(1, &from(third).udp(1, 2)).is_ok());
}

#[test]
fn the_gateways_link_local_address_is_no_guests() {
    let mut scene = Scene::new();
    let gateway: Ipv6Addr = "fe80::1".parse().unwrap();
    assert!(scene.send(1, &from(gateway).udp(1, 2)).is_ok());
    let mut uplink = from(gateway);
    uplink.source.0 = GATEWAY;
    assert!(scene.send(UPLINK, &uplink.icmp(134, [0; 4], &[0; 8])).is_ok());
    assert_eq!(scene.send(1, &from(gateway).udp(1, 2)), Err(DropReason::Ipv6Spoof));
    // But what a guest made from its own MAC address nobody takes away.
    assert!(scene.send(1, &from(local(1)).udp(1, 2)).is_ok());
    uplink.source.1 = local(1).into();
    assert!(scene.send(UPLINK, &uplink.udp(1, 2)).is_ok());
    assert!(scene.send(1, &from(local(1)).udp(1, 2)).is_ok());
}

#[test]
fn only_those_who_may_answer_dhcp_and_announce_routers() {
    let mut scene = Scene::new();
    let offer = guests(1, 2).udp(67, 68);
    let advertise = guests6(1, 2).udp(547, 546);
    let router = from(local(1)).icmp(134, [0; 4], &[0; 8]);
    for (frame, reason) in [
        (&offer, DropReason::DhcpServer),
        (&advertise, DropReason::DhcpServer),
        (&router, DropReason::RouterAdvertisement),
        (&from(local(1)).icmp(137, [0; 4], &[0; 32]), DropReason::RouterAdvertisement),
    ] {
        assert_eq!(scene.send(1, frame), Err(reason));
        scene.switch.set_rules(1, Rules { spoof: true, ..Rules::default() }).unwrap();
        assert_eq!(scene.send(1, frame), Err(reason));
        scene.set(1, "{}");
    }
    scene.set(1, r#"{"dhcp_server": true, "router_advertisements": true}"#);
    for frame in [&offer, &advertise, &router] {
        assert!(scene.send(1, frame).is_ok());
    }
    assert!(scene.send(UPLINK, &guests(9, 2).udp(67, 68)).is_ok());
}

#[test]
fn extensions_hide_nothing() {
    let mut scene = Scene::new();
    let solicit = discovery(guests6(1, 2), 136, v6(2), None);
    // Destination options between the IPv6 header and ICMPv6.
    let wrap = |next: u8, extension: &[u8]| {
        let mut frame = [&solicit[..54], extension, &solicit[54..]].concat();
        frame[20] = next;
        let length = (frame.len() - 54) as u16;
        frame[18..20].copy_from_slice(&length.to_be_bytes());
        frame
    };
    assert_eq!(scene.send(1, &wrap(60, &[58, 0, 1, 4, 0, 0, 0, 0])), Err(DropReason::NdSpoof));
    assert_eq!(scene.send(1, &wrap(0, &[58, 0, 1, 4, 0, 0, 0, 0])), Err(DropReason::NdSpoof));
    assert_eq!(scene.send(1, &wrap(43, &[58, 0, 0, 0, 0, 0, 0, 0])), Err(DropReason::Malformed));
    // The first of several parts (RFC 6980).
    assert_eq!(scene.send(1, &wrap(44, &[58, 0, 0, 1, 0, 0, 0, 7])), Err(DropReason::NdSpoof));
    let deep = [[60, 0, 1, 4, 0, 0, 0, 0].repeat(7), vec![58, 0, 1, 4, 0, 0, 0, 0]].concat();
    assert_eq!(scene.send(1, &wrap(60, &deep)), Err(DropReason::TooDeep));
    let long = [[58, 31, 1, 252].to_vec(), vec![0; 252]].concat();
    assert_eq!(scene.send(1, &wrap(60, &long)), Err(DropReason::TooDeep));
}

#[test]
fn a_mac_address_of_a_group_is_no_machines() {
    let mut scene = Scene::new();
    scene.switch.add_port(9, PortKind::Guest, Some(ALL_NODES), Rules::default()).unwrap_err();
    let mut group = guests(1, 2);
    group.source.0 = ALL_NODES;
    assert_eq!(scene.send(1, &group.udp(1, 2)), Err(DropReason::Malformed));
}
