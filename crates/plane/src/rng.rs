//! virtio-rng (virtio 1.3, 5.4): the host's getrandom(), in the guest's buffers.

use std::sync::atomic::Ordering::Relaxed;

use crate::chain::Buffers;
use crate::worker::device::{Context, Device, Fault};
use crate::worker::queue::Violation;

/// Bytes for one queue in a turn: about 0.2 ms of getrandom(), the longest that a guest may hold up the others.
const BUDGET: usize = 64 * 1024;

/// The device.
#[derive(Default)]
pub struct Rng {
    buffers: Buffers,
}

impl Device for Rng {
    fn serve(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation> {
        let mut budget = BUDGET;
        while budget > 0 {
            let Some(queue) = context.queue(index) else { return Ok(false) };
            let Some(head) = queue.take(&mut self.buffers)? else { return Ok(false) };
            let written = fill(&self.buffers.writable, budget);
            // An empty answer would cost nothing of the budget, so a chain does in any case.
            budget = budget.saturating_sub(written.max(64));
            queue.complete(head, written as u32);
            context.page.reads.fetch_add(1, Relaxed);
            context.page.read_bytes.fetch_add(written as u64, Relaxed);
        }
        Ok(true)
    }

    fn complete(&mut self, _context: &mut Context<'_>, _value: u16, _result: i32) -> Result<(), Fault> {
        Ok(())
    }
}

/// Fill at most `limit` bytes of `buffers`; the driver is told how many (5.4.6.1 asks for at least one).
fn fill(buffers: &[libc::iovec], limit: usize) -> usize {
    let mut done = 0;
    for buffer in buffers {
        let part = buffer.iov_len.min(limit - done);
        if part == 0 {
            break;
        }
        // SAFETY: writes into guest memory only; where that has been truncated the kernel says EFAULT.
        let got = unsafe { libc::getrandom(buffer.iov_base, part, 0) };
        if got <= 0 {
            break;
        }
        done += got as usize;
        if (got as usize) < part {
            break;
        }
    }
    done
}
