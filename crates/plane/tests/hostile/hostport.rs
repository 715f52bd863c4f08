//! The host's side of a console's port: packets with a position, of which it drops what it has had.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

const HEADER: usize = 8;

/// One port.
pub struct HostPort {
    socket: OwnedFd,
    /// Bytes sent to the guest.
    sent: u64,
    /// Where the stream from the guest goes on.
    had: u64,
}

impl HostPort {
    /// Our end and the guest's.
    pub fn pair() -> (Self, OwnedFd) {
        let mut fds = [-1; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: room for two fds, which are nobody else's.
        let (ours, theirs) = unsafe {
            assert_eq!(libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()), 0);
            (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
        };
        (Self { socket: ours, sent: 0, had: 0 }, theirs)
    }

    /// Say `bytes` to the guest, as one packet.
    pub fn send(&mut self, bytes: &[u8]) {
        let packet = [&self.sent.to_le_bytes(), bytes].concat();
        // SAFETY: the packet is readable.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0) };
        assert_eq!(sent, packet.len() as isize, "{}", io::Error::last_os_error());
        self.sent += bytes.len() as u64;
    }

    /// What the guest said next and has not said before; `None` if nothing comes within `patience`.
    pub fn receive(&mut self, patience: Duration) -> Option<Vec<u8>> {
        loop {
            let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd.
            if unsafe { libc::poll(&mut poll, 1, patience.as_millis() as i32) } != 1 {
                return None;
            }
            let mut packet = vec![0; HEADER + 0x1_0000];
            // SAFETY: the packet is writable.
            let length =
                unsafe { libc::recv(self.socket.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len(), 0) };
            assert!(length > HEADER as isize, "a packet of {length} bytes");
            packet.truncate(length as usize);
            let bytes = packet.split_off(HEADER);
            let position = u64::from_le_bytes(packet.try_into().expect("8 bytes"));
            let again = (self.had.saturating_sub(position) as usize).min(bytes.len());
            self.had = self.had.max(position + bytes.len() as u64);
            if again < bytes.len() {
                return Some(bytes[again..].to_vec());
            }
        }
    }

    /// Take what attacks have left.
    pub fn drain(&mut self) {
        while self.receive(Duration::from_millis(50)).is_some() {}
    }
}
