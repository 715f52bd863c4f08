//! Which connections pass.

use nagaya_plane::net::switch::DropReason;

use crate::scene::{
    Ends, GATEWAY, SECOND, Scene, UPLINK, arp, discovery, guests, guests6, mac, part, v4, v6, world,
};

const WEB: &str = r#"{"security": [{"direction": "in", "protocol": "tcp", "ports": [80, 443]}]}"#;

/// Guest 1 serves the web; 2, 3 and 4 are free.
fn scene() -> Scene {
    let mut scene = Scene::new();
    scene.set(1, WEB);
    scene
}

#[test]
fn a_connection_passes_both_ways_and_nothing_else_does() {
    for (there, back) in [(guests(2, 1), guests(1, 2)), (guests6(2, 1), guests6(1, 2))] {
        let mut scene = scene();
        assert_eq!(scene.send(2, &there.tcp(5000, 22, "S")), Ok(vec![]));
        assert_eq!(scene.send(2, &there.udp(5000, 80)), Ok(vec![]));
        assert_eq!(scene.dropped(1, DropReason::Security), 2);
        assert_eq!(scene.send(1, &back.tcp(80, 5000, "SA")), Err(DropReason::Security));
        assert!(scene.arrives(2, 1, &there.tcp(5000, 80, "S")));
        assert!(scene.arrives(1, 2, &back.tcp(80, 5000, "SA")));
        assert!(scene.arrives(2, 1, &there.tcp(5000, 80, "A")));
        assert_eq!(scene.send(1, &back.tcp(80, 5001, "A")), Err(DropReason::Security));
        assert_eq!(scene.send(1, &back.tcp(81, 5000, "A")), Err(DropReason::Security));
        // The server may answer, not begin: not even with the ports of a connection that there is.
        assert_eq!(scene.send(1, &back.tcp(80, 5000, "S")), Err(DropReason::Security));
        assert!(scene.arrives(1, 2, &back.tcp(80, 5000, "A")));
        // Long idle, and then too long.
        scene.now += 7000 * SECOND;
        assert!(scene.arrives(1, 2, &back.tcp(80, 5000, "A")));
        scene.now += 7501 * SECOND;
        assert_eq!(scene.send(1, &back.tcp(80, 5000, "A")), Err(DropReason::Security));
    }
}

#[test]
fn a_connection_that_ended_is_forgotten_and_its_ports_can_be_used_again() {
    let mut scene = scene();
    scene.send(2, &guests(2, 1).tcp(5000, 80, "S")).unwrap();
    scene.send(1, &guests(1, 2).tcp(80, 5000, "SA")).unwrap();
    scene.send(2, &guests(2, 1).tcp(5000, 80, "FA")).unwrap();
    assert!(scene.arrives(1, 2, &guests(1, 2).tcp(80, 5000, "A")));
    scene.now += 121 * SECOND;
    assert_eq!(scene.send(1, &guests(1, 2).tcp(80, 5000, "FA")), Err(DropReason::Security));
    assert!(scene.arrives(2, 1, &guests(2, 1).tcp(5000, 80, "S")));
}

#[test]
fn answers_by_udp_and_echo_pass_and_questions_do_not() {
    let mut scene = scene();
    scene.set(
        1,
        r#"{"security": [{"direction": "out", "protocol": "udp", "ports": [53, 53]},
            {"direction": "out", "protocol": "icmp"}]}"#,
    );
    assert_eq!(scene.send(2, &guests(2, 1).udp(53, 5000)), Ok(vec![]));
    assert!(scene.arrives(1, 2, &guests(1, 2).udp(5000, 53)));
    assert!(scene.arrives(2, 1, &guests(2, 1).udp(53, 5000)));
    let id = [1, 2, 0, 1];
    assert_eq!(scene.send(2, &guests(2, 1).icmp(8, id, &[])), Ok(vec![]));
    assert_eq!(scene.send(2, &guests(2, 1).icmp(0, id, &[])), Ok(vec![]));
    assert!(scene.arrives(1, 2, &guests(1, 2).icmp(8, id, &[])));
    assert!(scene.arrives(2, 1, &guests(2, 1).icmp(0, id, &[])));
    assert_eq!(scene.send(2, &guests(2, 1).icmp(0, [1, 3, 0, 1], &[])), Ok(vec![]));
    assert!(scene.arrives(1, 2, &guests6(1, 2).icmp(128, id, &[])));
    assert!(scene.arrives(2, 1, &guests6(2, 1).icmp(129, id, &[])));
    // An answer is not asked for by one.
    assert_eq!(scene.send(1, &guests(1, 3).icmp(0, id, &[])), Err(DropReason::Security));
}

