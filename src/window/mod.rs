//! Windows: which ones an event belongs to, what is kept for them, and when they close.
//!
//! ```text
//!   rows ─► intake ─► buckets of the epoch ─► tiers, one stack a bucket ─► close ─► results
//!              │            keep.rs               tiers.rs, panes.rs        │
//!              └─► late rows                                    views.rs ◄──┘ what changed
//! ```
//!
//! Pure but for the plans that it runs: no I/O, no clock. The same epochs give the same state.

pub mod assigner;
mod changelog;
mod epoch_buffer;
mod failed_rows;
mod merge_tree;
mod operator;
mod operator_state;
mod panes;
mod row_assigner;
mod state_digest;
mod zone_calendar;

#[cfg(test)]
mod tests;

pub use assigner::Assigner;
pub use epoch_buffer::EpochBuffer;
pub use failed_rows::{Isolated, isolate};
pub use operator::{Changes, Emission, Operator};
pub use operator_state::OperatorState;
pub use row_assigner::{FailedRow, InputRows, Late, Pushed, RowAssigner};
pub use state_digest::Digests;
