//! What was recorded of some machines says what more of them would get.

use nagaya_plane::arbiter::{self, Busy, Cell, Demand, Kind, Knobs, Nanos, PARTS, Pattern};
use nagaya_plane::simulation::{self, Got, Scenario};

use crate::simulator::{Client, Device, MS, SECOND, Simulator};

/// Who is there: how many of each kind.
type Mix = [(&'static str, u32, Nanos, u64, Kind)];

const READERS: &Mix = &[("reader", 1, MS / 2, 4096, Kind::Read)];
const STREAMS: &Mix = &[("stream", 8, 0, 65536, Kind::Write), ("reader", 1, MS, 4096, Kind::Read)];
const BURSTS: &Mix = &[("burst", 32, 20 * MS, 4096, Kind::Read), ("reader", 1, MS, 4096, Kind::Read)];

/// A device whose large requests take longer.
fn device() -> Device {
    Device { byte: 2.0, ..Device::ssd(4) }
}

/// `counts[i]` machines like `mix[i]`: what each got (IOPS, p99 in µs), and what was recorded.
fn real(mix: &Mix, counts: &[usize], seed: u64) -> (Vec<(String, f64, f64)>, Demand) {
    let mut simulator = Simulator::new(device(), seed);
    let mut names = Vec::new();
    for ((name, depth, think, bytes, kind), count) in mix.iter().zip(counts) {
        for number in 0..*count {
            let id = format!("{name}{number}/disk0");
            let leaf = simulator.node(&id, Knobs::default());
            simulator.start(Client { leaf, depth: *depth, think: *think, bytes: *bytes, kind: *kind });
            names.push(id);
        }
    }
    simulator.run(3 * SECOND);
    let (from, to) = (3 * SECOND, 11 * SECOND);
    simulator.arbiter.demand(simulator.now, true);
    simulator.run(8 * SECOND);
    let got = names.into_iter().enumerate().map(|(client, name)| {
        let p99 = simulator.latency(client, from, 99) as f64 / 1e3;
        (name, simulator.rate(client, from, to), p99)
    });
    (got.collect(), simulator.arbiter.demand(to, false))
}

fn predicted(demand: &Demand, more: &[(&str, usize)]) -> Vec<Got> {
    let mut patterns = demand.patterns.clone();
    for (name, count) in more {
        let like = demand.patterns.iter().find(|one| one.id == format!("{name}0/disk0")).expect("recorded");
        for number in 0..*count {
            let mut one = like.clone();
            one.id = format!("{name}-more{number}/disk0");
            patterns.push(one);
        }
    }
    let cells = demand.cells.clone();
    let scenario = Scenario {
        cells,
        capacity_iops: 0,
        capacity: 0,
        nodes: Vec::new(),
        patterns,
        seconds: 8.0,
        warm_up: 3.0,
        seed: 7,
    };
    simulation::run(&scenario).expect("a scenario").leaves
}

fn errors(mix: &Mix, before: &[usize], after: &[usize]) -> Vec<f64> {
    let (_, demand) = real(mix, before, 1);
    let more: Vec<_> = mix.iter().zip(before.iter().zip(after)).map(|(one, (a, b))| (one.0, b - a)).collect();
    let predicted = predicted(&demand, &more);
    let (real, _) = real(mix, after, 2);
    let mut errors = Vec::new();
    for (name, ..) in mix {
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        let of = |id: &str| id.starts_with(name);
        let pair = |real: f64, foreseen: f64| {
            println!("{name:8} {real:10.0} {foreseen:10.0} {:6.1}%", (foreseen / real - 1.0) * 100.0);
            (foreseen / real - 1.0).abs() * 100.0
        };
        errors.push(pair(
            mean(real.iter().filter(|one| of(&one.0)).map(|one| one.1).collect()),
            mean(predicted.iter().filter(|one| of(&one.id)).map(|one| one.iops).collect()),
        ));
        errors.push(pair(
            mean(real.iter().filter(|one| of(&one.0)).map(|one| one.2).collect()),
            mean(predicted.iter().filter(|one| of(&one.id)).map(|one| one.p99_us).collect()),
        ));
    }
    errors
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
fn what_is_recorded_replays_as_it_was() {
    for (mix, counts) in [(READERS, &[3][..]), (STREAMS, &[2, 2]), (BURSTS, &[2, 2])] {
        let errors = errors(mix, counts, counts);
        assert!(median(errors.clone()) < 15.0, "{errors:?}");
    }
}

#[test]
fn one_machine_more_is_foreseen() {
    for (mix, before, after) in
        [(READERS, &[6][..], &[7][..]), (STREAMS, &[2, 2], &[3, 2]), (BURSTS, &[2, 2], &[3, 2])]
    {
        let errors = errors(mix, before, after);
        assert!(median(errors.clone()) < 15.0, "{errors:?}");
    }
}

/// Three that ask for 32 blocks each 50 ms, on a device that serves eight at a time in 0.1 ms: latencies after `warm_up`.
fn bursts(warm_up: f64) -> Vec<Got> {
    let cell = |load: u32| Cell {
        number: load as u16,
        kind: Kind::Read,
        bytes: 4096,
        load: load.into(),
        count: 1000,
        times_ns: vec![100_000 * u64::from(load.max(8)) / 8; PARTS.len()],
    };
    let pattern = |(number, span_us): (usize, u64)| Pattern {
        id: format!("burst{number}/disk0"),
        recorded_us: 1_000_000,
        mix: vec![arbiter::Mix { kind: Kind::Read, count: 1, bytes: 4096 }],
        periods: vec![Busy {
            number: 98,
            count: 1,
            gap_us: span_us,
            span_us,
            requests: 32,
            depth: 32,
            think_us: 0,
        }],
        squares: (1e18, (span_us * span_us) as f64),
        ..Pattern::default()
    };
    let scenario = Scenario {
        cells: [1, 2, 4, 8, 16, 32, 64, 128].map(cell).to_vec(),
        capacity_iops: 80_000,
        capacity: 0,
        nodes: Vec::new(),
        patterns: [50_000, 49_000, 51_000].into_iter().enumerate().map(pattern).collect(),
        seconds: 10.0,
        warm_up,
        seed: 1,
    };
    simulation::run(&scenario).expect("a scenario").leaves
}

#[test]
fn bursts_on_an_idle_device_are_served_at_once_after_a_minute_too() {
    for (soon, late) in bursts(1.0).iter().zip(bursts(60.0)) {
        assert!(late.p50_us <= soon.p50_us * 1.1 && late.p99_us <= 1000.0, "{soon:?}, then {late:?}");
    }
}
