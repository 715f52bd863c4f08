//! What happened, for the Python half to fetch.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Events kept when nobody fetches them; older ones are dropped.
const KEPT: usize = 4096;

/// The queue.
pub struct Events {
    queue: Mutex<VecDeque<String>>,
    fd: EventFd,
}

impl Events {
    /// Empty.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Events> {
        Ok(Events { queue: Mutex::default(), fd: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// Readable while there is something to take.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Add one.
    pub fn push(&self, event: &str, data: Value) {
        let mut queue = lock(&self.queue);
        if queue.len() == KEPT {
            queue.pop_front();
        }
        queue.push_back(json!({"event": event, "data": data}).to_string());
        // Fails only if it is readable already.
        let _ = self.fd.write(1);
    }

    /// All since the last time.
    pub fn take(&self) -> Vec<String> {
        let mut queue = lock(&self.queue);
        // Fails only if there was nothing.
        let _ = self.fd.read();
        queue.drain(..).collect()
    }
}

/// Lock, whatever a panicked thread left: what our mutexes guard is changed in single steps.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
