//! The DataFusion task contexts in which the plans of one customer run.

use std::num::NonZeroUsize;
use std::sync::Arc;

use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;

use crate::catalog::Customer;
use crate::error::Error;
use crate::planner::planning_session::PlanningSession;

/// How many memory consumers an out-of-memory error names.
const NAMED_CONSUMERS: NonZeroUsize = NonZeroUsize::MIN;

/// The task contexts of batch plans and of final plans.
pub(crate) struct TaskContexts {
    /// For the plans that run on every batch.
    pub(crate) batches: Arc<TaskContext>,
    /// For final plans, which stay within the customer's memory limit and spill to disk.
    pub(crate) final_plans: Arc<TaskContext>,
}

impl TaskContexts {
    /// Creates the contexts of `customer`. Without a memory limit both are the same.
    pub(crate) fn new(session: &PlanningSession, customer: &Customer) -> Result<Self, Error> {
        let batches = session.state.task_ctx();
        let Some(limit) = customer.settings.memory_limit_bytes else {
            return Ok(Self { final_plans: Arc::clone(&batches), batches });
        };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let pool = TrackConsumersPool::new(FairSpillPool::new(limit), NAMED_CONSUMERS);
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(pool)).build_arc()?;
        let final_plans = TaskContext::default()
            .with_session_config(session.state.config().clone())
            .with_runtime(runtime);
        Ok(Self { batches, final_plans: Arc::new(final_plans) })
    }
}
