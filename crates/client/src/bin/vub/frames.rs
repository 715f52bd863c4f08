//! Frames from one port of a network to another, as fast as they go or at a rate: what arrives, and what it costs this client.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nagaya_client::net::HEADER;
use nagaya_client::{Net, NetOptions};
use serde_json::{Value, json};

use crate::Options;
use crate::bench::cpu_seconds;

/// Frames that are sent before the receiver is looked at.
const BURST: u32 = 64;

/// Measure as the options say.
pub fn run(options: &Options) -> io::Result<Value> {
    let size = options.number("size", 64)? as usize;
    let rate = options.number("rate", 0)?;
    let queue_size = options.number("queue-size", 256)? as u16;
    let net = NetOptions { queue_size, offered: queue_size, ..NetOptions::default() };
    let mut from = Net::open(Path::new(options.text("socket")?), net)?;
    let mut to = Net::open(Path::new(options.text("to")?), net)?;
    // Of no protocol that is looked into (IEEE 802, local experimental ethertype 1).
    let mut frame = [&to.mac()?[..], &from.mac()?[..], &[0x88, 0xb5]].concat();
    frame.resize(size.max(frame.len()), 0);
    from.fill(&frame);
    let start = Instant::now() + Duration::from_secs_f64(options.float("warm-up", 0.2)?);
    let end = start + Duration::from_secs_f64(options.float("seconds", 2.0)?);
    let mut counted: Option<(u64, u64, f64)> = None;
    let (mut sent, mut received, mut due) = (0_u64, 0_u64, Instant::now());
    loop {
        let now = Instant::now();
        if now >= start && counted.is_none() {
            counted = Some((sent, received, cpu_seconds()));
        }
        if now >= end {
            break;
        }
        if rate == 0 || now >= due {
            due = now + Duration::from_secs(1) / rate.max(1) as u32;
            for _ in 0..if rate == 0 { BURST } else { 1 } {
                if !from.send_again(frame.len() as u32)? {
                    break;
                }
                sent += 1;
            }
            from.kick()?;
        } else if rate > 0 {
            std::thread::sleep(due.saturating_duration_since(now));
        }
        received += u64::from(to.discard()?);
    }
    let (sent_before, received_before, cpu) = counted.unwrap_or((0, 0, 0.0));
    let seconds = (Instant::now() - start).as_secs_f64();
    Ok(json!({
        "sent": sent - sent_before,
        "received": received - received_before,
        "seconds": seconds,
        "packets_per_second": (received - received_before) as f64 / seconds,
        "bytes": frame.len() + HEADER,
        "client_cpu_seconds": cpu_seconds() - cpu,
    }))
}
