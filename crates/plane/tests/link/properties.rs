//! What holds whatever is sent.

use nagaya_plane::arbiter::{Knobs, LARGEST_FRAME};
use proptest::prelude::*;

use crate::simulator::{MS, Pace, SECOND, Sender, Simulator};

#[derive(Clone, Copy, Debug)]
struct Machine {
    weight: u32,
    reservation: u64,
    limit: Option<u64>,
    bytes: u32,
    depth: u32,
    flows: u32,
}

fn machine() -> impl Strategy<Value = Machine> {
    let limit = proptest::option::of(1_000_000..100_000_000u64);
    (50..1000u32, 0..20_000_000u64, limit, 60..65_000u32, 1..16u32, 1..4u32).prop_map(
        |(weight, reservation, limit, bytes, depth, flows)| Machine {
            weight,
            reservation,
            limit,
            bytes,
            depth,
            flows,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_link_is_used_as_far_as_limits_allow_and_nobody_starves(
        machines in proptest::collection::vec(machine(), 1..6), rate in 20_000_000..200_000_000u64, seed: u64,
    ) {
        let mut simulator = Simulator::new(Some(rate), seed);
        let mut senders = Vec::new();
        for (number, machine) in machines.iter().enumerate() {
            let knobs = Knobs {
                weight: machine.weight,
                reservation: machine.reservation,
                limit: machine.limit,
                ..Knobs::default()
            };
            let leaf = simulator.node(&format!("m{number}"), knobs);
            // Less than that empties between two wake-ups, and asks for less than there is.
            let depth = machine.depth.max(4_000_000 / machine.bytes / machine.flows / 10);
            senders.push((0..machine.flows).map(|flow| {
                let pace = Pace::Bulk(depth);
                simulator.start(Sender { leaf, flow, bytes: machine.bytes, pace })
            }).collect::<Vec<_>>());
        }
        simulator.run(500 * MS);
        let from = simulator.now;
        simulator.run(SECOND);
        let largest = f64::from(LARGEST_FRAME);
        let (mut total, mut asked) = (0.0, 0.0);
        for (flows, machine) in senders.iter().zip(&machines) {
            let sent: f64 = flows.iter().map(|sender| simulator.rate(*sender, from)).sum();
            if let Some(limit) = machine.limit {
                prop_assert!(sent <= limit as f64 * 1.005 + largest, "{sent} of {limit}");
            }
            let reservations: u64 = machines.iter().map(|machine| machine.reservation).sum();
            // Those that do not fit leave nothing for others.
            if reservations <= rate / 2 {
                let reserved = machine.reservation.min(machine.limit.unwrap_or(u64::MAX)) as f64;
                prop_assert!(sent >= reserved * 0.97 - largest, "{sent} of {reserved} reserved");
                for flow in flows {
                    prop_assert!(simulator.rate(*flow, from) > 0.0, "a flow starves");
                }
            }
            total += sent;
            asked += machine.limit.map_or(f64::INFINITY, |limit| limit as f64);
        }
        prop_assert!(total <= rate as f64 * 1.005 + largest, "{total} of {rate}");
        prop_assert!(total >= asked.min(rate as f64) * 0.97 - largest, "{total} of {}", asked.min(rate as f64));
    }
}
