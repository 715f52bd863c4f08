//! What can be asked of a port that is there (QMP `set-port` and the like, docs/plane.md).

use serde::{Deserialize, Serialize};

use crate::net::switch::Rules;
use crate::net::switch::faults::FaultPlan;

/// Most connections told at once: a row has at most 400 bytes, and a message 64 KiB.
pub const MAX_FLOWS: usize = 128;

/// Bytes that are kept of a frame, least and most: the headers, and the largest frame that there is.
const SNAPLEN: std::ops::RangeInclusive<u32> = 64..=262_144;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// These rules from now on, and the cable is in or not. Of machines' ports only.
    Set {
        /// All of them.
        rules: Rules,
        /// Whether frames pass.
        link: bool,
    },
    /// These faults from now on, or none.
    Faults {
        /// Which.
        plan: Option<FaultPlan>,
    },
    /// Tell the connections with the most bytes.
    Flows {
        /// How many at most.
        limit: usize,
    },
    /// Write what passes to the fd that comes along.
    Capture {
        /// Bytes to keep of each frame.
        snaplen: u32,
        /// Bytes to write in all.
        limit: u64,
    },
    /// Write no more, and tell how many frames were written.
    CaptureStop,
}

impl Order {
    /// From JSON, within its bounds.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(json: &str) -> Result<Order, String> {
        let order: Order = serde_json::from_str(json).map_err(|error| error.to_string())?;
        match &order {
            Order::Set { rules, .. } => rules.check()?,
            Order::Faults { plan: Some(plan) } => plan.check()?,
            Order::Flows { limit } if !(1..=MAX_FLOWS).contains(limit) => {
                return Err(format!("limit is {limit}, must be 1 to {MAX_FLOWS}"));
            }
            Order::Capture { snaplen, .. } if !SNAPLEN.contains(snaplen) => {
                return Err(format!(
                    "snaplen is {snaplen}, must be {} to {}",
                    SNAPLEN.start(),
                    SNAPLEN.end()
                ));
            }
            _ => {}
        }
        Ok(order)
    }

    /// Fds that come along.
    pub fn fds(&self) -> usize {
        usize::from(matches!(self, Order::Capture { .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_out_of_bounds_are_refused() {
        for (good, bad) in [
            (r#"{"type": "set", "rules": {}, "link": true}"#, r#"{"type": "set", "link": true}"#),
            (r#"{"type": "faults", "plan": null}"#, r#"{"type": "faults", "plan": {"loss": 2}}"#),
            (r#"{"type": "flows", "limit": 128}"#, r#"{"type": "flows", "limit": 129}"#),
            (
                r#"{"type": "capture", "snaplen": 64, "limit": 1}"#,
                r#"{"type": "capture", "snaplen": 63, "limit": 1}"#,
            ),
            (r#"{"type": "capture_stop"}"#, r#"{"type": "dance"}"#),
        ] {
            Order::parse(good).unwrap();
            Order::parse(bad).unwrap_err();
        }
    }
}
