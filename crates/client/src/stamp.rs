//! A disk workload whose every block proves where and when it was written.
//!
//! The oracle knows for each block the sequence number of its last completed write. A block that reads with another
//! number, or another block's, is a lost, torn, repeated or misplaced write. Two requests never touch one block at
//! the same time, so the answer is always exact.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use crate::blk::{Blk, Request, SECTOR};

/// Bytes of a block.
pub const BLOCK: u32 = 4096;

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Completed reads, all verified.
    pub reads: u64,
    /// Completed writes.
    pub writes: u64,
    /// Completed flushes.
    pub flushes: u64,
    /// The longest time with requests in flight and no completion.
    pub longest_stall: Duration,
}

/// The workload and what it knows of the disk.
pub struct Stamper {
    blk: Blk,
    /// Sequence number that each block holds; 0 is unknown, not checked.
    blocks: Vec<u64>,
    /// What a block may hold instead: writes that were under way when a client before this one was killed.
    maybe: Vec<Vec<u64>>,
    log: Option<File>,
    /// What each slot is doing.
    slots: Vec<Option<Job>>,
    sequence: u64,
    random: u64,
    tally: Tally,
    last_completion: Instant,
}

#[derive(Clone, Copy)]
enum Job {
    Read { block: usize },
    Write { block: usize, sequence: u64 },
    Flush,
}

impl Stamper {
    /// Work on the first `blocks` blocks of the disk, with as many requests in flight as the driver has slots.
    pub fn new(blk: Blk, slots: u16, blocks: usize, seed: u64) -> Self {
        assert!(blocks > 2 * usize::from(slots), "{blocks} blocks are too few for {slots} slots");
        Self {
            blk,
            blocks: vec![0; blocks],
            maybe: vec![Vec::new(); blocks],
            log: None,
            slots: vec![None; usize::from(slots)],
            sequence: 0,
            random: seed | 1,
            tally: Tally::default(),
            last_completion: Instant::now(),
        }
    }

