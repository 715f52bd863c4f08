//! virtio-console with several ports (virtio 1.3, 5.3): the console, and the guest agent's port.
//!
//! Each port has a socket of packets to the host's side ([`port`]). Flow is controlled both ways: bytes are taken from the
//! guest only when the socket has room, and from the socket only when the guest has the port open and a buffer for them.
//! What must survive a crash of the worker is in the device's page: which ports the guest has opened, which control
//! messages it has not been sent, and where both streams of each port are.

mod port;

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;

use io_uring::opcode;

use crate::chain::{self, Buffers};
use crate::config::ConsoleConfig;
use crate::page::JUMP;
use crate::worker::device::{Context, Device, Fault, IGNORED};
use crate::worker::queue::Violation;

use port::{Held, Port};

/// VIRTIO_CONSOLE_F_MULTIPORT (5.3.3).
pub const FEATURE_MULTIPORT: u64 = 1 << 1;

/// Chains that one queue may use in a turn.
const BUDGET: usize = 32;

/// Queues of the control messages (5.3.2); port 0 has 0 and 1, port n > 0 has 2n + 2 and 2n + 3.
const CONTROL_TO_GUEST: u16 = 2;
const CONTROL_FROM_GUEST: u16 = 3;

/// Events of control messages (5.3.6.2).
mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const PORT_ADD: u16 = 1;
    pub const PORT_READY: u16 = 3;
    pub const CONSOLE_PORT: u16 = 4;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

/// The configuration space (5.3.4): columns and rows unknown, then `max_nr_ports`, then `emerg_wr`.
pub fn config_space(config: &ConsoleConfig) -> Vec<u8> {
    let mut space = vec![0; 12];
    space[4..8].copy_from_slice(&(config.ports.len() as u32).to_le_bytes());
    space
}

/// The device.
pub struct Console {
    ports: Vec<Port>,
    buffers: Buffers,
}

/// What a queue is for, as the guest sees it.
enum Role {
    Receive(usize),
    Transmit(usize),
    ControlReceive,
    ControlTransmit,
}

fn role(queue: u16) -> Role {
    let port = if queue < 2 { 0 } else { usize::from(queue) / 2 - 1 };
    match queue {
        CONTROL_TO_GUEST => Role::ControlReceive,
        CONTROL_FROM_GUEST => Role::ControlTransmit,
        _ if queue.is_multiple_of(2) => Role::Receive(port),
        _ => Role::Transmit(port),
    }
}

fn to_guest(port: usize) -> u16 {
    if port == 0 { 0 } else { 2 * port as u16 + 2 }
}

impl Console {
    /// Serve the ports; `sockets` are their host sides.
    pub fn new(config: &ConsoleConfig, sockets: Vec<OwnedFd>) -> Console {
        let ports = config.ports.iter().zip(sockets);
        let ports = ports.map(|(port, socket)| Port::new(port.name.clone(), port.console, socket));
        Console { ports: ports.collect(), buffers: Buffers::default() }
    }

    /// Guest to host.
    fn transmit(&mut self, context: &mut Context<'_>, index: u16, number: usize) -> Result<bool, Violation> {
        let Some(port) = self.ports.get_mut(number) else { return Ok(false) };
        let position = &context.page.ports[number].to_host;
        for _ in 0..BUDGET {
            let Some(queue) = context.queues[usize::from(index)].as_mut() else { return Ok(false) };
            let chain = queue.completed();
            let mut held = match port.held.take() {
                Some(held) => held,
                None => {
                    let Some(head) = queue.take(&mut self.buffers)? else { return Ok(false) };
                    let at = position.of(chain).unwrap_or_else(|| position.last() + JUMP);
                    position.set(chain, at);
                    Held { head, at, rest: std::mem::take(&mut self.buffers.readable) }
                }
            };
            let before = chain::total(&held.rest);
            let all = port.send(&mut held).inspect_err(|_| queue.give_up())?;
            context.page.written_bytes.fetch_add(before - chain::total(&held.rest), Relaxed);
            if !all {
                port.held = Some(held);
                queue.park();
                port.poll(context, number, libc::POLLOUT);
                return Ok(false);
            }
            position.set(chain.wrapping_add(1), held.at);
            queue.complete(held.head, 0);
            context.page.writes.fetch_add(1, Relaxed);
        }
        Ok(true)
    }

    /// Host to guest.
    fn receive(&mut self, context: &mut Context<'_>, index: u16, number: usize) -> Result<bool, Violation> {
        let Some(port) = self.ports.get_mut(number) else { return Ok(false) };
        let position = &context.page.ports[number].to_guest;
        for _ in 0..BUDGET {
            let Some(queue) = context.queues[usize::from(index)].as_mut() else { return Ok(false) };
            let open = context.page.ports[number].guest_open.load(Relaxed) == 1
                || (number == 0 && queue.features & FEATURE_MULTIPORT == 0);
            if !queue.has_work() {
                return Ok(false);
            }
            if port.hung_up || !open {
                queue.park();
                return Ok(false);
            }
            let chain = queue.completed();
            let at = position.of(chain).unwrap_or_else(|| position.last());
            position.set(chain, at);
            let Some(packet) = port.next_packet(at) else {
                queue.park();
                port.poll(context, number, libc::POLLIN);
                return Ok(false);
            };
            let Some(head) = queue.take(&mut self.buffers)? else { return Ok(false) };
            let length = port.receive(&packet, &self.buffers.writable).inspect_err(|_| queue.give_up())?;
            let end = packet.from + u64::from(length);
            position.set(chain.wrapping_add(1), end);
            queue.complete(head, length);
            if end >= packet.end {
                port.drop_packet();
            }
            context.page.reads.fetch_add(1, Relaxed);
            context.page.read_bytes.fetch_add(length.into(), Relaxed);
        }
        Ok(true)
    }

