//! Hashing with a secret key: guests choose addresses and ports, and must not be able to choose collisions.

use std::hash::{BuildHasher, Hasher, RandomState};

use super::frame::Packet;

/// A secret.
#[derive(Clone, Debug)]
pub struct Keyed(u64, u64);

impl Default for Keyed {
    fn default() -> Keyed {
        let random = RandomState::new();
        Keyed(random.hash_one(1), random.hash_one(2))
    }
}

/// Both halves of a product, which each bit of both factors reaches.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

impl Keyed {
    /// A hash of two words.
    pub fn pair(&self, a: u64, b: u64) -> u64 {
        fold(a ^ self.0, b ^ self.1)
    }

    /// A hash of both ends of something and of what it is.
    pub fn ends(&self, a: u128, b: u128, what: u64) -> u64 {
        let low = self.pair(a as u64, b as u64);
        let high = self.pair((a >> 64) as u64, (b >> 64) as u64);
        self.pair(low ^ what, high.rotate_left(32) ^ what)
    }

    /// The same for both directions of a connection, and for all parts of a packet.
    pub fn flow(&self, packet: &Packet) -> u32 {
        let both = packet.source ^ packet.destination;
        let (source, destination) = if packet.fragment.is_some() { (0, 0) } else { packet.ports() };
        let ports = u64::from(source ^ destination) << 8 | u64::from(packet.protocol);
        self.pair(both as u64 ^ ((both >> 64) as u64).rotate_left(32), ports) as u32
    }
}

/// The state of [`Keyed`] while it hashes words.
pub struct Words(Keyed, u64);

impl BuildHasher for Keyed {
    type Hasher = Words;

    fn build_hasher(&self) -> Words {
        Words(self.clone(), 0)
    }
}

impl Hasher for Words {
    fn finish(&self) -> u64 {
        self.1
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.1 = self.0.pair(word, self.1);
    }
}
