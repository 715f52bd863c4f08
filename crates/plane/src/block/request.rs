//! Parsing of virtio-blk requests (virtio 1.3, 5.2.6): once, from a copy of the header.

use crate::block::{Operation, SECTOR};
use crate::chain::{Buffers, take_front, take_last_byte, total};

/// VIRTIO_BLK_T_*: 5.2.6.
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Status byte of an answer (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Failed, or out of bounds.
    IoError = 1,
    /// Not a request that the device knows.
    Unsupported = 2,
}

/// Bound of one discard or write-zeroes, in sectors (`max_discard_sectors`): 2 GiB, so that one request does not
/// keep a thread of the kernel busy for long.
pub const MAX_ZERO_SECTORS: u32 = 4 << 20;

/// Bound of one transfer, in bytes. The kernel moves less than 2 GiB in one call; Linux asks for 1.25 MiB at most,
/// firmware for as much as a file has.
const MAX_TRANSFER: u64 = 1 << 30;

/// The only flag of a write-zeroes segment (5.2.6: `unmap`).
const FLAG_UNMAP: u32 = 1;

/// A request of the guest. The buffers hold what is left: the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// For the disk.
    Disk {
        /// What to do.
        operation: Operation,
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u64,
    },
    /// The serial number is wanted.
    GetId,
    /// To be answered at once.
    Refused(Status),
}

/// A chain that cannot even be answered: no header, or no place for a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswerable(pub &'static str);

/// Parse the request in `buffers`, for a disk of `size` bytes. Returns it and where its status goes.
///
/// # Errors
/// If there is no header or no status byte.
pub fn parse(buffers: &mut Buffers, size: u64, read_only: bool) -> Result<(Parsed, *mut u8), Unanswerable> {
    let header = take_front::<16>(&mut buffers.readable).ok_or(Unanswerable("a request without a header"))?;
    let status =
        take_last_byte(&mut buffers.writable).ok_or(Unanswerable("a request without a status byte"))?;
    let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let mut sector = [0; 8];
    sector.copy_from_slice(&header[8..]);
    let sector = u64::from_le_bytes(sector);
    let parsed = match kind {
        kind::IN => transfer(Operation::Read, sector, total(&buffers.writable), size),
        kind::OUT | kind::DISCARD | kind::WRITE_ZEROES if read_only => Parsed::Refused(Status::IoError),
        kind::OUT => transfer(Operation::Write, sector, total(&buffers.readable), size),
        kind::FLUSH => Parsed::Disk { operation: Operation::Flush, offset: 0, length: 0 },
        kind::GET_ID => Parsed::GetId,
        kind::DISCARD => zero(buffers, false, size),
        kind::WRITE_ZEROES => zero(buffers, true, size),
        _ => Parsed::Refused(Status::Unsupported),
    };
    Ok((parsed, status))
}

fn transfer(operation: Operation, sector: u64, length: u64, size: u64) -> Parsed {
    // Nothing to move is no request that a driver makes; half a sector is forbidden (5.2.6.1).
    if length == 0 || length > MAX_TRANSFER || !length.is_multiple_of(SECTOR) {
        return Parsed::Refused(Status::IoError);
    }
    range(operation, sector, length, size)
}

/// The range must be inside the disk; the sum is checked, for guests may pick numbers that wrap.
fn range(operation: Operation, sector: u64, length: u64, size: u64) -> Parsed {
    let offset = sector.checked_mul(SECTOR);
    match offset.and_then(|offset| offset.checked_add(length)) {
        Some(end) if end <= size => Parsed::Disk { operation, offset: end - length, length },
        _ => Parsed::Refused(Status::IoError),
    }
}

