//! Giving a guest's pages back to the host.

use std::io;

use super::{MAX_PAGES, PAGE};
use crate::chain;
use crate::memory::Memory;
use crate::worker::queue::Violation;

/// What was given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Bytes, also such as the host had already.
    pub bytes: u64,
    /// Pieces that they were in.
    pub pieces: u64,
    /// Pieces that the host's file system keeps.
    pub errors: u64,
}

/// Pages by number, as a guest names them. Reused from chain to chain.
#[derive(Default)]
pub struct Pages {
    bytes: Vec<u8>,
    /// In order, each once.
    numbers: Vec<u32>,
}

impl Pages {
    /// The pages that a chain names, 32 bits each (5.5.6).
    ///
    /// # Errors
    /// More of them than one chain may name.
    pub fn read(&mut self, readable: &[libc::iovec]) -> Result<&Pages, Violation> {
        let length = chain::total(readable);
        if length > 4 * MAX_PAGES {
            let detail = format!("a chain of {length} bytes names more than {MAX_PAGES} pages");
            return Err(Violation::new("balloon-pages", detail));
        }
        self.bytes.resize(length as usize, 0);
        chain::read_front(readable, &mut self.bytes);
        let words = self.bytes.chunks_exact(4);
        self.numbers.clear();
        self.numbers.extend(words.map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])));
        self.numbers.sort_unstable();
        self.numbers.dedup();
        Ok(self)
    }

    /// First page and number of pages of each run of neighbours.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> {
        // A run ends where the next number is not the next page.
        self.numbers
            .chunk_by(|one, next| one.wrapping_add(1) == *next)
            .map(|run| (run[0].into(), run.len() as u64))
    }

    /// Give all of them back to the host; nothing if one is not the guest's.
    ///
    /// # Errors
    /// Which one.
    pub fn discard(&self, memory: &Memory) -> Result<Given, Violation> {
        let mut ranges = Vec::new();
        for (first, count) in self.runs() {
            let (mut address, mut left) = (first * PAGE, count * PAGE);
            while left > 0 {
                let (host, length) = memory.piece(address, left as usize).ok_or_else(|| {
                    let detail = format!("the page at {address:#x} is not in guest memory");
                    Violation::new("balloon-page", detail)
                })?;
                ranges.push(libc::iovec { iov_base: host.cast(), iov_len: length });
                (address, left) = (address + length as u64, left - length as u64);
            }
        }
        Ok(discard_buffers(&ranges, memory.page_size()))
    }
}

/// Give the whole pages of `page_size` in `ranges` of guest memory back to the host.
pub fn discard_buffers(ranges: &[libc::iovec], page_size: usize) -> Given {
    let mut given = Given::default();
    for range in ranges {
        given.pieces += 1;
        let Some((start, length)) = whole_pages(range.iov_base.addr(), range.iov_len, page_size) else {
            continue;
        };
        match remove(range.iov_base.with_addr(start), length) {
            Ok(()) => given.bytes += length as u64,
            Err(_) => given.errors += 1,
        }
    }
    given
}

