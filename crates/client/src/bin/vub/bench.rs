//! Random reads or writes at a fixed depth: rate, latency, and this client's time on a CPU, and waiting for one.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use nagaya_client::blk::SECTOR;
use nagaya_client::{Blk, Request};
use serde_json::{Value, json};

use crate::{Options, invalid, open};

/// A request that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measure as the options say.
pub fn run(options: &Options) -> io::Result<Value> {
    let depth = options.number("depth", 1)? as u16;
    let block = options.number("block", 4096)? as u32;
    let write = match options.text("op")? {
        "read" => false,
        "write" => true,
        other => return Err(invalid(format!("--op {other}: want read or write"))),
    };
    let sequential = match options.text("order").unwrap_or("random") {
        "random" => false,
        "sequential" => true,
        other => return Err(invalid(format!("--order {other}: want random or sequential"))),
    };
    let polling = match options.text("mode")? {
        "poll" => true,
        "block" => false,
        other => return Err(invalid(format!("--mode {other}: want poll or block"))),
    };
    let mut blk = open(options, depth, block)?;
    let bytes = blk.capacity()? * SECTOR;
    let span = options.number("span", bytes)?.min(bytes);
    let rate = options.number("rate", 0)?;
    let slice_ms = options.number("slice-ms", 0)?;
    let start = Instant::now() + Duration::from_secs_f64(options.float("warm-up", 0.0)?);
    let mut bench = Bench {
        start,
        pause: if rate > 0 { Duration::from_secs(u64::from(depth)) / rate as u32 } else { Duration::ZERO },
        pausing: VecDeque::new(),
        slice: (slice_ms > 0).then(|| Duration::from_millis(slice_ms)),
        slices: Vec::new(),
        started: vec![Instant::now(); usize::from(depth)],
        latencies: Histogram::default(),
        random: options.number("seed", 1)? | 1,
        blocks: span / u64::from(block),
        sequential,
        blk,
        block,
        write,
        polling,
    };
    let (cpu, wait) = (cpu_seconds(), cpu_wait_seconds()?);
    bench.work(depth, start + Duration::from_secs_f64(options.float("seconds", 2.0)?))?;
    let seconds = start.elapsed().as_secs_f64();
    let ios = bench.latencies.count;
    Ok(json!({
        "ios": ios,
        "seconds": seconds,
        "iops": ios as f64 / seconds,
        "slices": bench.slices,
        "client_cpu_seconds": cpu_seconds() - cpu,
        "client_cpu_wait_seconds": cpu_wait_seconds()? - wait,
        "latency_us": {
            "p50": bench.latencies.quantile(0.5),
            "p99": bench.latencies.quantile(0.99),
            "p999": bench.latencies.quantile(0.999),
            "max": bench.latencies.max as f64 / 1e3,
        },
    }))
}

struct Bench {
    blk: Blk,
    block: u32,
    /// Blocks to choose from.
    blocks: u64,
    /// One after the other.
    sequential: bool,
    write: bool,
    polling: bool,
    random: u64,
    /// Answers before are not counted.
    start: Instant,
    /// A slot asks again so long after it asked last, but not before its answer: those that wait, the next one first.
    pause: Duration,
    pausing: VecDeque<(Instant, u16)>,
    /// Answers in each span of this length since the start.
    slice: Option<Duration>,
    slices: Vec<u64>,
    started: Vec<Instant>,
    latencies: Histogram,
}

impl Bench {
    fn work(&mut self, depth: u16, end: Instant) -> io::Result<()> {
        for slot in 0..depth {
            self.submit(slot);
        }
        self.blk.kick()?;
        loop {
            let mut now = None;
            while let Some(done) = self.blk.poll()? {
                if done.status != 0 {
                    return Err(io::Error::other(format!("status {} of a request", done.status)));
                }
                let now = *now.get_or_insert_with(Instant::now);
                self.count(now, done.slot);
                if now < end {
                    self.again(now, done.slot);
                }
            }
            if self.blk.in_flight() == 0 && self.pausing.is_empty() {
                return Ok(());
            }
            let asked = self.ask_after_pauses(end);
            match now {
                Some(_) => self.blk.kick()?,
                None if asked => self.blk.kick()?,
                None if self.polling => std::hint::spin_loop(),
                None => self.rest()?,
            }
        }
    }

