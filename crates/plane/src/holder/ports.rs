//! The ports of networks, as `query-ports` tells of them.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Map, Value, json};

use crate::config::DeviceConfig;
use crate::holder::Plane;
use crate::holder::events::lock;
use crate::holder::shadow::Shadow;
use crate::net::switch::DropReason;

impl Plane {
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
    }))
}
