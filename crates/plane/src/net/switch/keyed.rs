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

/// The bits of a product that hang on few of its factors' spread over all: for what is close together, [`fold`] alone is not enough.
fn spread(hash: u64) -> u64 {
    // The golden ratio's fraction, odd.
    fold(hash ^ hash.rotate_left(32), 0x9e37_79b9_7f4a_7c15)
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
        spread(self.pair(low ^ what, high.rotate_left(32) ^ what))
    }

    /// The same for both directions of a connection, and for all parts of a packet.
    pub fn flow(&self, packet: &Packet) -> u32 {
        let both = packet.source ^ packet.destination;
        let (source, destination) = if packet.fragment.is_some() { (0, 0) } else { packet.ports() };
        let ports = u64::from(source ^ destination) << 8 | u64::from(packet.protocol);
        spread(self.pair(both as u64 ^ ((both >> 64) as u64).rotate_left(32), ports)) as u32
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
        spread(self.1)
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

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u64 = 1 << 14;
    const BUCKETS: u64 = 1 << 10;

    /// The fullest of 1024 buckets when so many keys come as 16 for each: about 33 by chance, and 56 never (10 deviations).
    fn fullest(bucket: impl Fn(u64) -> u64) -> usize {
        let mut counts = [0; BUCKETS as usize];
        for key in 0..KEYS {
            counts[(bucket(key) % BUCKETS) as usize] += 1;
        }
        counts.into_iter().max().unwrap_or(0)
    }

    /// Both ends of something and what it is, by a number.
    type Walk = fn(u64) -> (u128, u128, u64);

    /// What a guest can count through: ports, addresses from either end, bits that are all at the top, keys that differ little.
    const WALKS: [Walk; 8] = [
        |n| (1, 2, n << 48),
        |n| (1, 2, n << 32),
        |n| (1, 2, n << 48 | n << 32),
        |n| (1, u128::from(n), 17),
        |n| (1, u128::from(n) << 64, 17),
        |n| (1, u128::from(n) << 112, 17),
        |n| (u128::from(n), u128::from(n), 6),
        |n| (1, u128::from(n).wrapping_mul(1 << 64 | 1), n << 48),
    ];

    #[test]
    fn keys_that_look_alike_are_spread() {
        for _ in 0..8 {
            let keyed = Keyed::default();
            for (number, walk) in WALKS.iter().enumerate() {
                let hash = |key| {
                    let (a, b, what) = walk(key);
                    keyed.ends(a, b, what)
                };
                // Which bucket of the connections, and which tag in it.
                for (part, most) in [("low", fullest(hash)), ("high", fullest(|key| hash(key) >> 54))] {
                    assert!(most < 56, "walk {number}: {most} in one by the {part} bits");
                }
            }
        }
    }

    #[test]
    fn addresses_that_look_alike_are_spread() {
        for shift in [0, 8, 24, 32, 48] {
            let keyed = Keyed::default();
            let most = fullest(|key| keyed.hash_one(key << shift));
            assert!(most < 56, "{most} in one, of words that differ from bit {shift} on");
        }
    }

    #[test]
    fn who_knows_one_secret_knows_nothing_of_another() {
        let (one, other) = (Keyed::default(), Keyed::default());
        let full: Vec<u64> =
            (0..1 << 20).filter(|port| one.ends(1, 2, port << 32) % BUCKETS == 0).take(512).collect();
        let most = {
            let mut counts = [0; BUCKETS as usize];
            for port in &full {
                counts[(other.ends(1, 2, port << 32) % BUCKETS) as usize] += 1;
            }
            counts.into_iter().max().unwrap_or(0)
        };
        assert!(full.len() == 512 && most < 16, "{most} of {} collide again", full.len());
    }
}
