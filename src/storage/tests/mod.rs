//! An object store that fails on purpose, used by the tests of other modules.

pub mod faulty_store;
