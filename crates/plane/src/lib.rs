//! The plane: every virtio device of every machine is served here, without Python.
//!
//! General layout, from the wire inwards:
//!
//! - [`uring`]: one io_uring, raw operations and futures; [`executor`]: the tasks of a thread.

pub mod executor;
pub mod uring;
