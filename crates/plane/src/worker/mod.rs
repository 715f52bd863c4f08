//! A worker: one thread, one io_uring, all devices that share a physical resource. May be killed at any time.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::control::Channel;
use crate::memory;
use crate::sandbox;
use crate::worker::reactor::Reactor;

pub mod device;
mod entry;
mod polling;
pub mod queue;
mod reactor;
mod sharing;

/// The whole life of a worker process: serve what the holder asks for on `control` until it closes the socket.
/// Returns the process's exit status.
pub fn main(control: RawFd) -> i32 {
    abort_on_panic();
    match run(control) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("plane worker: {error}");
            1
        }
    }
}

/// Unwinding would close devices whose tasks are half done, and may wait for ever. The next worker takes it from here.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn run(control: RawFd) -> io::Result<()> {
    // SAFETY: the holder passed this fd to us alone; a wrong number fails with the first use.
    let control = Channel::from(unsafe { OwnedFd::from_raw_fd(control) });
    memory::install_sigbus_handler()?;
    sandbox::limit()?;
    let mut reactor = Reactor::new(control)?;
    sandbox::enter()?;
    reactor.run()
}
