//! Frames, rules, faults and time, as the input says, through a switch of eight ports. Nothing goes where it must not, and what
//! a guest is not may not be said in its name: judged here by the bytes at their places, not by the switch's own parser.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nagaya_plane::net::switch::faults::{FaultPlan, Faults, Partition};
use nagaya_plane::net::switch::{Delivery, HEADER, PortId, PortKind, Rules, Switch, Tag};

const UPLINK: PortId = 0;
const CLOSED: PortId = 2;
const ISOLATED: PortId = 3;
const FREE: PortId = 4;
const OWNED: PortId = 5;
const OUTLET: PortId = 7;
const PORTS: u32 = 8;

/// What guests may send from; port 1 is 10.0.0.1 and fd00::1.
const GUESTS: [&str; 6] = [
    r#"{"addresses": ["10.0.0.1", "fd00::1"]}"#,
    r#"{"addresses": ["10.0.0.2", "fd00::2"], "security": []}"#,
    r#"{"addresses": ["10.0.0.3", "fd00::3"], "isolated": true}"#,
    r#"{"spoof": true, "storm_pps": null}"#,
    r#"{"addresses": ["10.0.0.5", "fd00::5"], "security": [{"direction": "out"}, {"direction": "in", "protocol": "udp", "ports": [53, 53]}]}"#,
    r#"{"addresses": ["10.0.0.6", "fd00::6"], "trunk": [7], "storm_pps": 10}"#,
];

/// Frames to begin with: (destination, then what follows the source). They are changed as the input says.
const FRAMES: [&str; 8] = [
    "0806 0001 0800 0604 0001 525400000001 0a000001 000000000000 0a000002",
    "0800 4500 002e 0001 0000 4011 0000 0a000001 0a000002 03e8 0035 001a 0000",
    "0800 4500 0028 0001 0000 4006 0000 0a000001 0a000002 03e8 0050 00000000 00000000 5002 0000 0000 0000",
    "0800 4500 0038 0001 0000 4001 0000 0a000001 0a000002 0303 0000 00000000 4500 001c 0000 0000 4011 0000 0a000002 0a000001 0035 03e8 0008 0000",
    "86dd 60000000 0020 3aff fe80000000000000505400fffe000001 ff0200000000000000000001ff000002 8700 0000 00000000 fd000000000000000000000000000002 0101 525400000001",
    "86dd 60000000 0010 2c40 fd000000000000000000000000000001 fd000000000000000000000000000002 1100 0001 00000007 03e8 0035 0008 0000",
    "8100 0007 0800 4500 002e 0001 2000 4011 0000 0a000006 0a000002 0044 0043 001a 0000",
    "88cc 0000",
];

/// The bytes of the input, and zeroes after them.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }
}

/// What of the faults is certain.
#[derive(Clone, Copy, Default)]
struct Cut {
    all: bool,
    from: Option<PortId>,
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let (mut switch, mut cuts, mut now) = (build(), [Cut::default(); PORTS as usize], 1);
    while !input.0.is_empty() {
        match input.byte() {
            0..=199 => send(&mut switch, now, &mut input, &cuts),
            200..=219 => now += 1u64 << (input.byte() % 42),
            220..=239 => {
                let port = u32::from(input.byte()) % PORTS;
                cuts[port as usize] = disturb(&mut switch, port, &mut input);
            }
            240..=247 => {
                // As they are: connections are looked at again, what was learnt is forgotten.
                let port = 1 + u32::from(input.byte()) % 6;
                switch.set_rules(port, rules(port)).expect("a port that is there");
            }
            _ => {
                for port in 0..PORTS {
                    assert!(switch.flows(now, port, usize::MAX).len() <= 16_384);
                }
            }
        }
    }
    for port in 0..PORTS {
        assert!(switch.learnt(port) <= if port == UPLINK { 8192 } else { 256 });
    }
});

fn rules(port: PortId) -> Rules {
    static RULES: LazyLock<[Rules; 6]> =
        LazyLock::new(|| GUESTS.map(|json| serde_json::from_str(json).expect("rules")));
    RULES[port as usize - 1].clone()
}

