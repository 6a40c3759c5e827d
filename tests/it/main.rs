//! The integration tests, in one binary because linking dominates the build time.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod commands;
#[cfg(feature = "failpoints")]
mod crash_points;
mod data_loss;
mod engine_harness;
mod failures;
mod fencing;
mod full_disk;
mod hostile_records;
mod layers;
mod log_topic;
mod network_faults;
mod own_broker;
mod plan_fingerprints;
mod properties;
mod random_kills;
mod sample_project;
mod text_tests;
mod upgrades;
mod verified_load;
mod wrong_clocks;
