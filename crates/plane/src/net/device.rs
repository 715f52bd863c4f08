//! virtio-net (virtio 1.3, 5.1): a machine's NIC, which is a port of its network.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::Value;
use virtio_bindings::bindings::virtio_net::*;

use crate::chain::{self, Buffers};
use crate::clock::Nanos;
use crate::config::NetConfig;
use crate::net::frame::Front;
use crate::net::header::{ETHERNET, LENGTH, Offload, PLAIN};
use crate::net::network::{Network, Networks, Sent};
use crate::net::order::Order;
use crate::net::receive::header_length;
use crate::net::settle;
use crate::net::switch::DropReason;
use crate::page::add;
use crate::worker::device::{Context, Device, Fault};
use crate::worker::queue::Violation;

/// Frames that one queue may send in a turn, each segment of a large one counted: so a guest that floods holds up the
/// others for as long as it takes to pass on that many.
const BUDGET: u32 = 64;

/// What a frame may have beside its MTU: the Ethernet header and two VLAN tags.
const OVERHEAD: usize = ETHERNET + 8;

/// For so long after a worker died, connections are known again by what would have been allowed: TCP's peers have tried again
/// by then.
const RESUMED: Nanos = 30 * 1_000_000_000;

/// Bytes of the longest control command that is read (5.1.6.5): a table of MAC addresses is not.
const COMMAND: usize = 8;

/// The feature bits that the device offers (5.1.3).
pub fn features(config: &NetConfig) -> u64 {
    let bits = [
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_MTU,
        VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_ECN,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_STATUS,
        VIRTIO_NET_F_CTRL_VQ,
        VIRTIO_NET_F_CTRL_RX,
        VIRTIO_NET_F_GUEST_USO4,
        VIRTIO_NET_F_GUEST_USO6,
        VIRTIO_NET_F_HOST_USO,
    ];
    let multiple = u64::from(config.queues > 1) << VIRTIO_NET_F_MQ;
    let address = u64::from(config.rules.spoof) << VIRTIO_NET_F_CTRL_MAC_ADDR;
    bits.into_iter().fold(multiple | address, |all, bit| all | 1 << bit)
}

