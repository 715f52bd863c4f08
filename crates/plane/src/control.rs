//! The socket between the holder and a worker: one JSON message a packet, fds beside it.
//!
//! A message is complete in itself: the holder can repeat all of them to a new worker at any time.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::block::faults::FaultPlan;
use crate::config::DeviceConfig;
use crate::net::order::Order;
use crate::scm::{self, MAX_FDS};
use crate::shares::ShareNode;

/// Largest message; the largest one real is a memory table of [`MAX_FDS`] regions, about 5 KiB.
const MAX_MESSAGE: usize = 64 * 1024;

/// A region of guest memory, as the frontend describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Region {
    /// Guest physical address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// Address in the frontend's process; ring addresses come in these terms.
    pub user: u64,
    /// Offset in the region's file.
    pub offset: u64,
}

/// All that a worker needs to run a queue. Fds: in-flight region, kick, then call and err if there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct QueueSetup {
    /// Which queue of the device.
    pub index: u16,
    /// Descriptors.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub desc: u64,
    /// Guest address of the available ring.
    pub avail: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// Where to go on in the available ring, if the in-flight region is new.
    pub base: u16,
    /// Feature bits that the driver took.
    pub features: u64,
    /// Where the queue's part of the in-flight file is.
    pub inflight_offset: u64,
    /// Whether a call fd comes along.
    pub call: bool,
    /// Whether an err fd comes along.
    pub err: bool,
}

/// From the holder to a worker. Devices go by number, which is never used again.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToWorker {
    /// A device. Fds: its page, then the backend's.
    Open {
        /// Which device.
        device: u32,
        /// What it is.
        config: DeviceConfig,
    },
    /// Lay faults upon a disk's requests, or none any more.
    Faults {
        /// Which device.
        device: u32,
        /// Which faults.
        plan: Option<FaultPlan>,
        /// Comes back in the answer.
        serial: u64,
    },
    /// Do something to a port of a network. Fds: those of the order.
    Port {
        /// Which device.
        device: u32,
        /// What.
        order: Order,
        /// Comes back in the answer.
        serial: u64,
    },
    /// Ask a guest for statistics of its memory so often.
    StatsPeriod {
        /// Which device.
        device: u32,
        /// In ms; 0 is never.
        stats_ms: u32,
    },
    /// All of a device's guest memory. Fds: one a region.
    Memory {
        /// Which device.
        device: u32,
        /// Not overlapping.
        regions: Vec<Region>,
    },
    /// Run a queue; if it runs already, take the call and err fds from here on.
    Queue {
        /// Which device.
        device: u32,
        /// How.
        setup: QueueSetup,
    },
    /// Take no more requests from a queue and finish those in flight.
    Stop {
        /// Which device.
        device: u32,
        /// Which queue.
        queue: u16,
        /// Comes back in the answer.
        serial: u64,
    },
    /// Forget a device; its queues have been stopped.
    Close {
        /// Which device.
        device: u32,
        /// Comes back in the answer.
        serial: u64,
    },
    /// Who gets how much from now on.
    Shares {
        /// What is new.
        nodes: Vec<ShareNode>,
    },
    /// Answer, to show that you do.
    Ping,
    /// Tell the state of the arbiter.
    QueryArbiter {
        /// Comes back in the answer.
        serial: u64,
    },
    /// Tell what is asked of the device, and how it answers.
    QueryDemand {
        /// Record anew from now on.
        anew: bool,
        /// Comes back in the answer.
        serial: u64,
    },
}

impl ToWorker {
    /// The device that it is about, if it is about one.
    pub fn device(&self) -> Option<u32> {
        match self {
            ToWorker::Open { device, .. }
            | ToWorker::Faults { device, .. }
            | ToWorker::Port { device, .. }
            | ToWorker::StatsPeriod { device, .. }
            | ToWorker::Memory { device, .. }
            | ToWorker::Queue { device, .. }
            | ToWorker::Stop { device, .. }
            | ToWorker::Close { device, .. } => Some(*device),
            ToWorker::Shares { .. }
            | ToWorker::QueryArbiter { .. }
            | ToWorker::QueryDemand { .. }
            | ToWorker::Ping => None,
        }
    }
}

/// Nodes that go into one message: one has at most 700 bytes.
pub const NODES: usize = 64;

/// Patterns that go into one message: one has at most 12 KiB.
pub const PATTERNS: usize = 4;

