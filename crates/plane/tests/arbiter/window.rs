//! How many requests are at the device: enough to keep it busy, not more.

use nagaya_plane::arbiter::Knobs;
use proptest::prelude::*;

use crate::simulator::{Client, Device, MS, SECOND, Simulator, near};

/// Three that always have 32 requests.
pub fn three_busy(simulator: &mut Simulator) -> Vec<usize> {
    ["a", "b", "c"]
        .into_iter()
        .map(|id| {
            let leaf = simulator.node(id, Knobs::default());
            simulator.start(Client::reads(leaf, 32))
        })
        .collect()
}

pub fn quiet(simulator: &mut Simulator, knobs: Knobs) -> usize {
    let leaf = simulator.node("quiet", knobs);
    simulator.start(Client { think: 10 * MS, ..Client::reads(leaf, 1) })
}

/// Answers a second of all clients since `from`.
pub fn total(simulator: &Simulator, from: u64) -> f64 {
    (0..simulator.clients.len()).map(|client| simulator.rate(client, from, simulator.now)).sum()
}

fn alone(device: &Device) -> u64 {
    let mut simulator = Simulator::new(device.clone(), 1);
    let client = quiet(&mut simulator, Knobs::default());
    simulator.run(20 * SECOND);
    simulator.latency(client, 0, 99)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn an_unknown_device_is_busy_and_has_no_long_queue_after_a_few_seconds(
        channels in 4usize..30, service in 100_000u64..500_000, seed: u64,
    ) {
        let device = Device { channels, service, ..Device::ssd(1) };
        let mut simulator = Simulator::new(device, seed);
        three_busy(&mut simulator);
        simulator.run(5 * SECOND);
        let window = simulator.arbiter.stats(simulator.now).window;
        prop_assert!(window as usize <= channels + channels / 2 + 2, "{window} for {channels}");
        let from = simulator.now;
        simulator.run(2 * SECOND);
        let full = channels as f64 * 1e9 / service as f64;
        prop_assert!(total(&simulator, from) >= 0.95 * full, "{} of {full}", total(&simulator, from));
    }
}

#[test]
fn the_window_follows_a_device_that_serves_more_or_fewer_at_once() {
    let mut simulator = Simulator::new(Device::ssd(8), 1);
    three_busy(&mut simulator);
    simulator.run(4 * SECOND);
    for channels in [32, 4] {
        simulator.device.channels = channels;
        simulator.run(3 * SECOND);
        let from = simulator.now;
        simulator.run(SECOND);
        near(total(&simulator, from), channels as f64 * 10_000.0, 5.0);
        let window = simulator.arbiter.stats(simulator.now).window as usize;
        assert!(window <= channels * 3 / 2 + 2, "{window} for {channels}");
    }
}

#[test]
fn a_device_that_slows_down_keeps_its_window() {
    let mut simulator = Simulator::new(Device::ssd(16), 1);
    three_busy(&mut simulator);
    simulator.run(3 * SECOND);
    simulator.device.service *= 10;
    simulator.run(3 * SECOND);
    let from = simulator.now;
    simulator.run(3 * SECOND);
    near(total(&simulator, from), 16_000.0, 5.0);
}

#[test]
fn a_lone_machine_has_no_window() {
    let mut simulator = Simulator::new(Device::ssd(64), 1);
    let leaf = simulator.node("a", Knobs::default());
    simulator.start(Client::reads(leaf, 256));
    simulator.run(SECOND);
    let stats = simulator.arbiter.stats(simulator.now);
    assert_eq!((stats.window, stats.in_flight, stats.waiting), (0, 256, 0));
    near(stats.capacity_iops as f64, 640_000.0, 3.0);
}

#[test]
fn a_request_now_and_then_beside_three_queues_is_answered_as_if_alone() {
    let device = Device::ssd(8);
    let mut simulator = Simulator::new(device.clone(), 2);
    three_busy(&mut simulator);
    let client = quiet(&mut simulator, Knobs::default());
    simulator.run(2 * SECOND);
    let from = simulator.now;
    simulator.run(20 * SECOND);
    let (p99, alone) = (simulator.latency(client, from, 99), alone(&device));
    assert!(p99 * 2 <= alone * 3, "{p99} ns, and {alone} ns alone");
    // Trials of a smaller window cost little: they are rare once they find nothing new.
    near(total(&simulator, from), 80_000.0, 2.0);
}
