//! What is asked of a port that is there: rules, faults, captures, connections; also after a worker died.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use nagaya_client::{Net, NetOptions};
use nagaya_plane::holder::PlaneError;
use serde_json::{Value, json};

use crate::street::{PATIENCE, SILENCE, Street, frame, mac, nothing, received, send};

fn order(street: &Street, id: &str, order: &Value, fds: Vec<OwnedFd>) -> Value {
    let answer = street.plane.order_port(id, &order.to_string(), fds).expect("order");
    serde_json::from_str(&answer).expect("JSON")
}

fn set(street: &Street, id: &str, rules: &Value) {
    order(street, id, &json!({"type": "set", "rules": rules, "link": true}), vec![]);
}

fn faults(street: &Street, id: &str, plan: &Value) {
    order(street, id, &json!({"type": "faults", "plan": plan}), vec![]);
}

fn guests(street: &Street) -> [Net; 2] {
    [1, 2].map(|number| street.guest(number, NetOptions::default()))
}

fn udp(from: u8, to: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let ip = PacketBuilder::ethernet2(mac(from), mac(to)).ipv4([10, 0, 0, from], [10, 0, 0, to], 64);
    ip.udp(1000 + u16::from(from), 1000 + u16::from(to)).write(&mut bytes, &[7; 100]).expect("packet");
    bytes
}

