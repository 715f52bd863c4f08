//! Weights, reservations and limits hold on a link.

use nagaya_plane::arbiter::{Arbiter, Cause, Frame, Knobs};

use crate::simulator::{GIGABIT, MS, Pace, SECOND, Sender, Simulator, near};

fn weight(weight: u32) -> Knobs {
    Knobs { weight, ..Knobs::default() }
}

fn limit(bytes: u64) -> Knobs {
    Knobs { limit: Some(bytes), ..Knobs::default() }
}

/// A machine that always has more to send: frames of this size.
fn bulk(simulator: &mut Simulator, id: &str, knobs: Knobs, bytes: u32) -> usize {
    let leaf = simulator.node(id, knobs);
    simulator.start(Sender { leaf, flow: 1, bytes, pace: Pace::Bulk(32) })
}

#[test]
fn weights_share_the_link_whatever_the_size_of_frames_and_new_ones_hold_at_once() {
    let mut simulator = Simulator::new(Some(GIGABIT), 1);
    let senders = [("a", 100, 65_000), ("b", 200, 1514), ("c", 400, 9000)]
        .map(|(id, share, bytes)| bulk(&mut simulator, id, weight(share), bytes));
    simulator.run(2 * SECOND);
    for (sender, share) in senders.into_iter().zip([1.0, 2.0, 4.0]) {
        near(simulator.rate(sender, 0), GIGABIT as f64 * share / 7.0, 3.0);
    }
    simulator.node("a", weight(400));
    simulator.node("c", weight(100));
    simulator.run(100 * MS);
    let changed = simulator.now;
    simulator.run(SECOND);
    for (sender, share) in senders.into_iter().zip([4.0, 2.0, 1.0]) {
        near(simulator.rate(sender, changed), GIGABIT as f64 * share / 7.0, 3.0);
    }
}

#[test]
fn a_tenants_share_is_shared_by_its_machines() {
    let mut simulator = Simulator::new(Some(GIGABIT), 2);
    simulator.node("@acme", weight(100));
    let mut start = |id, parent: Option<&str>, share| {
        let leaf = simulator.arbiter.set_node(0, id, parent, weight(share)).unwrap();
        simulator.start(Sender { leaf, flow: 1, bytes: 1514, pace: Pace::Bulk(32) })
    };
    let senders = [start("a", Some("@acme"), 100), start("b", Some("@acme"), 300), start("c", None, 100)];
    simulator.run(SECOND);
    for (sender, part) in senders.into_iter().zip([0.125, 0.375, 0.5]) {
        near(simulator.rate(sender, 0), GIGABIT as f64 * part, 3.0);
    }
}

#[test]
fn a_reservation_holds_against_seven_neighbours() {
    let mut simulator = Simulator::new(Some(GIGABIT), 3);
    let knobs = Knobs { reservation: 60_000_000, weight: 1, ..Knobs::default() };
    let reserved = bulk(&mut simulator, "db", knobs, 1514);
    let others: Vec<usize> =
        (0..7).map(|number| bulk(&mut simulator, &format!("n{number}"), weight(1000), 65_000)).collect();
    simulator.run(2 * SECOND);
    near(simulator.rate(reserved, SECOND), 60e6, 3.0);
    let total: f64 = others.iter().map(|sender| simulator.rate(*sender, SECOND)).sum();
    near(total, GIGABIT as f64 - 60e6, 3.0);
}

