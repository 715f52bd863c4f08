//! A device that plugs memory into a guest.

use serde::{Deserialize, Serialize};

use crate::mem::MAX_BLOCKS;

/// The least that is plugged at once: a huge page, so that the host can back and take back memory in such.
pub const MIN_BLOCK: u64 = 2 << 20;

/// Guest addresses end here (SDM 4.1.4).
const ADDRESSES: u64 = 1 << 52;

/// A virtio-mem device.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MemConfig {
    /// Unique among the devices.
    pub id: String,
    /// Devices with the same name share a worker process.
    pub worker: String,
    /// Guest-physical address of the region that memory is plugged into, a multiple of the block size.
    pub start: u64,
    /// Bytes of the region, a multiple of the block size.
    pub size: u64,
    /// Bytes that the guest is to have plugged, a multiple of the block size.
    #[serde(default)]
    pub requested: u64,
}

impl MemConfig {
    /// Bytes that are plugged together: as many as let the region's bits fit into the device's page.
    pub fn block(&self) -> u64 {
        self.size.div_ceil(MAX_BLOCKS as u64).next_power_of_two().max(MIN_BLOCK)
    }

    /// Whether its numbers fit together.
    ///
    /// # Errors
    /// A sentence for the caller.
    pub fn check(&self) -> Result<(), String> {
        if self.size == 0 || self.size > ADDRESSES || self.start > ADDRESSES - self.size {
            return Err(format!("size {} from {:#x} on is not within {ADDRESSES:#x}", self.size, self.start));
        }
        for (name, value) in [("start", self.start), ("size", self.size)] {
            if value % self.block() != 0 {
                return Err(format!("{name} is {value}, no multiple of the block size {}", self.block()));
            }
        }
        self.check_requested(self.requested)
    }

    /// Whether a guest can be asked to have so many bytes plugged.
    ///
    /// # Errors
    /// A sentence for the caller.
    pub fn check_requested(&self, requested: u64) -> Result<(), String> {
        if !requested.is_multiple_of(self.block()) || requested > self.size {
            let (block, size) = (self.block(), self.size);
            return Err(format!("requested is {requested}, must be a multiple of {block} up to {size}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(start: u64, size: u64, requested: u64) -> MemConfig {
        MemConfig { id: "m".into(), worker: "w".into(), start, size, requested }
    }

    #[test]
    fn the_bits_of_any_region_fit() {
        for shift in 21..52 {
            let config = config(0, 1 << shift, 0);
            config.check().unwrap();
            assert!(config.size / config.block() <= MAX_BLOCKS as u64);
        }
        assert_eq!(config(0, 128 << 30, 0).block(), MIN_BLOCK);
        assert_eq!(config(0, 129 << 30, 0).block(), 2 * MIN_BLOCK);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_bound() {
        let wrong = |start, size, requested| config(start, size, requested).check().unwrap_err();
        assert!(wrong(0, 0, 0).contains("size 0"));
        assert!(wrong(u64::MAX, 4 << 20, 0).contains("is not within"));
        assert_eq!(wrong(4096, 4 << 20, 0), "start is 4096, no multiple of the block size 2097152");
        assert!(wrong(0, (4 << 20) + 1, 0).starts_with("size is 4194305"));
        assert_eq!(
            wrong(0, 4 << 20, 6 << 20),
            "requested is 6291456, must be a multiple of 2097152 up to 4194304"
        );
    }
}
