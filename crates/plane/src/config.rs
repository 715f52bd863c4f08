//! What a device is, as the caller of [`crate::holder::Plane::device_add`] describes it (JSON, see `_core.pyi`).

use serde::{Deserialize, Serialize};

use crate::shares::ShareNode;

/// Largest virtqueue that we offer. User-mode Linux asks for 256, QEMU for at most 1024.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// Most queues of one device: bounds what a frontend can make us keep.
pub const MAX_QUEUES: usize = 64;

/// Most ports of a console; their state has a fixed place in [`crate::page::DevicePage`].
pub const MAX_PORTS: usize = 16;

/// Most image files of a disk; deeper chains are for the image store to flatten.
pub const MAX_LAYERS: usize = 32;

/// Most requests that a simulated device serves at once.
const MAX_PARALLEL: usize = 4096;

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
    /// No device of a guest: host work on disks.
    Copy(CopyConfig),
}

/// How the bytes of an image file are to be read. Always stated, never probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Guest byte n is file byte n.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
    /// No file: every request is done at once, or after a fixed time. For tests and benches.
    Null,
    /// No file: a device that serves so many requests at once, each in a known time. For tests and benches.
    Simulated,
}

impl Format {
    /// Whether there is a file.
    pub fn has_file(self) -> bool {
        matches!(self, Format::Raw | Format::Qcow2)
    }
}

/// How a disk without a file behaves.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Bytes.
    pub size: u64,
    /// Simulated disks of a worker that name the same device share its capacity.
    #[serde(default)]
    pub device: String,
    /// Requests that a simulated device serves at once.
    #[serde(default)]
    pub parallel: u32,
    /// Microseconds that a read takes once it is served.
    #[serde(default)]
    pub read_us: u64,
    /// The same of a write, and of a discard or write-zeroes.
    #[serde(default)]
    pub write_us: u64,
    /// The same of a flush.
    #[serde(default)]
    pub flush_us: u64,
    /// What moving bytes adds to it; 0 for nothing.
    #[serde(default)]
    pub bytes_per_second: u64,
    /// Changes of its speed, in order of time.
    #[serde(default)]
    pub speeds: Vec<Speed>,
}

/// From `after_ms` of a simulated device's life on, it works at `percent` of its speed.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Speed {
    /// Milliseconds.
    pub after_ms: u64,
    /// 100 is as the model says.
    pub percent: u32,
}

/// One image file of a disk.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Its format.
    pub format: Format,
    /// With the formats `null` and `simulated`, and only with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
}

/// A virtio-blk device; its fds are the layers that have a file, top first.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BlkConfig {
    /// Unique among the devices.
    pub id: String,
    /// Devices with the same name share a worker process.
    pub worker: String,
    /// Number of virtqueues.
    #[serde(default = "one")]
    pub queues: u16,
    /// Size that we recommend to the frontend, in descriptors.
    #[serde(default = "queue_size")]
    pub queue_size: u16,
    /// Refuse everything that changes the disk.
    #[serde(default)]
    pub read_only: bool,
    /// At most 20 bytes (virtio 1.3, 5.2.6).
    #[serde(default)]
    pub serial: String,
    /// Past the host's page cache, where the file system can.
    #[serde(default = "yes")]
    pub direct: bool,
    /// A file beside the layers' gets all writes and flushes ([`crate::block::writelog`]). For tests.
    #[serde(default)]
    pub write_log: bool,
    /// Image files, top first; only the first is ever written.
    pub layers: Vec<Layer>,
    /// Its nodes in the arbiter's tree. The holder tells the worker of them apart, for they change.
    #[serde(default, skip_serializing)]
    pub shares: Vec<ShareNode>,
}

/// A copy of a disk's content to a raw file or a block device; its fds are the source's layers that have a file, top
/// first, then the target.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CopyConfig {
    /// Unique among the devices; also its place in the arbiter's tree.
    pub id: String,
    /// Devices with the same name share a worker process.
    pub worker: String,
    /// Past the host's page cache, where the file systems can.
    #[serde(default = "yes")]
    pub direct: bool,
    /// The source's layers, top first. None is written.
    pub layers: Vec<Layer>,
    /// What is said of the arbiter's tree; see [`BlkConfig::shares`].
    #[serde(default, skip_serializing)]
    pub shares: Vec<ShareNode>,
}

