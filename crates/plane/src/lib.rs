//! The plane: every virtio device of every machine is served here, without Python.
//!
//! General layout, from the wire inwards:
//!
//! - [`holder`]: speaks vhost-user, owns what must outlive a crash, keeps workers running; [`control`]: what it tells
//!   them; [`config`]: what devices are; [`scm`]: fds over sockets; [`page`]: the memory that a device's holder and worker share.
//! - [`arbiter`]: whose request goes first; [`shares`]: what the holder is told of it;
//!   [`simulation`]: what would happen, in simulated time.
//! - [`worker`]: one thread on one io_uring that serves the virtqueues; [`memory`]: guests' memory and how a worker
//!   survives its loss; [`chain`]: descriptor chains, checked; [`inflight`]: what a crashed worker had taken;
//!   [`sandbox`]: what a worker may not do; [`seccomp`]: filters from names.
//! - The devices: [`balloon`], [`block`], [`console`], [`mem`], [`net`], [`rng`].
//! - [`clock`]: the time; [`uring`]: one io_uring, raw operations and futures; [`executor`]: the tasks of a thread.

pub mod arbiter;
pub mod balloon;
pub mod block;
pub mod chain;
pub mod clock;
pub mod config;
pub mod console;
pub mod control;
pub mod executor;
pub mod holder;
pub mod inflight;
pub mod mem;
pub mod memory;
pub mod net;
pub mod page;
pub mod rng;
pub mod sandbox;
pub mod scm;
pub mod seccomp;
pub mod shares;
pub mod simulation;
pub mod uring;
pub mod worker;