#[test]
fn a_limit_is_reached_and_not_exceeded_with_and_without_a_rate_of_the_link() {
    for (rate, bytes, frame) in
        [(None, 1_250_000, 1514), (None, 12_500_000, 65_000), (Some(GIGABIT), 62_500_000, 9000)]
    {
        let mut simulator = Simulator::new(rate, 4);
        let limited = bulk(&mut simulator, "a", limit(bytes), frame);
        let free = simulator.node("b", Knobs::default());
        let free = simulator.start(Sender { leaf: free, flow: 1, bytes: 1514, pace: Pace::Every(30_000) });
        simulator.run(3 * SECOND);
        near(simulator.rate(limited, SECOND), bytes as f64, 2.0);
        let most = simulator.busiest(&[limited], SECOND);
        assert!(most as f64 <= bytes as f64 * 1.005 + 65_536.0, "{most} bytes in a second of {bytes}");
        let wait = simulator.wait(free, 99);
        assert!(wait <= 500_000, "{wait} ns: the limit of one is not the matter of others");
    }
}

#[test]
fn what_one_does_not_use_is_for_the_others_and_not_saved_up() {
    let mut simulator = Simulator::new(Some(GIGABIT), 5);
    let knobs = Knobs { reservation: 50_000_000, ..Knobs::default() };
    let idle = simulator.node("idle", knobs);
    let busy = bulk(&mut simulator, "busy", Knobs::default(), 1514);
    simulator.run(2 * SECOND);
    near(simulator.rate(busy, SECOND), GIGABIT as f64, 1.0);
    let from = simulator.now;
    let back = simulator.start(Sender { leaf: idle, flow: 1, bytes: 1514, pace: Pace::Bulk(32) });
    simulator.run(200 * MS);
    near(simulator.rate(back, from), GIGABIT as f64 / 2.0, 3.0);
    near(simulator.rate(busy, from), GIGABIT as f64 / 2.0, 3.0);
}

#[test]
fn the_link_takes_another_rate_at_once() {
    let mut simulator = Simulator::new(None, 6);
    let leaf = simulator.node("a", Knobs::default());
    let sender = simulator.start(Sender { leaf, flow: 1, bytes: 1514, pace: Pace::Every(10_000) });
    simulator.run(100 * MS);
    assert_eq!(simulator.wait(sender, 100 - 1), 0);
    for rate in [GIGABIT / 10, GIGABIT / 4] {
        simulator.arbiter.set_rate(simulator.now, Some(rate));
        simulator.run(20 * MS);
        let from = simulator.now;
        simulator.run(SECOND);
        near(simulator.rate(sender, from), rate as f64, 2.0);
    }
}

#[test]
fn what_went_another_way_counts_in_a_limit_too() {
    let mut arbiter = Arbiter::link(0, None);
    let leaf = arbiter.set_node(0, "a", None, limit(1_000_000)).unwrap();
    arbiter.spend(0, leaf, 500_000);
    let frame = Frame { ticket: 1, bytes: 1514, flow: 1 };
    assert!(!arbiter.offer_frame(1, leaf, frame));
    let opens = arbiter.wake_at(1).unwrap();
    assert!((490 * MS..=500 * MS).contains(&opens), "{opens}");
    assert_eq!((arbiter.next(opens - 1), arbiter.next(opens)), (None, Some(1)));
}

#[test]
fn who_waited_for_whom_on_the_link_is_known() {
    let mut simulator = Simulator::new(Some(GIGABIT), 7);
    bulk(&mut simulator, "big", weight(300), 1514);
    bulk(&mut simulator, "small", weight(100), 1514);
    bulk(&mut simulator, "slow", limit(1_000_000), 1514);
    simulator.run(SECOND);
    let rows = simulator.arbiter.take_waits(simulator.now);
    let share = |waiter: &str, cause: Cause, whom: &str| {
        let own = rows.iter().filter(|row| row.waiter == waiter);
        let total: u64 = own.clone().map(|row| row.wait_us).sum();
        let these = own.filter(|row| row.cause == cause && row.whom == whom);
        these.map(|row| row.wait_us).sum::<u64>() as f64 / total as f64
    };
    near(share("small", Cause::Machine, "big"), 0.75, 3.0);
    near(share("small", Cause::Device, ""), 0.25, 5.0);
    assert!(share("slow", Cause::Limit, "slow") > 0.9);
}
