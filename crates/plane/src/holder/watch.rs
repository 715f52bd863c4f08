//! The watch over a worker that hangs without dying: it computes and computes, and does not answer.
//!
//! Only a worker that has used the CPU since the last look is asked, so that one at rest is left asleep. One that was
//! stopped, or that waits within the host's kernel, uses no CPU and is left alone: a successor would fare no better.

use std::time::{Duration, Instant};

/// How often a worker is looked at.
pub const LOOK: Duration = Duration::from_secs(3);

/// CPU time between two looks from which on a worker is worth a question.
const BUSY: Duration = Duration::from_millis(100);

/// CPU time that a worker may use before it answers. A turn over hundreds of busy queues takes a tenth of that.
const PATIENCE: Duration = Duration::from_secs(2);

/// What follows from a look.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Fine,
    /// The worker is to be asked for an answer.
    Ask,
    /// It does not answer, and is to be replaced.
    Hung,
}

/// The watch over one worker process.
pub struct Watch {
    next: Instant,
    seen: Duration,
    /// The worker's CPU time when it was asked.
    asked: Option<Duration>,
}

impl Watch {
    /// Of a worker that has just begun.
    pub fn new(now: Instant) -> Watch {
        Watch { next: now + LOOK, seen: Duration::ZERO, asked: None }
    }

    /// `cpu`: the CPU time that the worker has used. May be called more often than every [`LOOK`].
    pub fn look(&mut self, now: Instant, cpu: Duration) -> Verdict {
        if now < self.next {
            return Verdict::Fine;
        }
        self.next = now + LOOK;
        let used = cpu.saturating_sub(std::mem::replace(&mut self.seen, cpu));
        match self.asked {
            Some(then) if cpu.saturating_sub(then) >= PATIENCE => Verdict::Hung,
            Some(_) => Verdict::Fine,
            None if used >= BUSY => {
                self.asked = Some(cpu);
                Verdict::Ask
            }
            None => Verdict::Fine,
        }
    }

    /// The worker has answered.
    pub fn answered(&mut self) {
        self.asked = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_worker_at_rest_is_not_asked() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        for turn in 1..100 {
            assert_eq!(watch.look(start + LOOK * turn, SECOND / 1000 * turn), Verdict::Fine);
        }
    }

    #[test]
    fn a_busy_worker_that_answers_is_asked_again_and_again() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        for turn in 1..100 {
            assert_eq!(watch.look(start + LOOK * turn, LOOK * turn), Verdict::Ask);
            assert_eq!(watch.look(start + LOOK * turn + SECOND, LOOK * turn + SECOND), Verdict::Fine);
            watch.answered();
        }
    }

    #[test]
    fn a_worker_that_computes_and_does_not_answer_is_hung() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        assert_eq!(watch.look(start + SECOND, SECOND), Verdict::Fine);
        assert_eq!(watch.look(start + LOOK, LOOK), Verdict::Ask);
        assert_eq!(watch.look(start + LOOK * 2, LOOK * 2), Verdict::Hung);
    }

    #[test]
    fn a_worker_that_gets_no_cpu_has_all_the_time_it_needs() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        assert_eq!(watch.look(start + LOOK, SECOND), Verdict::Ask);
        for turn in 2..100 {
            assert_eq!(watch.look(start + LOOK * turn, SECOND * 2), Verdict::Fine);
        }
        assert_eq!(watch.look(start + LOOK * 100, SECOND * 3), Verdict::Hung);
    }
}
