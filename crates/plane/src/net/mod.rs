//! The network between machines: [`switch`] decides where a frame goes.

pub mod switch;
