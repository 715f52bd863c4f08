//! A guest's whole memory is the input: the rings of both directions, tables, headers, frames, buffers. What it sends goes
//! through the switch as in a worker, and back into its own receive buffers, whole, completed and cut.
#![no_main]

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::rc::Rc;

use libfuzzer_sys::fuzz_target;
use nagaya_plane::chain::{self, Buffers};
use nagaya_plane::control::{QueueSetup, Region};
use nagaya_plane::inflight::region_size;
use nagaya_plane::memory::Memory;
use nagaya_plane::net::frame::{Frame, Front};
use nagaya_plane::net::header::{ETHERNET, Offload};
use nagaya_plane::net::receive::{Receiver, header_length};
use nagaya_plane::net::segment;
use nagaya_plane::net::switch::{Ip, PortKind, Rules, Switch};
use nagaya_plane::worker::queue::{Violation, VirtQueue};

const SIZE: u16 = 16;
const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];

/// Two regions that touch, and one behind a hole.
const REGIONS: [u64; 3] = [0, 0x1000, 0x4000];
const REGION: u64 = 0x1000;

/// Of the first: where the rings are, transmit and receive, and in each the table, the available and the used ring.
const RINGS: [u64; 2] = [0, 0x300];

/// Features that a driver takes or not, by bits of the first byte: VERSION_1, EVENT_IDX, MRG_RXBUF.
const FEATURES: [u32; 3] = [32, 29, 15];

struct Scene {
    memory: Rc<Memory>,
    region: File,
    switch: Switch,
    whole: Vec<u8>,
    segment: Vec<u8>,
}

thread_local! {
    static SCENE: std::cell::RefCell<Scene> = std::cell::RefCell::new(scene());
}

fn memfd(length: u64) -> File {
    // SAFETY: the name is a C string; the fd is new and ours.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(length).expect("length");
    file
}

fn scene() -> Scene {
    let file = memfd(REGION * REGIONS.len() as u64);
    let regions = REGIONS.iter().zip(0..).map(|(guest, number)| Region {
        guest: *guest,
        size: REGION,
        user: *guest,
        offset: REGION * number,
    });
    let fds = REGIONS.map(|_| file.try_clone().expect("fd").into());
    let memory = Memory::map(&regions.collect::<Vec<_>>(), fds.into()).expect("memory");
    let mut switch = Switch::new();
    for (port, mac) in [(0, MAC), (1, OTHER)] {
        switch.add_port(port, PortKind::Guest, Some(mac), Rules::default()).expect("a port");
    }
    Scene {
        memory: Rc::new(memory),
        region: memfd(region_size(SIZE)),
        switch,
        whole: Vec::new(),
        segment: Vec::new(),
    }
}

impl Scene {
    fn write(&self, address: u64, bytes: &[u8]) {
        let at = self.memory.slice(address, bytes.len()).expect("inside");
        // SAFETY: so many bytes are mapped there, and nobody has a reference to them.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
    }

    fn queue(&self, index: u16, features: u64) -> VirtQueue {
        let rings = RINGS[usize::from(index)];
        // Where the device is in its own ring, a driver cannot say.
        self.write(rings + 0x202, &[0, 0]);
        let setup = QueueSetup {
            index,
            size: SIZE,
            desc: rings,
            avail: rings + 0x100,
            used: rings + 0x200,
            base: 0,
            features,
            inflight_offset: 0,
            call: false,
            err: false,
        };
        let fds: Vec<OwnedFd> = (0..2).map(|_| self.region.try_clone().expect("fd").into()).collect();
        VirtQueue::start(&setup, self.memory.clone(), fds, 0).expect("a queue")
    }

