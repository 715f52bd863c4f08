//! How a driver is told: the fds that it gave.

use std::fs::File;
use std::os::fd::AsRawFd;

use io_uring::{opcode, types};

use crate::uring::Uring;

/// What is written to a call fd.
static ONE: [u8; 8] = 1u64.to_ne_bytes();

/// The driver's call or err fd: an eventfd, or a pipe or socket as User-mode Linux uses them.
pub(super) struct Signal {
    file: File,
    socket: bool,
}

impl Signal {
    /// The kind of file is found out once.
    pub fn new(file: File) -> Signal {
        let mut kind: libc::c_int = 0;
        let mut length = std::mem::size_of_val(&kind) as libc::socklen_t;
        // SAFETY: both pointers are valid for the call.
        let result = unsafe {
            let kind = std::ptr::from_mut(&mut kind).cast();
            libc::getsockopt(file.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TYPE, kind, &mut length)
        };
        Signal { file, socket: result == 0 }
    }

    /// The fd.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Add one, without ever waiting for a frontend that has let its fd fill up. Sockets are told so; other fds are
    /// written by the ring, for a flag like O_NONBLOCK is the frontend's to change. True if `token` will come back.
    pub fn raise(&self, uring: &Uring, token: Option<u64>) -> bool {
        let fd = self.file.as_raw_fd();
        if self.socket {
            // SAFETY: eight readable bytes.
            unsafe {
                libc::send(fd, ONE.as_ptr().cast(), ONE.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            };
            return false;
        }
        // Offset -1: the file's own position, as write() has it.
        let write =
            opcode::Write::new(types::Fd(fd), ONE.as_ptr(), ONE.len() as u32).offset(u64::MAX).build();
        // SAFETY: the bytes are static; the file is open until after the next submission.
        unsafe {
            match token {
                Some(token) => uring.push(write.user_data(token)),
                None => uring.push_silent(write),
            }
        }
        token.is_some()
    }
}
