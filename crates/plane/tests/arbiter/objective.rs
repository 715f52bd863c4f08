//! What a latency objective takes from others, and what it leaves them.

use nagaya_plane::arbiter::{Knobs, Objective};

use crate::simulator::{Client, Device, SECOND, Simulator, near};
use crate::window::{quiet, three_busy, total};

/// Times vary, so that a request waits now and then behind a full device.
fn with_objective(latency_us: u64) -> (Simulator, usize) {
    let mut simulator = Simulator::new(Device { jitter: 60, ..Device::ssd(16) }, 3);
    three_busy(&mut simulator);
    let knobs = Knobs { latency_p99_us: Some(latency_us), ..Knobs::default() };
    let client = quiet(&mut simulator, knobs);
    simulator.run(15 * SECOND);
    (simulator, client)
}

fn objective_of(simulator: &Simulator, id: &str) -> Objective {
    let stats = simulator.arbiter.stats(simulator.now);
    stats.nodes.iter().find(|node| node.id == id).unwrap().objective
}

#[test]
fn a_latency_objective_is_served_at_the_cost_of_others() {
    let (mut simulator, client) = with_objective(170);
    assert_eq!(objective_of(&simulator, "quiet"), Objective::Met);
    let (from, before) = (simulator.now, total(&simulator, 5 * SECOND));
    simulator.run(10 * SECOND);
    assert!(simulator.latency(client, from, 98) <= 170_000);
    assert!(before > 80_000.0, "{before}");
    let told = simulator.arbiter.take_changes();
    assert!(told.last().is_some_and(|change| change.met && change.id == "quiet"), "{told:?}");
}

#[test]
fn an_objective_that_the_device_cannot_keep_is_said_to_be_missed_and_costs_others_nothing_then() {
    let (mut simulator, _) = with_objective(50);
    assert_eq!(objective_of(&simulator, "quiet"), Objective::Missed);
    let told = simulator.arbiter.take_changes();
    assert_eq!(told.len(), 1);
    assert!(!told[0].met);
    let from = simulator.now;
    simulator.run(10 * SECOND);
    near(total(&simulator, from), 160_000.0, 8.0);
}

#[test]
fn an_objective_of_a_busy_machine_takes_from_the_share_of_others() {
    let mut simulator = Simulator::new(Device::ssd(8), 4);
    let busy = three_busy(&mut simulator);
    let knobs = Knobs { latency_p99_us: Some(1000), ..Knobs::default() };
    let leaf = simulator.node("hurried", knobs);
    let hurried = simulator.start(Client::reads(leaf, 32));
    simulator.run(10 * SECOND);
    let from = simulator.now;
    simulator.run(5 * SECOND);
    let p99 = simulator.latency(hurried, from, 99);
    assert!(p99 <= 1_000_000, "{p99} ns");
    near(total(&simulator, from), 80_000.0, 6.0);
    assert!(busy.iter().all(|client| simulator.rate(*client, from, simulator.now) > 5_000.0));
}

/// Four of depth 32 and one of depth `depth` with an objective that nobody could keep; their rates for 4 s.
fn beside_the_impossible(simulator: &mut Simulator, knobs: Knobs, depth: u32) -> (Vec<f64>, f64) {
    let mut clients = three_busy(simulator);
    let leaf = simulator.node("d", knobs);
    clients.push(simulator.start(Client::reads(leaf, 32)));
    let leaf = simulator.node("hurried", Knobs { latency_p99_us: Some(150), ..Knobs::default() });
    let hurried = simulator.start(Client::reads(leaf, depth));
    simulator.run(3 * SECOND);
    let from = simulator.now;
    simulator.run(4 * SECOND);
    let rate = |client: usize| simulator.rate(client, from, simulator.now);
    (clients.into_iter().map(rate).collect(), rate(hurried))
}

#[test]
fn an_objective_of_a_saturating_machine_leaves_others_what_four_times_its_weight_would() {
    for depth in [32, 256] {
        let mut simulator = Simulator::new(Device::ssd(8), 5);
        let (others, hurried) = beside_the_impossible(&mut simulator, Knobs::default(), depth);
        // Four of eight parts are for the one with the objective.
        assert!(others.iter().all(|rate| *rate > 9_500.0), "{others:?} and {hurried}");
        near(others.iter().sum::<f64>() + hurried, 80_000.0, 5.0);
        assert_eq!(objective_of(&simulator, "hurried"), Objective::Missed);
        near(simulator.arbiter.stats(simulator.now).capacity_iops as f64, 80_000.0, 5.0);
    }
}

#[test]
fn a_reservation_holds_beside_an_objective_of_a_saturating_machine() {
    let mut simulator = Simulator::new(Device::ssd(8), 6);
    let knobs = Knobs { reservation_iops: 30_000, weight: 1, ..Knobs::default() };
    let (others, hurried) = beside_the_impossible(&mut simulator, knobs, 256);
    assert!(others[3] > 29_100.0, "{others:?} and {hurried}");
    assert!(others[..3].iter().all(|rate| *rate > 6_000.0), "{others:?} and {hurried}");
}

#[test]
fn an_objective_leaves_the_device_a_quarter_of_its_throughput_and_does_not_hide_what_it_can() {
    let mut simulator = Simulator::new(Device { jitter: 60, ..Device::ssd(16) }, 7);
    three_busy(&mut simulator);
    // Met by no window: one of 30 requests takes longer by itself.
    quiet(&mut simulator, Knobs { latency_p99_us: Some(157), ..Knobs::default() });
    simulator.run(2 * SECOND);
    for _ in 0..6 {
        let from = simulator.now;
        simulator.run(SECOND);
        assert!(total(&simulator, from) > 0.2 * 160_000.0, "{}", total(&simulator, from));
    }
    assert!(simulator.arbiter.stats(simulator.now).capacity_iops > 140_000);
}
