//! A raw vhost-user frontend: what a guest and its VMM do, with nothing in between that would correct a mistake.
//!
//! General layout, from the memory up:
//!
//! - [`memory`]: guest memory, one memfd, addressed by guest physical address.
//! - [`ring`]: a split virtqueue laid by hand; every field can be set to anything.
//! - [`device`]: the vhost-user connection, well-formed by the `vhost` crate or raw bytes.
//! - [`blk`]: an honest virtio-blk driver on top, that checks each request completes exactly once.
//! - [`net`]: an honest virtio-net driver.
//! - [`balloon`]: a virtio-balloon driver that gives what it is told to.
//! - [`stamp`]: a disk workload whose every block proves where and when it was written.

pub mod balloon;
pub mod blk;
pub mod device;
pub mod memory;
pub mod net;
pub mod ring;
pub mod stamp;

pub use balloon::Balloon;
pub use blk::{Blk, BlkOptions, Completion, Request};
pub use device::{Device, Queue};
pub use memory::Memory;
pub use net::{Net, NetOptions};
pub use ring::{Descriptor, Ring};
