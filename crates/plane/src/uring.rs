//! One io_uring per worker thread.
