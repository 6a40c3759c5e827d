//! Runs read-only SQL queries over history, with errors that point at the position in the text.

use std::path::Path;

use arrow::datatypes::DataType;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;

use crate::catalog::{self, suggestion};
use crate::history::query_context::known_tables;
use crate::planner::errors::{SqlSource, in_source};
use crate::{Error, Kind, Place, Result};

/// The file name in the place of an error.
const SOURCE: &str = "query";

/// Runs one query, EXPLAIN or SHOW and streams its rows.
///
/// # Errors
/// [`Kind::Sql`] with the place in `text` and a hint; [`Kind::Storage`]. Convert the errors of the
/// stream with [`sql_error`].
pub async fn run_sql(context: &SessionContext, text: &str) -> Result<SendableRecordBatchStream> {
    let text = catalog::strip_byte_order_mark(text);
    catalog::check_single_statement(Path::new(SOURCE), text)?;
    let source = source_of_text(text);
    let state = context.state();
    let dialect = state.config().options().sql_parser.dialect;
    let statement = state
        .sql_to_statement(text, &dialect)
        .map_err(|error| explain(Some(context), &source, error))?;
    if !is_query(&statement) {
        return Err(read_only(text));
    }
    match run_statement(context, statement.clone()).await {
        Ok(rows) => Ok(rows),
        Err(Failed::NotReadOnly) => Err(read_only(text)),
        Err(Failed::Error(error)) => {
            let columns = columns_of(context, &statement).await;
            let select = select_of(&statement);
            Err(explain(Some(context), &SqlSource { select, columns: &columns, ..source }, error))
        }
    }
}

/// The reason why a statement returns no rows.
enum Failed {
    /// The statement is not read-only.
    NotReadOnly,
    Error(DataFusionError),
}

impl From<DataFusionError> for Failed {
    fn from(error: DataFusionError) -> Self {
        Self::Error(error)
    }
}

async fn run_statement(
    context: &SessionContext,
    statement: Statement,
) -> Result<SendableRecordBatchStream, Failed> {
    let listing = is_listing(&statement);
    let plan = context.state().statement_to_plan(statement).await?;
    // The statement inside EXPLAIN need not be a query.
    let read_only_options =
        SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    read_only_options.verify_plan(&plan).map_err(|_| Failed::NotReadOnly)?;
    let plan = if listing { sort_by_all_columns(plan)? } else { plan };
    Ok(context.execute_logical_plan(plan).await?.execute_stream().await?)
}

/// The columns of the existing tables that a statement refers to.
async fn columns_of(context: &SessionContext, statement: &Statement) -> Vec<(String, DataType)> {
    let mut columns = Vec::new();
    for name in context.state().resolve_table_references(statement).unwrap_or_default() {
        let Ok(table) = context.table_provider(name).await else { continue };
        let schema = table.schema();
        columns.extend(schema.fields().iter().map(|f| (f.name().clone(), f.data_type().clone())));
    }
    columns
}

fn source_of_text(text: &str) -> SqlSource<'_> {
    SqlSource { file: Path::new(SOURCE), text, select: None, line: 1, columns: &[] }
}

/// The query of a statement, to locate errors.
fn select_of(statement: &Statement) -> Option<&ast::Query> {
    match statement {
        Statement::Statement(statement) => match statement.as_ref() {
            ast::Statement::Query(select) => Some(select),
            _ => None,
        },
        Statement::Explain(explain) => select_of(&explain.statement),
        _ => None,
    }
}

/// Whether a statement lists objects without a natural order.
fn is_listing(statement: &Statement) -> bool {
    matches!(statement, Statement::Statement(statement)
        if matches!(statement.as_ref(),
            ast::Statement::ShowTables { .. } | ast::Statement::ShowFunctions { .. }))
}

