//! Ports of a network: machines' NICs and the uplink.

use std::net::IpAddr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{MAX_QUEUE_SIZE, bound, one, queue_size, yes};
use crate::net::switch::Rules;
use crate::shares::ShareNode;

/// Most pairs of queues of a NIC.
pub const MAX_PAIRS: usize = 8;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let [a, b, c, d, e, f] = self.0;
        serializer.serialize_str(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"))
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parts: Vec<Option<u8>> = text
            .split(':')
            .map(|part| if part.len() == 2 { u8::from_str_radix(part, 16).ok() } else { None })
            .collect();
        let bytes: Option<Vec<u8>> = parts.into_iter().collect();
        bytes
            .and_then(|bytes| Some(Mac(bytes.try_into().ok()?)))
            .ok_or_else(|| D::Error::custom(format!("{text:?} is no Ethernet address")))
    }
}

/// A virtio-net device: a port of a network.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Unique among the devices.
    pub id: String,
    /// Devices with the same name share a worker process; all of a network do.
    pub worker: String,
    /// Ports of one network see each other.
    pub network: String,
    /// The guest's address.
    pub mac: Mac,
    /// Bytes of the largest packet.
    #[serde(default = "mtu")]
    pub mtu: u16,
    /// Pairs of queues, each to receive and to transmit.
    #[serde(default = "one")]
    pub queues: u16,
    /// Size that we recommend to the frontend, in descriptors.
    #[serde(default = "queue_size")]
    pub queue_size: u16,
    /// Whether the cable is in.
    #[serde(default = "yes")]
    pub link: bool,
    /// What the port may do.
    #[serde(default)]
    pub rules: Rules,
    /// Its nodes in the tree of who gets how much; see [`BlkConfig::shares`](super::BlkConfig::shares).
    #[serde(default, skip_serializing)]
    pub shares: Vec<ShareNode>,
}

/// What is behind an uplink's fd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkKind {
    /// A tap with a virtio-net header of 12 bytes before each frame.
    Tap,
    /// A stream socket: before each frame its length, 4 bytes, big-endian (as passt and QEMU have it).
    Stream,
}

/// The way out of a network; its fd is what it says.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct UplinkConfig {
    /// Unique among the devices.
    pub id: String,
    /// Devices with the same name share a worker process; all of a network do.
    pub worker: String,
    /// See [`NetConfig::network`].
    pub network: String,
    /// What the fd is.
    pub kind: UplinkKind,
    /// The only port that it is the way out of; of all if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// What the program behind the way out of one port answers for in ARP and neighbour discovery.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Whether a tap takes UDP segments that are to be cut (TUN_F_USO4).
    #[serde(default)]
    pub uso: bool,
    /// Bytes a second that machines can send through it, if known: what reservations and weights share out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
}

fn mtu() -> u16 {
    1500
}

impl NetConfig {
    pub(super) fn check(&self) -> Result<(), String> {
        bound("queues", self.queues.into(), 1, MAX_PAIRS)?;
        // 68 is the least that IPv4 works with (RFC 791, 3.2); the most, that a frame's length fits in 16 bits.
        bound("mtu", self.mtu.into(), 68, 65521)?;
        bound("queue_size", self.queue_size.into(), 4, MAX_QUEUE_SIZE.into())?;
        if !self.queue_size.is_power_of_two() {
            return Err(format!("queue_size {} is not a power of two", self.queue_size));
        }
        if self.mac.0[0] & 1 == 1 {
            return Err("mac is the address of a group".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::DeviceConfig;

    #[test]
    fn the_contract_parses() {
        let json = r#"{"driver": "net", "id": "m/net0", "worker": "net-default", "network": "default",
            "mac": "52:54:00:ab:CD:01", "queues": 2}"#;
        let config = DeviceConfig::parse(json).unwrap();
        assert_eq!((config.driver(), config.queues(), config.backend_fds()), ("net", 5, 0));
        let again = serde_json::to_string(&config).unwrap();
        assert!(again.contains("52:54:00:ab:cd:01"), "{again}");
        assert_eq!(DeviceConfig::parse(&again).unwrap(), config);
        let json = r#"{"driver": "uplink", "id": "%default/uplink", "worker": "net-default", "network": "default",
            "kind": "tap"}"#;
        let config = DeviceConfig::parse(json).unwrap();
        assert_eq!((config.driver(), config.queues(), config.backend_fds()), ("uplink", 0, 1));
    }

    #[test]
    fn errors_name_the_field_and_the_bound() {
        let wrong = |fields: &str| {
            let json =
                format!(r#"{{"driver": "net", "id": "m/net0", "worker": "w", "network": "n", {fields}}}"#);
            DeviceConfig::parse(&json).unwrap_err()
        };
        for mac in ["52:54:00:00:00", "52:54:00:00:00:0g", "52:54:0:0:0:01", ""] {
            let error = wrong(&format!(r#""mac": "{mac}""#));
            assert!(error.contains(&format!("{mac:?} is no Ethernet address")), "{error}");
        }
        assert_eq!(wrong(r#""mac": "53:54:00:00:00:01""#), "mac is the address of a group");
        let mac = r#""mac": "52:54:00:00:00:01""#;
        assert_eq!(wrong(&format!(r#"{mac}, "mtu": 67"#)), "mtu is 67, must be 68 to 65521");
        assert_eq!(wrong(&format!(r#"{mac}, "queues": 9"#)), "queues is 9, must be 1 to 8");
    }
}
