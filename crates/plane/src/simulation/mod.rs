//! What would happen: recorded demand, replayed through the real arbiter against a device as it was measured.
//!
//! Discrete events in simulated time; no clock, no threads, no I/O, and the same answer for the same seed. `device` is
//! how long requests take, `client` who asks. Not modelled: neighbours that are merged, faults, the CPU time of the plane
//! and of the guests, and whatever a device does that depends on more than a request's kind, its length and how much is
//! there beside it.

mod client;
mod device;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use serde::{Deserialize, Serialize};

use crate::arbiter::{Arbiter, Ask, Cell, Histogram, Leaf, Nanos, Pattern, Request};
use crate::shares::{ShareNode, Tree};
use client::{Client, Next};
use device::Device;

/// Disks at most: more would not fit a host.
const MOST_CLIENTS: usize = 4096;

/// Simulated time at most.
const MOST_SECONDS: f64 = 600.0;

/// Events at most, about ten seconds of a CPU: then it ends before its time, and says so.
const MOST_EVENTS: u64 = 20_000_000;

const SECOND: f64 = 1e9;

/// What is to be tried.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// How the device answers.
    pub cells: Vec<Cell>,
    /// Small requests a second that the device can do; 0 if that is not known.
    #[serde(default)]
    pub capacity_iops: u64,
    /// Bytes a second; 0 if that is not known.
    #[serde(default)]
    pub capacity: u64,
    /// What is said of nodes.
    #[serde(default)]
    pub nodes: Vec<ShareNode>,
    /// Who asks: each is a leaf with an id of its own.
    pub patterns: Vec<Pattern>,
    /// Simulated seconds that count.
    pub seconds: f64,
    /// And those before, in which the window is found.
    #[serde(default)]
    pub warm_up: f64,
    /// Of the random numbers.
    #[serde(default)]
    pub seed: u64,
}

/// What one leaf got.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Got {
    /// The leaf.
    pub id: String,
    /// Answers a second.
    pub iops: f64,
    /// Bytes a second.
    pub bytes: f64,
    /// Latencies from the offer to the answer, in µs.
    pub mean_us: f64,
    /// Half of them are below.
    pub p50_us: f64,
    /// 99 of 100 are below.
    pub p99_us: f64,
    /// How much of the mean was waited in the arbiter.
    pub waited_us: f64,
    /// Requests under way at any time, on average.
    pub under_way: f64,
}

/// What would happen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Each leaf, in the order of the scenario.
    pub leaves: Vec<Got>,
    /// The arbiter's window in the end, in requests of 4 KiB; 0 for none.
    pub window: u64,
    /// Seconds that count: fewer than asked for if there was too much to do.
    pub seconds: f64,
    /// The most that was at the device, in requests of 4 KiB, and the most that was seen when it was measured.
    pub load: f64,
    /// See `load`.
    pub known_load: f64,
    /// The part of all requests that came when more was there than had been seen: their times are a guess.
    pub guessed: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client begins a busy period.
    Begin(usize),
    /// It asks once more.
    Ask(usize),
    Done(usize),
    Wake,
}

struct Live {
    client: usize,
    ask: Ask,
    request: Option<Request>,
    offered: Nanos,
    started: Nanos,
    cost: f64,
}

#[derive(Default)]
struct Account {
    answers: u64,
    bytes: u64,
    latency: u128,
    waited: u128,
    histogram: Histogram,
}

/// Numbers that look random: xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// At least 0, less than 1.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Try `scenario`.
///
/// # Errors
/// A sentence that says what of it cannot be.
pub fn run(scenario: &Scenario) -> Result<Outcome, String> {
    if scenario.patterns.len() > MOST_CLIENTS {
        return Err(format!("{} disks, not at most {MOST_CLIENTS}", scenario.patterns.len()));
    }
    let span = scenario.seconds + scenario.warm_up;
    if !(scenario.seconds > 0.0 && scenario.warm_up >= 0.0 && span <= MOST_SECONDS) {
        return Err(format!("{span} s of simulated time, not more than 0 and at most {MOST_SECONDS}"));
    }
    Simulation::new(scenario)?.run(scenario)
}

struct Simulation {
    arbiter: Arbiter,
    device: Device,
    clients: Vec<Client>,
    leaves: Vec<Leaf>,
    accounts: Vec<Account>,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    serial: u64,
    live: Vec<Live>,
    free: Vec<usize>,
    now: Nanos,
    /// Answers before do not count.
    from: Nanos,
    load: f64,
    most: f64,
    started: u64,
    guessed: u64,
    random: Random,
    wake: Option<Nanos>,
}

