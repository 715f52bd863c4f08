//! All writes and flushes of a disk in the format of Linux' dm-log-writes, for tests that play them back as a host that
//! lost its power would have them (Documentation/admin-guide/device-mapper/log-writes.rst).
//!
//! A write is logged when it is done; a flush behind the writes that were done when it began, and before all others.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::block::{Operation, Request, SECTOR};

const MAGIC: u64 = 0x6a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;

/// The log of one disk.
pub struct WriteLog {
    file: File,
    /// Where the next entry goes.
    at: u64,
    entries: u64,
    /// Done and not flushed.
    pending: Vec<Entry>,
    /// How many of them the flush at the disk is about.
    covered: usize,
}

struct Entry {
    sector: u64,
    sectors: u64,
    flags: u64,
    content: Vec<u8>,
}

impl WriteLog {
    /// An empty log in `file`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(file: File) -> io::Result<WriteLog> {
        let log = WriteLog { file, at: SECTOR, entries: 0, pending: Vec::new(), covered: 0 };
        log.write_head()?;
        Ok(log)
    }

    /// A request other than a flush is done.
    pub fn done(&mut self, request: &Request) {
        let (sector, sectors) = (request.offset / SECTOR, request.length / SECTOR);
        let (flags, content) = match request.operation {
            Operation::Read | Operation::Flush => return,
            // SAFETY: the request's buffers are valid until it is answered, which is after this.
            Operation::Write => (0, unsafe { content(request) }),
            // Both read as zeroes afterwards.
            Operation::Discard | Operation::WriteZeroes { .. } => (DISCARD, Vec::new()),
        };
        self.pending.push(Entry { sector, sectors, flags, content });
    }

    /// A flush goes to the disk.
    pub fn begin_flush(&mut self) {
        self.covered = self.pending.len();
    }

    /// It has succeeded.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn end_flush(&mut self) -> io::Result<()> {
        let durable: Vec<Entry> = self.pending.drain(..self.covered).collect();
        let flush = Entry { sector: 0, sectors: 0, flags: FLUSH, content: Vec::new() };
        for entry in durable.iter().chain([&flush]) {
            self.write(entry)?;
        }
        self.covered = 0;
        self.write_head()
    }

    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let mut block = vec![0; SECTOR as usize];
        let words = [entry.sector, entry.sectors, entry.flags, 0];
        words.iter().enumerate().for_each(|(at, word)| put(&mut block, 8 * at, *word));
        block.extend_from_slice(&entry.content);
        self.file.write_all_at(&block, self.at)?;
        self.at += block.len() as u64;
        self.entries += 1;
        Ok(())
    }

    fn write_head(&self) -> io::Result<()> {
        let mut block = vec![0; SECTOR as usize];
        let words = [MAGIC, VERSION, self.entries, SECTOR];
        words.iter().enumerate().for_each(|(at, word)| put(&mut block, 8 * at, *word));
        self.file.write_all_at(&block, 0)
    }
}

fn put(block: &mut [u8], at: usize, word: u64) {
    block[at..at + 8].copy_from_slice(&word.to_le_bytes());
}

/// What `request` writes.
///
/// # Safety
/// Its buffers are valid.
unsafe fn content(request: &Request) -> Vec<u8> {
    // SAFETY: the caller vouches for the list.
    let iovecs = unsafe { std::slice::from_raw_parts(request.iovecs, request.iovec_count) };
    let mut bytes = vec![0; request.length as usize];
    crate::chain::read_front(iovecs, &mut bytes);
    bytes
}
