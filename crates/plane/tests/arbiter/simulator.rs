//! A device with known service times and clients in closed loops, by discrete events: seconds of I/O in milliseconds.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use nagaya_plane::arbiter::{Arbiter, Ask, Kind, Knobs, Leaf, Nanos, Request};

pub const MS: Nanos = 1_000_000;
pub const SECOND: Nanos = 1_000_000_000;

/// Who asks: `depth` requests at a time, each `think` after the answer to the one before.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub leaf: Leaf,
    pub depth: u32,
    pub think: Nanos,
    pub bytes: u64,
    pub kind: Kind,
}

/// Fails unless `value` is within `percent` of `expected`.
#[track_caller]
pub fn near(value: f64, expected: f64, percent: f64) {
    let off = (value / expected - 1.0).abs() * 100.0;
    assert!(off <= percent, "{value:.0} instead of {expected:.0}: {off:.1}% off");
}

impl Client {
    /// Reads 4 KiB again and again.
    pub fn reads(leaf: Leaf, depth: u32) -> Client {
        Client { leaf, depth, think: 0, bytes: 4096, kind: Kind::Read }
    }
}

/// Serves `channels` requests at once, in the order in which they come.
#[derive(Clone, Debug)]
pub struct Device {
    pub channels: usize,
    /// ns for a request of no bytes, and for each byte.
    pub service: Nanos,
    pub byte: f64,
    /// Service times vary by so many percent up and down.
    pub jitter: u64,
    /// In so many percent of all spans of 5 ms whoever calls the arbiter gets no CPU and hears of nothing.
    pub paused: u64,
}

impl Device {
    /// `channels` at a time, each in 100 µs.
    pub fn ssd(channels: usize) -> Device {
        Device { channels, service: 100_000, byte: 0.0, jitter: 30, paused: 0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive { client: usize },
    Done { ticket: usize },
    Wake,
}

/// An answered request.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub client: usize,
    pub offered: Nanos,
    pub started: Nanos,
    pub done: Nanos,
    pub bytes: u64,
}

struct Live {
    client: usize,
    request: Option<Request>,
    offered: Nanos,
    started: Nanos,
}

pub struct Simulator {
    pub arbiter: Arbiter,
    pub device: Device,
    pub now: Nanos,
    pub clients: Vec<Client>,
    pub answers: Vec<Answer>,
    /// Clients that ask no more.
    stopped: Vec<bool>,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    serial: u64,
    live: Vec<Live>,
    free: Vec<usize>,
    busy: usize,
    queue: VecDeque<usize>,
    random: u64,
    wake: Option<Nanos>,
}

impl Simulator {
    pub fn new(device: Device, seed: u64) -> Simulator {
        Simulator {
            arbiter: Arbiter::new(0),
            device,
            now: 0,
            clients: Vec::new(),
            answers: Vec::new(),
            stopped: Vec::new(),
            events: BinaryHeap::new(),
            serial: 0,
            live: Vec::new(),
            free: Vec::new(),
            busy: 0,
            queue: VecDeque::new(),
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            wake: None,
        }
    }

    /// A node below the root.
    pub fn node(&mut self, id: &str, knobs: Knobs) -> Leaf {
        self.arbiter.set_node(self.now, id, None, knobs).unwrap()
    }

    /// From now on `client` asks. Returns its number.
    pub fn start(&mut self, client: Client) -> usize {
        let number = self.clients.len();
        self.clients.push(client);
        self.stopped.push(false);
        for _ in 0..client.depth {
            // Not all in the same instant.
            let offset = self.below(client.think.max(50_000));
            self.at(self.now + offset, Event::Arrive { client: number });
        }
        number
    }

    /// It asks no more; what it has asked is answered.
    pub fn stop(&mut self, client: usize) {
        self.stopped[client] = true;
    }

