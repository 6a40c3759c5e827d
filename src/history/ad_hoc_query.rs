//! Questions in SQL: only questions, and errors that point at the word that is wrong.

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

/// What stands for the file in the place of an error.
const SOURCE: &str = "query";

/// Runs one query (or EXPLAIN, or SHOW) and gives its rows as they come.
///
/// # Errors
/// [`Kind::Sql`] with its place in `text` and a hint; [`Kind::Storage`]. The stream's own errors
/// are made readable by [`sql_error`].
pub async fn run_sql(context: &SessionContext, text: &str) -> Result<SendableRecordBatchStream> {
    let text = catalog::strip_byte_order_mark(text);
    catalog::check_single_statement(Path::new(SOURCE), text)?;
    let source = in_text(text);
    let state = context.state();
    let dialect = state.config().options().sql_parser.dialect;
    let statement = state
        .sql_to_statement(text, &dialect)
        .map_err(|error| explain(Some(context), &source, error))?;
    if !is_question(&statement) {
        return Err(read_only(text));
    }
    match run_statement(context, statement.clone()).await {
        Ok(rows) => Ok(rows),
        Err(Failed::Refused) => Err(read_only(text)),
        Err(Failed::Error(error)) => {
            let columns = columns_of(context, &statement).await;
            let select = select_of(&statement);
            Err(explain(Some(context), &SqlSource { select, columns: &columns, ..source }, error))
        }
    }
}

/// Why a statement gives no rows.
enum Failed {
    /// It would change something.
    Refused,
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
    // What EXPLAIN explains is no question by its own word.
    let only_questions =
        SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    only_questions.verify_plan(&plan).map_err(|_| Failed::Refused)?;
    let plan = if listing { in_order(plan)? } else { plan };
    Ok(context.execute_logical_plan(plan).await?.execute_stream().await?)
}

/// The columns of the tables that a statement names, as far as there are such tables.
async fn columns_of(context: &SessionContext, statement: &Statement) -> Vec<(String, DataType)> {
    let mut columns = Vec::new();
    for name in context.state().resolve_table_references(statement).unwrap_or_default() {
        let Ok(table) = context.table_provider(name).await else { continue };
        let schema = table.schema();
        columns.extend(schema.fields().iter().map(|f| (f.name().clone(), f.data_type().clone())));
    }
    columns
}

fn in_text(text: &str) -> SqlSource<'_> {
    SqlSource { file: Path::new(SOURCE), text, select: None, line: 1, columns: &[] }
}

/// The query of a statement, for the places of errors.
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

/// Whether a statement lists things that have no order of their own, as columns have.
fn is_listing(statement: &Statement) -> bool {
    matches!(statement, Statement::Statement(statement)
        if matches!(statement.as_ref(),
            ast::Statement::ShowTables { .. } | ast::Statement::ShowFunctions { .. }))
}

/// Sorted by all columns: tables by customer and name.
fn in_order(plan: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    let columns = plan.schema().columns();
    let order = columns.into_iter().map(|column| Expr::Column(column).sort(true, false));
    LogicalPlanBuilder::from(plan).sort(order.collect::<Vec<_>>())?.build()
}

fn is_question(statement: &Statement) -> bool {
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
    Error::sql("history is read only: only queries are run here")
        .at(place_of_byte(text, text.len() - statement.len(), word))
        .hint("write SELECT ...; save an answer with --output")
}

/// Turns an error of a query's run into one that says what to do.
pub fn sql_error(error: DataFusionError) -> Error {
    explain(None, &in_text(""), error)
}

/// Turns an error of a query's planning or run into one that says where and what to do.
fn explain(
    context: Option<&SessionContext>,
    source: &SqlSource<'_>,
    error: DataFusionError,
) -> Error {
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner)
            if is_ours(&inner) =>
        {
            explain(context, source, *inner)
        }
        DataFusionError::External(cause) => match cause.downcast::<Error>() {
            Ok(own) => *own,
            Err(other) if other.to_string().starts_with("regex parse error") => {
                in_source(&DataFusionError::Execution(other.to_string()), source)
            }
            Err(other) => Error::new(Kind::Storage, "history could not be read").because(other),
        },
        DataFusionError::SQL(cause, _) => {
            catalog::explain_parser_error(Path::new(SOURCE), source.text, *cause)
        }
        error => match missing_table(&error) {
            Some(table) => no_table(context, source, &table),
            None => in_source(&error, source),
        },
    }
}

/// Whether an error is one of ours or the parser's, wrapped or not.
fn is_ours(error: &DataFusionError) -> bool {
    matches!(error.find_root(), DataFusionError::External(_) | DataFusionError::SQL(..))
}

/// The table of "table 'history.customer_a.x' not found".
fn missing_table(error: &DataFusionError) -> Option<String> {
    let DataFusionError::Plan(message) = error.find_root() else { return None };
    let (table, _) = message.strip_prefix("table '")?.split_once("' not found")?;
    // The session's own catalog is of no interest.
    Some(table.strip_prefix("history.").unwrap_or(table).to_owned())
}

fn no_table(context: Option<&SessionContext>, source: &SqlSource<'_>, table: &str) -> Error {
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
        .hint(hint.unwrap_or_else(|| "there is no history here yet".to_owned()));
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
