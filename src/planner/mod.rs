//! Plans SQL: splits each query into a batch plan, the window state and a final plan.
//!
//! ```text
//!   text ─► window functions in FROM ─► analyzed ─► optimized ─► split ─► physical plan
//!           windowing_tvf.rs            planning_session.rs      split.rs  physical_plan.rs
//! ```
//!
//! The batch plan runs on every batch, the final plan runs once per closed window.
//!
//! Promises: every SQL function and operator is DataFusion's. The state between batches is plain
//! record batches. The same text gives the same plan. Errors name file, line and column.

mod customer_plan;
mod distinct_count;
mod distinct_rewrite;
pub(crate) mod errors;
mod exec;
mod explain;
mod functions;
mod lineage;
mod order_insensitive;
mod physical_plan;
mod planning_session;
mod query_plan;
mod query_planner;
mod split;
pub(crate) mod sql_display;
mod stream_plan;
mod task_contexts;
mod windowing_tvf;

pub use customer_plan::{CustomerPlan, plan_customer};
pub use exec::inputs::Relations;
pub use functions::EpochNow;
pub use query_plan::{Input, PlanKind, QueryPlan, WindowState};
pub use stream_plan::StreamPlan;

#[cfg(test)]
mod tests;
