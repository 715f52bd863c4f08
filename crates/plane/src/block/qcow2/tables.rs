//! How imago's metadata reaches the top layer's file: only what changed, and L2 tables only when what they map is durable.
//!
//! imago writes whole tables, one cluster each, and an allocating write changes 8 bytes of one and 2 of another. All
//! tables lie in one area ([`super::layout`]), so its clusters are remembered as the file has them, and a write of one is
//! cut down to the pages that differ.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::task::{Poll, Waker};

use super::layout::Layout;

/// Unit of a table's writes: whole blocks of any device and of the page cache.
const PAGE: usize = 4096;

/// The tables of an overlay that is open for writing.
pub struct Tables {
    area: Range<u64>,
    l2_area: Range<u64>,
    cluster: usize,
    in_file: RefCell<HashMap<u64, Box<[u8]>>>,
    gate: Cell<Gate>,
    waiting: RefCell<Vec<Waker>>,
}

/// Whether L2 tables may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// They must not: data that they map may be on its way.
    Shut,
    /// They may, once what they map is durable: the first of them sees to it.
    Due,
    /// The others wait for that one.
    Syncing,
    /// They may.
    Open,
    /// They must not, ever again: what is durable of the rest is unknown, and a second sync would not tell.
    Failed,
}

impl Tables {
    /// Tables of which nothing is known yet.
    pub fn new(layout: &Layout) -> Tables {
        Tables {
            area: layout.tables(),
            l2_area: layout.l2_tables(),
            cluster: 1 << layout.cluster_bits,
            in_file: RefCell::default(),
            gate: Cell::new(Gate::Shut),
            waiting: RefCell::default(),
        }
    }

    /// Whether this is a whole table.
    pub fn covers(&self, offset: u64, length: usize) -> bool {
        length == self.cluster && self.area.contains(&offset) && offset.is_multiple_of(self.cluster as u64)
    }

    /// Lets L2 tables pass until [`shut`](Self::shut).
    pub fn open(&self) {
        if !self.failed() {
            self.gate.set(Gate::Due);
        }
    }

    /// Lets no L2 table pass.
    pub fn shut(&self) {
        if !self.failed() {
            self.gate.set(Gate::Shut);
        }
    }

    /// Whether a sync has failed.
    pub fn failed(&self) -> bool {
        self.gate.get() == Gate::Failed
    }

    /// Waits until a table at `offset` may be written. The first L2 table has data and refcounts made durable by `sync`
    /// before: should the host stop, no L2 table refers to a cluster that has no content, or may be given once more.
    ///
    /// # Errors
    /// `EIO` for an L2 table while the gate is shut, or if `sync` has failed.
    pub async fn admit(&self, offset: u64, sync: impl Future<Output = io::Result<()>>) -> io::Result<()> {
        if !self.l2_area.contains(&offset) {
            return Ok(());
        }
        poll_fn(|cx| match self.gate.get() {
            Gate::Syncing => {
                self.waiting.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
            Gate::Shut | Gate::Due | Gate::Open | Gate::Failed => Poll::Ready(()),
        })
        .await;
        match self.gate.get() {
            Gate::Open => return Ok(()),
            Gate::Shut | Gate::Syncing | Gate::Failed => return Err(io::Error::from_raw_os_error(libc::EIO)),
            Gate::Due => self.gate.set(Gate::Syncing),
        }
        let durable = sync.await.is_ok();
        self.gate.set(if durable { Gate::Open } else { Gate::Failed });
        self.waiting.borrow_mut().drain(..).for_each(Waker::wake);
        if durable { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EIO)) }
    }

    /// The part of `table` in which the file differs from it, as far as is known: from the first page to the last, since
    /// one write costs less than several.
    pub fn changed(&self, offset: u64, table: &[u8]) -> Range<usize> {
        let in_file = self.in_file.borrow();
        let Some(old) = in_file.get(&offset) else { return 0..table.len() };
        let differs = |at: &usize| table[*at..*at + PAGE] != old[*at..*at + PAGE];
        let mut pages = (0..table.len()).step_by(PAGE);
        let Some(first) = pages.find(differs) else { return 0..0 };
        let last = pages.rfind(differs).unwrap_or(first);
        first..last + PAGE
    }

    /// Remembers what the file has at `offset`.
    pub fn remember(&self, offset: u64, table: &[u8]) {
        let mut in_file = self.in_file.borrow_mut();
        match in_file.get_mut(&offset) {
            Some(old) => old.copy_from_slice(table),
            None => drop(in_file.insert(offset, table.into())),
        }
    }

    /// Forgets it: a write has failed half-way.
    pub fn forget(&self, offset: u64) {
        self.in_file.borrow_mut().remove(&offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_differ_are_written() {
        let tables = Tables::new(&Layout::new(1 << 20).unwrap());
        let mut table = vec![0; 65536];
        assert!(
            tables.covers(3 << 16, 65536) && !tables.covers(3 << 16, 4096) && !tables.covers(1 << 20, 65536)
        );
        assert_eq!(tables.changed(1 << 16, &table), 0..65536);
        tables.remember(1 << 16, &table);
        assert!(tables.changed(1 << 16, &table).is_empty());
        table[20_000] = 1;
        assert_eq!(tables.changed(1 << 16, &table), 16_384..20_480);
        table[65_535] = 1;
        assert_eq!(tables.changed(1 << 16, &table), 16_384..65_536);
        tables.forget(1 << 16);
        assert_eq!(tables.changed(1 << 16, &table), 0..65536);
    }
}
