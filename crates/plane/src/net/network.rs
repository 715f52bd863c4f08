//! A network in its worker: the switch, and the way of a frame from a port to others.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::sync::atomic::Ordering::Relaxed;

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
};

use crate::clock::Nanos;
use crate::net::capture::Capture;
use crate::net::delay::Delayed;
use crate::net::frame::{Frame, Front};
use crate::net::header::Offload;
use crate::net::patience::Patience;
use crate::net::receive::{Put, Receiver};
use crate::net::segment;
use crate::net::switch::{Delivery, DropReason, PortId, PortKind, Rules, Switch, Tag};
use crate::net::traffic::Traffic;
use crate::net::uplink::Way;
use crate::page::{DevicePage, add};
use crate::shares::{ShareNode, Shares};
use crate::uring::Uring;
use crate::worker::device::Peers;
use crate::worker::queue::VirtQueue;

mod holding;
mod observe;
mod passage;
mod takes;

use holding::Decided;
pub use takes::Takes;
use takes::Todo;

/// So long after a large frame there are others, ns.
const BULK: Nanos = 1_000_000;

/// The networks of a worker, by name. One lasts as long as a device of it.
#[derive(Default)]
pub struct Networks {
    networks: HashMap<String, Weak<RefCell<Network>>>,
    /// What was said of how they are shared, for those to come.
    shares: Shares,
}

impl Networks {
    /// The network of this name.
    pub fn of(&mut self, name: &str) -> Rc<RefCell<Network>> {
        if let Some(network) = self.networks.get(name).and_then(Weak::upgrade) {
            return network;
        }
        self.networks.retain(|_, network| network.strong_count() > 0);
        let mut network = Network::default();
        let nodes: Vec<ShareNode> = self.shares.nodes().cloned().collect();
        network.set_shares(0, &nodes);
        let network = Rc::new(RefCell::new(network));
        self.networks.insert(name.to_owned(), Rc::downgrade(&network));
        network
    }

    /// Share all of them by `nodes` from now on.
    pub fn set_shares(&mut self, now: Nanos, nodes: &[ShareNode]) {
        if let Err(error) = self.shares.set(nodes) {
            // The holder has checked them.
            return eprintln!("plane worker: shares: {error}");
        }
        for network in self.all() {
            network.borrow_mut().set_shares(now, nodes);
        }
    }

    /// Those that there are.
    pub fn all(&self) -> impl Iterator<Item = Rc<RefCell<Network>>> + '_ {
        self.networks.values().filter_map(Weak::upgrade)
    }
}

/// A frame that a port sends, before the switch has seen it.
pub struct Sent<'a> {
    /// Its first bytes.
    pub front: &'a mut Front,
    /// What is behind them.
    pub rest: &'a [libc::iovec],
    /// Bytes of all.
    pub length: usize,
    /// What is left to be done to it.
    pub offload: &'a Offload,
    /// Frames on the wire.
    pub segments: u32,
}

/// A network.
#[derive(Default)]
pub struct Network {
    /// Who may talk to whom.
    pub switch: Switch,
    /// By place in the reactor's table, which is the number of the port in the switch too.
    ports: Vec<Option<Port>>,
    /// Whose turn it is.
    traffic: Traffic,
    /// Frames that are late on purpose.
    delayed: Delayed,
    /// Who looks at frames, by place.
    captures: Vec<(u16, Capture)>,
    out: Vec<Delivery>,
    /// Receive queues with frames that their guests are not shown yet.
    staged: Vec<(u16, u16)>,
    /// Guests without a buffer, and the transmit queues that wait for them.
    held: Vec<(u16, (u16, u16))>,
    /// Their frames.
    decided: Vec<Decided>,
    /// A timeout is under way after which they try again in any case.
    pub ticking: bool,
    /// Something was sent by an uplink.
    unflushed: bool,
    /// When a frame passed last that is several on the wire, and whether that was a moment ago: then CPUs have better to do
    /// than to wait for answers.
    bulk_at: Nanos,
    is_bulk: bool,
    /// A timeout is under way after which drops are noted.
    pub settling: bool,
    receiver: Receiver,
    /// A frame in one piece, and a segment of it.
    whole: Vec<u8>,
    segment: Vec<u8>,
}

