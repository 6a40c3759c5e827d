//! The syntax tree of the statements in schema and query files.
//!
//! Nothing is checked beyond the grammar, and every part keeps its span in the file. Names,
//! types, expressions and queries are nodes of sqlparser.

use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::tokenizer::Span;

/// A statement of a schema or query file.
#[derive(Debug)]
pub(super) enum Statement {
    /// `CREATE STREAM name (...) WITH (...)`
    Stream(StreamStatement),
    /// `CREATE STREAM ... AS`, `CREATE MATERIALIZED VIEW ... AS` or a bare query
    Query(QueryStatement),
    /// `CREATE EXTERNAL TABLE`
    Table(TableStatement),
    /// `SET millstream.key = value`
    Set(SetStatement),
}

/// A name (in the case that [`fold_identifier`] gives it) or a value, with its span.
#[derive(Debug, Clone)]
pub(super) struct SpannedText {
    pub value: String,
    pub span: Span,
}

/// `CREATE STREAM name (columns, WATERMARK ...) WITH (options)`
#[derive(Debug)]
pub(super) struct StreamStatement {
    pub name: SpannedText,
    pub columns: Vec<ColumnClause>,
    pub watermarks: Vec<WatermarkClause>,
    pub options: Vec<OptionClause>,
}

/// `name TYPE [NOT NULL] [AS expr | METADATA FROM '..' | FORMAT '..']`
#[derive(Debug)]
pub(super) struct ColumnClause {
    pub name: SpannedText,
    pub sql_type: ast::DataType,
    pub type_span: Span,
    pub not_null: Option<Span>,
    pub source: SourceClause,
}

/// The source clause of a column.
#[derive(Debug)]
pub(super) enum SourceClause {
    Payload,
    Format(SpannedText),
    Metadata(SpannedText),
    Computed(Box<ast::Expr>),
}

/// `WATERMARK FOR column AS expr`
#[derive(Debug)]
pub(super) struct WatermarkClause {
    pub column: SpannedText,
    pub delayed: ast::Expr,
    pub span: Span,
}

/// `key = value` of a WITH or OPTIONS list.
#[derive(Debug, Clone)]
pub(super) struct OptionClause {
    pub key: SpannedText,
    pub value: SpannedText,
}

/// The kind of a query statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueryForm {
    Bare,
    Stream,
    View,
}

/// A statement that contains a query.
#[derive(Debug)]
pub(super) struct QueryStatement {
    pub name: Option<SpannedText>,
    pub form: QueryForm,
    pub options: Vec<OptionClause>,
    pub select: Box<ast::Query>,
    pub span: Span,
    pub comment: String,
}

/// `CREATE EXTERNAL TABLE name [(columns)] STORED AS format LOCATION '..' [OPTIONS (...)]`
#[derive(Debug)]
pub(super) struct TableStatement {
    pub name: SpannedText,
    pub columns: Vec<ColumnClause>,
    pub format: SpannedText,
    pub location: SpannedText,
    pub options: Vec<OptionClause>,
}

/// `SET key = value`
#[derive(Debug)]
pub(super) struct SetStatement {
    pub key: SpannedText,
    pub value: SpannedText,
}

/// An identifier in the case in which DataFusion compares it: lower case, unless it is quoted.
pub(super) fn fold_identifier(value: &str, quote: Option<char>) -> String {
    if quote.is_some() { value.to_owned() } else { value.to_ascii_lowercase() }
}
