//! A frame on its way: its front, copied once out of the sender's memory and checked there, and the rest where it lies.

use crate::chain;
use crate::net::header::{LEGACY_LENGTH, LENGTH, Offload};
use crate::net::switch::{HEADER, Tag};

/// Bytes of a VLAN tag, and of the two addresses before it.
const TAG: usize = 4;
const ADDRESSES: usize = 12;

/// Room before the front, for the virtio-net header and a tag that comes in.
const ROOM: usize = LENGTH + TAG;

/// The first bytes of a frame, with room for what goes before. Reused from frame to frame: clearing it costs more than filling it.
#[derive(Clone)]
pub struct Front {
    bytes: [u8; ROOM + HEADER],
    /// Where the frame begins and ends in `bytes`.
    begin: usize,
    end: usize,
}

impl Default for Front {
    /// Of no frame yet.
    fn default() -> Front {
        Front { bytes: [0; ROOM + HEADER], begin: ROOM, end: ROOM }
    }
}

impl Front {
    /// Take the front of a frame of `length` bytes out of `buffers`, and return the rest. Before it are `header` bytes, at most
    /// [`LENGTH`].
    pub fn take<'a>(
        &mut self,
        buffers: &'a mut [libc::iovec],
        header: usize,
        length: usize,
    ) -> &'a [libc::iovec] {
        (self.begin, self.end) = (ROOM, ROOM + length.min(HEADER));
        let begin = ROOM - header;
        chain::read_front(buffers, &mut self.bytes[begin..self.end]);
        chain::behind_front(buffers, self.end - begin)
    }

    /// The virtio-net header that was taken with the frame, of so many bytes.
    pub fn header(&self, length: usize) -> [u8; LEGACY_LENGTH] {
        self.bytes[ROOM - length..].first_chunk().copied().unwrap_or_default()
    }

    /// The bytes of the frame.
    pub fn frame(&self) -> &[u8] {
        &self.bytes[self.begin..self.end]
    }

    /// The same, to be changed.
    pub fn frame_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..self.end]
    }

    /// A copy whose VLAN tag is as `tag` says, and by how many bytes it is longer. Where the tag stays, none is needed.
    pub fn tagged(&self, tag: Tag) -> (Front, i16) {
        let mut front = self.clone();
        let (begin, by) = match tag {
            Tag::Add(_) => (self.begin - TAG, TAG as i16),
            Tag::Strip if self.end - self.begin >= ADDRESSES + TAG => (self.begin + TAG, -(TAG as i16)),
            Tag::Strip | Tag::Keep => return (front, 0),
        };
        front.bytes.copy_within(self.begin..self.begin + ADDRESSES, begin);
        front.begin = begin;
        if let Tag::Add(word) = tag {
            let [high, low] = word.to_be_bytes();
            front.bytes[begin + ADDRESSES..begin + ADDRESSES + TAG].copy_from_slice(&[0x81, 0, high, low]);
        }
        (front, by)
    }

    /// The frame's bytes with the virtio-net header before them.
    pub fn with_header(&mut self, offload: &Offload) -> &mut [u8] {
        let begin = self.begin - LENGTH;
        self.bytes[begin..self.begin].copy_from_slice(&offload.bytes(1));
        &mut self.bytes[begin..self.end]
    }
}

/// A frame that has been decided about.
pub struct Frame<'a> {
    /// Its first bytes. Only what is before them is written any more: the header of each receiver.
    pub front: &'a mut Front,
    /// What is behind them.
    pub rest: &'a [libc::iovec],
    /// Bytes of all.
    pub length: usize,
    /// What is left to be done to it.
    pub offload: Offload,
}

impl Frame<'_> {
    /// All of it as one piece, in `whole`.
    pub fn linear(&self, whole: &mut Vec<u8>) {
        whole.clear();
        whole.extend_from_slice(self.front.frame());
        let front = whole.len();
        whole.resize(front + chain::total(self.rest) as usize, 0);
        chain::read_front(self.rest, &mut whole[front..]);
    }
}

/// Copy `front`, then `rest`, into `buffers`, as far as there is room.
pub fn scatter(front: &[u8], rest: &[libc::iovec], buffers: &[libc::iovec]) {
    let mut buffers = buffers.iter().copied();
    let mut to = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let front = libc::iovec { iov_base: front.as_ptr().cast_mut().cast(), iov_len: front.len() };
    for mut from in std::iter::once(front).chain(rest.iter().copied()) {
        while from.iov_len > 0 {
            while to.iov_len == 0 {
                let Some(next) = buffers.next() else { return };
                to = next;
            }
            let part = from.iov_len.min(to.iov_len);
            // SAFETY: `part` bytes are at both: buffers are mapped guest memory (SIGBUS is handled) that nobody in this
            // process holds a reference to, and two of one guest may overlap; the front is a slice of ours.
            unsafe {
                std::ptr::copy(from.iov_base.cast::<u8>(), to.iov_base.cast::<u8>(), part);
                from.iov_base = from.iov_base.byte_add(part);
                to.iov_base = to.iov_base.byte_add(part);
            }
            from.iov_len -= part;
            to.iov_len -= part;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(bytes: &mut [u8], cuts: &[usize]) -> Vec<libc::iovec> {
        let mut pieces = Vec::new();
        let mut rest = bytes;
        for cut in cuts {
            let (piece, behind) = rest.split_at_mut((*cut).min(rest.len()));
            pieces.push(libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() });
            rest = behind;
        }
        pieces.push(libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() });
        pieces
    }

    fn front(bytes: &mut [u8]) -> Front {
        let (mut front, length) = (Front::default(), bytes.len());
        front.take(&mut pieces(bytes, &[7, 3]), 0, length);
        front
    }

    #[test]
    fn a_tag_comes_in_and_goes() {
        let mut bytes: Vec<u8> = (0..60).collect();
        let plain = front(&mut bytes);
        let (mut added, by) = plain.tagged(Tag::Add(0x2005));
        let mut expected = bytes[..12].to_vec();
        expected.extend([0x81, 0, 0x20, 5]);
        expected.extend(&bytes[12..]);
        assert_eq!((added.frame(), by), (&expected[..], 4));
        let mut header = Offload::default().bytes(1).to_vec();
        header.extend(&expected);
        assert_eq!(added.with_header(&Offload::default()), &header[..]);
        let (back, by) = added.tagged(Tag::Strip);
        assert_eq!((back.frame(), by), (&bytes[..], -4));
        assert_eq!(plain.tagged(Tag::Keep).0.frame(), &bytes[..]);
    }

    proptest! {
        #[test]
        fn every_byte_arrives_however_it_is_cut(
            from in prop::collection::vec(0_usize..300, 0..5),
            to in prop::collection::vec(0_usize..300, 0..5),
            length in 14_usize..900,
        ) {
            let mut sent: Vec<u8> = (0..length).map(|at| (at * 7 % 251) as u8).collect();
            let expected = sent.clone();
            let mut buffers = pieces(&mut sent, &from);
            let mut front = Front::default();
            let rest = front.take(&mut buffers, 0, length);
            let frame = Frame { front: &mut front, rest, length, offload: Offload::default() };
            let mut whole = Vec::new();
            frame.linear(&mut whole);
            prop_assert_eq!(&whole, &expected);
            let mut got = vec![0; LENGTH + length + 9];
            scatter(front.with_header(&Offload::default()), rest, &pieces(&mut got, &to));
            prop_assert_eq!(&got[LENGTH..LENGTH + length], &expected[..]);
            prop_assert!(got[LENGTH + length..].iter().all(|byte| *byte == 0));
        }
    }
}
