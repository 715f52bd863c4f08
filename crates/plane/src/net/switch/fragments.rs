//! Parts of IP packets: the first one has the ports and is judged, the others follow it.

use super::frame::{Fragment, Packet};
use super::keyed::Keyed;
use crate::clock::Nanos;

/// Packets in parts that a port may have under way. One more takes the place of another.
const PLACES: usize = 256;

/// Parts that come later than this after the first one are lost (RFC 8200, 4.5 gives the receiver 60 s).
const AGE: Nanos = 30 * 1_000_000_000;

/// Packets whose first part went through, by a hash that guests cannot know.
#[derive(Default)]
pub struct Fragments {
    keyed: Keyed,
    places: Vec<(u64, Nanos)>,
}

impl Fragments {
    /// The first part of `packet` goes to `port`.
    pub fn pass(&mut self, now: Nanos, packet: &Packet, fragment: Fragment, port: u32) {
        if self.places.is_empty() {
            self.places.resize(PLACES, (0, 0));
        }
        let hash = self.hash(packet, fragment, port);
        self.places[hash as usize % PLACES] = (hash, now + AGE);
    }

    /// Whether the first part of `packet` went to `port`.
    pub fn passed(&self, now: Nanos, packet: &Packet, fragment: Fragment, port: u32) -> bool {
        let hash = self.hash(packet, fragment, port);
        self.places.get(hash as usize % PLACES).is_some_and(|(known, until)| *known == hash && now < *until)
    }

    fn hash(&self, packet: &Packet, fragment: Fragment, port: u32) -> u64 {
        let what = u64::from(fragment.id) << 32 | u64::from(port) << 8 | u64::from(packet.protocol);
        self.keyed.ends(packet.source, packet.destination, what)
    }
}
