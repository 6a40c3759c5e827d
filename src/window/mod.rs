//! Windows: which ones an event belongs to, what is kept for them, and when they close.
//!
//! ```text
//!   rows ─► intake ─► buckets of the epoch ─► tiers, one stack a bucket ─► close ─► results
//!              │            keep.rs               tiers.rs, panes.rs        │
//!              └─► late rows                                    views.rs ◄──┘ what changed
//! ```
//!
//! Pure but for the plans that it runs: no I/O, no clock. The same epochs give the same state.

pub mod assign;
mod digest;
mod intake;
mod isolate;
mod keep;
mod operator;
mod panes;
mod snapshot;
mod tiers;
mod views;
mod zone;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod test_plan;
#[cfg(test)]
mod tests;

pub use assign::{Assigner, Size, TruncUnit, WindowSpec};
pub use digest::Digests;
pub use intake::{FailedRow, Intake, Late, Pushed, Rows};
pub use isolate::{Isolated, isolate};
pub use keep::Buffer;
pub use operator::{Changes, Emission, Operator};
pub use snapshot::OperatorState;
