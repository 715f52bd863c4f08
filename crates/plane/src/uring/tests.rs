use super::*;
use io_uring::types::Fd;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Instant;

fn nop(token: u64) -> squeue::Entry {
    opcode::Nop::new().build().user_data(token)
}

fn read(file: &impl AsRawFd, buffer: &mut [u8]) -> squeue::Entry {
    opcode::Read::new(Fd(file.as_raw_fd()), buffer.as_mut_ptr(), buffer.len() as u32).build()
}

#[test]
fn posted_completions_are_reaped_and_end_a_wait() {
    let ring = Uring::new(4).unwrap();
    ring.post(3, -libc::EIO);
    assert!(ring.has_completions());
    ring.submit_and_wait(None).unwrap();
    let mut seen = Vec::new();
    ring.reap(|token, result, flags| seen.push((token, result, flags)));
    assert_eq!(seen, [(3, -libc::EIO, 0)]);
    assert!(!ring.has_completions());
}

fn reap_all(ring: &Uring, count: usize) -> Vec<u64> {
    let mut tokens = Vec::new();
    while tokens.len() < count {
        ring.submit_and_wait(Some(Duration::from_secs(5))).unwrap();
        assert!(
            ring.reap(|token, result, _| {
                assert_eq!(result, 0);
                tokens.push(token)
            }) > 0
        );
    }
    tokens
}

#[test]
fn more_operations_than_the_queues_hold_all_complete_once() {
    let ring = Uring::new(4).unwrap();
    // SAFETY: a no-op names no memory.
    (0..1000).for_each(|token| unsafe { ring.push(nop(token)) });
    let mut tokens = reap_all(&ring, 1000);
    tokens.sort_unstable();
    assert_eq!(tokens, (0..1000).collect::<Vec<_>>());
    assert_eq!(ring.raw_inflight(), 0);
}

#[test]
fn a_batch_goes_to_the_kernel_when_it_is_full_and_not_before() {
    let ring = Uring::new(8).unwrap();
    let mut completed = 0;
    for token in 0..3 {
        // SAFETY: a no-op names no memory.
        unsafe { ring.push(nop(token)) };
        ring.submit_batch(2).unwrap();
        completed += ring.reap(|_, result, _| assert_eq!(result, 0));
        assert_eq!(completed, [0, 2, 2][token as usize]);
    }
    assert_eq!(reap_all(&ring, 1), [2]);
}

#[test]
fn a_wait_ends_at_its_timeout() {
    let ring = Uring::new(4).unwrap();
    let start = Instant::now();
    ring.submit_and_wait(Some(Duration::from_millis(20))).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20) && start.elapsed() < Duration::from_secs(2));
    assert_eq!(ring.reap(|_, _, _| panic!("nothing was pushed")), 0);
}

#[test]
fn raw_completions_survive_block_on_and_tasks_run_in_it() {
    let ring = Rc::new(Uring::new(8).unwrap());
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: a no-op names no memory.
    unsafe { ring.push(nop(7)) };
    let inner = ring.clone();
    ring.tasks.spawn_local(async move {
        // SAFETY: a no-op names no memory.
        assert_eq!(unsafe { inner.op(nop(0)) }.await, 0);
        writer.write_all(b"hello").unwrap();
    });
    let mut buffer = [0; 8];
    // SAFETY: the buffer outlives the future.
    let count = ring.block_on(unsafe { ring.op(read(&reader, &mut buffer)) }).unwrap();
    assert_eq!(&buffer[..count as usize], b"hello");
    assert_eq!(reap_all(&ring, 1), [7]);
    assert_eq!(ring.tasks.tasks(), 0);
    assert_eq!(reader.read(&mut buffer).unwrap(), 0);
}

#[test]
fn a_dropped_future_lets_go_of_its_buffer_first() {
    let ring = Uring::new(8).unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut buffer = [0; 4];
    // SAFETY: the buffer outlives the future.
    let mut operation = Box::pin(unsafe { ring.op(read(&reader, &mut buffer)) });
    let mut cx = Context::from_waker(Waker::noop());
    assert!(operation.as_mut().poll(&mut cx).is_pending());
    ring.submit().unwrap();
    drop(operation);
    writer.write_all(b"late").unwrap();
    ring.submit_and_wait(Some(Duration::from_millis(5))).unwrap();
    ring.reap(|_, _, _| panic!("no raw operation"));
    assert_eq!(buffer, [0; 4]);
}

#[test]
fn a_registered_file_is_read_after_its_fd_is_closed_and_its_slot_is_used_again() {
    let ring = Uring::new(8).unwrap();
    for _ in 0..3 {
        let file = File::open("/proc/self/stat").unwrap();
        let fixed = ring.register_fd(file.as_fd()).unwrap();
        assert_eq!(fixed.0, 0);
        drop(file);
        let mut buffer = [0; 16];
        let sqe = opcode::Read::new(fixed, buffer.as_mut_ptr(), 16).build();
        // SAFETY: the buffer outlives the future.
        assert_eq!(ring.block_on(unsafe { ring.op(sqe) }).unwrap(), 16);
        ring.unregister_fd(fixed).unwrap();
    }
}
