//! Networks: the ports of machines, the uplink, and the switch between them (docs/plane.md, "Networks").
//!
//! A worker serves all ports of a network, so a frame goes from one guest's ring straight into another's: its front is copied
//! out once and looked at, then that copy and the rest of the sender's buffers are written to the receiver's.
//!
//! - [`device`]: a machine's NIC; [`uplink`]: the way out, a tap or a [`stream`];
//! - [`network`]: the way of a frame from a port to others; [`switch`]: which others; [`receive`]: into a guest's buffers;
//! - [`header`]: the virtio-net header; [`frame`]: a frame on its way; [`segment`]: what receivers do not take on themselves;
//! - [`traffic`]: whose turn it is, where something is limited; [`patience`]: how long senders wait for a receiver's buffers;
//! - [`order`]: what can be asked of a port; [`capture`]: its frames as a file; `delay`: frames held on purpose;
//! - [`settle`]: what is done a moment later.

pub mod capture;
mod delay;
pub mod device;
pub mod frame;
pub mod header;
pub mod network;
pub mod order;
pub mod patience;
pub mod receive;
pub mod segment;
mod settle;
pub mod stream;
pub mod switch;
pub mod traffic;
pub mod uplink;
