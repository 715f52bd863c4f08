//! The matrix of waits: what is charged adds up, and to those who were in the way.

use nagaya_plane::arbiter::{Cause, Knobs, Wait};

use crate::simulator::{Client, Device, SECOND, Simulator, near};

fn sum(rows: &[Wait], waiter: &str, cause: Cause, whom: &str) -> f64 {
    let rows = rows.iter().filter(|row| row.waiter == waiter && row.cause == cause && row.whom == whom);
    rows.map(|row| row.wait_us as f64).sum()
}

#[test]
fn waits_are_charged_to_those_who_occupied_the_device() {
    let mut simulator = Simulator::new(Device::ssd(8), 1);
    let mut clients = Vec::new();
    for (id, weight) in [("a", 100), ("b", 300), ("c", 100)] {
        simulator.node(id, Knobs { weight, ..Knobs::default() });
        let disk = format!("{id}/disk0");
        let leaf = simulator.arbiter.set_node(0, &disk, Some(id), Knobs::default()).unwrap();
        clients.push(simulator.start(Client::reads(leaf, 32)));
    }
    simulator.run(SECOND);
    let now = simulator.now;
    simulator.arbiter.take_waits(now);
    simulator.run(2 * SECOND);
    let rows = simulator.arbiter.take_waits(simulator.now);
    // 32 requests of a for two seconds, less what was with the device.
    let device = sum(&rows, "a", Cause::Device, "");
    let (b, c) = (sum(&rows, "a", Cause::Machine, "b"), sum(&rows, "a", Cause::Machine, "c"));
    near(device + b + c, 64e6, 2.0);
    near(b / c, 3.0, 10.0);
    let answered = simulator.answers.iter().filter(|answer| answer.client == clients[0] && answer.done > now);
    let waited: u64 = answered.map(|answer| answer.started - answer.offered).sum();
    // A fifth of its waiting in the queue is behind its own requests.
    near(b + c, waited as f64 / 1000.0 * 0.8, 8.0);
    assert_eq!(sum(&rows, "a", Cause::Limit, "a"), 0.0);
}

#[test]
fn a_limit_is_charged_to_the_node_that_has_it() {
    let mut simulator = Simulator::new(Device::ssd(8), 1);
    simulator.node("@acme", Knobs { limit_iops: Some(1000), ..Knobs::default() });
    let leaf = simulator.arbiter.set_node(0, "a", Some("@acme"), Knobs::default()).unwrap();
    simulator.start(Client::reads(leaf, 10));
    let own = simulator.node("b", Knobs { limit_iops: Some(500), ..Knobs::default() });
    simulator.start(Client::reads(own, 10));
    simulator.run(SECOND);
    simulator.arbiter.take_waits(simulator.now);
    simulator.run(SECOND);
    let rows = simulator.arbiter.take_waits(simulator.now);
    // Ten requests for a second, of which each takes 100 µs at the device.
    near(sum(&rows, "a", Cause::Limit, "@acme"), 10e6 - 0.1e6, 2.0);
    near(sum(&rows, "b", Cause::Limit, "b"), 10e6 - 0.05e6, 2.0);
    assert_eq!(sum(&rows, "a", Cause::Machine, "b"), 0.0);
}

#[test]
fn many_machines_make_no_more_rows_than_are_told() {
    let mut simulator = Simulator::new(Device::ssd(8), 1);
    for number in 0..100 {
        let leaf = simulator.node(&format!("m{number}"), Knobs::default());
        simulator.start(Client::reads(leaf, 4));
    }
    simulator.run(SECOND);
    let rows = simulator.arbiter.take_waits(simulator.now);
    assert!(rows.len() <= 67, "{} rows", rows.len());
    let total: u64 = rows.iter().map(|row| row.wait_us).sum();
    near(total as f64, 400e6, 5.0);
    assert!(simulator.arbiter.take_waits(simulator.now).is_empty());
}

#[test]
fn what_a_machine_that_has_gone_did_is_still_told() {
    let mut simulator = Simulator::new(Device::ssd(1), 1);
    for id in ["a", "b"] {
        let leaf = simulator.node(id, Knobs::default());
        simulator.start(Client::reads(leaf, 32));
    }
    simulator.run(SECOND);
    simulator.stop(1);
    simulator.arbiter.remove_node(simulator.now, "b");
    assert_eq!(simulator.arbiter.node("b"), None);
    simulator.run(SECOND);
    assert_eq!(simulator.arbiter.stats(simulator.now).nodes.len(), 1, "once its requests are done");
    let rows = simulator.arbiter.take_waits(simulator.now);
    assert!(sum(&rows, "a", Cause::Machine, "b") > 1e6);
}
