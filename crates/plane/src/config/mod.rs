//! What a device is, as the caller of [`crate::holder::Plane::device_add`] describes it (JSON, see `_core.pyi`).

use serde::{Deserialize, Serialize};

use crate::balloon::PAGE;
use crate::shares::{Resource, ShareNode};

pub use blk::{BlkConfig, CopyConfig, Format, Layer, MAX_LAYERS, Model, Speed};
pub use mem::MemConfig;
pub use net::{Mac, NetConfig, UplinkConfig, UplinkKind};

use blk::{check_models, files};

mod blk;
mod mem;
mod net;

/// Largest virtqueue that we offer. User-mode Linux asks for 256, QEMU for at most 1024.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// Most queues of one device: bounds what a frontend can make us keep.
pub const MAX_QUEUES: usize = 64;

/// Most ports of a console; their state has a fixed place in [`crate::page::DevicePage`].
pub const MAX_PORTS: usize = 16;

/// One device.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "driver", rename_all = "lowercase")]
pub enum DeviceConfig {
    /// virtio-blk.
    Blk(BlkConfig),
    /// virtio-console with several ports.
    Console(ConsoleConfig),
    /// virtio-rng.
    Rng(RngConfig),
    /// virtio-balloon.
    Balloon(BalloonConfig),
    /// virtio-mem.
    Mem(MemConfig),
    /// No device of a guest: host work on disks.
    Copy(CopyConfig),
    /// virtio-net.
    Net(NetConfig),
    /// No device of a guest: the way out of a network.
    Uplink(UplinkConfig),
}

/// A port of a console.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// The guest finds it as `/dev/virtio-ports/NAME`; "" for none.
    pub name: String,
    /// Whether the guest makes it a console (`hvc0`).
    pub console: bool,
}

/// A virtio-console device; its fds are one stream socket a port.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Unique among the devices.
    pub id: String,
    /// Devices with the same name share a worker process.
    pub worker: String,
    /// At least one.
    pub ports: Vec<PortConfig>,
}

/// A virtio-rng device.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RngConfig {
    /// Unique among the devices.
    pub id: String,
    /// Devices with the same name share a worker process.
    pub worker: String,
}

/// Most milliseconds between two questions for statistics: a day.
pub const MAX_STATS_MS: u32 = 86_400_000;

/// Fewest, if it is not 0: a guest's time is not ours to waste.
pub const MIN_STATS_MS: u32 = 100;

/// A virtio-balloon device.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// Unique among the devices.
    pub id: String,
    /// Devices with the same name share a worker process.
    pub worker: String,
    /// Bytes that the guest is to give.
    #[serde(default)]
    pub size: u64,
    /// How long statistics of the guest are good before it is asked for others, ms; 0 for ever.
    #[serde(default)]
    pub stats_ms: u32,
}

impl BalloonConfig {
    /// Whether its numbers are within bounds.
    ///
    /// # Errors
    /// A sentence for the caller.
    pub fn check(&self) -> Result<(), String> {
        if self.stats_ms != 0 {
            bound("stats_ms", self.stats_ms as usize, MIN_STATS_MS as usize, MAX_STATS_MS as usize)?;
        }
        // The configuration space has 32 bits for the number of pages (virtio 1.3, 5.5.4).
        bound("size", self.size as usize, 0, u32::MAX as usize * PAGE as usize)
    }
}

fn one() -> u16 {
    1
}

fn queue_size() -> u16 {
    256
}

fn yes() -> bool {
    true
}

