//! A plane with real workers, disks to attack, and an honest guest next door.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nagaya_client::stamp::{Stamper, Tally};
use nagaya_client::{Blk, BlkOptions};
use nagaya_plane::holder::{Plane, PlaneError};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::hostport::HostPort;

/// Bytes of a test's disk: small, so that random requests meet.
pub const DISK_LEN: u64 = 8 << 20;

/// Nothing takes longer unless it hangs: a busy and slow host may stop us all for seconds. Measured stalls are printed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A plane whose devices all share one worker.
pub struct House {
    plane: Plane,
    directory: TempDir,
    /// How often the neighbour has worked for a while.
    pub turns: Arc<AtomicU64>,
    /// Process and generation of the worker at the start.
    worker: (u64, u64),
}

/// A disk of the house.
pub struct Disk {
    pub id: String,
    pub socket: PathBuf,
    pub image: PathBuf,
}

/// A console or a random number generator.
pub struct Chars {
    pub socket: PathBuf,
    /// Our ends of the ports.
    pub ports: Vec<HostPort>,
}

/// How a disk's image is used.
#[derive(Clone, Copy, Default)]
pub struct Access {
    pub read_only: bool,
    /// Past the page cache.
    pub direct: bool,
}

/// An honest guest that works until it leaves.
pub struct Neighbour {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<Tally>>,
}

impl House {
    pub fn new() -> Self {
        let plane = Plane::new(vec![env!("CARGO_BIN_EXE_nagaya-worker").to_owned()]).expect("plane");
        // Short: a socket's path must fit in 107 bytes.
        let directory = tempfile::Builder::new().prefix("ng").tempdir_in("/tmp").expect("directory");
        let mut house = Self { plane, directory, turns: Arc::default(), worker: (0, 0) };
        house.disk("neighbour", false);
        house.worker = house.current_worker();
        house
    }

    /// Add a raw disk of zeroes.
    pub fn disk(&self, id: &str, read_only: bool) -> Disk {
        let image = self.path(&format!("{id}.raw"));
        let file = File::options().read(true).write(true).create_new(true).open(&image).expect("image");
        file.set_len(DISK_LEN).expect("size");
        self.add(id, Access { read_only, direct: false }, &["raw"], &[&file])
    }

    /// Add a disk made of open layers, the top one first.
    pub fn add(&self, id: &str, access: Access, formats: &[&str], layers: &[&File]) -> Disk {
        let formats: Vec<_> = formats.iter().map(|format| json!({ "format": format })).collect();
        let config = json!({
            "driver": "blk", "id": id, "worker": "one", "queues": 1, "queue_size": 256,
            "read_only": access.read_only, "direct": access.direct, "serial": "hostile", "layers": formats,
        });
        let files = layers.iter().map(|layer| layer.as_fd().try_clone_to_owned().expect("fd"));
        let socket = self.add_device(id, &config, files);
        Disk { id: id.to_owned(), socket, image: self.path(&format!("{id}.raw")) }
    }

