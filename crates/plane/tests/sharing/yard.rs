//! A plane with disks on one worker, and clients that keep them busy.

use std::fmt::Debug;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nagaya_client::{Blk, BlkOptions, Request};
use nagaya_plane::holder::{Plane, PlaneError};
use nagaya_plane::shares::Resource;
use serde_json::{Value, json};
use tempfile::TempDir;

/// No request takes longer, unless it is lost: a busy and slow host may stop us all for seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a disk.
pub const DISK_LEN: u64 = 8 << 20;

/// Bytes of a simulated disk that is copied: more than can be in a test.
const COPY_LEN: u64 = 4 << 30;

/// A plane whose disks all share one worker.
pub struct Yard {
    plane: Plane,
    directory: TempDir,
}

impl Yard {
    pub fn new() -> Yard {
        let plane = Plane::new(vec![env!("CARGO_BIN_EXE_nagaya-worker").to_owned()]).expect("plane");
        // Short: a socket's path must fit in 107 bytes.
        let directory = tempfile::Builder::new().prefix("ng").tempdir_in("/tmp").expect("directory");
        Yard { plane, directory }
    }

    /// Add a disk on the simulated device of the yard: 4 requests at once, 4 ms for 4 KiB, as the arbiter reckons 16 ms
    /// for 64 KiB. It is slow, so that it is the device that machines wait for, on a slow host too.
    pub fn simulated(&self, id: &str) -> PathBuf {
        self.add(id, &simulated_layer(DISK_LEN), &[])
    }

    /// Add a disk on a simulated device that takes 4 ms for a request, however long it is.
    pub fn flat(&self, id: &str) -> PathBuf {
        let model = json!({"size": DISK_LEN, "parallel": 4, "read_us": 4000});
        self.add(id, &json!({"format": "simulated", "model": model}), &[])
    }

    /// Add a disk on a file of its own.
    pub fn raw(&self, id: &str) -> PathBuf {
        let path = self.path(id).with_extension("raw");
        let file = File::options().read(true).write(true).create_new(true).open(path).expect("image");
        file.set_len(DISK_LEN).expect("size");
        self.add(id, &json!({"format": "raw"}), &[&file])
    }

    fn add(&self, id: &str, layer: &Value, files: &[&File]) -> PathBuf {
        let socket = self.path(id).with_extension("sock");
        let listener = OwnedFd::from(UnixListener::bind(&socket).expect("listen"));
        let files = files.iter().map(|file| file.as_fd().try_clone_to_owned().expect("fd"));
        let config = json!({"driver": "blk", "id": id, "worker": "one", "direct": false, "layers": [layer]});
        self.plane
            .device_add(&config.to_string(), std::iter::once(listener).chain(files).collect())
            .expect("device_add");
        socket
    }

    pub fn remove(&self, id: &str) {
        self.plane.device_del(id).expect("device_del");
    }

    /// Begin a copy of files to another, which need not exist.
    pub fn copy(
        &self,
        id: &str,
        layers: &[(&str, &PathBuf)],
        target: &Path,
        shares: &Value,
    ) -> Result<(), PlaneError> {
        let formats: Vec<_> = layers.iter().map(|(format, _)| json!({"format": format})).collect();
        let files: Vec<_> = layers.iter().map(|(_, path)| File::open(path).expect("layer")).collect();
        self.start_copy(id, &formats, files, target, shares)
    }

    /// Begin a copy of a disk on the simulated device.
    pub fn copy_simulated(&self, id: &str, target: &Path) {
        self.start_copy(id, &[simulated_layer(COPY_LEN)], Vec::new(), target, &json!([])).expect("job_start");
    }

    fn start_copy(
        &self,
        id: &str,
        layers: &[Value],
        mut files: Vec<File>,
        target: &Path,
        shares: &Value,
    ) -> Result<(), PlaneError> {
        let target = File::options().read(true).write(true).create(true).truncate(false).open(target);
        files.push(target.expect("target"));
        let config = json!({"driver": "copy", "id": id, "worker": "one", "layers": layers, "shares": shares});
        self.plane.job_start(&config.to_string(), files.into_iter().map(OwnedFd::from).collect())
    }

    /// Begin a copy between layers as `options` say; the first of `to` is written. Lists are files, not named twice.
    pub fn move_layers(&self, id: &str, [from, to, unlike]: [&[(&str, &PathBuf)]; 3], options: &Value) {
        let open = |(number, (_, path)): (usize, &(&str, &PathBuf))| {
            File::options().read(true).write(number == 0).open(path).expect("layer")
        };
        let formats = |layers: &[(&str, &PathBuf)]| -> Value {
            layers.iter().map(|(format, _)| json!({"format": format})).collect()
        };
        let files = [from, to, unlike].into_iter().flat_map(|layers| layers.iter().enumerate().map(open));
        let mut config = json!({"driver": "copy", "id": id, "worker": "one", "layers": formats(from),
            "target": formats(to), "unlike": formats(unlike)});
        for (name, value) in options.as_object().expect("options") {
            config[name] = value.clone();
        }
        let files = files.map(OwnedFd::from).collect();
        self.plane.job_start(&config.to_string(), files).expect("job_start");
    }

    pub fn end_job(&self, id: &str) {
        self.plane.job_end(id).expect("job_end");
    }

    /// What the plane tells of a device or a job; `null` if there is none.
    pub fn device(&self, id: &str) -> Value {
        let state: Value = serde_json::from_str(&self.plane.query()).expect("JSON");
        let devices = state["devices"].as_array().expect("devices");
        devices.iter().find(|device| device["id"] == id).cloned().unwrap_or_default()
    }