    fn control_from_guest(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation> {
        for _ in 0..BUDGET {
            let Some(queue) = context.queue(index) else { return Ok(false) };
            let Some(head) = queue.take(&mut self.buffers)? else { return Ok(false) };
            let message = chain::take_front::<8>(&mut self.buffers.readable);
            queue.complete(head, 0);
            let message = message
                .ok_or_else(|| Violation::new("console-control", "a control message of less than 8 bytes"))?;
            self.control(context, &message);
        }
        Ok(true)
    }

    /// Act on `struct virtio_console_control`: id, event, value.
    fn control(&mut self, context: &mut Context<'_>, message: &[u8; 8]) {
        let id = u32::from_le_bytes([message[0], message[1], message[2], message[3]]) as usize;
        let what = u16::from_le_bytes([message[4], message[5]]);
        let value = u16::from_le_bytes([message[6], message[7]]);
        match what {
            event::DEVICE_READY if value == 1 => {
                for (number, _) in self.ports.iter().enumerate() {
                    context.page.ports[number].pending.fetch_or(1 << event::PORT_ADD, Relaxed);
                }
            }
            event::PORT_READY if value == 1 && id < self.ports.len() => {
                let port = &self.ports[id];
                let mut bits = 1 << event::PORT_OPEN;
                bits |= u32::from(port.console) << event::CONSOLE_PORT;
                bits |= u32::from(!port.name.is_empty()) << event::PORT_NAME;
                context.page.ports[id].pending.fetch_or(bits, Relaxed);
            }
            event::PORT_OPEN if id < self.ports.len() => {
                context.page.ports[id].guest_open.store((value == 1).into(), Relaxed);
                context.wake.push(to_guest(id));
            }
            // A guest that could not add a port, or speaks of one that is not there: nothing to do about it.
            _ => {}
        }
        context.wake.push(CONTROL_TO_GUEST);
    }

    fn control_to_guest(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation> {
        for (number, port) in self.ports.iter().enumerate() {
            let pending = &context.page.ports[number].pending;
            // In this order a guest has the port before it hears of it.
            for what in [event::PORT_ADD, event::CONSOLE_PORT, event::PORT_NAME, event::PORT_OPEN] {
                if pending.load(Relaxed) & 1 << what == 0 {
                    continue;
                }
                let Some(queue) = context.queues[usize::from(index)].as_mut() else { return Ok(false) };
                let Some(head) = queue.take(&mut self.buffers)? else { return Ok(false) };
                let value = u16::from(what != event::PORT_ADD);
                let mut message = Vec::from((number as u32).to_le_bytes());
                message.extend(what.to_le_bytes());
                message.extend(value.to_le_bytes());
                if what == event::PORT_NAME {
                    message.extend(port.name.as_bytes());
                }
                let length = chain::write_front(&self.buffers.writable, &message) as u32;
                queue.complete(head, length);
                // After the completion: a crash in between repeats the message, which Linux takes well.
                pending.fetch_and(!(1 << what), Relaxed);
            }
        }
        if let Some(queue) = context.queue(index) {
            queue.park();
        }
        Ok(false)
    }
}

impl Device for Console {
    fn serve(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation> {
        match role(index) {
            Role::Receive(port) => self.receive(context, index, port),
            Role::Transmit(port) => self.transmit(context, index, port),
            Role::ControlReceive => self.control_to_guest(context, index),
            Role::ControlTransmit => self.control_from_guest(context, index),
        }
    }

    fn complete(&mut self, context: &mut Context<'_>, value: u16, _result: i32) -> Result<(), Fault> {
        let number = usize::from(value / 2);
        let Some(port) = self.ports.get_mut(number) else { return Ok(()) };
        let out = value % 2 == 1;
        port.polled(out);
        context.wake.push(to_guest(number) + u16::from(out));
        Ok(())
    }

    fn stopping(&mut self, context: &mut Context<'_>, index: u16) {
        // The rest of a chain that waits for the host is dropped: the guest is going away.
        if let Role::Transmit(number) = role(index)
            && let Some(held) = self.ports.get_mut(number).and_then(|port| port.held.take())
        {
            let Some(queue) = context.queues[usize::from(index)].as_mut() else { return };
            context.page.ports[number].to_host.set(queue.completed().wrapping_add(1), held.at);
            queue.complete(held.head, 0);
        }
    }

    fn closing(&mut self, context: &mut Context<'_>) {
        for (number, port) in self.ports.iter().enumerate() {
            for (out, armed) in [(0, port.polling_in), (1, port.polling_out)] {
                if armed {
                    let cancel = opcode::AsyncCancel::new(context.io(2 * number as u16 + out)).build();
                    // SAFETY: names no memory.
                    unsafe { context.uring.push(cancel.user_data(IGNORED.pack())) };
                }
            }
        }
    }
}
