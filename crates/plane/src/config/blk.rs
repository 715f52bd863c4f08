//! Disks and copies of them.

use serde::{Deserialize, Serialize};

use super::{bound, one, queue_size, yes};
use crate::shares::ShareNode;

/// Most image files of a disk; deeper chains are for the image store to flatten.
pub const MAX_LAYERS: usize = 32;

/// Most requests that a simulated device serves at once.
const MAX_PARALLEL: usize = 4096;

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
    /// So much of the time of each request is drawn from an exponential distribution, with the same mean.
    #[serde(default)]
    pub varies_percent: u32,
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
    /// Whether its requests wait for their turns. Without, for benches of what that costs, they go at once.
    #[serde(default = "yes")]
    pub arbitrated: bool,
    /// Image files, top first; only the first is ever written.
    pub layers: Vec<Layer>,
    /// Its nodes in the arbiter's tree. The holder tells the worker of them apart, for they change.
    #[serde(default, skip_serializing)]
    pub shares: Vec<ShareNode>,
}

/// A copy of a disk's content to another; its fds are the source's layers that have a file, top first, then the
/// target's, then those of what it is compared with.
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
    /// The target's layers, top first; only the first is written. One that is raw is made as large as the source.
    #[serde(default = "raw")]
    pub target: Vec<Layer>,
    /// Copy only what the source's top layer itself has, not what it leaves to those below.
    #[serde(default)]
    pub top_only: bool,
    /// What the target's top layer itself has stays as it is.
    #[serde(default)]
    pub keep: bool,
    /// Layers of a disk: what reads the same there is not copied.
    #[serde(default)]
    pub unlike: Vec<Layer>,
    /// What is said of the arbiter's tree; see [`BlkConfig::shares`].
    #[serde(default, skip_serializing)]
    pub shares: Vec<ShareNode>,
}

impl CopyConfig {
    /// One of its disks.
    pub fn disk(&self, layers: &[Layer], read_only: bool) -> BlkConfig {
        BlkConfig {
            id: self.id.clone(),
            worker: self.worker.clone(),
            queues: one(),
            queue_size: queue_size(),
            read_only,
            serial: String::new(),
            direct: self.direct,
            write_log: false,
            arbitrated: true,
            layers: layers.to_vec(),
            shares: Vec::new(),
        }
    }
}

fn raw() -> Vec<Layer> {
    vec![Layer { format: Format::Raw, model: None }]
}

/// Layers that have a file.
pub(super) fn files(layers: &[Layer]) -> usize {
    layers.iter().filter(|layer| layer.format.has_file()).count()
}

/// A disk without a file is one layer, and says how it behaves.
pub(super) fn check_models(layers: &[Layer]) -> Result<(), String> {
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
                bound("varies_percent", model.varies_percent as usize, 0, 100)?;
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
