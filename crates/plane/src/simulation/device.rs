//! How long a device takes: what was measured, between the loads that were seen, and a cautious guess beyond.

use crate::arbiter::{Cell, Class, Kind, Nanos, PARTS};

/// Cells of fewer requests say little; they count only where there are no others.
const ENOUGH: u32 = 30;

/// With so much at it, in requests of 4 KiB, a device counts as busy; as for the arbiter.
const BUSY: f64 = 8.0;

/// What beginning a request costs, in bytes; as the arbiter has it.
const START: f64 = 16384.0;

/// What a request takes of the device, in requests of 4 KiB.
pub(super) fn cost(kind: Kind, bytes: u64) -> f64 {
    let bytes = if matches!(kind, Kind::Read | Kind::Write) { bytes as f64 } else { 4096.0 };
    (START + bytes) / (START + 4096.0)
}

struct Seen {
    load: f64,
    count: f64,
    times: Vec<Nanos>,
}

/// What was seen of one class, by load.
struct Known {
    kind: Kind,
    size: f64,
    seen: Vec<Seen>,
}

/// A device.
pub(super) struct Device {
    known: Vec<Known>,
    /// Which of them tells of a class.
    of: Vec<usize>,
    /// Which of them was seen under the greatest load: how its time grows with the load is how all grow.
    widest: usize,
    /// How much longer a request takes for each one more of 4 KiB, beyond what was seen.
    slope: f64,
    /// ns for a request of 4 KiB when the device has more than enough to do; 0 if that is not known.
    each: f64,
    /// The mean time under the greatest load that was seen.
    mean: f64,
}

impl Device {
    /// From what was measured.
    pub fn new(cells: &[Cell], capacity_iops: u64, capacity: u64) -> Result<Device, String> {
        if let Some(cell) = cells.iter().find(|cell| cell.times_ns.len() != PARTS.len()) {
            return Err(format!("a cell has {} times, not {}", cell.times_ns.len(), PARTS.len()));
        }
        let mut classes: Vec<(Class, Vec<&Cell>)> = Vec::new();
        for cell in cells.iter().filter(|cell| cell.count > 0) {
            let class = Class::new(cell.kind, cell.bytes);
            match classes.iter_mut().find(|(other, _)| *other == class) {
                Some((_, of)) => of.push(cell),
                None => classes.push((class, vec![cell])),
            }
        }
        let known: Vec<Known> = classes.into_iter().map(|(_, cells)| Known::of(cells)).collect();
        let places = 0..known.len();
        let Some(widest) = places.max_by(|a, b| known[*a].range().total_cmp(&known[*b].range())) else {
            return Err("nothing has been measured of the device yet".to_owned());
        };
        let slope = slope(&known[widest].seen);
        let of = vec![usize::MAX; usize::from(u8::MAX)];
        let mean = known[widest].seen.last().map_or(0.0, |last| mean(&last.times));
        // Little's law: with so much to do it does at least so much; and no more, if it is busy and nothing else is known.
        let range = known[widest].range();
        let each = match time_of_each(capacity_iops, capacity) {
            measured if measured > 0.0 => measured.min(mean / range),
            _ if range >= BUSY => mean / range,
            _ => 0.0,
        };
        Ok(Device { known, of, widest, slope, each, mean })
    }

    /// The most that was seen at the device, in requests of 4 KiB.
    pub fn known_load(&self) -> f64 {
        self.known[self.widest].range()
    }

