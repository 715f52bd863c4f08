//! What a virtio device is to the reactor.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use serde_json::Value;

use crate::arbiter::Arbiter;
use crate::block::faults::FaultPlan;
use crate::clock::Nanos;
use crate::net::order::Order;
use crate::page::DevicePage;
use crate::uring::Uring;
use crate::worker::entry::Entry;
use crate::worker::queue::{Violation, VirtQueue};

/// Who an io_uring completion is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The holder's socket.
    Control = 0,
    /// A kick fd; the value is the queue.
    Kick = 1,
    /// A request of a device; the value is the device's own.
    Io = 2,
    /// An interrupt has been delivered; the value is the queue.
    Call = 3,
    /// To be ignored.
    None = 4,
    /// A device has to wait for space on the host (result 0), or has enough again (1).
    Space = 5,
    /// A flush of a device has failed, with this result.
    FlushFailed = 6,
    /// A device that works by itself has ended, with this result.
    Ended = 7,
}

/// A completion's token: kind, place of the device in the reactor, and which of those that had this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// For whom.
    pub kind: Kind,
    /// Of the device, or of this run of the queue.
    pub epoch: u32,
    /// Place in the reactor's table.
    pub slot: u16,
    /// Queue or request.
    pub value: u16,
}

/// For operations whose end is of no interest.
pub const IGNORED: Token = Token { kind: Kind::None, epoch: 0, slot: 0, value: 0 };

/// Epochs wrap here, to leave room in the token.
pub const EPOCHS: u32 = 1 << 28;

impl Token {
    /// As io_uring's `user_data`.
    pub fn pack(self) -> u64 {
        let kind = self.kind as u64;
        kind << 60 | u64::from(self.epoch % EPOCHS) << 32 | u64::from(self.slot) << 16 | u64::from(self.value)
    }

    /// What tokens of the same kind and the same device, or run of a queue, have in common.
    pub fn place(token: u64) -> u64 {
        token >> 16
    }

    /// Back from `user_data`.
    pub fn unpack(token: u64) -> Token {
        let kind = match token >> 60 {
            0 => Kind::Control,
            1 => Kind::Kick,
            2 => Kind::Io,
            3 => Kind::Call,
            5 => Kind::Space,
            6 => Kind::FlushFailed,
            7 => Kind::Ended,
            _ => Kind::None,
        };
        Token { kind, epoch: (token >> 32) as u32 % EPOCHS, slot: (token >> 16) as u16, value: token as u16 }
    }
}

/// A queue that broke a rule.
pub type Fault = (u16, Violation);

/// What a device works with.
pub struct Context<'a> {
    /// The worker's ring.
    pub uring: &'a Rc<Uring>,
    /// The device's queues; `None` where none runs.
    pub queues: &'a mut [Option<VirtQueue>],
    /// What outlives the worker.
    pub page: &'a DevicePage,
    /// Token of the device's own completions, with value 0.
    pub token: Token,
    /// Whose request goes to the disk.
    pub arbiter: &'a mut Arbiter,
    /// The time of this turn.
    pub now: Nanos,
    /// Queues that the reactor is to serve soon.
    pub wake: &'a mut Vec<u16>,
    /// The other devices of the worker, for those whose work is to pass something on.
    pub peers: Peers<'a>,
}

/// The reactor's table, but for the device that works; and what is to be done for the others after it has.
pub struct Peers<'a> {
    /// The places before that of the device, and those behind it.
    pub(super) before: &'a mut [Option<Entry>],
    pub(super) after: &'a mut [Option<Entry>],
    pub(super) effects: &'a mut Effects,
}

/// What follows for other devices from one having worked.
#[derive(Default)]
pub struct Effects {
    /// Places of devices with completions to announce.
    pub touched: Vec<u16>,
    /// Queues to serve: place and index.
    pub wake: Vec<(u16, u16)>,
    /// Queues whose drivers broke a rule.
    pub faults: Vec<(u16, Fault)>,
    /// Place of the device that got something last, and may answer.
    pub asked: Option<u16>,
}

