//! Windows: which windows an event belongs to, the state that they need, and when they close.
//!
//! ```text
//!   rows ─► row assigner ─► epoch buffer ─► merge tree or panes ─► final plan ─► emissions
//!               │                           (one per window)           ▲            │
//!               └─► late rows, failed rows          operator ──────────┘    changelog: what changed
//! ```
//!
//! [`Operator`] is one query and its state; each kind of query has an operator of its own below
//! `operator/`.
//!
//! **Promise:** this module is pure except for the plans that it runs: no I/O, no clock. The same
//! epochs give the same state.

pub mod assigner;
mod changelog;
mod closing_order;
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
pub use operator::{Changes, Emission, EpochEnd, Operator, operator_for, restore_operator};
pub use operator_state::OperatorState;
pub use row_assigner::{FailedRow, InputRows, Late, Pushed, RowAssigner};
pub use state_digest::Digests;
