//! A vhost-user frontend whose steps are whole (connect, start, stop, read the configuration) and bounded in time.
//!
//! The `vhost` crate speaks the protocol. It retries a socket whose timeout expired, so the bound is kept here: a
//! backend that does not answer in time is hung up on, and the request in progress fails ([`watchdog`]).

mod requests;
mod watchdog;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend as Protocol, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use requests::BackendRequests;
use watchdog::Watchdog;

/// Feature bits that are the protocol's, not the device's: PROTOCOL_FEATURES and LOG_ALL.
const PROTOCOL_BITS: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | 1 << 26;
/// The protocol carries a queue's index in a byte, and no more fds than that.
const QUEUES_MAX: u64 = 256;

/// Kind of the error when a backend answers a request by "no".
pub const REFUSED: io::ErrorKind = io::ErrorKind::PermissionDenied;

/// A part of guest memory.
#[derive(Debug, Clone, Copy)]
pub struct Region<'a> {
    /// Guest-physical address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// Where this process has it mapped; ring addresses are in these terms.
    pub host: u64,
    /// The file behind it.
    pub fd: BorrowedFd<'a>,
    /// Where in the file it begins.
    pub offset: u64,
}

/// A queue to start. Addresses are this process's, inside the regions.
#[derive(Debug, Clone, Copy)]
pub struct Ring<'a> {
    /// The queue's number.
    pub index: u16,
    /// Descriptors.
    pub size: u16,
    /// The next available entry to take.
    pub base: u16,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub driver: u64,
    /// Used ring.
    pub device: u64,
    /// Eventfd that the guest's kick writes.
    pub kick: BorrowedFd<'a>,
    /// Eventfd that interrupts the guest.
    pub call: BorrowedFd<'a>,
    /// Eventfd that the backend writes when it gives the queue up.
    pub err: BorrowedFd<'a>,
}

/// A connected and negotiated backend. After an error it is hung up on, and every later step fails.
pub struct Frontend {
    protocol: Mutex<Protocol>,
    requests: Option<Mutex<BackendRequests>>,
    socket: UnixStream,
    timeout: Duration,
    /// Virtio features that the backend offers.
    pub features: u64,
    /// How many queues it has; 0 if it cannot say.
    pub queues: u16,
    /// Whether it has a configuration space.
    pub has_config: bool,
}

impl Frontend {
    /// Connect to the backend that listens at `path` and negotiate the protocol. No later step takes longer than
    /// `timeout`, nor does this.
    ///
    /// # Errors
    /// With the name of the request that failed.
    pub fn connect(path: &Path, timeout: Duration) -> io::Result<Self> {
        let socket = UnixStream::connect(path)?;
        let watchdog = Watchdog::start(&socket, timeout)?;
        let protocol = Protocol::from_stream(socket.try_clone()?, QUEUES_MAX);
        let negotiated = negotiate(protocol.clone());
        let (offer, requests) = watchdog.ended(negotiated)?;
        Ok(Self {
            protocol: Mutex::new(protocol),
            requests: requests.map(Mutex::new),
            socket,
            timeout,
            features: offer.features & !PROTOCOL_BITS,
            queues: offer.queues,
            has_config: offer.has_config,
        })
    }

    /// Agree on `features`, hand over the memory and start the queues.
    ///
    /// # Errors
    /// With the name of the request that failed. No queue runs then.
    pub fn start(&self, features: u64, regions: &[Region<'_>], rings: &[Ring<'_>]) -> io::Result<()> {
        self.step(|protocol| {
            let bits = features & !PROTOCOL_BITS | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
            protocol.set_features(bits).map_err(named("SET_FEATURES"))?;
            let table: Vec<_> = regions.iter().map(region_info).collect();
            protocol.set_mem_table(&table).map_err(named("SET_MEM_TABLE"))?;
            rings.iter().try_for_each(|ring| start_ring(protocol, ring))
        })
    }

    /// Stop queues: the backend touches their memory no more. Each one's next available entry, in the same order.
    ///
    /// # Errors
    /// With the name of the request that failed.
    pub fn stop(&self, indices: &[u16]) -> io::Result<Vec<u16>> {
        self.step(|protocol| {
            let stop = |&index: &u16| {
                let base = protocol.get_vring_base(index.into()).map_err(named("GET_VRING_BASE"))?;
                Ok(base as u16) // the split ring's index has 16 bits
            };
            indices.iter().map(stop).collect()
        })
    }

    /// Read `size` bytes of the configuration space.
    ///
    /// # Errors
    /// If the backend has none there.
    pub fn read_config(&self, offset: u32, size: u32) -> io::Result<Vec<u8>> {
        self.step(|protocol| {
            let zeroes = vec![0; size as usize];
            let flags = VhostUserConfigFlags::empty();
            let (_, content) =
                protocol.get_config(offset, size, flags, &zeroes).map_err(named("GET_CONFIG"))?;
            Ok(content)
        })
    }

    /// Write to the configuration space, as the guest does.
    ///
    /// # Errors
    /// [`REFUSED`] if the backend does not want it; it stays connected then.
    pub fn write_config(&self, offset: u32, content: &[u8]) -> io::Result<()> {
        self.step(|protocol| {
            let flags = VhostUserConfigFlags::WRITABLE;
            match protocol.set_config(offset, flags, content).map_err(named("SET_CONFIG")) {
                Err(error) if error.kind() == REFUSED => Ok(Err(error)),
                done => done.map(Ok),
            }
        })?
    }

