//! Links that are bad on purpose.

use nagaya_plane::net::switch::DropReason;
use nagaya_plane::net::switch::faults::{FaultPlan, Faults};

use crate::scene::{Scene, UPLINK, arp, guests, mac, v4};

fn plan(json: &str) -> Option<Faults> {
    Some(Faults::new(serde_json::from_str::<FaultPlan>(json).unwrap()))
}

#[test]
fn a_delay_meets_what_a_port_sends_and_what_it_gets() {
    let mut scene = Scene::new();
    scene.switch.set_faults(1, plan(r#"{"delay_us": 100}"#));
    scene.switch.set_faults(2, plan(r#"{"delay_us": 50}"#));
    let mut delay = |from, frame: &[u8]| scene.deliveries(from, frame).unwrap()[0].delay;
    assert_eq!(delay(1, &guests(1, 2).udp(1, 2)), 150_000);
    assert_eq!(delay(1, &guests(1, 3).udp(1, 2)), 100_000);
    assert_eq!(delay(3, &guests(3, 1).udp(1, 2)), 100_000);
    assert_eq!(delay(3, &guests(3, 4).udp(1, 2)), 0);
    scene.switch.set_faults(1, None);
    assert_eq!(scene.deliveries(1, &guests(1, 3).udp(1, 2)).unwrap()[0].delay, 0);
}

#[test]
fn what_is_lost_is_counted_at_the_bad_link() {
    let mut scene = Scene::new();
    scene.switch.set_faults(2, plan(r#"{"loss": 1}"#));
    assert_eq!(scene.send(1, &guests(1, 2).udp(1, 2)), Ok(vec![]));
    assert_eq!(scene.send(1, &arp(mac(1), true, (mac(1), v4(1)), v4(2))), Ok(vec![3, 4, UPLINK]));
    assert_eq!(scene.send(2, &guests(2, 1).udp(1, 2)), Err(DropReason::FaultLoss));
    assert_eq!(scene.dropped(2, DropReason::FaultLoss), 3);
    assert_eq!(scene.dropped(1, DropReason::FaultLoss), 0);
}

#[test]
fn a_duplicate_comes_twice() {
    let mut scene = Scene::new();
    scene.switch.set_faults(2, plan(r#"{"duplicate": 1}"#));
    assert_eq!(scene.send(1, &guests(1, 2).udp(1, 2)), Ok(vec![2, 2]));
}

#[test]
fn a_partition_is_between_two() {
    let mut scene = Scene::new();
    scene.switch.set_name(2, "m2/net0");
    scene.switch.set_faults(1, plan(r#"{"partition": ["m2/net0"]}"#));
    assert_eq!(scene.send(1, &guests(1, 2).udp(1, 2)), Err(DropReason::FaultPartition));
    assert_eq!(scene.send(2, &guests(2, 1).udp(1, 2)), Ok(vec![]));
    assert_eq!(scene.dropped(1, DropReason::FaultPartition), 2);
    assert_eq!(scene.send(1, &guests(1, 3).udp(1, 2)), Ok(vec![3]));
}
