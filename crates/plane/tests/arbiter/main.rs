//! The arbiter on a simulated device: does each knob do what it says?

mod attribution;
mod knobs;
mod model;
mod objective;
mod replay;
mod schedules;
mod simulator;
mod window;
