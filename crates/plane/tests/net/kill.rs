//! `kill -9` of the worker under traffic: what was on its way may be lost, nothing hangs, nothing wrong arrives.

use std::thread;
use std::time::{Duration, Instant};

use nagaya_client::NetOptions;

use crate::street::{PATIENCE, Street, frame, mac};

const KILLS: u32 = 20;

/// Most frames on their way: fewer than the receiver has room for, so that only a kill loses any.
const WINDOW: u32 = 32;

/// When nothing has come for so long, a look follows whether something is lost.
const QUIET: Duration = Duration::from_millis(10);

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
    let (mut sent, mut next, mut twice, mut gaps) = (0_u32, 0_u32, 0_u32, 0_u32);
    let (mut kills, mut killed, mut next_kill) = (0, 0, Instant::now() + Duration::from_millis(20));
    // All before `settled` have been taken by workers that have since told us so, or died.
    let (mut progress, mut settled) = (Instant::now(), 0);
    loop {
        let sending = kills < KILLS || sent < 50 * KILLS;
        if !sending && next == sent {
            break;
        }
        while sending && sent - next < WINDOW && a.send(&numbered(sent)).unwrap() {
            sent += 1;
        }
        a.kick().unwrap();
        while let Some((_, frame)) = b.receive().unwrap() {
            let number = u32::from_be_bytes(frame[14..18].try_into().unwrap());
            assert_eq!(frame, numbered(number), "frame {number} is not what was sent");
            assert!(number < sent, "frame {number} was never sent");
            // Those on their way at a kill may come twice.
            twice += u32::from(number < next);
            gaps += u32::from(number > next);
            next = next.max(number + 1);
            progress = Instant::now();
        }
        assert!(progress.elapsed() < PATIENCE, "after {kills} kills nothing arrives any more");
        gaps += u32::from(next < settled);
        next = next.max(settled);
        if next < sent && progress.elapsed() > QUIET && a.unsent().unwrap() == 0 {
            street.settle(1);
            settled = sent;
        }
        if kills < KILLS && Instant::now() >= next_kill {
            let (pid, generation) = street.worker();
            // The one that was killed last may not have been buried yet.
            if generation != killed {
                // SAFETY: passes no pointer; the process is a child of this one and not yet waited for.
                unsafe { libc::kill(pid as i32, libc::SIGKILL) };
                (kills, killed) = (kills + 1, generation);
                next_kill = Instant::now() + Duration::from_millis(7 + 13 * u64::from(kills % 5));
            }
        }
        thread::yield_now();
    }
    println!("{sent} sent, {twice} came twice, {gaps} times something was lost");
    assert!(twice <= WINDOW * KILLS, "{twice} came twice");
    assert!(gaps <= KILLS, "{gaps} times something was lost, by {KILLS} kills");
}
