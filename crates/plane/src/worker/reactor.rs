//! The worker's loop. A turn: completions, the holder's messages, a share for each queue with work, interrupts, sleep.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use io_uring::{cqueue, opcode, types};

use crate::block::model::ModelDevices;
use crate::clock::{self, Nanos};
use crate::control::{Channel, FromWorker, ToWorker};
use crate::net::network::Networks;
use crate::sandbox;
use crate::uring::Uring;
use crate::worker::device::{Context, Device, Effects, IGNORED, Kind, Peers, Token};
use crate::worker::entry::Entry;
use crate::worker::polling::Spinning;
use crate::worker::queue::{Violation, VirtQueue};
use crate::worker::sharing::Sharing;

mod calls;
mod orders;
mod rest;
mod turns;

/// SQEs that fit into the ring; more wait in a list. Enough for what a turn of a few busy queues starts.
const ENTRIES: u32 = 512;

/// Shares that a queue has in a turn while its requests take the disk no time: a turn costs as much as a request.
const SHARES: usize = 4;

/// Messages of the holder handled in a turn.
const MESSAGES: usize = 64;

/// The state of a worker.
pub struct Reactor {
    uring: Rc<Uring>,
    models: ModelDevices,
    networks: Networks,
    sharing: Sharing,
    /// The time of this turn.
    now: Nanos,
    /// The timeout after which the holder is told who waited for whom is in the ring.
    reporting: bool,
    control: Channel,
    closed: bool,
    /// Messages that found the socket full.
    outbox: VecDeque<FromWorker>,
    devices: Vec<Option<Entry>>,
    slots: HashMap<u32, u16>,
    epoch: u32,
    /// Queues to serve: slot and index, each once.
    ready: VecDeque<(u16, u16)>,
    /// Queues whose drivers have been asked not to kick.
    polled: Vec<(u16, u16)>,
    /// Devices with completions to announce.
    touched: Vec<u16>,
    /// Those of which some are to be announced later, and when.
    deferred: Vec<(Nanos, u16)>,
    effects: Effects,
    /// Requests taken and not answered, of all devices.
    taken: usize,
    /// Those of them that threads of the kernel do.
    threaded: usize,
    spinning: Spinning,
    completions: Vec<(u64, i32, u32)>,
}

impl Reactor {
    /// Listen to `control`.
    ///
    /// # Errors
    /// If there is no io_uring.
    pub fn new(control: Channel) -> io::Result<Reactor> {
        let uring = Uring::confined(ENTRIES, &mut sandbox::ring_restrictions())
            .map_err(|error| io::Error::new(error.kind(), format!("io_uring is not available: {error}")))?;
        let reactor = Reactor {
            uring: Rc::new(uring),
            models: ModelDevices::default(),
            sharing: Sharing::new(clock::now()),
            now: clock::now(),
            reporting: false,
            control,
            closed: false,
            outbox: VecDeque::new(),
            devices: Vec::new(),
            slots: HashMap::new(),
            epoch: 0,
            ready: VecDeque::new(),
            polled: Vec::new(),
            touched: Vec::new(),
            deferred: Vec::new(),
            effects: Effects::default(),
            networks: Networks::default(),
            taken: 0,
            threaded: 0,
            spinning: Spinning::default(),
            completions: Vec::new(),
        };
        reactor.poll(reactor.control.as_raw_fd(), Token { kind: Kind::Control, ..IGNORED });
        Ok(reactor)
    }