enum Port {
    Guest { link: bool, drops: [u64; DropReason::ALL.len()], patience: Patience },
    Uplink { way: Way, drops: [u64; DropReason::ALL.len()] },
}

impl Network {
    /// A guest's port comes, or comes again.
    ///
    /// # Errors
    /// What is wrong with its rules.
    pub fn add_guest(
        &mut self,
        slot: u16,
        mac: [u8; 6],
        (rules, link): (&Rules, bool),
        page: &DevicePage,
    ) -> Result<(), String> {
        self.switch.add_port(slot.into(), PortKind::Guest, Some(mac), rules.clone())?;
        self.place(slot, Port::Guest { link, drops: counted(page), patience: Patience::default() });
        Ok(())
    }

    /// An uplink comes, which answers for `addresses`; those of one that is for all need not be known.
    ///
    /// # Errors
    /// If it is there already.
    pub fn add_uplink(
        &mut self,
        slot: u16,
        way: Way,
        addresses: &[IpAddr],
        page: &DevicePage,
    ) -> Result<(), String> {
        let rules = Rules { addresses: addresses.to_vec(), ..Rules::uplink() };
        self.switch.add_port(slot.into(), PortKind::Uplink, None, rules)?;
        self.place(slot, Port::Uplink { way, drops: counted(page) });
        Ok(())
    }

    /// A port goes.
    pub fn remove(&mut self, now: Nanos, slot: u16) -> Option<Way> {
        self.traffic.leave(now, slot.into());
        self.switch.remove_port(slot.into());
        self.decided.retain(|decided| decided.from.0 != slot);
        self.end_capture(slot);
        // It may be this port's timeout that is under way.
        (self.settling, self.ticking) = (false, false);
        match self.ports.get_mut(usize::from(slot))?.take()? {
            Port::Uplink { way, .. } => Some(way),
            Port::Guest { .. } => None,
        }
    }

    fn place(&mut self, slot: u16, port: Port) {
        let place = usize::from(slot);
        if self.ports.len() <= place {
            self.ports.resize_with(place + 1, || None);
        }
        self.ports[place] = Some(port);
    }

    /// The way out that `slot` is.
    pub fn way(&mut self, slot: u16) -> Option<&mut Way> {
        match self.ports.get_mut(usize::from(slot))? {
            Some(Port::Uplink { way, .. }) => Some(way),
            _ => None,
        }
    }

    /// Whether the cable of the guest at `slot` is in.
    pub fn has_link(&self, slot: u16) -> bool {
        matches!(
            self.ports.get(usize::from(slot)),
            Some(Some(Port::Guest { link: true, .. } | Port::Uplink { .. }))
        )
    }

    /// Count `frames` that a port sent, or should have got, and that went nowhere.
    pub fn dropped(&mut self, slot: u16, reason: DropReason, frames: u32) {
        self.switch.count(slot.into(), reason, frames);
    }

    /// Where a frame goes that the port at `from` sends; the receivers see it after [`publish`](Self::publish). False if the
    /// sender is to try again when [`retry`](Self::retry) wakes its queue, the second of `from`, because the only receiver has no
    /// buffers now. Without such a queue the frame is dropped then.
    pub fn send(
        &mut self,
        now: Nanos,
        (from, held): (u16, Option<u16>),
        peers: &mut Peers<'_>,
        sent: Sent<'_>,
    ) -> bool {
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        let (length, segments) = (sent.length, sent.segments);
        if segments > 1 {
            self.bulk_at = now;
        }
        self.is_bulk = now < self.bulk_at + BULK;
        let known = self.known(from, held, &sent, &mut out);
        let verdict = known.map_or_else(
            || {
                let header = sent.front.frame_mut();
                self.switch.decide(now, PortId::from(from), header, length, segments, &mut out)
            },
            Ok,
        );
        let mut passed = true;
        match verdict {
            Ok(verdict) if sent.offload.fits(verdict.ip) => {
                passed = !self.holds(now, peers, (from, held), (&out, verdict.flow, length));
                if passed {
                    let mut frame =
                        Frame { front: sent.front, rest: sent.rest, length, offload: *sent.offload };
                    self.show(now, from, &frame, Tag::Keep);
                    let wire = sent.offload.wire(length, segments);
                    let way = passage::Way { from: from.into(), flow: verdict.flow, segments, wire };
                    self.leave(now, peers, &out, way, &mut frame);
                } else {
                    self.remember(from, held, &sent, (verdict, &out));
                }
            }
            Ok(_) => self.dropped(from, DropReason::BadHeader, segments),
            Err(_) => {}
        }
        self.out = out;
        passed
    }

