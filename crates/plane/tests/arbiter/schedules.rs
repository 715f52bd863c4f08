//! Random histories: whatever happened before, the arbiter's choice is one that the definitions allow.
//!
//! `PROPTEST_CASES=1000000 cargo test --release --test arbiter schedules` tries as many.

use nagaya_plane::arbiter::{Arbiter, Ask, Kind, Knobs, Leaf, Nanos, Request};
use proptest::prelude::*;

use crate::model::{By, Model, ROOT};

#[derive(Clone, Debug)]
enum Step {
    Pass(Nanos),
    Offer { leaf: usize, kind: Kind, pages: u64 },
    Complete(usize),
    Withdraw(usize),
    Hurry(usize),
    Join(usize),
    Set { node: usize, knobs: Knobs },
    Move { node: usize, below: usize },
}

fn knobs() -> impl Strategy<Value = Knobs> {
    let rate = || prop_oneof![3 => Just(0u64), 1 => 10u64..5_000, 1 => 5_000u64..200_000];
    let bytes = || prop_oneof![3 => Just(0u64), 1 => 100_000u64..100_000_000];
    let some = |rate: u64| (rate > 0).then_some(rate);
    (rate(), bytes(), rate(), bytes(), prop_oneof![Just(100u32), 1u32..=10_000]).prop_map(
        move |(reservation_iops, reservation, limit_iops, limit, weight)| Knobs {
            reservation_iops,
            reservation,
            limit_iops: some(limit_iops),
            limit: some(limit),
            weight,
            latency_p99_us: None,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(Kind::Read), Just(Kind::Write), Just(Kind::Flush), Just(Kind::Discard)];
    prop_oneof![
        4 => prop_oneof![1u64..1000, 1_000u64..10_000_000].prop_map(Step::Pass),
        12 => (any::<usize>(), kind, prop_oneof![Just(1u64), 1u64..300])
            .prop_map(|(leaf, kind, pages)| Step::Offer { leaf, kind, pages }),
        8 => any::<usize>().prop_map(Step::Complete),
        1 => any::<usize>().prop_map(Step::Withdraw),
        1 => any::<usize>().prop_map(Step::Hurry),
        2 => any::<usize>().prop_map(Step::Join),
        1 => (any::<usize>(), knobs()).prop_map(|(node, knobs)| Step::Set { node, knobs }),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(node, below)| Step::Move { node, below }),
    ]
}

struct Live {
    ticket: u64,
    leaf: usize,
    request: Request,
}

/// The arbiter and its model, side by side.
struct Pair {
    arbiter: Arbiter,
    model: Model,
    /// By number in the model.
    leaves: Vec<Option<Leaf>>,
    tenants: usize,
    now: Nanos,
    waiting: Vec<Live>,
    started: Vec<Live>,
    tickets: u64,
}

impl Pair {
    /// `tenants`, below each `machines`, each with `disks`, and a machine without a tenant.
    fn new(tenants: usize, machines: usize, disks: usize) -> Pair {
        let (arbiter, model, leaves) = (Arbiter::new(0), Model::new(), vec![None]);
        let (waiting, started) = (Vec::new(), Vec::new());
        let mut pair = Pair { arbiter, model, leaves, tenants, now: 0, waiting, started, tickets: 0 };
        let above: Vec<usize> = (0..tenants).map(|number| pair.add(&format!("@t{number}"), ROOT)).collect();
        for number in 0..machines {
            let parent = if number % (tenants + 1) == tenants { ROOT } else { above[number % (tenants + 1)] };
            let machine = pair.add(&format!("m{number}"), parent);
            for disk in 0..disks {
                let leaf = pair.add(&format!("m{number}/disk{disk}"), machine);
                pair.leaves[leaf] = pair.arbiter.node(&pair.model.nodes[leaf].id);
            }
        }
        pair
    }

    fn add(&mut self, id: &str, parent: usize) -> usize {
        self.leaves.push(None);
        let index = self.model.add(id, parent);
        self.set(index, Knobs::default());
        index
    }

    fn set(&mut self, index: usize, knobs: Knobs) {
        let node = &self.model.nodes[index];
        let above = (node.parent != ROOT).then(|| self.model.nodes[node.parent].id.clone());
        self.arbiter.set_node(self.now, &node.id, above.as_deref(), knobs).unwrap();
        self.model.set(self.now, index, &knobs);
    }

