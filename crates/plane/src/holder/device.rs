//! A device's thread in the holder: accepts a frontend, serves the protocol, accepts the next.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;
use vhost::vhost_user::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::holder::balloons::PAUSE;
use crate::holder::events::{Events, lock};
use crate::holder::link::{Link, STACK};
use crate::holder::offer::Offer;
use crate::holder::relay::{Channel, Relay};
use crate::holder::session::Session;

/// A connection shorter than this is followed by a pause as long.
const SHORTEST: Duration = Duration::from_millis(10);

/// A served device.
pub struct Device {
    /// Its number at its worker.
    pub number: u32,
    /// Its worker.
    pub link: Arc<Link>,
    offer: Arc<Offer>,
    channel: Arc<Channel>,
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

/// How to end the thread: it waits for a frontend, or for what a frontend says.
struct Stop {
    flag: AtomicBool,
    wake: EventFd,
    stream: Mutex<Option<UnixStream>>,
}

/// What the thread works with.
struct Server {
    id: String,
    number: u32,
    listener: UnixListener,
    link: Arc<Link>,
    offer: Arc<Offer>,
    channel: Arc<Channel>,
    events: Arc<Events>,
    stop: Arc<Stop>,
}

impl Device {
    /// Serve frontends that connect to `listener`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn start(
        (id, number): (&str, u32),
        listener: OwnedFd,
        link: Arc<Link>,
        offer: Offer,
        events: Arc<Events>,
    ) -> io::Result<Device> {
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let stop = Arc::new(Stop { flag: AtomicBool::new(false), wake, stream: Mutex::default() });
        let (offer, channel) = (Arc::new(offer), Arc::default());
        let server = Server {
            id: id.to_owned(),
            number,
            listener,
            link: link.clone(),
            offer: Arc::clone(&offer),
            channel: Arc::clone(&channel),
            events,
            stop: stop.clone(),
        };
        let thread = thread::Builder::new().name(format!("device {number}")).stack_size(STACK);
        let thread = thread.spawn(move || server.run())?;
        Ok(Device { number, link, offer, channel, stop, thread })
    }

    /// Its configuration space.
    pub fn config_space(&self) -> Vec<u8> {
        lock(&self.offer.config).clone()
    }

    /// These `bytes` of its configuration space, from `place` on, are others from now on, and the frontend hears of it, also if
    /// they are not.
    pub fn patch(&self, place: usize, bytes: &[u8]) {
        if let Some(there) = lock(&self.offer.config).get_mut(place..place + bytes.len()) {
            there.copy_from_slice(bytes);
        }
        self.channel.config_changed();
    }

    /// Its configuration space is `space` from now on, and the frontend hears of it.
    pub fn reconfigure(&self, space: Vec<u8>) {
        *lock(&self.offer.config) = space;
        self.channel.config_changed();
    }

    /// Disconnect the frontend, wait for what is in flight, end the thread.
    pub fn stop(self) {
        self.stop.flag.store(true, Ordering::SeqCst);
        // Fails only if it is readable already.
        let _ = self.stop.wake.write(1);
        if let Some(stream) = lock(&self.stop.stream).as_ref() {
            // Fails only if the frontend has gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        if self.thread.join().is_err() {
            eprintln!("plane: the thread of device {} panicked", self.number);
        }
    }
}

impl Server {
    fn run(&self) {
        while let Some(stream) = self.accept() {
            let start = Instant::now();
            self.set_connected(true);
            self.serve(stream);
            self.set_connected(false);
            // Who comes and goes in a loop must not keep us, and those who read our events, busy.
            if start.elapsed() < SHORTEST {
                thread::sleep(SHORTEST);
            }
        }
    }

    /// The next frontend; `None` when it is time to end.
    fn accept(&self) -> Option<UnixStream> {
        loop {
            let mut fds = [self.listener.as_raw_fd(), self.stop.wake.as_raw_fd()].map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            });
            // SAFETY: two pollfds. After a signal the loop comes back.
            unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
            if self.stop.flag.load(Ordering::SeqCst) {
                return None;
            }
            match self.listener.accept() {
                Ok((stream, _)) => match stream.set_nonblocking(false) {
                    Ok(()) => return Some(stream),
                    Err(error) => eprintln!("plane: {}: {error}", self.id),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // Out of fds, most likely: try again when some may have been closed.
                    eprintln!("plane: {}: accept: {error}", self.id);
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn serve(&self, stream: UnixStream) {
        let session = Session::new(self.number, self.link.clone(), self.offer.clone(), self.events.clone());
        let session = Arc::new(Mutex::new(session));
        match stream.try_clone() {
            Ok(copy) => *lock(&self.stop.stream) = Some(copy),
            Err(error) => return eprintln!("plane: {}: {error}", self.id),
        }
        let mut relay = match Relay::new(stream, session.clone(), self.channel.clone()) {
            Ok(relay) => relay,
            Err(error) => return eprintln!("plane: {}: {error}", self.id),
        };
        while !self.stop.flag.load(Ordering::SeqCst) {
            match relay.handle_one() {
                Ok(()) => self.ask_on(&session),
                // The frontend has been told, if it asked for an answer; the connection is in order.
                Err(Error::ReqHandlerError(error)) => lock(&session).violation("refused", &error.to_string()),
                Err(Error::Disconnected) => break,
                Err(error) => {
                    lock(&session).violation("protocol", &error.to_string());
                    break;
                }
            }
        }
        *lock(&self.stop.stream) = None;
        lock(&session).end();
    }

    /// The next bite of a balloon that has grown.
    fn ask_on(&self, session: &Mutex<Session>) {
        if std::mem::take(&mut lock(session).given) {
            thread::sleep(PAUSE);
            if lock(session).next_bite() {
                self.channel.config_changed();
            }
        }
    }

    fn set_connected(&self, connected: bool) {
        if let Some(shadow) = self.link.state().devices.get_mut(&self.number) {
            shadow.connected = connected;
        }
        let event = if connected { "DEVICE_CONNECTED" } else { "DEVICE_DISCONNECTED" };
        self.events.push(event, json!({"id": self.id}));
    }
}
