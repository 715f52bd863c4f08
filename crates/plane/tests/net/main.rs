//! Networks with a real holder, a real worker and raw guests.

mod street;

mod frames;
mod shares;
mod tap;