    fn count(&mut self, now: Instant, slot: u16) {
        let Some(since) = now.checked_duration_since(self.start) else { return };
        self.latencies.add(now - self.started[usize::from(slot)]);
        if let Some(slice) = self.slice {
            let slice = (since.as_nanos() / slice.as_nanos()) as usize;
            self.slices.resize(self.slices.len().max(slice + 1), 0);
            self.slices[slice] += 1;
        }
    }

    fn again(&mut self, now: Instant, slot: u16) {
        let next = self.started[usize::from(slot)] + self.pause;
        if self.pause.is_zero() || next <= now {
            self.submit(slot);
        } else {
            self.pausing.push_back((next, slot));
        }
    }

    /// Whether somebody's pause was over. At the end all are.
    fn ask_after_pauses(&mut self, end: Instant) -> bool {
        if self.pausing.is_empty() {
            return false;
        }
        let now = Instant::now();
        if now >= end {
            self.pausing.clear();
        }
        let mut asked = false;
        while let Some((next, slot)) = self.pausing.front().copied()
            && next <= now
        {
            self.pausing.pop_front();
            self.submit(slot);
            asked = true;
        }
        asked
    }

    /// Sleep until there is an answer, or a pause is over.
    fn rest(&mut self) -> io::Result<()> {
        let next = self.pausing.front().map(|(next, _)| next.saturating_duration_since(Instant::now()));
        if self.blk.in_flight() == 0 {
            std::thread::sleep(next.unwrap_or_default());
        } else if !self.blk.wait(next.unwrap_or(PATIENCE))? && next.is_none() {
            return Err(io::Error::other(format!("no completion for {} s", PATIENCE.as_secs())));
        }
        Ok(())
    }

    fn submit(&mut self, slot: u16) {
        if self.sequential {
            self.random = self.random.wrapping_add(1);
        } else {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
        }
        let sector = self.random % self.blocks * u64::from(self.block) / SECTOR;
        let len = self.block;
        let request = if self.write { Request::Write { sector, len } } else { Request::Read { sector, len } };
        self.started[usize::from(slot)] = Instant::now();
        self.blk.submit(slot, request);
    }
}

/// Latencies in buckets of a sixteenth of a power of two of nanoseconds.
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; 64 * 16], count: 0, max: 0 }
    }
}

impl Histogram {
    /// One more.
    pub fn add(&mut self, latency: Duration) {
        let ns = (latency.as_nanos() as u64).max(16);
        let power = ns.ilog2();
        self.buckets[(power * 16 + ((ns >> (power - 4)) as u32 & 15)) as usize] += 1;
        self.count += 1;
        self.max = self.max.max(ns);
    }

    /// Upper end of the bucket that holds the quantile, in microseconds.
    pub fn quantile(&self, quantile: f64) -> f64 {
        let rank = (self.count as f64 * quantile) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen > rank {
                let (power, part) = (bucket / 16, bucket % 16);
                return ((17 + part) as f64) * 2_f64.powi(power as i32 - 4) / 1e3;
            }
        }
        self.max as f64 / 1e3
    }
}

/// CPU time of this process so far.
pub fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid clock and a timespec to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// For how long this thread was ready so far and had no CPU (Documentation/scheduler/sched-stats.rst of Linux).
fn cpu_wait_seconds() -> io::Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let wait = text.split(' ').nth(1).and_then(|field| field.parse::<u64>().ok());
    wait.map(|ns| ns as f64 / 1e9).ok_or_else(|| invalid(format!("schedstat says {text:?}")))
}
