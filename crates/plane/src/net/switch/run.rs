//! Runs: frames of one connection behind one another. What was decided of the first holds for all of the same moment.
//!
//! A driver hands over many frames at once, most of them of one connection. Between two of them nothing has happened that a
//! decision depends on: any other frame, and any change of a port, ends the run. What a connection counts is added then.

use super::frame::{Network, Packet, Upper, flags};
use super::security::Passage;
use super::{Delivery, PortId, Switch, Verdict};
use crate::clock::Nanos;

/// Words of the longest headers that are compared: Ethernet, IPv6, TCP up to its flags.
const WORDS: usize = 9;

/// Which bytes of a frame the switch looks at.
type Mask = [u64; WORDS];

/// Of frames without a tag and packets without options. Left out are priority, flow label, IPv4's id and checksum, time to live, and
/// what UDP has beside ports, TCP beside them, its offset and its flags.
const UDP4: Mask = mask(&[(0, 15), (16, 18), (20, 22), (23, 24), (26, 38)]);
const TCP4: Mask = mask(&[(0, 15), (16, 18), (20, 22), (23, 24), (26, 38), (46, 48)]);
const UDP6: Mask = mask(&[(0, 15), (18, 21), (22, 58)]);
const TCP6: Mask = mask(&[(0, 15), (18, 21), (22, 58), (66, 68)]);

/// Where IPv4 and IPv6 end in such frames.
const UPPER4: usize = 34;
const UPPER6: usize = 54;

const fn mask(parts: &[(usize, usize)]) -> Mask {
    let (mut mask, mut part) = ([0; WORDS], 0);
    while part < parts.len() {
        let (mut at, end) = parts[part];
        while at < end {
            mask[at / 8] |= 0xff << (8 * (at % 8));
            at += 1;
        }
        part += 1;
    }
    mask
}

/// A frame that went to one port, and those like it since.
pub(super) struct Run {
    now: Nanos,
    from: PortId,
    length: usize,
    mask: &'static Mask,
    /// What is looked at, in so many words; the others are 0.
    looked_at: Mask,
    words: usize,
    vlan: u16,
    network: Network,
    delivery: Delivery,
    verdict: Verdict,
    /// Frames since the first, on the wire, and their bytes.
    segments: u32,
    bytes: usize,
}

/// The words of a header that is long enough.
fn words(header: &[u8], count: usize) -> Option<impl Iterator<Item = u64>> {
    let words = header.as_chunks().0.get(..count)?;
    Some(words.iter().map(|word| u64::from_le_bytes(*word)))
}

impl Run {
    /// Whether the switch sees no difference between this frame and those before.
    fn has(&self, header: &[u8]) -> bool {
        words(header, self.words).is_some_and(|words| {
            let both = words.zip(self.mask).zip(&self.looked_at);
            both.fold(0, |differ, ((word, mask), looked_at)| differ | word & mask ^ looked_at) == 0
        })
    }
}

impl Switch {
    /// What was decided of the frame before, if this one is like it.
    pub(super) fn continues(
        &mut self,
        now: Nanos,
        from: PortId,
        header: &[u8],
        (length, segments): (usize, u32),
    ) -> Option<(Delivery, Verdict)> {
        let alike =
            |run: &&mut Run| (run.now, run.from, run.length) == (now, from, length) && run.has(header);
        let run = self.run.as_mut().filter(alike)?;
        run.segments += segments;
        run.bytes += length;
        Some((run.delivery, run.verdict))
    }

    /// This was decided; the next frame may be like it.
    pub(super) fn begin_run(
        &mut self,
        (now, from, vlan): (Nanos, PortId, u16),
        (header, length): (&[u8], usize),
        network: Network,
        (delivery, verdict): (Delivery, Verdict),
    ) {
        let Some(mask) = mask_of(&network) else { return };
        let count = mask.iter().take_while(|word| **word != 0).count();
        // Where a sender is that has no address of its own is learnt from each frame.
        let own = self.port(from).is_some_and(|port| !port.is_free());
        let fair = |port: PortId| self.port(port).is_some_and(|port| port.faults.is_none());
        if !own || !fair(from) || !fair(delivery.port) {
            return;
        }
        let Some(words) = words(header, count) else { return };
        let mut looked_at = [0; WORDS];
        words.zip(mask).zip(&mut looked_at).for_each(|((word, mask), to)| *to = word & mask);
        let (segments, bytes) = (0, 0);
        self.run = Some(Run {
            now,
            from,
            length,
            mask,
            looked_at,
            words: count,
            vlan,
            network,
            delivery,
            verdict,
            segments,
            bytes,
        });
    }

    /// Something else happens: the connection of the run, if one is kept, has had so many packets.
    pub(super) fn end_run(&mut self) {
        let Some(run) = self.run.take().filter(|run| run.segments > 0) else { return };
        let (from, to) = (run.from, run.delivery.port);
        let Ok([Some(sender), Some(receiver)]) = self.ports.get_disjoint_mut([from as usize, to as usize])
        else {
            return;
        };
        let passage = Passage {
            now: run.now,
            vlan: run.vlan,
            network: &run.network,
            header: &[],
            length: run.bytes,
            segments: run.segments,
            generation: self.generation,
            group: false,
            resumed: run.now < self.resumed,
        };
        // That they pass is known; what is asked for is that they are counted.
        let _ = passage.leaves((from, sender), (to, receiver));
        let _ = passage.enters((to, receiver), (from, sender));
    }
}

/// What is looked at in a frame that does nothing but belong to its connection: it begins and ends none, and is no part of a packet.
fn mask_of(network: &Network) -> Option<&'static Mask> {
    let Network::Ip(packet @ Packet { fragment: None, upper, .. }) = network else { return None };
    let ends = flags::SYN | flags::FIN | flags::RST;
    match (upper, packet.is_v4(), packet.span.0) {
        (Upper::Udp { .. }, true, UPPER4) => Some(&UDP4),
        (Upper::Udp { .. }, false, UPPER6) => Some(&UDP6),
        (Upper::Tcp { flags, .. }, true, UPPER4) if flags & ends == 0 => Some(&TCP4),
        (Upper::Tcp { flags, .. }, false, UPPER6) if flags & ends == 0 => Some(&TCP6),
        _ => None,
    }
}
