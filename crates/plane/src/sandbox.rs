//! What a worker may still do once it serves guests: compute, and use the fds it was given.
//!
//! Guests are hostile, and a hole in a device must not become a hole in the host: the worker has no user of its own
//! to be, no capability, no new privileges, and only the system calls of its loop. It opens nothing: the holder
//! passes files, memory and sockets as fds.

use std::collections::BTreeMap;
use std::io;

use io_uring::register::Restriction;
use io_uring::{opcode, squeue};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

/// The user that owns nothing (Debian: nobody and nogroup).
const NOBODY: u32 = 65534;

/// IORING_REGISTER_FILES_UPDATE and IORING_REGISTER_ENABLE_RINGS of linux/io_uring.h.
const REGISTER_FILES_UPDATE: u8 = 6;
const REGISTER_ENABLE_RINGS: u8 = 12;

/// The system calls of the reactor, of image files, and of the C library's allocator and exit.
const ALLOWED: [libc::c_long; 53] = [
    // The ring and the holder's socket.
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_getsockopt,
    // Files that are open.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_fcntl,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_close,
    // Memory: guests', and our own.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Time, locks, signals, randomness.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getrandom,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_prlimit64,
    // Who we are, and the end.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What the kernel takes from the worker's ring: what the reactor and the disks ask for, on fds that are open. The
/// filter of system calls does not see it.
pub fn ring_restrictions() -> Vec<Restriction> {
    let operations = [
        opcode::Read::CODE,
        opcode::Readv::CODE,
        opcode::Write::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::PollAdd::CODE,
        opcode::AsyncCancel::CODE,
        opcode::Nop::CODE,
        opcode::Timeout::CODE,
    ];
    let mut all: Vec<Restriction> = operations.into_iter().map(Restriction::sqe_op).collect();
    let flags = squeue::Flags::FIXED_FILE | squeue::Flags::ASYNC | squeue::Flags::SKIP_SUCCESS;
    all.push(Restriction::sqe_flags_allowed(flags.bits()));
    all.push(Restriction::register_op(REGISTER_FILES_UPDATE));
    all.push(Restriction::register_op(REGISTER_ENABLE_RINGS));
    all
}

/// Raise the limit of open files as far as it goes, and forbid core dumps, which would hold guests' memory.
///
/// # Errors
/// What the kernel says.
pub fn limit() -> io::Result<()> {
    let mut files = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structs outlive the calls.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut files))?;
        files.rlim_cur = files.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &files))?;
        check(libc::setrlimit(libc::RLIMIT_CORE, &none))
    }
}

/// Give up what is not needed any more. For the calling thread and those it starts.
///
/// # Errors
/// What the kernel says.
pub fn enter() -> io::Result<()> {
    let program = filter().map_err(io::Error::other)?;
    drop_user()?;
    // SAFETY: passes no pointer.
    unsafe { check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))? };
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

/// What is not allowed fails with EPERM: should a library do what nobody thought of, a request fails, and not all
/// machines' disks at once.
fn filter() -> Result<BpfProgram, seccompiler::Error> {
    let rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    Ok(SeccompFilter::new(rules, refused, SeccompAction::Allow, arch)?.try_into()?)
}

/// Become nobody, if we are somebody who can.
fn drop_user() -> io::Result<()> {
    // SAFETY: passes no pointer that is read.
    unsafe {
        if libc::geteuid() != 0 {
            return Ok(());
        }
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(NOBODY, NOBODY, NOBODY))?;
        check(libc::setresuid(NOBODY, NOBODY, NOBODY))
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::Uring;
    use io_uring::types;

    /// Run `child` in a forked process; its exit status.
    fn forked(child: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child only makes system calls, and leaves by _exit.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                libc::_exit(child());
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
            libc::WEXITSTATUS(status)
        }
    }

    #[test]
    fn the_ring_reads_but_opens_nothing() {
        let ring = Uring::confined(8, &mut ring_restrictions()).unwrap();
        let mut byte = 0u8;
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let fd = types::Fd(std::os::fd::AsRawFd::as_raw_fd(&file));
        // SAFETY: the buffer and the path outlive the operations.
        let (read, open) = unsafe {
            let read = ring.block_on(ring.op(opcode::Read::new(fd, &mut byte, 1).build())).unwrap();
            let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/etc/passwd".as_ptr()).build();
            (read, ring.block_on(ring.op(open)).unwrap())
        };
        assert_eq!((read, open, byte), (1, -libc::EACCES, 0x7f));
    }

    #[test]
    fn nothing_can_be_opened_or_started_inside() {
        let program = filter().unwrap();
        let status = forked(|| {
            // SAFETY: plain system calls with constant arguments.
            unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                if seccompiler::apply_filter(&program).is_err() {
                    return 1;
                }
                let opened = libc::open(c"/etc/passwd".as_ptr(), libc::O_RDONLY);
                let open_errno = *libc::__errno_location();
                let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
                let killed = libc::kill(1, 0);
                let pid = libc::getpid();
                i32::from(opened >= 0 || open_errno != libc::EPERM || socket >= 0 || killed >= 0 || pid <= 0)
                    * 2
            }
        });
        assert_eq!(status, 0);
    }
}
