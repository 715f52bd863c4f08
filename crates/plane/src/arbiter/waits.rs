//! Who waited for whom, how long: kept all the time, in a space that does not depend on how long.
//!
//! Every leaf adds up, at its own events, how long its requests wait and how much of the window they occupy. At the end
//! of a period the waits of each machine are charged to those who occupied the window meanwhile, each by their part of
//! it. So a request costs a few additions, whatever the number of others.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Arbiter, Nanos, ROOT};

/// How long a period is.
pub(super) const PERIOD: Nanos = 100_000_000;

/// In each period so many machines are named as occupiers of the window; the rest is charged to "others".
const NAMED: usize = 16;

/// At most so many rows are told at a time, and one for each cause that adds up the others.
const ROWS: usize = 64;

/// At most so many rows are kept of nodes that have gone, until they are told.
const MOST_PAST: usize = 1024;

/// Stands for all machines that are not named.
const OTHERS: u32 = u32::MAX;

/// What a request waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Another machine's requests occupied the device.
    Machine,
    /// The device itself: served its request, or others of the same machine before it.
    Device,
    /// A limit.
    Limit,
}

/// A row of the matrix of waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The machine whose requests waited; empty in a row that adds up many.
    pub waiter: String,
    /// For what.
    pub cause: Cause,
    /// The machine, or the node whose limit it was; empty for the device and for many.
    pub whom: String,
    /// Sum of the times that its requests waited.
    pub wait_us: u64,
    /// How many of the waiter's requests were started meanwhile after a wait; at the device: were completed.
    pub requests: u64,
}

impl Wait {
    fn of(waiter: &str, cause: Cause, whom: &str, sum: Sum) -> Wait {
        let (waiter, whom) = (waiter.to_owned(), whom.to_owned());
        Wait { waiter, cause, whom, wait_us: sum.nanos / 1000, requests: sum.requests }
    }
}

/// What a leaf adds up in a period. Times are ns times requests.
#[derive(Default)]
pub(super) struct Account {
    since: Nanos,
    closed_seen: Nanos,
    window: u64,
    limit: u64,
    device: u64,
    /// ns times cost; of a link, which serves one at a time, cost.
    occupancy: u64,
    pub in_flight_cost: u64,
    pub started: u64,
    pub completed: u64,
}

impl Account {
    /// Until `now` `waiting` requests waited and `in_flight` were at the device. `closed`: how long limits above the leaf
    /// have been used up, ever.
    pub fn settle(&mut self, now: Nanos, waiting: usize, in_flight: u32, closed: Nanos) {
        let time = now.saturating_sub(std::mem::replace(&mut self.since, now));
        // Less than before, if the leaf has been moved away from a limit.
        let limited = closed.saturating_sub(std::mem::replace(&mut self.closed_seen, closed)).min(time);
        self.limit += limited * waiting as u64;
        self.window += (time - limited) * waiting as u64;
        self.device += time * u64::from(in_flight);
        self.occupancy += time * self.in_flight_cost;
    }

    /// A frame of so many bytes has gone: it had a link for as long as that takes.
    pub fn occupy(&mut self, bytes: u32) {
        self.occupancy += u64::from(bytes);
    }
}

#[derive(Default, Clone, Copy)]
struct Sum {
    nanos: u64,
    requests: u64,
}

/// The matrix since it was last told.
#[derive(Default)]
pub(super) struct Waits {
    rows: HashMap<(u32, Cause, u32), Sum>,
    /// Rows of nodes that have gone.
    past: Vec<Wait>,
}

impl Waits {
    fn add(&mut self, key: (u32, Cause, u32), nanos: u64, requests: u64) {
        if nanos > 0 {
            let sum = self.rows.entry(key).or_default();
            sum.nanos += nanos;
            sum.requests += requests;
        }
    }
}

/// What the leaves of a machine added up together.
struct Machine {
    node: u32,
    window: u64,
    occupancy: u64,
    started: u64,
}

impl Arbiter {
    /// Who waited for whom since the last call: the longest waits, at most 64 rows and one for each cause with the rest.
    pub fn take_waits(&mut self, now: Nanos) -> Vec<Wait> {
        self.close_period(now);
        let mut sums: Vec<_> = self.waits.rows.drain().collect();
        let mut rest = Vec::new();
        if sums.len() > ROWS {
            // Names cost more than all the rest of this: only the longest get theirs.
            sums.select_nth_unstable_by_key(ROWS, |(key, sum)| (Reverse(sum.nanos), *key));
            rest = sums.split_off(ROWS);
        }
        let mut rows = std::mem::take(&mut self.waits.past);
        rows.extend(sums.into_iter().map(|(key, sum)| self.row(key, sum)));
        rows.sort_by(|one, other| {
            (other.wait_us, &one.waiter, one.cause, &one.whom).cmp(&(
                one.wait_us,
                &other.waiter,
                other.cause,
                &other.whom,
            ))
        });
        let mut others = rows.split_off(rows.len().min(ROWS));
        others.extend(rest.into_iter().map(|((_, cause, _), sum)| Wait::of("", cause, "", sum)));
        for row in others {
            match rows.iter_mut().skip(ROWS).find(|sum| sum.cause == row.cause) {
                Some(sum) => {
                    sum.wait_us += row.wait_us;
                    sum.requests += row.requests;
                }
                None => rows.push(Wait { waiter: String::new(), whom: String::new(), ..row }),
            }
        }
        rows
    }

