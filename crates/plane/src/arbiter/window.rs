//! How much may be in flight at the device at once.
//!
//! A device with a long queue of its own serves in its own order; ours is kept only for what still waits with us. A
//! short queue leaves the device idle at times. While one node alone has requests there is no order to keep, and no
//! window. While there are several, and more is asked than the window holds, its size is tried a little smaller and a
//! little larger by turns, and it moves to where a larger one would not be worth it: where the throughput grows by
//! less than [`GAIN`] of the growth of the window, or [`GAIN_QUIET`] when somebody is there whose few requests would
//! have to stand behind all of it. The size does not depend on how fast the device is, only on how many requests it
//! serves at the same time; so nothing is to be set, and a device that slows down keeps its throughput.

use super::Nanos;
use super::capacity::Capacity;
use super::cost::UNIT;
use super::latency::{Left, SMALLER};

/// How long a node counts as active after its last request.
const PRESENT: Nanos = 100_000_000;

/// How long somebody counts as quiet, and the queue is kept short for it, after its last request.
const QUIET: Nanos = 2_000_000_000;

/// The window is worth its size up to where it grows by 10% and the throughput by so much of that.
const GAIN: f64 = 0.05;
const GAIN_QUIET: f64 = 0.4;

/// The size is varied by so much, up and down: as a natural logarithm.
const SWING: f64 = 0.2;

/// How far it moves for each unit of gain, when that is clear, and at most: faster while it goes one way, slower when
/// it goes to and fro; then there are also more and more spans between the trials in which the size is not varied.
const STEP: f64 = 0.4;
const LONGEST_STEP: f64 = 0.4;
const SLOWEST: f64 = 0.25;
const FASTEST: f64 = 4.0;
const LONGEST_HOLD: u32 = 16;

/// Trials get rarer by this when they find nothing new; when they do, half as rare.
const RARER: u32 = 4;

/// A quiet one is disturbed by trials: less often when they find nothing new.
const LONGEST_QUIET_HOLD: u32 = 150;

/// A throughput that is so far from that of the span before, as a natural logarithm, ends the time without trials.
const CHANGED: f64 = 0.3;

/// So many pairs of trials must agree, within the error of their mean, or so many are there.
const PAIRS: u32 = 2;
const MOST_PAIRS: u32 = 12;

/// While the window holds more than half of all that is asked for, there is little left to put in order: it must be
/// worth as much as for a quiet one.
const LITTLE_LEFT: f64 = 0.5;

/// A window that is never full shrinks by so much in the time of a trial.
const SHRINK: f64 = 0.02;

/// A trial takes at least so long, and until there were enough answers to compare, or for so long.
const TRIAL: Nanos = 20_000_000;
const TRIAL_ANSWERS: u64 = 200;
const LONGEST_TRIAL: Nanos = 500_000_000;

/// Bounds and first size of the window, in requests of 4 KiB.
const LEAST: f64 = 1.0;
const MOST: f64 = 4096.0;
const FIRST: f64 = 32.0;

/// Requests of others than those that the window is for may go beyond it: a quarter of it and so many.
const BEYOND: u64 = 4 * UNIT;

/// A device with so many requests at any time is busy, also without a window.
const BUSY: u32 = 8;

/// An objective's window leaves the device at least so much of what it did without one.
const LEFT: f64 = 0.25;

/// What a trial measures.
#[derive(Default, Clone, Copy)]
struct Trial {
    since: Nanos,
    answers: u64,
    cost: u64,
    bytes: u64,
    /// The fewest requests that were at the device, and the most cost.
    fewest: u32,
    most: u64,
    /// For how long there was room in the window and nothing to fill it.
    idle: Nanos,
    /// The longest time without an answer.
    gap: Nanos,
}

impl Trial {
    /// Whether answers came all the time: not if whoever calls us had no CPU for a while.
    fn is_even(&self, time: Nanos) -> bool {
        self.answers < TRIAL_ANSWERS || self.gap < time / 8
    }
}

/// Gains that were measured, one for each pair of trials.
#[derive(Default, Clone, Copy)]
struct Gains {
    count: u32,
    sum: f64,
    squares: f64,
}

impl Gains {
    fn add(&mut self, gain: f64) {
        let gain = gain.clamp(-1.0, 1.5);
        self.count += 1;
        self.sum += gain;
        self.squares += gain * gain;
    }

