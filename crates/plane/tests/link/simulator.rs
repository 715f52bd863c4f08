//! Senders on a link, by discrete events.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use nagaya_plane::arbiter::{Arbiter, Frame, Knobs, Leaf, Nanos};

pub const US: Nanos = 1_000;
pub const MS: Nanos = 1_000_000;
pub const SECOND: Nanos = 1_000_000_000;

/// Bytes a second of 1 Gbit/s.
pub const GIGABIT: u64 = 125_000_000;

/// When a sender sends.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// So many frames wait at any time, as in a guest that has always more to send.
    Bulk(u32),
    /// A frame each so many ns, about.
    Every(Nanos),
}

/// A flow of frames of one size.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    pub leaf: Leaf,
    pub flow: u32,
    pub bytes: u32,
    pub pace: Pace,
}

/// A frame that has gone.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub sender: usize,
    pub offered: Nanos,
    pub at: Nanos,
    pub bytes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Offer(usize),
    Wake,
}

pub struct Simulator {
    pub arbiter: Arbiter,
    pub now: Nanos,
    pub senders: Vec<Sender>,
    pub sent: Vec<Sent>,
    /// Whoever sleeps until the arbiter has something is woken late by up to so much.
    pub late: Nanos,
    waiting: HashMap<u64, (usize, Nanos)>,
    ticket: u64,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    serial: u64,
    wake: Option<Nanos>,
    random: u64,
}

/// Fails unless `value` is within `percent` of `expected`.
#[track_caller]
pub fn near(value: f64, expected: f64, percent: f64) {
    let off = (value / expected - 1.0).abs() * 100.0;
    assert!(off <= percent, "{value:.0} instead of {expected:.0}: {off:.1}% off");
}

impl Simulator {
    pub fn new(rate: Option<u64>, seed: u64) -> Simulator {
        Simulator {
            arbiter: Arbiter::link(0, rate),
            now: 0,
            senders: Vec::new(),
            sent: Vec::new(),
            late: 200 * US,
            waiting: HashMap::new(),
            ticket: 0,
            events: BinaryHeap::new(),
            serial: 0,
            wake: None,
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
        }
    }

    /// A node below the root.
    pub fn node(&mut self, id: &str, knobs: Knobs) -> Leaf {
        self.arbiter.set_node(self.now, id, None, knobs).unwrap()
    }

    /// From now on it sends. Returns its number.
    pub fn start(&mut self, sender: Sender) -> usize {
        let number = self.senders.len();
        self.senders.push(sender);
        let frames = if let Pace::Bulk(depth) = sender.pace { depth } else { 1 };
        for _ in 0..frames {
            let offset = self.below(50 * US);
            self.at(self.now + offset, Event::Offer(number));
        }
        number
    }

    pub fn run(&mut self, span: Nanos) {
        let end = self.now + span;
        while let Some(Reverse((at, _, event))) = self.events.peek().copied()
            && at <= end
        {
            self.events.pop();
            self.now = at;
            match event {
                Event::Offer(sender) => self.offer(sender),
                Event::Wake => self.wake = None,
            }
            while let Some(ticket) = self.arbiter.next(self.now) {
                self.gone(ticket);
            }
            if let Some(at) = self.arbiter.wake_at(self.now)
                && self.wake.is_none()
            {
                self.wake = Some(at);
                let late = self.below(self.late);
                self.at(at.max(self.now) + late, Event::Wake);
            }
        }
        self.now = end;
    }

    /// Bytes a second of a sender since `from`.
    pub fn rate(&self, sender: usize, from: Nanos) -> f64 {
        let sent = self.sent.iter().filter(|sent| sent.sender == sender && sent.at > from);
        sent.map(|sent| f64::from(sent.bytes)).sum::<f64>() * 1e9 / (self.now - from) as f64
    }

    /// How long `percent` of the sender's frames waited at most, in ns.
    pub fn wait(&self, sender: usize, percent: usize) -> Nanos {
        let sent = self.sent.iter().filter(|sent| sent.sender == sender);
        let mut waits: Vec<Nanos> = sent.map(|sent| sent.at - sent.offered).collect();
        waits.sort_unstable();
        waits[waits.len() * percent / 100]
    }

    /// The most bytes of these senders in any `span`.
    pub fn busiest(&self, senders: &[usize], span: Nanos) -> u64 {
        let sent: Vec<&Sent> = self.sent.iter().filter(|sent| senders.contains(&sent.sender)).collect();
        let (mut sum, mut most, mut first) = (0, 0, 0);
        for one in &sent {
            sum += u64::from(one.bytes);
            while sent[first].at + span <= one.at {
                sum -= u64::from(sent[first].bytes);
                first += 1;
            }
            most = most.max(sum);
        }
        most
    }

    fn offer(&mut self, number: usize) {
        let sender = self.senders[number];
        self.ticket += 1;
        self.waiting.insert(self.ticket, (number, self.now));
        let frame = Frame { ticket: self.ticket, bytes: sender.bytes, flow: sender.flow };
        if self.arbiter.offer_frame(self.now, sender.leaf, frame) {
            self.gone(self.ticket);
        }
        if let Pace::Every(time) = sender.pace {
            let next = self.now + time / 2 + self.below(time);
            self.at(next, Event::Offer(number));
        }
    }

    fn gone(&mut self, ticket: u64) {
        let (sender, offered) = self.waiting.remove(&ticket).expect("a frame goes once");
        self.sent.push(Sent { sender, offered, at: self.now, bytes: self.senders[sender].bytes });
        if matches!(self.senders[sender].pace, Pace::Bulk(_)) {
            // A guest takes a moment to make the next.
            let moment = 1 + self.below(2 * US);
            self.at(self.now + moment, Event::Offer(sender));
        }
    }

    fn at(&mut self, time: Nanos, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((time, self.serial, event)));
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        if bound == 0 { 0 } else { self.random % bound }
    }
}
