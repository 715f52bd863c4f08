//! A request cut into buffers anywhere must parse as the same request in one piece.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nagaya_plane::block::request::parse;
use nagaya_plane::chain::{Buffers, total};

fuzz_target!(|bytes: &[u8]| {
    // Size of the disk, read-only, bytes readable and writable, then the cuts, then the bytes themselves.
    let Some((head, rest)) = bytes.split_first_chunk::<8>() else { return };
    let size = u64::from(u16::from_le_bytes([head[0], head[1]])) * 512;
    let read_only = head[2] & 1 == 1;
    let (cuts, body) = rest.split_at(rest.len().min(usize::from(head[3] % 16)));
    let mut readable = body.to_vec();
    let mut writable = vec![0; usize::from(u16::from_le_bytes([head[4], head[5]]))];

    let mut whole = Buffers { readable: pieces(&mut readable, &[]), writable: pieces(&mut writable, &[]) };
    let mut cut = Buffers { readable: pieces(&mut readable, cuts), writable: pieces(&mut writable, cuts) };
    let one = parse(&mut whole, size, read_only);
    let many = parse(&mut cut, size, read_only);
    assert_eq!(one, many);
    if one.is_ok() {
        // The status byte is the last writable one, and what is left is what the request moves.
        assert_eq!(total(&whole.writable), total(&cut.writable));
        assert_eq!(total(&whole.readable), total(&cut.readable));
        assert!(cut.readable.iter().chain(&cut.writable).all(|buffer| buffer.iov_len > 0));
    }
});

/// The bytes as buffers, cut at the given distances.
fn pieces(bytes: &mut [u8], cuts: &[u8]) -> Vec<libc::iovec> {
    let mut buffers = Vec::new();
    let mut rest = bytes;
    for cut in cuts {
        let at = usize::from(*cut).clamp(1, rest.len().max(1));
        if at >= rest.len() {
            break;
        }
        let (front, back) = rest.split_at_mut(at);
        buffers.push(libc::iovec { iov_base: front.as_mut_ptr().cast(), iov_len: front.len() });
        rest = back;
    }
    if !rest.is_empty() {
        buffers.push(libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() });
    }
    buffers
}