impl Peers<'_> {
    /// Queues and page of the device at place `slot`, if there is another one.
    pub fn get(&mut self, slot: u16) -> Option<(&mut [Option<VirtQueue>], &DevicePage)> {
        let (place, own) = (usize::from(slot), self.before.len());
        let entry = match place.checked_sub(own) {
            None => self.before.get_mut(place),
            Some(0) => None,
            Some(behind) => self.after.get_mut(behind - 1),
        };
        entry?.as_mut().map(Entry::lend)
    }

    /// The device at `slot` has completions to announce.
    pub fn touch(&mut self, slot: u16) {
        if self.effects.touched.last() != Some(&slot) {
            self.effects.touched.push(slot);
        }
    }

    /// The device at `slot` got something that it may answer.
    pub fn ask(&mut self, slot: u16) {
        self.effects.asked = Some(slot);
    }

    /// Have queue `index` of the device at `slot` served.
    pub fn wake(&mut self, slot: u16, index: u16) {
        self.effects.wake.push((slot, index));
    }

    /// The driver of queue `index` of the device at `slot` broke a rule.
    pub fn fault(&mut self, slot: u16, index: u16, violation: Violation) {
        self.effects.faults.push((slot, (index, violation)));
    }
}

impl Context<'_> {
    /// The queue, if it runs.
    pub fn queue(&mut self, index: u16) -> Option<&mut VirtQueue> {
        self.queues.get_mut(usize::from(index))?.as_mut()
    }

    /// Have the holder told whether there is enough space on the host for the device, whenever that changes.
    pub fn tell_space(&self, enough: bool) {
        self.uring.post(Token { kind: Kind::Space, ..self.token }.pack(), enough.into());
    }

    /// Have the holder told that a flush has failed with `error`, a negated errno.
    pub fn tell_flush_failed(&self, error: i32) {
        self.uring.post(Token { kind: Kind::FlushFailed, ..self.token }.pack(), error);
    }

    /// Have the holder told that the device's work is done (0), or why it cannot be, a negated errno.
    pub fn tell_ended(&self, error: i32) {
        self.uring.post(Token { kind: Kind::Ended, ..self.token }.pack(), error);
    }

    /// Token of the device's completion `value`.
    pub fn io(&self, value: u16) -> u64 {
        Token { kind: Kind::Io, value, ..self.token }.pack()
    }
}

/// A device, whose queues belong to the reactor.
pub trait Device {
    /// The device is in the reactor's table: one that works by itself may begin.
    fn opened(&mut self, _context: &mut Context<'_>) {}

    /// Take chains from queue `index`, at most a turn's worth, so that no guest holds up another. True if the queue
    /// is to be served again in the next turn.
    ///
    /// # Errors
    /// A rule that the guest broke.
    fn serve(&mut self, context: &mut Context<'_>, index: u16) -> Result<bool, Violation>;

    /// Completion `value` with `result` (io_uring's).
    ///
    /// # Errors
    /// The queue and the rule that the guest broke.
    fn complete(&mut self, context: &mut Context<'_>, value: u16, result: i32) -> Result<(), Fault>;

    /// It is the turn of request `value`, which was offered to the arbiter with the token of that completion.
    fn admitted(&mut self, _context: &mut Context<'_>, _value: u16) {}

    /// Do this to the requests of a disk, and those that are held until now; `None` ends it.
    fn set_faults(&mut self, _context: &mut Context<'_>, _plan: Option<FaultPlan>) {}

    /// Ask the guest for statistics of its memory every `stats_ms`, or not at all if that is 0.
    fn set_stats_period(&mut self, _context: &mut Context<'_>, _stats_ms: u32) {}

    /// Do to a port of a network what is asked, and answer.
    fn order(&mut self, _context: &mut Context<'_>, _order: Order, _fd: Option<OwnedFd>) -> Value {
        Value::Null
    }

    /// Queue `index` is to be stopped: give up what waits for the guest or the host to go on. What the kernel
    /// works on completes as ever.
    fn stopping(&mut self, _context: &mut Context<'_>, _index: u16) {}

    /// The device goes; its queues have been stopped. Cancel what the ring still waits for.
    fn closing(&mut self, _context: &mut Context<'_>) {}

    /// Whether the kernel has let go of all that the device has: it can be dropped after `closing`.
    fn is_idle(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_packing_and_stay_below_the_rings_own() {
        let token = Token { kind: Kind::Io, epoch: EPOCHS - 1, slot: 65535, value: 4321 };
        assert_eq!(Token::unpack(token.pack()), token);
        assert!(token.pack() < crate::uring::TOKEN_LIMIT);
    }
}
