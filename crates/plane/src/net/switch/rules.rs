//! What a port may do, as `device_add` and `set-port` say it (JSON, docs/plane.md).

use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most addresses, groups or VLANs of one port; a machine has a handful.
pub const MAX_NAMES: usize = 64;

/// Most rows of one port's security. Each new connection is compared with all of them.
pub const MAX_ROWS: usize = 256;

/// Broadcasts a second that a guest may send if nothing is said: a hundred receivers take each of them.
const STORM_PPS: u32 = 1000;

/// Longest name of a group.
const MAX_NAME: usize = 64;

/// Who is at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A machine, which is not trusted.
    Guest,
    /// The host, and by it the world: it speaks for many addresses.
    Uplink,
}

/// What a port may do. The default is a guest's that may send from its own MAC, from any IP address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// What it may send from; any address if empty.
    pub addresses: Vec<IpAddr>,
    /// It may send from any MAC and any address.
    pub spoof: bool,
    /// It may answer DHCP requests.
    pub dhcp_server: bool,
    /// It may announce itself as a router.
    pub router_advertisements: bool,
    /// It talks with uplinks only.
    pub isolated: bool,
    /// The VLAN of its untagged frames, 1 to 4094; none if `None`.
    pub vlan: Option<u16>,
    /// VLANs that it sends and receives tagged; for an uplink, all if empty.
    pub trunk: Vec<u16>,
    /// Broadcasts, multicasts and frames to unknown addresses that it may send, each kind, in frames/s; `None` for any number.
    pub storm_pps: Option<u32>,
    /// Names by which the rows of other ports mean this one.
    pub groups: Vec<String>,
    /// Connections that it may make and take; all of them if `None`.
    pub security: Option<Vec<Row>>,
}

/// A connection that is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Who begins.
    pub direction: Direction,
    /// Of which protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// The first and the last destination port; all if `None`.
    #[serde(default)]
    pub ports: Option<(u16, u16)>,
    /// With whom.
    #[serde(default)]
    pub peer: Peer,
}

/// Who begins a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Others.
    In,
    /// The port.
    Out,
}

/// The protocol of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Any of them.
    #[default]
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
}

/// The other end of a row: `any`, `10.0.0.0/8` or `group:NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Peer {
    /// Anybody.
    #[default]
    Any,
    /// Addresses with the same first bits.
    Net(IpAddr, u8),
    /// Ports of this switch with this name among their groups.
    Group(String),
}

impl TryFrom<String> for Peer {
    type Error = String;

    fn try_from(text: String) -> Result<Peer, String> {
        if text == "any" {
            return Ok(Peer::Any);
        }
        if let Some(name) = text.strip_prefix("group:") {
            let good = (1..=MAX_NAME).contains(&name.len());
            return good.then(|| Peer::Group(name.into())).ok_or_else(|| format!("{text:?} names no group"));
        }
        let (address, bits) = text.split_once('/').unwrap_or((&text, ""));
        let wrong = || format!("peer {text:?} is not any, an address, a network or group:NAME");
        let address = IpAddr::from_str(address).map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = if bits.is_empty() { most } else { bits.parse().map_err(|_| wrong())? };
        if bits > most { Err(wrong()) } else { Ok(Peer::Net(address, bits)) }
    }
}

impl From<Peer> for String {
    fn from(peer: Peer) -> String {
        match peer {
            Peer::Any => "any".into(),
            Peer::Net(address, bits) => format!("{address}/{bits}"),
            Peer::Group(name) => format!("group:{name}"),
        }
    }
}

impl Default for Rules {
    fn default() -> Rules {
        Rules { storm_pps: Some(STORM_PPS), ..Rules::uplink() }
    }
}

impl Rules {
    /// An uplink's: the host sends what it likes.
    pub fn uplink() -> Rules {
        Rules {
            addresses: Vec::new(),
            spoof: false,
            dhcp_server: false,
            router_advertisements: false,
            isolated: false,
            vlan: None,
            trunk: Vec::new(),
            storm_pps: None,
            groups: Vec::new(),
            security: None,
        }
    }

    /// Check the bounds.
    ///
    /// # Errors
    /// A sentence that names the field, the value and the bound.
    pub fn check(&self) -> Result<(), String> {
        let rows = self.security.as_ref().map_or(0, Vec::len);
        for (what, count, most) in [
            ("addresses", self.addresses.len(), MAX_NAMES),
            ("groups", self.groups.len(), MAX_NAMES),
            ("trunk", self.trunk.len(), MAX_NAMES),
            ("security", rows, MAX_ROWS),
        ] {
            if count > most {
                return Err(format!("{what} has {count} entries, over {most}"));
            }
        }
        if let Some(vlan) = self.vlan.iter().chain(&self.trunk).find(|vlan| !(1..=4094).contains(*vlan)) {
            return Err(format!("VLAN {vlan} is not between 1 and 4094"));
        }
        if let Some(name) = self.groups.iter().find(|name| !(1..=MAX_NAME).contains(&name.len())) {
            return Err(format!("group {name:?} has {} bytes, must have 1 to {MAX_NAME}", name.len()));
        }
        for row in self.security.iter().flatten() {
            let Some((low, high)) = row.ports else { continue };
            if low > high {
                return Err(format!("ports {low} to {high} are none"));
            }
            if !matches!(row.protocol, Protocol::Tcp | Protocol::Udp) {
                return Err("only tcp and udp have ports".into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_parses() {
        let json = r#"{"addresses": ["10.77.0.5", "fd00::5"], "vlan": 7, "trunk": [8, 9], "groups": ["web"],
            "storm_pps": 1000, "security": [
                {"direction": "in", "protocol": "tcp", "ports": [80, 443], "peer": "group:web"},
                {"direction": "out", "peer": "10.0.0.0/8"}, {"direction": "out"}]}"#;
        let rules: Rules = serde_json::from_str(json).unwrap();
        rules.check().unwrap();
        let rows = rules.security.as_ref().unwrap();
        assert_eq!((rows[0].ports, &rows[0].peer), (Some((80, 443)), &Peer::Group("web".into())));
        assert_eq!(rows[1].peer, Peer::Net("10.0.0.0".parse().unwrap(), 8));
        assert_eq!((rows[2].protocol, &rows[2].peer), (Protocol::Any, &Peer::Any));
        let again = serde_json::to_string(&rules).unwrap();
        assert_eq!(serde_json::from_str::<Rules>(&again).unwrap(), rules);
    }

    #[test]
    fn rules_out_of_bounds_are_refused() {
        for wrong in [
            r#"{"vlan": 4095}"#,
            r#"{"trunk": [0]}"#,
            r#"{"groups": [""]}"#,
            r#"{"security": [{"direction": "in", "ports": [1, 2]}]}"#,
            r#"{"security": [{"direction": "in", "protocol": "udp", "ports": [2, 1]}]}"#,
        ] {
            serde_json::from_str::<Rules>(wrong).unwrap().check().unwrap_err();
        }
        for wrong in [
            r#"{"color": 1}"#,
            r#"{"security": [{"direction": "in", "peer": "10.0.0.0/33"}]}"#,
            r#"{"security": [{"direction": "in", "peer": "group:"}]}"#,
            r#"{"addresses": ["10.0.0"]}"#,
        ] {
            serde_json::from_str::<Rules>(wrong).unwrap_err();
        }
    }
}
