//! Balloons: how large they are to be, what their guests say, and what `query-balloons` tells of it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use vhost::vhost_user::Result;

use crate::balloon::{self, PAGE, STAT_NAMES, Stats, place};
use crate::config::DeviceConfig;
use crate::control::ToWorker;
use crate::holder::events::lock;
use crate::holder::session::{Session, refused};
use crate::holder::shadow::{Outgoing, Shadow};
use crate::holder::{Plane, PlaneError};

/// Part of its memory that a guest is asked for at a time. Linux's driver sleeps 0.2 s whenever it finds no free page: when
/// its memory is full of caches, and it is quicker than kswapd. That begins a thousandth of the memory before there are none
/// (`watermark_scale_factor`).
const BITES: u64 = 1024;
const LEAST_BITE: u64 = 256 << 10;

/// Time for kswapd between two bites: without it one bite of eight met that sleep on a busy host, with it one of a hundred.
pub const PAUSE: Duration = Duration::from_millis(1);

/// What is asked of a balloon; what is left out stays.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    size: Option<u64>,
    stats_ms: Option<u32>,
}

impl Plane {
    /// Have a guest give so many bytes, or be asked for statistics so often, as `json` says (`size`, `stats_ms`). It is told at
    /// once, also if it has been asked for the same before, and does it in its own time, bite by bite.
    ///
    /// # Errors
    /// If there is no such balloon, or a number is out of bounds.
    pub fn set_balloon(&self, id: &str, json: &str) -> std::result::Result<(), PlaneError> {
        let wish: Wish =
            serde_json::from_str(json).map_err(|error| PlaneError::Config(format!("balloon: {error}")))?;
        let inner = lock(&self.inner);
        let device = inner.devices.get(id).ok_or_else(|| PlaneError::NoDevice(id.to_owned()))?;
        let number = device.number;
        device.link.change(|state| {
            let Some(shadow) = state.devices.get_mut(&number) else {
                return Err(PlaneError::NoDevice(id.to_owned()));
            };
            let DeviceConfig::Balloon(config) = &mut shadow.config else {
                return Err(PlaneError::Config(format!("device {id} is no balloon")));
            };
            let mut wanted = config.clone();
            wanted.size = wish.size.unwrap_or(wanted.size);
            wanted.stats_ms = wish.stats_ms.unwrap_or(wanted.stats_ms);
            wanted.check().map_err(PlaneError::Config)?;
            *config = wanted;
            if wish.size.is_some() {
                device.patch(place::WANTED, &next_size(shadow));
            }
            if let Some(stats_ms) = wish.stats_ms {
                let message = ToWorker::StatsPeriod { device: number, stats_ms };
                state.tell(Outgoing { message, fds: Vec::new() });
            }
            Ok(())
        })
    }

    /// Each balloon as JSON, see `_core.pyi`.
    pub fn query_balloons(&self) -> String {
        let inner = lock(&self.inner);
        let mut rows = Vec::new();
        for (link, _) in inner.links.values() {
            rows.extend(link.state().devices.values().filter_map(describe));
        }
        Value::from(rows).to_string()
    }
}

impl Session {
    /// A driver writes to the configuration space: that of a balloon says how large it is (virtio 1.3, 5.5.6.1), and what it
    /// fills free pages with (5.5.6.5).
    pub fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<()> {
        let word = <[u8; 4]>::try_from(bytes).map(u32::from_le_bytes);
        let state = self.link.state();
        let shadow = state.devices.get(&self.device);
        let Some((config, page)) = shadow.and_then(balloon_of) else {
            return Err(refused("no field of the configuration can be written".into()));
        };
        match (offset as usize, word) {
            (place::ACTUAL, Ok(pages)) => {
                let actual = u64::from(pages) * PAGE;
                let before = page.actual.swap(actual, Relaxed);
                self.given = actual > before && actual < config.size;
                // Linux does so when it has no other memory left.
                if actual < before && actual < config.size {
                    page.taken_back.fetch_add(1, Relaxed);
                }
            }
            (place::POISON, Ok(value)) => page.poison.store(value, Relaxed),
            _ => {
                let reason = format!("{} bytes at {offset} of a balloon's configuration", bytes.len());
                return Err(refused(reason));
            }
        }
        let place = offset as usize;
        lock(&self.offer.config)[place..place + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// Ask for the next bite; whether there is one.
    pub fn next_bite(&mut self) -> bool {
        let state = self.link.state();
        let Some(shadow) = state.devices.get(&self.device) else { return false };
        let next = next_size(shadow);
        let mut space = lock(&self.offer.config);
        let wanted = &mut space[place::WANTED..place::ACTUAL];
        let more = *wanted != next;
        wanted.copy_from_slice(&next);
        more
    }

    /// Another driver comes: its balloon is empty.
    pub fn restart_balloon(&mut self) {
        if let Some((_, page)) = self.link.state().devices.get(&self.device).and_then(balloon_of) {
            page.restart();
            lock(&self.offer.config)[place::ACTUAL..].fill(0);
        }
    }
}

/// `num_pages` of what the guest is asked for next, on the way to the size that is wanted.
fn next_size(shadow: &Shadow) -> [u8; 4] {
    let Some((config, page)) = balloon_of(shadow) else { return [0; 4] };
    let memory: u64 = shadow.memory.iter().map(|(region, _)| region.size).sum();
    let reach = page.actual.load(Relaxed).saturating_add(LEAST_BITE.max(memory / BITES));
    balloon::wanted_pages(config.size.min(reach)).to_le_bytes()
}

fn balloon_of(shadow: &Shadow) -> Option<(&crate::config::BalloonConfig, &balloon::BalloonState)> {
    match &shadow.config {
        DeviceConfig::Balloon(config) => Some((config, &shadow.page.balloon)),
        _ => None,
    }
}

fn describe(shadow: &Shadow) -> Option<Value> {
    let (config, page) = balloon_of(shadow)?;
    let (stats, at) = page.stats().unzip();
    Some(json!({
        "id": config.id,
        "size": config.size / PAGE * PAGE,
        "actual": page.actual.load(Relaxed),
        // Its first queue runs.
        "driver": shadow.queues.contains_key(&0),
        "inflated": page.inflated.load(Relaxed),
        "deflated": page.deflated.load(Relaxed),
        "reported": page.reported.load(Relaxed),
        "taken_back": page.taken_back.load(Relaxed),
        "stats_ms": config.stats_ms,
        "stats": stats.map(named),
        "stats_at": at,
    }))
}

fn named(stats: Stats) -> Map<String, Value> {
    STAT_NAMES.iter().zip(stats.0).map(|(name, value)| ((*name).to_owned(), value.into())).collect()
}
