//! Schema and query files, read into an immutable [`Catalog`].
//!
//! A customer is one file `schemas/<customer>.sql` (SET, CREATE STREAM, CREATE EXTERNAL TABLE) and
//! one folder `queries/<customer>/` (a bare SELECT, CREATE STREAM ... AS, CREATE MATERIALIZED VIEW
//! ... AS).
//!
//! ```text
//!  project_files ─► sql_text ─► statement_tokens ─► statement_parser ─► statement
//!  (paths)          (one file)  (one statement)     (grammar)           (syntax, unchecked)
//!                                                                          │
//!  Catalog ◄─ loader ◄─ dependency_graph, topic_overlap ◄─ customer_builder ◄─ stream, table,
//!                       (checks across files)              (checks per file)   query, settings
//! ```
//!
//! **Promises**
//! - The catalog that [`load`] returns is complete: every name is resolved and valid, every option
//!   is typed, and queries are in dependency order.
//! - No topic is read by two streams, and none is both read and written.
//! - [`load`] reports all errors of all files at once, each with file, line, column and, where
//!   possible, a hint.
//!
//! The types of expressions are checked by the planner, not here.

pub(crate) mod ast_visitor;

mod column;
mod customer;
mod customer_builder;
mod data_type;
mod dependency_graph;
pub mod duration;
mod identifier;
mod instant;
mod loader;
pub(crate) mod parse_diagnostics;
mod project_files;
mod query;
mod settings;
mod single_query;
mod sql_text;
mod statement;
mod statement_parser;
mod statement_tokens;
mod stream;
pub(crate) mod suggestion;
mod table;
mod table_references;
mod topic_overlap;
mod topics;
mod watermark_clause;
mod with_options;

#[cfg(test)]
mod tests;

pub use column::{ColumnSource, Metadata, StreamColumn};
pub use customer::{Catalog, Customer};
pub use instant::parse_instant;
pub use loader::{load, load_with_errors};
pub(crate) use project_files::strip_byte_order_mark;
pub use query::{Emit, Query, QueryKind, QueryStart};
pub use settings::CustomerSettings;
pub use single_query::parse_query;
pub(crate) use single_query::{check_single_statement, explain_parser_error};
pub use stream::{DEFAULT_IDLE_TIMEOUT_US, DEFAULT_MAX_FUTURE_US, RecordFormat, Start, Stream};
pub use table::{Table, TableFormat};
pub use topics::Topics;
pub use watermark_clause::Watermark;
