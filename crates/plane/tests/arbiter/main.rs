//! The arbiter on a simulated device: does each knob do what it says?

mod knobs;
mod simulator;
