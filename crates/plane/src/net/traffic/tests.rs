use super::*;
use crate::arbiter::Knobs;

const SECOND: Nanos = 1_000_000_000;

fn node(id: &str, limit: Option<u64>) -> ShareNode {
    let knobs = Knobs { limit, ..Knobs::default() };
    ShareNode { id: id.to_owned(), parent: None, remove: false, knobs }
}

/// A network with the ports 1 and 2, of machines with these limits.
fn network(limits: [Option<u64>; 2]) -> Traffic {
    let mut traffic = Traffic::default();
    traffic.set_shares(0, &[node("m1", limits[0]), node("m2", limits[1])]);
    traffic.join(0, 1, "m1/net0").unwrap();
    traffic.join(0, 2, "m2/net0").unwrap();
    traffic
}

fn parked(from: PortId, wire: u32, segments: u32) -> Parked {
    let bytes = vec![0; wire as usize];
    Parked { from, deliveries: Vec::new(), flow: 1, offload: Offload::default(), segments, wire, bytes }
}

/// Offer a frame of `wire` bytes; whether it went, and how many others are not kept any more.
fn offer(traffic: &mut Traffic, now: Nanos, gate: Gate, port: PortId, wire: u32) -> (bool, usize) {
    // To a machine from its neighbour.
    let from = if gate == Gate::Machine { 3 - port } else { port };
    offer_from(traffic, now, (gate, port), from, wire)
}

fn offer_from(
    traffic: &mut Traffic,
    now: Nanos,
    (gate, port): (Gate, PortId),
    from: PortId,
    wire: u32,
) -> (bool, usize) {
    match traffic.stops(now, (gate, port), (from, 1, wire)) {
        None => (true, 0),
        Some(room) => (false, traffic.park(now, &room, parked(from, wire, 1)).len()),
    }
}

#[test]
fn where_nothing_is_limited_nothing_waits() {
    let mut traffic = network([None, None]);
    for gate in GATES {
        assert_eq!(offer(&mut traffic, 1, gate, 1, 60_000), (true, 0));
    }
    assert!(!traffic.has_waiting() && traffic.wake_at(1).is_none());
    assert_eq!(offer(&mut traffic, 1, Gate::Uplink, 9, 60_000), (true, 0), "a port that is none of ours");
}

#[test]
fn a_machines_limit_is_one_for_the_uplink_and_its_neighbours() {
    let mut traffic = network([Some(10_000_000), None]);
    let mut sent = [0u64; 2];
    let mut now = 0;
    while now < SECOND {
        // Both always have a few frames waiting.
        for (gate, sum) in [Gate::Uplink, Gate::Local].into_iter().zip(&mut sent) {
            for _ in 0..4 {
                if offer(&mut traffic, now, gate, 1, 1514).0 {
                    *sum += 1514;
                }
            }
        }
        while let Some((gate, frame)) = traffic.next(now) {
            sent[gate as usize] += u64::from(frame.wire);
            traffic.reuse(frame);
        }
        now += 200_000;
    }
    let total = sent.iter().sum::<u64>();
    assert!((9_800_000..=10_200_000).contains(&total), "{sent:?}");
    assert!(sent.iter().all(|bytes| *bytes > 4_500_000), "{sent:?}");
}

#[test]
fn what_comes_to_a_machine_has_a_limit_too_and_the_longest_flow_loses_what_is_too_much() {
    let mut traffic = network([None, Some(1_000_000)]);
    let (mut lost, mut waits) = (0, 0);
    for _ in 0..400 {
        let (gone, shed) = offer(&mut traffic, 0, Gate::Machine, 2, 1514);
        waits += u64::from(!gone);
        lost += shed as u64;
    }
    assert_eq!(waits - lost, LEAST_BACKLOG / 1514);
    assert_eq!(offer(&mut traffic, 0, Gate::Machine, 1, 1514), (true, 0), "the other has none");
    let at = traffic.wake_at(0).unwrap();
    assert!(traffic.next(at - 1).is_none());
    let (gate, frame) = traffic.next(at).unwrap();
    assert_eq!((gate, frame.wire), (Gate::Machine, 1514));
}

#[test]
fn the_rate_of_the_uplink_holds_for_the_uplink_alone_and_ends_with_it() {
    let mut traffic = network([None, None]);
    traffic.set_rate(0, Some(1_000_000));
    assert!(offer(&mut traffic, 0, Gate::Uplink, 1, 60_000).0);
    assert!(!offer(&mut traffic, 0, Gate::Uplink, 2, 60_000).0);
    assert!(offer(&mut traffic, 0, Gate::Local, 2, 60_000).0);
    assert_eq!((traffic.stats(0).waiting, traffic.stats(0).capacity), (1, 1_000_000));
    traffic.set_rate(1, None);
    assert!(traffic.next(1).is_some());
    assert!(!traffic.has_waiting());
}

