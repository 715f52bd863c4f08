//! The arbiter of a link in simulated time: who gets how much of it, and how long small flows wait.

mod flows;
mod properties;
mod shares;
mod simulator;
