//! A single-threaded executor for the futures of a worker's slow paths.
//!
//! It has no reactor of its own: [`crate::uring::Uring`] wakes its futures from completions.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The tasks of one thread and the queue of those that can go on.
#[derive(Default)]
pub struct Executor {
    slots: RefCell<Slots>,
    ready: Arc<Ready>,
}

/// Slots of tasks that can go on.
#[derive(Default)]
struct Ready {
    queue: Mutex<VecDeque<usize>>,
    /// How many there are, for those who only look: a loop that polls does so all the time.
    length: AtomicUsize,
}

impl Ready {
    fn push(&self, slot: usize) {
        let mut queue = lock(&self.queue);
        queue.push_back(slot);
        self.length.store(queue.len(), Ordering::Release);
    }

    fn pop(&self) -> Option<usize> {
        let mut queue = lock(&self.queue);
        let slot = queue.pop_front();
        self.length.store(queue.len(), Ordering::Release);
        slot
    }

    fn len(&self) -> usize {
        self.length.load(Ordering::Acquire)
    }
}

#[derive(Default)]
struct Slots {
    tasks: Vec<Slot>,
    free: Vec<usize>,
}

struct Slot {
    task: Option<Task>,
    alarm: Arc<Alarm>,
}

/// Puts one slot into the ready queue; `Waker` must be `Send`, hence the atomics.
struct Alarm {
    slot: usize,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.push(self.slot);
        }
    }
}

/// A panic while the queue is locked cannot leave it half-changed, so poison means nothing here.
fn lock(ready: &Mutex<VecDeque<usize>>) -> std::sync::MutexGuard<'_, VecDeque<usize>> {
    ready.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Executor {
    /// Starts `task`; it is polled for the first time by the next [`run_ready`](Self::run_ready).
    pub fn spawn_local(&self, task: impl Future<Output = ()> + 'static) {
        let mut slots = self.slots.borrow_mut();
        let slot = match slots.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = slots.tasks.len();
                let alarm =
                    Arc::new(Alarm { slot, queued: AtomicBool::new(false), ready: self.ready.clone() });
                slots.tasks.push(Slot { task: None, alarm });
                slot
            }
        };
        slots.tasks[slot].task = Some(Box::pin(task));
        slots.tasks[slot].alarm.wake_by_ref();
    }

    /// Polls each task that is ready now, once. Those made ready meanwhile wait for the next call.
    pub fn run_ready(&self) {
        for _ in 0..self.ready.len() {
            let Some(slot) = self.ready.pop() else { return };
            self.poll(slot);
        }
    }

    /// Whether a task waits to be polled.
    pub fn has_ready(&self) -> bool {
        self.ready.len() > 0
    }

    /// Drops all tasks where they are.
    #[cfg(test)]
    pub fn abandon(&self) {
        let tasks: Vec<_> = self.slots.borrow_mut().tasks.iter_mut().map(|slot| slot.task.take()).collect();
        drop(tasks);
    }

    /// How many tasks have not finished.
    pub fn tasks(&self) -> usize {
        let slots = self.slots.borrow();
        slots.tasks.len() - slots.free.len()
    }

    /// The task is out of its slot while it runs, so that it may spawn others.
    fn poll(&self, slot: usize) {
        let (task, alarm) = {
            let mut slots = self.slots.borrow_mut();
            let entry = &mut slots.tasks[slot];
            entry.alarm.queued.store(false, Ordering::Release);
            (entry.task.take(), entry.alarm.clone())
        };
        // A late wake-up of a task that has ended finds its slot empty.
        let Some(mut task) = task else { return };
        let waker = Waker::from(alarm);
        let state = task.as_mut().poll(&mut Context::from_waker(&waker));
        let mut slots = self.slots.borrow_mut();
        match state {
            Poll::Pending => slots.tasks[slot].task = Some(task),
            Poll::Ready(()) => slots.free.push(slot),
        }
    }
}

/// Runs `futures` side by side and returns their outputs in order.
pub async fn join_all<T>(futures: Vec<Pin<Box<dyn Future<Output = T> + '_>>>) -> Vec<T> {
    let mut outputs: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    let mut futures: Vec<_> = futures.into_iter().map(Some).collect();
    poll_fn(|cx| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if let Some(running) = future
                && let Poll::Ready(value) = running.as_mut().poll(cx)
            {
                *output = Some(value);
                *future = None;
            }
        }
        if futures.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    #[test]
    fn a_task_runs_again_only_when_woken() {
        let executor = Executor::default();
        let polls = Rc::new(Cell::new(0));
        let waker: Rc<RefCell<Option<Waker>>> = Rc::default();
        let (seen, place) = (polls.clone(), waker.clone());
        executor.spawn_local(poll_fn(move |cx| {
            seen.set(seen.get() + 1);
            *place.borrow_mut() = Some(cx.waker().clone());
            if seen.get() == 2 { Poll::Ready(()) } else { Poll::Pending }
        }));
        executor.run_ready();
        executor.run_ready();
        assert_eq!((polls.get(), executor.tasks()), (1, 1));
        let waker = waker.take().unwrap();
        waker.wake_by_ref();
        waker.wake_by_ref();
        executor.run_ready();
        assert_eq!((polls.get(), executor.tasks()), (2, 0));
        waker.wake();
        executor.run_ready();
        assert_eq!(polls.get(), 2);
    }

    #[test]
    fn a_task_may_spawn_another() {
        let executor = Rc::new(Executor::default());
        let done = Rc::new(Cell::new(false));
        let (inner, flag) = (executor.clone(), done.clone());
        executor.spawn_local(async move { inner.spawn_local(async move { flag.set(true) }) });
        executor.run_ready();
        assert!(!done.get() && executor.has_ready());
        executor.run_ready();
        assert!(done.get() && executor.tasks() == 0);
    }
}
