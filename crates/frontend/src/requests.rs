//! The channel by which a backend asks its frontend for something. All it may ask here is: look at the configuration.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vhost::vhost_user::{FrontendReqHandler, HandlerResult, VhostUserFrontendReqHandler};

/// The frontend's end.
pub struct BackendRequests {
    channel: FrontendReqHandler<Changes>,
    socket: UnixStream,
    changes: Arc<Changes>,
}

#[derive(Default)]
struct Changes(AtomicBool);

impl VhostUserFrontendReqHandler for Changes {
    fn handle_config_change(&self) -> HandlerResult<u64> {
        self.0.store(true, Ordering::Relaxed);
        Ok(0)
    }
}

impl BackendRequests {
    /// A new channel; `acknowledge`: requests that want an answer get one.
    pub fn new(acknowledge: bool) -> io::Result<Self> {
        let changes = Arc::new(Changes::default());
        let mut channel = FrontendReqHandler::new(changes.clone()).map_err(io::Error::other)?;
        channel.set_reply_ack_flag(acknowledge);
        // SAFETY: the channel is open as long as it lives, and the duplicate is made here.
        let ours = unsafe { BorrowedFd::borrow_raw(channel.as_raw_fd()) };
        let socket = UnixStream::from(ours.try_clone_to_owned()?);
        Ok(Self { channel, socket, changes })
    }

    /// The end that the backend gets.
    pub fn theirs(&self) -> Fd {
        Fd(self.channel.get_tx_raw_fd())
    }

    /// Our end, to hang up.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Take one request. Whether it was "the configuration has changed".
    pub fn take(&mut self) -> io::Result<bool> {
        self.channel.handle_request().map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("a request of the backend: {error}"))
        })?;
        Ok(self.changes.0.swap(false, Ordering::Relaxed))
    }
}

impl AsRawFd for BackendRequests {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// What the `vhost` crate borrows for one request.
pub struct Fd(RawFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}
