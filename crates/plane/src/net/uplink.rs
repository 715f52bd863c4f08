//! The way out of a network: a tap of the host's kernel, or a stream socket to a program that is one (passt).

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use io_uring::{opcode, types};
use serde_json::Value;

use crate::config::{UplinkConfig, UplinkKind};
use crate::net::frame::Front;
use crate::net::header::{ETHERNET, LENGTH, Offload};
use crate::net::network::{Network, Networks, Sent, Takes};
use crate::net::order::Order;
use crate::net::settle;
use crate::net::stream::{Incoming, Outgoing};
use crate::net::switch::DropReason;
use crate::page::add;
use crate::uring::Uring;
use crate::worker::device::{Context, Device, Fault, IGNORED};
use crate::worker::queue::Violation;

/// Completions: the fd is readable; it takes more.
const READABLE: u16 = 0;
const WRITABLE: u16 = 1;

/// Frames that are read in a turn.
const BUDGET: usize = 64;

/// Bytes of the largest frame that a tap gives, with its header.
const LARGEST: usize = LENGTH + 65535 + ETHERNET + 8;

/// Most pieces of a frame that one writev takes (UIO_MAXIOV).
const PIECES: usize = 1024;

/// The device.
pub struct Uplink {
    config: UplinkConfig,
    file: Rc<File>,
    network: Rc<RefCell<Network>>,
    frame: Vec<u8>,
    front: Front,
    incoming: Incoming,
}

/// Where frames go that leave the network.
pub enum Way {
    /// A tap.
    Tap(Tap),
    /// A stream.
    Stream(Outgoing),
}

/// The sending half of a tap.
pub struct Tap {
    file: Rc<File>,
    /// Whether it takes UDP that is to be cut.
    udp: bool,
    pieces: Vec<libc::iovec>,
}

impl Way {
    /// What it takes on itself.
    pub fn takes(&self) -> Takes {
        match self {
            Way::Tap(tap) => Takes { checksum: true, tcp4: true, tcp6: true, ecn: true, udp: tap.udp },
            Way::Stream(_) => Takes::default(),
        }
    }

    /// Send a frame: `front` is its virtio-net header and its first bytes, `rest` what is behind.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn send(&mut self, front: &[u8], rest: &[libc::iovec]) -> Result<(), DropReason> {
        match self {
            Way::Tap(tap) => tap.send(front, rest),
            Way::Stream(outgoing) => outgoing.push(&front[LENGTH..], rest),
        }
    }

    /// Send what a stream has gathered.
    pub fn flush(&mut self, uring: &Uring) {
        if let Way::Stream(outgoing) = self {
            outgoing.flush(uring);
        }
    }
}

impl Tap {
    fn send(&mut self, front: &[u8], rest: &[libc::iovec]) -> Result<(), DropReason> {
        if rest.len() >= PIECES {
            return Err(DropReason::Malformed);
        }
        self.pieces.clear();
        self.pieces.push(libc::iovec { iov_base: front.as_ptr().cast_mut().cast(), iov_len: front.len() });
        self.pieces.extend_from_slice(rest);
        let (fd, count) = (self.file.as_raw_fd(), self.pieces.len() as libc::c_int);
        // SAFETY: the pieces are a slice of ours and mapped guest memory; where that is truncated the kernel says EFAULT.
        if unsafe { libc::writev(fd, self.pieces.as_ptr(), count) } >= 0 {
            return Ok(());
        }
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Err(DropReason::UplinkFull),
            Some(libc::EINVAL) => Err(DropReason::BadHeader),
            _ => Err(DropReason::LinkDown),
        }
    }
}

impl Uplink {
    /// The uplink of the network that the configuration names, through `file`, which does not block.
    pub fn new(config: &UplinkConfig, file: File, networks: &mut Networks) -> Uplink {
        let network = networks.of(&config.network);
        let frame = vec![0; LARGEST];
        let (file, front, incoming) = (Rc::new(file), Front::default(), Incoming::default());
        Uplink { config: config.clone(), file, network, frame, front, incoming }
    }

