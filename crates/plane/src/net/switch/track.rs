//! The connections of a port: a table of bounded size and bounded work, in which no peer's flood displaces another's connections.
//!
//! A connection can be in the 16 places of one bucket. When they are taken, what has expired goes first; then one of the peer
//! that has the most of them, unanswered and old ones first.

use super::PortId;
use super::frame::{Address, ICMP, ICMP6, TCP, flags};
use super::keyed::Keyed;
use crate::clock::Nanos;

const WAYS: usize = 16;

/// Most buckets of a port: 16384 connections, 2 MiB.
const MAX_BUCKETS: usize = 1024;

/// Buckets of a port with its first connection.
const FIRST_BUCKETS: usize = 4;

const SECOND: Nanos = 1_000_000_000;

/// A connection, seen from the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The port's end.
    pub local: Address,
    /// The other one.
    pub remote: Address,
    /// Port numbers: the port's, the other one's.
    pub ports: (u16, u16),
    /// As in IP.
    pub protocol: u8,
    /// The VLAN.
    pub vlan: u16,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Only one side has spoken.
    New,
    /// Both have.
    Open,
    /// TCP: one side has ended it.
    Closing,
}

/// A connection with its counters.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Which.
    pub key: Key,
    /// The port began it.
    pub outbound: bool,
    /// How far it is.
    pub state: State,
    /// The switch's port that made us keep it.
    pub creator: PortId,
    /// The switch's port at the other end.
    pub peer: PortId,
    /// Of the rules that allowed it.
    pub generation: u32,
    /// Later rules do not allow it. It is kept, or its next packet would pass as the first of another one.
    pub refused: bool,
    /// When it began.
    pub created: Nanos,
    /// When something was last seen of it.
    pub seen: Nanos,
    /// Packets from the port, and to it.
    pub packets: [u64; 2],
    /// Bytes of frames from the port, and to it.
    pub bytes: [u64; 2],
}

impl Entry {
    /// When it is forgotten if nothing more is seen (RFC 5382, REQ-5; RFC 4787, REQ-5; RFC 5508, REQ-2).
    pub fn expires(&self) -> Nanos {
        let seconds = match (self.key.protocol, self.state) {
            (ICMP | ICMP6, _) => 60,
            (TCP, State::Open) => 7500,
            (TCP, State::New) => 60,
            (_, State::Closing) => 120,
            (_, State::New) => 60,
            (_, State::Open) => 300,
        };
        self.seen + seconds * SECOND
    }

    /// Note a packet of it, from the port or to it.
    pub fn note(&mut self, now: Nanos, outbound: bool, tcp: u8, packets: u32, bytes: usize) {
        if self.key.protocol == TCP && tcp & (flags::FIN | flags::RST) != 0 {
            self.state = State::Closing;
        } else if self.outbound != outbound && self.state == State::New {
            self.state = State::Open;
        }
        self.seen = now;
        let place = usize::from(!outbound);
        self.packets[place] += u64::from(packets);
        self.bytes[place] += bytes as u64;
    }
}

/// The table.
#[derive(Default)]
pub struct Track {
    keyed: Keyed,
    /// Of hashes, 0 where there is nothing.
    tags: Vec<[u16; WAYS]>,
    entries: Vec<[Option<Entry>; WAYS]>,
    used: usize,
}

impl Track {
    /// A connection that has not expired.
    pub fn find(&mut self, now: Nanos, key: &Key) -> Option<&mut Entry> {
        let (bucket, tag) = self.place(key)?;
        for way in 0..WAYS {
            if self.tags[bucket][way] == tag {
                let found = self.entries[bucket][way].is_some_and(|entry| entry.key == *key);
                if found {
                    return self.entries[bucket][way].as_mut().filter(|entry| now < entry.expires());
                }
            }
        }
        None
    }

    /// Keep a connection, instead of what is known by its key.
    pub fn insert(&mut self, now: Nanos, entry: Entry) {
        if self.used * 2 >= self.capacity() && self.tags.len() < MAX_BUCKETS {
            self.tidy(now);
        }
        // A bucket can be full while others are not: more room spreads them.
        while !self.put(now, entry, self.tags.len() >= MAX_BUCKETS) {
            self.rebuild(now, self.tags.len() * 2);
        }
    }

    /// Put an entry in its bucket. If that is full, another one goes if it `must`; else this returns false.
    fn put(&mut self, now: Nanos, entry: Entry, must: bool) -> bool {
        let Some((bucket, tag)) = self.place(&entry.key) else { return true };
        let same = |place: &Option<Entry>| place.is_some_and(|known| known.key == entry.key);
        let gone = |place: &Option<Entry>| place.is_none_or(|known| known.expires() <= now);
        let places = &self.entries[bucket];
        let free = places.iter().position(same).or_else(|| places.iter().position(gone));
        let Some(way) = free.or_else(|| must.then(|| victim(places))) else { return false };
        self.used += usize::from(self.entries[bucket][way].is_none());
        self.tags[bucket][way] = tag;
        self.entries[bucket][way] = Some(entry);
        true
    }

    /// All that have not expired.
    pub fn iter(&self, now: Nanos) -> impl Iterator<Item = &Entry> {
        self.entries.iter().flatten().flatten().filter(move |entry| now < entry.expires())
    }

    /// Connections that fit.
    pub fn capacity(&self) -> usize {
        self.tags.len() * WAYS
    }

    fn place(&self, key: &Key) -> Option<(usize, u16)> {
        if self.tags.is_empty() {
            return None;
        }
        let what = u64::from(key.ports.0) << 48
            | u64::from(key.ports.1) << 32
            | u64::from(key.vlan) << 8
            | u64::from(key.protocol);
        let hash = self.keyed.ends(key.local, key.remote, what);
        Some((hash as usize & (self.tags.len() - 1), (hash >> 48) as u16 | 1))
    }

    /// Make room: twice as much if half of it is really used.
    fn tidy(&mut self, now: Nanos) {
        let full = self.tags.is_empty() || self.iter(now).count() * 4 >= self.capacity();
        self.rebuild(now, if full { (self.tags.len() * 2).max(FIRST_BUCKETS) } else { self.tags.len() });
    }

    /// Spread what has not expired over so many buckets. A bucket that is full in spite of that loses something.
    fn rebuild(&mut self, now: Nanos, buckets: usize) {
        let old = std::mem::replace(&mut self.entries, vec![[None; WAYS]; buckets]);
        self.tags = vec![[0; WAYS]; buckets];
        self.used = 0;
        for entry in old.into_iter().flatten().flatten().filter(|entry| now < entry.expires()) {
            self.put(now, entry, true);
        }
    }
}

/// Which of a full bucket goes.
fn victim(places: &[Option<Entry>; WAYS]) -> usize {
    let of = |creator: PortId| places.iter().flatten().filter(|entry| entry.creator == creator).count();
    let worth = |entry: &Entry| (WAYS - of(entry.creator), entry.state == State::Open, entry.seen);
    let ways = places.iter().enumerate().filter_map(|(way, place)| Some((way, worth(place.as_ref()?))));
    ways.min_by_key(|(_, worth)| *worth).map_or(0, |(way, _)| way)
}