    /// By how much their mean is more than `wanted`, if that is clear or has been looked at for long enough.
    fn beyond(&self, wanted: f64) -> Option<f64> {
        let count = f64::from(self.count);
        let mean = self.sum / count;
        let error = ((self.squares / count - mean * mean).max(0.0) / count).sqrt();
        let clear = self.count >= PAIRS && (mean - wanted).abs() > error;
        (clear || self.count >= MOST_PAIRS).then_some(mean - wanted)
    }
}

/// What is tried now.
#[derive(Clone, Copy)]
enum Phase {
    /// Nothing, for so many spans more.
    Hold(u32),
    Smaller,
    /// The smaller window had this throughput.
    Larger(f64),
}

/// The window, and what is in it, in units of cost.
pub(super) struct Window {
    in_flight: u64,
    requests: u32,
    size: u64,
    /// The size that is varied, in requests of 4 KiB.
    centre: f64,
    phase: Phase,
    trial: Trial,
    /// The last step was upwards, and the factor of the next.
    upwards: bool,
    gains: Gains,
    answered: Nanos,
    /// Throughput of the last span without a trial.
    held: f64,
    pace: f64,
    /// Spans without trials between two pairs.
    holds: u32,
    idle_since: Option<Nanos>,
    /// Who asked last, and until when others than it count as active.
    last: u32,
    contended_until: Nanos,
    quiet_until: Nanos,
    /// A latency objective keeps the window below this, in requests of 4 KiB.
    pub bound: f64,
    /// Cost for each ns while requests waited: without an objective's bound, and in the last trial with one.
    full: f64,
    bounded: Option<f64>,
    pub capacity: Capacity,
}

impl Window {
    pub fn new(now: Nanos) -> Window {
        Window {
            in_flight: 0,
            requests: 0,
            size: (FIRST * UNIT as f64) as u64,
            centre: FIRST,
            phase: Phase::Smaller,
            trial: Trial { since: now, ..Trial::default() },
            upwards: false,
            gains: Gains::default(),
            answered: now,
            held: 0.0,
            pace: 1.0,
            holds: 0,
            idle_since: Some(now),
            last: 0,
            contended_until: 0,
            quiet_until: 0,
            bound: f64::INFINITY,
            full: 0.0,
            bounded: None,
            capacity: Capacity::default(),
        }
    }

    /// `leaf` asks at `now`.
    pub fn seen(&mut self, now: Nanos, leaf: u32) {
        if std::mem::replace(&mut self.last, leaf) != leaf {
            self.contended_until = now + PRESENT;
        }
    }

    /// Whether one more request may go to the device.
    pub fn admits(&self, now: Nanos) -> bool {
        self.in_flight < self.size || now >= self.contended_until
    }

    /// Whether one more request may go beyond the window: of somebody who has none at the device and whose turn it is.
    pub fn admits_beyond(&self) -> bool {
        self.in_flight < self.size + self.size / 4 + BEYOND
    }

    /// Somebody was there whose few requests do not like to stand behind a full window.
    pub fn seen_quiet(&mut self, now: Nanos) {
        self.quiet_until = now + QUIET;
    }

    /// A request goes to the device; `joined`: as a part of another. Returns the cost of all that is there.
    pub fn enter(&mut self, cost: u32, joined: bool) -> u64 {
        self.in_flight += u64::from(cost);
        self.requests += u32::from(!joined);
        self.trial.most = self.trial.most.max(self.in_flight);
        self.in_flight
    }

    /// It comes back.
    pub fn leave(&mut self, now: Nanos, cost: u32, bytes: u64, joined: bool) {
        let before = std::mem::replace(&mut self.answered, now).max(self.trial.since);
        self.trial.gap = self.trial.gap.max(now.saturating_sub(before));
        self.trial.fewest = self.trial.fewest.min(self.requests);
        self.in_flight -= u64::from(cost);
        self.requests -= u32::from(!joined);
        self.trial.answers += u64::from(!joined);
        self.trial.cost += u64::from(cost);
        self.trial.bytes += bytes;
    }

    /// Whether there is room, and nothing that could fill it.
    pub fn mark(&mut self, now: Nanos, idle: bool) {
        if idle {
            self.idle_since.get_or_insert(now);
        } else if let Some(since) = self.idle_since.take() {
            self.trial.idle += now - since.max(self.trial.since);
        }
    }

