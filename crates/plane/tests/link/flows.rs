//! Inside a machine, and beside others, a small flow hardly waits for bulk.

use nagaya_plane::arbiter::{Arbiter, Frame, Knobs, Leaf};

use crate::simulator::{GIGABIT, MS, Pace, SECOND, Sender, Simulator, US, near};

fn bulk(leaf: Leaf, flow: u32, bytes: u32) -> Sender {
    Sender { leaf, flow, bytes, pace: Pace::Bulk(32) }
}

/// 100 frames of 100 bytes a second.
fn small(leaf: Leaf) -> Sender {
    Sender { leaf, flow: 99, bytes: 100, pace: Pace::Every(10 * MS) }
}

#[test]
fn a_small_flow_does_not_wait_behind_the_bulk_of_three_machines() {
    let mut simulator = Simulator::new(Some(GIGABIT), 1);
    for id in ["a", "b", "c"] {
        let leaf = simulator.node(id, Knobs::default());
        simulator.start(bulk(leaf, 1, 65_000));
    }
    let leaf = simulator.node("d", Knobs::default());
    let sender = simulator.start(small(leaf));
    simulator.run(5 * SECOND);
    assert_eq!(simulator.wait(sender, 99), 0);
    let total: f64 = (0..4).map(|sender| simulator.rate(sender, 0)).sum();
    near(total, GIGABIT as f64, 1.0);
}

#[test]
fn a_small_flow_does_not_wait_behind_the_bulk_of_its_own_machine_at_a_limit() {
    for bytes in [1514, 65_000] {
        let mut simulator = Simulator::new(None, 2);
        let leaf = simulator.node("a", Knobs { limit: Some(12_500_000), ..Knobs::default() });
        let other = simulator.start(bulk(leaf, 1, bytes));
        let sender = simulator.start(small(leaf));
        simulator.run(5 * SECOND);
        assert!(simulator.wait(sender, 99) <= 150 * US, "{} ns", simulator.wait(sender, 99));
        near(simulator.rate(other, 0) + simulator.rate(sender, 0), 12_500_000.0, 1.0);
    }
}

#[test]
fn a_small_flow_does_not_wait_behind_many_flows_of_its_own_machine_at_the_uplink() {
    for (rate, flows, most) in [(GIGABIT, 1, 0), (GIGABIT, 200, 0), (GIGABIT / 10, 200, 0)] {
        let mut simulator = Simulator::new(Some(rate), 5);
        let leaf = simulator.node("a", Knobs::default());
        let neighbour = simulator.node("b", Knobs::default());
        simulator.start(bulk(neighbour, 1, 65_000));
        // Of 256 that are told apart, 99 is the small one.
        for flow in (0..=flows).filter(|flow| *flow != 99) {
            simulator.start(Sender { pace: Pace::Bulk(2), ..bulk(leaf, flow, 65_000) });
        }
        let sender = simulator.start(small(leaf));
        simulator.run(5 * SECOND);
        let wait = simulator.wait(sender, 99);
        assert!(wait <= most, "{wait} ns beside {flows} flows at {rate}");
    }
}

#[test]
fn a_small_flow_with_the_number_of_a_bulk_one_waits_as_long_as_that_one() {
    let wait_of = |flow| {
        let mut simulator = Simulator::new(Some(GIGABIT), 6);
        let leaf = simulator.node("a", Knobs::default());
        simulator.start(bulk(leaf, flow, 65_000));
        let sender = simulator.start(small(leaf));
        simulator.run(SECOND);
        simulator.wait(sender, 50)
    };
    // 32 frames of 65,000 bytes take 16.6 ms.
    assert!(wait_of(98) == 0 && wait_of(99 + 256) > 10 * MS);
}

#[test]
fn flows_of_a_machine_share_what_it_gets() {
    let mut simulator = Simulator::new(Some(GIGABIT), 3);
    let leaf = simulator.node("a", Knobs::default());
    let senders = [1514, 9000, 65_000].map(|bytes| simulator.start(bulk(leaf, bytes, bytes)));
    simulator.run(SECOND);
    for sender in senders {
        near(simulator.rate(sender, 0), GIGABIT as f64 / 3.0, 3.0);
    }
}

#[test]
fn a_flood_of_small_frames_of_many_flows_gets_no_more_than_its_share() {
    let mut simulator = Simulator::new(Some(GIGABIT), 4);
    let victim = simulator.node("victim", Knobs::default());
    let victim = simulator.start(bulk(victim, 1, 1514));
    let flood = simulator.node("flood", Knobs::default());
    let floods: Vec<usize> =
        (0..200).map(|flow| simulator.start(Sender { flow, ..bulk(flood, 0, 60) })).collect();
    simulator.run(200 * MS);
    near(simulator.rate(victim, 50 * MS), GIGABIT as f64 / 2.0, 3.0);
    let flooded: f64 = floods.iter().map(|sender| simulator.rate(*sender, 50 * MS)).sum();
    near(flooded, GIGABIT as f64 / 2.0, 3.0);
}

#[test]
fn what_is_too_much_is_taken_from_the_longest_flow() {
    let mut arbiter = Arbiter::link(0, Some(1_000_000));
    let leaf = arbiter.set_node(0, "a", None, Knobs::default()).unwrap();
    let offer = |arbiter: &mut Arbiter, ticket, flow| {
        arbiter.offer_frame(0, leaf, Frame { ticket, bytes: 10_000, flow })
    };
    assert!(offer(&mut arbiter, 0, 1));
    for ticket in 1..=10 {
        assert!(!offer(&mut arbiter, ticket, u32::from(ticket == 3)));
    }
    assert_eq!((arbiter.shed(0, leaf, 90_000), arbiter.shed(0, leaf, 90_000)), (Some(1), None));
    assert_eq!(arbiter.shed(0, leaf, 80_000), Some(2));
    let mut rest = arbiter.withdraw_all(0, leaf);
    rest.sort_unstable();
    assert_eq!(rest, [3, 4, 5, 6, 7, 8, 9, 10]);
    assert!(!arbiter.has_waiting() && arbiter.next(SECOND).is_none());
}