    pub fn path(&self, id: &str) -> PathBuf {
        self.directory.path().join(id.replace('/', "-"))
    }

    pub fn set(&self, nodes: &Value) {
        self.plane.set_shares(Resource::Disk, &nodes.to_string()).expect("set_shares");
    }

    /// How many requests of 4 KiB may be at the device.
    pub fn window(&self) -> u64 {
        self.arbiter()["window"].as_u64().expect("window")
    }

    /// What the worker says of its arbiter, `null` if there is no worker. One that takes its time is asked again.
    fn arbiter(&self) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let workers: Value = serde_json::from_str(&self.plane.query_arbiter()).expect("JSON");
            if !workers[0].is_null() || self.workers().is_empty() {
                return workers[0].clone();
            }
            assert!(Instant::now() < end, "the worker does not answer");
        }
    }

    fn workers(&self) -> Vec<Value> {
        let state: Value = serde_json::from_str(&self.plane.query()).expect("JSON");
        state["workers"].as_array().expect("workers").clone()
    }

    /// What the arbiter says of a node; `null` if it does not know it.
    pub fn node(&self, id: &str) -> Value {
        let nodes = self.arbiter()["nodes"].as_array().cloned().unwrap_or_default();
        nodes.into_iter().find(|node| node["id"] == id).unwrap_or_default()
    }

    /// Events of this name since the last call of this.
    pub fn take_events(&self, name: &str) -> Vec<Value> {
        let events = self.plane.take_events();
        let events = events.iter().map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
        events.filter(|event| event["event"] == name).map(|event| event["data"].clone()).collect()
    }

    /// Process of the worker, once there is one that is not `but`.
    pub fn worker(&self, but: u64) -> u64 {
        let end = Instant::now() + PATIENCE;
        loop {
            let workers = self.workers();
            match workers.first().and_then(|worker| worker["pid"].as_u64()) {
                Some(pid) if pid != 0 && pid != but => return pid,
                _ => assert!(Instant::now() < end, "no worker: {workers:?}"),
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kill the worker and return the process of the next one.
    pub fn kill(&self, worker: u64) -> u64 {
        // SAFETY: passes no pointer; the process is a child of this one and not yet waited for.
        unsafe { libc::kill(worker as i32, libc::SIGKILL) };
        self.worker(worker)
    }
}

fn simulated_layer(size: u64) -> Value {
    let model = json!({"size": size, "parallel": 4, "read_us": 3200, "write_us": 3200, "flush_us": 4000, "bytes_per_second": 5_120_000});
    json!({"format": "simulated", "model": model})
}

/// A machine that keeps `depth` reads in flight.
pub struct Client {
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Client {
    /// At places of its own, which do not adjoin one another.
    pub fn start(socket: &Path, depth: u16) -> Client {
        Client::run(socket, depth, |slot, _| u64::from(slot) * 64)
    }

    /// One block after the other.
    pub fn sequential(socket: &Path, depth: u16) -> Client {
        Client::run(socket, depth, |_, number| number * 8 % (DISK_LEN / 512))
    }

    /// `sector` of a slot's next request, by the number of requests so far.
    fn run(socket: &Path, depth: u16, sector: impl Fn(u16, u64) -> u64 + Send + 'static) -> Client {
        let options =
            BlkOptions { slots: depth, queue_size: (3 * depth).next_power_of_two(), ..BlkOptions::default() };
        let mut blk = Blk::open(socket, options).expect("connect");
        let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, stopped) = (done.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut number = 0;
            let mut next = |slot| {
                number += 1;
                Request::Read { sector: sector(slot, number - 1), len: 4096 }
            };
            for slot in 0..depth {
                blk.submit(slot, next(slot));
            }
            while blk.in_flight() > 0 {
                blk.kick().expect("kick");
                assert!(blk.wait(PATIENCE).expect("wait"), "no completion");
                while let Some(done) = blk.poll().expect("each completes once") {
                    assert_eq!(done.status, 0);
                    counter.fetch_add(1, Ordering::Relaxed);
                    if !stopped.load(Ordering::Relaxed) {
                        blk.submit(done.slot, next(done.slot));
                    }
                }
            }
        });
        Client { done, stop, thread }
    }

    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Finish what is in flight.
    pub fn leave(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no lost request");
        self.done.load(Ordering::Relaxed)
    }
}

/// One of five measurements is as it has to be. A host that is busy for a moment keeps a machine from asking for its share.
#[track_caller]
pub fn once<T: Debug>(mut measure: impl FnMut() -> T, is_right: impl Fn(&T) -> bool) {
    let mut wrong = Vec::new();
    while wrong.len() < 5 {
        let measured = measure();
        if is_right(&measured) {
            return;
        }
        wrong.push(measured);
    }
    panic!("{wrong:?}");
}

/// Requests that each client completes until all together have completed `total` more.
pub fn completed(clients: &[Client], total: u64) -> Vec<u64> {
    let before: Vec<u64> = clients.iter().map(Client::done).collect();
    let end = Instant::now() + PATIENCE;
    loop {
        let done: Vec<u64> =
            clients.iter().zip(&before).map(|(client, before)| client.done() - before).collect();
        if done.iter().sum::<u64>() >= total {
            return done;
        }
        assert!(Instant::now() < end, "{done:?} requests in {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}