/// Punch a hole into the file behind `length` bytes at `start`.
fn remove(start: *mut libc::c_void, length: usize) -> io::Result<()> {
    // SAFETY: guest memory that this process has mapped, shared, and that it holds no references to. Where it has been lost
    // to truncation, other memory is mapped, of which the kernel says EINVAL.
    if unsafe { libc::madvise(start, length, libc::MADV_REMOVE) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The part of `length` bytes at `start` that is whole pages.
fn whole_pages(start: usize, length: usize, page_size: usize) -> Option<(usize, usize)> {
    let end = start.checked_add(length)? / page_size * page_size;
    let start = start.checked_next_multiple_of(page_size)?;
    (start < end).then(|| (start, end - start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Region;
    use crate::page::sealed_memfd;
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    use vm_memory::{Bytes, GuestAddress};

    /// Pages of a guest with 64 of them in one region, and 64 in another right behind.
    const REGION: u64 = 64;
    const FIRST: u64 = 16;

    struct Guest {
        memory: Memory,
        files: [File; 2],
    }

    impl Guest {
        /// All pages are there, and say who they are.
        fn new() -> Guest {
            let files = [0, 1].map(|_| sealed_memfd(c"guest", REGION * PAGE).unwrap());
            let region = |index| {
                let guest = (FIRST + index * REGION) * PAGE;
                Region { guest, size: REGION * PAGE, user: guest, offset: 0 }
            };
            let fds = files.iter().map(|file| file.as_fd().try_clone_to_owned().unwrap()).collect();
            let memory = Memory::map(&[region(0), region(1)], fds).unwrap();
            for page in FIRST..FIRST + 2 * REGION {
                memory.guest().write_obj(page, GuestAddress(page * PAGE)).unwrap();
            }
            Guest { memory, files }
        }

        fn held(&self) -> u64 {
            self.files.iter().map(|file| file.metadata().unwrap().blocks() * 512).sum()
        }

        fn discard(&self, numbers: &[u32]) -> Result<Given, Violation> {
            let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            let buffer = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            Pages::default().read(&[buffer])?.discard(&self.memory)
        }
    }

    #[test]
    fn what_is_given_back_is_the_hosts() {
        let guest = Guest::new();
        assert_eq!(guest.held(), 2 * REGION * PAGE);
        // Over the border of the regions, in any order, some twice.
        let given = guest.discard(&[81, 80, 79, 78, 80, 79, 20]).unwrap();
        assert_eq!(given, Given { bytes: 5 * PAGE, pieces: 3, errors: 0 });
        assert_eq!(guest.held(), (2 * REGION - 5) * PAGE);
        assert_eq!(guest.memory.guest().read_obj::<u64>(GuestAddress(80 * PAGE)).unwrap(), 0);
        assert_eq!(guest.memory.guest().read_obj::<u64>(GuestAddress(82 * PAGE)).unwrap(), 82);
    }

    #[test]
    fn pages_elsewhere_are_refused_and_nothing_happens() {
        let guest = Guest::new();
        for wrong in [0, 15, 144, u32::MAX] {
            assert_eq!(guest.discard(&[20, wrong]).unwrap_err().kind, "balloon-page");
        }
        assert_eq!(guest.held(), 2 * REGION * PAGE);
        let many = vec![20; MAX_PAGES as usize + 1];
        assert_eq!(guest.discard(&many).unwrap_err().kind, "balloon-pages");
    }

    #[test]
    fn of_larger_pages_only_whole_ones_go() {
        assert_eq!(whole_pages(0x1000, 0x3000, 0x1000), Some((0x1000, 0x3000)));
        assert_eq!(whole_pages(0x1000, 0x4000, 0x2000), Some((0x2000, 0x2000)));
        assert_eq!(whole_pages(0x1000, 0x2000, 0x2000), None);
        assert_eq!(whole_pages(0x1001, 0xfff, 0x1000), None);
        assert_eq!(whole_pages(usize::MAX - 5, 10, 0x1000), None);
        assert_eq!(whole_pages(usize::MAX - 5, 5, 0x1000), None);
    }

    proptest! {
        #[test]
        fn runs_are_the_pages_that_were_named(
            numbers in prop::collection::vec(prop_oneof![4 => 0_u32..40, 1 => u32::MAX - 2..=u32::MAX], 0..60),
        ) {
            let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            let (front, back) = bytes.split_at_mut(numbers.len() * 2);
            let buffers = [front, back].map(|part| {
                libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() }
            });
            let mut pages = Pages::default();
            let runs: Vec<_> = pages.read(&buffers).unwrap().runs().collect();
            let all: Vec<u64> = runs.iter().flat_map(|(first, count)| *first..first + count).collect();
            let mut named: Vec<u64> = numbers.into_iter().map(u64::from).collect();
            named.sort_unstable();
            named.dedup();
            prop_assert_eq!(all, named);
            prop_assert!(runs.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0), "{:?}", runs);
        }
    }
}