#[test]
fn an_error_passes_if_it_is_about_a_connection() {
    let mut scene = scene();
    scene.set(1, r#"{"security": [{"direction": "out", "protocol": "udp"}]}"#);
    let ask = guests(1, 2).udp(5000, 53);
    // From any router on the way, about what guest 1 sent.
    let error = |about: &[u8]| world(1).back().icmp(3, [0; 4], &about[14..]);
    assert_eq!(scene.send(UPLINK, &error(&ask)), Ok(vec![]));
    assert!(scene.arrives(1, 2, &ask));
    assert!(scene.arrives(UPLINK, 1, &error(&ask)));
    assert_eq!(scene.send(UPLINK, &error(&guests(1, 2).udp(5001, 53))), Ok(vec![]));
    assert_eq!(scene.send(UPLINK, &error(&guests(3, 2).udp(5000, 53))), Ok(vec![]));
    // A redirect is no error that we believe.
    assert_eq!(scene.send(UPLINK, &world(1).back().icmp(5, [0; 4], &ask[14..])), Ok(vec![]));
    // The error that guest 1 itself sends about an answer.
    let answer = guests(2, 1).udp(53, 5000);
    assert!(scene.arrives(2, 1, &answer));
    assert!(scene.arrives(1, 2, &guests(1, 2).icmp(3, [0; 4], &answer[14..])));
    let other = guests(2, 1).udp(53, 5009);
    assert_eq!(scene.send(1, &guests(1, 2).icmp(3, [0; 4], &other[14..])), Err(DropReason::Security));
}

#[test]
fn peers_are_networks_and_groups() {
    let mut scene = scene();
    scene.set(
        1,
        r#"{"security": [{"direction": "in", "peer": "group:web"}, {"direction": "out", "peer": "192.0.2.0/24"},
            {"direction": "in", "peer": "fd00::3"}]}"#,
    );
    scene.set(2, r#"{"groups": ["batch", "web"]}"#);
    assert!(scene.arrives(2, 1, &guests(2, 1).tcp(5000, 5432, "S")));
    assert_eq!(scene.send(3, &guests(3, 1).tcp(5000, 5432, "S")), Ok(vec![]));
    assert!(scene.arrives(3, 1, &guests6(3, 1).tcp(5000, 5432, "S")));
    assert_eq!(scene.send(UPLINK, &world(1).back().tcp(5000, 5432, "S")), Ok(vec![]));
    assert!(scene.arrives(1, UPLINK, &world(1).tcp(5000, 80, "S")));
    assert_eq!(scene.send(1, &guests(1, 3).tcp(5000, 80, "S")), Err(DropReason::Security));
    // Who leaves the group loses its connections.
    assert!(scene.arrives(1, 2, &guests(1, 2).tcp(5432, 5000, "SA")));
    scene.set(2, "{}");
    assert_eq!(scene.send(1, &guests(1, 2).tcp(5432, 5000, "A")), Err(DropReason::Security));
    assert_eq!(scene.send(2, &guests(2, 1).tcp(5000, 5432, "A")), Ok(vec![]));
}

