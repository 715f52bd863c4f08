//! Which MAC address is at which port, learnt from what ports send (IEEE 802.1D, 7.8 and 7.9).

use std::collections::HashMap;

use super::PortId;
use super::keyed::Keyed;
use crate::clock::Nanos;

/// An address from which nothing came for so long is forgotten (IEEE 802.1D, 7.9.2).
pub const AGE: Nanos = 300 * 1_000_000_000;

/// Most addresses learnt from a guest; more are flooded to.
pub const GUEST_ADDRESSES: u32 = 256;

/// Most addresses learnt from an uplink.
pub const UPLINK_ADDRESSES: u32 = 8192;

/// What is full looks for addresses to forget at most so often.
const SWEEP: Nanos = 1_000_000_000;

/// A MAC address.
pub type Mac = [u8; 6];

/// Where an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The port.
    pub port: PortId,
    /// The port owns it, and nothing moves it.
    pub fixed: bool,
    seen: Nanos,
}

/// The forwarding database.
#[derive(Default)]
pub struct Fdb {
    places: HashMap<u64, Place, Keyed>,
    swept: Nanos,
}

/// Whether an address is now known to be at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learnt {
    /// It was.
    Known,
    /// It is from now on.
    New,
    /// There is no room for it.
    Full,
    /// Another port has it.
    Taken,
}

fn key(vlan: u16, mac: &Mac) -> u64 {
    let [a, b, c, d, e, f] = *mac;
    u64::from(vlan) << 48 | u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

impl Fdb {
    /// The port that has `mac` in `vlan`.
    pub fn find(&self, now: Nanos, vlan: u16, mac: &Mac) -> Option<Place> {
        self.places.get(&key(vlan, mac)).copied().filter(|place| place.is_valid(now))
    }

    /// `mac` is the address of `port`. It replaces what was learnt, not what another port owns.
    pub fn fix(&mut self, vlan: u16, mac: &Mac, port: PortId) {
        let place = Place { port, fixed: true, seen: 0 };
        let entry = self.places.entry(key(vlan, mac)).or_insert(place);
        if !entry.fixed {
            *entry = place;
        }
    }

    /// A frame from `mac` came from `port`. `may_move` says whether it may take an address from the port that has it;
    /// `room` is whether the port may have one more.
    pub fn learn(
        &mut self,
        now: Nanos,
        (vlan, mac): (u16, &Mac),
        port: PortId,
        may_move: impl FnOnce(PortId) -> bool,
        room: bool,
    ) -> (Learnt, Option<PortId>) {
        let key = key(vlan, mac);
        if let Some(place) = self.places.get_mut(&key) {
            if place.port == port {
                place.seen = now;
                return (Learnt::Known, None);
            }
            if place.is_valid(now) && (place.fixed || !may_move(place.port)) {
                return (Learnt::Taken, None);
            }
            if !room {
                return (Learnt::Full, None);
            }
            let lost = place.port;
            *place = Place { port, fixed: false, seen: now };
            return (Learnt::New, Some(lost));
        }
        if !room {
            return (Learnt::Full, None);
        }
        self.places.insert(key, Place { port, fixed: false, seen: now });
        (Learnt::New, None)
    }

    /// Forget what is old, unless that was done within the last second; `lost` is told of each.
    pub fn sweep(&mut self, now: Nanos, mut lost: impl FnMut(PortId)) {
        if now < self.swept + SWEEP {
            return;
        }
        self.swept = now;
        self.places.retain(|_, place| {
            let valid = place.is_valid(now);
            if !valid {
                lost(place.port);
            }
            valid
        });
    }

    /// Forget all of a port.
    pub fn forget(&mut self, port: PortId) {
        self.places.retain(|_, place| place.port != port);
    }
}

impl Place {
    fn is_valid(&self, now: Nanos) -> bool {
        self.fixed || now < self.seen + AGE
    }
}