    fn nth_leaf(&self, number: usize) -> usize {
        let leaves: Vec<usize> = (0..self.leaves.len()).filter(|leaf| self.leaves[*leaf].is_some()).collect();
        leaves[number % leaves.len()]
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Pass(time) => self.now += time,
            Step::Offer { leaf, kind, pages } => self.offer(leaf, kind, pages)?,
            Step::Complete(number) if !self.started.is_empty() => {
                let live = self.started.swap_remove(number % self.started.len());
                self.arbiter.complete(self.now, live.request);
            }
            Step::Withdraw(number) if !self.waiting.is_empty() => {
                let live = self.waiting.swap_remove(number % self.waiting.len());
                prop_assert!(self.arbiter.withdraw(self.now, live.request));
                self.model.nodes[live.leaf].queue.retain(|(ticket, _)| *ticket != live.ticket);
                self.model.update(self.now);
            }
            Step::Hurry(number) if !self.waiting.is_empty() => {
                let live = self.waiting.swap_remove(number % self.waiting.len());
                self.arbiter.hurry(self.now, live.request);
                self.model.serve(self.now, live.leaf, live.ticket, By::Hurry);
                self.started.push(live);
            }
            Step::Join(number) if !self.waiting.is_empty() => {
                let live = &self.waiting[number % self.waiting.len()];
                let passes = self.model.passes(self.now, live.leaf);
                prop_assert_eq!(self.arbiter.join(self.now, live.request), passes, "limits hold");
                if passes {
                    let live = self.waiting.swap_remove(number % self.waiting.len());
                    self.model.serve(self.now, live.leaf, live.ticket, By::Join);
                    self.started.push(live);
                }
            }
            Step::Set { node, knobs } => self.set(1 + node % (self.leaves.len() - 1), knobs),
            Step::Move { node, below } => self.move_machine(node, below % (self.tenants + 1)),
            _ => {}
        }
        self.drain()
    }

    /// Machine `number` goes to another tenant, or to none: node 0 is the root.
    fn move_machine(&mut self, number: usize, below: usize) {
        let machines: Vec<usize> =
            (1..self.leaves.len()).filter(|node| self.model.nodes[*node].id.starts_with('m')).collect();
        let machines: Vec<usize> = machines.into_iter().filter(|node| self.leaves[*node].is_none()).collect();
        let machine = machines[number % machines.len()];
        self.model.move_below(self.now, machine, below);
        self.set(machine, Knobs::default());
    }

    fn offer(&mut self, leaf: usize, kind: Kind, pages: u64) -> Result<(), TestCaseError> {
        let leaf = self.nth_leaf(leaf);
        let ask = Ask { ticket: self.tickets, kind, bytes: pages * 4096 };
        self.tickets += 1;
        let admission = self.arbiter.offer(self.now, self.leaves[leaf].unwrap(), ask);
        self.model.nodes[leaf].queue.push((ask.ticket, ask));
        self.model.update(self.now);
        let live = Live { ticket: ask.ticket, leaf, request: admission.request };
        self.waiting.push(live);
        if admission.now { self.start(ask.ticket) } else { Ok(()) }
    }

    /// The arbiter starts `ticket`: one that the model would have chosen too.
    fn start(&mut self, ticket: u64) -> Result<(), TestCaseError> {
        let place = self.waiting.iter().position(|live| live.ticket == ticket);
        let live = self.waiting.swap_remove(place.expect("what starts has waited"));
        let choices = self.model.choices(self.now);
        prop_assert!(choices.contains(&live.leaf), "{} of {choices:?} at {}", live.leaf, self.now);
        prop_assert_eq!(self.model.nodes[live.leaf].queue[0].0, ticket, "first come, first served");
        self.model.serve(self.now, live.leaf, ticket, By::Turn);
        self.started.push(live);
        Ok(())
    }

    fn drain(&mut self) -> Result<(), TestCaseError> {
        self.model.update(self.now);
        while let Some(ticket) = self.arbiter.next(self.now) {
            self.start(ticket)?;
        }
        let choices = self.model.choices(self.now);
        if self.started.is_empty() {
            prop_assert!(choices.is_empty(), "the device is idle, and {choices:?} may be served");
            prop_assert_eq!(self.waiting.is_empty(), self.arbiter.wake_at(self.now).is_none());
        }
        let stats = self.arbiter.stats(self.now);
        prop_assert_eq!(
            (stats.waiting, stats.in_flight),
            (self.waiting.len() as u64, self.started.len() as u64)
        );
        Ok(())
    }
}

/// As many as in the variable that proptest has for it, or a few thousand.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(3000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn every_choice_is_the_models(
        tenants in 0usize..3, machines in 1usize..5, disks in 1usize..3,
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut pair = Pair::new(tenants, machines, disks);
        for step in steps {
            pair.take(step)?;
        }
    }
}
