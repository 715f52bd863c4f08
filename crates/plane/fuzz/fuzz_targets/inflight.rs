//! An in-flight region with any content (a frontend may have made it) and any used index (a guest wrote it) gives a
//! recovery that a queue can run on.
#![no_main]

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::FromRawFd;
use std::sync::{LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use nagaya_plane::inflight::{Inflight, region_size};

const SIZE: u16 = 16;

static REGION: LazyLock<Mutex<File>> = LazyLock::new(|| {
    // SAFETY: the name is a C string; the fd is new and ours.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"inflight".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(region_size(SIZE)).expect("size");
    Mutex::new(file)
});

fuzz_target!(|bytes: &[u8]| {
    let Some((head, rest)) = bytes.split_first_chunk::<4>() else { return };
    let (used, base) = (u16::from_le_bytes([head[0], head[1]]), u16::from_le_bytes([head[2], head[3]]));
    let mut image = vec![0; region_size(SIZE) as usize];
    let len = rest.len().min(image.len());
    image[..len].copy_from_slice(&rest[..len]);
    let mut file = REGION.lock().expect("one thread");
    file.rewind().expect("seek");
    file.write_all(&image).expect("write");

    let mut inflight = Inflight::map(&file, 0, SIZE).expect("map");
    let recovery = inflight.recover(used, base);
    let mut seen = [false; SIZE as usize];
    for head in &recovery.heads {
        assert!(!std::mem::replace(&mut seen[usize::from(*head)], true), "head {head} twice");
    }
    for head in &recovery.heads {
        inflight.begin_completion(*head);
        inflight.end_completion(*head, used.wrapping_add(1));
    }
    // Whatever it was, it is clean now: nothing left to recover.
    let again = inflight.recover(used.wrapping_add(1), base);
    assert!(again.heads.is_empty(), "{again:?}");
});
