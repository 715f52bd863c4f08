//! A node of the tree: its knobs, its tags, and what waits in it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::Nanos;
use super::cost::UNIT;
use super::demand::Recorder;
use super::heap::Heap;
use super::latency::{Goal, Latencies};
use super::link;
use super::queue::Queue;
use super::waits::Account;

/// What a node was promised. The default is no reservation, no limit and the common weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Knobs {
    /// I/Os a second that it gets whatever others do; 0 for none. See [`IO_BYTES`](super::IO_BYTES).
    pub reservation_iops: u64,
    /// Bytes a second that it gets whatever others do; 0 for none.
    pub reservation: u64,
    /// I/Os a second that it never exceeds.
    pub limit_iops: Option<u64>,
    /// Bytes a second that it never exceeds.
    pub limit: Option<u64>,
    /// Share of what is left, among those with the same parent: 1 to 10,000.
    pub weight: u32,
    /// The latency in µs that 99% of its requests are to stay below.
    pub latency_p99_us: Option<u64>,
}

impl Default for Knobs {
    fn default() -> Knobs {
        Knobs {
            reservation_iops: 0,
            reservation: 0,
            limit_iops: None,
            limit: None,
            weight: 100,
            latency_p99_us: None,
        }
    }
}

/// Greatest weight; the least is 1.
pub const MAX_WEIGHT: u32 = 10_000;

/// A reservation that the device could not serve is not owed for longer than this.
const OWED: Nanos = 100_000_000;

/// What is different between disks and links.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    /// A limit may catch up with so much lost time: whoever calls us is late now and then. Over a second, 0.5%.
    slack: Nanos,
    /// Service under a reservation counts against the share by weight, up to so much.
    lead: u64,
}

impl Manner {
    const DISK: Manner = Manner { slack: 5_000_000, lead: 64 * UNIT };
    /// What is caught up with comes at once, and stands in the queues of others.
    pub const LINK: Manner = Manner { slack: 2_000_000, lead: 2 * link::LARGEST_FRAME as u64 };
}

/// A request that is late by its node's latency objective counts in the share by one part in so many: the objective
/// gives a node at most what this times its weight would, and the others have the rest.
const OBJECTIVE: u64 = 4;

/// Why a request is started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// It is its node's turn, or nobody else's.
    Share,
    /// A reservation of the node, or of one above it, is due.
    Reservation,
    /// Its node's latency objective.
    Objective,
}

/// A clock that goes on by so much for each I/O or byte. mClock's R and L tags.
#[derive(Clone, Copy, Default)]
struct Pace {
    /// ns for each; 0 if there is no bound.
    period: f64,
    tag: Nanos,
}

impl Pace {
    fn set(&mut self, rate: u64, now: Nanos) {
        let period = if rate == 0 { 0.0 } else { 1e9 / rate as f64 };
        if period != self.period {
            *self = Pace { period, tag: now };
        }
    }

    fn is_set(&self) -> bool {
        self.period > 0.0
    }

    fn time(&self, units: u64) -> Nanos {
        (units as f64 * self.period) as Nanos
    }

    fn charge_limit(&mut self, now: Nanos, units: u64, slack: Nanos) {
        if self.is_set() {
            self.tag = self.tag.max(now.saturating_sub(slack)) + self.time(units);
        }
    }

    fn charge_reservation(&mut self, now: Nanos, units: u64) {
        if self.is_set() {
            let time = self.time(units);
            let tag = self.tag.max(now.saturating_sub(OWED)) + time;
            // With a rate in IOPS and one in bytes, the easier one would run ahead without end.
            self.tag = tag.min(now + time.max(OWED));
        }
    }
}

/// A node. `queue` is for one without children, `children` and `ready` for one with.
pub(super) struct Node {
    pub name: String,
    pub parent: u32,
    /// Which child of its parent it is: its number in the parent's heap.
    pub place: u32,
    pub knobs: Knobs,
    pub children: Vec<Option<u32>>,
    /// Children that may be served, by `share`.
    pub ready: Heap,
    /// Virtual time of the children: the `share` of the one that was served last by weight.
    pub served: u64,
    pub queue: Queue,
    pub in_flight: u32,
    /// Neither it nor a node above it has a limit or a reservation.
    pub plain: bool,
    pub account: Account,
    pub latencies: Latencies,
    /// What it asks for, once it has asked for something.
    pub recorder: Option<Box<Recorder>>,
    /// Its own latency objective, or the nearest above it.
    pub goal: Goal,
    /// How long its limit has kept requests waiting: ever, since when now, and in this period.
    pub closed: Nanos,
    pub closed_since: Option<Nanos>,
    pub closed_in_period: Nanos,
    pub dispatched: u64,
    /// Those of them that the device got as a part of another.
    pub joined: u64,
    pub bytes: u64,
    /// Forget the node as soon as it has no requests and no children.
    pub leaving: bool,
    /// mClock's P tag, in virtual time of the parent: cost divided by weight.
    pub share: u64,
    pub manner: Manner,
    inverse_weight: u64,
    reservations: [Pace; 2],
    limits: [Pace; 2],
}

