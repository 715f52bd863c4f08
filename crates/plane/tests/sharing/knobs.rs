//! Each knob has its effect, and a change of it has too.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::yard::{Client, PATIENCE, Yard, completed, once};

/// Requests counted in one measurement: a second of the device.
const COUNT: u64 = 1000;

/// Requests after which a change must have its effect.
const SETTLE: u64 = 200;

fn weights(weights: [u32; 3]) -> Value {
    let nodes = weights.iter().enumerate();
    nodes.map(|(index, weight)| json!({"id": format!("m{index}"), "weight": weight})).collect()
}

/// Fail if what the clients get is not within a tenth of the proportions `weights`.
fn assert_shares(clients: &[Client], weights: [u32; 3]) {
    let each = |total: u64| total as f64 / f64::from(weights.iter().sum::<u32>());
    once(
        || completed(clients, COUNT),
        |done| {
            done.iter().zip(weights).all(|(got, weight)| {
                let due = each(done.iter().sum()) * f64::from(weight);
                (*got as f64 - due).abs() <= due / 10.0
            })
        },
    );
}

#[test]
fn machines_get_shares_by_weight_and_other_shares_when_it_changes() {
    let yard = Yard::new();
    yard.set(&weights([1, 2, 4]));
    let sockets: Vec<_> = (0..3).map(|index| yard.simulated(&format!("m{index}/disk0"))).collect();
    let clients: Vec<_> = sockets.iter().map(|socket| Client::start(socket, 32)).collect();
    completed(&clients, SETTLE);
    assert_shares(&clients, [1, 2, 4]);
    yard.set(&weights([4, 1, 2]));
    completed(&clients, SETTLE);
    assert_shares(&clients, [4, 1, 2]);
    assert!(yard.node("m0")["dispatched"].as_u64() > Some(COUNT / 7));
    clients.into_iter().for_each(|client| assert!(client.leave() > 0));
}

#[test]
fn a_tenants_machines_share_what_the_tenant_gets() {
    let yard = Yard::new();
    let acme = |id: &str| json!({"id": id, "parent": "@acme"});
    yard.set(&json!([{"id": "@acme", "weight": 300}, acme("m0"), acme("m1"), {"id": "m2", "weight": 400}]));
    let sockets: Vec<_> = (0..3).map(|index| yard.simulated(&format!("m{index}/disk0"))).collect();
    let clients: Vec<_> = sockets.iter().map(|socket| Client::start(socket, 32)).collect();
    completed(&clients, SETTLE);
    assert_shares(&clients, [150, 150, 400]);
    clients.into_iter().for_each(|client| assert!(client.leave() > 0));
}

#[test]
fn a_limit_holds_on_an_idle_device_and_is_lifted_live() {
    let yard = Yard::new();
    yard.set(&json!([{"id": "m0", "limit_iops": 200}]));
    let clients = [Client::start(&yard.simulated("m0/disk0"), 16)];
    let start = Instant::now();
    let begin = clients[0].done();
    completed(&clients, 100);
    thread::sleep(Duration::from_millis(500));
    let (done, seconds) = (clients[0].done() - begin, start.elapsed().as_secs_f64());
    // 16 may go in a burst at first.
    assert!(done as f64 <= 200.0 * seconds * 1.02 + 16.0, "{done} requests in {seconds} s");
    yard.set(&json!([{"id": "m0", "remove": true}]));
    let start = Instant::now();
    completed(&clients, 1000);
    let seconds = start.elapsed().as_secs_f64();
    assert!(seconds < 4.0, "1000 requests took {seconds} s: the limit would need 5");
    let [client] = clients;
    client.leave();
}

#[test]
fn a_reservation_holds_against_neighbours_of_great_weight() {
    let yard = Yard::new();
    let mut nodes = vec![json!({"id": "m0", "weight": 1, "reservation_iops": 250})];
    nodes.extend((1..4).map(|index| json!({"id": format!("m{index}"), "weight": 1000})));
    yard.set(&nodes.into());
    let sockets: Vec<_> = (0..4).map(|index| yard.simulated(&format!("m{index}/disk0"))).collect();
    let clients: Vec<_> = sockets.iter().map(|socket| Client::start(socket, 32)).collect();
    completed(&clients, SETTLE);
    let measure = || {
        let start = Instant::now();
        let done = completed(&clients, COUNT);
        (done[0] as f64, start.elapsed().as_secs_f64())
    };
    // 250 a second are reserved.
    once(measure, |(reserved, seconds)| *reserved >= 225.0 * seconds);
    clients.into_iter().for_each(|client| assert!(client.leave() > 0));
}

#[test]
fn who_waited_for_whom_is_told_once_a_second() {
    let yard = Yard::new();
    let sockets = [yard.simulated("m0/disk0"), yard.simulated("m1/disk0")];
    let clients = sockets.map(|socket| Client::start(&socket, 32));
    let end = Instant::now() + PATIENCE;
    let rows = loop {
        assert!(Instant::now() < end, "no report");
        thread::sleep(Duration::from_millis(10));
        if let Some(report) = yard.take_events("ARBITER_WAITS").pop() {
            break report["rows"].as_array().cloned().unwrap();
        }
    };
    for (waiter, whom) in [("m0", "m1"), ("m1", "m0")] {
        let row = rows.iter().find(|row| row["waiter"] == waiter && row["whom"] == whom);
        let row = row.unwrap_or_else(|| panic!("{waiter} did not wait for {whom}: {rows:?}"));
        assert!(
            row["cause"] == "machine"
                && row["wait_us"].as_u64() > Some(0)
                && row["requests"].as_u64() > Some(0)
        );
    }
    clients.into_iter().for_each(|client| assert!(client.leave() > 0));
    // What came last is told too, and then there is silence.
    thread::sleep(Duration::from_millis(1500));
    yard.take_events("ARBITER_WAITS");
    thread::sleep(Duration::from_millis(1500));
    assert!(yard.take_events("ARBITER_WAITS").is_empty());
}

#[test]
fn a_disk_that_goes_takes_its_nodes_along_and_its_knobs_stay() {
    let yard = Yard::new();
    yard.set(&json!([{"id": "m0", "weight": 7}]));
    yard.simulated("m0/disk0");
    yard.simulated("m1/disk0");
    assert_eq!(yard.node("m0")["weight"], 7);
    yard.remove("m0/disk0");
    assert_eq!(yard.node("m0"), Value::Null);
    yard.simulated("m0/disk1");
    assert_eq!((&yard.node("m0")["weight"], &yard.node("m0/disk1")["parent"]), (&json!(7), &json!("m0")));
}
