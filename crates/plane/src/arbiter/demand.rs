//! What is asked of a device, leaf by leaf, and how it answers: enough to replay it ([`crate::simulation`]).
//!
//! A leaf's requests come in **busy periods**: from a request that finds none of the leaf's under way to the moment when
//! all are answered. Of each is noted how long the leaf was idle before it, how many requests it had, how many of them at
//! a time, and how long the leaf took to ask again after an answer. A reader at depth 1 has periods of one request, a
//! stream has one without end, which is cut into pieces. Periods that resemble one another are counted together, so a
//! leaf takes at most 20 KiB, whatever it does.

use serde::{Deserialize, Serialize};

use super::cost::{Kind, UNIT};
use super::histogram::Histogram;
use super::{Arbiter, Nanos, ROOT};

/// Octaves of a request's length, from 4 KiB on.
const SIZES: usize = 12;
const CLASSES: usize = 4 * SIZES;

/// A period of so many requests is cut; its rest is one that follows without a pause.
const LONGEST: u32 = 1024;

/// Octaves of a pause in µs, and of the number of requests two by two.
const GAPS: usize = 27;
const LENGTHS: usize = 6;

/// A leaf that asks again more often than this within a period has a pace of its own.
const REFILLS: u32 = 4;

/// A request's kind, and the octave of its length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Class(u8);

impl Class {
    /// Of a request.
    pub fn new(kind: Kind, bytes: u64) -> Class {
        let size = match kind {
            Kind::Read | Kind::Write => (bytes.max(4096) / 4096).ilog2().min(SIZES as u32 - 1),
            Kind::Flush | Kind::Discard => 0,
        };
        Class(kind as u8 * SIZES as u8 + size as u8)
    }

    /// Which one it is.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Kinds in the order of their classes.
const KINDS: [Kind; 4] = [Kind::Read, Kind::Write, Kind::Flush, Kind::Discard];

/// Requests of a class.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mix {
    /// What they do.
    pub kind: Kind,
    /// How many.
    pub count: u64,
    /// How many bytes all of them move.
    pub bytes: u64,
}

/// Busy periods that resemble one another: their number, and sums. Times are µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Busy {
    /// Which of all there can be; those of one number may be added up. Below 6 they follow another without a pause.
    pub number: u16,
    /// How many.
    pub count: u64,
    /// Time without a request before them.
    pub gap_us: u64,
    /// From the start of the one before.
    pub span_us: u64,
    /// Requests.
    pub requests: u64,
    /// The most requests at a time.
    pub depth: u64,
    /// From an answer to the next request, where answers are followed by requests.
    pub think_us: u64,
}

/// What a leaf has asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pattern {
    /// The leaf.
    pub id: String,
    /// For how long it has been recorded, in µs.
    pub recorded_us: u64,
    /// Its requests by class.
    pub mix: Vec<Mix>,
    /// Its busy periods.
    pub periods: Vec<Busy>,
    /// Sums of squares, in µs², of the pauses and of the spans: what varies less is what its clock goes by.
    pub squares: (f64, f64),
    /// Latencies from the offer to the answer: bucket (sixteenths of an octave from 1 µs) and count.
    pub latency: Vec<(usize, u32)>,
    /// The latency that 99% stay below, in µs.
    pub p99_us: f64,
}

/// Records a leaf.
pub(super) struct Recorder {
    since: Nanos,
    mix: [(u64, u64); CLASSES],
    periods: Vec<Busy>,
    squares: (f64, f64),
    latency: Histogram,
    outstanding: u32,
    /// The period that goes on.
    begun: Nanos,
    gap: Nanos,
    span: Nanos,
    requests: u32,
    depth: u32,
    /// Sum of the latencies in it.
    spent: Nanos,
    ended: Nanos,
}

impl Recorder {
    pub fn new(now: Nanos) -> Recorder {
        Recorder {
            since: now,
            mix: [(0, 0); CLASSES],
            periods: vec![Busy::default(); GAPS * LENGTHS],
            squares: (0.0, 0.0),
            latency: Histogram::default(),
            outstanding: 0,
            begun: now,
            gap: 0,
            span: 0,
            requests: 0,
            depth: 0,
            spent: 0,
            ended: now,
        }
    }

    /// Begin anew, in the middle of what goes on.
    pub fn clear(&mut self, now: Nanos) {
        self.since = now;
        self.mix = [(0, 0); CLASSES];
        self.periods.fill(Busy::default());
        self.squares = (0.0, 0.0);
        self.latency = Histogram::default();
    }

    /// A request comes.
    pub fn asked(&mut self, now: Nanos, class: Class, bytes: u64) {
        let mix = &mut self.mix[class.index()];
        *mix = (mix.0 + 1, mix.1 + bytes);
        if self.outstanding == 0 {
            // At least 1 µs: none at all is that of a period that was cut.
            self.gap = now.saturating_sub(self.ended).max(1000);
            self.span = now.saturating_sub(self.begun);
            self.begin(now);
        } else if self.requests >= LONGEST {
            self.note(now);
            (self.gap, self.span) = (0, 0);
            self.begin(now);
        }
        self.outstanding += 1;
        self.requests += 1;
        self.depth = self.depth.max(self.outstanding);
    }

