//! The fds that a frontend passes: what they may be.
//!
//! A worker maps, polls and writes them. On a file system in user space each of these could wait for the frontend
//! for ever, and all devices of the worker with it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// File systems that memory may be in, all served by the kernel alone: tmpfs (memfd too), hugetlbfs, ramfs, ext4,
/// xfs, btrfs. User-mode Linux puts its memory where TMPDIR is.
const MEMORY: [i64; 6] = [0x0102_1994, 0x9584_58f6, 0x8584_58f6, 0xef53, 0x5846_5342, 0x9123_683e];

/// Where eventfds, sockets and pipes are: anon_inodefs, sockfs, pipefs.
const SIGNALS: [i64; 3] = [0x0904_1934, 0x534f_434b, 0x5049_5045];

/// Whether `file` can be guest memory.
///
/// # Errors
/// What it is instead.
pub fn check_memory(file: &File) -> io::Result<()> {
    check(file, &MEMORY, "guest memory")
}

/// Whether `file` can be a kick, call or err fd.
///
/// # Errors
/// What it is instead.
pub fn check_signal(file: &File) -> io::Result<()> {
    check(file, &SIGNALS, "a kick, call or err fd")
}

fn check(file: &File, allowed: &[i64], what: &str) -> io::Result<()> {
    // SAFETY: all zeroes is a valid statfs, which outlives the call.
    let stat = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        if libc::fstatfs(file.as_raw_fd(), &mut stat) < 0 {
            return Err(io::Error::last_os_error());
        }
        stat
    };
    if allowed.contains(&stat.f_type) {
        return Ok(());
    }
    let reason = format!("{what} on a file system of type {:#x}", stat.f_type);
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::sealed_memfd;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use vmm_sys_util::eventfd::EventFd;

    #[test]
    fn memory_and_signals_are_told_apart() {
        let memory = sealed_memfd(c"test", 4096).unwrap();
        check_memory(&memory).unwrap();
        check_signal(&memory).unwrap_err();
        let event = EventFd::new(0).unwrap();
        let (socket, _) = UnixStream::pair().unwrap();
        let (pipe, _) = std::io::pipe().unwrap();
        // SAFETY: the eventfd gives up its fd.
        let event =
            unsafe { std::os::fd::FromRawFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(event)) };
        for file in [event, File::from(OwnedFd::from(socket)), File::from(OwnedFd::from(pipe))] {
            check_signal(&file).unwrap();
            check_memory(&file).unwrap_err();
        }
        let proc = File::open("/proc/self/status").unwrap();
        assert!(check_memory(&proc).unwrap_err().to_string().contains("0x9fa0"));
    }
}
