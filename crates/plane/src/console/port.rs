//! A port's socket to the host's side: packets that say where in the stream they are.
//!
//! A packet is the position of its first byte, 8 bytes little-endian, and at most [`PACKET`] bytes. Who gets one drops what it
//! has had already. So a worker may send again what its predecessor had sent and not completed, and leaves a packet
//! in the socket until the guest has it: each byte arrives once, whenever workers die.

use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{opcode, types};

use crate::chain;
use crate::worker::device::Context;
use crate::worker::queue::Violation;

/// Bytes of the position in front.
const HEADER: usize = 8;

/// Most bytes of a packet, without the position: a socket's buffer holds several.
pub const PACKET: usize = 32 * 1024;

/// Most pieces of guest memory in a packet; a chain may have more, the kernel takes 1024 (UIO_MAXIOV).
const PIECES: usize = 256;

/// A port.
pub struct Port {
    /// As the guest hears it.
    pub name: String,
    /// Whether the guest makes it a console.
    pub console: bool,
    /// The host's end is closed: what the guest sends is dropped.
    pub hung_up: bool,
    /// The chain being transmitted, when the socket is full.
    pub held: Option<Held>,
    /// A poll for POLLIN or POLLOUT is in the ring.
    pub polling_in: bool,
    pub polling_out: bool,
    socket: OwnedFd,
    pieces: Vec<libc::iovec>,
    /// Where bytes go that the guest has had already.
    had: Box<[u8; PACKET]>,
}

/// A chain that is being sent: `rest` begins at `at` in the stream.
pub struct Held {
    pub head: u16,
    pub at: u64,
    pub rest: Vec<libc::iovec>,
}

/// The packet at the front of the socket.
pub struct Packet {
    /// Bytes in it that the guest has had.
    had: usize,
    /// Where in the stream the others begin.
    pub from: u64,
    /// Where it ends.
    pub end: u64,
}

impl Port {
    /// `socket` is the guest's end.
    pub fn new(name: String, console: bool, socket: OwnedFd) -> Port {
        Port {
            name,
            console,
            hung_up: false,
            held: None,
            polling_in: false,
            polling_out: false,
            socket,
            pieces: Vec::new(),
            had: Box::new([0; PACKET]),
        }
    }

    /// Send what is left of `held`; false if the socket is full before. To a host that hung up, all is sent.
    ///
    /// # Errors
    /// Guest memory that is not there any more.
    pub fn send(&mut self, held: &mut Held) -> Result<bool, Violation> {
        while !held.rest.is_empty() && !self.hung_up {
            let mut position = held.at.to_le_bytes();
            self.pieces.clear();
            self.pieces.push(piece(&mut position));
            let mut room = PACKET;
            for buffer in held.rest.iter().take(PIECES) {
                let part = buffer.iov_len.min(room);
                self.pieces.push(libc::iovec { iov_base: buffer.iov_base, iov_len: part });
                room -= part;
                if room == 0 {
                    break;
                }
            }
            // SAFETY: all zeroes is a valid msghdr; the pieces are the position, alive here, and guest memory, where
            // the kernel says EFAULT.
            let result = unsafe {
                let mut header: libc::msghdr = std::mem::zeroed();
                header.msg_iov = self.pieces.as_mut_ptr();
                header.msg_iovlen = self.pieces.len();
                libc::sendmsg(self.socket.as_raw_fd(), &header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            };
            if result >= HEADER as isize {
                let sent = result as usize - HEADER;
                held.at += sent as u64;
                chain::skip_front(&mut held.rest, sent);
                continue;
            }
            match errno() {
                libc::EAGAIN | libc::EINTR => return Ok(false),
                libc::EFAULT => return Err(memory_lost()),
                _ => self.hung_up = true,
            }
        }
        Ok(true)
    }

    /// The packet that has the byte at `at`, or comes after it; those before are dropped. `None` if there is none yet.
    pub fn next_packet(&mut self, at: u64) -> Option<Packet> {
        loop {
            let mut position = [0; HEADER];
            let length = self.look(&[piece(&mut position)], libc::MSG_TRUNC).ok().flatten()?;
            let begin = u64::from_le_bytes(position);
            let end = begin.saturating_add(length.saturating_sub(HEADER) as u64);
            if end > at {
                let from = begin.max(at);
                return Some(Packet { had: (from - begin) as usize, from, end });
            }
            self.drop_packet();
        }
    }

    /// Copy of `packet`, which is at the front, what the guest has not had and `buffers` hold; how much that is.
    ///
    /// # Errors
    /// No buffer, or guest memory that is not there any more.
    pub fn receive(&mut self, packet: &Packet, buffers: &[libc::iovec]) -> Result<u32, Violation> {
        if buffers.is_empty() {
            return Err(Violation::new("console-buffer", "a receive buffer that is not writable"));
        }
        let mut position = [0; HEADER];
        let before = packet.had.min(PACKET);
        let mut pieces = vec![piece(&mut position), piece(&mut self.had[..before])];
        pieces.extend(buffers.iter().take(PIECES));
        let length = self.look(&pieces, 0)?.unwrap_or(0);
        Ok(length.saturating_sub(HEADER + before) as u32)
    }

    /// Be done with the packet at the front.
    pub fn drop_packet(&mut self) {
        // SAFETY: a message without buffers: the kernel cuts the packet.
        unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            libc::recvmsg(self.socket.as_raw_fd(), &mut header, libc::MSG_DONTWAIT);
        }
    }

    /// Copy the front of the packet at the front into `pieces` and leave it there; its length as far as it was copied,
    /// or all of it with MSG_TRUNC. `None` if there is none.
    fn look(&mut self, pieces: &[libc::iovec], flags: libc::c_int) -> Result<Option<usize>, Violation> {
        // SAFETY: as in `send`, for writing.
        let result = unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = pieces.as_ptr().cast_mut();
            header.msg_iovlen = pieces.len();
            libc::recvmsg(self.socket.as_raw_fd(), &mut header, libc::MSG_DONTWAIT | libc::MSG_PEEK | flags)
        };
        match result {
            0 => self.hung_up = true,
            1.. => return Ok(Some(result as usize)),
            _ => match errno() {
                libc::EFAULT => return Err(memory_lost()),
                libc::EAGAIN | libc::EINTR => {}
                _ => self.hung_up = true,
            },
        }
        Ok(None)
    }

    /// Have the ring tell us when the socket is ready.
    pub fn poll(&mut self, context: &Context<'_>, number: usize, events: libc::c_short) {
        let out = events == libc::POLLOUT;
        let armed = if out { &mut self.polling_out } else { &mut self.polling_in };
        if std::mem::replace(armed, true) {
            return;
        }
        let token = context.io(2 * number as u16 + u16::from(out));
        let poll = opcode::PollAdd::new(types::Fd(self.socket.as_raw_fd()), events as u32).build();
        // SAFETY: names no memory; the socket is open as long as the device, which the reactor keeps until its
        // operations are done.
        unsafe { context.uring.push(poll.user_data(token)) };
    }

    /// The ring has told us.
    pub fn polled(&mut self, out: bool) {
        *(if out { &mut self.polling_out } else { &mut self.polling_in }) = false;
    }
}

fn piece(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn memory_lost() -> Violation {
    Violation::new("memory-lost", "the frontend has truncated guest memory")
}