/// Sorts the rows by all columns: tables by customer and name.
fn sort_by_all_columns(plan: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    let columns = plan.schema().columns();
    let order = columns.into_iter().map(|column| Expr::Column(column).sort(true, false));
    LogicalPlanBuilder::from(plan).sort(order.collect::<Vec<_>>())?.build()
}

fn is_query(statement: &Statement) -> bool {
    match statement {
        Statement::Statement(statement) => matches!(
            statement.as_ref(),
            ast::Statement::Query(_)
                | ast::Statement::ExplainTable { .. }
                | ast::Statement::ShowTables { .. }
                | ast::Statement::ShowColumns { .. }
                | ast::Statement::ShowFunctions { .. }
                | ast::Statement::ShowVariable { .. }
        ),
        Statement::Explain(_) => true,
        _ => false,
    }
}

fn read_only(text: &str) -> Error {
    let statement = text.trim_start();
    let word = statement.find(char::is_whitespace).unwrap_or(statement.len());
    Error::sql("history is read-only and runs only queries")
        .at(place_of_byte(text, text.len() - statement.len(), word))
        .hint("use SELECT; write results to a file with --output")
}

/// Converts an error of a running query into a user-facing error.
pub fn sql_error(error: DataFusionError) -> Error {
    explain(None, &source_of_text(""), error)
}

/// Converts an error of a query into one with its place and a hint.
fn explain(
    context: Option<&SessionContext>,
    source: &SqlSource<'_>,
    error: DataFusionError,
) -> Error {
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner)
            if has_own_root(&inner) =>
        {
            explain(context, source, *inner)
        }
        DataFusionError::External(cause) => match cause.downcast::<Error>() {
            Ok(own) => *own,
            Err(other) if other.to_string().starts_with("regex parse error") => {
                in_source(&DataFusionError::Execution(other.to_string()), source)
            }
            Err(other) => Error::new(Kind::Storage, "cannot read history").because(other),
        },
        DataFusionError::SQL(cause, _) => {
            catalog::explain_parser_error(Path::new(SOURCE), source.text, *cause)
        }
        error => match missing_table(&error) {
            Some(table) => table_not_found(context, source, &table),
            None => in_source(&error, source),
        },
    }
}

/// Whether the root cause is an error of this crate or of the parser.
fn has_own_root(error: &DataFusionError) -> bool {
    matches!(error.find_root(), DataFusionError::External(_) | DataFusionError::SQL(..))
}

/// The table name in a message such as "table 'history.customer_a.x' not found".
fn missing_table(error: &DataFusionError) -> Option<String> {
    let DataFusionError::Plan(message) = error.find_root() else { return None };
    let (table, _) = message.strip_prefix("table '")?.split_once("' not found")?;
    // Users do not write the name of the catalog.
    Some(table.strip_prefix("history.").unwrap_or(table).to_owned())
}

fn table_not_found(context: Option<&SessionContext>, source: &SqlSource<'_>, table: &str) -> Error {
    let known = context.map(known_tables).unwrap_or_default();
    let default =
        context.map(|c| format!("{}.", c.copied_config().options().catalog.default_schema));
    let short = default.and_then(|default| table.strip_prefix(&default)).unwrap_or(table);
    let qualified = format!(".{short}");
    let elsewhere: Vec<&str> =
        known.iter().map(String::as_str).filter(|name| name.ends_with(&qualified)).collect();
    let hint = match elsewhere.is_empty() {
        true => suggestion::suggest(short, known.iter().map(String::as_str)),
        false => Some(format!("write {}", elsewhere.join(" or "))),
    };
    let error = Error::sql(format!("there is no table '{short}'"))
        .hint(hint.unwrap_or_else(|| "the history has no tables yet".to_owned()));
    match source.find(short) {
        Some(place) => error.at(place),
        None => error,
    }
}

fn place_of_byte(text: &str, start: usize, bytes: usize) -> Place {
    let before = &text[..start];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let width = text[start..start + bytes].chars().count();
    Place::new(Path::new(SOURCE), text, line as u64, column as u64, width as u64)
}