    /// Readable, outside of a step, only when the backend has hung up.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Readable when the backend asks for something; None if it never will.
    pub fn requests(&self) -> Option<i32> {
        self.requests.as_ref().map(|requests| lock(requests).as_raw_fd())
    }

    /// Take one request of the backend, which must be there. Whether it was "the configuration has changed".
    ///
    /// # Errors
    /// If it broke the protocol or hung up.
    pub fn take_request(&self) -> io::Result<bool> {
        let Some(requests) = &self.requests else { return Ok(false) };
        let mut requests = lock(requests);
        let watchdog = Watchdog::start(requests.socket(), self.timeout)?;
        watchdog.ended(requests.take())
    }

    /// Hang up. Every later step fails.
    pub fn close(&self) {
        // An error means that the other side was first.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    fn step<T>(&self, step: impl FnOnce(&mut Protocol) -> io::Result<T>) -> io::Result<T> {
        let mut protocol = lock(&self.protocol);
        let watchdog = Watchdog::start(&self.socket, self.timeout)?;
        watchdog.ended(step(&mut protocol)).inspect_err(|_| self.close())
    }
}

/// What a panic interrupted has no invariants of ours.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Offer {
    features: u64,
    queues: u16,
    has_config: bool,
}

fn negotiate(mut protocol: Protocol) -> io::Result<(Offer, Option<BackendRequests>)> {
    type Known = VhostUserProtocolFeatures;
    let features = protocol.get_features().map_err(named("GET_FEATURES"))?;
    if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
        let reason = "GET_FEATURES: the backend does not offer protocol features";
        return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
    }
    let offered = protocol.get_protocol_features().map_err(named("GET_PROTOCOL_FEATURES"))?;
    let taken = offered & (Known::MQ | Known::CONFIG | Known::REPLY_ACK | Known::BACKEND_REQ);
    protocol.set_protocol_features(taken).map_err(named("SET_PROTOCOL_FEATURES"))?;
    if taken.contains(Known::REPLY_ACK) {
        protocol.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    protocol.set_owner().map_err(named("SET_OWNER"))?;
    let queues = match taken.contains(Known::MQ) {
        true => protocol.get_queue_num().map_err(named("GET_QUEUE_NUM"))? as u16, // at most 0x8000, as checked there
        false => 0,
    };
    let mut requests = None;
    if taken.contains(Known::BACKEND_REQ) {
        let channel = BackendRequests::new(taken.contains(Known::REPLY_ACK))?;
        protocol.set_backend_request_fd(&channel.theirs()).map_err(named("SET_BACKEND_REQ_FD"))?;
        requests = Some(channel);
    }
    Ok((Offer { features, queues, has_config: taken.contains(Known::CONFIG) }, requests))
}

fn start_ring(protocol: &mut Protocol, ring: &Ring<'_>) -> io::Result<()> {
    let index = usize::from(ring.index);
    let at = |request: &'static str| move |error| told(&format!("{request} of queue {index}"), error);
    let addresses = VringConfigData {
        queue_max_size: ring.size,
        queue_size: ring.size,
        flags: 0,
        desc_table_addr: ring.desc,
        used_ring_addr: ring.device,
        avail_ring_addr: ring.driver,
        log_addr: None,
    };
    protocol.set_vring_num(index, ring.size).map_err(at("SET_VRING_NUM"))?;
    protocol.set_vring_base(index, ring.base).map_err(at("SET_VRING_BASE"))?;
    protocol.set_vring_addr(index, &addresses).map_err(at("SET_VRING_ADDR"))?;
    protocol.set_vring_call(index, &eventfd(ring.call)?).map_err(at("SET_VRING_CALL"))?;
    protocol.set_vring_err(index, &eventfd(ring.err)?).map_err(at("SET_VRING_ERR"))?;
    protocol.set_vring_kick(index, &eventfd(ring.kick)?).map_err(at("SET_VRING_KICK"))?;
    protocol.set_vring_enable(index, true).map_err(at("SET_VRING_ENABLE"))
}

fn region_info(region: &Region<'_>) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.guest,
        memory_size: region.size,
        userspace_addr: region.host,
        mmap_offset: region.offset,
        mmap_handle: region.fd.as_raw_fd(),
    }
}

/// The crate takes eventfds of its own type, which close what they hold.
fn eventfd(fd: BorrowedFd<'_>) -> io::Result<EventFd> {
    let owned = fd.try_clone_to_owned()?;
    // SAFETY: just duplicated, and given away.
    Ok(unsafe { EventFd::from_raw_fd(owned.into_raw_fd()) })
}

fn named(request: &'static str) -> impl Fn(vhost::Error) -> io::Error {
    move |error| told(request, error)
}

fn told(request: &str, error: vhost::Error) -> io::Error {
    use vhost::vhost_user::Error as Broken;
    let kind = match &error {
        vhost::Error::VhostUserProtocol(
            Broken::Disconnected | Broken::PartialMessage | Broken::SocketBroken(_) | Broken::SocketError(_),
        ) => io::ErrorKind::ConnectionReset,
        vhost::Error::VhostUserProtocol(Broken::InvalidMessage) => io::ErrorKind::InvalidData,
        vhost::Error::VhostUserProtocol(Broken::BackendInternalError) => REFUSED,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("{request}: {error}"))
}