/// One segment of 16 bytes: we advertise `max_discard_seg` and `max_write_zeroes_seg` 1.
fn zero(buffers: &mut Buffers, write: bool, size: u64) -> Parsed {
    if total(&buffers.readable) != 16 {
        return Parsed::Refused(Status::Unsupported);
    }
    let Some(segment) = take_front::<16>(&mut buffers.readable) else {
        return Parsed::Refused(Status::Unsupported);
    };
    let word =
        |at: usize| u32::from_le_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]]);
    let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
    let (sectors, flags) = (word(8), word(12));
    // Unknown flags, and unmap in a discard, are unsupported (5.2.6.2).
    if flags & !FLAG_UNMAP != 0 || (!write && flags != 0) {
        return Parsed::Refused(Status::Unsupported);
    }
    if sectors == 0 || sectors > MAX_ZERO_SECTORS {
        return Parsed::Refused(Status::IoError);
    }
    let operation =
        if write { Operation::WriteZeroes { unmap: flags & FLAG_UNMAP != 0 } } else { Operation::Discard };
    range(operation, sector, u64::from(sectors) * SECTOR, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: u64 = 1 << 20;

    fn iovec(bytes: &mut [u8]) -> libc::iovec {
        libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
    }

    fn header(kind: u32, sector: u64) -> Vec<u8> {
        let mut header = Vec::from(kind.to_le_bytes());
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        header
    }

    /// Parse a request with `data` bytes to read and `space` bytes to write, the header in pieces of `piece` bytes.
    fn request(header: &[u8], piece: usize, data: usize, space: usize) -> Result<Parsed, Unanswerable> {
        let (mut header, mut data, mut space) = (header.to_vec(), vec![0; data], vec![0; space + 1]);
        let mut buffers = Buffers::default();
        buffers.readable.extend(header.chunks_mut(piece).map(iovec));
        buffers.readable.push(iovec(&mut data));
        buffers.readable.retain(|buffer| buffer.iov_len > 0);
        buffers.writable.push(iovec(&mut space));
        let (parsed, status) = parse(&mut buffers, DISK, false)?;
        assert_eq!(
            status.cast_const(),
            space.as_ptr().wrapping_add(space.len() - 1),
            "the status is the last byte"
        );
        Ok(parsed)
    }

    fn disk(operation: Operation, offset: u64, length: u64) -> Result<Parsed, Unanswerable> {
        Ok(Parsed::Disk { operation, offset, length })
    }

    const FAILED: Result<Parsed, Unanswerable> = Ok(Parsed::Refused(Status::IoError));
    const UNSUPPORTED: Result<Parsed, Unanswerable> = Ok(Parsed::Refused(Status::Unsupported));

    #[test]
    fn requests_are_told_apart_however_the_header_is_split() {
        for piece in [16, 7, 1] {
            assert_eq!(request(&header(kind::IN, 8), piece, 0, 4096), disk(Operation::Read, 4096, 4096));
            assert_eq!(request(&header(kind::OUT, 1), piece, 512, 0), disk(Operation::Write, 512, 512));
            assert_eq!(request(&header(kind::FLUSH, 0), piece, 0, 0), disk(Operation::Flush, 0, 0));
            assert_eq!(request(&header(kind::GET_ID, 0), piece, 0, 20), Ok(Parsed::GetId));
            assert_eq!(request(&header(99, 0), piece, 0, 0), UNSUPPORTED);
        }
    }

    #[test]
    fn ranges_outside_the_disk_are_refused_also_when_they_wrap() {
        let last = DISK / SECTOR - 1;
        assert_eq!(request(&header(kind::IN, last), 16, 0, 512), disk(Operation::Read, DISK - 512, 512));
        for sector in [last + 1, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1] {
            assert_eq!(request(&header(kind::IN, sector), 16, 0, 512), FAILED);
        }
        assert_eq!(request(&header(kind::IN, last), 16, 0, 1024), FAILED);
        assert_eq!(request(&header(kind::OUT, 0), 16, 100, 0), FAILED, "half a sector");
        assert_eq!(request(&header(kind::OUT, 0), 16, 0, 0), FAILED, "nothing");
    }

    #[test]
    fn what_has_no_header_or_status_cannot_be_answered() {
        assert!(request(&[0; 15], 16, 0, 512).is_err());
        let mut header = header(kind::FLUSH, 0);
        let mut buffers = Buffers::default();
        buffers.readable.push(iovec(&mut header));
        assert!(parse(&mut buffers, DISK, false).is_err());
    }

    #[test]
    fn a_read_only_disk_is_only_read() {
        for (kind, refused) in
            [(kind::OUT, true), (kind::DISCARD, true), (kind::WRITE_ZEROES, true), (kind::IN, false)]
        {
            let (mut header, mut space) = (header(kind, 0), vec![0; 513]);
            let mut buffers = Buffers::default();
            buffers.readable.push(iovec(&mut header));
            buffers.writable.push(iovec(&mut space));
            let (parsed, _) = parse(&mut buffers, DISK, true).unwrap();
            assert_eq!(parsed == Parsed::Refused(Status::IoError), refused);
        }
    }

    #[test]
    fn discards_and_zeroes_have_one_segment_with_known_flags() {
        let zero = |kind, sectors: u32, flags: u32| {
            let mut bytes = header(kind, 0);
            bytes.extend(2u64.to_le_bytes());
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            request(&bytes, 16, 0, 0)
        };
        assert_eq!(zero(kind::DISCARD, 3, 0), disk(Operation::Discard, 1024, 1536));
        assert_eq!(zero(kind::WRITE_ZEROES, 3, 1), disk(Operation::WriteZeroes { unmap: true }, 1024, 1536));
        assert_eq!(zero(kind::DISCARD, 3, 1), UNSUPPORTED);
        assert_eq!(zero(kind::WRITE_ZEROES, 3, 2), UNSUPPORTED);
        assert_eq!(zero(kind::DISCARD, 0, 0), FAILED);
        assert_eq!(zero(kind::DISCARD, MAX_ZERO_SECTORS + 1, 0), FAILED);
        assert_eq!(request(&header(kind::DISCARD, 0), 16, 8, 0), UNSUPPORTED);
    }
}
