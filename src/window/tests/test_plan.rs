//! Plans for the operator's tests, made from SQL files as the engine does.

use std::fs;
use std::sync::Arc;

use crate::catalog;
use crate::planner::{QueryPlan, plan_customer};

/// How the query groups; sizes in minutes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Tumble(i64),
    /// Slide, size.
    Hop(i64, i64),
    View,
    Stateless,
}

/// A query over `s (ts, k, v)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct TestQuery {
    pub shape: Shape,
    /// `emit = 'every 60 seconds'`.
    pub early: bool,
    /// Allowed lateness in minutes.
    pub lateness: i64,
}

const SCHEMA: &str = "SET millstream.timezone = 'UTC';
CREATE STREAM s (
  ts TIMESTAMP NOT NULL, k BIGINT NOT NULL, v BIGINT NOT NULL,
  WATERMARK FOR ts AS ts
) WITH (topics = 't', format = 'json');";

pub(super) fn plan(query: TestQuery) -> Arc<QueryPlan> {
    let columns = "k, count(*) AS n, sum(1000 / v) AS s, 1000 / (count(*) - 13) AS q,
         count(DISTINCT v) AS d";
    let windowed = |function: String| {
        let emit = if query.early { "every 60 seconds" } else { "final" };
        format!(
            "CREATE STREAM q WITH (emit = '{emit}', allowed_lateness = '{} minutes') AS
             SELECT window_start, window_end, {columns} FROM {function}
             GROUP BY window_start, window_end, k;",
            query.lateness
        )
    };
    let text = match query.shape {
        Shape::Tumble(size) => {
            windowed(format!("TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '{size}' MINUTE)"))
        }
        Shape::Hop(slide, size) => windowed(format!(
            "HOP(TABLE s, DESCRIPTOR(ts), INTERVAL '{slide}' MINUTE, INTERVAL '{size}' MINUTE)"
        )),
        Shape::View => format!("SELECT {columns} FROM s GROUP BY k;"),
        Shape::Stateless => "SELECT 1000 / v AS d FROM s;".to_owned(),
    };
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("schemas")).unwrap();
    fs::create_dir_all(folder.path().join("queries/c")).unwrap();
    fs::write(folder.path().join("schemas/c.sql"), SCHEMA).unwrap();
    fs::write(folder.path().join("queries/c/q.sql"), text).unwrap();
    let catalog = catalog::load(folder.path(), &[]).unwrap();
    let planned = plan_customer(&catalog.customers[0], &[]).unwrap();
    Arc::clone(&planned.queries[0])
}
