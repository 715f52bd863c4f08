//! Who asks: busy periods as they were recorded, drawn at random.

use super::Random;
use crate::arbiter::{Kind, Nanos, Pattern};

/// Requests at a time at most, whatever a recording says.
const MOST_DEPTH: u32 = 4096;

/// Bytes of a request at most: what no guest asks for.
const MOST_BYTES: u64 = 1 << 30;

/// One of so many times a clock is out by half of its span at most. Two clocks meet, sooner or later, at all places: what
/// follows from where they happened to stand when they were recorded is no forecast.
const WANDERS: u64 = 16;

/// The deviation of a regular clock, as a part of its span.
const REGULAR: f64 = 0.25;

/// Numbers of periods below follow another without a pause.
const CUT: u16 = 6;

#[derive(Clone, Copy, Debug)]
struct Period {
    /// Follows another without a pause.
    cut: bool,
    gap: Nanos,
    span: Nanos,
    requests: f64,
    depth: u32,
    think: Nanos,
}

/// A disk of a machine.
pub(super) struct Client {
    /// What it draws from, by the sum of the counts so far.
    periods: Vec<(u64, Period)>,
    requests: Vec<(u64, (Kind, u64))>,
    /// It begins by a clock of its own, not some time after the end of what was before.
    timed: bool,
    /// And that clock is regular.
    regular: bool,
    begun: Nanos,
    think: Nanos,
    depth: u32,
    /// Requests of this period that have not been asked, and those that are under way or thought about.
    left: u64,
    slots: u32,
    then: Option<Period>,
}

/// What follows an answer.
pub(super) enum Next {
    Nothing,
    /// So many requests, so much later.
    Ask(u32, Nanos),
    /// The next period, then.
    Begin(Nanos),
}

impl Client {
    pub fn new(pattern: &Pattern) -> Result<Client, String> {
        let mut sum = 0;
        let mut periods = Vec::new();
        for one in pattern.periods.iter().filter(|one| one.count > 0) {
            sum += one.count;
            let mean = |total: u64| total as f64 / one.count as f64;
            let depth = (mean(one.depth).round() as u32).clamp(1, MOST_DEPTH);
            let period = Period {
                cut: one.number < CUT,
                gap: (mean(one.gap_us) * 1e3) as Nanos,
                span: (mean(one.span_us) * 1e3) as Nanos,
                requests: mean(one.requests).max(1.0),
                depth,
                think: (mean(one.think_us) * 1e3) as Nanos,
            };
            periods.push((sum, period));
        }
        let mut sum = 0;
        let mut requests = Vec::new();
        for one in pattern.mix.iter().filter(|one| one.count > 0) {
            sum += one.count;
            requests.push((sum, (one.kind, (one.bytes / one.count).min(MOST_BYTES))));
        }
        if requests.is_empty() && !periods.is_empty() {
            return Err(format!("{} has busy periods and no requests", pattern.id));
        }
        let (timed, regular) = clock(pattern);
        let (begun, think, depth, left, slots, then) = (0, 0, 0, 0, 0, None);
        Ok(Client { periods, requests, timed, regular, begun, think, depth, left, slots, then })
    }

    /// When it begins: at some time of the pause before its first period. `None` if it asks for nothing.
    pub fn first(&self, random: &mut Random) -> Option<Nanos> {
        let period = draw(&self.periods, random)?;
        Some((period.gap.max(50_000) as f64 * random.part()) as Nanos)
    }

    /// A period begins; how many requests it asks for at once.
    pub fn begin(&mut self, now: Nanos, random: &mut Random) -> u32 {
        let drawn = self.then.take().or_else(|| draw(&self.periods, random));
        let Some(period) = drawn else { return 0 };
        self.begun = now;
        self.take(period, random);
        self.fill(random)
    }

    /// One is answered.
    pub fn answered(&mut self, now: Nanos, random: &mut Random) -> Next {
        self.slots -= 1;
        let count = self.fill(random);
        if count > 0 {
            return Next::Ask(count, self.think);
        }
        match self.then {
            Some(next) if self.slots == 0 && self.timed => {
                let wanders = self.regular && random.next().is_multiple_of(WANDERS);
                let out = if wanders { random.part() + 0.5 } else { 1.0 };
                Next::Begin(now.max(self.begun + (next.span as f64 * out) as Nanos))
            }
            Some(next) if self.slots == 0 => Next::Begin(now + next.gap),
            _ => Next::Nothing,
        }
    }

    /// The next request's kind and length.
    pub fn request(&self, random: &mut Random) -> (Kind, u64) {
        draw(&self.requests, random).unwrap_or((Kind::Read, 4096))
    }

    fn take(&mut self, period: Period, random: &mut Random) {
        self.left += (period.requests + random.part()) as u64;
        (self.depth, self.think) = (period.depth, period.think);
    }

    /// As many requests as may be under way now; when a period has none left, what comes after it is known.
    fn fill(&mut self, random: &mut Random) -> u32 {
        let mut count = 0;
        while self.slots < self.depth && self.then.is_none() {
            let some = u64::from(self.depth - self.slots).min(self.left);
            self.left -= some;
            self.slots += some as u32;
            count += some as u32;
            if self.left == 0 {
                match draw(&self.periods, random) {
                    Some(next) if next.cut => self.take(next, random),
                    next => self.then = next,
                }
            }
        }
        count
    }
}

/// Whether what varies less is the time from one start to the next, and not the pause; and whether it varies little.
fn clock(pattern: &Pattern) -> (bool, bool) {
    let (mut count, mut gaps, mut spans) = (0.0, 0.0, 0.0);
    for one in pattern.periods.iter().filter(|one| one.number >= CUT) {
        count += one.count as f64;
        gaps += one.gap_us as f64;
        spans += one.span_us as f64;
    }
    let variance = |squares: f64, sum: f64| squares / count - (sum / count).powi(2);
    let span = variance(pattern.squares.1, spans);
    let timed = count > 1.0 && span < variance(pattern.squares.0, gaps);
    (timed, timed && span < (REGULAR * spans / count).powi(2))
}

fn draw<T: Copy>(from: &[(u64, T)], random: &mut Random) -> Option<T> {
    let (total, _) = from.last()?;
    let at = random.next() % total;
    let place = from.partition_point(|(sum, _)| *sum <= at);
    from.get(place).map(|(_, one)| *one)
}
