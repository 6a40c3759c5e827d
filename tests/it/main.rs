//! Everything that is tested from outside of the crate, in one binary: linking is what costs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod broker;
mod cli;
mod clock;
#[cfg(feature = "failpoints")]
mod crash;
mod faults;
mod garbage;
mod kill;
mod load;
mod log;
mod loss;
mod network;
mod place;
mod properties;
mod rig;
mod sql;
mod storage;
mod upgrade;
mod zombie;
