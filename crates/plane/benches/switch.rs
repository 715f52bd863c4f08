//! What the switch costs for each frame: one call of decide, by ports, by security rules, by connections.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use nagaya_plane::net::switch::{Delivery, PortKind, Rules, Switch};

/// UDP from 10.0.x.x to 10.0.y.y, of 64 bytes.
fn frame(from: u16, to: u16, port: u16) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].copy_from_slice(&mac(to));
    frame[6..12].copy_from_slice(&mac(from));
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..18].copy_from_slice(&[0x45, 0, 0, 46]);
    frame[22..24].copy_from_slice(&[64, 17]);
    frame[26..28].copy_from_slice(&[10, 0]);
    frame[28..30].copy_from_slice(&from.to_be_bytes());
    frame[30..32].copy_from_slice(&[10, 0]);
    frame[32..34].copy_from_slice(&to.to_be_bytes());
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    frame[36..38].copy_from_slice(&80u16.to_be_bytes());
    frame[38..40].copy_from_slice(&26u16.to_be_bytes());
    frame
}

fn mac(number: u16) -> [u8; 6] {
    let [high, low] = number.to_be_bytes();
    [0x52, 0x54, 0, 0, high, low]
}

/// Two guests at least, with an uplink; `security` is theirs.
fn switch(guests: u16, security: &str) -> Switch {
    let mut switch = Switch::new();
    switch.add_port(0, PortKind::Uplink, None, Rules::uplink()).unwrap();
    for number in 1..=guests.max(2) {
        let [high, low] = number.to_be_bytes();
        let json = format!(r#"{{"addresses": ["10.0.{high}.{low}"], "security": {security}}}"#);
        let rules = serde_json::from_str(&json).unwrap();
        switch.add_port(number.into(), PortKind::Guest, Some(mac(number)), rules).unwrap();
    }
    switch
}

/// Send `frames`, each from the port it names, over and over.
fn drive(criterion: &mut Criterion, name: BenchmarkId, mut switch: Switch, frames: &[(u32, [u8; 60])]) {
    let (mut now, mut next, mut out) = (1, 0, Vec::<Delivery>::new());
    let mut group = criterion.benchmark_group("decide");
    group.throughput(criterion::Throughput::Elements(1));
    group.bench_function(name, |bencher| {
        bencher.iter_batched_ref(
            || (),
            |()| {
                let (from, frame) = &frames[next];
                next = if next + 1 == frames.len() { 0 } else { next + 1 };
                (now, out) = (now + 1000, { std::mem::take(&mut out) });
                out.clear();
                let mut header = *frame;
                black_box(switch.decide(now, *from, &mut header, 60, 1, &mut out)).unwrap();
            },
            BatchSize::NumIterations(10_000),
        );
    });
    group.finish();
}

/// Each guest to the next one, round and round.
fn ports(criterion: &mut Criterion) {
    for guests in [2, 10, 100, 1000] {
        let to = |from: u16| from % guests + 1;
        let frames: Vec<_> = (1..=guests).map(|from| (from.into(), frame(from, to(from), 1000))).collect();
        drive(criterion, BenchmarkId::new("ports", guests), switch(guests, "null"), &frames);
    }
}

/// One guest to another, over so many connections; both have rules.
fn connections(criterion: &mut Criterion) {
    for count in [1, 10_000] {
        let rows = r#"[{"direction": "in", "protocol": "udp", "ports": [80, 80]}, {"direction": "out"}]"#;
        let frames: Vec<_> = (1024..1024 + count).map(|port| (1, frame(1, 2, port))).collect();
        drive(criterion, BenchmarkId::new("connections", count), switch(2, rows), &frames);
    }
}

criterion_group!(benches, ports, connections);
criterion_main!(benches);