    /// Take up what the clients before this one have noted in `log`, and note there what this one does: before a write
    /// is begun, and when a write or a flush is done. Whoever kills a client, the log is outside of it.
    pub fn resume(&mut self, mut log: File) -> io::Result<()> {
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes)?;
        for entry in bytes.chunks_exact(Note::SIZE).map(Note::parse) {
            self.sequence = self.sequence.max(entry.sequence);
            let Some(block) = self.blocks.get_mut(entry.block as usize) else { continue };
            match entry.kind {
                Note::BEGUN => self.maybe[entry.block as usize].push(entry.sequence),
                Note::WRITTEN => {
                    *block = entry.sequence;
                    self.maybe[entry.block as usize].clear();
                }
                _ => {}
            }
        }
        self.log = Some(log);
        Ok(())
    }

    /// Read, write and flush at random for `time`, then let all requests complete. Fails on a wrong block, an error
    /// status, a head that completes twice or never, and on no completion within `patience`.
    pub fn run(&mut self, time: Duration, patience: Duration) -> io::Result<Tally> {
        self.last_completion = Instant::now();
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.fill()?;
            self.blk.kick()?;
            self.reap(patience)?;
        }
        while self.slots.iter().any(Option::is_some) {
            self.reap(patience)?;
        }
        Ok(self.tally)
    }

    /// Read every block that was ever written and compare.
    pub fn verify(&mut self, patience: Duration) -> io::Result<Tally> {
        self.last_completion = Instant::now();
        for block in 0..self.blocks.len() {
            if self.blocks[block] == 0 && self.maybe[block].is_empty() {
                continue;
            }
            let slot = loop {
                match self.slots.iter().position(Option::is_none) {
                    Some(slot) => break slot,
                    None => self.reap(patience)?,
                }
            };
            self.start(slot, Job::Read { block })?;
            self.blk.kick()?;
        }
        while self.slots.iter().any(Option::is_some) {
            self.reap(patience)?;
        }
        Ok(self.tally)
    }

    fn fill(&mut self) -> io::Result<()> {
        for slot in 0..self.slots.len() {
            if self.slots[slot].is_some() {
                continue;
            }
            let job = match self.random() % 64 {
                0 => Job::Flush,
                1..24 => Job::Read { block: self.idle_block() },
                _ => {
                    self.sequence += 1;
                    Job::Write { block: self.idle_block(), sequence: self.sequence }
                }
            };
            self.start(slot, job)?;
        }
        Ok(())
    }

    fn note(&mut self, kind: u64, block: usize, sequence: u64) -> io::Result<()> {
        let Some(log) = &mut self.log else { return Ok(()) };
        log.write_all(&Note { kind, block: block as u64, sequence }.bytes())
    }

    fn start(&mut self, slot: usize, job: Job) -> io::Result<()> {
        self.slots[slot] = Some(job);
        if let Job::Write { block, sequence } = job {
            self.note(Note::BEGUN, block, sequence)?;
        }
        let slot = slot as u16;
        let buffer = self.blk.buffer(slot);
        let sector = |block: usize| block as u64 * u64::from(BLOCK) / SECTOR;
        let request = match job {
            Job::Read { block } => {
                // What the last request left there must not pass for an answer.
                self.blk.device.memory.put_bytes(buffer, &[0xee; BLOCK as usize]);
                Request::Read { sector: sector(block), len: BLOCK }
            }
            Job::Write { block, sequence } => {
                self.blk.device.memory.put_bytes(buffer, &stamped(block, sequence));
                Request::Write { sector: sector(block), len: BLOCK }
            }
            Job::Flush => Request::Flush,
        };
        self.blk.submit(slot, request);
        Ok(())
    }

    /// Take all completions there are; sleep for the first.
    fn reap(&mut self, patience: Duration) -> io::Result<()> {
        if !self.blk.wait(patience)? {
            let waited = self.last_completion.elapsed();
            let stuck = self.blk.in_flight();
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{stuck} requests in flight and no completion for {} ms", waited.as_millis()),
            ));
        }
        while let Some(done) = self.blk.poll()? {
            let stall = self.last_completion.elapsed();
            self.tally.longest_stall = self.tally.longest_stall.max(stall);
            self.last_completion = Instant::now();
            let job = self.slots[usize::from(done.slot)].take().expect("the driver knows what is in flight");
            if done.status != 0 {
                return Err(io::Error::other(format!("status {} of a {}", done.status, job.describe())));
            }
            self.finish(done.slot, done.len, job)?;
        }
        Ok(())
    }

    fn finish(&mut self, slot: u16, len: u32, job: Job) -> io::Result<()> {
        match job {
            Job::Flush => {
                self.note(Note::FLUSHED, 0, 0)?;
                self.tally.flushes += 1;
            }
            Job::Write { block, sequence } => {
                self.note(Note::WRITTEN, block, sequence)?;
                self.blocks[block] = sequence;
                self.maybe[block].clear();
                self.tally.writes += 1;
            }
            Job::Read { block } => {
                self.tally.reads += 1;
                if len != BLOCK + 1 {
                    return Err(io::Error::other(format!("{len} bytes written for a {}", job.describe())));
                }
                let mut got = [0; BLOCK as usize];
                self.blk.device.memory.get_bytes(self.blk.buffer(slot), &mut got);
                if let Some(found) =
                    self.maybe[block].iter().copied().find(|maybe| got == stamped(block, *maybe))
                {
                    self.blocks[block] = found;
                }
                let doubtful = !std::mem::take(&mut self.maybe[block]).is_empty();
                let want = self.blocks[block];
                if doubtful {
                    // From now on it holds this, and nothing else.
                    self.note(Note::WRITTEN, block, want)?;
                }
                if doubtful && want == 0 && got != [0; BLOCK as usize] {
                    return Err(io::Error::other(format!(
                        "block {block}: want zeroes, got {}",
                        read_stamp(&got)
                    )));
                }
                if want != 0 && got != stamped(block, want) {
                    return Err(io::Error::other(format!(
                        "block {block}: want write {want}, got {}",
                        read_stamp(&got)
                    )));
                }
            }
        }
        Ok(())
    }

    /// A block that no request in flight touches.
    fn idle_block(&mut self) -> usize {
        loop {
            let block = self.random() as usize % self.blocks.len();
            if !self.slots.iter().flatten().any(|job| job.block() == Some(block)) {
                return block;
            }
        }
    }

    /// xorshift64* (Vigna, 2016): enough to scatter requests.
    fn random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

/// A line of the log: three little-endian words and a zero. Lines do not cross pages, so a kill cuts none in two.
#[derive(Clone, Copy)]
struct Note {
    kind: u64,
    block: u64,
    sequence: u64,
}

impl Note {
    const SIZE: usize = 32;
    const BEGUN: u64 = 1;
    const WRITTEN: u64 = 2;
    const FLUSHED: u64 = 3;

    fn bytes(self) -> [u8; Note::SIZE] {
        let words = [self.kind, self.block, self.sequence, 0];
        std::array::from_fn(|at| words[at / 8].to_le_bytes()[at % 8])
    }

    fn parse(bytes: &[u8]) -> Note {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Note { kind: word(0), block: word(8), sequence: word(16) }
    }
}

impl Job {
    fn block(self) -> Option<usize> {
        match self {
            Job::Read { block } | Job::Write { block, .. } => Some(block),
            Job::Flush => None,
        }
    }

    fn describe(self) -> String {
        match self {
            Job::Read { block } => format!("read of block {block}"),
            Job::Write { block, sequence } => format!("write {sequence} of block {block}"),
            Job::Flush => "flush".into(),
        }
    }
}

/// A block's contents: place and sequence number in every 16 bytes, so that a torn write shows.
fn stamped(block: usize, sequence: u64) -> [u8; BLOCK as usize] {
    let mut bytes = [0; BLOCK as usize];
    for cell in bytes.chunks_exact_mut(16) {
        cell[..8].copy_from_slice(&(block as u64).to_le_bytes());
        cell[8..].copy_from_slice(&sequence.to_le_bytes());
    }
    bytes
}

/// First and last stamp of a block, for an error message.
fn read_stamp(bytes: &[u8; BLOCK as usize]) -> String {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let last = BLOCK as usize - 16;
    format!("block {} write {} .. block {} write {}", word(0), word(8), word(last), word(last + 8))
}
