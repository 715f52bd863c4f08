//! A request in flight.

use crate::arbiter::{Kind, Request as Asked};
use crate::block::{Operation, Request};
use crate::worker::device::Context;

/// A request in flight. Slots are reused, with their buffers' capacity.
pub(super) struct Slot {
    pub queue: u16,
    pub head: u16,
    pub status: *mut u8,
    pub request: Request,
    pub iovecs: Vec<libc::iovec>,
    /// Completions still to come.
    pub pending: usize,
    pub moved: u64,
    pub error: i32,
    pub retries: u8,
    /// It waits for space on the host, or is just tried again.
    pub spaceless: bool,
    /// The driver expects every write to be durable (5.2.6.2: no FLUSH negotiated).
    pub write_through: bool,
    /// What the arbiter knows it by, from the offer until the disk is rid of it.
    pub asked: Option<Asked>,
    /// It is not its turn yet.
    pub waits: bool,
    /// Its place in the available ring, while it could be put back there.
    pub place: Option<u16>,
    /// Cut short by a fault: it fails, whatever the disk says.
    pub torn: bool,
    /// Neighbours that went to the disk with it, and the buffers of all.
    pub parts: Vec<u16>,
    pub whole: Vec<libc::iovec>,
}

impl Slot {
    /// A free one.
    pub fn new() -> Slot {
        let request = Request {
            operation: Operation::Flush,
            offset: 0,
            length: 0,
            iovecs: std::ptr::null(),
            iovec_count: 0,
            token: 0,
        };
        Slot {
            queue: 0,
            head: 0,
            status: std::ptr::null_mut(),
            request,
            iovecs: Vec::new(),
            pending: 0,
            moved: 0,
            error: 0,
            retries: 0,
            spaceless: false,
            write_through: false,
            asked: None,
            waits: false,
            place: None,
            torn: false,
            parts: Vec::new(),
            whole: Vec::new(),
        }
    }

    /// The disk is rid of the request.
    pub fn leave(&mut self, context: &mut Context<'_>) {
        if let Some(asked) = self.asked.take() {
            context.arbiter.complete(context.now, asked);
        }
    }

    /// What the arbiter takes it for.
    pub fn kind(&self) -> Kind {
        match self.request.operation {
            Operation::Read => Kind::Read,
            Operation::Write => Kind::Write,
            Operation::Flush => Kind::Flush,
            Operation::Discard | Operation::WriteZeroes { .. } => Kind::Discard,
        }
    }

    /// Cut the write after `bytes`; it fails in the end.
    pub fn tear(&mut self, bytes: u64) {
        self.torn = true;
        self.request.length = bytes;
        let mut left = bytes as usize;
        self.iovecs.retain_mut(|iovec| {
            iovec.iov_len = iovec.iov_len.min(left);
            left -= iovec.iov_len;
            iovec.iov_len > 0
        });
        self.request.iovec_count = self.iovecs.len();
    }
}