impl CopyConfig {
    /// The source as a disk.
    pub fn source(&self) -> BlkConfig {
        BlkConfig {
            id: self.id.clone(),
            worker: self.worker.clone(),
            queues: one(),
            queue_size: queue_size(),
            read_only: true,
            serial: String::new(),
            direct: self.direct,
            write_log: false,
            layers: self.layers.clone(),
            shares: Vec::new(),
        }
    }
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
            DeviceConfig::Copy(copy) => {
                bound("layers", copy.layers.len(), 1, MAX_LAYERS)?;
                check_models(&copy.layers)?;
            }
        }
        Ok(())
    }

    /// What is said of the arbiter's tree.
    pub fn shares(&self) -> &[ShareNode] {
        match self {
            DeviceConfig::Blk(blk) => &blk.shares,
            DeviceConfig::Copy(copy) => &copy.shares,
            _ => &[],
        }
    }

    /// The device's name.
    pub fn id(&self) -> &str {
        match self {
            DeviceConfig::Blk(blk) => &blk.id,
            DeviceConfig::Console(console) => &console.id,
            DeviceConfig::Rng(rng) => &rng.id,
            DeviceConfig::Copy(copy) => &copy.id,
        }
    }

    /// The name of the worker that serves it.
    pub fn worker(&self) -> &str {
        match self {
            DeviceConfig::Blk(blk) => &blk.worker,
            DeviceConfig::Console(console) => &console.worker,
            DeviceConfig::Rng(rng) => &rng.worker,
            DeviceConfig::Copy(copy) => &copy.worker,
        }
    }

    /// "blk", "console", "rng" or "copy".
    pub fn driver(&self) -> &'static str {
        match self {
            DeviceConfig::Blk(_) => "blk",
            DeviceConfig::Console(_) => "console",
            DeviceConfig::Rng(_) => "rng",
            DeviceConfig::Copy(_) => "copy",
        }
    }

    /// Number of fds beside the listener.
    pub fn backend_fds(&self) -> usize {
        match self {
            DeviceConfig::Blk(blk) => files(&blk.layers) + usize::from(blk.write_log),
            DeviceConfig::Copy(copy) => files(&copy.layers) + 1,
            DeviceConfig::Console(console) => console.ports.len(),
            DeviceConfig::Rng(_) => 0,
        }
    }

    /// Number of virtqueues.
    pub fn queues(&self) -> usize {
        match self {
            DeviceConfig::Blk(blk) => blk.queues.into(),
            // Receive and transmit of each port, and of the control messages (virtio 1.3, 5.3.2).
            DeviceConfig::Console(console) => 2 * (console.ports.len() + 1),
            DeviceConfig::Rng(_) => 1,
            DeviceConfig::Copy(_) => 0,
        }
    }
}

fn files(layers: &[Layer]) -> usize {
    layers.iter().filter(|layer| layer.format.has_file()).count()
}

/// A disk without a file is one layer, and says how it behaves.
fn check_models(layers: &[Layer]) -> Result<(), String> {
    for layer in layers {
        match &layer.model {
            None if layer.format.has_file() => {}
            Some(model) if !layer.format.has_file() => {
                bound("layers of a disk without a file", layers.len(), 1, 1)?;
                let (least, most) = if layer.format == Format::Null { (0, 0) } else { (1, MAX_PARALLEL) };
                bound("parallel", model.parallel as usize, least, most)?;
                bound("size", model.size as usize, 512, 1 << 50)?;
                let times = [model.read_us, model.write_us, model.flush_us];
                bound("a time in µs", times.into_iter().max().unwrap_or(0) as usize, 0, 60_000_000)?;
                bound("speeds", model.speeds.len(), 0, 64)?;
                for speed in &model.speeds {
                    bound("percent", speed.percent as usize, 1, 10_000)?;
                }
            }
            _ => return Err("a model goes with the formats null and simulated, and only with them".into()),
        }
    }
    Ok(())
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
