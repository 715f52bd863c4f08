//! The plane: every virtio device of every machine is served here, without Python.
//!
//! General layout, from the wire inwards:
//!
//! - [`uring`]: one io_uring, a slab of operations, a single-threaded executor.

pub mod uring;