impl Simulation {
    fn new(scenario: &Scenario) -> Result<Simulation, String> {
        let mut random = Random(scenario.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        // The first numbers of a small seed are small.
        (0..16).for_each(|_| {
            random.next();
        });
        let mut simulation = Simulation {
            arbiter: Arbiter::new(0),
            device: Device::new(&scenario.cells, scenario.capacity_iops, scenario.capacity)?,
            clients: Vec::new(),
            leaves: Vec::new(),
            accounts: Vec::new(),
            events: BinaryHeap::new(),
            serial: 0,
            live: Vec::new(),
            free: Vec::new(),
            now: 0,
            from: (scenario.warm_up * SECOND) as Nanos,
            load: 0.0,
            most: 0.0,
            started: 0,
            guessed: 0,
            random,
            wake: None,
        };
        simulation.join(scenario)?;
        Ok(simulation)
    }

    fn join(&mut self, scenario: &Scenario) -> Result<(), String> {
        let mut tree = Tree::default();
        tree.set(0, &mut self.arbiter, &scenario.nodes);
        let mut seen = BTreeMap::new();
        for (number, pattern) in scenario.patterns.iter().enumerate() {
            if seen.insert(&pattern.id, number).is_some() {
                return Err(format!("{} is there twice", pattern.id));
            }
            tree.join(0, &mut self.arbiter, &pattern.id).map_err(|error| error.to_string())?;
            let leaf = self.arbiter.node(&pattern.id);
            self.leaves.push(leaf.ok_or_else(|| format!("{:?} is no disk", pattern.id))?);
            let client = Client::new(pattern)?;
            if let Some(pause) = client.first(&mut self.random) {
                self.at(pause, Event::Begin(number));
            }
            self.clients.push(client);
            self.accounts.push(Account::default());
        }
        Ok(())
    }

    fn run(mut self, scenario: &Scenario) -> Result<Outcome, String> {
        let end = self.from + (scenario.seconds * SECOND) as Nanos;
        let mut count = 0;
        while let Some(Reverse((at, _, event))) = self.events.pop()
            && at <= end
            && count < MOST_EVENTS
        {
            count += 1;
            self.now = at;
            match event {
                Event::Begin(client) => {
                    let asks = self.clients[client].begin(at, &mut self.random);
                    (0..asks).for_each(|_| self.ask(client));
                }
                Event::Ask(client) => self.ask(client),
                Event::Done(live) => self.done(live),
                Event::Wake => self.wake = None,
            }
            self.admit();
        }
        let ended = if count < MOST_EVENTS { end } else { self.now };
        if ended <= self.from {
            return Err("there is too much to do: not even the warm-up came to its end".to_owned());
        }
        Ok(self.outcome(scenario, (ended - self.from) as f64 / SECOND))
    }

    fn admit(&mut self) {
        while let Some(ticket) = self.arbiter.next(self.now) {
            self.start(ticket as usize);
        }
        if let Some(at) = self.arbiter.wake_at(self.now)
            && self.wake.is_none_or(|wake| at < wake)
        {
            self.wake = Some(at);
            self.at(at.max(self.now), Event::Wake);
        }
    }

    fn ask(&mut self, client: usize) {
        let number = self.free.pop().unwrap_or(self.live.len());
        let (kind, bytes) = self.clients[client].request(&mut self.random);
        let ask = Ask { ticket: number as u64, kind, bytes };
        let live = Live { client, ask, request: None, offered: self.now, started: 0, cost: 0.0 };
        match self.live.get_mut(number) {
            Some(place) => *place = live,
            None => self.live.push(live),
        }
        let admission = self.arbiter.offer(self.now, self.leaves[client], ask);
        self.live[number].request = Some(admission.request);
        if admission.now {
            self.start(number);
        }
    }

    fn start(&mut self, number: usize) {
        let live = &mut self.live[number];
        (live.started, live.cost) = (self.now, device::cost(live.ask.kind, live.ask.bytes));
        self.load += live.cost;
        if self.now >= self.from {
            self.most = self.most.max(self.load);
            self.started += 1;
            self.guessed += u64::from(self.load > self.device.known_load());
        }
        let time = self.device.time(live.ask.kind, live.ask.bytes, self.load, self.random.part());
        self.at(self.now + time, Event::Done(number));
    }

    fn done(&mut self, number: usize) {
        let live = &mut self.live[number];
        let client = live.client;
        self.load -= live.cost;
        if let Some(request) = live.request.take() {
            self.arbiter.complete(self.now, request);
        }
        if self.now > self.from {
            let account = &mut self.accounts[client];
            account.answers += 1;
            account.bytes += if live.ask.bytes > 0 { live.ask.bytes } else { 0 };
            account.latency += u128::from(self.now - live.offered);
            account.waited += u128::from(live.started - live.offered);
            account.histogram.add(self.now - live.offered);
        }
        self.free.push(number);
        match self.clients[client].answered(self.now, &mut self.random) {
            Next::Nothing => {}
            Next::Ask(count, 0) => (0..count).for_each(|_| self.ask(client)),
            Next::Ask(count, think) => {
                (0..count).for_each(|_| self.at(self.now + think, Event::Ask(client)));
            }
            Next::Begin(at) => self.at(at, Event::Begin(client)),
        }
    }

    fn at(&mut self, time: Nanos, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((time, self.serial, event)));
    }

    fn outcome(&self, scenario: &Scenario, seconds: f64) -> Outcome {
        let got = |(pattern, account): (&Pattern, &Account)| {
            let answers = account.answers.max(1) as f64;
            Got {
                id: pattern.id.clone(),
                iops: account.answers as f64 / seconds,
                bytes: account.bytes as f64 / seconds,
                mean_us: account.latency as f64 / answers / 1e3,
                p50_us: account.histogram.quantile(0.5) as f64 / 1e3,
                p99_us: account.histogram.quantile(0.99) as f64 / 1e3,
                waited_us: account.waited as f64 / answers / 1e3,
                under_way: account.latency as f64 / SECOND / seconds,
            }
        };
        Outcome {
            leaves: scenario.patterns.iter().zip(&self.accounts).map(got).collect(),
            window: self.arbiter.stats(self.now).window,
            seconds,
            load: self.most,
            known_load: self.device.known_load(),
            guessed: self.guessed as f64 / self.started.max(1) as f64,
        }
    }
}
