//! How long to look for work before sleeping: a wake-up costs 30 to 60 µs, spinning costs a CPU.
//!
//! A window grows while work arrives soon after we slept, and shuts when it takes longer than the window may ever be: a
//! worker without work never spins. (QEMU's aio poll has the same idea.) A device and a guest have their own pace each,
//! so what we learn from waiting for one says nothing of the other. Of machines on a network each has its own: one that answers what it
//! gets is waited for, one that asks now and then is not.
//!
//! Spinning is for CPUs that nobody else wants. Whoever spins where others wait takes their time, and pays for it with
//! its own turn when there is work: so when somebody else has run between two looks, there is none for a while. A guest
//! on our own CPU even works only once we sleep: so there is none either when it finds nothing again and again. To a machine that
//! is to answer a frame we leave the CPU between two looks, and go on when it sleeps.

use std::time::Duration;

use crate::clock::Nanos;

/// Longest window for a disk. It answers a lone request after 50 to 100 µs, and spinning through that costs twice the CPU of
/// a sleep, and a guest that shares the CPU a third of its requests; with many in flight the next answer is a few µs away.
pub const DISK: Duration = Duration::from_micros(20);

/// Longest window for a guest that was just answered: its wake-up and its next request take 30 to 50 µs.
pub const GUEST: Duration = Duration::from_micros(50);

/// Longest window for the answer of a machine that got a frame: its wake-up, what it does, and a frame of its own.
pub const PEER: Duration = Duration::from_micros(200);

/// First window after a closed one.
const FIRST: Duration = Duration::from_micros(8);

/// What a wake-up across CPUs adds to the time that we seem to have slept.
const WAKE_UP: Duration = Duration::from_micros(30);

/// Between two looks, which are less than a µs apart, nothing but somebody else on our CPU takes longer, ns.
const TAKEN_AWAY: Nanos = 100_000;

/// Who waits for an answer leaves the CPU to whoever wants it, perhaps to who is to answer: only longer than this it was
/// somebody else, ns.
const GIVEN_AWAY: Nanos = 400_000;

/// Spins in a row, from the first short one on, that may find nothing.
const MISSES: u32 = 8;

/// First and longest pause of spinning after either, ns: it doubles if it happens again soon.
const FIRST_PAUSE: Nanos = 5_000_000;
const LONGEST_PAUSE: Nanos = 320_000_000;

/// What there is to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// Requests.
    Guest,
    /// The answer of the device at this place, which got a frame.
    Peer(u16),
    /// Answers.
    Disk,
    /// Answers of a thread of the kernel, which may want this CPU: never by spinning.
    Thread,
}

/// When a worker spins, and for how long.
pub struct Spinning {
    guest: Polling,
    disk: Polling,
    /// By place.
    peers: Vec<Polling>,
    /// What it waits for, and the last look at the clock.
    spin: Option<(For, Nanos)>,
    /// Others want the CPU.
    pause: Pause,
}

impl Default for Spinning {
    /// Not at first.
    fn default() -> Spinning {
        let (guest, disk) = (Polling::new(GUEST), Polling::new(DISK));
        Spinning { guest, disk, peers: Vec::new(), spin: None, pause: Pause::default() }
    }
}

impl Spinning {
    /// How long to spin now.
    pub fn window(&mut self, now: Nanos, whom: For) -> Duration {
        let paused = now < self.pause.until;
        let window = self.polling(whom).filter(|polling| now >= polling.pause.until && !paused);
        window.map_or(Duration::ZERO, |polling| polling.window)
    }

    /// It begins.
    pub fn begin(&mut self, now: Nanos, whom: For) {
        self.spin = Some((whom, now));
    }

    /// A look at the clock.
    pub fn look(&mut self, now: Nanos) {
        if let Some((whom, last)) = &mut self.spin {
            let most = if matches!(whom, For::Peer(_)) { GIVEN_AWAY } else { TAKEN_AWAY };
            if now - std::mem::replace(last, now) > most {
                self.pause.begin(now);
            }
        }
    }

    /// It has found work, if there was any spinning.
    pub fn found(&mut self, now: Nanos) {
        if let Some(polling) = self.end(now) {
            polling.misses = 0;
        }
    }

    /// It has found none.
    pub fn missed(&mut self, now: Nanos) {
        if let Some(polling) = self.end(now) {
            polling.missed(now);
        }
    }

    /// Work has arrived after `idle`, spinning and sleeping.
    pub fn learn(&mut self, whom: For, idle: Duration) {
        if let Some(polling) = self.polling(whom) {
            polling.learn(idle);
        }
    }

    fn end(&mut self, now: Nanos) -> Option<&mut Polling> {
        self.look(now);
        let (whom, _) = self.spin.take()?;
        self.polling(whom)
    }

    fn polling(&mut self, whom: For) -> Option<&mut Polling> {
        match whom {
            For::Guest => Some(&mut self.guest),
            For::Disk => Some(&mut self.disk),
            For::Peer(slot) => {
                let places = self.peers.len().max(usize::from(slot) + 1);
                self.peers.resize_with(places, || Polling::new(PEER));
                self.peers.get_mut(usize::from(slot))
            }
            For::Thread => None,
        }
    }
}

/// A time without spinning.
#[derive(Default)]
struct Pause {
    until: Nanos,
    length: Nanos,
}

