//! A plane with one network, whose machines are raw guests.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nagaya_client::net::HEADER;
use nagaya_client::{Net, NetOptions};
use nagaya_plane::holder::Plane;
use nagaya_plane::shares::Resource;
use serde_json::{Value, json};
use tempfile::TempDir;

/// What a frame may take to arrive: generous, for the host's sake.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// That a frame does not come is seen after so long.
pub const SILENCE: Duration = Duration::from_millis(100);

/// The last byte of each machine's address is its number.
pub fn mac(number: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, number]
}

/// A frame that only the receiver looks at.
pub fn frame(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from[..], &[0x88, 0xb5], payload].concat()
}

pub struct Street {
    pub plane: Plane,
    directory: TempDir,
}

impl Street {
    pub fn new() -> Self {
        let plane = Plane::new(vec![env!("CARGO_BIN_EXE_nagaya-worker").to_owned()]).expect("plane");
        // Short: a socket's path must fit in 107 bytes.
        let directory = tempfile::Builder::new().prefix("ns").tempdir_in("/tmp").expect("directory");
        Self { plane, directory }
    }

    /// Add a port with `extra` in its configuration; the path of its socket.
    pub fn port(&self, number: u8, extra: &Value) -> PathBuf {
        let [a, b, c, d, e, f] = mac(number);
        let mut config = json!({
            "driver": "net", "id": format!("m{number}/net0"), "worker": "net-test", "network": "test",
            "mac": format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
        });
        for (key, value) in extra.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let socket = self.directory.path().join(format!("{number}.sock"));
        let listener = UnixListener::bind(&socket).expect("listen");
        self.plane.device_add(&config.to_string(), vec![listener.into()]).expect("device_add");
        socket
    }

    /// A machine at a port of its own, whose queues run.
    pub fn guest(&self, number: u8, options: NetOptions) -> Net {
        let guest = Net::open(&self.port(number, &json!({})), options).expect("a guest");
        // The holder has answered for the queues, perhaps before its worker had them; the worker takes what it is told in order.
        self.settle(number);
        guest
    }

    /// Wait until a worker has done all that it was told before, and what it had begun with frames.
    pub fn settle(&self, number: u8) {
        let question = r#"{"type": "flows", "limit": 1}"#;
        self.plane.order_port(&format!("m{number}/net0"), question, Vec::new()).expect("an answer");
    }

    /// An uplink that is a stream; our end of it.
    pub fn stream(&self) -> UnixStream {
        self.stream_of(None)
    }

    /// The same with a rate in bytes a second.
    pub fn stream_of(&self, rate: Option<u64>) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        theirs.set_nonblocking(true).expect("non-blocking");
        ours.set_read_timeout(Some(PATIENCE)).expect("timeout");
        self.uplink_of("stream", theirs.into(), rate);
        ours
    }

    pub fn uplink(&self, kind: &str, fd: OwnedFd) {
        self.uplink_of(kind, fd, None);
    }

    fn uplink_of(&self, kind: &str, fd: OwnedFd, rate: Option<u64>) {
        let config = json!({
            "driver": "uplink", "id": "%test/uplink", "worker": "net-test", "network": "test", "kind": kind,
            "rate": rate,
        });
        let fd = fd.as_fd().try_clone_to_owned().expect("fd");
        self.plane.device_add(&config.to_string(), vec![fd]).expect("uplink");
    }

    /// Share the network by `nodes`.
    pub fn share(&self, nodes: &Value) {
        self.plane.set_shares(Resource::Network, &nodes.to_string()).expect("set_shares");
    }

    /// What `query-ports` says of a port.
    pub fn query(&self, id: &str) -> Value {
        let ports: Value = serde_json::from_str(&self.plane.query_ports(Some("test"))).expect("JSON");
        let port = ports.as_array().expect("ports").iter().find(|port| port["id"] == id);
        port.unwrap_or_else(|| panic!("no port {id}: {ports}")).clone()
    }

    /// What `query-devices` says of a device.
    pub fn device(&self, id: &str) -> Value {
        let state: Value = serde_json::from_str(&self.plane.query()).expect("JSON");
        let device = state["devices"].as_array().expect("devices").iter().find(|device| device["id"] == id);
        device.unwrap_or_else(|| panic!("no device {id}: {state}")).clone()
    }

    /// Wait until nobody is connected to a port.
    pub fn await_disconnected(&self, id: &str) {
        let end = Instant::now() + PATIENCE;
        while self.query(id)["connected"] != false {
            assert!(Instant::now() < end, "{}", self.query(id));
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Who waited for whom, of all that was told since the last call; waits until what is told is `enough`.
    pub fn waits(&self, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let end = Instant::now() + PATIENCE;
        let mut rows = Vec::new();
        loop {
            let events = self.plane.take_events();
            let events = events.iter().map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
            let told = events.filter(|event| event["event"] == "ARBITER_WAITS");
            rows.extend(told.flat_map(|event| event["data"]["rows"].as_array().expect("rows").clone()));
            if enough(&rows) {
                return rows;
            }
            assert!(Instant::now() < end, "{rows:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Wait until `count` frames have been dropped at a port for `reason`.
    pub fn await_drops(&self, id: &str, reason: &str, count: u64) {
        let end = Instant::now() + PATIENCE;
        while self.query(id)["drops"][reason].as_u64().unwrap_or(0) < count {
            assert!(Instant::now() < end, "{}", self.query(id));
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Process and generation of the worker.
    pub fn worker(&self) -> (u64, u64) {
        let end = Instant::now() + PATIENCE;
        loop {
            let state: Value = serde_json::from_str(&self.plane.query()).expect("JSON");
            let worker = &state["workers"][0];
            if let (Some(pid), Some(generation)) = (worker["pid"].as_u64(), worker["generation"].as_u64()) {
                return (pid, generation);
            }
            assert!(Instant::now() < end, "no worker: {state}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Send one frame.
pub fn send(guest: &mut Net, frame: &[u8]) {
    send_with(guest, &[0; HEADER], frame);
}

/// Send one frame with a header.
pub fn send_with(guest: &mut Net, header: &[u8; HEADER], frame: &[u8]) {
    assert!(guest.send_with(header, frame).expect("send"), "the transmit ring is full");
    guest.kick().expect("kick");
}

/// The next frame that a guest gets.
pub fn received(guest: &mut Net) -> Vec<u8> {
    guest.wait(PATIENCE).expect("receive").expect("a frame").1
}

/// Fail if a guest gets a frame.
pub fn nothing(guest: &mut Net) {
    assert_eq!(guest.wait(SILENCE).expect("receive"), None);
}
