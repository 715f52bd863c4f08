//! Frames on a stream socket: before each one its length, 4 bytes, big-endian.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::rc::Rc;

use io_uring::{opcode, types};

use crate::chain;
use crate::net::switch::DropReason;
use crate::uring::Uring;

/// Bytes of the length before a frame.
const PREFIX: usize = 4;

/// Bytes that wait for the reader; with more, frames are dropped. About as much as the socket holds itself.
const BACKLOG: usize = 256 * 1024;

/// Bytes that are read at once.
const CHUNK: usize = 128 * 1024;

/// The sending half.
pub struct Outgoing {
    file: Rc<File>,
    /// Of the poll for room.
    token: u64,
    pending: Vec<u8>,
    /// What has been sent of it.
    sent: usize,
    polling: bool,
}

impl Outgoing {
    /// Nothing is pending. `token` comes back through the ring, and is to be followed by [`writable`](Self::writable).
    pub fn new(file: Rc<File>, token: u64) -> Outgoing {
        Outgoing { file, token, pending: Vec::new(), sent: 0, polling: false }
    }

    /// Add a frame; it is sent by the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// If too much is pending.
    pub fn push(&mut self, front: &[u8], rest: &[libc::iovec]) -> Result<(), DropReason> {
        if self.pending.len() - self.sent > BACKLOG {
            return Err(DropReason::UplinkFull);
        }
        let length = front.len() + chain::total(rest) as usize;
        self.pending.extend_from_slice(&(length as u32).to_be_bytes());
        self.pending.extend_from_slice(front);
        let begin = self.pending.len();
        self.pending.resize(begin + length - front.len(), 0);
        chain::read_front(rest, &mut self.pending[begin..]);
        Ok(())
    }

    /// Send what is pending; what the socket does not take waits until it does.
    pub fn flush(&mut self, uring: &Uring) {
        while !self.polling && self.sent < self.pending.len() {
            let rest = &self.pending[self.sent..];
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: a slice of ours.
            let sent = unsafe { libc::send(self.file.as_raw_fd(), rest.as_ptr().cast(), rest.len(), flags) };
            if let Ok(sent) = usize::try_from(sent) {
                self.sent += sent;
            } else if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock {
                self.polling = true;
                let fd = types::Fd(self.file.as_raw_fd());
                let poll = opcode::PollAdd::new(fd, libc::POLLOUT as u32).build().user_data(self.token);
                // SAFETY: names no memory; the file is open until the device goes, after the next submission.
                unsafe { uring.push(poll) };
            } else {
                // The other end has gone, which the reading half tells.
                self.sent = self.pending.len();
            }
        }
        if self.sent == self.pending.len() {
            self.pending.clear();
            self.sent = 0;
        } else if self.sent > BACKLOG {
            self.pending.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// The socket takes more.
    pub fn writable(&mut self, uring: &Uring) {
        self.polling = false;
        self.flush(uring);
    }
}

/// The receiving half: bytes of the stream that are not yet a whole frame.
#[derive(Default)]
pub struct Incoming {
    bytes: Vec<u8>,
    /// What has been passed on of it.
    taken: usize,
}

impl Incoming {
    /// Copy the next frame to `frame`; its length, or `None` if none is there. One that is longer than `frame` is an error:
    /// nothing else on the stream could be believed.
    ///
    /// # Errors
    /// What the kernel says; that the other end has gone; a frame that is too long.
    pub fn next(&mut self, mut file: &File, frame: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            if let Some(length) = self.whole(frame.len())? {
                let begin = self.taken + PREFIX;
                frame[..length].copy_from_slice(&self.bytes[begin..begin + length]);
                self.taken = begin + length;
                return Ok(Some(length));
            }
            self.bytes.drain(..self.taken);
            self.taken = 0;
            let filled = self.bytes.len();
            self.bytes.resize(filled + CHUNK, 0);
            let got = file.read(&mut self.bytes[filled..]);
            self.bytes.truncate(filled + got.as_ref().copied().unwrap_or(0));
            match got {
                Ok(0) => return Err(io::Error::from_raw_os_error(libc::EPIPE)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The length of the next frame, if all of it is there.
    fn whole(&self, most: usize) -> io::Result<Option<usize>> {
        let Some((prefix, rest)) = self.bytes[self.taken..].split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*prefix) as usize;
        if length > most {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        Ok((rest.len() >= length).then_some(length))
    }
}
