//! `kill -9` of the worker under traffic: what was on its way may be lost, nothing hangs, nothing wrong arrives.

use std::thread;
use std::time::{Duration, Instant};

use nagaya_client::NetOptions;

use crate::street::{PATIENCE, Street, frame, mac};

const KILLS: usize = 20;

/// Most frames on their way: fewer than the receiver has room for, so that only a kill loses any.
const WINDOW: u32 = 32;

/// What has not arrived after so long is lost.
const LOST: Duration = Duration::from_millis(50);

/// Bytes after the Ethernet header: the frame's number, and a pattern that follows from it.
fn numbered(number: u32) -> Vec<u8> {
    let length = 46 + (number as usize * 37) % 700;
    let mut payload = number.to_be_bytes().to_vec();
    payload.resize(length, number as u8);
    frame(mac(2), mac(1), &payload)
}

#[test]
fn traffic_goes_on_when_the_worker_is_killed() {
    let street = Street::new();
    let mut a = street.guest(1, NetOptions::default());
    let mut b = street.guest(2, NetOptions { buffer_len: 512, ..NetOptions::default() });
    // `next` is the number that is to come, if nothing gets lost.
    let (mut sent, mut next, mut twice, mut gaps) = (0_u32, 0_u32, 0_u32, 0_usize);
    let (mut kills, mut next_kill) = (0, Instant::now() + Duration::from_millis(20));
    let (mut progress, mut waits_since) = (Instant::now(), Instant::now());
    while kills < KILLS || next < sent {
        while kills < KILLS && sent - next < WINDOW && a.send(&numbered(sent)).unwrap() {
            sent += 1;
        }
        a.kick().unwrap();
        while let Some((_, frame)) = b.receive().unwrap() {
            let number = u32::from_be_bytes(frame[14..18].try_into().unwrap());
            assert_eq!(frame, numbered(number), "frame {number} is not what was sent");
            assert!(number < sent, "frame {number} was never sent");
            // Those on their way at a kill may come twice.
            twice += u32::from(number < next);
            gaps += usize::from(number > next);
            next = next.max(number + 1);
            (progress, waits_since) = (Instant::now(), Instant::now());
        }
        assert!(progress.elapsed() < PATIENCE, "after {kills} kills nothing arrives any more");
        if next < sent && waits_since.elapsed() > LOST {
            gaps += 1;
            (next, waits_since) = (sent, Instant::now());
        }
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
    println!("{sent} sent, {twice} came twice, {gaps} times something was lost");
    assert!(sent > 50 * KILLS as u32, "only {sent} were sent");
    assert!(twice <= WINDOW * KILLS as u32, "{twice} came twice");
    assert!(gaps <= KILLS, "{gaps} times something was lost, by {KILLS} kills");
}