impl DeviceConfig {
    /// Parse and check. The message of an error names the field, the value and the bound.
    ///
    /// # Errors
    /// A sentence for the caller.
    pub fn parse(json: &str) -> Result<DeviceConfig, String> {
        let config: DeviceConfig =
            serde_json::from_str(json).map_err(|error| format!("device configuration: {error}"))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.id().is_empty() || self.worker().is_empty() {
            return Err("a device needs an id and the name of its worker".into());
        }
        match self {
            DeviceConfig::Blk(blk) => {
                bound("queues", blk.queues.into(), 1, MAX_QUEUES)?;
                bound("layers", blk.layers.len(), 1, MAX_LAYERS)?;
                check_models(&blk.layers)?;
                bound("length of serial", blk.serial.len(), 0, 20)?;
                bound("queue_size", blk.queue_size.into(), 4, MAX_QUEUE_SIZE.into())?;
                if !blk.queue_size.is_power_of_two() {
                    return Err(format!("queue_size {} is not a power of two", blk.queue_size));
                }
            }
            DeviceConfig::Console(console) => {
                bound("ports", console.ports.len(), 1, MAX_PORTS)?;
                for port in &console.ports {
                    // The name shares a control buffer of the guest with an 8 byte header; Linux gives it a page.
                    bound("length of a port's name", port.name.len(), 0, 255)?;
                }
            }
            DeviceConfig::Rng(_) => {}
            DeviceConfig::Balloon(balloon) => balloon.check()?,
            DeviceConfig::Mem(mem) => mem.check()?,
            DeviceConfig::Copy(copy) => {
                bound("layers", copy.layers.len(), 1, MAX_LAYERS)?;
                check_models(&copy.layers)?;
                bound("target", copy.target.len(), 1, MAX_LAYERS)?;
                if !copy.target.iter().chain(&copy.unlike).all(|layer| layer.format.has_file()) {
                    return Err("a copy's target, and what it is compared with, are files".into());
                }
            }
            DeviceConfig::Net(net) => net.check()?,
            DeviceConfig::Uplink(_) => {}
        }
        Ok(())
    }

    /// In which tree it has its place.
    pub fn resource(&self) -> Resource {
        match self {
            DeviceConfig::Net(_) | DeviceConfig::Uplink(_) => Resource::Network,
            _ => Resource::Disk,
        }
    }

    /// What is said of that tree.
    pub fn shares(&self) -> &[ShareNode] {
        match self {
            DeviceConfig::Blk(blk) => &blk.shares,
            DeviceConfig::Copy(copy) => &copy.shares,
            DeviceConfig::Net(net) => &net.shares,
            _ => &[],
        }
    }

    /// The device's name.
    pub fn id(&self) -> &str {
        match self {
            DeviceConfig::Blk(blk) => &blk.id,
            DeviceConfig::Console(console) => &console.id,
            DeviceConfig::Rng(rng) => &rng.id,
            DeviceConfig::Balloon(balloon) => &balloon.id,
            DeviceConfig::Mem(mem) => &mem.id,
            DeviceConfig::Copy(copy) => &copy.id,
            DeviceConfig::Net(net) => &net.id,
            DeviceConfig::Uplink(uplink) => &uplink.id,
        }
    }

    /// The name of the worker that serves it.
    pub fn worker(&self) -> &str {
        match self {
            DeviceConfig::Blk(blk) => &blk.worker,
            DeviceConfig::Console(console) => &console.worker,
            DeviceConfig::Rng(rng) => &rng.worker,
            DeviceConfig::Balloon(balloon) => &balloon.worker,
            DeviceConfig::Mem(mem) => &mem.worker,
            DeviceConfig::Copy(copy) => &copy.worker,
            DeviceConfig::Net(net) => &net.worker,
            DeviceConfig::Uplink(uplink) => &uplink.worker,
        }
    }

    /// "blk", "console", "rng", "balloon", "mem", "copy", "net" or "uplink".
    pub fn driver(&self) -> &'static str {
        match self {
            DeviceConfig::Blk(_) => "blk",
            DeviceConfig::Console(_) => "console",
            DeviceConfig::Rng(_) => "rng",
            DeviceConfig::Balloon(_) => "balloon",
            DeviceConfig::Mem(_) => "mem",
            DeviceConfig::Copy(_) => "copy",
            DeviceConfig::Net(_) => "net",
            DeviceConfig::Uplink(_) => "uplink",
        }
    }

    /// Number of fds beside the listener.
    pub fn backend_fds(&self) -> usize {
        match self {
            DeviceConfig::Blk(blk) => files(&blk.layers) + usize::from(blk.write_log),
            DeviceConfig::Copy(copy) => files(&copy.layers) + copy.target.len() + copy.unlike.len(),
            DeviceConfig::Console(console) => console.ports.len(),
            DeviceConfig::Rng(_) | DeviceConfig::Balloon(_) | DeviceConfig::Mem(_) | DeviceConfig::Net(_) => {
                0
            }
            DeviceConfig::Uplink(_) => 1,
        }
    }

    /// Whether frontends connect to it.
    pub fn has_frontend(&self) -> bool {
        !matches!(self, DeviceConfig::Copy(_) | DeviceConfig::Uplink(_))
    }

    /// Number of virtqueues.
    pub fn queues(&self) -> usize {
        match self {
            DeviceConfig::Blk(blk) => blk.queues.into(),
            // Receive and transmit of each port, and of the control messages (virtio 1.3, 5.3.2).
            DeviceConfig::Console(console) => 2 * (console.ports.len() + 1),
            DeviceConfig::Rng(_) | DeviceConfig::Mem(_) => 1,
            // Inflate, deflate, statistics, hints, reports (virtio 1.3, 5.5.2).
            DeviceConfig::Balloon(_) => 5,
            // Receive and transmit of each pair, and the control queue (virtio 1.3, 5.1.2).
            DeviceConfig::Net(net) => 2 * usize::from(net.queues) + 1,
            DeviceConfig::Copy(_) | DeviceConfig::Uplink(_) => 0,
        }
    }
}