    /// Add a console with two ports, as a machine's.
    pub fn console(&self, id: &str) -> Chars {
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..2).map(|_| HostPort::pair()).unzip();
        let ports =
            json!([{ "name": "", "console": true }, { "name": "org.qemu.guest_agent.0", "console": false }]);
        let config = json!({ "driver": "console", "id": id, "worker": "one", "ports": ports });
        let socket = self.add_device(id, &config, theirs.into_iter());
        Chars { socket, ports: ours }
    }

    /// Add a random number generator.
    pub fn rng(&self, id: &str) -> Chars {
        let config = json!({ "driver": "rng", "id": id, "worker": "one" });
        Chars { socket: self.add_device(id, &config, std::iter::empty()), ports: Vec::new() }
    }

    /// Add a balloon, whose guest is asked for statistics every `stats_ms`.
    pub fn balloon(&self, id: &str, stats_ms: u32) -> PathBuf {
        let config = json!({ "driver": "balloon", "id": id, "worker": "one", "stats_ms": stats_ms });
        self.add_device(id, &config, std::iter::empty())
    }

    /// Ask something of a balloon.
    pub fn set_balloon(&self, id: &str, wish: &Value) -> Result<(), PlaneError> {
        self.plane.set_balloon(id, &wish.to_string())
    }

    /// What the plane tells about the only balloon.
    pub fn query_balloon(&self) -> Value {
        serde_json::from_str::<Value>(&self.plane.query_balloons()).expect("JSON")[0].clone()
    }

    fn add_device(&self, id: &str, config: &Value, backend: impl Iterator<Item = OwnedFd>) -> PathBuf {
        let socket = self.path(&format!("{id}.sock"));
        let listener = UnixListener::bind(&socket).expect("listen");
        let fds = std::iter::once(OwnedFd::from(listener)).chain(backend).collect();
        self.plane.device_add(&config.to_string(), fds).expect("device_add");
        socket
    }

    /// A path in the house's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Stop the plane and return the directory with all images.
    pub fn close(self) -> TempDir {
        drop(self.plane);
        self.directory
    }

    /// Let an honest guest move in: reads, writes and flushes, all verified, until it leaves.
    pub fn neighbour(&self) -> Neighbour {
        let options = BlkOptions { slots: 4, ..BlkOptions::default() };
        let blk = Blk::open(&self.path("neighbour.sock"), options).expect("neighbour");
        let mut stamper = Stamper::new(blk, 4, 512, 7);
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, turns) = (Arc::clone(&stop), Arc::clone(&self.turns));
        let thread = thread::spawn(move || {
            let mut written = 0;
            while written == 0 || !stopped.load(Ordering::Relaxed) {
                written = stamper.run(Duration::from_millis(50), PATIENCE)?.writes;
                turns.fetch_add(1, Ordering::Relaxed);
                // The attack is what is measured: leave it most of the two CPUs.
                thread::sleep(Duration::from_millis(20));
            }
            stamper.verify(PATIENCE)
        });
        Neighbour { stop, thread }
    }

    /// Violations counted for a device, of all kinds.
    pub fn violations(&self, id: &str) -> u64 {
        self.device(id)["violations"]
            .as_object()
            .expect("violations")
            .values()
            .filter_map(Value::as_u64)
            .sum()
    }

    /// Violations counted for a device, by kind.
    pub fn violations_by_kind(&self, id: &str) -> BTreeMap<String, u64> {
        serde_json::from_value(self.device(id)["violations"].clone()).expect("violations")
    }

    /// Requests of a disk that have been answered.
    pub fn completions(&self, id: &str) -> u64 {
        let device = self.device(id);
        ["reads", "writes", "flushes"].iter().filter_map(|counter| device[counter].as_u64()).sum()
    }

    /// Lay faults upon a disk; `null` ends them.
    pub fn set_faults(&self, id: &str, plan: &Value) {
        self.try_faults(id, &plan.to_string()).expect("set_faults");
    }

    /// The same, of a plan that may be refused.
    pub fn try_faults(&self, id: &str, plan: &str) -> Result<(), PlaneError> {
        self.plane.set_faults(id, plan)
    }

    /// How many events of this name there were since the last call of this.
    pub fn take_events(&self, name: &str) -> usize {
        let events = self.plane.take_events();
        let events = events.iter().map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
        events.filter(|event| event["event"] == name).count()
    }

    /// What the plane tells about a device.
    pub fn device(&self, id: &str) -> Value {
        let state: Value = serde_json::from_str(&self.plane.query()).expect("JSON");
        let devices = state["devices"].as_array().expect("devices");
        devices.iter().find(|device| device["id"] == id).unwrap_or_else(|| panic!("no device {id}")).clone()
    }

    /// Kill the worker, and return when there is another.
    pub fn kill_worker(&self) {
        let (pid, generation) = self.current_worker();
        // SAFETY: passes no pointer; the process is a child of this one and not yet waited for.
        unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        while self.current_worker().1 == generation {
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Process and generation of the worker.
    pub fn current_worker(&self) -> (u64, u64) {
        let end = Instant::now() + PATIENCE;
        loop {
            let state: Value = serde_json::from_str(&self.plane.query()).expect("JSON");
            let worker = &state["workers"][0];
            if let (Some(pid @ 1..), Some(generation)) =
                (worker["pid"].as_u64(), worker["generation"].as_u64())
            {
                return (pid, generation);
            }
            assert!(Instant::now() < end, "no worker: {state}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Most memory that the worker ever had, in bytes.
    pub fn worker_peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.worker.0)).expect("worker");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
        line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number") * 1024
    }

    /// CPU time of the worker so far.
    pub fn worker_cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.worker.0)).expect("worker");
        let spent = tasks.map(|task| {
            let line =
                std::fs::read_to_string(task.expect("task").path().join("schedstat")).expect("schedstat");
            line.split_whitespace().next().expect("a number").parse::<u64>().expect("nanoseconds")
        });
        Duration::from_nanos(spent.sum())
    }

    /// Fail if the worker of the start is not the one of now: something made it end.
    pub fn assert_one_worker(&self) {
        assert_eq!(self.current_worker(), self.worker, "the worker was replaced");
    }
}

impl Disk {
    /// All bytes of the image.
    pub fn contents(&self) -> Vec<u8> {
        std::fs::read(&self.image).expect("image")
    }
}

impl Neighbour {
    /// Move out; fails if anything was wrong or slow while it lived here. Returns what it did.
    pub fn leave(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let tally = self.thread.join().expect("no panic").expect("an undisturbed neighbour");
        println!("neighbour: {tally:?}");
        assert!(tally.longest_stall < PATIENCE, "stalled for {:?}", tally.longest_stall);
        tally
    }
}

/// Attack a disk beside an honest guest, then see that the disk serves the next frontend.
pub fn beside_a_neighbour(attack: impl FnOnce(&House, &Disk)) {
    let house = House::new();
    let disk = house.disk("hostile", false);
    let neighbour = house.neighbour();
    attack(&house, &disk);
    neighbour.leave();
    house.assert_one_worker();
    assert_serves(&disk.socket);
}

/// An honest look at a disk that was just attacked: it connects and reads its first block.
pub fn assert_serves(socket: &Path) {
    let options = BlkOptions { slots: 1, ..BlkOptions::default() };
    let mut blk = Blk::open(socket, options).expect("connect again");
    let done = blk.run(nagaya_client::Request::Read { sector: 0, len: 4096 }, PATIENCE).expect("read");
    assert_eq!(done.status, 0);
}
