//! Frames of a port, written as pcap with nanoseconds (draft-ietf-opsawg-pcap). The holder has written the file's header.
//!
//! The ring writes what was gathered, one piece at a time; a reader that is slow misses frames, and delays none.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use io_uring::{opcode, types};
use serde_json::{Value, json};

use crate::chain;
use crate::clock::{self, Nanos};
use crate::uring::Uring;

/// Bytes that may wait for the reader.
const PENDING: usize = 2 << 20;

/// Bytes before each frame.
const RECORD: usize = 16;

/// A capture. Dropped, it still writes what it has gathered.
pub struct Capture {
    uring: Rc<Uring>,
    snaplen: usize,
    /// From our clock to that of the world, ns.
    offset: u128,
    output: Rc<RefCell<Output>>,
}

struct Output {
    file: File,
    pending: Vec<u8>,
    /// A task writes.
    writing: bool,
    /// Bytes that may still be gathered.
    left: u64,
    frames: u64,
    missed: u64,
}

impl Capture {
    /// Write to `fd`: at most `snaplen` bytes of each frame, and `limit` in all.
    pub fn new(uring: &Rc<Uring>, fd: OwnedFd, snaplen: u32, limit: u64) -> Capture {
        let world = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let output = Output {
            file: fd.into(),
            pending: Vec::new(),
            writing: false,
            left: limit,
            frames: 0,
            missed: 0,
        };
        Capture {
            uring: uring.clone(),
            snaplen: snaplen as usize,
            offset: world.as_nanos().saturating_sub(u128::from(clock::now())),
            output: Rc::new(RefCell::new(output)),
        }
    }

    /// A frame of `length` bytes: those in `front`, and those in `rest`.
    pub fn take(&self, now: Nanos, front: &[u8], rest: &[libc::iovec], length: usize) {
        let mut output = self.output.borrow_mut();
        let kept = length.min(self.snaplen);
        if output.left < (RECORD + kept) as u64 || output.pending.len() + RECORD + kept > PENDING {
            output.missed += 1;
            return;
        }
        output.left -= (RECORD + kept) as u64;
        output.frames += 1;
        let time = self.offset + u128::from(now);
        let (seconds, nanos) = ((time / 1_000_000_000) as u32, (time % 1_000_000_000) as u32);
        for field in [seconds, nanos, kept as u32, length as u32] {
            output.pending.extend(field.to_le_bytes());
        }
        let front = &front[..front.len().min(kept)];
        output.pending.extend_from_slice(front);
        let begin = output.pending.len();
        output.pending.resize(begin + kept - front.len(), 0);
        chain::read_front(rest, &mut output.pending[begin..]);
        if !std::mem::replace(&mut output.writing, true) {
            self.uring.tasks.spawn_local(write(self.uring.clone(), self.output.clone()));
        }
    }

    /// How many frames were taken, and how many were not.
    pub fn counts(&self) -> Value {
        let output = self.output.borrow();
        json!({"packets": output.frames, "missed": output.missed})
    }
}

/// Write until nothing is left.
async fn write(uring: Rc<Uring>, output: Rc<RefCell<Output>>) {
    let fd = types::Fd(output.borrow().file.as_raw_fd());
    loop {
        let bytes = std::mem::take(&mut output.borrow_mut().pending);
        if bytes.is_empty() {
            output.borrow_mut().writing = false;
            return;
        }
        let mut done = 0;
        while done < bytes.len() {
            // Where the file is: it may be a pipe.
            let write = opcode::Write::new(fd, bytes[done..].as_ptr(), (bytes.len() - done) as u32);
            // SAFETY: the bytes, and the file that is the fd, live until the future is ready.
            let written = unsafe { uring.op(write.offset(u64::MAX).build()) }.await;
            if written <= 0 {
                // Nobody reads any more, or the disk is full: nothing more is taken.
                let mut output = output.borrow_mut();
                (output.left, output.writing) = (0, false);
                output.pending = Vec::new();
                return;
            }
            done += written as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    fn iovec(bytes: &mut [u8]) -> libc::iovec {
        libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
    }

    fn settle(uring: &Uring) {
        while uring.tasks.tasks() > 0 {
            uring.tasks.run_ready();
            if uring.tasks.tasks() > 0 {
                uring.submit_and_wait(Some(std::time::Duration::from_millis(10))).unwrap();
                uring.reap(|_, _, _| {});
            }
        }
    }

    #[test]
    fn frames_are_written_as_far_as_they_are_wanted() {
        let uring = Rc::new(Uring::new(8).unwrap());
        let mut file = tempfile::tempfile().unwrap();
        let capture = Capture::new(&uring, file.try_clone().unwrap().into(), 64, 16 + 60 + 16 + 64 + 10);
        let mut rest: Vec<u8> = (40..100).collect();
        let front: Vec<u8> = (0..40).collect();
        capture.take(clock::now(), &front, &[iovec(&mut rest[..20])], 60);
        capture.take(clock::now(), &front, &[iovec(&mut rest)], 100);
        capture.take(clock::now(), &front, &[iovec(&mut rest)], 100);
        assert_eq!(capture.counts(), json!({"packets": 2, "missed": 1}));
        settle(&uring);
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 16 + 60 + 16 + 64);
        assert_eq!(bytes[8..16], [60, 0, 0, 0, 60, 0, 0, 0]);
        assert_eq!(bytes[16..76], (0..60).collect::<Vec<u8>>());
        assert_eq!(bytes[84..92], [64, 0, 0, 0, 100, 0, 0, 0]);
        assert_eq!(bytes[92..], (0..64).collect::<Vec<u8>>());
        let seconds = u64::from(u32::from_le_bytes(bytes[..4].try_into().unwrap()));
        let world = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(world - seconds < 60, "{seconds} is not {world}");
    }

    #[test]
    fn a_reader_that_does_not_read_misses_frames() {
        let uring = Rc::new(Uring::new(8).unwrap());
        let (reader, writer) = std::io::pipe().unwrap();
        let capture = Capture::new(&uring, writer.into(), 2000, u64::MAX);
        for _ in 0..4000 {
            capture.take(0, &[7; 1500], &[], 1500);
            uring.tasks.run_ready();
        }
        let counts = capture.counts();
        let (taken, missed) = (counts["packets"].as_u64().unwrap(), counts["missed"].as_u64().unwrap());
        assert!(taken + missed == 4000 && missed > 1000, "{counts}");
        drop((reader, capture));
        settle(&uring);
    }
}