/// The configuration space (5.1.4): address, status, pairs of queues, MTU.
pub fn config_space(config: &NetConfig) -> Vec<u8> {
    let mut space = config.mac.0.to_vec();
    let status = if config.link { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
    for field in [status, config.queues, config.mtu] {
        space.extend(field.to_le_bytes());
    }
    space
}

/// The device.
pub struct Net {
    config: NetConfig,
    network: Rc<RefCell<Network>>,
    buffers: Buffers,
    front: Front,
}

/// What a queue is for, as the guest sees it (5.1.2).
enum Role {
    Receive,
    Transmit,
    Control,
}

impl Net {
    /// A port of the network that the configuration names.
    pub fn new(config: &NetConfig, networks: &mut Networks) -> Net {
        let network = networks.of(&config.network);
        Net { config: config.clone(), network, buffers: Buffers::default(), front: Front::default() }
    }

    fn role(&self, index: u16, features: u64) -> Role {
        let control = if features & 1 << VIRTIO_NET_F_MQ == 0 { 2 } else { 2 * self.config.queues };
        match index {
            _ if index == control => Role::Control,
            _ if index.is_multiple_of(2) => Role::Receive,
            _ => Role::Transmit,
        }
    }

    /// Guest to network. True if there may be more.
    fn transmit(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation> {
        let network = self.network.clone();
        let mut network = network.borrow_mut();
        let taken = self.transmit_some(context, index, &mut network);
        // Receivers first: should the worker die in between, a frame comes twice rather than not at all.
        network.publish(context.uring, &mut context.peers);
        settle::later(&mut network, context);
        if let Some(queue) = context.queue(index) {
            queue.publish();
        }
        taken
    }

    fn transmit_some(
        &mut self,
        context: &mut Context<'_>,
        index: u16,
        network: &mut Network,
    ) -> Result<bool, Violation> {
        let mut budget = BUDGET;
        while budget > 0 {
            let Some(queue) = context.queues[usize::from(index)].as_mut() else { return Ok(false) };
            // The driver only wants its buffers back: an interrupt for each frame costs it more than the frame.
            queue.lazy = true;
            let Some(head) = queue.take_in_order(&mut self.buffers)? else { return Ok(false) };
            let sent = self.send(context, index, network);
            let Some(queue) = context.queues[usize::from(index)].as_mut() else { return Ok(false) };
            match sent {
                Ok(0) => {
                    queue.untake(1);
                    queue.park();
                    return Ok(false);
                }
                Ok(frames) => budget = budget.saturating_sub(frames),
                Err(reason) => {
                    network.dropped(context.token.slot, reason, 1);
                    budget -= 1;
                }
            }
            queue.stage(head, 0);
        }
        Ok(true)
    }

    /// Send the frame in the buffers; how many frames it is on the wire, 0 if it has to be sent again later.
    fn send(
        &mut self,
        context: &mut Context<'_>,
        index: u16,
        network: &mut Network,
    ) -> Result<u32, DropReason> {
        let features = context.queue(index).map_or(0, |queue| queue.features);
        let (buffers, front) = (&mut self.buffers.readable, &mut self.front);
        let header_length = header_length(features);
        let length = (chain::total(buffers) as usize).checked_sub(header_length);
        let length = length.filter(|length| *length >= ETHERNET).ok_or(DropReason::Malformed)?;
        let rest = front.take(buffers, header_length, length);
        let header = front.header(header_length);
        let parsed;
        // The usual one is not copied about: its parts would be read back before they are in the cache, behind the frame itself.
        let (offload, segments) = if Offload::is_plain(&header) {
            (&PLAIN, 1)
        } else {
            parsed = Offload::parse(&header, front.frame(), length)?;
            (&parsed.0, parsed.1)
        };
        if offload.largest(length) > usize::from(self.config.mtu) + OVERHEAD || length > LARGEST {
            return Err(DropReason::Oversize);
        }
        let slot = context.token.slot;
        if !network.has_link(slot) {
            return Err(DropReason::LinkDown);
        }
        let sent = Sent { front, rest, length, offload, segments };
        if !network.send(context.now, (slot, Some(index)), &mut context.peers, sent) {
            return Ok(0);
        }
        add(&context.page.writes, 1);
        add(&context.page.written_bytes, length as u64);
        Ok(segments)
    }

    /// The guest may have offered buffers. Nobody looks at them but those who wait for them.
    fn refilled(&mut self, context: &mut Context<'_>, index: u16) {
        let (mut network, slot) = (self.network.borrow_mut(), context.token.slot);
        let Some(queue) = context.queues[usize::from(index)].as_mut() else { return };
        if network.is_awaited(slot) {
            if !queue.is_served() {
                return;
            }
            network.retry(Some(slot), &mut context.peers, (slot, context.wake));
        }
        queue.want(1);
        queue.park();
    }

    fn control(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation> {
        for _ in 0..BUDGET {
            let Some(queue) = context.queues[usize::from(index)].as_mut() else { return Ok(false) };
            let Some(head) = queue.take_in_order(&mut self.buffers)? else { return Ok(false) };
            let mut command = [0; COMMAND];
            let length = COMMAND.min(chain::total(&self.buffers.readable) as usize);
            chain::read_front(&self.buffers.readable, &mut command);
            let obeyed = self.obey(context, &command[..length]);
            let status = if obeyed { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            let written = chain::write_front(&self.buffers.writable, &[status as u8]);
            let Some(queue) = context.queues[usize::from(index)].as_mut() else { return Ok(false) };
            queue.stage(head, written as u32);
            queue.publish();
        }
        Ok(true)
    }

    /// Carry out a command: class, number, and what belongs to it (5.1.6.5). Whether that is possible.
    fn obey(&mut self, context: &mut Context<'_>, command: &[u8]) -> bool {
        let [class, number, first, rest @ ..] = command else { return false };
        let pairs = rest.first().map_or(0, |second| u16::from_le_bytes([*first, *second]));
        match (u32::from(*class), u32::from(*number)) {
            // The switch gives a guest nothing that is not for it, and the driver filters what is left itself.
            (VIRTIO_NET_CTRL_RX, _) | (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => true,
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => self.config.rules.spoof,
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET)
                if (1..=self.config.queues).contains(&pairs) =>
            {
                context.page.pairs.store(pairs.into(), Relaxed);
                true
            }
            _ => false,
        }
    }
}

/// Bytes of the largest frame that is cut into segments: IP has 16 bits for its length.
const LARGEST: usize = 65535 + OVERHEAD;

const _: () = assert!(LENGTH + LARGEST < u32::MAX as usize);

impl Device for Net {
    fn opened(&mut self, context: &mut Context<'_>) {
        let mut network = self.network.borrow_mut();
        let rules = (&self.config.rules, self.config.link);
        let added = network.add_guest(context.token.slot, self.config.mac.0, rules, context.page);
        if let Err(reason) = added {
            // The holder has checked the rules; what is left is a switch that is full: the port sends and gets nothing.
            eprintln!("plane worker: {}: {reason}", self.config.id);
        }
        if context.page.writes.load(Relaxed) + context.page.reads.load(Relaxed) > 0 {
            network.switch.resume(context.now + RESUMED);
        }
        if let Err(error) = network.join(context.now, context.token.slot, &self.config.id) {
            // Without a place in the tree it shares nothing out and waits for nothing.
            eprintln!("plane worker: {}: {error}", self.config.id);
        }
    }

    fn serve(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation> {
        let Some(queue) = context.queue(index) else { return Ok(false) };
        match self.role(index, queue.features) {
            Role::Receive => {
                self.refilled(context, index);
                Ok(false)
            }
            Role::Transmit => self.transmit(context, index),
            Role::Control => self.control(context, index),
        }
    }

    fn complete(&mut self, context: &mut Context<'_>, value: u16, _result: i32) -> Result<(), Fault> {
        settle::now(&mut self.network.borrow_mut(), context, value);
        Ok(())
    }

    fn order(&mut self, context: &mut Context<'_>, order: Order, fd: Option<OwnedFd>) -> Value {
        if let Order::Set { rules, link } = &order {
            (self.config.rules, self.config.link) = (rules.clone(), *link);
        }
        let time = (context.now, context.uring);
        self.network.borrow_mut().obey(time, context.token.slot, order, fd)
    }

    fn stopping(&mut self, context: &mut Context<'_>, index: u16) {
        if index == 0 {
            context.page.pairs.store(0, Relaxed);
        }
    }

    fn closing(&mut self, context: &mut Context<'_>) {
        let (mut network, slot) = (self.network.borrow_mut(), context.token.slot);
        network.remove(context.now, slot);
        network.retry(None, &mut context.peers, (slot, context.wake));
    }
}