    /// A tick has passed; so many requests wait.
    pub fn adapt(&mut self, now: Nanos, waiting: usize) {
        let time = now - self.trial.since;
        if time < TRIAL || (self.trial.answers < TRIAL_ANSWERS && time < LONGEST_TRIAL) {
            return;
        }
        let next = Trial { since: now, fewest: self.requests, ..Trial::default() };
        let trial = std::mem::replace(&mut self.trial, next);
        let idle = trial.idle + self.idle_since.map_or(0, |since| now - since.max(trial.since));
        let shared = now < self.contended_until && idle < time / 10;
        let throughput = trial.cost as f64 / time as f64;
        let bounded = self.bound < self.centre;
        if bounded && shared {
            self.bounded = Some(throughput);
        } else if shared || trial.fewest >= BUSY {
            // A device that is kept from working says nothing of what it can do.
            self.capacity.learn(time, trial.answers, trial.bytes);
            self.full = throughput;
        }
        self.phase = match self.phase {
            // What was asked for was measured, not the device.
            _ if !shared || throughput <= 0.0 => {
                // One that was full now and then is not too large: without this, bursts on a device that is mostly idle
                // would find it smaller and smaller.
                if now < self.contended_until && trial.most < self.size {
                    self.shrink_to(trial.most as f64 / UNIT as f64 * (-SWING).exp());
                }
                Phase::Hold(0)
            }
            // All trials would be of the same size.
            _ if self.bound < self.centre * SWING.exp() || !trial.is_even(time) => Phase::Hold(0),
            Phase::Hold(0) => Phase::Smaller,
            Phase::Hold(_) if (throughput / self.held).ln().abs() > CHANGED => Phase::Smaller,
            Phase::Hold(more) => Phase::Hold(more - 1),
            Phase::Smaller => Phase::Larger(throughput),
            Phase::Larger(smaller) => {
                self.gains.add((throughput / smaller).ln() / (2.0 * SWING));
                let each = trial.cost as f64 / trial.answers as f64 / UNIT as f64;
                self.step(now, (waiting as f64 + f64::from(self.requests)) * each);
                if self.holds == 0 { Phase::Smaller } else { Phase::Hold(self.holds - 1) }
            }
        };
        if matches!(self.phase, Phase::Hold(_)) {
            self.held = throughput;
        }
        let swing = match self.phase {
            Phase::Hold(_) => 0.0,
            Phase::Smaller => -SWING,
            Phase::Larger(_) => SWING,
        };
        let size = (self.centre() * swing.exp()).max(LEAST);
        // Half a request more makes the quiet one wait.
        let size = if now < self.quiet_until { size.floor() } else { size };
        self.size = (size * UNIT as f64) as u64;
    }

    /// A window that is larger than what is asked for keeps no order: it comes down, slowly, for more may be asked again.
    fn shrink_to(&mut self, asked: f64) {
        if self.centre > asked {
            self.centre = (self.centre * (1.0 - SHRINK)).max(asked).max(LEAST);
        }
    }

    /// Move, if the gains say where to. `asked`: what is at the device and waits, in requests of 4 KiB.
    fn step(&mut self, now: Nanos, asked: f64) {
        let little_left = self.centre > asked * LITTLE_LEFT;
        let wanted = if now < self.quiet_until || little_left { GAIN_QUIET } else { GAIN };
        let Some(worth) = self.gains.beyond(wanted) else { return };
        self.gains = Gains::default();
        if std::mem::replace(&mut self.upwards, worth > 0.0) == self.upwards {
            self.pace = (self.pace * 1.3).min(FASTEST);
            self.holds /= 2;
        } else {
            self.pace = (self.pace / 2.0).max(SLOWEST);
            let longest = if now < self.quiet_until { LONGEST_QUIET_HOLD } else { LONGEST_HOLD };
            self.holds = (self.holds * RARER + 1).min(longest);
        }
        let step = (worth * STEP * self.pace).clamp(-LONGEST_STEP, LONGEST_STEP);
        self.centre = (self.centre * step.exp()).clamp(LEAST, MOST);
    }

    /// Whether an objective may make it smaller; the answer is good once.
    pub fn left(&mut self) -> Left {
        if self.bound >= self.centre && self.full > 0.0 {
            return Left::Enough;
        }
        match self.bounded.take() {
            Some(throughput) if throughput * SMALLER > self.full * LEFT => Left::Enough,
            Some(_) => Left::TooLittle,
            None => Left::Unknown,
        }
    }

    /// Its size in requests of 4 KiB, without the trials' swing.
    pub fn centre(&self) -> f64 {
        self.centre.min(self.bound)
    }

    /// Its size in requests of 4 KiB; 0 while there is none.
    pub fn shown(&self, now: Nanos) -> u64 {
        if now >= self.contended_until { 0 } else { self.centre().ceil() as u64 }
    }
}
