//! Random reads or writes at a fixed depth: rate, latency, and CPU time of this client.

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
    let polling = match options.text("mode")? {
        "poll" => true,
        "block" => false,
        other => return Err(invalid(format!("--mode {other}: want poll or block"))),
    };
    let mut blk = open(options, depth, block)?;
    let bytes = blk.capacity()? * SECTOR;
    let span = options.number("span", bytes)?.min(bytes);
    let mut bench = Bench {
        started: vec![Instant::now(); usize::from(depth)],
        latencies: Histogram::default(),
        random: options.number("seed", 1)? | 1,
        blocks: span / u64::from(block),
        blk,
        block,
        write,
        polling,
    };
    let cpu = cpu_seconds();
    let start = Instant::now();
    bench.work(depth, Duration::from_secs_f64(options.float("seconds", 2.0)?))?;
    let seconds = start.elapsed().as_secs_f64();
    let ios = bench.latencies.count;
    Ok(json!({
        "ios": ios,
        "seconds": seconds,
        "iops": ios as f64 / seconds,
        "client_cpu_seconds": cpu_seconds() - cpu,
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
    write: bool,
    polling: bool,
    random: u64,
    started: Vec<Instant>,
    latencies: Histogram,
}

impl Bench {
    fn work(&mut self, depth: u16, time: Duration) -> io::Result<()> {
        let end = Instant::now() + time;
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
                self.latencies.add(now - self.started[usize::from(done.slot)]);
                if now < end {
                    self.submit(done.slot);
                }
            }
            if self.blk.in_flight() == 0 {
                return Ok(());
            }
            match now {
                Some(_) => self.blk.kick()?,
                None if self.polling => std::hint::spin_loop(),
                None if self.blk.wait(PATIENCE)? => {}
                None => {
                    return Err(io::Error::other(format!("no completion for {} s", PATIENCE.as_secs())));
                }
            }
        }
    }

    fn submit(&mut self, slot: u16) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let sector = self.random % self.blocks * u64::from(self.block) / SECTOR;
        let len = self.block;
        let request = if self.write { Request::Write { sector, len } } else { Request::Read { sector, len } };
        self.started[usize::from(slot)] = Instant::now();
        self.blk.submit(slot, request);
    }
}

/// Latencies in buckets of a sixteenth of a power of two of nanoseconds.
struct Histogram {
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
    fn add(&mut self, latency: Duration) {
        let ns = (latency.as_nanos() as u64).max(16);
        let power = ns.ilog2();
        self.buckets[(power * 16 + ((ns >> (power - 4)) as u32 & 15)) as usize] += 1;
        self.count += 1;
        self.max = self.max.max(ns);
    }

    /// Upper end of the bucket that holds the quantile, in microseconds.
    fn quantile(&self, quantile: f64) -> f64 {
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
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid clock and a timespec to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
