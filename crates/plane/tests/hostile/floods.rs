//! Frontends that do too much of what is allowed: they must not flood the log, nor make the worker wait for them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nagaya_client::Ring;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use crate::house::{House, PATIENCE, beside_a_neighbour};
use crate::scene::{QUEUE_SIZE, connect};

const SET_VRING_NUM: u32 = 8;
const SET_VRING_KICK: u32 = 12;
const VERSION: u32 = 1;

/// How long the server of a file system is stopped: until the neighbour has worked on beside an attack that had time to
/// begin. Never for ever, for the kernel makes everybody wait who asks for such a file.
const STOP: Duration = Duration::from_secs(2);
const LONGEST_STOP: Duration = Duration::from_secs(30);

/// FUSE_SUPER_MAGIC of statfs(2).
const FUSE: i64 = 0x6573_5546;

#[test]
fn rules_that_are_broken_in_a_loop_are_counted_each_and_told_once_a_second() {
    beside_a_neighbour(|house, disk| {
        const LOOPS: u64 = 20_000;
        let device = connect(&disk.socket, 0).unwrap();
        let before = house.violations(&disk.id);
        house.take_events("");
        let start = Instant::now();
        // A queue of three descriptors, which no queue may have.
        let payload = [[0; 4], 3_u32.to_ne_bytes()].concat();
        for _ in 0..LOOPS {
            device.send_raw(SET_VRING_NUM, VERSION, 8, &payload, &[]).unwrap();
        }
        while house.violations(&disk.id) < before + LOOPS {
            assert!(start.elapsed() < PATIENCE, "not all are counted");
            thread::sleep(Duration::from_millis(1));
        }
        let told = house.take_events("DEVICE_VIOLATION");
        println!("{LOOPS} violations in {:?}, {told} events", start.elapsed());
        assert!((1..=start.elapsed().as_secs() as usize + 2).contains(&told), "{told} events");
    });
}

#[test]
fn a_frontend_that_comes_and_goes_in_a_loop_is_slowed_down() {
    beside_a_neighbour(|house, disk| {
        const LOOPS: usize = 100;
        house.take_events("");
        let start = Instant::now();
        for _ in 0..LOOPS {
            drop(UnixStream::connect(&disk.socket).unwrap());
        }
        let mut gone = 0;
        while gone < LOOPS {
            assert!(start.elapsed() < PATIENCE, "{gone} of {LOOPS} were served");
            gone += house.take_events("DEVICE_DISCONNECTED");
            thread::sleep(Duration::from_millis(1));
        }
        // Each but the last is followed by a pause.
        let least = Duration::from_millis(10) * (LOOPS as u32 - 1);
        assert!(start.elapsed() >= least, "{LOOPS} connections in {:?}", start.elapsed());
    });
}

/// A file whose pages come from a process of the frontend's: a fault on it takes as long as that process likes.
struct Userspace {
    file: File,
    /// Lets the server go on; whether the neighbour worked until then.
    freeing: JoinHandle<bool>,
    _server: Server,
}

impl Userspace {
    fn new(house: &House) -> Userspace {
        let (image, mount) = (house.path("fuse.raw"), house.path("fuse"));
        File::create(&image).unwrap().set_len(4 << 20).unwrap();
        File::create(&mount).unwrap();
        let node = format!("driver=file,node-name=f,filename={}", image.display());
        let export = format!("type=fuse,id=e,node-name=f,writable=on,mountpoint={}", mount.display());
        let open = || File::options().read(true).write(true).open(&mount).unwrap();
        let mut command = Command::new("qemu-storage-daemon");
        let server = command.args(["--blockdev", &node, "--export", &export]).spawn().unwrap();
        let mut server = Server(server);
        let mut file = open();
        let end = Instant::now() + PATIENCE;
        while kind(&file) != FUSE {
            assert!(Instant::now() < end && server.0.try_wait().unwrap().is_none(), "no FUSE");
            thread::sleep(Duration::from_millis(10));
            file = open();
        }
        server.signal(libc::SIGSTOP);
        let (number, turns) = (server.0.id() as i32, Arc::clone(&house.turns));
        let freeing = thread::spawn(move || {
            thread::sleep(STOP);
            let (begin, before) = (Instant::now(), turns.load(Ordering::Relaxed));
            let works = || turns.load(Ordering::Relaxed) >= before + 3;
            while !works() && begin.elapsed() < LONGEST_STOP {
                thread::sleep(Duration::from_millis(10));
            }
            let worked = works();
            // SAFETY: passes no pointer; continuing a process that is no more, or runs, does nothing.
            unsafe { libc::kill(number, libc::SIGCONT) };
            worked
        });
        Userspace { file, freeing, _server: server }
    }
}

struct Server(Child);

impl Server {
    fn signal(&self, number: i32) {
        // SAFETY: passes no pointer; the child is not reaped yet, so the number is its own.
        unsafe { libc::kill(self.0.id() as i32, number) };
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(libc::SIGTERM);
        self.signal(libc::SIGCONT);
        // Fails only if it has been waited for.
        let _ = self.0.wait();
    }
}

fn kind(file: &File) -> i64 {
    // SAFETY: all zeroes is a valid statfs, which outlives the call.
    unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        assert_eq!(libc::fstatfs(file.as_raw_fd(), &mut stat), 0);
        stat.f_type
    }
}

#[test]
fn memory_and_kicks_on_a_file_system_in_user_space_make_nobody_wait() {
    // SAFETY: passes no pointer.
    if unsafe { libc::geteuid() } != 0 {
        return println!("skipped: only root may mount");
    }
    beside_a_neighbour(|house, disk| {
        let userspace = Userspace::new(house);
        let fd = userspace.file.as_raw_fd();
        let start = Instant::now();
        let mut device = connect(&disk.socket, 0).unwrap();
        let region = VhostUserMemoryRegionInfo { mmap_handle: fd, ..device.memory.region() };
        device.frontend.set_mem_table(&[region]).unwrap_err();
        let ring = Ring::new(&device.memory, QUEUE_SIZE);
        let _ = device.start_ring(0, ring).map(|queue| queue.push(0));
        drop(device);
        let device = connect(&disk.socket, 0).unwrap();
        device.share_memory().unwrap();
        device.send_raw(SET_VRING_KICK, VERSION, 8, &0_u64.to_ne_bytes(), &[fd]).unwrap();
        while house.violations_by_kind(&disk.id).get("refused").copied().unwrap_or(0) < 2 {
            // The thread of this device may wait for the file system; the worker and the neighbour do not.
            assert!(start.elapsed() < LONGEST_STOP + PATIENCE, "{:?}", house.violations_by_kind(&disk.id));
            thread::sleep(Duration::from_millis(1));
        }
        assert!(userspace.freeing.join().unwrap(), "the neighbour waits for the file system too");
    });
}