/// Kill the worker, and wait until there is another.
fn kill(street: &Street) {
    let (pid, before) = street.worker();
    // SAFETY: passes no pointer; the process is a child of this one and not yet waited for.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
    let end = Instant::now() + PATIENCE;
    while street.worker().1 == before {
        assert!(Instant::now() < end, "no new worker");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn rules_change_while_frames_pass() {
    let street = Street::new();
    let [mut a, mut b] = guests(&street);
    let hello = udp(1, 2);
    send(&mut a, &hello);
    assert_eq!(received(&mut b), hello);
    set(&street, "m1/net0", &json!({"addresses": ["10.0.0.9"]}));
    for kills in 0..2 {
        send(&mut a, &hello);
        nothing(&mut b);
        street.await_drops("m1/net0", "ipv4-spoof", kills + 1);
        kill(&street);
    }
    set(&street, "m1/net0", &json!({"addresses": ["10.0.0.1"]}));
    send(&mut a, &hello);
    assert_eq!(received(&mut b), hello);
    order(&street, "m2/net0", &json!({"type": "set", "rules": {}, "link": false}), vec![]);
    assert_eq!(street.query("m2/net0")["link"], false);
    send(&mut a, &hello);
    nothing(&mut b);
    street.await_drops("m2/net0", "link-down", 1);
}

#[test]
fn connections_go_on_after_a_kill() {
    let street = Street::new();
    let [mut a, mut b] = guests(&street);
    let rows = json!([{"direction": "in", "protocol": "udp", "ports": [1002, 1002]}]);
    set(&street, "m2/net0", &json!({"security": rows}));
    send(&mut b, &udp(2, 1));
    nothing(&mut a);
    send(&mut a, &udp(1, 2));
    assert_eq!(received(&mut b), udp(1, 2));
    kill(&street);
    // The answer is the first that the new worker sees of it.
    send(&mut b, &udp(2, 1));
    assert_eq!(received(&mut a), udp(2, 1));
}

#[test]
fn frames_are_lost_late_and_doubled_on_purpose() {
    let street = Street::new();
    let [mut a, mut b] = guests(&street);
    let hello = frame(mac(2), mac(1), &[1; 46]);
    faults(&street, "m2/net0", &json!({"loss": 1}));
    assert_eq!(street.query("m2/net0")["faults"]["loss"], 1.0);
    for kills in 0..2 {
        send(&mut a, &hello);
        nothing(&mut b);
        street.await_drops("m2/net0", "fault-loss", kills + 1);
        kill(&street);
    }

    let late = SILENCE * 3;
    faults(&street, "m2/net0", &json!({"delay_us": late.as_micros() as u64, "duplicate": 1}));
    let begin = Instant::now();
    send(&mut a, &hello);
    assert_eq!(received(&mut b), hello);
    assert!(begin.elapsed() >= late, "after {:?}", begin.elapsed());
    assert_eq!(received(&mut b), hello);

    faults(&street, "m2/net0", &json!({"partition": ["m1/net0"]}));
    send(&mut a, &hello);
    nothing(&mut b);
    street.await_drops("m2/net0", "fault-partition", 1);
    faults(&street, "m2/net0", &Value::Null);
    assert_eq!(street.query("m2/net0")["faults"], Value::Null);
    send(&mut a, &hello);
    assert_eq!(received(&mut b), hello);
}

#[test]
fn a_capture_has_what_a_port_sends_and_gets() {
    let street = Street::new();
    let [mut a, mut b] = guests(&street);
    let (mut reader, writer) = std::io::pipe().expect("pipe");
    order(
        &street,
        "m2/net0",
        &json!({"type": "capture", "snaplen": 64, "limit": 10_000}),
        vec![writer.into()],
    );
    assert_eq!(street.query("m2/net0")["captured"], true);
    send(&mut a, &udp(1, 2));
    received(&mut b);
    let mut first = [0; 16 + 64];
    reader.read_exact(&mut first).expect("a record");
    assert_eq!(first[16..], udp(1, 2)[..64]);
    assert_eq!(first[8..16], [64, 0, 0, 0, 142, 0, 0, 0]);
    kill(&street);
    send(&mut b, &udp(2, 1));
    received(&mut a);
    // Neither from it nor for it.
    send(&mut a, &frame(mac(3), mac(1), &[0; 46]));
    let counts = order(&street, "m2/net0", &json!({"type": "capture_stop"}), vec![]);
    assert_eq!(counts, json!({"packets": 1, "missed": 0}), "those of the worker that there is now");
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).expect("read");
    assert_eq!(bytes[16..], udp(2, 1)[..64]);
    assert_eq!(order(&street, "m2/net0", &json!({"type": "capture_stop"}), vec![]), Value::Null);
}

#[test]
fn a_capture_that_nobody_reads_any_more_is_none() {
    let street = Street::new();
    let _guests = guests(&street);
    let (reader, writer) = std::io::pipe().expect("pipe");
    let capture = json!({"type": "capture", "snaplen": 64, "limit": 10_000});
    order(&street, "m1/net0", &capture, vec![writer.into()]);
    assert_eq!(street.query("m1/net0")["captured"], true);
    drop(reader);
    assert_eq!(street.query("m1/net0")["captured"], false);
}

#[test]
fn connections_are_told() {
    let street = Street::new();
    let [mut a, mut b] = guests(&street);
    let ask = json!({"type": "flows", "limit": 10});
    assert_eq!(order(&street, "m1/net0", &ask, vec![]), json!([]));
    send(&mut a, &udp(1, 2));
    received(&mut b);
    send(&mut b, &udp(2, 1));
    received(&mut a);
    let flows = order(&street, "m1/net0", &ask, vec![]);
    let flow = &flows[0];
    assert_eq!((&flow["local"], &flow["remote_port"]), (&"10.0.0.1".into(), &1002.into()));
    assert_eq!((&flow["protocol"], &flow["state"]), (&"udp".into(), &"open".into()));
    assert_eq!((&flow["tx_packets"], &flow["rx_bytes"]), (&1.into(), &142.into()));
    assert_eq!(flows.as_array().expect("rows").len(), 1);
}

#[test]
fn what_cannot_be_is_refused() {
    let street = Street::new();
    let _stream = street.stream();
    let refused = |id: &str, order: Value| {
        let error = street.plane.order_port(id, &order.to_string(), vec![]).unwrap_err();
        if matches!(error, PlaneError::NoDevice(_)) { "none".to_owned() } else { error.to_string() }
    };
    assert_eq!(refused("m9/net0", json!({"type": "flows", "limit": 1})), "none");
    let set = json!({"type": "set", "rules": {}, "link": true});
    assert_eq!(refused("%test/uplink", set), "device %test/uplink is no machine's port");
    let capture = json!({"type": "capture", "snaplen": 64, "limit": 1});
    assert_eq!(refused("%test/uplink", capture), "0 fds for the order, needs 1");
    let file: OwnedFd = File::open("/dev/null").expect("file").into();
    let capture = json!({"type": "capture", "snaplen": 64, "limit": 1}).to_string();
    street.plane.order_port("%test/uplink", &capture, vec![file]).expect("an uplink can be captured");
}
