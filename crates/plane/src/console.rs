//! virtio-console with several ports (virtio 1.3, 5.3): the console, and the guest agent's port.
//!
//! Each port has a stream socket to the host's side. Flow is controlled both ways: bytes are taken from the guest only
//! when the socket has room, and from the socket only when the guest has the port open and a buffer for them.
//! What must survive a crash of the worker is in the device's page: which ports the guest has opened, which control
//! messages it has not been sent, and how much of the chain being transmitted is already in the socket.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;

use io_uring::{opcode, types};

use crate::chain::{self, Buffers};
use crate::config::ConsoleConfig;
use crate::worker::device::{Context, Device, Fault, IGNORED};
use crate::worker::queue::Violation;

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

struct Port {
    name: String,
    console: bool,
    socket: OwnedFd,
    /// The host's end is closed: what the guest sends is dropped.
    hung_up: bool,
    /// The chain being transmitted, when the socket is full.
    held: Option<Held>,
    /// A poll for POLLIN or POLLOUT is in the ring.
    polling_in: bool,
    polling_out: bool,
}

struct Held {
    head: u16,
    rest: Vec<libc::iovec>,
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
        let ports = ports.map(|(port, socket)| Port {
            name: port.name.clone(),
            console: port.console,
            socket,
            hung_up: false,
            held: None,
            polling_in: false,
            polling_out: false,
        });
        Console { ports: ports.collect(), buffers: Buffers::default() }
    }

    /// Guest to host.
    fn transmit(&mut self, context: &mut Context<'_>, index: u16, number: usize) -> Result<bool, Violation> {
        let Some(port) = self.ports.get_mut(number) else { return Ok(false) };
        let sent = &context.page.ports[number].sent;
        for _ in 0..BUDGET {
            let Some(queue) = context.queues[usize::from(index)].as_mut() else { return Ok(false) };
            let held = match port.held.take() {
                Some(held) => held,
                None => {
                    let Some(head) = queue.take(&mut self.buffers)? else { return Ok(false) };
                    let mut rest = std::mem::take(&mut self.buffers.readable);
                    let before = sent.load(Relaxed);
                    if before & 0xffff == u64::from(head) {
                        chain::skip_front(&mut rest, (before >> 16) as usize);
                    }
                    Held { head, rest }
                }
            };
            let before = chain::total(&held.rest);
            let sending = port.send(held, sent).inspect_err(|_| queue.give_up())?;
            let after = port.held.as_ref().map_or(0, |held| chain::total(&held.rest));
            context.page.written_bytes.fetch_add(before - after, Relaxed);
            let Some(head) = sending else {
                queue.park();
                port.poll(context, number, libc::POLLOUT);
                return Ok(false);
            };
            sent.store(0, Relaxed);
            queue.complete(head, 0)?;
            context.page.writes.fetch_add(1, Relaxed);
        }
        Ok(true)
    }

    /// Host to guest.
    fn receive(&mut self, context: &mut Context<'_>, index: u16, number: usize) -> Result<bool, Violation> {
        let Some(port) = self.ports.get_mut(number) else { return Ok(false) };
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
            if !port.readable() {
                queue.park();
                port.poll(context, number, libc::POLLIN);
                return Ok(false);
            }
            let Some(head) = queue.take(&mut self.buffers)? else { return Ok(false) };
            let length = port.receive(&self.buffers.writable).inspect_err(|_| queue.give_up())?;
            queue.complete(head, length)?;
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
            queue.complete(head, 0)?;
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
                queue.complete(head, length)?;
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

impl Port {
    /// Send what is left of `held`. `None` if the socket is full, and then it is held further.
    fn send(
        &mut self,
        mut held: Held,
        sent: &std::sync::atomic::AtomicU64,
    ) -> Result<Option<u16>, Violation> {
        while !held.rest.is_empty() && !self.hung_up {
            // SAFETY: all zeroes is a valid msghdr; the buffers are guest memory, where the kernel says EFAULT.
            let result = unsafe {
                let mut header: libc::msghdr = std::mem::zeroed();
                header.msg_iov = held.rest.as_mut_ptr();
                header.msg_iovlen = held.rest.len();
                libc::sendmsg(self.socket.as_raw_fd(), &header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            };
            if result >= 0 {
                let before = sent.load(Relaxed);
                let offset = if before & 0xffff == u64::from(held.head) { before >> 16 } else { 0 };
                sent.store((offset + result as u64) << 16 | u64::from(held.head), Relaxed);
                chain::skip_front(&mut held.rest, result as usize);
                continue;
            }
            match errno() {
                libc::EAGAIN | libc::EINTR => {
                    self.held = Some(held);
                    return Ok(None);
                }
                libc::EFAULT => return Err(memory_lost()),
                _ => self.hung_up = true,
            }
        }
        Ok(Some(held.head))
    }

    fn readable(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, no waiting.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    fn receive(&mut self, buffers: &[libc::iovec]) -> Result<u32, Violation> {
        if buffers.is_empty() {
            return Err(Violation::new("console-buffer", "a receive buffer that is not writable"));
        }
        // SAFETY: as in `send`.
        let result = unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = buffers.as_ptr().cast_mut();
            header.msg_iovlen = buffers.len();
            libc::recvmsg(self.socket.as_raw_fd(), &mut header, libc::MSG_DONTWAIT)
        };
        match result {
            0 => self.hung_up = true,
            1.. => return Ok(result as u32),
            _ => match errno() {
                libc::EFAULT => return Err(memory_lost()),
                libc::EAGAIN | libc::EINTR => {}
                _ => self.hung_up = true,
            },
        }
        Ok(0)
    }

    /// Have the ring tell us when the socket is ready.
    fn poll(&mut self, context: &Context<'_>, number: usize, events: libc::c_short) {
        let out = events == libc::POLLOUT;
        let armed = if out { &mut self.polling_out } else { &mut self.polling_in };
        if std::mem::replace(armed, true) {
            return;
        }
        let token = context.io(2 * number as u16 + u16::from(out));
        let poll = opcode::PollAdd::new(types::Fd(self.socket.as_raw_fd()), events as u32).build();
        // SAFETY: names no memory; the socket is open as long as the device, which the reactor keeps until its
        // operations are done.
        unsafe { context.uring.push(poll.user_data(token)) };
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
        *(if out { &mut port.polling_out } else { &mut port.polling_in }) = false;
        context.wake.push(to_guest(number) + u16::from(out));
        Ok(())
    }

    fn stopping(&mut self, context: &mut Context<'_>, index: u16) {
        // The rest of a chain that waits for the host is dropped: the guest is going away.
        if let Role::Transmit(number) = role(index)
            && let Some(held) = self.ports.get_mut(number).and_then(|port| port.held.take())
        {
            context.page.ports[number].sent.store(0, Relaxed);
            let Some(queue) = context.queue(index) else { return };
            // Nothing more can be done about a ring that has gone.
            let _ = queue.complete(held.head, 0);
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

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn memory_lost() -> Violation {
    Violation::new("memory-lost", "the frontend has truncated guest memory")
}