impl Node {
    pub fn new(name: &str, parent: u32, place: u32) -> Node {
        Node {
            name: name.to_owned(),
            parent,
            place,
            knobs: Knobs::default(),
            children: Vec::new(),
            ready: Heap::default(),
            served: 0,
            queue: Queue::Fifo(VecDeque::new()),
            in_flight: 0,
            plain: true,
            account: Account::default(),
            latencies: Latencies::default(),
            recorder: None,
            goal: Goal::new(0),
            closed: 0,
            closed_since: None,
            closed_in_period: 0,
            dispatched: 0,
            joined: 0,
            bytes: 0,
            leaving: false,
            share: 0,
            manner: Manner::DISK,
            inverse_weight: inverse(Knobs::default().weight),
            reservations: [Pace::default(); 2],
            limits: [Pace::default(); 2],
        }
    }

    /// Take other knobs; a tag starts anew if its knob has changed.
    pub fn set(&mut self, knobs: Knobs, now: Nanos) {
        self.inverse_weight = inverse(knobs.weight);
        self.reservations[0].set(knobs.reservation_iops, now);
        self.reservations[1].set(knobs.reservation, now);
        self.limits[0].set(knobs.limit_iops.unwrap_or(0), now);
        self.limits[1].set(knobs.limit.unwrap_or(0), now);
        self.knobs = knobs;
    }

    /// Whether a request waits here or can be served below.
    pub fn has_work(&self) -> bool {
        !self.queue.is_empty() || !self.ready.is_empty()
    }

    pub fn has_children(&self) -> bool {
        self.children.iter().any(Option::is_some)
    }

    pub fn has_limit(&self) -> bool {
        self.limits.iter().any(Pace::is_set)
    }

    pub fn has_reservation(&self) -> bool {
        self.reservations.iter().any(Pace::is_set)
    }

    /// From now on its limits keep requests waiting, or do not.
    pub fn set_closed(&mut self, now: Nanos, closed: bool) {
        if !closed && let Some(since) = self.closed_since.take() {
            self.closed += now - since;
            self.closed_in_period += now - since;
        } else if closed && self.closed_since.is_none() {
            self.closed_since = Some(now);
        }
    }

    /// When its limits let the next request pass.
    pub fn opens_at(&self) -> Nanos {
        self.limits.iter().filter(|pace| pace.is_set()).map(|pace| pace.tag).max().unwrap_or(0)
    }

    /// When its reservations entitle it to the next request; never without any.
    pub fn due_at(&self) -> Option<Nanos> {
        self.reservations.iter().filter(|pace| pace.is_set()).map(|pace| pace.tag).min()
    }

    /// By what cost it is behind the time `served` of its parent.
    pub fn lag(&self, served: u64) -> u64 {
        served.saturating_sub(self.share) / self.inverse_weight
    }

    /// It has work again: what it did not use is not owed, by its parent's time `served` neither.
    pub fn awake(&mut self, served: u64, now: Nanos) {
        self.share = self.share.max(served);
        for pace in &mut self.reservations {
            pace.tag = pace.tag.max(now);
        }
    }

    /// Account for a request that nothing else waits beside, at the time `served` of its parent.
    pub fn charge_share(&mut self, spent: &Spent, served: u64) {
        self.share = self.share.max(served) + u64::from(spent.cost) * self.inverse_weight;
    }

    /// Whether it has had more than its share, at the time `served` of its parent, by more than a few requests.
    pub fn is_ahead(&self, served: u64) -> bool {
        self.share > served + self.manner.lead * self.inverse_weight
    }

    /// Account for a request of its own or of one below.
    pub fn charge(&mut self, now: Nanos, spent: &Spent, served: u64, by: By) {
        let cost = u64::from(spent.cost) * self.inverse_weight;
        self.share += if by == By::Objective { cost / OBJECTIVE } else { cost };
        self.charge_limits(now, u64::from(spent.ios), spent.bytes);
        if by == By::Reservation {
            self.share = self.share.min(served + cost.max(self.manner.lead * self.inverse_weight));
        }
        if by != By::Share {
            for (pace, units) in self.reservations.iter_mut().zip([u64::from(spent.ios), spent.bytes]) {
                pace.charge_reservation(now, units);
            }
        }
    }

    /// Account for so much at the limits.
    pub fn charge_limits(&mut self, now: Nanos, ios: u64, bytes: u64) {
        for (pace, units) in self.limits.iter_mut().zip([ios, bytes]) {
            pace.charge_limit(now, units, self.manner.slack);
        }
    }

    /// Whether so many bytes more would keep its limit closed for no longer than a largest frame would, and a little.
    pub fn lets_ahead(&self, now: Nanos, bytes: u32) -> bool {
        let pace = &self.limits[1];
        let most = now + pace.time(link::LARGEST_FRAME.into()) + link::AHEAD;
        !pace.is_set() || pace.tag + pace.time(bytes.into()) <= most
    }

    /// By what cost it is ahead of the time `served` of its parent.
    pub fn lead(&self, served: u64) -> u64 {
        self.share.saturating_sub(served) / self.inverse_weight
    }
}

/// What a request takes of each bound.
pub(super) struct Spent {
    pub cost: u32,
    pub ios: u32,
    pub bytes: u64,
}

/// Virtual time for a cost of one, at `weight`.
fn inverse(weight: u32) -> u64 {
    (1 << 24) / u64::from(weight.clamp(1, MAX_WEIGHT))
}
