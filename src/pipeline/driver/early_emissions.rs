//! Decides when queries with `EMIT EVERY` publish early results of their open windows.

use std::collections::HashMap;

use crate::catalog::Emit;
use crate::pipeline::engine::Engine;
use crate::time::Micros;

/// When each query published early results last.
#[derive(Default)]
pub struct EarlyEmissions {
    last: HashMap<String, Micros>,
}

impl EarlyEmissions {
    /// Returns the queries that are to publish early results at `now`, and records that they do.
    pub fn take_due(&mut self, engine: &Engine, now: Micros) -> Vec<String> {
        let mut due = Vec::new();
        for query in engine.queries() {
            let plan = query.plan();
            let Emit::Every(interval) = plan.query.emit else { continue };
            let last = self.last.entry(plan.name.clone()).or_insert(now);
            if now - *last >= interval {
                *last = now;
                due.push(plan.name.clone());
            }
        }
        due
    }
}
