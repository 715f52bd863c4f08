//! Frames from one port of a network to another, as fast as they go or at a rate: what arrives, how late, and what it costs
//! this client.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nagaya_client::net::HEADER;
use nagaya_client::{Net, NetOptions};
use serde_json::{Value, json};

use crate::bench::{Histogram, cpu_seconds};
use crate::{Options, invalid};

/// Frames that are sent before the receiver is looked at.
const BURST: u32 = 64;

/// A frame that takes longer is lost.
const PATIENCE: Duration = Duration::from_millis(100);

/// Headers of the shortest frame: Ethernet, IPv4, UDP.
const HEADERS: usize = 14 + 20 + 8;

/// Measure as the options say.
pub fn run(options: &Options) -> io::Result<Value> {
    let size = options.number("size", 64)? as usize;
    if !(HEADERS..=1514).contains(&size) {
        return Err(invalid(format!("--size {size}: want {HEADERS} to 1514")));
    }
    let queue_size = options.number("queue-size", 256)? as u16;
    let net = NetOptions { queue_size, offered: queue_size, ..NetOptions::default() };
    let mut from = Net::open(Path::new(options.text("socket")?), net)?;
    let mut to = Net::open(Path::new(options.text("to")?), net)?;
    let frame = udp(mac(&mut to, 2), mac(&mut from, 1), size);
    from.fill(&frame);
    let start = Instant::now() + Duration::from_secs_f64(options.float("warm-up", 0.2)?);
    let end = start + Duration::from_secs_f64(options.float("seconds", 2.0)?);
    let mut run =
        Run { from, to, length: frame.len() as u32, sent: 0, received: 0, late: Histogram::default() };
    let rate = options.number("rate", 0)? as u32;
    run.until(start, rate)?;
    let (sent, received, cpu) = (run.sent, run.received, cpu_seconds());
    run.late = Histogram::default();
    let start = Instant::now();
    run.until(end, rate)?;
    let seconds = start.elapsed().as_secs_f64();
    let received = run.received - received;
    Ok(json!({
        "sent": run.sent - sent,
        "received": received,
        "seconds": seconds,
        "packets_per_second": received as f64 / seconds,
        "bytes": frame.len() + HEADER,
        "client_cpu_seconds": cpu_seconds() - cpu,
        "latency_us": { "p50": run.late.quantile(0.5), "p99": run.late.quantile(0.99) },
    }))
}

struct Run {
    from: Net,
    to: Net,
    length: u32,
    sent: u64,
    received: u64,
    /// From kick to arrival, of frames that were sent at a rate.
    late: Histogram,
}

impl Run {
    fn until(&mut self, end: Instant, rate: u32) -> io::Result<()> {
        if rate == 0 { self.flood(end) } else { self.trickle(end, Duration::from_secs(1) / rate) }
    }

    fn flood(&mut self, end: Instant) -> io::Result<()> {
        while Instant::now() < end {
            for _ in 0..BURST {
                if !self.from.send_again(self.length)? {
                    break;
                }
                self.sent += 1;
            }
            self.from.kick()?;
            self.received += u64::from(self.to.discard()?);
        }
        Ok(())
    }

    /// One frame at a time, for each of which the receiver is called.
    fn trickle(&mut self, end: Instant, pause: Duration) -> io::Result<()> {
        let mut due = Instant::now();
        while due < end {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let began = Instant::now();
            self.sent += u64::from(self.from.send_again(self.length)?);
            self.from.kick()?;
            if self.to.wait(PATIENCE)?.is_some() {
                self.late.add(began.elapsed());
                self.received += 1;
            }
            due += pause;
        }
        Ok(())
    }
}

/// The port's address; of a backend that has no configuration space, one by `number`.
fn mac(net: &mut Net, number: u8) -> [u8; 6] {
    net.mac().unwrap_or([0x52, 0x54, 0, 0, 0, number])
}

/// A UDP datagram over IPv4 from 10.0.0.1 to 10.0.0.2, port 9, of `size` bytes in all, without a UDP checksum.
fn udp(to: [u8; 6], from: [u8; 6], size: usize) -> Vec<u8> {
    let total = (size - 14) as u16;
    let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    header[2..4].copy_from_slice(&total.to_be_bytes());
    let words = header.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    header[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    let mut frame = [&to[..], &from[..], &[8, 0], &header].concat();
    frame.extend([0x9c, 0x40, 0, 9]);
    frame.extend((total - 20).to_be_bytes());
    frame.resize(size, 0);
    frame
}