    /// How long a request takes that is started under `load`, with itself; `part` of all such requests are faster.
    pub fn time(&mut self, kind: Kind, bytes: u64, load: f64, part: f64) -> Nanos {
        let class = Class::new(kind, bytes).index();
        if self.of[class] == usize::MAX {
            self.of[class] = self.nearest(kind, bytes);
        }
        let known = &self.known[self.of[class]];
        // One of another length takes more or less, as it takes more or less of the device.
        let ratio = if Class::new(known.kind, known.size as u64).index() == class {
            1.0
        } else {
            cost(kind, bytes) / cost(known.kind, known.size as u64)
        };
        let seen = load.min(known.range());
        let grown = (self.middle(load) - self.middle(seen)).max(0.0);
        let least = if load > self.known_load() { self.each * load - self.mean } else { 0.0 };
        ((known.time(seen, part) * ratio + grown.max(least)) as Nanos).max(1)
    }

    /// What half of the requests take at most under `load`, of the class that was seen under the greatest.
    fn middle(&self, load: f64) -> f64 {
        let widest = &self.known[self.widest];
        widest.time(load.min(widest.range()), 0.5) + self.slope * (load - widest.range()).max(0.0)
    }

    /// The same kind before others, the nearest length first.
    fn nearest(&self, kind: Kind, bytes: u64) -> usize {
        let far = |known: &Known| {
            let length = (known.size.max(4096.0) / bytes.max(4096) as f64).log2().abs();
            length + if known.kind == kind { 0.0 } else { 100.0 }
        };
        let places = self.known.iter().enumerate();
        places.min_by(|a, b| far(a.1).total_cmp(&far(b.1))).map_or(0, |(place, _)| place)
    }
}

impl Known {
    fn of(mut cells: Vec<&Cell>) -> Known {
        let most = cells.iter().map(|cell| cell.count).max().unwrap_or(0);
        cells.retain(|cell| cell.count >= ENOUGH.min(most));
        cells.sort_by(|a, b| a.load.total_cmp(&b.load));
        let size = cells.iter().map(|cell| cell.bytes as f64).sum::<f64>() / cells.len() as f64;
        let seen = cells.iter().map(|cell| Seen {
            load: cell.load.max(0.1),
            count: cell.count.into(),
            times: cell.times_ns.clone(),
        });
        Known { kind: cells[0].kind, size, seen: seen.collect() }
    }

    /// The greatest load that it was seen under.
    fn range(&self) -> f64 {
        self.seen.last().map_or(0.0, |seen| seen.load)
    }

    fn time(&self, load: f64, part: f64) -> f64 {
        let place = self.seen.partition_point(|seen| seen.load < load);
        match (place.checked_sub(1).map(|below| &self.seen[below]), self.seen.get(place)) {
            (Some(below), Some(above)) => {
                let far = (load - below.load) / (above.load - below.load).max(1e-9);
                at(&below.times, part) * (1.0 - far) + at(&above.times, part) * far
            }
            (Some(one), None) | (None, Some(one)) => at(&one.times, part),
            (None, None) => 0.0,
        }
    }
}

/// The slope of the middle times over the upper half of the loads, by least squares, but no more than if each request
/// had to wait for all others. Middles, because a mean is that of the few that took very long.
fn slope(seen: &[Seen]) -> f64 {
    let Some(last) = seen.last() else { return 0.0 };
    let upper = || seen.iter().filter(|one| one.load >= last.load / 2.0);
    let count: f64 = upper().map(|one| one.count).sum();
    let mean = |value: &dyn Fn(&Seen) -> f64| upper().map(|one| value(one) * one.count).sum::<f64>() / count;
    let (load, time) = (mean(&|one| one.load), mean(&|one| at(&one.times, 0.5)));
    let varied = mean(&|one| (one.load - load).powi(2));
    let together = mean(&|one| (one.load - load) * (at(&one.times, 0.5) - time));
    if varied <= 0.0 { 0.0 } else { (together / varied).clamp(0.0, at(&last.times, 0.5) / last.load) }
}

/// The quicker of both ways to be busy is what a request of 4 KiB takes.
fn time_of_each(iops: u64, bytes: u64) -> f64 {
    let each = |rate: f64| if rate > 0.0 { 1e9 / rate } else { f64::INFINITY };
    let time = each(iops as f64).min(each(bytes as f64 / (START + 4096.0)));
    if time.is_finite() { time } else { 0.0 }
}

