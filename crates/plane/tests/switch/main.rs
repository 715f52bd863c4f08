//! The switch, seen from outside: frames in, frames out.

mod faults;
mod guard;
mod hostile;
mod learning;
mod private;
mod runs;
mod scene;
mod security;
mod vlans;
