//! Machines share one disk through a real holder and a real worker: by weight, reservation and limit, live, and while
//! the worker is killed. Counted in completed requests of a simulated device, so that a busy host changes little.

mod crash;
mod jobs;
mod knobs;
mod merge;
mod stop;
mod yard;
