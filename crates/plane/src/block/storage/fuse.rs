//! Lets a test stop a disk before any one of its writes, as a kill would, or write down all of them, to play them back
//! as a host that lost its power would have them.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::Poll;

thread_local! {
    static DELAYS: Cell<u32> = const { Cell::new(1) };
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
    static BURNT: Cell<bool> = const { Cell::new(false) };
    static FULL: Cell<bool> = const { Cell::new(false) };
    static RECORD: RefCell<Option<Vec<Event>>> = const { RefCell::new(None) };
}

/// What happens to a file, in order.
#[derive(Clone, Debug)]
pub enum Event {
    /// The content is on its way.
    Begin(u64, Vec<u8>),
    /// That of the event with this number is in the file.
    End(usize),
    /// All that had ended before the event with this number is durable.
    Synced(usize),
}

/// Begins to write events down; what has a raw operation of its own in the ring goes through `FileStorage` from now on.
pub fn record() {
    RECORD.set(Some(Vec::new()));
}

/// Whether events are written down.
pub fn recording() -> bool {
    RECORD.with_borrow(Option::is_some)
}

/// How many events there have been.
pub fn events() -> usize {
    RECORD.with_borrow(|events| events.as_ref().map_or(0, Vec::len))
}

/// Ends it.
pub fn take_record() -> Vec<Event> {
    RECORD.take().unwrap_or_default()
}

/// Bytes are on their way to the file; the number of the event.
pub fn begin(offset: u64, bytes: Vec<u8>) -> usize {
    note(Event::Begin(offset, bytes))
}

/// They have arrived.
pub fn end(number: usize) {
    note(Event::End(number));
}

/// A sync has ended that was the event `number`.
pub fn end_sync(number: usize) {
    note(Event::Synced(number));
}

fn note(event: Event) -> usize {
    RECORD.with_borrow_mut(|events| {
        let Some(events) = events else { return 0 };
        events.push(event);
        events.len() - 1
    })
}

/// What `iovecs` hold, while there is a record.
pub fn bytes(iovecs: &[libc::iovec]) -> Vec<u8> {
    let mut bytes = Vec::new();
    if recording() {
        for iov in iovecs {
            // SAFETY: the caller is about to write them.
            bytes.extend_from_slice(unsafe {
                std::slice::from_raw_parts(iov.iov_base.cast::<u8>(), iov.iov_len)
            });
        }
    }
    bytes
}

/// Allows this many writes more.
pub fn set(writes: u64) {
    LEFT.set(writes);
    BURNT.set(false);
}

/// From now on there is no space for two writes of three, or there is.
pub fn fill(full: bool) {
    FULL.set(full);
}

/// Whether a write has been held back.
pub fn burnt() -> bool {
    BURNT.get()
}

/// Lets others go first by turns, so that writes which nothing orders are made in any order.
pub async fn burn() -> std::io::Result<()> {
    DELAYS.set(DELAYS.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let mut turns = DELAYS.get() >> 29;
    poll_fn(|cx| match turns.checked_sub(1) {
        Some(left) => {
            turns = left;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        None => Poll::Ready(()),
    })
    .await;
    let left = LEFT.get();
    if left == 0 {
        BURNT.set(true);
        std::future::pending::<()>().await;
    }
    LEFT.set(left - 1);
    let full = FULL.get() && !(DELAYS.get() >> 16).is_multiple_of(3);
    if full { Err(std::io::Error::from_raw_os_error(libc::ENOSPC)) } else { Ok(()) }
}