#[test]
fn a_port_that_goes_takes_along_what_waits() {
    let mut traffic = network([Some(1_000_000), None]);
    traffic.set_rate(0, Some(1_000_000));
    for gate in GATES {
        for _ in 0..100 {
            offer(&mut traffic, 0, gate, 1, 1514);
        }
    }
    assert!(traffic.has_waiting());
    traffic.leave(0, 1);
    assert!(!traffic.has_waiting() && traffic.next(SECOND).is_none());
    assert_eq!(traffic.free.len(), traffic.parked.len());
    traffic.join(SECOND, 1, "m1/net0").unwrap();
    assert_eq!(offer(&mut traffic, SECOND, Gate::Uplink, 1, 1514), (true, 0));
}

/// Bytes that each of `senders` gets through to port 1 in a second, when all have more to send than there is room for.
fn received(traffic: &mut Traffic, from: Nanos, senders: &[PortId]) -> Vec<f64> {
    let mut got = vec![0.0; senders.len()];
    for now in (from..from + SECOND).step_by(200_000) {
        let mut count = |sender: PortId, wire: u32| {
            let place = senders.iter().position(|one| *one == sender).unwrap();
            got[place] += f64::from(wire);
        };
        for sender in senders {
            for _ in 0..4 {
                if offer_from(traffic, now, (Gate::Machine, 1), *sender, 1514).0 {
                    count(*sender, 1514);
                }
            }
        }
        while let Some((_, frame)) = traffic.next(now) {
            count(frame.from, frame.wire);
            traffic.reuse(frame);
        }
    }
    got
}

#[track_caller]
fn shared(got: &[f64], shares: &[f64]) {
    let total: f64 = got.iter().sum();
    assert!((9_800_000.0..=10_200_000.0).contains(&total), "{got:?}");
    let parts: f64 = shares.iter().sum();
    for (bytes, share) in got.iter().zip(shares) {
        assert!((bytes / total * parts / share - 1.0).abs() < 0.03, "{got:?}");
    }
}

#[test]
fn those_who_send_to_a_machine_share_its_limit_by_their_weights() {
    let mut traffic = network([Some(10_000_000), None]);
    let weigh = |id: &str, weight, parent: Option<&str>| ShareNode {
        knobs: Knobs { weight, ..Knobs::default() },
        parent: parent.map(str::to_owned),
        ..node(id, None)
    };
    traffic.join(0, 3, "m3/net0").unwrap();
    traffic.join(0, 4, "m4/net0").unwrap();
    traffic.set_shares(0, &[weigh("m3", 200, None), weigh("m4", 400, None)]);
    // What comes from outside, port 9, counts as one of weight 100.
    shared(&received(&mut traffic, 0, &[2, 3, 4, 9]), &[1.0, 2.0, 4.0, 1.0]);
    traffic.set_shares(SECOND, &[weigh("m3", 400, None), weigh("m4", 100, None)]);
    shared(&received(&mut traffic, SECOND, &[2, 3, 4, 9]), &[1.0, 4.0, 1.0, 1.0]);
    // Two of one tenant, who has the weight of a machine.
    traffic.set_shares(2 * SECOND, &[weigh("m3", 400, Some("@acme")), weigh("m4", 100, Some("@acme"))]);
    shared(&received(&mut traffic, 2 * SECOND, &[2, 3, 4, 9]), &[1.0, 0.8, 0.2, 1.0]);
    assert_eq!(traffic.stats(3 * SECOND).nodes.iter().filter(|node| node.id.contains('<')).count(), 0);
    let m1 = traffic.stats(3 * SECOND).nodes.into_iter().find(|node| node.id == "m1/net0").unwrap();
    assert!(m1.waiting > 0 && m1.dispatched > 15_000, "{m1:?}");
    let waits = traffic.take_waits(3 * SECOND);
    assert!(waits.iter().any(|row| (row.waiter.as_str(), row.whom.as_str()) == ("m1", "m1")), "{waits:?}");
    for port in [3, 9, 1, 2, 4] {
        traffic.leave(3 * SECOND, port);
    }
    assert!(!traffic.has_waiting() && traffic.next(9 * SECOND).is_none());
    assert_eq!(traffic.free.len(), traffic.parked.len());
}
