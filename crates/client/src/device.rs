//! The vhost-user connection of one device: well-formed through the `vhost` crate, or raw bytes.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::memory::Memory;
use crate::ring::Ring;

/// No answer of a backend takes longer, unless it hangs. Generous: a CI host is slow.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// A connected device. Dropping it hangs up.
pub struct Device {
    /// The well-formed side of the connection.
    pub frontend: Frontend,
    /// The same socket, for messages that the `vhost` crate refuses to send.
    socket: UnixStream,
    /// Virtio features agreed on.
    pub features: u64,
    /// Protocol features agreed on.
    pub protocol: VhostUserProtocolFeatures,
    /// Memory shared with the backend.
    pub memory: Arc<Memory>,
}

/// A started queue: the ring and its three eventfds.
pub struct Queue {
    /// The virtqueue.
    pub ring: Ring,
    /// Written to tell the device that there is something available.
    pub kick: EventFd,
    /// Readable when the device wants us to look at the used ring.
    pub call: EventFd,
    /// Readable when the device gave the queue up.
    pub err: EventFd,
}

impl Device {
    /// Connect and negotiate every feature of `wanted` that the backend offers, with `memory_len` bytes of memory
    /// not yet shared. Protocol features MQ, CONFIG and REPLY_ACK are taken where offered.
    pub fn connect(path: &Path, wanted: u64, memory_len: u64) -> io::Result<Self> {
        let mut device = Self::unnegotiated(path, memory_len)?;
        let frontend = &mut device.frontend;
        frontend.set_owner().map_err(told("SET_OWNER"))?;
        let offered = frontend.get_features().map_err(told("GET_FEATURES"))?;
        let vhost_user = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        device.features = offered & (wanted | vhost_user);
        if offered & vhost_user != 0 {
            let known = VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::REPLY_ACK;
            let ours = frontend.get_protocol_features().map_err(told("GET_PROTOCOL_FEATURES"))? & known;
            frontend.set_protocol_features(ours).map_err(told("SET_PROTOCOL_FEATURES"))?;
            if ours.contains(VhostUserProtocolFeatures::REPLY_ACK) {
                frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
            device.protocol = ours;
        }
        frontend.set_features(device.features).map_err(told("SET_FEATURES"))?;
        Ok(device)
    }

    /// Connect and say nothing.
    pub fn unnegotiated(path: &Path, memory_len: u64) -> io::Result<Self> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(REPLY_TIMEOUT))?;
        socket.set_write_timeout(Some(REPLY_TIMEOUT))?;
        Ok(Self {
            frontend: Frontend::from_stream(socket.try_clone()?, 256),
            socket,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            // Not at zero, so that address 0 is outside; below 4 GiB and far from its end.
            memory: Arc::new(Memory::new(0x1000_0000, memory_len)?),
        })
    }

    /// Whether a virtio feature bit was agreed on.
    pub fn has(&self, bit: u32) -> bool {
        self.features & (1 << bit) != 0
    }

    /// Send the memory table: the one region.
    pub fn share_memory(&self) -> io::Result<()> {
        self.frontend.set_mem_table(&[self.memory.region()]).map_err(told("SET_MEM_TABLE"))
    }

    /// Set up and enable queue `index` with a fresh ring of `size` descriptors.
    pub fn start_queue(&mut self, index: usize, size: u16) -> io::Result<Queue> {
        let ring = Ring::new(&self.memory, size);
        self.start_ring(index, ring)
    }

    /// Set up and enable queue `index` on a ring that the caller laid out.
    pub fn start_ring(&mut self, index: usize, ring: Ring) -> io::Result<Queue> {
        let queue = Queue { ring, kick: EventFd::new(0)?, call: EventFd::new(0)?, err: EventFd::new(0)? };
        let frontend = &mut self.frontend;
        frontend.set_vring_num(index, queue.ring.size).map_err(told("SET_VRING_NUM"))?;
        frontend.set_vring_base(index, 0).map_err(told("SET_VRING_BASE"))?;
        frontend.set_vring_addr(index, &queue.ring.addresses()).map_err(told("SET_VRING_ADDR"))?;
        frontend.set_vring_call(index, &queue.call).map_err(told("SET_VRING_CALL"))?;
        frontend.set_vring_err(index, &queue.err).map_err(told("SET_VRING_ERR"))?;
        frontend.set_vring_kick(index, &queue.kick).map_err(told("SET_VRING_KICK"))?;
        if self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
            frontend.set_vring_enable(index, true).map_err(told("SET_VRING_ENABLE"))?;
        }
        Ok(queue)
    }

    /// Read `size` bytes of the device's configuration space.
    pub fn config(&mut self, offset: u32, size: u32) -> io::Result<Vec<u8>> {
        let zeroes = vec![0; size as usize];
        self.frontend
            .get_config(offset, size, VhostUserConfigFlags::empty(), &zeroes)
            .map(|(_, payload)| payload)
            .map_err(told("GET_CONFIG"))
    }

    /// Send a message exactly as given: request number, header flags (version 1 is 0x1), stated size, payload, fds.
    pub fn send_raw(
        &self,
        request: u32,
        flags: u32,
        size: u32,
        payload: &[u8],
        fds: &[RawFd],
    ) -> io::Result<()> {
        let mut message = Vec::with_capacity(12 + payload.len());
        for word in [request, flags, size] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(payload);
        self.socket
            .send_with_fds(&[message.as_slice()], fds)
            .map(|_| ())
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }

    /// Whether the backend hung up, waiting up to `timeout` for it to do so; answers that arrive are dropped.
    pub fn hung_up(&self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !readable(self.socket.as_raw_fd(), left)? {
                return Ok(false);
            }
            let mut bytes = [MaybeUninit::<u8>::uninit(); 512];
            // SAFETY: the buffer is as long as stated.
            let got =
                unsafe { libc::recv(self.socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
            match got {
                0 => return Ok(true),
                1.. => {}
                _ => {
                    let error = io::Error::last_os_error();
                    return match error.kind() {
                        io::ErrorKind::ConnectionReset => Ok(true),
                        _ => Err(error),
                    };
                }
            }
        }
    }
}

impl Queue {
    /// Whether the device called within `timeout`; takes the calls.
    pub fn called(&self, timeout: Duration) -> io::Result<bool> {
        if !readable(self.call.as_raw_fd(), timeout)? {
            return Ok(false);
        }
        self.call.read()?;
        Ok(true)
    }

    /// Make a head available and kick, whatever the device asked for.
    pub fn push(&self, head: u16) -> io::Result<()> {
        self.ring.offer(head);
        self.kick.write(1)
    }

    /// Wait until the used index reaches `index`; false if it does not within `timeout`.
    pub fn used_reaches(&self, index: u16, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        while self.ring.used_index() != index {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            // Short: a device that suppresses calls (a hostile test may have confused it) is still noticed.
            self.called(Duration::from_millis(1))?;
        }
        Ok(true)
    }
}

/// Wait up to `timeout` until `fd` is readable or hung up.
pub(crate) fn readable(fd: RawFd, timeout: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let time =
        libc::timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    // SAFETY: one pollfd, one timespec, no signal mask.
    match unsafe { libc::ppoll(&mut poll, 1, &time, std::ptr::null()) } {
        0 => Ok(false),
        1.. => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
    }
}

fn told(message: &'static str) -> impl Fn(vhost::Error) -> io::Error {
    move |error| io::Error::other(format!("{message}: {error}"))
}
