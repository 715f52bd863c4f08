//! A worker process, as the holder keeps it: started, spoken to, and started again when it dies.
//!
//! Whoever changes a device's shadow queues the message that tells the worker, under the same lock, and never waits for
//! the socket. One thread for each worker sends, listens and restarts; a new worker gets all shadows from the start.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::clock;
use crate::control::{Channel, FromWorker, ToWorker};
use crate::holder::events::{Events, lock};
use crate::holder::reopen;
use crate::holder::shadow::Outgoing;
use crate::holder::watch::{LOOK, Verdict, Watch};
use crate::shares::{Resource, Shares};

mod hear;
mod state;

pub use state::{State, ask_to_close, ask_to_stop};

/// A worker that dies sooner than this after its start is in a crash loop.
const STABLE: Duration = Duration::from_secs(2);

/// First and longest pause before the next start in a crash loop.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Stack of our threads, which call nothing deep; the default of 2 MiB would count against overcommit limits.
pub const STACK: usize = 256 * 1024;

/// How a wait for answers has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// All have come.
    All,
    /// Another worker runs, which has been told everything from the start.
    Restarted,
    /// Neither.
    TimedOut,
}

/// A worker and what it serves.
pub struct Link {
    /// Name, as in the configuration of its devices.
    pub name: String,
    argv: Vec<String>,
    /// What it serves.
    pub resource: Resource,
    state: Mutex<State>,
    answered: Condvar,
    wake: EventFd,
    events: Arc<Events>,
}

