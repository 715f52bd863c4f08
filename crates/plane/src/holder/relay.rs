//! Between the frontend's socket and the `vhost` crate's handler: whole messages, one at a time.
//!
//! User-mode Linux always sends SET_MEM_TABLE with room for two regions, however many it has (`vhost_user_mem_regions` in
//! arch/um/drivers/vhost_user.h). The crate takes only messages of the exact size, so here they get it. User-mode Linux
//! also needs a channel for requests of the backend (without one its interrupt number is 0, `vhost_user_init_slave_req`),
//! and passes a pipe, where the crate takes only sockets: the fd is kept here ([`Channel`]). QEMU enables the
//! queues of a NIC before it has said which features it takes, which the crate refuses, so that is done here. And the
//! handler never waits for the second half of a message.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use vhost::vhost_user::message::{BackendReq, FrontendReq};
use vhost::vhost_user::{BackendReqHandler, Error, Result, VhostUserBackendReqHandlerMut};

use crate::holder::events::lock;
use crate::holder::fds;
use crate::holder::session::Session;
use crate::scm;

/// Request, flags, size: u32 each (vhost-user, "Header").
const HEADER: usize = 12;

/// Bits of the flags.
const VERSION: u32 = 1;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// Largest message that the crate takes (its MAX_MSG_SIZE).
const MAX_BODY: usize = 0x1000;

/// A memory table: number of regions and padding, then the regions (vhost-user, "Memory regions description").
const TABLE_HEADER: usize = 8;
const TABLE_REGION: usize = 32;

/// Where a frontend hears of the backend: all that we say is "look at the configuration".
#[derive(Default)]
pub struct Channel(Mutex<Option<File>>);

impl Channel {
    /// Say that the configuration space is another now. A frontend that gave no channel, or does not read it, is not told.
    pub fn config_changed(&self) {
        let channel = lock(&self.0);
        let Some(channel) = channel.as_ref() else { return };
        let words = [BackendReq::CONFIG_CHANGE_MSG as u32, VERSION, 0];
        let message: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut fd = libc::pollfd { fd: channel.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: one pollfd. With room for something in a pipe or a socket, so few bytes are written at once.
        let ready = unsafe { libc::poll(&mut fd, 1, 0) } == 1 && fd.revents & libc::POLLOUT != 0;
        if !ready || (&*channel).write_all(&message).is_err() {
            eprintln!("plane: a frontend does not hear that its configuration has changed");
        }
    }
}

/// A connection.
pub struct Relay {
    frontend: UnixStream,
    inside: UnixStream,
    session: Arc<Mutex<Session>>,
    handler: BackendReqHandler<Mutex<Session>>,
    /// The frontend takes its closing for our end.
    channel: Arc<Channel>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        *lock(&self.channel.0) = None;
    }
}