    /// World to network.
    fn receive(&mut self, context: &mut Context<'_>) {
        let network = self.network.clone();
        let mut network = network.borrow_mut();
        let mut more = true;
        for _ in 0..BUDGET {
            let got = match self.config.kind {
                UplinkKind::Tap => read_tap(&self.file, &mut self.frame),
                // The header before it stays that of a frame to which nothing is left to be done.
                UplinkKind::Stream => self.incoming.next(&self.file, &mut self.frame[LENGTH..]),
            };
            match got {
                Ok(Some(length)) => {
                    let segments = self.pass_on(context, &mut network, length);
                    if let Err(reason) = segments {
                        network.dropped(context.token.slot, reason, 1);
                    }
                }
                Ok(None) => {
                    self.poll(context);
                    more = false;
                    break;
                }
                Err(error) => {
                    context.tell_ended(-error.raw_os_error().unwrap_or(libc::EIO));
                    more = false;
                    break;
                }
            }
        }
        if more {
            context.uring.post(context.io(READABLE), 0);
        }
        network.publish(context.uring, &mut context.peers);
        settle::later(&mut network, context);
    }

    /// Pass on the frame of `length` bytes that was read.
    fn pass_on(
        &mut self,
        context: &mut Context<'_>,
        network: &mut Network,
        length: usize,
    ) -> Result<(), DropReason> {
        if length < ETHERNET {
            return Err(DropReason::Malformed);
        }
        let front = &mut self.front;
        let mut all = [libc::iovec { iov_base: self.frame.as_mut_ptr().cast(), iov_len: LENGTH + length }];
        let rest = front.take(&mut all, LENGTH, length);
        let (offload, segments) = Offload::parse(&front.header(LENGTH), front.frame(), length)?;
        add(&context.page.writes, 1);
        add(&context.page.written_bytes, length as u64);
        let sent = Sent { front, rest, length, offload: &offload, segments };
        // What no buffer is there for is dropped: the tap's queue is behind it, with the frames for all others.
        network.send(context.now, (context.token.slot, None), &mut context.peers, sent);
        Ok(())
    }

    fn poll(&self, context: &Context<'_>) {
        let fd = types::Fd(self.file.as_raw_fd());
        let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        // SAFETY: names no memory; the file is open until the device goes, after the next submission.
        unsafe { context.uring.push(poll.user_data(context.io(READABLE))) };
    }
}

/// Read a frame and its header; the length of the frame, or `None` if there is none.
fn read_tap(file: &File, frame: &mut [u8]) -> io::Result<Option<usize>> {
    match (&*file).read(frame) {
        Ok(length) => Ok(Some(length.saturating_sub(LENGTH))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

impl Device for Uplink {
    fn opened(&mut self, context: &mut Context<'_>) {
        let file = self.file.clone();
        let way = match self.config.kind {
            UplinkKind::Tap => Way::Tap(Tap { file, udp: self.config.uso, pieces: Vec::new() }),
            UplinkKind::Stream => Way::Stream(Outgoing::new(file, context.io(WRITABLE))),
        };
        let mut network = self.network.borrow_mut();
        network.set_rate(context.now, self.config.rate);
        let added = network.add_uplink(context.token.slot, way, &self.config.addresses, context.page);
        network.switch.set_name(context.token.slot.into(), &self.config.id);
        if let Some(port) = &self.config.port {
            network.switch.set_owner(context.token.slot.into(), port);
        }
        drop(network);
        if let Err(reason) = added {
            eprintln!("plane worker: {}: {reason}", self.config.id);
        }
        self.poll(context);
    }

    /// An uplink has no queues.
    fn serve(&mut self, _context: &mut Context<'_>, _index: u16) -> Result<bool, Violation> {
        Ok(false)
    }

    fn complete(&mut self, context: &mut Context<'_>, value: u16, _result: i32) -> Result<(), Fault> {
        match value {
            READABLE => self.receive(context),
            WRITABLE => {
                if let Some(Way::Stream(outgoing)) = self.network.borrow_mut().way(context.token.slot) {
                    outgoing.writable(context.uring);
                }
            }
            _ => settle::now(&mut self.network.borrow_mut(), context, value),
        }
        Ok(())
    }

    fn order(&mut self, context: &mut Context<'_>, order: Order, fd: Option<OwnedFd>) -> Value {
        let time = (context.now, context.uring);
        self.network.borrow_mut().obey(time, context.token.slot, order, fd)
    }

    fn closing(&mut self, context: &mut Context<'_>) {
        let (mut network, slot) = (self.network.borrow_mut(), context.token.slot);
        network.remove(context.now, slot);
        if self.config.port.is_none() {
            network.set_rate(context.now, None);
        }
        network.retry(None, &mut context.peers, (slot, context.wake));
        for value in [READABLE, WRITABLE] {
            let cancel = opcode::AsyncCancel::new(context.io(value)).build();
            // SAFETY: names no memory.
            unsafe { context.uring.push(cancel.user_data(IGNORED.pack())) };
        }
    }
}
