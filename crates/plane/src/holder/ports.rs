//! The ports of networks, as `query-ports` tells of them.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::config::DeviceConfig;
use crate::control::ToWorker;
use crate::holder::events::lock;
use crate::holder::link::Link;
use crate::holder::shadow::{Outgoing, Shadow};
use crate::holder::{Plane, PlaneError};
use crate::net::device::config_space;
use crate::net::order::Order;
use crate::net::switch::DropReason;
use crate::net::switch::faults::FaultPlan;

/// A worker answers at once; what it did not answer is said to the next one.
const PATIENCE: Duration = Duration::from_secs(2);
const TRIES: usize = 10;

/// What a port was asked for and is still in effect.
#[derive(Default)]
pub struct PortOrders {
    faults: Option<FaultPlan>,
    capture: Option<(Order, Arc<OwnedFd>)>,
}

impl PortOrders {
    /// All of it again, for a new worker.
    pub fn messages(&self, device: u32) -> impl Iterator<Item = Outgoing> {
        let faults = self.faults.clone().map(|plan| (Order::Faults { plan: Some(plan) }, Vec::new()));
        let capture = self.capture.as_ref().map(|(order, fd)| (order.clone(), vec![fd.clone()]));
        let all = faults.into_iter().chain(capture);
        // Nobody waits for the answer: serials begin with 1.
        all.map(move |(order, fds)| Outgoing { message: ToWorker::Port { device, order, serial: 0 }, fds })
    }
}

impl Plane {
    /// Do to a port what `json` says ([`Order`]), with the fds that belong to it; the answer, as JSON. It is in effect when this
    /// returns, and lasts as long as the device.
    ///
    /// # Errors
    /// If there is no such port, the order is out of bounds, or no worker answers.
    pub fn order_port(&self, id: &str, json: &str, fds: Vec<OwnedFd>) -> Result<String, PlaneError> {
        let order = Order::parse(json).map_err(PlaneError::Config)?;
        if fds.len() != order.fds() {
            let reason = format!("{} fds for the order, needs {}", fds.len(), order.fds());
            return Err(PlaneError::Config(reason));
        }
        let (link, number) = self.port(id)?;
        let fds: Vec<Arc<OwnedFd>> = fds.into_iter().map(Arc::new).collect();
        let space = link.change(|state| {
            let shadow = state.devices.get_mut(&number).ok_or_else(|| PlaneError::NoDevice(id.to_owned()))?;
            remember(shadow, &order, &fds)?;
            Ok::<_, PlaneError>(match &shadow.config {
                DeviceConfig::Net(net) => Some(config_space(net)),
                _ => None,
            })
        })?;
        self.show_link(id, space);
        for _ in 0..TRIES {
            let answer = link.ask(PATIENCE, |serial| {
                let message = ToWorker::Port { device: number, order: order.clone(), serial };
                Outgoing { message, fds: fds.clone() }
            });
            if let Some(answer) = answer {
                return Ok(Value::from_iter(answer)[0].to_string());
            }
        }
        let reason = format!("the worker of device {id} does not answer");
        Err(std::io::Error::new(std::io::ErrorKind::TimedOut, reason).into())
    }

    /// The guest of a port is told when its link has changed.
    fn show_link(&self, id: &str, space: Option<Vec<u8>>) {
        let inner = lock(&self.inner);
        if let (Some(space), Some(device)) = (space, inner.devices.get(id))
            && device.config_space() != space
        {
            device.reconfigure(space);
        }
    }

    fn port(&self, id: &str) -> Result<(Arc<Link>, u32), PlaneError> {
        let inner = lock(&self.inner);
        let device = inner.devices.get(id).map(|device| (device.link.clone(), device.number));
        device.or_else(|| inner.jobs.get(id).cloned()).ok_or_else(|| PlaneError::NoDevice(id.to_owned()))
    }

    /// State and counters of each port of `network`, or of all networks, as JSON, see `_core.pyi`.
    pub fn query_ports(&self, network: Option<&str>) -> String {
        let inner = lock(&self.inner);
        let mut ports = Vec::new();
        for (link, _) in inner.links.values() {
            let state = link.state();
            let rows = state.devices.values().filter_map(describe);
            ports.extend(rows.filter(|row| network.is_none_or(|name| row["network"] == name)));
        }
        Value::from(ports).to_string()
    }
}

/// Note what is to be said to other workers too.
fn remember(shadow: &mut Shadow, order: &Order, fds: &[Arc<OwnedFd>]) -> Result<(), PlaneError> {
    match (&mut shadow.config, order) {
        (DeviceConfig::Net(net), Order::Set { rules, link }) => {
            (net.rules, net.link) = (rules.clone(), *link);
        }
        (DeviceConfig::Net(_) | DeviceConfig::Uplink(_), Order::Faults { plan }) => {
            shadow.port.faults = plan.clone();
        }
        (DeviceConfig::Net(_) | DeviceConfig::Uplink(_), Order::Capture { .. }) => {
            shadow.port.capture = fds.first().map(|fd| (order.clone(), fd.clone()));
        }
        (DeviceConfig::Net(_) | DeviceConfig::Uplink(_), Order::CaptureStop) => shadow.port.capture = None,
        (DeviceConfig::Net(_) | DeviceConfig::Uplink(_), Order::Flows { .. }) => {}
        (config, _) => {
            return Err(PlaneError::Config(format!("device {} is no machine's port", config.id())));
        }
    }
    Ok(())
}

/// A device, if it is a port. Counters are as seen by who is at the port: what it receives is what the switch sends there.
fn describe(shadow: &Shadow) -> Option<Value> {
    let (network, mac, link, connected) = match &shadow.config {
        DeviceConfig::Net(net) => (&net.network, Some(net.mac), net.link, shadow.connected),
        DeviceConfig::Uplink(uplink) => (&uplink.network, None, true, true),
        _ => return None,
    };
    let page = &shadow.page;
    let drops = DropReason::ALL.iter().zip(&page.drops).map(|(reason, count)| (reason, count.load(Relaxed)));
    let drops: Map<String, Value> = drops
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| (reason.name().to_owned(), count.into()))
        .collect();
    Some(json!({
        "id": shadow.config.id(),
        "network": network,
        "mac": mac,
        "link": link,
        "connected": connected,
        "rx_packets": page.reads.load(Relaxed),
        "rx_bytes": page.read_bytes.load(Relaxed),
        "tx_packets": page.writes.load(Relaxed),
        "tx_bytes": page.written_bytes.load(Relaxed),
        "drops": drops,
        "fdb": page.fdb.load(Relaxed),
        "faults": shadow.port.faults,
        "captured": shadow.port.capture.as_ref().is_some_and(|(_, fd)| is_open(fd)),
    }))
}

/// Whether what is written can still be read: of a FIFO somebody has the other end open.
fn is_open(fd: &OwnedFd) -> bool {
    let mut one = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, which the kernel fills in.
    let ready = unsafe { libc::poll(&mut one, 1, 0) };
    ready <= 0 || one.revents & libc::POLLERR == 0
}
