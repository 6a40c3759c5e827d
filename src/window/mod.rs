//! Windows: which ones an event belongs to, what is kept for them, and when they close.
//!
//! Pure but for the plans that it runs: no I/O, no clock. The same epochs give the same state.

pub mod assign;
#[cfg(test)]
mod oracle;
mod zone;

pub use assign::{Assigner, Size, TruncUnit, WindowSpec};
