//! What a hostile guest, a hostile frontend and `kill -9` do to a real worker: nothing that a neighbour notices.
//!
//! Every test runs the real holder and a real worker process, and most run an honest guest in the same worker,
//! whose every block is verified. A guest that breaks a rule gets a defined answer: an error status, or a queue
//! that is given up, counted, told by its err eventfd, and served again after a reconnect.

mod balloon;
mod chains;
mod chars;
mod faults;
mod floods;
mod hostport;
mod house;
mod kill;
mod memory;
mod protocol;
mod random;
mod rings;
mod scene;