fn template(number: usize) -> &'static [u8] {
    static BYTES: LazyLock<[Vec<u8>; 8]> = LazyLock::new(|| {
        FRAMES.map(|text| {
            let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
            let hex = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).expect("text"), 16).expect("hex");
            digits.chunks(2).map(hex).collect()
        })
    });
    &BYTES[number % FRAMES.len()]
}

fn mac(port: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, port]
}

fn build() -> Switch {
    let mut switch = Switch::new();
    switch.add_port(UPLINK, PortKind::Uplink, None, Rules::uplink()).expect("an uplink");
    for port in 1..=6 {
        switch.add_port(port, PortKind::Guest, Some(mac(port as u8)), rules(port)).expect("a guest");
    }
    let addresses = vec!["10.0.0.9".parse().expect("IPv4"), "fe80::9".parse().expect("IPv6")];
    let outlet = Rules { addresses, ..Rules::uplink() };
    switch.add_port(OUTLET, PortKind::Uplink, None, outlet).expect("an uplink of one");
    for port in 0..PORTS {
        switch.set_name(port, &port.to_string());
    }
    switch.set_owner(OUTLET, &OWNED.to_string());
    switch
}

fn disturb(switch: &mut Switch, port: PortId, input: &mut Input) -> Cut {
    let other = u32::from(input.byte()) % PORTS;
    let (partition, loss, cut) = match input.byte() % 4 {
        0 => (Partition::All(true), 0.0, Cut { all: true, from: None }),
        1 => (Partition::All(false), 1.0, Cut { all: true, from: None }),
        2 => (Partition::From(vec![other.to_string()]), 0.0, Cut { all: false, from: Some(other) }),
        _ => (Partition::All(false), 0.0, Cut::default()),
    };
    let [delay, duplicate, reorder] = [(); 3].map(|()| f64::from(input.byte()) / 255.0);
    let delay_us = (delay * 1e7) as u32;
    let plan = FaultPlan { loss, delay_us, jitter_us: delay_us, duplicate, reorder, partition, seed: 7 };
    plan.check().expect("within bounds");
    let there = input.byte() > 9;
    switch.set_faults(port, there.then(|| Faults::new(plan)));
    if there { cut } else { Cut::default() }
}

fn send(switch: &mut Switch, now: u64, input: &mut Input, cuts: &[Cut]) {
    let from = u32::from(input.byte()) % PORTS;
    let mut frame = frame(from, input);
    let (length, mut out) = (frame.len() + usize::from(input.byte()) * 256, Vec::new());
    frame.resize(length.min(HEADER), 0);
    let segments = 1 + u32::from(input.byte()) % 45;
    let verdict = switch.decide(now, from, &mut frame, length, segments, &mut out);
    assert!(verdict.is_ok() || out.is_empty(), "refused, and delivered");
    assert!(out.len() <= 3 * PORTS as usize);
    for delivery in &out {
        allowed(from, delivery, &frame, cuts);
    }
    if !out.is_empty() && from != UPLINK && from != OUTLET && from != FREE {
        honest(from, &frame);
    }
}

