//! Networks with a real holder, a real worker and raw guests.

mod street;

mod frames;
mod hostile;
mod kill;
mod offloads;
mod orders;
mod pairs;
mod shares;
mod tap;