/// From a worker to the holder.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromWorker {
    /// A device can be served, or cannot.
    Opened {
        /// Which device.
        device: u32,
        /// Why not.
        error: Option<String>,
    },
    /// A disk has to wait for space on the host, or has enough again.
    Space {
        /// Which device.
        device: u32,
        /// Which of the two.
        enough: bool,
    },
    /// A flush of a disk has failed: what was written to it may be lost.
    FlushFailed {
        /// Which device.
        device: u32,
        /// What the kernel said.
        errno: i32,
    },
    /// The queue is idle and not looked at any more.
    Stopped {
        /// Of the request.
        serial: u64,
        /// Index in the available ring of the first entry not taken.
        base: u16,
    },
    /// The answer to a ping.
    Pong,
    /// The faults are in effect.
    FaultsSet {
        /// Of the request.
        serial: u64,
    },
    /// It is done to the port.
    Port {
        /// Of the request.
        serial: u64,
        /// For who asked.
        answer: Value,
    },
    /// The device is gone.
    Closed {
        /// Of the request.
        serial: u64,
    },
    /// The state of the arbiter, or the next part of it.
    Arbiter {
        /// Of the request.
        serial: u64,
        /// [`crate::arbiter::Stats`], with at most [`NODES`] of its nodes; or a part of [`crate::arbiter::Demand`].
        status: Value,
        /// Whether this is all.
        last: bool,
    },
    /// Who waited for whom since the last message of this kind.
    Waits {
        /// Rows of `query-waits`.
        rows: Value,
    },
    /// The latency objective of a node is met again, or not any more.
    Objective {
        /// The node.
        id: String,
        /// Which of the two.
        met: bool,
    },
    /// A device that works by itself has ended.
    Ended {
        /// Which device.
        device: u32,
        /// Why, or 0 if all is done.
        errno: i32,
    },
    /// A guest or a frontend broke a rule; the queue, or the whole device, is not served any more.
    Violation {
        /// Which device.
        device: u32,
        /// Which queue, if one.
        queue: Option<u16>,
        /// A word for counting.
        kind: String,
        /// A sentence.
        detail: String,
    },
}

/// One end of the socket.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
}

impl Channel {
    /// Both ends, close-on-exec.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let mut fds = [-1; 2];
        // SAFETY: `fds` has room for two; on success both are new and ours.
        unsafe {
            let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
            if libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok((Channel { fd: OwnedFd::from_raw_fd(fds[0]) }, Channel { fd: OwnedFd::from_raw_fd(fds[1]) }))
        }
    }

    /// Send without waiting: `WouldBlock` if the socket is full.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&self, message: &impl Serialize, fds: &[RawFd]) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        if body.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
            return Err(io::Error::other(format!("a message of {} bytes and {} fds", body.len(), fds.len())));
        }
        // A packet goes as a whole.
        scm::send(&self.fd, &body, fds, libc::MSG_DONTWAIT).map(|_| ())
    }

    /// The next message without waiting: `WouldBlock` if there is none, `None` when the other end is closed.
    ///
    /// # Errors
    /// What the kernel says, or a message that is none of `M`.
    pub fn receive<M: DeserializeOwned>(&self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let mut body = vec![0u8; MAX_MESSAGE];
        let mut fds = Vec::new();
        let length = scm::receive(&self.fd, &mut body, &mut fds, libc::MSG_DONTWAIT)?;
        if length == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&body[..length])?, fds)))
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> OwnedFd {
        channel.fd
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Channel {
        Channel { fd }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    #[test]
    fn messages_keep_their_bounds_and_fds() {
        let (a, b) = Channel::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello").unwrap();
        a.send(&FromWorker::Closed { serial: 1 }, &[]).unwrap();
        a.send(&FromWorker::Closed { serial: 2 }, &[file.as_raw_fd(); MAX_FDS]).unwrap();
        drop(a);
        let (first, fds) = b.receive::<FromWorker>().unwrap().unwrap();
        assert_eq!((first, fds.len()), (FromWorker::Closed { serial: 1 }, 0));
        let (_, mut fds) = b.receive::<FromWorker>().unwrap().unwrap();
        assert_eq!(fds.len(), MAX_FDS);
        let mut copy = File::from(fds.pop().unwrap());
        let mut text = String::new();
        copy.rewind().unwrap();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        // A process that another test forks right now has the other end, too, until it executes its program.
        let end = loop {
            match b.receive::<FromWorker>() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                end => break end.unwrap(),
            }
        };
        assert!(end.is_none());
    }

    #[test]
    fn a_full_socket_does_not_block() {
        let (a, _b) = Channel::pair().unwrap();
        let error = (0..100_000).find_map(|serial| a.send(&FromWorker::Closed { serial }, &[]).err());
        assert_eq!(error.unwrap().kind(), io::ErrorKind::WouldBlock);
    }
}
