//! `kill -9` of the worker under traffic: what was on its way may be lost, nothing hangs, nothing wrong arrives.

use std::thread;
use std::time::{Duration, Instant};

use nagaya_client::NetOptions;

use crate::street::{PATIENCE, Street, frame, mac};

const KILLS: usize = 20;

/// Bytes after the Ethernet header: the frame's number, and a pattern that follows from it.
fn numbered(number: u32) -> Vec<u8> {
    let length = 46 + (number as usize * 37) % 1400;
    let mut payload = number.to_be_bytes().to_vec();
    payload.resize(length, number as u8);
    frame(mac(2), mac(1), &payload)
}

#[test]
fn traffic_goes_on_when_the_worker_is_killed() {
    let street = Street::new();
    let mut a = street.guest(1, NetOptions::default());
    let mut b = street.guest(2, NetOptions { buffer_len: 512, ..NetOptions::default() });
    let (mut sent, mut got, mut twice) = (0_u32, 0_u32, 0_u32);
    let (mut last, mut kills) = (None, 0);
    let mut next_kill = Instant::now() + Duration::from_millis(20);
    let mut progress = Instant::now();
    while kills < KILLS || progress.elapsed() < Duration::from_millis(200) && got < sent {
        while kills < KILLS && a.send(&numbered(sent)).unwrap() {
            sent += 1;
        }
        a.kick().unwrap();
        while let Some((_, frame)) = b.receive().unwrap() {
            let number = u32::from_be_bytes(frame[14..18].try_into().unwrap());
            assert_eq!(frame, numbered(number), "frame {number} is not what was sent");
            assert!(number < sent, "frame {number} was never sent");
            // Those on their way at a kill may come twice; a ring of them at most.
            twice += u32::from(last.is_some_and(|last| number <= last));
            last = Some(last.unwrap_or(0).max(number));
            got += 1;
            progress = Instant::now();
        }
        assert!(progress.elapsed() < PATIENCE, "after {kills} kills nothing arrives any more");
        if kills < KILLS && Instant::now() >= next_kill {
            let (pid, _) = street.worker();
            // SAFETY: passes no pointer; the process is a child of this one and not yet waited for.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            kills += 1;
            next_kill = Instant::now() + Duration::from_millis(7 + 13 * (kills as u64 % 5));
        }
        thread::yield_now();
    }
    let (_, generation) = street.worker();
    assert!(generation as usize > KILLS / 2, "only {generation} workers: the kills met nobody");
    let lost = sent + twice - got.min(sent + twice);
    // A receiver that is slow for longer than senders wait for it loses frames too, and those are counted.
    let dropped = street.query("m2/net0")["drops"]["no-buffer"].as_u64().unwrap_or(0) as u32;
    println!("{sent} sent, {got} received, {twice} twice, {lost} lost, {dropped} of them dropped");
    let (lost, most) = (lost.saturating_sub(dropped), 64 * KILLS as u32);
    assert!(lost <= most && twice <= most, "{lost} lost and not counted, {twice} twice");
}
