//! Operators: one query each, rows in, results out at the end of an epoch.
//!
//! ```text
//!  push ─► late rows, failed rows, results of a stateless query     (at once)
//!  push, gather ─► epoch buffer ─► end_epoch ─► state ─► final plan ─► emissions
//! ```
//!
//! There is one type for each kind of query, in a file of its own: [`stateless`], [`windowed`] and
//! [`view`]. A new kind (sessions, joins, OVER) implements [`Operator`] in a new file and gets an arm
//! in [`operator_for`].
//!
//! **Promises** of every operator:
//! - the same epochs give the same state and the same emissions, whichever worker the rows went to
//!   and however its epoch buffers were gathered;
//! - a restored operator continues exactly as the one that was saved would have;
//! - a failure that the data causes is reported for its row or window, and the others go on.

mod emission;
mod operator_trait;
pub(crate) mod result_state;
mod stateless;
mod view;
mod windowed;

use std::sync::Arc;

use chrono_tz::Tz;

pub use emission::{Changes, Emission};
pub use operator_trait::{EpochEnd, Operator};

use crate::error::Result;
use crate::planner::{PlanKind, QueryPlan};
use crate::window::operator_state::OperatorState;

/// Creates the operator of a planned query over a stream in `zone`, without state.
///
/// # Errors
/// The plan's windows are refused by [`WindowSpec::validate`](crate::types::WindowSpec::validate).
pub fn operator_for(plan: Arc<QueryPlan>, zone: Tz) -> Result<Box<dyn Operator>> {
    Ok(match plan.kind {
        PlanKind::Stateless => Box::new(stateless::StatelessOperator::new(plan, zone)?),
        PlanKind::Windowed => Box::new(windowed::WindowedOperator::new(plan, zone)?),
        PlanKind::View | PlanKind::Derived => Box::new(view::ViewOperator::new(plan, zone)?),
    })
}

/// As [`operator_for`], with a saved state.
///
/// # Errors
/// As [`operator_for`] and [`Operator::restore`].
pub async fn restore_operator(
    plan: Arc<QueryPlan>,
    zone: Tz,
    state: OperatorState,
) -> Result<Box<dyn Operator>> {
    let mut operator = operator_for(plan, zone)?;
    operator.restore(state).await?;
    Ok(operator)
}