    fn deliver(
        &mut self,
        peers: &mut Peers<'_>,
        delivery: Delivery,
        flow: u32,
        frame: &mut Frame<'_>,
    ) -> Result<(), DropReason> {
        let slot = delivery.port as u16;
        let mut other;
        let (front, by) = if delivery.tag == Tag::Keep {
            (&mut *frame.front, 0)
        } else {
            let tagged = frame.front.tagged(delivery.tag);
            other = tagged.0;
            (&mut other, tagged.1)
        };
        let offload = frame.offload.shifted(by);
        let length = frame.length.saturating_add_signed(by.into());
        let todo = match offload.checksum {
            None => Todo::Nothing,
            Some(_) => offload.for_one_who(&self.takes(slot, peers, flow).ok_or(DropReason::LinkDown)?),
        };
        match todo {
            Todo::Nothing => self.hand_over(peers, slot, flow, (front, frame.rest), offload),
            Todo::Checksum(checksum) => {
                Frame { front, rest: frame.rest, length, offload }.linear(&mut self.whole);
                let mut whole = std::mem::take(&mut self.whole);
                segment::complete(&mut whole, checksum);
                let done = self.hand_over_bytes(peers, slot, flow, &mut whole);
                self.whole = whole;
                done
            }
            Todo::Cut(checksum, cut) => {
                Frame { front, rest: frame.rest, length, offload }.linear(&mut self.whole);
                let (whole, mut room) = (std::mem::take(&mut self.whole), std::mem::take(&mut self.segment));
                let mut done = Ok(());
                segment::cut(&whole, (checksum, cut), &mut room, |bytes| {
                    done = self.hand_over_bytes(peers, slot, flow, bytes);
                    done.is_ok()
                });
                (self.whole, self.segment) = (whole, room);
                done
            }
        }
    }

    /// Give a frame that is in one piece and complete to the port at `slot`.
    fn hand_over_bytes(
        &mut self,
        peers: &mut Peers<'_>,
        slot: u16,
        flow: u32,
        bytes: &mut [u8],
    ) -> Result<(), DropReason> {
        let (mut all, mut front) = (whole(bytes), Front::default());
        let rest = front.take(&mut all, 0, bytes.len());
        self.hand_over(peers, slot, flow, (&mut front, rest), Offload::default())
    }

    /// Give a frame to the port at `slot`, which takes what is left to be done to it.
    fn hand_over(
        &mut self,
        peers: &mut Peers<'_>,
        slot: u16,
        flow: u32,
        (front, rest): (&mut Front, &[libc::iovec]),
        offload: Offload,
    ) -> Result<(), DropReason> {
        let bytes = front.with_header(&offload);
        let length = bytes.len() - crate::net::header::LENGTH + crate::chain::total(rest) as usize;
        let (queues, page) = peers.get(slot).ok_or(DropReason::LinkDown)?;
        match self.ports.get_mut(usize::from(slot)).and_then(Option::as_mut) {
            Some(Port::Guest { link: true, .. }) => {}
            Some(Port::Uplink { way, .. }) => {
                self.unflushed = true;
                way.send(bytes, rest)?;
                add(&page.reads, 1);
                add(&page.read_bytes, length as u64);
                if !self.is_bulk {
                    peers.ask(slot);
                }
                return Ok(());
            }
            _ => return Err(DropReason::LinkDown),
        }
        let index = receive_queue(queues, page, flow).ok_or(DropReason::LinkDown)?;
        let Some(queue) = queues[usize::from(index)].as_mut() else { return Err(DropReason::LinkDown) };
        match self.receiver.put(queue, bytes, rest) {
            Ok(Put::Done) => {}
            Ok(Put::NoBuffer) => return Err(DropReason::NoBuffer),
            Ok(Put::TooLarge) => return Err(DropReason::Oversize),
            Err(violation) => {
                peers.fault(slot, index, violation);
                return Err(DropReason::LinkDown);
            }
        }
        add(&page.reads, 1);
        add(&page.read_bytes, length as u64);
        if self.staged.last() != Some(&(slot, index)) {
            self.staged.push((slot, index));
        }
        Ok(())
    }

