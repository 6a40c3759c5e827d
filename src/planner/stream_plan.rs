//! Plans and evaluates the computed columns of a stream.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::{DFSchema, Span};
use datafusion::error::Result as DfResult;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, ExprSchemable, cast};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion::sql::sqlparser::ast;

use crate::catalog::{ColumnSource, Stream, StreamColumn};
use crate::error::{Error, Kind, Place, Result};
use crate::planner::errors::{describe, diagnose, find_in};
use crate::planner::functions::volatile_in;
use crate::planner::planning_session::PlanningSession;

/// A stream whose computed columns are ready to run.
pub struct StreamPlan {
    /// The stream's declaration.
    pub stream: Arc<Stream>,
    /// All columns of the stream, in declared order. Instants are `Timestamp(us, zone)`.
    pub schema: SchemaRef,
    base: SchemaRef,
    /// The computed columns in declared order. Each may read the columns before it.
    computed: Vec<Computed>,
    /// For each column of `schema`, its index among the base columns followed by the computed columns.
    order: Vec<usize>,
}

struct Computed {
    expr: Arc<dyn PhysicalExpr>,
    field: FieldRef,
}

impl std::fmt::Debug for StreamPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamPlan").field("name", &self.stream.name).finish_non_exhaustive()
    }
}

impl StreamPlan {
    /// Checks and plans the computed columns. Returns the errors of all columns at once.
    pub(crate) fn new(session: &PlanningSession, stream: &Arc<Stream>) -> Result<Self, Vec<Error>> {
        let schema = stream.schema();
        let (mut base, mut computed) = (Vec::new(), Vec::new());
        for (column, field) in stream.columns.iter().zip(schema.fields()) {
            match &column.source {
                ColumnSource::Computed(expr) => computed.push((column, field, expr.as_ref())),
                ColumnSource::Payload { .. } | ColumnSource::Metadata(_) => {
                    base.push(Arc::clone(field));
                }
            }
        }
        let mut known = base.clone();
        let (mut planned, mut errors) = (Vec::new(), Vec::new());
        for (column, field, expr) in computed {
            match plan_column(session, stream, &known, column, field, expr) {
                Ok(expr) => planned.push(Computed { expr, field: Arc::clone(field) }),
                Err(error) => errors.push(error),
            }
            known.push(Arc::clone(field));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let place = |field: &FieldRef| known.iter().position(|other| other.name() == field.name());
        let order = schema.fields().iter().filter_map(place).collect();
        let base = Arc::new(Schema::new(base));
        Ok(Self { stream: Arc::clone(stream), schema, base, computed: planned, order })
    }

    /// The columns that come from the payload and from Kafka, in declared order.
    pub fn base_schema(&self) -> SchemaRef {
        Arc::clone(&self.base)
    }

    /// Computes all columns from the columns of [`StreamPlan::base_schema`].
    ///
    /// # Errors
    /// The whole batch fails if an expression fails for one row or is null in a NOT NULL column.
    /// The caller bisects the batch to find that row.
    pub fn compute(&self, base: &RecordBatch) -> Result<RecordBatch> {
        let rows = RecordBatchOptions::new().with_row_count(Some(base.num_rows()));
        let mut fields = self.base.fields().to_vec();
        let mut columns = base.columns().to_vec();
        for computed in &self.computed {
            let schema = Arc::new(Schema::new(fields.clone()));
            let input = RecordBatch::try_new_with_options(schema, columns.clone(), &rows)?;
            let name = computed.field.name();
            let value = computed.expr.evaluate(&input).and_then(|v| v.into_array(base.num_rows()));
            let value = value.map_err(|error| column_error(name, &describe(&error).0))?;
            check_nulls(&computed.field, &value)?;
            fields.push(Arc::clone(&computed.field));
            columns.push(value);
        }
        let columns = self.order.iter().map(|place| Arc::clone(&columns[*place])).collect();
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &rows)?)
    }
}

fn column_error(column: &str, message: &str) -> Error {
    Error::new(Kind::Data, format!("column '{column}': {message}"))
}

fn check_nulls(field: &Field, value: &ArrayRef) -> Result<()> {
    if !field.is_nullable() && value.logical_null_count() > 0 {
        return Err(column_error(field.name(), "is null"));
    }
    Ok(())
}

fn plan_column(
    session: &PlanningSession,
    stream: &Stream,
    known: &[FieldRef],
    column: &StreamColumn,
    field: &FieldRef,
    expr: &ast::Expr,
) -> Result<Arc<dyn PhysicalExpr>> {
    let schema = Schema::new(known.to_vec());
    let planned = DFSchema::try_from_qualified_schema(stream.name.as_str(), &schema)
        .and_then(|schema| plan_expr(session, &schema, expr, field.data_type()));
    let error = match planned {
        Ok((expr, None)) => return Ok(expr),
        Ok((_, Some(volatile))) => {
            Error::sql(format!("{volatile}() returns a different value on each run"))
                .hint("the rows of a stream must be the same on every read")
        }
        Err(error) => {
            let diagnosis = diagnose(&error);
            let named = || diagnosis.words.iter().find_map(|word| find_in(expr, word));
            let span = diagnosis.span.or_else(|| Span::try_from_sqlparser_span(named()?));
            let place = span.map_or_else(|| column.place.clone(), |s| on_line(&column.place, s));
            diagnosis.into_error().at(place)
        }
    };
    Err(error.at(column.place.clone()).detail(format!("in the computed column '{}'", column.name)))
}

/// Returns the place of `span` if it is on the column's line, otherwise the place of the column.
fn on_line(place: &Place, span: Span) -> Place {
    let mut place = place.clone();
    if place.line == span.start.line {
        place.column = span.start.column;
        place.width = span.end.column.saturating_sub(span.start.column).max(1);
    }
    place
}

/// Returns the expression, cast to the declared type, and the volatile function that it calls, if any.
fn plan_expr(
    session: &PlanningSession,
    schema: &DFSchema,
    expr: &ast::Expr,
    declared: &DataType,
) -> DfResult<(Arc<dyn PhysicalExpr>, Option<String>)> {
    let expr = session.expression(expr, schema)?;
    let volatile = volatile_in(&expr)?;
    let simplifier = session.simplifier(schema)?;
    let expr = simplifier.coerce(expr, schema)?;
    let expr = cast_to(expr, schema, declared)?;
    let expr = simplifier.simplify(expr)?;
    let planner = DefaultPhysicalPlanner::default();
    let context = PhysicalPlanningContext::default();
    let expr = planner.create_physical_expr(&expr, schema, &session.state, &context)?;
    Ok((expr, volatile))
}

fn cast_to(expr: Expr, schema: &DFSchema, declared: &DataType) -> DfResult<Expr> {
    let found = expr.get_type(schema)?;
    if found == *declared {
        return Ok(expr);
    }
    if !arrow::compute::can_cast_types(&found, declared) {
        return datafusion::common::plan_err!("cannot cast {found} to {declared}");
    }
    Ok(cast(expr, declared.clone()))
}
