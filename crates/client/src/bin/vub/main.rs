//! `vub`: measure or check a vhost-user backend. Prints one JSON object; the callers are benches/disk, benches/network
//! and tests/system.
//!
//! ```text
//! vub bench  --socket S --op read|write --depth N --mode block|poll --seconds T [--block 4096] [--indirect 1]
//!            [--warm-up T: not counted] [--rate N: at most so many requests a second] [--slice-ms N: counts by time]
//!            [--order random|sequential]
//! vub stamp  --socket S --depth N --seconds T --blocks N [--seed N] [--log FILE] [--patience S]
//! vub config --socket S
//! vub ask    --socket S < requests    (a line each: read SECTOR LEN, write SECTOR LEN BYTE, flush)
//! vub frames --socket S --to S [--size 64] [--seconds T] [--rate N: frames a second, each waited for; else as many as go]
//!            [--queue-size 256] [--warm-up T]
//! vub tap    --fd N (an open tap) --socket S | --to-fd N (another tap)    until standard input ends
//! ```

mod bench;
mod frames;
mod tap;

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, io};

use nagaya_client::stamp::{BLOCK, Stamper};
use nagaya_client::{Blk, BlkOptions, Request};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    match Options::parse(arguments).and_then(|options| run(&command, &options)) {
        Ok(result) => {
            println!("{result}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("vub {command}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &str, options: &Options) -> io::Result<Value> {
    match command {
        "bench" => bench::run(options),
        "stamp" => stamp(options),
        "config" => config(options),
        "ask" => ask(options),
        "frames" => frames::run(options),
        "tap" => tap::run(options),
        other => Err(invalid(format!("no command {other:?}; bench, stamp, config, ask, frames or tap"))),
    }
}

fn stamp(options: &Options) -> io::Result<Value> {
    let slots = options.number("depth", 32)? as u16;
    let blk = open(options, slots, BLOCK)?;
    let blocks = options.number("blocks", 4096)? as usize;
    let mut stamper = Stamper::new(blk, slots, blocks, options.number("seed", 1)?);
    let patience = Duration::from_secs(options.number("patience", 5)?);
    if let Ok(path) = options.text("log") {
        stamper.resume(File::options().read(true).append(true).create(true).open(path)?)?;
        stamper.verify(patience)?;
        println!("verified");
    }
    stamper.run(Duration::from_secs_f64(options.float("seconds", 2.0)?), patience)?;
    let tally = stamper.verify(patience)?;
    Ok(json!({
        "reads": tally.reads,
        "writes": tally.writes,
        "flushes": tally.flushes,
        "longest_stall_ms": tally.longest_stall.as_secs_f64() * 1e3,
    }))
}

fn config(options: &Options) -> io::Result<Value> {
    let mut blk = open(options, 1, BLOCK)?;
    Ok(json!({
        "features": blk.device.features,
        "protocol_features": blk.device.protocol.bits(),
        "capacity_sectors": blk.capacity()?,
    }))
}

/// Make the requests of standard input one after the other; the status of each goes to standard output as it comes.
fn ask(options: &Options) -> io::Result<Value> {
    let patience = Duration::from_secs(options.number("patience", 30)?);
    let mut blk = open(options, 1, 1 << 20)?;
    let mut count = 0;
    for line in io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let number =
            |at: usize| words[at].parse::<u64>().map_err(|_| invalid(format!("a number in {line:?}")));
        let request = match words.as_slice() {
            ["flush"] => Request::Flush,
            ["read", ..] if words.len() == 3 => Request::Read { sector: number(1)?, len: number(2)? as u32 },
            ["write", ..] if words.len() == 4 => {
                let (len, byte) = (number(2)? as usize, number(3)? as u8);
                blk.device.memory.put_bytes(blk.buffer(0), &vec![byte; len]);
                Request::Write { sector: number(1)?, len: len as u32 }
            }
            _ => return Err(invalid(format!("no request: {line:?}"))),
        };
        println!("{}", blk.run(request, patience)?.status);
        count += 1;
    }
    Ok(json!({ "requests": count }))
}

/// Connect with a ring that holds `slots` chains.
fn open(options: &Options, slots: u16, buffer_len: u32) -> io::Result<Blk> {
    let blk = BlkOptions {
        slots,
        buffer_len,
        queue_size: (3 * slots).next_power_of_two().max(128),
        indirect: options.number("indirect", 0)? != 0,
        event_idx: options.number("event-idx", 1)? != 0,
    };
    Blk::open(Path::new(options.text("socket")?), blk)
}

/// `--name value` pairs.
struct Options(HashMap<String, String>);

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> io::Result<Self> {
        let mut options = HashMap::new();
        while let Some(name) = arguments.next() {
            let key = name.strip_prefix("--").ok_or_else(|| invalid(format!("unexpected {name:?}")))?;
            let value = arguments.next().ok_or_else(|| invalid(format!("{name} needs a value")))?;
            options.insert(key.to_owned(), value);
        }
        Ok(Self(options))
    }

    fn text(&self, name: &str) -> io::Result<&str> {
        self.0.get(name).map(String::as_str).ok_or_else(|| invalid(format!("--{name} is required")))
    }

    fn number(&self, name: &str, default: u64) -> io::Result<u64> {
        self.0.get(name).map_or(Ok(default), |text| {
            text.parse().map_err(|_| invalid(format!("--{name} {text}: want a whole number")))
        })
    }

    fn float(&self, name: &str, default: f64) -> io::Result<f64> {
        self.0.get(name).map_or(Ok(default), |text| {
            text.parse().map_err(|_| invalid(format!("--{name} {text}: want a number")))
        })
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