    /// Charge what was waited in the period that ends now.
    pub(super) fn close_period(&mut self, now: Nanos) {
        let mut machines: Vec<Machine> = Vec::new();
        let mut places = vec![usize::MAX; self.nodes.len()];
        for index in 1..self.nodes.len() as u32 {
            if self.nodes[index as usize].has_children() || self.nodes[index as usize].name.is_empty() {
                continue;
            }
            self.settle(now, index);
            let limiter = self.limiter(index);
            let node = self.machine_of(index);
            let account = &mut self.nodes[index as usize].account;
            let (window, limit, device) = (
                std::mem::take(&mut account.window),
                std::mem::take(&mut account.limit),
                std::mem::take(&mut account.device),
            );
            let occupancy = std::mem::take(&mut account.occupancy);
            let (started, completed) =
                (std::mem::take(&mut account.started), std::mem::take(&mut account.completed));
            self.waits.add((node, Cause::Limit, limiter), limit, started);
            self.waits.add((node, Cause::Device, ROOT), device, completed);
            if window == 0 && occupancy == 0 {
                continue;
            }
            let place = &mut places[node as usize];
            if *place == usize::MAX {
                *place = machines.len();
                machines.push(Machine { node, window: 0, occupancy: 0, started: 0 });
            }
            let machine = &mut machines[*place];
            machine.window += window;
            machine.occupancy += occupancy;
            machine.started += started;
        }
        for node in &mut self.nodes {
            node.closed_in_period = 0;
        }
        self.charge_occupiers(machines);
    }

    fn charge_occupiers(&mut self, mut machines: Vec<Machine>) {
        let total: u64 = machines.iter().map(|machine| machine.occupancy).sum();
        machines.sort_by_key(|machine| Reverse(machine.occupancy));
        let named: u64 = machines.iter().take(NAMED).map(|machine| machine.occupancy).sum();
        for waiter in machines.iter().filter(|machine| machine.window > 0) {
            let mut charge = |whom, occupancy: u64| {
                // Nobody occupies the window: what is not started waits for the caller, a moment.
                let part = if total == 0 { 0.0 } else { occupancy as f64 / total as f64 };
                let nanos = (waiter.window as f64 * part) as u64;
                if whom == waiter.node {
                    self.waits.add((whom, Cause::Device, ROOT), nanos, 0);
                } else {
                    self.waits.add((waiter.node, Cause::Machine, whom), nanos, waiter.started);
                }
            };
            for machine in machines.iter().take(NAMED) {
                charge(machine.node, machine.occupancy);
            }
            charge(OTHERS, total - named);
        }
    }

    /// Bring the account of leaf `index` up to now, before what it counts changes.
    pub(super) fn settle(&mut self, now: Nanos, index: u32) {
        if self.nodes[index as usize].account.since == now {
            return;
        }
        let closed = if self.bounds == 0 { 0 } else { self.closed_above_leaf(now, index) };
        let node = &mut self.nodes[index as usize];
        node.account.settle(now, node.queue.len(), node.in_flight, closed);
    }

    /// How long limits at the leaf and above it have been used up, ever.
    fn closed_above_leaf(&self, now: Nanos, mut index: u32) -> Nanos {
        let mut closed = 0;
        while index != ROOT {
            let node = &self.nodes[index as usize];
            closed += node.closed + node.closed_since.map_or(0, |since| now.saturating_sub(since));
            index = node.parent;
        }
        closed
    }

    /// The node whose limit has kept the leaf waiting for longest in this period.
    fn limiter(&self, leaf: u32) -> u32 {
        let (mut index, mut longest) = (leaf, (0, leaf));
        while index != ROOT {
            let node = &self.nodes[index as usize];
            let closed = node.closed_in_period + u64::from(node.closed_since.is_some());
            if closed > longest.0 {
                longest = (closed, index);
            }
            index = node.parent;
        }
        longest.1
    }

    /// The machine, or the job of the host's, that a leaf belongs to: the topmost node above it that is neither a tenant
    /// nor all of the host's work.
    fn machine_of(&self, mut index: u32) -> u32 {
        loop {
            let parent = self.nodes[index as usize].parent;
            if parent == ROOT || self.nodes[parent as usize].name.starts_with(['@', '%']) {
                return index;
            }
            index = parent;
        }
    }

    fn row(&self, (waiter, cause, whom): (u32, Cause, u32), sum: Sum) -> Wait {
        let name = |index: u32| self.nodes.get(index as usize).map_or("", |node| &node.name);
        Wait::of(name(waiter), cause, name(whom), sum)
    }

    /// The node's number will be another's: what is known of it so far is kept by name.
    pub(super) fn keep_waits_of(&mut self, now: Nanos, index: u32) {
        self.close_period(now);
        let named = |key: &(u32, Cause, u32)| key.0 == index || key.2 == index;
        let keys: Vec<_> = self.waits.rows.keys().copied().filter(named).collect();
        for key in keys {
            if let Some(sum) = self.waits.rows.remove(&key) {
                let row = self.row(key, sum);
                self.waits.past.push(row);
                self.waits.past.truncate(MOST_PAST);
            }
        }
    }
}
