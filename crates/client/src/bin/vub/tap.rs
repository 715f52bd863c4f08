//! A machine made of a network namespace: what its kernel sends on a tap goes to a port of our plane, or to a tap of a bridge
//! beside which that is measured, and back. Offloads are passed on, so a frame is up to 64 KiB.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::path::Path;

use nagaya_client::net::HEADER;
use nagaya_client::{Net, NetOptions};
use serde_json::{Value, json};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
};

use crate::{Options, invalid};

/// Bytes of the largest frame and its header.
const LARGEST: usize = HEADER + 65535 + 18;

/// Frames that are passed on one way before the other way is looked at.
const BURST: usize = 32;

/// Pass frames on until standard input ends.
pub fn run(options: &Options) -> io::Result<Value> {
    let mut ours = tap(options, "fd")?;
    match options.text("socket") {
        Ok(path) => to_port(&mut ours, Path::new(path)),
        Err(_) => to_tap(&mut ours, &mut tap(options, "to-fd")?),
    }
}

/// A tap that was opened for us, with headers of [`HEADER`] bytes; it does not block.
fn tap(options: &Options, name: &str) -> io::Result<File> {
    let fd: RawFd =
        options.text(name)?.parse().map_err(|_| invalid(format!("--{name}: want a descriptor")))?;
    // SAFETY: whoever started us left us this descriptor, and says so.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn to_port(ours: &mut File, path: &Path) -> io::Result<Value> {
    let offloads = [
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_ECN,
    ];
    let features = offloads.iter().map(|bit| 1 << bit).sum();
    let mut net = Net::open(path, NetOptions { features, ..NetOptions::default() })?;
    let mut bytes = vec![0; LARGEST];
    let (mut sent, mut received) = (0_u64, 0_u64);
    loop {
        let mut idle = true;
        for _ in 0..BURST {
            if !net.has_room()? {
                break;
            }
            let Some(length) = read(ours, &mut bytes)? else { break };
            let (header, frame) =
                bytes[..length].split_first_chunk::<HEADER>().ok_or(ErrorKind::InvalidData)?;
            net.send_with(header, frame)?;
            (sent, idle) = (sent + 1, false);
        }
        net.kick()?;
        for _ in 0..BURST {
            let Some((header, frame)) = net.receive()? else { break };
            write(ours, &[&header[..], &frame].concat())?;
            (received, idle) = (received + 1, false);
        }
        if idle && !net.rest(ours.as_raw_fd(), io::stdin().as_raw_fd())? {
            return Ok(json!({ "sent": sent, "received": received }));
        }
    }
}

fn to_tap(ours: &mut File, theirs: &mut File) -> io::Result<Value> {
    let mut bytes = vec![0; LARGEST];
    let (mut sent, mut received) = (0_u64, 0_u64);
    loop {
        for _ in 0..BURST {
            let Some(length) = read(ours, &mut bytes)? else { break };
            write(theirs, &bytes[..length])?;
            sent += 1;
        }
        for _ in 0..BURST {
            let Some(length) = read(theirs, &mut bytes)? else { break };
            write(ours, &bytes[..length])?;
            received += 1;
        }
        let fds = [io::stdin().as_raw_fd(), ours.as_raw_fd(), theirs.as_raw_fd()];
        let mut polls = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        // SAFETY: three pollfds of ours.
        unsafe { libc::poll(polls.as_mut_ptr(), 3, -1) };
        if polls[0].revents != 0 {
            return Ok(json!({ "sent": sent, "received": received }));
        }
    }
}

fn read(tap: &mut File, bytes: &mut [u8]) -> io::Result<Option<usize>> {
    match tap.read(bytes) {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the kernel has no room for is lost, as on a cable.
fn write(tap: &mut File, bytes: &[u8]) -> io::Result<()> {
    match tap.write(bytes) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}
