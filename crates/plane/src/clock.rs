//! The worker's clock.

/// Nanoseconds of a clock.
pub type Nanos = u64;

/// CLOCK_MONOTONIC, which io_uring's timeouts go by too.
pub fn now() -> Nanos {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a clock that every kernel has, and a timespec to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
