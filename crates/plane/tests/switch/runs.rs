//! Frames that share a decision: nobody can tell that they do.

use nagaya_plane::net::switch::faults::{FaultPlan, Faults};
use nagaya_plane::net::switch::{Delivery, DropReason};
use proptest::prelude::*;

use crate::scene::{BROADCAST, SECOND, Scene, guests, guests6, local, tagged, v4, world};

/// What may happen to a switch.
#[derive(Clone, Debug)]
enum Step {
    /// A port sends the frame of this number so many times.
    Send(u32, usize, usize),
    /// The rules of a guest are these.
    Set(u8, usize),
    /// The link of a port loses frames, or does not.
    Lose(u32, bool),
    /// Somebody asks for the flows of a port.
    Ask(u32),
    Wait(u64),
}

const RULES: [&str; 5] = [
    "{}",
    r#"{"security": []}"#,
    r#"{"security": [{"direction": "in", "protocol": "udp", "ports": [9, 9]}, {"direction": "out"}]}"#,
    r#"{"isolated": true}"#,
    r#"{"vlan": 7}"#,
];

fn frames() -> Vec<Vec<u8>> {
    let (there, back) = (guests(1, 2), guests(1, 2).back());
    let mut longer = there.udp(40, 9);
    longer.extend([0; 9]);
    vec![
        there.udp(40, 9),
        longer,
        there.udp(41, 9),
        back.udp(9, 40),
        there.tcp(40, 80, "S"),
        back.tcp(80, 40, "SA"),
        there.tcp(40, 80, "A"),
        there.tcp(40, 80, "FA"),
        guests6(1, 2).udp(40, 9),
        guests6(1, 2).from(&local(1).to_string()).udp(40, 9),
        guests(2, 1).to(BROADCAST, &v4(1).to_string()).udp(40, 9),
        tagged(0, &there.udp(40, 9)),
        world(1).udp(40, 9),
        world(1).back().udp(9, 40),
        guests(1, 3).udp(40, 9),
        there.icmp(8, [0, 1, 0, 1], b"ping"),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let port = || prop_oneof![4 => 1..3_u32, 1 => Just(crate::scene::UPLINK)];
    let send = (port(), 0..frames().len(), 1..5_usize);
    prop_oneof![
        20 => send.prop_map(|(port, frame, times)| Step::Send(port, frame, times)),
        3 => (1..3_u8, 0..RULES.len()).prop_map(|(guest, rules)| Step::Set(guest, rules)),
        2 => (port(), any::<bool>()).prop_map(|(port, loses)| Step::Lose(port, loses)),
        1 => port().prop_map(Step::Ask),
        3 => (0..3 * SECOND).prop_map(Step::Wait),
    ]
}

type Outcome = Result<Vec<Delivery>, DropReason>;

/// Do it, `alone` with something between any two frames; what became of the frames, and what is known of connections.
fn run(steps: &[Step], alone: bool) -> (Vec<Outcome>, Vec<Vec<String>>) {
    let (mut scene, frames) = (Scene::new(), frames());
    let (mut outcomes, mut known) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Send(port, frame, times) => {
                for _ in 0..*times {
                    outcomes.push(scene.deliveries(*port, &frames[*frame]));
                    if alone {
                        scene.switch.resume(0);
                    }
                }
            }
            Step::Set(guest, rules) => scene.set(*guest, RULES[*rules]),
            Step::Lose(port, loses) => {
                let plan: FaultPlan = serde_json::from_str(r#"{"loss": 0.5, "seed": 7}"#).unwrap();
                scene.switch.set_faults(*port, loses.then(|| Faults::new(plan)));
            }
            Step::Ask(port) => drop(scene.switch.flows(scene.now, *port, 100)),
            Step::Wait(time) => scene.now += time,
        }
    }
    for port in [1, 2, crate::scene::UPLINK] {
        let mut flows: Vec<String> =
            scene.switch.flows(scene.now, port, 100).iter().map(|flow| format!("{flow:?}")).collect();
        flows.sort_unstable();
        flows.push(format!("{:?}", scene.switch.drops(port)));
        known.push(flows);
    }
    (outcomes, known)
}

#[test]
fn packets_of_a_run_are_counted_one_by_one() {
    let mut scene = Scene::new();
    scene.set(2, RULES[2]);
    let frame = guests(1, 2).udp(40, 9);
    for _ in 0..50 {
        assert!(scene.arrives(1, 2, &frame));
    }
    let [flow] = scene.switch.flows(scene.now, 2, 9)[..] else { panic!("one connection") };
    assert_eq!((flow.packets, flow.bytes), ([0, 50], [0, 50 * frame.len() as u64]));
}

#[test]
fn a_run_ends_with_what_allowed_it() {
    let mut scene = Scene::new();
    let frame = guests(1, 2).udp(40, 9);
    assert!(scene.arrives(1, 2, &frame) && scene.arrives(1, 2, &frame));
    scene.set(2, RULES[1]);
    assert_eq!(scene.send(1, &frame), Ok(vec![]));
    assert_eq!(scene.dropped(2, DropReason::Security), 1);
    scene.set(2, RULES[0]);
    assert!(scene.arrives(1, 2, &frame));
    scene.switch.remove_port(2);
    assert_ne!(scene.send(1, &frame), Ok(vec![2]));
}

proptest! {
    #[test]
    fn whether_frames_share_a_decision_changes_nothing(steps in prop::collection::vec(step(), 1..60)) {
        prop_assert_eq!(run(&steps, false), run(&steps, true));
    }
}