    fn begin(&mut self, now: Nanos) {
        (self.begun, self.requests, self.depth, self.spent) = (now, 0, self.outstanding, 0);
    }

    /// One is answered, or taken back.
    pub fn answered(&mut self, now: Nanos, latency: Option<Nanos>) {
        self.outstanding = self.outstanding.saturating_sub(1);
        if let Some(latency) = latency {
            self.latency.add(latency);
            self.spent += latency;
        }
        if self.outstanding == 0 {
            self.note(now);
            self.ended = now;
        }
    }

    /// The period that goes on is over, or cut.
    fn note(&mut self, now: Nanos) {
        let depth = u64::from(self.depth.max(1));
        // Little's law: those that are not under way are thought about.
        let idle = (depth * (now - self.begun)).saturating_sub(self.spent);
        let paced = self.requests >= self.depth.saturating_mul(REFILLS);
        let think = if paced { idle / u64::from(self.requests.max(1)) } else { 0 };
        let (gap, span) = (self.gap / 1000, self.span / 1000);
        let number = number(gap, self.requests);
        let period = &mut self.periods[number];
        period.number = number as u16;
        period.count += 1;
        period.gap_us += gap;
        period.span_us += span;
        period.requests += u64::from(self.requests);
        period.depth += depth;
        period.think_us += think / 1000;
        self.squares.0 += (gap as f64).powi(2);
        self.squares.1 += (span as f64).powi(2);
    }

    fn pattern(&self, id: &str, now: Nanos) -> Pattern {
        let mix = self.mix.iter().enumerate().filter(|(_, (count, _))| *count > 0);
        Pattern {
            id: id.to_owned(),
            recorded_us: (now - self.since) / 1000,
            mix: mix
                .map(|(class, (count, bytes))| Mix {
                    kind: KINDS[class / SIZES],
                    count: *count,
                    bytes: *bytes,
                })
                .collect(),
            periods: self.periods.iter().filter(|period| period.count > 0).copied().collect(),
            squares: self.squares,
            latency: self.latency.rows(),
            p99_us: self.latency.quantile(0.99) as f64 / 1000.0,
        }
    }
}

/// Which periods a period resembles.
fn number(gap_us: Nanos, requests: u32) -> usize {
    let gap = if gap_us == 0 { 0 } else { (gap_us.ilog2() as usize + 1).min(GAPS - 1) };
    gap * LENGTHS + (requests.max(1).ilog2() as usize / 2).min(LENGTHS - 1)
}

/// Loads by quarters of an octave, in requests of 4 KiB: up to 8192 of them.
const LOADS: usize = 14 * 4;

/// Different loads and classes that are kept: a message holds them all.
const CELLS: usize = 200;

/// Of a cell that has seen so many requests, half are forgotten.
const FORGET: u32 = 1 << 14;

/// Parts of all requests whose times are told: [`Cell::times_ns`].
pub const PARTS: [f64; 17] =
    [0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0];

/// How long the device took for requests of one class, under one load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Which of all there can be.
    pub number: u16,
    /// What the requests did.
    pub kind: Kind,
    /// Bytes of each, on average.
    pub bytes: u64,
    /// What was at the device, with the request itself, on average: in requests of 4 KiB.
    pub load: f64,
    /// How many requests this is from; old ones are forgotten.
    pub count: u32,
    /// ns from the start to the answer that these [`PARTS`] of the requests stayed below; but the last is not the longest
    /// that was ever seen: it is so long that half way to it is the mean of those above the one before.
    pub times_ns: Vec<Nanos>,
}

#[derive(Default)]
struct Seen {
    number: usize,
    count: u64,
    bytes: u64,
    load: f64,
    times: Histogram,
}

/// How a device answers, as far as it has been seen: at most 300 KiB.
pub(super) struct Profile {
    /// Which of `seen` a class and load are, from 1 on.
    index: Vec<u8>,
    seen: Vec<Seen>,
}

impl Profile {
    pub fn new() -> Profile {
        Profile { index: vec![0; CLASSES * LOADS], seen: Vec::new() }
    }

    /// A request that was started under `load` (in cost, with itself) has taken `time`.
    pub fn add(&mut self, class: Class, bytes: u64, load: u64, time: Nanos) {
        let number = class.index() * LOADS + quarter(load);
        if self.index[number] == 0 {
            if self.seen.len() == CELLS {
                return;
            }
            self.seen.push(Seen { number, ..Seen::default() });
            self.index[number] = self.seen.len() as u8;
        }
        let seen = &mut self.seen[usize::from(self.index[number]) - 1];
        seen.count += 1;
        seen.bytes += bytes;
        seen.load += load as f64 / UNIT as f64;
        seen.times.add(time);
        if seen.times.total() >= FORGET {
            seen.times.halve();
            (seen.count, seen.bytes, seen.load) = (seen.count / 2, seen.bytes / 2, seen.load / 2.0);
        }
    }

