//! Frames that are held on purpose, until their time has come.

use std::collections::BTreeMap;

use crate::clock::Nanos;
use crate::net::traffic::Parked;

/// Most frames, and bytes, that a network holds; more are dropped.
const FRAMES: usize = 16_384;
const BYTES: usize = 32 << 20;

/// The frames.
#[derive(Default)]
pub struct Delayed {
    /// By time, then by order.
    frames: BTreeMap<(Nanos, u64), Parked>,
    bytes: usize,
    count: u64,
}

impl Delayed {
    /// Whether a frame of `length` bytes may be held.
    pub fn has_room(&self, length: usize) -> bool {
        self.frames.len() < FRAMES && self.bytes + length <= BYTES
    }

    /// Hold a frame until `due`.
    pub fn hold(&mut self, due: Nanos, frame: Parked) {
        self.bytes += frame.bytes.len();
        self.count += 1;
        self.frames.insert((due, self.count), frame);
    }

    /// The next frame whose time has come.
    pub fn next(&mut self, now: Nanos) -> Option<Parked> {
        let first = self.frames.first_entry().filter(|first| first.key().0 <= now)?;
        let frame = first.remove();
        self.bytes -= frame.bytes.len();
        Some(frame)
    }

    /// When there will be one.
    pub fn wake_at(&self) -> Option<Nanos> {
        self.frames.first_key_value().map(|((due, _), _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::header::Offload;

    fn frame(from: u32, length: usize) -> Parked {
        let (deliveries, offload, bytes) = (Vec::new(), Offload::default(), vec![0; length]);
        Parked { from, deliveries, flow: 0, offload, segments: 1, wire: 60, bytes }
    }

    #[test]
    fn frames_come_in_the_order_of_their_time() {
        let mut delayed = Delayed::default();
        for (due, from) in [(20, 1), (10, 2), (20, 3)] {
            delayed.hold(due, frame(from, 60));
        }
        assert_eq!(delayed.wake_at(), Some(10));
        assert!(delayed.next(9).is_none());
        let order: Vec<u32> =
            std::iter::from_fn(|| delayed.next(20)).map(|frame: Parked| frame.from).collect();
        assert_eq!(order, [2, 1, 3]);
        assert_eq!(delayed.wake_at(), None);
    }

    #[test]
    fn there_is_a_bound() {
        let mut delayed = Delayed::default();
        while delayed.has_room(65_000) {
            delayed.hold(1, frame(1, 65_000));
        }
        assert!(delayed.bytes <= BYTES && delayed.bytes > BYTES - 65_000);
        delayed.next(1).unwrap();
        assert!(delayed.has_room(65_000));
        while delayed.has_room(0) {
            delayed.hold(1, frame(1, 0));
        }
        assert_eq!(delayed.frames.len(), FRAMES);
    }
}
