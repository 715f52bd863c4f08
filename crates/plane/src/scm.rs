//! Bytes and fds over a unix socket.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Most fds in a message: memory regions, or layers, and a few more. The kernel's bound is 253.
pub const MAX_FDS: usize = 64;

/// Room for the fds of one message; u64 for the alignment of cmsghdr.
type ControlBuffer = [u64; 2 + MAX_FDS / 2];

/// Send `bytes` and `fds` with one sendmsg; returns how many bytes went.
///
/// # Errors
/// What the kernel says.
pub fn send(socket: &impl AsFd, bytes: &[u8], fds: &[RawFd], flags: libc::c_int) -> io::Result<usize> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::other(format!("{} fds in one message", fds.len())));
    }
    let mut iovec = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control: ControlBuffer = [0; 2 + MAX_FDS / 2];
    // SAFETY: all zeroes is a valid msghdr; the pointers stored in it live until after sendmsg, and `control` has
    // room for MAX_FDS fds.
    let sent = unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &mut iovec;
        header.msg_iovlen = 1;
        if !fds.is_empty() {
            let size = mem::size_of_val(fds) as u32;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(size) as usize;
            let first = libc::CMSG_FIRSTHDR(&header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(size) as usize;
            std::ptr::copy_nonoverlapping(fds.as_ptr(), libc::CMSG_DATA(first).cast(), fds.len());
        }
        libc::sendmsg(socket.as_fd().as_raw_fd(), &header, flags | libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Receive into `bytes`, and append the fds that come along, close-on-exec; returns how many bytes came.
///
/// # Errors
/// What the kernel says.
pub fn receive(
    socket: &impl AsFd,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    flags: libc::c_int,
) -> io::Result<usize> {
    let mut iovec = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control: ControlBuffer = [0; 2 + MAX_FDS / 2];
    // SAFETY: all zeroes is a valid msghdr; the pointers in it outlive recvmsg; the fds that come with a message are
    // new and ours.
    unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &mut iovec;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = mem::size_of_val(&control);
        let length = libc::recvmsg(socket.as_fd().as_raw_fd(), &mut header, flags | libc::MSG_CMSG_CLOEXEC);
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut part = libc::CMSG_FIRSTHDR(&header);
        while !part.is_null() {
            if (*part).cmsg_level == libc::SOL_SOCKET && (*part).cmsg_type == libc::SCM_RIGHTS {
                let size = (*part).cmsg_len - libc::CMSG_LEN(0) as usize;
                let first: *const RawFd = libc::CMSG_DATA(part).cast();
                for index in 0..size / mem::size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(first.add(index).read_unaligned()));
                }
            }
            part = libc::CMSG_NXTHDR(&header, part);
        }
        Ok(length as usize)
    }
}