#[test]
fn a_connection_ends_that_is_not_allowed_any_more_whoever_speaks_next() {
    for (there, back) in [(guests(2, 1), guests(1, 2)), (guests6(2, 1), guests6(1, 2))] {
        let mut scene = Scene::new();
        let rules = |inbound: &str| {
            format!(r#"{{"security": [{{"direction": "out"}}, {{"direction": "in", {inbound}}}]}}"#)
        };
        let (web, other) = (rules(r#""ports": [80, 80], "protocol": "tcp""#), rules(r#""protocol": "icmp""#));
        scene.set(1, &web);
        assert!(scene.arrives(2, 1, &there.tcp(5000, 80, "S")));
        assert!(scene.arrives(1, 2, &back.tcp(80, 5000, "SA")));
        scene.set(1, &other);
        // The server may begin connections, and this is none.
        assert_eq!(scene.send(1, &back.tcp(80, 5000, "A")), Err(DropReason::Security));
        assert_eq!(scene.send(2, &there.tcp(5000, 80, "A")), Ok(vec![]));
        scene.now += 7000 * SECOND;
        assert_eq!(scene.send(1, &back.tcp(80, 5000, "A")), Err(DropReason::Security));
        assert_eq!(scene.send(2, &there.tcp(5000, 80, "S")), Ok(vec![]), "nor does it begin anew");
        assert!(scene.arrives(1, 2, &back.tcp(80, 5001, "S")), "the server begins another one");
        scene.set(1, &web);
        assert!(scene.arrives(1, 2, &back.tcp(80, 5000, "A")), "it goes on once it is allowed");
        scene.set(1, &other);
        scene.set(1, &web);
        assert!(scene.arrives(2, 1, &there.tcp(5000, 80, "S")));
    }
}

#[test]
fn both_ends_have_a_say() {
    let mut scene = scene();
    scene.set(2, r#"{"security": []}"#);
    assert_eq!(scene.send(2, &guests(2, 1).tcp(5000, 80, "S")), Err(DropReason::Security));
    scene.set(2, r#"{"security": [{"direction": "out"}]}"#);
    assert!(scene.arrives(2, 1, &guests(2, 1).tcp(5000, 80, "S")));
    assert!(scene.arrives(1, 2, &guests(1, 2).tcp(80, 5000, "SA")));
}

#[test]
fn a_machine_that_may_nothing_still_gets_an_address_and_finds_its_neighbours() {
    let mut scene = scene();
    scene.set(1, r#"{"security": []}"#);
    let discover = guests(1, 0).to([0xff; 6], "255.255.255.255").from("0.0.0.0").udp(68, 67);
    // Only a server hears it.
    assert_eq!(scene.send(1, &discover), Ok(vec![UPLINK]));
    assert!(scene.arrives(UPLINK, 1, &world(1).back().udp(67, 68)));
    assert!(scene.send(1, &arp(mac(1), true, (mac(1), v4(1)), v4(2))).is_ok());
    assert!(scene.arrives(2, 1, &discovery(guests6(2, 1), 135, v6(1), Some(mac(2)))));
    let metadata = |port| world(1).to(GATEWAY, "169.254.169.254").tcp(5000, port, "S");
    scene.send(UPLINK, &world(2).back().udp(1, 2)).unwrap();
    assert!(scene.arrives(1, UPLINK, &metadata(80)));
    let answer = world(1).to(GATEWAY, "169.254.169.254").back().tcp(80, 5000, "SA");
    assert!(scene.arrives(UPLINK, 1, &answer));
    assert_eq!(scene.send(1, &metadata(22)), Err(DropReason::Security));
    let multicast = guests(2, 0).to([1, 0, 0x5e, 0, 0, 251], "224.0.0.251").udp(5353, 5353);
    assert_eq!(scene.send(2, &multicast), Ok(vec![3, 4, UPLINK]));
    assert_eq!(scene.send(1, &multicast), Err(DropReason::MacSpoof));
}

#[test]
fn parts_follow_their_first_one() {
    let mut scene = scene();
    scene.set(1, r#"{"security": [{"direction": "in", "protocol": "udp", "ports": [53, 53]}]}"#);
    let ends: Ends = guests(2, 1);
    let header =
        |port: u16| [&5000u16.to_be_bytes()[..], &port.to_be_bytes(), &[0, 24, 0, 0], &[0; 8]].concat();
    assert_eq!(scene.send(2, &part(ends, 7, 2, false, &[0; 8])), Ok(vec![]));
    assert!(scene.arrives(2, 1, &part(ends, 7, 0, true, &header(53))));
    assert!(scene.arrives(2, 1, &part(ends, 7, 2, false, &[0; 8])));
    assert_eq!(scene.send(2, &part(ends, 8, 0, true, &header(54))), Ok(vec![]));
    assert_eq!(scene.send(2, &part(ends, 8, 2, false, &[0; 8])), Ok(vec![]));
    assert_eq!(scene.send(3, &part(guests(3, 1), 7, 2, false, &[0; 8])), Ok(vec![]));
    scene.now += 31 * SECOND;
    assert_eq!(scene.send(2, &part(ends, 7, 2, false, &[0; 8])), Ok(vec![]));
    // Too short to be judged.
    assert_eq!(scene.send(2, &part(ends, 9, 0, true, &[0; 4])), Err(DropReason::Malformed));
}

#[test]
fn after_a_restart_connections_go_on_that_would_have_been_allowed() {
    let mut scene = scene();
    let answers = guests(1, 2).tcp(80, 5000, "A");
    assert_eq!(scene.send(1, &answers), Err(DropReason::Security));
    scene.switch.resume(scene.now + 30 * SECOND);
    assert!(scene.arrives(1, 2, &answers));
    assert!(scene.arrives(2, 1, &guests(2, 1).tcp(5000, 80, "A")));
    assert_eq!(scene.send(1, &guests(1, 2).tcp(22, 5000, "A")), Err(DropReason::Security));
    assert_eq!(scene.send(1, &guests(1, 2).tcp(80, 5001, "S")), Err(DropReason::Security));
    scene.now += 30 * SECOND;
    assert!(scene.arrives(1, 2, &answers));
    assert_eq!(scene.send(1, &guests(1, 2).tcp(80, 5001, "A")), Err(DropReason::Security));
}

#[test]
fn a_flood_of_connections_leaves_those_of_others() {
    let mut scene = scene();
    for port in 0..200 {
        assert!(scene.arrives(2, 1, &guests(2, 1).tcp(5000 + port, 80, "S")));
        assert!(scene.arrives(1, 2, &guests(1, 2).tcp(80, 5000 + port, "SA")));
    }
    scene.now += SECOND;
    // Guest 3 completes as many as it can, more than there is room for.
    for port in 1..=25_000 {
        assert!(scene.arrives(3, 1, &guests(3, 1).tcp(port, 80, "S")));
        assert!(scene.arrives(1, 3, &guests(1, 3).tcp(80, port, "SA")));
    }
    let flows = scene.switch.flows(scene.now, 1, usize::MAX);
    assert!(flows.len() <= 16384, "{}", flows.len());
    let kept = (0..200).filter(|port| scene.arrives(1, 2, &guests(1, 2).tcp(80, 5000 + port, "A"))).count();
    assert_eq!(kept, 200);
}

#[test]
fn flows_are_counted_while_somebody_looks() {
    let mut scene = Scene::new();
    let (there, back) = (guests(2, 3).udp(5000, 53), guests(3, 2).udp(53, 5000));
    scene.send(2, &there).unwrap();
    assert!(scene.switch.flows(scene.now, 2, 10).is_empty());
    for _ in 0..3 {
        scene.send(2, &there).unwrap();
    }
    scene.send(3, &back).unwrap();
    scene.send(2, &guests(2, 3).udp(5000, 54)).unwrap();
    let flows = scene.switch.flows(scene.now, 2, 10);
    assert_eq!(flows.len(), 2);
    assert_eq!((flows[0].packets, flows[0].bytes[0]), ([3, 1], 3 * there.len() as u64));
    assert_eq!((flows[0].key.ports, flows[0].outbound), ((5000, 53), true));
    assert_eq!(scene.switch.flows(scene.now, 2, 1).len(), 1);
    scene.now += 301 * SECOND;
    scene.send(2, &there).unwrap();
    assert!(scene.switch.flows(scene.now, 2, 10).is_empty());
}