impl Link {
    /// Start the thread that keeps a worker running.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn start(
        name: &str,
        argv: &[String],
        (resource, shares): (Resource, Shares),
        events: Arc<Events>,
    ) -> io::Result<(Arc<Link>, JoinHandle<()>)> {
        let link = Arc::new(Link {
            name: name.to_owned(),
            argv: argv.to_vec(),
            resource,
            state: Mutex::new(State { shares, ..State::default() }),
            answered: Condvar::new(),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            events,
        });
        let keeper = link.clone();
        let builder = thread::Builder::new().name(format!("worker {name}")).stack_size(STACK);
        Ok((link, builder.spawn(move || keeper.keep())?))
    }

    /// The state, locked.
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Change the state and wake the thread that sends.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.nudge();
        result
    }

    /// Wait for the answer to `serial`; the worker may be replaced meanwhile. `None` after `patience`.
    pub fn wait(&self, serial: u64, patience: Duration) -> Option<u16> {
        let waiting = |state: &mut State| !state.answers.contains_key(&serial) && !state.ending;
        let (mut state, _) = self
            .answered
            .wait_timeout_while(self.state(), patience, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        state.answers.remove(&serial)
    }

    /// Wait for the answers to all of `serials` from the worker that is number `generation`.
    pub fn wait_all(&self, serials: &[u64], generation: u64, patience: Duration) -> Waited {
        let outcome = |state: &State| {
            if state.generation != generation {
                return Some(Waited::Restarted);
            }
            serials.iter().all(|serial| state.answers.contains_key(serial)).then_some(Waited::All)
        };
        let waiting = |state: &mut State| outcome(state).is_none() && !state.ending;
        let (mut state, _) = self
            .answered
            .wait_timeout_while(self.state(), patience, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        let outcome = outcome(&state).unwrap_or(Waited::TimedOut);
        for serial in serials {
            state.answers.remove(serial);
        }
        outcome
    }

    /// Kill the worker; another one follows.
    pub fn kill(&self) {
        let state = self.state();
        if state.pid != 0 {
            // SAFETY: passes no pointer. The process is our child and not reaped: that happens before `pid` becomes 0.
            unsafe { libc::kill(state.pid as libc::pid_t, libc::SIGKILL) };
        }
    }

    /// The state of the worker's arbiter, in parts; `None` if it does not tell within `patience`.
    pub fn query_arbiter(&self, patience: Duration) -> Option<Vec<Value>> {
        self.ask(patience, |serial| Outgoing { message: ToWorker::QueryArbiter { serial }, fds: Vec::new() })
    }

    /// What is asked of the worker's device and how it answers, in parts; with `anew` it is recorded anew from now on.
    pub fn query_demand(&self, anew: bool, patience: Duration) -> Option<Vec<Value>> {
        self.ask(patience, |serial| Outgoing {
            message: ToWorker::QueryDemand { anew, serial },
            fds: Vec::new(),
        })
    }

    /// Ask for something by a message with a serial number; the parts of the answer. `None` if it does not come in time, or if
    /// the worker dies before.
    pub fn ask(&self, patience: Duration, question: impl Fn(u64) -> Outgoing) -> Option<Vec<Value>> {
        let serial = self.change(|state| {
            let serial = state.next_serial();
            state.ask(serial, question(serial));
            serial
        });
        let complete = |state: &State| state.reports.get(&serial).is_none_or(|(_, all)| *all);
        let waiting = |state: &mut State| !complete(state) && !state.ending;
        let (mut state, _) = self
            .answered
            .wait_timeout_while(self.state(), patience, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        state.reports.remove(&serial).filter(|(_, all)| *all).map(|(parts, _)| parts)
    }

    /// Wait until the worker has opened `device`, or says why it cannot.
    ///
    /// # Errors
    /// What the worker says, or that it says nothing for `patience`.
    pub fn wait_opened(&self, device: u32, patience: Duration) -> io::Result<()> {
        let opened = |state: &State| state.devices.get(&device).and_then(|shadow| shadow.opened.clone());
        let waiting = |state: &mut State| opened(state).is_none() && !state.ending;
        let (state, _) = self
            .answered
            .wait_timeout_while(self.state(), patience, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        match opened(&state) {
            Some(Ok(())) => Ok(()),
            Some(Err(reason)) => Err(io::Error::new(io::ErrorKind::InvalidData, reason)),
            None => {
                let reason = format!("worker {} does not open the device", self.name);
                Err(io::Error::new(io::ErrorKind::TimedOut, reason))
            }
        }
    }

    /// Let the worker go; its thread ends.
    pub fn end(&self) {
        self.change(|state| state.ending = true);
        self.answered.notify_all();
    }

    fn nudge(&self) {
        // Fails only if the thread has been told already.
        let _ = self.wake.write(1);
    }

    /// Keep a worker running until the end.
    fn keep(&self) {
        let mut pause = Duration::ZERO;
        loop {
            let start = Instant::now();
            let own_fault = self.run_one().unwrap_or_else(|error| {
                self.events.push("WORKER_EXITED", json!({"name": self.name, "error": error.to_string()}));
                true
            });
            // The first crash costs no time, and neither does a kill from outside: only a loop of crashes does.
            let looping = own_fault && start.elapsed() < STABLE;
            self.sleep(if looping { pause } else { Duration::ZERO });
            pause = if looping { (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE) } else { Duration::ZERO };
            if self.state().ending {
                return;
            }
        }
    }

    /// Wait for `pause`, or until the worker is not wanted any more.
    fn sleep(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while !self.state().ending && Instant::now() < until {
            // Whole milliseconds, and one more, or the last of them would be a busy loop.
            self.poll(None, until.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        }
    }

    /// One worker, from its start to its end; whether it ended by its own fault (SIGKILL is somebody else's).
    fn run_one(&self) -> io::Result<bool> {
        let (ours, theirs) = Channel::pair()?;
        let mut child = self.spawn(theirs)?;
        self.resolve_doubts();
        self.change(|state| {
            state.pid = child.id();
            state.generation += 1;
            state.reopen.clear();
            state.begin();
            for shadow in state.devices.values_mut().filter(|shadow| shadow.switching) {
                (shadow.switching, shadow.opened) = (false, None);
            }
            let devices = state.devices.iter().flat_map(|(number, shadow)| shadow.snapshot(*number));
            state.outbox.extend(devices);
            state.ask_early();
            let data = json!({"name": self.name, "pid": state.pid, "generation": state.generation});
            self.events.push("WORKER_STARTED", data);
        });
        let outcome = self.converse(&ours, child.id());
        drop(ours);
        let pid = child.id();
        let status = self.reap(&mut child);
        let own_fault = status.as_ref().is_ok_and(|status| status.signal() != Some(libc::SIGKILL));
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let mut state = self.state();
        state.pid = 0;
        state.outbox.clear();
        state.reports.clear();
        self.answered.notify_all();
        let data = json!({"name": self.name, "pid": pid, "status": status, "expected": state.ending,
            "error": outcome.err().map(|error| error.to_string())});
        self.events.push("WORKER_EXITED", data);
        Ok(own_fault)
    }

    /// Before a new worker serves: how did the flushes end that the last one did not live to see?
    fn resolve_doubts(&self) {
        let doubts: Vec<_> = {
            let state = self.state();
            let devices = state.devices.values();
            devices.filter_map(|shadow| Some((shadow.config.id().to_owned(), shadow.doubt()?))).collect()
        };
        for (id, doubt) in doubts {
            if doubt.resolve() {
                self.events.push("DEVICE_FLUSH_FAILED", json!({"id": id}));
            }
        }
    }

    /// The worker has its end as standard input: that needs nothing done between fork and exec, and so no copy of our
    /// page tables, which a fork would make while our other threads wait.
    fn spawn(&self, theirs: Channel) -> io::Result<Child> {
        let (program, arguments) =
            self.argv.split_first().ok_or_else(|| io::Error::other("no worker_argv"))?;
        Command::new(program).args(arguments).arg("0").stdin(OwnedFd::from(theirs)).spawn()
    }

    /// The exit status. A worker ends by itself when its socket closes; one that does not is killed.
    fn reap(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(1));
        }
        // If it has just ended, killing fails and waiting does not.
        let _ = child.kill();
        child.wait()
    }

    /// Send and listen until the worker closes the socket, hangs or is to end.
    fn converse(&self, channel: &Channel, pid: u32) -> io::Result<()> {
        let mut watch = Watch::new(Instant::now());
        loop {
            match watch.look(Instant::now(), clock::cpu_time(pid)?) {
                Verdict::Fine => {}
                Verdict::Ask => self.state().tell(Outgoing { message: ToWorker::Ping, fds: Vec::new() }),
                Verdict::Hung => return Err(io::Error::other("it computes and does not answer")),
            }
            reopen::retry(&mut self.state());
            let full = self.send(channel)?;
            if self.state().ending {
                return Ok(());
            }
            let rest = self.state().reopen.rest(LOOK);
            self.poll(Some((channel, full)), rest);
            loop {
                match channel.receive::<FromWorker>() {
                    Ok(Some((FromWorker::Pong, _))) => watch.answered(),
                    Ok(Some((message, _))) => self.hear(message),
                    Ok(None) => return Ok(()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Send what is queued; true if the socket is full before the end.
    fn send(&self, channel: &Channel) -> io::Result<bool> {
        loop {
            let Some(outgoing) = self.state().outbox.pop_front() else { return Ok(false) };
            match channel.send(&outgoing.message, &outgoing.raw_fds()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.state().outbox.push_front(outgoing);
                    return Ok(true);
                }
                // The worker has gone; the socket says so when it is read.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sleep until the worker says something (or takes something, if the socket is full), or we are nudged.
    fn poll(&self, channel: Option<(&Channel, bool)>, timeout: Duration) {
        let (fd, full) = channel.map_or((-1, false), |(channel, full)| (channel.as_raw_fd(), full));
        let events = libc::POLLIN | if full { libc::POLLOUT } else { 0 };
        let mut fds = [
            libc::pollfd { fd, events, revents: 0 },
            libc::pollfd { fd: self.wake.as_raw_fd(), events: libc::POLLIN, revents: 0 },
        ];
        // SAFETY: two pollfds. An error is a signal, after which the caller looks around and comes back.
        unsafe { libc::poll(fds.as_mut_ptr(), 2, timeout.as_millis() as libc::c_int) };
        // Fails only if we have not been nudged.
        let _ = self.wake.read();
    }
}