/// To somebody, with one of the frames above, changed at some places; or just bytes.
fn frame(from: PortId, input: &mut Input) -> Vec<u8> {
    let (kind, to) = (input.byte(), input.byte());
    if kind > 250 {
        let count = usize::from(input.byte());
        return input.bytes(count);
    }
    let mut frame = match to % 16 {
        to @ 0..8 => mac(to).to_vec(),
        8 => vec![0xff; 6],
        9 => vec![0x33, 0x33, 0, 0, 0, 1],
        to => vec![2, 0, 0, 0, 0, to],
    };
    frame.extend(mac(from as u8));
    frame.extend(template(usize::from(kind)));
    // Port 1's frames are the sender's own.
    let own = |bytes: &mut [u8], address: &[u8]| {
        for at in 14..bytes.len().saturating_sub(address.len()) {
            if &bytes[at..at + address.len()] == address {
                bytes[at + address.len() - 1] = from as u8;
                break;
            }
        }
    };
    own(&mut frame, &[10, 0, 0, 1]);
    own(&mut frame, &mac(1));
    own(&mut frame, &[0x50, 0x54, 0, 0xff, 0xfe, 0, 0, 1]);
    own(&mut frame, &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    for _ in 0..input.byte() % 8 {
        let (at, value) = (usize::from(input.byte()), input.byte());
        let at = at % frame.len();
        frame[at] = value;
    }
    let padding = usize::from(input.byte() % 64);
    frame.extend(input.bytes(padding));
    frame
}

/// Whether the frame may go there at all.
fn allowed(from: PortId, delivery: &Delivery, frame: &[u8], cuts: &[Cut]) {
    let to = delivery.port;
    let uplink = |port| port == UPLINK || port == OUTLET;
    assert!(to < PORTS && to != from);
    assert!(!(uplink(from) && uplink(to)), "from uplink to uplink");
    assert!(uplink(from) || uplink(to) || from != ISOLATED && to != ISOLATED, "isolated");
    assert!((from == OUTLET || to == OUTLET) <= (from == OWNED || to == OWNED), "another's way out");
    assert!(!cuts[from as usize].all && !cuts[to as usize].all, "a cut link");
    let parted = |one: PortId, other| cuts[one as usize].from == Some(other);
    assert!(!parted(from, to) && !parted(to, from), "parted");
    assert!(delivery.tag != Tag::Strip || frame[12..14] == [0x81, 0]);
    if to == CLOSED && !uplink(from) && from != FREE {
        let at = ip_at(frame);
        match frame[at - 2..at] {
            [8, 6] => {}
            [8, 0] => assert_eq!(frame[at + 9], 2, "no rule, and not IGMP"),
            [0x86, 0xdd] => assert!(matches!(frame[at + 6], 58 | 0 | 43 | 44 | 51 | 60), "no rule"),
            _ => panic!("no rule, and no IP"),
        }
    }
}

/// Where what the frame carries begins.
fn ip_at(frame: &[u8]) -> usize {
    if frame[12..14] == [0x81, 0] { 18 } else { 14 }
}

/// Whether a guest says only what it is.
fn honest(from: PortId, frame: &[u8]) {
    let own = mac(from as u8);
    assert_eq!(frame[6..12], own, "the MAC address");
    let (at, address) = (ip_at(frame), [10, 0, 0, from as u8]);
    let part = |offset: usize, count: usize| &frame[at + offset..at + offset + count];
    match frame[at - 2..at] {
        [8, 6] => {
            assert_eq!(part(8, 6), own, "ARP's MAC address");
            assert!(part(14, 4) == address || part(6, 2) == [0, 1] && part(14, 4) == [0; 4], "ARP's sender");
        }
        [8, 0] => {
            let upper = 4 * usize::from(frame[at] & 15);
            let udp = frame[at + 9] == 17 && u16::from_be_bytes([frame[at + 6], frame[at + 7]]) & 0x1fff == 0;
            let asks = udp && part(upper, 4) == [0, 68, 0, 67];
            let nobody = part(12, 4) == [0; 4] && (asks || frame[at + 9] == 2);
            assert!(nobody || part(12, 4) == address, "IPv4's source");
            assert!(!udp || part(upper, 2) != [0, 67], "a DHCP server");
        }
        [0x86, 0xdd] => {
            let ours = |source: &[u8]| {
                let ula = source[..8] == [0xfd, 0, 0, 0, 0, 0, 0, 0]
                    && source[8..15] == [0; 7]
                    && source[15] == from as u8;
                ula || source[..8] == [0xfe, 0x80, 0, 0, 0, 0, 0, 0]
            };
            assert!(ours(part(8, 16)) || part(8, 16) == [0; 16], "IPv6's source");
            if frame[at + 6] == 58 {
                assert!(frame[at + 40] != 134, "a router");
                assert!(frame[at + 40] != 136 || ours(part(48, 16)), "an advertisement for another");
            }
        }
        _ => panic!("something that names no sender"),
    }
}