impl Pause {
    fn begin(&mut self, now: Nanos) {
        let again = now < self.until + self.length;
        self.length = if again { (self.length * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
        self.until = now + self.length;
    }
}

/// A window.
struct Polling {
    window: Duration,
    longest: Duration,
    /// How often in a row nothing was found.
    misses: u32,
    pause: Pause,
}

impl Polling {
    /// Closed at first; never longer than `longest`.
    fn new(longest: Duration) -> Polling {
        Polling { window: Duration::ZERO, longest, misses: 0, pause: Pause::default() }
    }

    fn missed(&mut self, now: Nanos) {
        self.misses += 1;
        if self.misses == MISSES {
            (self.misses, self.window) = (0, Duration::ZERO);
            self.pause.begin(now);
        }
    }

    fn learn(&mut self, idle: Duration) {
        if idle <= self.window {
            return;
        }
        self.window = if idle.saturating_sub(WAKE_UP) <= self.longest {
            (self.window * 2).clamp(FIRST, self.longest)
        } else if self.window > FIRST {
            self.window / 2
        } else {
            Duration::ZERO
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Nanos = 1_000;
    const MS: Nanos = 1_000_000;

    /// One that has learnt that guest and disk are quick, at time 1 s.
    fn quick() -> (Spinning, Nanos) {
        let mut spinning = Spinning::default();
        for _ in 0..10 {
            spinning.learn(For::Guest, Duration::from_micros(70));
            spinning.learn(For::Disk, Duration::from_micros(40));
        }
        (spinning, 1_000 * MS)
    }

    #[test]
    fn a_window_opens_with_quick_work_and_shuts_with_slow() {
        let mut spinning = Spinning::default();
        assert_eq!(spinning.window(MS, For::Guest), Duration::ZERO);
        let (mut spinning, now) = quick();
        assert_eq!(spinning.window(now, For::Guest), GUEST);
        for _ in 0..10 {
            spinning.learn(For::Guest, Duration::from_millis(1));
        }
        assert_eq!(spinning.window(now, For::Guest), Duration::ZERO);
        assert_eq!(spinning.window(now, For::Disk), DISK);
    }

    #[test]
    fn a_device_that_is_slow_is_not_waited_for_by_spinning() {
        let mut spinning = Spinning::default();
        spinning.learn(For::Disk, DISK + WAKE_UP + Duration::from_micros(5));
        assert_eq!(spinning.window(MS, For::Disk), Duration::ZERO);
    }

    #[test]
    fn there_is_no_spinning_where_others_want_the_cpu() {
        let (mut spinning, now) = quick();
        spinning.begin(now, For::Guest);
        spinning.look(now + US);
        spinning.found(now + 3 * MS);
        let again = now + 3 * MS + FIRST_PAUSE;
        assert_eq!(spinning.window(again - 1, For::Guest), Duration::ZERO);
        assert_eq!(spinning.window(again - 1, For::Disk), Duration::ZERO);
        assert_eq!(spinning.window(again, For::Guest), GUEST);
        spinning.begin(again, For::Disk);
        spinning.found(again + MS);
        assert_eq!(spinning.window(again + MS + 2 * FIRST_PAUSE - 1, For::Disk), Duration::ZERO);
        assert_eq!(spinning.window(again + MS + 2 * FIRST_PAUSE, For::Disk), DISK);
        let late = now + 2_000 * MS;
        spinning.begin(late, For::Guest);
        spinning.found(late + MS);
        assert_eq!(spinning.window(late + MS + FIRST_PAUSE, For::Guest), GUEST);
    }

    #[test]
    fn a_guest_that_works_only_while_we_sleep_is_not_waited_for_by_spinning() {
        let mut spinning = Spinning::default();
        let (mut now, mut spun) = (0, 0);
        while now < 1_000 * MS {
            let window = spinning.window(now, For::Guest);
            spinning.begin(now, For::Guest);
            now += window.as_nanos() as Nanos;
            spun += window.as_nanos() as Nanos;
            spinning.missed(now);
            now += 5 * US;
            spinning.learn(For::Guest, window + Duration::from_micros(5));
        }
        assert!(spun < 10 * MS, "{spun}");
        // A disk is something else.
        spinning.learn(For::Disk, Duration::from_micros(40));
        assert_eq!(spinning.window(now, For::Disk), FIRST);
    }

    #[test]
    fn each_machine_that_answers_has_a_window_of_its_own() {
        let mut spinning = Spinning::default();
        for _ in 0..10 {
            spinning.learn(For::Peer(3), Duration::from_micros(190));
            spinning.learn(For::Peer(0), Duration::from_millis(1));
        }
        let now = 1_000 * MS;
        assert_eq!(spinning.window(now, For::Peer(3)), PEER);
        for other in [For::Peer(0), For::Peer(9), For::Guest, For::Disk] {
            assert_eq!(spinning.window(now, other), Duration::ZERO, "{other:?}");
        }
        spinning.begin(now, For::Peer(3));
        spinning.found(now + GIVEN_AWAY);
        assert_eq!(spinning.window(now + GIVEN_AWAY, For::Peer(3)), PEER, "it is its CPU too");
        spinning.begin(now, For::Peer(3));
        spinning.found(now + GIVEN_AWAY + 1);
        assert_eq!(spinning.window(now + GIVEN_AWAY + 1, For::Peer(3)), Duration::ZERO);
    }

    #[test]
    fn a_thread_is_left_the_cpu() {
        let (mut spinning, now) = quick();
        spinning.learn(For::Thread, Duration::from_micros(5));
        assert_eq!(spinning.window(now, For::Thread), Duration::ZERO);
        assert_eq!(spinning.window(now, For::Disk), DISK);
    }

    #[test]
    fn an_end_without_a_begin_is_nothing() {
        let (mut spinning, now) = quick();
        spinning.found(now + 100 * MS);
        assert_eq!(spinning.window(now + 100 * MS, For::Guest), GUEST);
    }
}
