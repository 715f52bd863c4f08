//! What a device offers to frontends: feature bits, number of queues, configuration space.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::balloon;
use crate::block;
use crate::config::{BlkConfig, DeviceConfig, Format};
use crate::console;
use crate::mem;
use crate::net;

/// The offer.
pub struct Offer {
    /// virtio and vhost-user feature bits.
    pub features: u64,
    /// Number of virtqueues.
    pub queues: u16,
    /// The device's configuration space, which changes when a disk grows.
    pub config: Mutex<Vec<u8>>,
}

impl Offer {
    /// For a device on these backend fds.
    ///
    /// # Errors
    /// If an image's size cannot be told.
    pub fn of(config: &DeviceConfig, backend: &[OwnedFd]) -> io::Result<Offer> {
        let common = 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let (features, space) = match config {
            DeviceConfig::Blk(blk) => {
                let size = disk_size(blk, backend)?;
                (block::device::features(blk), block::device::config_space(blk, size))
            }
            DeviceConfig::Console(console) => (console::FEATURE_MULTIPORT, console::config_space(console)),
            DeviceConfig::Balloon(balloon) => (balloon::FEATURES, balloon::config_space(balloon)),
            DeviceConfig::Mem(mem) => (mem::FEATURES, mem::config_space(mem, mem.requested, 0)),
            DeviceConfig::Net(net) => (net::device::features(net), net::device::config_space(net)),
            DeviceConfig::Rng(_) | DeviceConfig::Copy(_) | DeviceConfig::Uplink(_) => (0, Vec::new()),
        };
        Ok(Offer { features: common | features, queues: config.queues() as u16, config: Mutex::new(space) })
    }
}

/// Where an O_DIRECT file can be read to.
#[repr(align(4096))]
struct Page([u8; 4096]);

fn disk_size(config: &BlkConfig, backend: &[OwnedFd]) -> io::Result<u64> {
    if let Some(model) = config.layers.first().and_then(|layer| layer.model.as_ref()) {
        return Ok(model.size);
    }
    let (Some(layer), Some(fd)) = (config.layers.first(), backend.first()) else {
        return Err(io::Error::other("a disk without an image"));
    };
    let file = File::from(fd.try_clone()?);
    if layer.format == Format::Raw {
        return block::raw::file_size(&file);
    }
    // Magic at 0, virtual size at 24, big-endian (QEMU docs/interop/qcow2.txt, "Header").
    let mut page = Page([0; 4096]);
    let read = file.read_at(&mut page.0, 0)?;
    let header = &page.0[..32];
    if read < header.len() || header[..4] != *b"QFI\xfb" {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the image is not qcow2"));
    }
    let mut size = [0; 8];
    size.copy_from_slice(&header[24..]);
    Ok(u64::from_be_bytes(size))
}
