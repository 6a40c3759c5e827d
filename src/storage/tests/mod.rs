//! Stores that fail on purpose, for the tests of other modules.

pub mod faulty_store;