fn mean(times: &[Nanos]) -> f64 {
    let between = |(parts, times): (&[f64], &[Nanos])| {
        (parts[1] - parts[0]) * (times[0] as f64 + times[1] as f64) / 2.0
    };
    PARTS.windows(2).zip(times.windows(2)).map(between).sum()
}

/// The time that `part` of all stay below.
fn at(times: &[Nanos], part: f64) -> f64 {
    let above = PARTS.partition_point(|known| *known < part).clamp(1, PARTS.len() - 1);
    let (from, to) = (PARTS[above - 1], PARTS[above]);
    let far = ((part - from) / (to - from)).clamp(0.0, 1.0);
    times[above - 1] as f64 * (1.0 - far) + times[above] as f64 * far
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(kind: Kind, bytes: u64, load: f64, time: Nanos) -> Cell {
        Cell { number: 0, kind, bytes, load, count: 1000, times_ns: vec![time; PARTS.len()] }
    }

    fn reads(loads: &[(f64, Nanos)]) -> Vec<Cell> {
        loads.iter().map(|(load, time)| cell(Kind::Read, 4096, *load, *time)).collect()
    }

    #[test]
    fn between_loads_that_were_seen_times_are_between() {
        let mut device = Device::new(&reads(&[(2.0, 100_000), (4.0, 200_000)]), 0, 0).unwrap();
        for (load, time) in [(1.0, 100_000), (2.0, 100_000), (3.0, 150_000), (4.0, 200_000)] {
            assert_eq!(device.time(Kind::Read, 4096, load, 0.5), time);
        }
    }

    #[test]
    fn beyond_they_grow_as_before_and_the_device_does_no_more_than_it_can() {
        let time = |cells: &[Cell], iops, load| {
            Device::new(cells, iops, 0).unwrap().time(Kind::Read, 4096, load, 0.5)
        };
        let growing = reads(&[(1.0, 100_000), (4.0, 100_000), (8.0, 200_000)]);
        assert_eq!(time(&growing, 0, 16.0), 400_000);
        // 8 at a time of 0.1 ms are 80,000 a second, whatever is said; after that each has to wait for the others.
        let flat = reads(&[(1.0, 100_000), (8.0, 100_000)]);
        for (iops, load, expected) in [
            (0, 16.0, 200_000),
            (20_000, 9.0, 112_500),
            (20_000, 16.0, 200_000),
            (160_000, 16.0, 100_000),
            (160_000, 32.0, 200_000),
        ] {
            assert_eq!(time(&flat, iops, load), expected, "{iops} {load}");
        }
        // Two at a time say nothing of what it can do.
        assert_eq!(time(&flat[..1], 0, 2.0), 100_000);
    }

    #[test]
    fn a_class_that_was_seen_alone_waits_as_long_as_the_others() {
        let mut cells = reads(&[(1.0, 100_000), (8.0, 800_000)]);
        cells.push(cell(Kind::Flush, 0, 1.0, 5_000_000));
        let mut device = Device::new(&cells, 0, 0).unwrap();
        assert_eq!(device.time(Kind::Flush, 0, 8.0, 0.5), 5_700_000);
        // Never seen at all: as the nearest, and longer for its length.
        assert_eq!(device.time(Kind::Read, 65536, 1.0, 0.5), 400_000);
        assert_eq!(device.known_load(), 8.0);
    }

    #[test]
    fn a_part_of_the_requests_takes_its_part_of_the_times() {
        let times: Vec<Nanos> = PARTS.iter().map(|part| (part * 1000.0) as Nanos).collect();
        for part in [0.0, 0.25, 0.5, 0.75, 0.99, 1.0] {
            assert!((at(&times, part) - part * 1000.0).abs() < 10.0);
        }
    }
}
