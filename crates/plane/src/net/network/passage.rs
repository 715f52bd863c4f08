//! The gates on a frame's way: where it leaves its machine, and where it comes to another.

use super::{Frame, Front, Network, Peers, whole};
use crate::arbiter::{Stats, TreeError, Wait};
use crate::clock::Nanos;
use crate::net::switch::{Delivery, DropReason, PortId, PortKind};
use crate::net::traffic::{Gate, Parked, Room};
use crate::shares::ShareNode;
use crate::uring::Uring;

/// What is known of a frame on its way beside its bytes.
#[derive(Clone, Copy)]
pub(super) struct Way {
    /// The port that has sent it.
    pub from: PortId,
    /// Its connection.
    pub flow: u32,
    /// How many it is on the wire, and their bytes.
    pub segments: u32,
    /// See `segments`.
    pub wire: u32,
}

impl Network {
    /// The NIC `id` is at `slot`.
    ///
    /// # Errors
    /// If something is a NIC that other nodes are below.
    pub fn join(&mut self, now: Nanos, slot: u16, id: &str) -> Result<(), TreeError> {
        self.switch.set_name(slot.into(), id);
        self.traffic.join(now, slot.into(), id)
    }

    /// The uplink has so many bytes a second, if that is known.
    pub fn set_rate(&mut self, now: Nanos, rate: Option<u64>) {
        self.traffic.set_rate(now, rate);
    }

    /// Share by `nodes` from now on.
    pub fn set_shares(&mut self, now: Nanos, nodes: &[ShareNode]) {
        self.traffic.set_shares(now, nodes);
    }

    /// Whether frames wait.
    pub fn has_waiting(&self) -> bool {
        self.traffic.has_waiting() || self.delayed.wake_at().is_some()
    }

    /// When a frame that waits may go, if any does.
    pub fn wake_at(&self, now: Nanos) -> Option<Nanos> {
        self.traffic.wake_at(now).into_iter().chain(self.delayed.wake_at()).min()
    }

    /// Who waited for whom since the last call.
    pub fn take_waits(&mut self, now: Nanos) -> Vec<Wait> {
        self.traffic.take_waits(now)
    }

    /// The state of what is arbitrated.
    pub fn stats(&self, now: Nanos) -> Stats {
        self.traffic.stats(now)
    }

    /// Pass on the frames whose turn has come.
    pub fn release(&mut self, now: Nanos, uring: &Uring, peers: &mut Peers<'_>) {
        while let Some((gate, parked)) = self.traffic.next(now) {
            self.go_on(now, peers, gate == Gate::Machine, parked);
        }
        while let Some(late) = self.delayed.next(now) {
            self.go_on(now, peers, true, late);
        }
        self.publish(uring, peers);
    }

    /// A frame that waited goes to where it was to go, past the last gate if it `is_there`.
    fn go_on(&mut self, now: Nanos, peers: &mut Peers<'_>, is_there: bool, mut parked: Parked) {
        let (length, offload) = (parked.bytes.len(), parked.offload);
        let (mut all, mut front) = (whole(&mut parked.bytes), Front::default());
        let rest = front.take(&mut all, 0, length);
        let mut frame = Frame { front: &mut front, rest, length, offload };
        let way = Way { from: parked.from, flow: parked.flow, segments: parked.segments, wire: parked.wire };
        for delivery in &parked.deliveries {
            if is_there {
                self.hand(now, peers, *delivery, way, &mut frame);
            } else {
                self.arrive(now, peers, *delivery, way, &mut frame);
            }
        }
        self.traffic.reuse(parked);
    }

    /// A frame leaves its machine for `out`, at once or when its turn has come.
    pub(super) fn leave(
        &mut self,
        now: Nanos,
        peers: &mut Peers<'_>,
        out: &[Delivery],
        way: Way,
        frame: &mut Frame<'_>,
    ) {
        let outside = out.iter().any(|delivery| self.switch.kind(delivery.port) == Some(PortKind::Uplink));
        let gate = if outside { Gate::Uplink } else { Gate::Local };
        if let Some(room) = self.traffic.stops(now, (gate, way.from), (way.from, way.flow, way.wire)) {
            return self.park(now, &room, out, way, frame);
        }
        for delivery in out {
            self.arrive(now, peers, *delivery, way, frame);
        }
    }

    /// It comes to a port.
    fn arrive(
        &mut self,
        now: Nanos,
        peers: &mut Peers<'_>,
        delivery: Delivery,
        way: Way,
        frame: &mut Frame<'_>,
    ) {
        match self.traffic.stops(now, (Gate::Machine, delivery.port), (way.from, way.flow, way.wire)) {
            Some(room) => self.park(now, &room, &[delivery], way, frame),
            None => self.hand(now, peers, delivery, way, frame),
        }
    }

    /// It is given to a port.
    fn hand(
        &mut self,
        now: Nanos,
        peers: &mut Peers<'_>,
        delivery: Delivery,
        way: Way,
        frame: &mut Frame<'_>,
    ) {
        if delivery.delay > 0 {
            return self.hold_back(now, delivery, way, frame);
        }
        match self.deliver(peers, delivery, way.flow, frame) {
            Ok(()) => self.show(now, delivery.port as u16, frame, delivery.tag),
            Err(reason) => self.dropped(delivery.port as u16, reason, way.segments),
        }
    }

    fn park(&mut self, now: Nanos, room: &Room, out: &[Delivery], way: Way, frame: &Frame<'_>) {
        let mut bytes = self.traffic.buffer();
        frame.linear(&mut bytes);
        let (Way { from, flow, segments, wire }, offload) = (way, frame.offload);
        let parked = Parked { from, deliveries: out.to_vec(), flow, offload, segments, wire, bytes };
        for lost in self.traffic.park(now, room, parked) {
            self.dropped(lost.from as u16, DropReason::QueueFull, lost.segments);
            self.traffic.reuse(lost);
        }
    }
}
