//! What can be asked of a port that is there: other rules, faults, a look at its connections and its frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use serde_json::{Value, json};

use super::passage::Way;
use super::{Frame, Network, Port};
use crate::clock::Nanos;
use crate::net::capture::Capture;
use crate::net::order::Order;
use crate::net::switch::faults::Faults;
use crate::net::switch::frame::{Address, ICMP, ICMP6, TCP, UDP, is_v4};
use crate::net::switch::track::{Entry, State};
use crate::net::switch::{Delivery, DropReason, Tag};
use crate::net::traffic::Parked;
use crate::uring::Uring;

impl Network {
    /// Do to the port at `slot` what is asked; the answer is for who asked.
    pub fn obey(
        &mut self,
        (now, uring): (Nanos, &Rc<Uring>),
        slot: u16,
        order: Order,
        fd: Option<OwnedFd>,
    ) -> Value {
        match order {
            Order::Set { rules, link: wanted } => {
                if let Some(Some(Port::Guest { link, .. })) = self.ports.get_mut(usize::from(slot)) {
                    *link = wanted;
                }
                if let Err(reason) = self.switch.set_rules(slot.into(), rules) {
                    // The holder has checked them; what is left is a port that has no place in the switch.
                    eprintln!("plane worker: {reason}");
                }
                Value::Null
            }
            Order::Faults { plan } => {
                self.switch.set_faults(slot.into(), plan.map(Faults::new));
                Value::Null
            }
            Order::Flows { limit } => {
                let flows = self.switch.flows(now, slot.into(), limit);
                flows.iter().map(|flow| describe(now, flow)).collect()
            }
            Order::Capture { snaplen, limit } => {
                self.end_capture(slot);
                let capture = fd.map(|fd| Capture::new(uring, fd, snaplen, limit));
                self.captures.extend(capture.map(|capture| (slot, capture)));
                Value::Null
            }
            Order::CaptureStop => self.end_capture(slot),
        }
    }

    /// End the capture at `slot`; what it has counted.
    pub(super) fn end_capture(&mut self, slot: u16) -> Value {
        let place = self.captures.iter().position(|(port, _)| *port == slot);
        place.map_or(Value::Null, |place| self.captures.swap_remove(place).1.counts())
    }

    /// Show the frame to who captures at `slot`, as it is there.
    pub(super) fn show(&self, now: Nanos, slot: u16, frame: &Frame<'_>, tag: Tag) {
        for (_, capture) in self.captures.iter().filter(|(port, _)| *port == slot) {
            let (front, by) = frame.front.tagged(tag);
            capture.take(now, front.frame(), frame.rest, frame.length.saturating_add_signed(by.into()));
        }
    }

    /// Hold a frame that takes its time on purpose.
    pub(super) fn hold_back(&mut self, now: Nanos, delivery: Delivery, way: Way, frame: &Frame<'_>) {
        if !self.delayed.has_room(frame.length) {
            return self.dropped(delivery.port as u16, DropReason::FaultBacklog, way.segments);
        }
        let mut bytes = self.traffic.buffer();
        frame.linear(&mut bytes);
        let (Way { from, flow, segments, wire }, offload) = (way, frame.offload);
        let deliveries = vec![Delivery { delay: 0, ..delivery }];
        let parked = Parked { from, deliveries, flow, offload, segments, wire, bytes };
        self.delayed.hold(now + delivery.delay, parked);
    }
}

/// A row of `query-flows`, as the machine at the port sees it.
fn describe(now: Nanos, flow: &Entry) -> Value {
    let protocol: Value = match flow.key.protocol {
        TCP => "tcp".into(),
        UDP => "udp".into(),
        ICMP | ICMP6 => "icmp".into(),
        other => other.into(),
    };
    let state = match flow.state {
        State::New => "new",
        State::Open => "open",
        State::Closing => "closing",
    };
    json!({
        "protocol": protocol,
        "direction": if flow.outbound { "out" } else { "in" },
        "state": state,
        "local": text(flow.key.local),
        "local_port": flow.key.ports.0,
        "remote": text(flow.key.remote),
        "remote_port": flow.key.ports.1,
        "vlan": flow.key.vlan,
        "tx_packets": flow.packets[0],
        "tx_bytes": flow.bytes[0],
        "rx_packets": flow.packets[1],
        "rx_bytes": flow.bytes[1],
        "age_ms": now.saturating_sub(flow.created) / 1_000_000,
        "idle_ms": now.saturating_sub(flow.seen) / 1_000_000,
    })
}

fn text(address: Address) -> IpAddr {
    if is_v4(address) {
        IpAddr::V4(Ipv4Addr::from_bits(address as u32))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(address))
    }
}
