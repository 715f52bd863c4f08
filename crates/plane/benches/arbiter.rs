//! What the arbiter costs for each request, offer, next and complete together; and of a link for each frame.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use nagaya_plane::arbiter::{Arbiter, Ask, Frame, Kind, Knobs, Leaf, Request};

/// Requests that each machine has offered and not got back.
const DEPTH: usize = 8;

struct Device {
    arbiter: Arbiter,
    leaves: Vec<Leaf>,
    /// By ticket.
    requests: Vec<Option<Request>>,
    started: std::collections::VecDeque<u64>,
    now: u64,
}

impl Device {
    /// `machines` with a disk each, all below one tenant; each has a reservation and a limit.
    fn new(machines: usize) -> Device {
        let mut arbiter = Arbiter::new(0);
        arbiter.set_node(0, "@acme", None, Knobs::default()).unwrap();
        let leaves = (0..machines)
            .map(|number| {
                let (id, disk) = (format!("m{number}"), format!("m{number}/disk0"));
                let knobs = Knobs { reservation_iops: 100, limit_iops: Some(1_000_000), ..Knobs::default() };
                let knobs = if machines == 1 { Knobs::default() } else { knobs };
                arbiter.set_node(0, &id, Some("@acme"), knobs).unwrap();
                arbiter.set_node(0, &disk, Some(&id), Knobs::default()).unwrap()
            })
            .collect();
        let requests = vec![None; machines * DEPTH];
        let mut device = Device { arbiter, leaves, requests, started: Default::default(), now: 1 };
        for ticket in 0..machines * DEPTH {
            device.offer(ticket);
        }
        device
    }

    fn offer(&mut self, ticket: usize) {
        let ask = Ask { ticket: ticket as u64, kind: Kind::Read, bytes: 4096 };
        let admission = self.arbiter.offer(self.now, self.leaves[ticket / DEPTH], ask);
        self.requests[ticket] = Some(admission.request);
        if admission.now {
            self.started.push_back(ticket as u64);
        }
    }

    /// One answer, one new request of the same machine, and whatever may start then.
    fn turn(&mut self) {
        self.now += 1_000;
        if let Some(ticket) = self.started.pop_front() {
            let request = self.requests[ticket as usize].take().unwrap();
            self.arbiter.complete(self.now, request);
            self.offer(ticket as usize);
        }
        while let Some(ticket) = self.arbiter.next(self.now) {
            self.started.push_back(ticket);
        }
        black_box(self.started.len());
    }
}

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request");
    for machines in [1, 2, 16, 64, 256] {
        let mut device = Device::new(machines);
        group.bench_function(BenchmarkId::from_parameter(machines), |bencher| {
            bencher.iter(|| device.turn());
        });
    }
}

/// What it costs to say who waited for whom: ten times a second, whatever the number of requests.
fn attribution(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attribution of a tenth of a second");
    for machines in [2, 16, 256] {
        let mut device = Device::new(machines);
        group.bench_function(BenchmarkId::from_parameter(machines), |bencher| {
            let setup = |device: &mut Device| (0..machines).for_each(|_| device.turn());
            bencher.iter_custom(|rounds| {
                let mut spent = std::time::Duration::ZERO;
                for _ in 0..rounds {
                    setup(&mut device);
                    let start = std::time::Instant::now();
                    black_box(device.arbiter.take_waits(device.now));
                    spent += start.elapsed();
                }
                spent
            });
        });
    }
}

/// NICs of machines on a link of 1 Gbit/s, half of them with a reservation and a limit; each has [`DEPTH`] frames that wait.
struct Link {
    arbiter: Arbiter,
    leaves: Vec<Leaf>,
    now: u64,
}

/// Bytes of a frame, and the time in ns that the link takes for it.
const FRAME: u32 = 1514;
const FRAME_TIME: u64 = 12_112;

impl Link {
    fn new(ports: usize) -> Link {
        let mut arbiter = Arbiter::link(0, Some(125_000_000));
        let leaves = (0..ports)
            .map(|number| {
                let (id, nic) = (format!("m{number}"), format!("m{number}/net0"));
                let bounds = Knobs { reservation: 100_000, limit: Some(100_000_000), ..Knobs::default() };
                let knobs = if number % 2 == 1 { bounds } else { Knobs::default() };
                arbiter.set_node(0, &id, None, knobs).unwrap();
                arbiter.set_node(0, &nic, Some(&id), Knobs::default()).unwrap()
            })
            .collect();
        let mut link = Link { arbiter, leaves, now: 1 };
        for ticket in 0..ports * DEPTH {
            link.offer(ticket);
        }
        link
    }

    fn offer(&mut self, ticket: usize) {
        let frame = Frame { ticket: ticket as u64, bytes: FRAME, flow: (ticket % DEPTH) as u32 };
        // Those of a flow that has sent little go at once, at first.
        while self.arbiter.offer_frame(self.now, self.leaves[ticket / DEPTH], frame) {}
    }

    /// One frame goes, and its sender has another.
    fn turn(&mut self) {
        self.now += FRAME_TIME;
        while let Some(ticket) = self.arbiter.next(self.now) {
            self.offer(ticket as usize);
        }
    }
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    for ports in [2, 10, 100, 1000] {
        let mut link = Link::new(ports);
        group.bench_function(BenchmarkId::from_parameter(ports), |bencher| bencher.iter(|| link.turn()));
    }
}

criterion_group!(benches, requests, attribution, frames);
criterion_main!(benches);