impl Relay {
    /// Have `session` answer what `frontend` asks; what it is told unasked goes to `channel`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(
        frontend: UnixStream,
        session: Arc<Mutex<Session>>,
        channel: Arc<Channel>,
    ) -> io::Result<Relay> {
        let (inside, end) = UnixStream::pair()?;
        inside.set_nonblocking(true)?;
        let handler = BackendReqHandler::from_stream(end, session.clone());
        Ok(Relay { frontend, inside, session, handler, channel })
    }

    /// Wait for a message, handle it, pass the answer back.
    ///
    /// # Errors
    /// What the handler says; `Disconnected` at the end of the connection.
    pub fn handle_one(&mut self) -> Result<()> {
        let (message, mut fds) = self.receive()?;
        if word(&message, 0) == FrontendReq::SET_BACKEND_REQ_FD as u32 {
            let file = fds.pop().map(File::from);
            *lock(&self.channel.0) = file.filter(|file| fds::check_signal(file).is_ok());
            return self.answer(&message, true);
        }
        if let Some((index, enable)) = vring_enable(&message) {
            let outcome = lock(&self.session).set_vring_enable(index, enable);
            self.answer(&message, outcome.is_ok())?;
            return outcome;
        }
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        // A message is smaller than a socket's buffer, so it goes as a whole.
        scm::send(&self.inside, &message, &raw, 0).map_err(Error::SocketError)?;
        drop(fds);
        let outcome = self.handler.handle_request();
        self.pass_answers()?;
        outcome
    }

    fn receive(&mut self) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut message = vec![0; HEADER];
        let mut fds = Vec::new();
        let first = scm::receive(&self.frontend, &mut message, &mut fds, 0).map_err(Error::SocketBroken)?;
        if first == 0 {
            return Err(Error::Disconnected);
        }
        self.frontend.read_exact(&mut message[first..]).map_err(|_| Error::Disconnected)?;
        let size = word(&message, 8) as usize;
        if size > MAX_BODY {
            return Err(Error::OversizedMsg);
        }
        message.resize(HEADER + size, 0);
        self.frontend.read_exact(&mut message[HEADER..]).map_err(|_| Error::Disconnected)?;
        trim_memory_table(&mut message);
        Ok((message, fds))
    }

    /// Answer `message` with success or failure, if it asks for that.
    fn answer(&self, message: &[u8], success: bool) -> Result<()> {
        if word(message, 4) & FLAG_NEED_REPLY == 0 {
            return Ok(());
        }
        let mut answer = message[..4].to_vec();
        answer.extend((FLAG_REPLY | VERSION).to_ne_bytes());
        answer.extend(8u32.to_ne_bytes());
        answer.extend(u64::from(!success).to_ne_bytes());
        // Less than a socket holds, so it goes as a whole.
        scm::send(&self.frontend, &answer, &[], 0).map_err(Error::SocketBroken)?;
        Ok(())
    }

    fn pass_answers(&mut self) -> Result<()> {
        let mut buffer = [0; HEADER + MAX_BODY];
        loop {
            let mut fds = Vec::new();
            let length = match scm::receive(&self.inside, &mut buffer, &mut fds, 0) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(Error::SocketError(error)),
            };
            let mut raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
            let mut sent = 0;
            while sent < length {
                sent +=
                    scm::send(&self.frontend, &buffer[sent..length], &raw, 0).map_err(Error::SocketBroken)?;
                raw.clear();
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Which queue a message enables, or disables, if it is whole (vhost-user, `VHOST_USER_SET_VRING_ENABLE`).
fn vring_enable(message: &[u8]) -> Option<(u32, bool)> {
    let complete = word(message, 0) == FrontendReq::SET_VRING_ENABLE as u32 && message.len() == HEADER + 8;
    let state = if complete { word(message, HEADER + 4) } else { u32::MAX };
    (state <= 1).then(|| (word(message, HEADER), state == 1))
}

/// Cut off what follows the last region of a memory table.
fn trim_memory_table(message: &mut Vec<u8>) {
    if word(message, 0) != FrontendReq::SET_MEM_TABLE as u32 || message.len() < HEADER + TABLE_HEADER {
        return;
    }
    let regions = word(message, HEADER) as usize;
    let size = TABLE_HEADER.saturating_add(regions.saturating_mul(TABLE_REGION));
    if HEADER.saturating_add(size) < message.len() {
        message.truncate(HEADER + size);
        message[8..12].copy_from_slice(&(size as u32).to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_enabled_by_a_whole_message_only() {
        let message = |request: FrontendReq, body: &[u32]| {
            let words = [&[request as u32, VERSION, 4 * body.len() as u32], body].concat();
            vring_enable(&words.into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<u8>>())
        };
        assert_eq!(message(FrontendReq::SET_VRING_ENABLE, &[3, 1]), Some((3, true)));
        assert_eq!(message(FrontendReq::SET_VRING_ENABLE, &[3, 0]), Some((3, false)));
        assert_eq!(message(FrontendReq::SET_VRING_ENABLE, &[3, 2]), None);
        assert_eq!(message(FrontendReq::SET_VRING_ENABLE, &[3]), None);
        assert_eq!(message(FrontendReq::SET_VRING_NUM, &[3, 1]), None);
    }

    #[test]
    fn a_memory_table_with_room_to_spare_is_cut() {
        let table = |regions: u32, room: usize| {
            let size = TABLE_HEADER + room * TABLE_REGION;
            let mut message = Vec::new();
            message.extend((FrontendReq::SET_MEM_TABLE as u32).to_ne_bytes());
            message.extend(1u32.to_ne_bytes());
            message.extend((size as u32).to_ne_bytes());
            message.extend(regions.to_ne_bytes());
            message.resize(HEADER + size, 0);
            trim_memory_table(&mut message);
            (message.len(), word(&message, 8) as usize)
        };
        assert_eq!(table(1, 2), (HEADER + 40, 40));
        assert_eq!(table(2, 2), (HEADER + 72, 72));
        assert_eq!(table(u32::MAX, 2), (HEADER + 72, 72));
    }
}