fn bound(what: &str, value: usize, least: usize, most: usize) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("{what} is {value}, must be {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_parses() {
        let json = r#"{"driver": "blk", "id": "m/disk0", "worker": "disk-8:1", "queues": 2, "queue_size": 128,
            "read_only": true, "serial": "s", "direct": false, "layers": [{"format": "qcow2"}, {"format": "raw"}]}"#;
        let config = DeviceConfig::parse(json).unwrap();
        assert_eq!((config.id(), config.worker(), config.driver()), ("m/disk0", "disk-8:1", "blk"));
        assert_eq!((config.queues(), config.backend_fds()), (2, 2));
        let json = r#"{"driver": "console", "id": "c", "worker": "chars", "ports": [{"name": "", "console": true},
            {"name": "org.qemu.guest_agent.0", "console": false}]}"#;
        assert_eq!(DeviceConfig::parse(json).unwrap().queues(), 6);
    }

    #[test]
    fn a_disk_without_a_file_has_a_model_and_no_fd() {
        let parse = |layer: &str| {
            let json = format!(r#"{{"driver": "blk", "id": "d", "worker": "w", "layers": [{layer}]}}"#);
            DeviceConfig::parse(&json)
        };
        let null = parse(r#"{"format": "null", "model": {"size": 1048576, "read_us": 10}}"#).unwrap();
        assert_eq!(null.backend_fds(), 0);
        let model =
            r#""model": {"size": 1048576, "parallel": 2, "speeds": [{"after_ms": 1, "percent": 50}]}"#;
        parse(&format!(r#"{{"format": "simulated", {model}}}"#)).unwrap();
        parse(&format!(r#"{{"format": "raw", {model}}}"#)).unwrap_err();
        parse(r#"{"format": "null"}"#).unwrap_err();
        let error = parse(r#"{"format": "simulated", "model": {"size": 1048576}}"#).unwrap_err();
        assert_eq!(error, "parallel is 0, must be 1 to 4096");
        let two = format!(r#"{{"format": "simulated", {model}}}, {{"format": "raw"}}"#);
        assert_eq!(parse(&two).unwrap_err(), "layers of a disk without a file is 2, must be 1 to 1");
    }

    #[test]
    fn errors_name_the_field_and_the_bound() {
        let wrong = |json: &str| DeviceConfig::parse(json).unwrap_err();
        let layers = r#""layers": [{"format": "raw"}]"#;
        let blk = |field: &str| {
            wrong(&format!(r#"{{"driver": "blk", "id": "d", "worker": "w", {field}, {layers}}}"#))
        };
        assert_eq!(blk(r#""queues": 0"#), "queues is 0, must be 1 to 64");
        assert_eq!(blk(r#""queue_size": 100"#), "queue_size 100 is not a power of two");
        assert!(blk(r#""colour": 1"#).contains("unknown field `colour`"));
        assert!(wrong(r#"{"driver": "nic", "id": "n", "worker": "w"}"#).contains("unknown variant `nic`"));
        assert!(wrong(r#"{"driver": "rng", "id": "", "worker": "w"}"#).contains("needs an id"));
    }
}
