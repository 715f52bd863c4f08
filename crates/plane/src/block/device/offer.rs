//! What the device offers: feature bits and configuration space.

use virtio_bindings::bindings::virtio_blk::*;

use crate::block::SECTOR;
use crate::block::request::MAX_ZERO_SECTORS;
use crate::config::BlkConfig;

/// Feature bits of the device itself.
pub fn features(config: &BlkConfig) -> u64 {
    let mut bits = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
    bits |= 1 << VIRTIO_BLK_F_TOPOLOGY;
    if config.queues > 1 {
        bits |= 1 << VIRTIO_BLK_F_MQ;
    }
    if config.read_only {
        bits |= 1 << VIRTIO_BLK_F_RO;
    } else {
        bits |= 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    }
    bits
}

/// The configuration space: `struct virtio_blk_config`, little-endian (5.2.4).
pub fn config_space(config: &BlkConfig, size: u64) -> Vec<u8> {
    let mut space = vec![0; 60];
    let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &(size / SECTOR).to_le_bytes());
    // seg_max: header and status take two descriptors of the chain.
    put(12, &u32::from(config.queue_size - 2).to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    // topology: physical blocks of 4 KiB (2^3 sectors), transfers best in such.
    put(24, &[3, 0]);
    put(26, &8u16.to_le_bytes());
    put(28, &8u32.to_le_bytes());
    put(34, &config.queues.to_le_bytes());
    // max_discard_sectors, max_discard_seg, discard_sector_alignment, and the first two for write-zeroes.
    put(36, &MAX_ZERO_SECTORS.to_le_bytes());
    put(40, &1u32.to_le_bytes());
    put(44, &8u32.to_le_bytes());
    put(48, &MAX_ZERO_SECTORS.to_le_bytes());
    put(52, &1u32.to_le_bytes());
    // write_zeroes_may_unmap.
    put(56, &[1]);
    space
}
