//! What a worker may still do once it serves guests: compute, and use the fds it was given.

use std::io;

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

/// Give up what is not needed any more.
///
/// # Errors
/// What the kernel says.
pub fn enter() -> io::Result<()> {
    // SAFETY: passes no pointer.
    unsafe { check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