    /// Show the receivers what they got.
    pub fn publish(&mut self, uring: &Uring, peers: &mut Peers<'_>) {
        if std::mem::take(&mut self.unflushed) {
            for port in self.ports.iter_mut().flatten() {
                if let Port::Uplink { way, .. } = port {
                    way.flush(uring);
                }
            }
        }
        while let Some((slot, index)) = self.staged.pop() {
            let Some((queues, _)) = peers.get(slot) else { continue };
            let Some(Some(queue)) = queues.get_mut(usize::from(index)) else { continue };
            queue.publish();
            peers.touch(slot);
            if !self.is_bulk {
                peers.ask(slot);
            }
        }
    }

    /// Note in the page of the port at `slot` what was dropped there, for the holder to read.
    pub fn account(&mut self, slot: u16, page: &DevicePage) {
        let (Some(Some(Port::Guest { drops, .. } | Port::Uplink { drops, .. })), Some(now)) =
            (self.ports.get(usize::from(slot)), self.switch.drops(slot.into()))
        else {
            return;
        };
        for ((counter, before), reason) in page.drops.iter().zip(drops).zip(DropReason::ALL) {
            counter.store(before + now.get(*reason), Relaxed);
        }
        page.fdb.store(self.switch.learnt(slot.into()), Relaxed);
    }

    /// The places of all ports.
    pub fn slots(&self) -> impl Iterator<Item = u16> + '_ {
        self.ports.iter().enumerate().filter(|(_, port)| port.is_some()).map(|(slot, _)| slot as u16)
    }

    /// What the port at `slot` takes on itself.
    fn takes(&mut self, slot: u16, peers: &mut Peers<'_>, flow: u32) -> Option<Takes> {
        if let Some(way) = self.way(slot) {
            return Some(way.takes());
        }
        let (queues, page) = peers.get(slot)?;
        let index = receive_queue(queues, page, flow)?;
        let features = queues[usize::from(index)].as_ref()?.features;
        let has = |bit: u32| features & 1 << bit != 0;
        Some(Takes {
            checksum: has(VIRTIO_NET_F_GUEST_CSUM),
            tcp4: has(VIRTIO_NET_F_GUEST_TSO4),
            tcp6: has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: has(VIRTIO_NET_F_GUEST_ECN),
            udp: has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
        })
    }
}

/// What was dropped at a port before this worker.
fn counted(page: &DevicePage) -> [u64; DropReason::ALL.len()] {
    std::array::from_fn(|place| page.drops[place].load(Relaxed))
}

fn whole(bytes: &mut [u8]) -> [libc::iovec; 1] {
    [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }]
}

/// The receive queue for a flow: one of those that the guest uses, which it tells by the control queue (virtio 1.3, 5.1.5),
/// or a frontend for it by starting no others.
fn receive_queue(queues: &[Option<VirtQueue>], page: &DevicePage, flow: u32) -> Option<u16> {
    let runs = |index: u32| {
        queues.get(index as usize).is_some_and(|queue| queue.as_ref().is_some_and(VirtQueue::runs))
    };
    let told = page.pairs.load(Relaxed);
    if told > 1 && runs(2 * (flow % told)) {
        return Some(2 * (flow % told) as u16);
    }
    runs(0).then_some(0)
}