    /// Serve until the holder closes the socket.
    ///
    /// # Errors
    /// What breaks the ring or the socket.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.closed {
            let mut completions = std::mem::take(&mut self.completions);
            self.uring.reap(|token, result, flags| completions.push((token, result, flags)));
            self.now = clock::now();
            self.spinning.found(self.now);
            self.dispatch_all(&completions)?;
            completions.clear();
            self.completions = completions;
            self.uring.tasks.run_ready();
            self.admit();
            self.serve_ready()?;
            self.announce();
            self.flush_outbox()?;
            self.rest()?;
        }
        Ok(())
    }

    /// Requests that took the disk no time are answered in the turn that began them. Whether there were any.
    fn end_instant_requests(&mut self) -> io::Result<bool> {
        let mut completions = std::mem::take(&mut self.completions);
        let any = self.uring.reap_posted(|token, result, flags| completions.push((token, result, flags))) > 0;
        if any {
            self.dispatch_all(&completions)?;
            completions.clear();
            self.admit();
        }
        self.completions = completions;
        Ok(any)
    }

    /// Those of one device behind one another go to it together.
    fn dispatch_all(&mut self, mut completions: &[(u64, i32, u32)]) -> io::Result<()> {
        while let Some((token, result, flags)) = completions.first() {
            let mut count = 1;
            if Token::unpack(*token).kind == Kind::Io {
                let same = |other: &&(u64, i32, u32)| Token::place(other.0) == Token::place(*token);
                count = completions.iter().take_while(same).count();
                self.completed(Token::unpack(*token), &completions[..count]);
            } else {
                self.dispatch(Token::unpack(*token), *result, *flags)?;
            }
            completions = &completions[count..];
        }
        Ok(())
    }

    fn dispatch(&mut self, token: Token, result: i32, flags: u32) -> io::Result<()> {
        match token.kind {
            Kind::Control if token.value == turns::REPORT => self.report_waits(),
            Kind::Control => {
                self.receive()?;
                if !cqueue::more(flags) {
                    self.poll(self.control.as_raw_fd(), token);
                }
            }
            Kind::Kick => self.kicked(token, result, flags),
            Kind::Call => self.called(token),
            Kind::Space => self.tell_space(token, result == 1),
            Kind::FlushFailed => self.tell_flush_failed(token, -result),
            Kind::Ended => self.tell_ended(token, -result),
            Kind::Io | Kind::None => {}
        }
        Ok(())
    }

    fn kicked(&mut self, token: Token, result: i32, flags: u32) {
        let Some(queue) = self.queue(token.slot, token.value) else { return };
        if queue.epoch != token.epoch || !queue.runs() {
            return;
        }
        let kick = queue.kick().as_raw_fd();
        self.wake(token.slot, token.value);
        // A kick fd that cannot be polled would come back at once for ever.
        if !cqueue::more(flags) && result >= 0 {
            self.poll(kick, token);
        }
    }

    fn called(&mut self, token: Token) {
        let Some(queue) = self.queue(token.slot, token.value) else { return };
        if queue.epoch == token.epoch {
            queue.called();
            self.touch(token.slot);
        }
    }

    fn completed(&mut self, token: Token, completions: &[(u64, i32, u32)]) {
        if !self.is_current(token) {
            return;
        }
        let mut faults = Vec::new();
        self.with(token.slot, |device, context| {
            for (token, result, _) in completions {
                faults.extend(device.complete(context, Token::unpack(*token).value, *result).err());
            }
        });
        for (index, violation) in faults {
            self.fail(token.slot, index, &violation);
        }
    }

    /// Whether the device that `token` was given to is still there.
    fn is_current(&self, token: Token) -> bool {
        let entry = self.devices.get(usize::from(token.slot)).and_then(Option::as_ref);
        entry.is_some_and(|entry| entry.epoch == token.epoch)
    }

    /// Have the device at `slot` work, and see to what follows from that.
    fn with<T>(&mut self, slot: u16, run: impl FnOnce(&mut dyn Device, &mut Context<'_>) -> T) -> Option<T> {
        let (before, rest) = self.devices.split_at_mut_checked(usize::from(slot))?;
        let (entry, after) = rest.split_first_mut()?;
        let peers = Peers { before, after, effects: &mut self.effects };
        let mut wake = Vec::new();
        let arbiter = (&mut self.sharing.arbiter, self.now);
        let result = entry.as_mut()?.with(&self.uring, arbiter, slot, (&mut wake, peers), run);
        self.after(slot, wake);
        Some(result)
    }

    /// Give each queue that was ready at the start of the turn one share; more, of what takes the disk no time.
    fn serve_ready(&mut self) -> io::Result<()> {
        for _ in 0..self.ready.len() {
            let Some((slot, index)) = self.ready.pop_front() else { break };
            let Some(queue) = self.queue(slot, index) else { continue };
            queue.ready = false;
            if !queue.runs() {
                self.touch(slot);
                continue;
            }
            if queue.begin_polling() {
                self.polled.push((slot, index));
            }
            for share in 1..=SHARES {
                let served = self.with(slot, |device, context| device.serve(context, index));
                self.admit();
                let instant = self.end_instant_requests()?;
                match served {
                    Some(Ok(true)) if instant && share < SHARES => continue,
                    Some(Ok(true)) => self.wake(slot, index),
                    Some(Err(violation)) => self.fail(slot, index, &violation),
                    Some(Ok(false)) | None => {}
                }
                break;
            }
        }
        Ok(())
    }

    /// What follows from a device having worked: other queues to serve, interrupts, queues that are now idle.
    fn after(&mut self, slot: u16, wake: Vec<u16>) {
        for index in wake {
            self.wake(slot, index);
        }
        self.touch(slot);
        self.spread();
        self.note_waits(slot);
        if let Some(entry) = self.devices[usize::from(slot)].as_mut() {
            let taken = entry.taken();
            let before = std::mem::replace(&mut entry.seen_taken, taken);
            self.taken = self.taken + taken - before;
            if entry.threaded {
                self.threaded = self.threaded + taken - before;
            }
        }
    }

    /// What follows for other devices from one having worked.
    fn spread(&mut self) {
        while let Some(slot) = self.effects.touched.pop() {
            self.touch(slot);
        }
        while let Some((slot, index)) = self.effects.wake.pop() {
            self.wake(slot, index);
        }
        while let Some((slot, (index, violation))) = self.effects.faults.pop() {
            self.fail(slot, index, &violation);
        }
    }

    fn touch(&mut self, slot: u16) {
        if let Some(entry) = self.devices[usize::from(slot)].as_mut()
            && !std::mem::replace(&mut entry.touched, true)
        {
            self.touched.push(slot);
        }
    }

    /// Answer for queues that were asked to stop and are idle.
    fn finish_stops(&mut self, slot: u16) {
        let Some(entry) = self.devices[usize::from(slot)].as_mut() else { return };
        let mut idle = Vec::new();
        for (index, queue) in entry.queues.iter().enumerate() {
            if let Some(queue) = queue
                && let Some(serial) = queue.stopped()
            {
                idle.push(index as u16);
                self.outbox.push_back(FromWorker::Stopped { serial, base: queue.next_avail() });
            }
        }
        entry.release_retired();
        for index in idle {
            self.let_go_of_fds(slot, index);
            if let Some(entry) = self.devices[usize::from(slot)].as_mut() {
                entry.queues[usize::from(index)] = None;
            }
        }
    }

    /// Before a queue's fds are closed: what names them must be with the kernel, which then keeps the files, and an
    /// interrupt that the frontend keeps from being delivered is given up.
    fn let_go_of_fds(&mut self, slot: u16, index: u16) {
        let Some(queue) = self.queue(slot, index) else { return };
        let kick = Token { kind: Kind::Kick, epoch: queue.epoch, slot, value: index };
        let mut cancels = vec![opcode::AsyncCancel::new(kick.pack()).build()];
        if let Some(call) = queue.call() {
            let all = types::CancelBuilder::fd(types::Fd(call.as_raw_fd())).all();
            cancels.push(opcode::AsyncCancel2::new(all).build());
        }
        for cancel in cancels {
            // SAFETY: names no memory.
            unsafe { self.uring.push(cancel.user_data(IGNORED.pack())) };
        }
        // If the ring is broken, the next turn ends the worker.
        let _ = self.uring.submit();
    }

    fn receive(&mut self) -> io::Result<()> {
        for _ in 0..MESSAGES {
            match self.control.receive::<ToWorker>() {
                Ok(Some((message, fds))) => self.obey(message, fds),
                Ok(None) => {
                    self.closed = true;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // More may be there, for which there will be no other wake-up.
        self.uring.post(Token { kind: Kind::Control, ..IGNORED }.pack(), 0);
        Ok(())
    }

    /// Serve the queue no more. What is in flight completes.
    fn fail(&mut self, slot: u16, index: u16, violation: &Violation) {
        let uring = self.uring.clone();
        let Some(queue) = self.queue(slot, index) else { return };
        if queue.broken {
            return;
        }
        queue.fail(&uring);
        if let Some(number) = self.devices[usize::from(slot)].as_ref().map(|entry| entry.number) {
            self.report(number, Some(index), violation.kind, &violation.detail);
        }
    }

    fn tell_space(&mut self, token: Token, enough: bool) {
        if let Some(entry) = self.devices.get(usize::from(token.slot)).and_then(Option::as_ref)
            && entry.epoch == token.epoch
        {
            self.outbox.push_back(FromWorker::Space { device: entry.number, enough });
        }
    }

    fn tell_ended(&mut self, token: Token, errno: i32) {
        if let Some(entry) = self.devices.get(usize::from(token.slot)).and_then(Option::as_ref)
            && entry.epoch == token.epoch
        {
            self.outbox.push_back(FromWorker::Ended { device: entry.number, errno });
        }
    }

    fn tell_flush_failed(&mut self, token: Token, errno: i32) {
        if let Some(entry) = self.devices.get(usize::from(token.slot)).and_then(Option::as_ref)
            && entry.epoch == token.epoch
        {
            self.outbox.push_back(FromWorker::FlushFailed { device: entry.number, errno });
        }
    }

    fn report(&mut self, device: u32, queue: Option<u16>, kind: &str, detail: &str) {
        let (kind, detail) = (kind.to_owned(), detail.to_owned());
        self.outbox.push_back(FromWorker::Violation { device, queue, kind, detail });
    }

    fn flush_outbox(&mut self) -> io::Result<()> {
        while let Some(message) = self.outbox.front() {
            match self.control.send(message, &[]) {
                Ok(()) => self.outbox.pop_front(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // The holder has gone; the socket says so to `receive` too.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.outbox.pop_front(),
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }

    fn wake(&mut self, slot: u16, index: u16) {
        if let Some(queue) = self.queue(slot, index)
            && !std::mem::replace(&mut queue.ready, true)
        {
            self.ready.push_back((slot, index));
        }
    }

    fn queue(&mut self, slot: u16, index: u16) -> Option<&mut VirtQueue> {
        self.devices.get_mut(usize::from(slot))?.as_mut()?.queues.get_mut(usize::from(index))?.as_mut()
    }

    fn entry(&mut self, device: u32) -> Option<(u16, &mut Entry)> {
        let slot = *self.slots.get(&device)?;
        Some((slot, self.devices[usize::from(slot)].as_mut()?))
    }

    /// Have the ring report whenever `fd` becomes readable, until it says otherwise.
    fn poll(&self, fd: i32, token: Token) {
        let poll = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).multi(true).build();
        // SAFETY: names no memory; the fd is open until the device or queue goes, after the next submission.
        unsafe { self.uring.push(poll.user_data(token.pack())) };
    }
}