    fn cells(&self) -> Vec<Cell> {
        let cell = |seen: &Seen| Cell {
            number: seen.number as u16,
            kind: KINDS[seen.number / LOADS / SIZES],
            bytes: seen.bytes / seen.count.max(1),
            load: seen.load / seen.count.max(1) as f64,
            count: seen.times.total(),
            times_ns: times(&seen.times),
        };
        self.seen.iter().map(cell).collect()
    }
}

fn times(seen: &Histogram) -> Vec<Nanos> {
    let mut times: Vec<Nanos> = PARTS.iter().map(|part| seen.quantile(*part)).collect();
    if let [.., slow, slowest] = &mut times[..] {
        *slowest = (2 * seen.mean_above(PARTS[PARTS.len() - 2])).saturating_sub(*slow).max(*slow);
    }
    times
}

fn quarter(load: u64) -> usize {
    let load = load.max(UNIT / 2);
    let octave = load.ilog2();
    let step = (load >> (octave - 2)) as usize & 3;
    ((octave as usize - 7) * 4 + step).min(LOADS - 1)
}

/// All that was recorded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Demand {
    /// How the device answers.
    pub cells: Vec<Cell>,
    /// What each leaf asks for that has asked for something.
    pub patterns: Vec<Pattern>,
}

impl Arbiter {
    /// What was recorded; with `anew` the next answer has only what comes from now on.
    pub fn demand(&mut self, now: Nanos, anew: bool) -> Demand {
        let mut patterns = Vec::new();
        for node in self.nodes.iter_mut().skip(ROOT as usize + 1) {
            let Some(recorder) = &mut node.recorder else { continue };
            if recorder.mix.iter().any(|(count, _)| *count > 0) {
                patterns.push(recorder.pattern(&node.name, now));
            }
            if anew {
                recorder.clear(now);
            }
        }
        let cells = self.profile.cells();
        if anew {
            self.profile = Profile::new();
        }
        Demand { cells, patterns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::{Ask, Knobs};

    const MS: Nanos = 1_000_000;

    /// `bursts` of `depth` reads each 10 ms, each answered 1 ms later.
    fn record(bursts: u64, depth: u64) -> Demand {
        let mut arbiter = Arbiter::new(0);
        let leaf = arbiter.set_node(0, "m1/disk0", None, Knobs::default()).unwrap();
        for burst in 1..=bursts {
            let now = burst * 10 * MS;
            let ask = |ticket| Ask { ticket, kind: Kind::Read, bytes: 4096 };
            let asked: Vec<_> = (0..depth).map(|ticket| arbiter.offer(now, leaf, ask(ticket))).collect();
            asked.iter().for_each(|one| arbiter.complete(now + MS, one.request));
        }
        arbiter.demand((bursts + 1) * 10 * MS, true)
    }

    #[test]
    fn bursts_are_recorded_as_they_are() {
        let demand = record(100, 8);
        let [pattern] = &demand.patterns[..] else { panic!("{demand:?}") };
        assert_eq!(pattern.mix, [Mix { kind: Kind::Read, count: 800, bytes: 800 * 4096 }]);
        let sums = pattern.periods.iter().fold(Busy::default(), |sum, one| Busy {
            count: sum.count + one.count,
            requests: sum.requests + one.requests,
            depth: sum.depth + one.depth,
            span_us: sum.span_us + one.span_us,
            ..sum
        });
        assert_eq!((sums.count, sums.requests, sums.depth), (100, 800, 800));
        assert!((990_000..=1_000_000).contains(&sums.span_us), "{}", sums.span_us);
        assert!((900.0..=1100.0).contains(&pattern.p99_us), "{}", pattern.p99_us);
        let loads: Vec<f64> = demand.cells.iter().map(|cell| cell.load).collect();
        assert_eq!((loads[0], loads[1], loads[2], loads.len()), (1.0, 2.0, 3.0, 8));
    }

    #[test]
    fn a_stream_is_cut_and_goes_on() {
        let mut recorder = Recorder::new(0);
        let class = Class::new(Kind::Write, 65536);
        (0..8).for_each(|_| recorder.asked(MS, class, 65536));
        for step in 1..10_000 {
            recorder.answered(MS + step * MS, Some(8 * MS));
            recorder.asked(MS + step * MS, class, 65536);
        }
        let pattern = recorder.pattern("x", 10_001 * MS);
        let on: u64 = pattern.periods.iter().filter(|one| one.number < 6).map(|one| one.count).sum();
        let all: u64 = pattern.periods.iter().map(|one| one.count).sum();
        assert_eq!((on, all), (8, 9));
        assert!(pattern.periods.iter().all(|one| one.depth == 8 * one.count && one.think_us == 0));
    }

    #[test]
    fn what_it_takes_is_bounded() {
        let mut profile = Profile::new();
        for load in 0..100_000 {
            for kind in KINDS {
                profile.add(Class::new(kind, load * 97), load * 97, load * 131, load);
            }
        }
        assert_eq!(profile.seen.len(), CELLS);
        assert!(serde_json::to_string(&profile.cells()).unwrap().len() < 64_000);
    }
}