    pub fn run(&mut self, span: Nanos) {
        let end = self.now + span;
        while let Some(Reverse((at, _, event))) = self.events.peek().copied()
            && at <= end
        {
            self.events.pop();
            if let Some(end) = self.pause_at(at) {
                self.at(end, event);
                continue;
            }
            self.now = at;
            match event {
                Event::Arrive { client } => self.arrive(client),
                Event::Done { ticket } => self.done(ticket),
                Event::Wake => self.wake = None,
            }
            while let Some(ticket) = self.arbiter.next(self.now) {
                self.begin(ticket as usize);
            }
            if let Some(at) = self.arbiter.wake_at(self.now)
                && self.wake.is_none_or(|wake| at < wake)
            {
                self.wake = Some(at);
                self.at(at.max(self.now), Event::Wake);
            }
        }
        self.now = end;
    }

    /// Answers a second of `client` between two times.
    pub fn rate(&self, client: usize, from: Nanos, to: Nanos) -> f64 {
        let answers = self.answers.iter().filter(|a| a.client == client && a.done > from && a.done <= to);
        answers.count() as f64 * 1e9 / (to - from) as f64
    }

    /// Latency in ns that `percent` of the client's requests stay below.
    pub fn latency(&self, client: usize, from: Nanos, percent: usize) -> Nanos {
        let mut times: Vec<Nanos> = (self.answers.iter())
            .filter(|a| a.client == client && a.done > from)
            .map(|a| a.done - a.offered)
            .collect();
        times.sort_unstable();
        times.get(times.len() * percent / 100).copied().unwrap_or(0)
    }

    /// When the pause ends that falls on `time`.
    fn pause_at(&self, time: Nanos) -> Option<Nanos> {
        const SPAN: Nanos = 5 * MS;
        let hash = (time / SPAN)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(29)
            .wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((hash >> 33) % 100 < self.device.paused).then_some((time / SPAN + 1) * SPAN)
    }

    fn arrive(&mut self, number: usize) {
        if self.stopped[number] {
            return;
        }
        let client = self.clients[number];
        let live = Live { client: number, request: None, offered: self.now, started: 0 };
        let ticket = match self.free.pop() {
            Some(ticket) => {
                self.live[ticket] = live;
                ticket
            }
            None => {
                self.live.push(live);
                self.live.len() - 1
            }
        };
        let ask = Ask { ticket: ticket as u64, kind: client.kind, bytes: client.bytes };
        let admission = self.arbiter.offer(self.now, client.leaf, ask);
        self.live[ticket].request = Some(admission.request);
        if admission.now {
            self.begin(ticket);
        }
    }

    fn begin(&mut self, ticket: usize) {
        self.live[ticket].started = self.now;
        self.queue.push_back(ticket);
        self.feed();
    }

    fn feed(&mut self) {
        while self.busy < self.device.channels
            && let Some(ticket) = self.queue.pop_front()
        {
            self.busy += 1;
            let bytes = self.clients[self.live[ticket].client].bytes;
            let time = self.device.service + (bytes as f64 * self.device.byte) as Nanos;
            let jitter = self.device.jitter;
            let time = time * (100 - jitter + self.below(2 * jitter + 1)) / 100;
            self.at(self.now + time, Event::Done { ticket });
        }
    }

    fn done(&mut self, ticket: usize) {
        self.busy -= 1;
        let live = &mut self.live[ticket];
        let client = live.client;
        let request = live.request.take().expect("a request is done once");
        let bytes = self.clients[client].bytes;
        let (offered, started) = (live.offered, live.started);
        self.answers.push(Answer { client, offered, started, done: self.now, bytes });
        self.arbiter.complete(self.now, request);
        self.free.push(ticket);
        self.feed();
        self.at(self.now + self.clients[client].think, Event::Arrive { client });
    }

    fn at(&mut self, time: Nanos, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((time, self.serial, event)));
    }

    /// A number below `bound`, or 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        if bound == 0 { 0 } else { self.random % bound }
    }
}
