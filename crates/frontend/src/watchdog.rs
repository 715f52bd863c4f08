//! Hangs up on a backend that does not answer in time.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// A thread that lives as long as one step, so that nothing wakes between steps.
pub struct Watchdog {
    step: SyncSender<()>,
    thread: JoinHandle<bool>,
    timeout: Duration,
}

/// It waits and shuts a socket down; 16 KiB is what the C library wants at least.
const STACK: usize = 64 * 1024;

impl Watchdog {
    /// Hang up on `socket` after `timeout`, unless `ended` comes first.
    pub fn start(socket: &UnixStream, timeout: Duration) -> io::Result<Self> {
        let socket = socket.try_clone()?;
        let (step, ended) = sync_channel::<()>(0);
        let bark = move || {
            let late = ended.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout);
            if late {
                // An error means that the other side was first.
                let _ = socket.shutdown(Shutdown::Both);
            }
            late
        };
        let thread = Builder::new().name("vhost-watchdog".into()).stack_size(STACK).spawn(bark)?;
        Ok(Self { step, thread, timeout })
    }

    /// The step is over: its result, or that it took too long.
    pub fn ended<T>(self, result: io::Result<T>) -> io::Result<T> {
        drop(self.step);
        let late = self.thread.join().unwrap_or(false);
        match result {
            Err(error) if late => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {:?} ({error})", self.timeout),
            )),
            result => result,
        }
    }
}
