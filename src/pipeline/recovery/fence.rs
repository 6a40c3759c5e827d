//! Phase 3, fence: makes this process the only one that can commit for the customer.

use crate::Result;
use crate::commit::Committer;
use crate::failpoint::reach;
use crate::pipeline::recovery::connect::Connected;
use crate::pipeline::recovery::inspect::{Inspected, RecoveryPlan, inspect_log};

/// A customer for which only this process can commit.
pub struct Fenced {
    pub connected: Connected,
    pub committer: Committer,
    pub plan: RecoveryPlan,
}

/// Fences other processes of this customer, which also ends the transactions that they left open,
/// and reads the log again. If it has changed since the inspection, it is inspected again.
///
/// # Errors
/// No broker answers, or the changed log forbids a start.
pub async fn fence(inspected: Inspected) -> Result<Fenced> {
    let Inspected { mut connected, limits, mut plan } = inspected;
    reach("recovery.fence");
    let (committer, log) =
        Committer::open(&connected.config.kafka, connected.customer(), limits).await?;
    if log != plan.log {
        plan = inspect_log(&mut connected, log).await?;
    }
    Ok(Fenced { connected, committer, plan })
}
