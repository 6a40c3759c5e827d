//! The DataFusion table provider of a history table. It returns the columns and types of the engine
//! and pushes filters down to the files.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::expressions::{Column, cast};
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};
use datafusion::prelude::{SessionConfig, SessionContext};
use deltalake::DeltaTable;

use crate::Result;
use crate::history::delta_table::{self, Description};
use crate::history::{date_pruning, delta_error};

/// One snapshot of a history table.
#[derive(Debug)]
pub(super) struct HistoryTable {
    delta: Arc<dyn TableProvider>,
    description: Description,
}

impl HistoryTable {
    /// Opens the newest snapshot of the table in the folder `path`.
    pub(super) async fn open(path: &Path) -> Result<Self> {
        let fail = |error| delta_error(path, "reading", error);
        let mut table = DeltaTable::new(delta_table::log_store(path)?);
        table.load().await.map_err(fail)?;
        let description = Description::read(table.snapshot().map_err(fail)?);
        let delta = table.table_provider().with_session(scan_settings()).await?;
        Ok(Self { delta, description })
    }

    /// The key columns of keyed results; `None` for other tables.
    pub(super) fn key(&self) -> Option<&[String]> {
        self.description.key.as_deref()
    }
}

/// Adds the settings that every session over history needs: no string views, because the schemas of
/// the engine have none, and filter pushdown, which skips row groups.
pub(super) fn settings(config: SessionConfig) -> SessionConfig {
    config
        .set_bool("datafusion.execution.parquet.pushdown_filters", true)
        .set_bool("datafusion.execution.parquet.schema_force_view_types", false)
}

fn scan_settings() -> Arc<SessionState> {
    static STATE: OnceLock<Arc<SessionState>> = OnceLock::new();
    let make = || Arc::new(SessionContext::new_with_config(settings(SessionConfig::new())).state());
    STATE.get_or_init(make).clone()
}

#[async_trait]
impl TableProvider for HistoryTable {
    fn schema(&self) -> SchemaRef {
        self.description.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// The scan uses filters to skip files and row groups only; DataFusion applies them to the rows.
    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> DataFusionResult<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let (engine, stored) = (&self.description.schema, self.delta.schema());
        let all = || (0..engine.fields().len()).collect();
        let columns: Vec<usize> = projection.cloned().unwrap_or_else(all);
        let projection = (columns.iter())
            .map(|&column| stored.index_of(engine.field(column).name()))
            .collect::<Result<Vec<_>, _>>()?;
        let mut pushed = Vec::with_capacity(filters.len() * 2);
        for filter in filters {
            pushed.extend(date_pruning::stored(filter, engine, &stored));
            let time = self.description.time.as_deref();
            pushed.extend(time.and_then(|time| date_pruning::dates(filter, time)));
        }
        let limit = limit.filter(|_| filters.is_empty());
        let plan = self.delta.scan(session, Some(&projection), &pushed, limit).await?;
        let types = columns.iter().map(|&column| engine.field(column).data_type());
        let schema = plan.schema();
        if types.clone().eq(schema.fields().iter().map(|field| field.data_type())) {
            return Ok(plan);
        }
        let expressions = (types.zip(schema.fields()).enumerate())
            .map(|(index, (data_type, field))| {
                let name = field.name();
                let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(name, index));
                let expr = cast(column, &schema, data_type.clone())?;
                Ok(ProjectionExpr { expr, alias: name.clone() })
            })
            .collect::<DataFusionResult<Vec<_>>>()?;
        Ok(Arc::new(ProjectionExec::try_new(expressions, plan)?))
    }
}