    /// Send one frame as `Net` does, and receive what it becomes.
    fn pass(&mut self, buffers: &mut Buffers, receive: &mut VirtQueue) -> Result<(), Violation> {
        buffers.readable.iter().chain(&buffers.writable).for_each(|buffer| self.inside(buffer));
        let buffers = &mut buffers.readable;
        let header_length = header_length(receive.features);
        let Some(length) = (chain::total(buffers) as usize).checked_sub(header_length) else { return Ok(()) };
        if !(ETHERNET..=0x1_0000).contains(&length) {
            return Ok(());
        }
        let mut front = Front::default();
        let rest = front.take(buffers, header_length, length);
        let header = front.header(header_length);
        let Ok((offload, segments)) = Offload::parse(&header, front.frame(), length) else { return Ok(()) };
        let mut out = Vec::new();
        let Ok(verdict) = self.switch.decide(0, 0, front.frame_mut(), length, segments, &mut out) else {
            return Ok(());
        };
        assert!(out.iter().all(|delivery| delivery.port == 1), "{out:?}");
        if !offload.fits(verdict.ip) {
            return Ok(());
        }
        let mut receiver = Receiver::default();
        receiver.put(receive, front.with_header(&offload), rest)?;
        let frame = Frame { front: &mut front, rest, length, offload };
        frame.linear(&mut self.whole);
        assert_eq!(self.whole.len(), length);
        self.finish(receive, &mut receiver, (offload, segments), verdict.ip)
    }

    /// Do what is left to be done to the frame for a receiver that takes nothing on itself.
    fn finish(
        &mut self,
        receive: &mut VirtQueue,
        receiver: &mut Receiver,
        (offload, segments): (Offload, u32),
        ip: Option<Ip>,
    ) -> Result<(), Violation> {
        let Some(checksum) = offload.checksum else { return Ok(()) };
        let checked = ip.expect("of an IP packet").upper;
        let before = self.whole.clone();
        let Some(cut) = offload.segmentation else {
            segment::complete(&mut self.whole, checksum);
            assert_eq!(self.whole[..checked], before[..checked], "what the switch has looked at");
            return put(receive, receiver, &mut self.whole);
        };
        let (headers, size) = (usize::from(cut.headers), usize::from(cut.size));
        let (mut count, mut payload, mut done) = (0, Vec::new(), Ok(()));
        segment::cut(&before, (checksum, cut), &mut self.segment, |one| {
            assert!(one.len() > headers && one.len() <= headers + size);
            assert_eq!(one[..12], before[..12], "the addresses");
            payload.extend_from_slice(&one[headers..]);
            count += 1;
            done = put(receive, receiver, one);
            done.is_ok()
        });
        if done.is_ok() && count > 0 {
            assert_eq!((count, &payload[..]), (segments, &before[headers..]));
        }
        done
    }

    /// Fail unless the buffer lies in one region of guest memory.
    fn inside(&self, buffer: &libc::iovec) {
        let (start, length) = (buffer.iov_base as usize, buffer.iov_len);
        let found = REGIONS.iter().any(|region| {
            let base = self.memory.slice(*region, REGION as usize).expect("a region") as usize;
            start >= base && start + length <= base + REGION as usize
        });
        assert!(found && length > 0, "{length} bytes at {start:#x} are not in guest memory");
    }
}

/// Give a frame that is in one piece to the guest.
fn put(receive: &mut VirtQueue, receiver: &mut Receiver, bytes: &mut [u8]) -> Result<(), Violation> {
    let mut all = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
    let mut front = Front::default();
    let rest = front.take(&mut all, 0, bytes.len());
    receiver.put(receive, front.with_header(&Offload::default()), rest).map(|_| ())
}

fuzz_target!(|bytes: &[u8]| {
    let Some((options, image)) = bytes.split_first() else { return };
    SCENE.with_borrow_mut(|scene| {
        let mut whole = [0; REGION as usize];
        let length = image.len().min(whole.len());
        whole[..length].copy_from_slice(&image[..length]);
        scene.write(0, &whole);
        let taken = FEATURES.iter().enumerate().filter(|(bit, _)| options & 1 << bit != 0);
        let features = taken.fold(0, |all, (_, bit)| all | 1 << bit);
        let (mut transmit, mut receive) = (scene.queue(0, features), scene.queue(1, features));
        let mut buffers = Buffers::default();
        for _ in 0..SIZE {
            let Ok(Some(head)) = transmit.take_in_order(&mut buffers) else { break };
            let passed = scene.pass(&mut buffers, &mut receive);
            transmit.stage(head, 0);
            if passed.is_err() {
                break;
            }
        }
        receive.publish();
        transmit.publish();
    });
});
