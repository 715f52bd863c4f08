//! Frames go where they should, whole.

use std::io::{Read, Write};
use std::thread;

use nagaya_client::NetOptions;

use crate::street::{PATIENCE, SILENCE, Street, frame, mac, nothing, received, send};

const BROADCAST: [u8; 6] = [0xff; 6];

#[test]
fn machines_talk_and_a_third_does_not_listen() {
    let street = Street::new();
    let [mut a, mut b, mut c] = [1, 2, 3].map(|number| street.guest(number, NetOptions::default()));
    assert_eq!(a.mac().unwrap(), mac(1));
    let hello = frame(mac(2), mac(1), b"hello, neighbour; this is padded to the least length of a frame");
    send(&mut a, &hello);
    assert_eq!(received(&mut b), hello);
    let answer = frame(mac(1), mac(2), &[7; 1486]);
    send(&mut b, &answer);
    assert_eq!(received(&mut a), answer);
    nothing(&mut c);
    let all = frame(BROADCAST, mac(3), &[1; 46]);
    send(&mut c, &all);
    assert_eq!(received(&mut a), all);
    assert_eq!(received(&mut b), all);
    nothing(&mut c);
    let port = street.query("m1/net0");
    assert_eq!((&port["tx_packets"], &port["rx_packets"]), (&1.into(), &2.into()));
    assert_eq!(port["tx_bytes"], hello.len());
    assert_eq!(
        (&port["connected"], &port["link"], &port["mac"]),
        (&true.into(), &true.into(), &"52:54:00:00:00:01".into())
    );
}

#[test]
fn a_large_frame_spreads_over_buffers_that_may_be_merged() {
    let street = Street::new();
    let mut a = street.guest(1, NetOptions::default());
    let small = NetOptions { buffer_len: 256, ..NetOptions::default() };
    let (mut b, mut c) = (street.guest(2, small), street.guest(3, NetOptions { mergeable: false, ..small }));
    for length in [14, 60, 243, 244, 245, 500, 1514] {
        let bytes: Vec<u8> = (0..length - 14).map(|at| at as u8).collect();
        let sent = frame(mac(2), mac(1), &bytes);
        send(&mut a, &sent);
        assert_eq!(received(&mut b), sent, "{length} bytes");
    }
    send(&mut a, &frame(mac(3), mac(1), &[0; 231]));
    nothing(&mut c);
    let fits = frame(mac(3), mac(1), &[0; 230]);
    send(&mut a, &fits);
    assert_eq!(received(&mut c), fits);
    street.await_drops("m3/net0", "oversize", 1);
}

#[test]
fn who_offers_no_buffers_gets_nothing_and_holds_up_nobody() {
    let street = Street::new();
    let mut a = street.guest(1, NetOptions::default());
    let mut closed = street.guest(2, NetOptions { offered: 0, ..NetOptions::default() });
    let mut c = street.guest(3, NetOptions::default());
    for _ in 0..50 {
        send(&mut a, &frame(mac(2), mac(1), &[0; 46]));
    }
    let last = frame(mac(3), mac(1), &[9; 46]);
    send(&mut a, &last);
    assert_eq!(received(&mut c), last);
    nothing(&mut closed);
    street.await_drops("m2/net0", "no-buffer", 50);
    assert_eq!(a.unsent().unwrap(), 0);
}

#[test]
fn a_sender_waits_for_a_receiver_that_is_slow() {
    // On a busy host we may be slower than senders wait for anybody, and lose some; without waiting it would always be nearly all.
    let most = (0..20).map(|_| of_200_frames_to_a_slow_receiver()).find(|got| *got >= 64);
    assert!(most.is_some(), "of 200 frames fewer than 64 came each time");
}

/// How many of them have come; the others are counted.
fn of_200_frames_to_a_slow_receiver() -> u64 {
    let street = Street::new();
    let mut a = street.guest(1, NetOptions::default());
    let mut slow = street.guest(2, NetOptions { offered: 8, ..NetOptions::default() });
    for number in 0..200_u8 {
        assert!(a.send(&frame(mac(2), mac(1), &[number; 46])).unwrap());
    }
    a.kick().unwrap();
    let (mut got, mut last) = (0, None);
    while let Some((_, frame)) = slow.wait(SILENCE).unwrap() {
        assert!(last < Some(frame[20]), "out of order");
        last = Some(frame[20]);
        got += 1;
    }
    street.await_drops("m2/net0", "no-buffer", 200 - got);
    assert_eq!(a.unsent().unwrap(), 0);
    got
}

#[test]
fn a_sender_without_a_hurry_is_told_all_the_same_that_its_frames_have_gone() {
    let street = Street::new();
    let (mut a, mut b) = (street.guest(1, NetOptions::default()), street.guest(2, NetOptions::default()));
    for count in [1, 3, 200] {
        a.arm_transmit();
        for _ in 0..count {
            send(&mut a, &frame(mac(2), mac(1), &[1; 46]));
            received(&mut b);
        }
        assert!(a.was_called(PATIENCE).unwrap(), "{count} frames");
        while a.unsent().unwrap() > 0 {
            thread::yield_now();
        }
    }
}

#[test]
fn a_stream_is_an_uplink() {
    let street = Street::new();
    let mut world = street.stream();
    let mut a = street.guest(1, NetOptions::default());
    let out = frame([2, 0, 0, 0, 0, 9], mac(1), &[5; 800]);
    send(&mut a, &out);
    let mut bytes = vec![0; 4 + out.len()];
    world.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [&(out.len() as u32).to_be_bytes()[..], &out].concat());
    let back = frame(mac(1), [2, 0, 0, 0, 0, 9], &[6; 1000]);
    let bytes = [&(back.len() as u32).to_be_bytes()[..], &back].concat();
    // In two parts, and two frames in one.
    world.write_all(&bytes[..3]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(10));
    world.write_all(&[&bytes[3..], &bytes].concat()).unwrap();
    assert_eq!(received(&mut a), back);
    assert_eq!(received(&mut a), back);
    let uplink = street.query("%test/uplink");
    assert_eq!((&uplink["tx_packets"], &uplink["rx_packets"]), (&2.into(), &1.into()));
    assert_eq!(uplink["mac"], serde_json::Value::Null);
    street.plane.device_del("%test/uplink").unwrap();
    send(&mut a, &out);
    nothing(&mut a);
}
