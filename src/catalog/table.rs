//! Reference tables: local files that queries join with.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use chrono_tz::Tz;

use crate::catalog::data_type::arrow_type;
use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::{ColumnClause, SourceClause, TableStatement};
use crate::catalog::with_options::WithOptions;
use crate::catalog::{identifier, suggestion};
use crate::error::{Error, Place};

/// The options of a CSV table.
const CSV_OPTIONS: [&str; 2] = ["format.has_header", "format.delimiter"];

/// A reference table as declared by CREATE EXTERNAL TABLE.
#[derive(Debug, Clone)]
pub struct Table {
    /// The name in SQL.
    pub name: String,
    /// The encoding of the file.
    pub format: TableFormat,
    /// The path of the file, relative to the root of the catalog.
    pub location: PathBuf,
    /// The declared columns; `None` means those of the file, which always holds for Parquet.
    pub columns: Option<SchemaRef>,
    /// The format options of DataFusion: `format.has_header` (true or false) and `format.delimiter`
    /// (one ASCII character).
    pub options: Vec<(String, String)>,
    /// The place of its name.
    pub place: Place,
    /// The place of its location.
    pub location_place: Place,
}

/// The encoding of a reference table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFormat {
    /// Comma-separated text.
    Csv,
    /// Parquet.
    Parquet,
}

impl Table {
    /// Checks a CREATE EXTERNAL TABLE. Returns `None` after adding to `errors`.
    pub(super) fn from_statement(
        mut statement: TableStatement,
        text: &SqlText,
        zone: Tz,
        errors: &mut Vec<Error>,
    ) -> Option<Self> {
        let before = errors.len();
        identifier::check_relation_name(&statement.name, text, errors);
        let format = match statement.format.value.as_str() {
            "csv" => Some(TableFormat::Csv),
            "parquet" => Some(TableFormat::Parquet),
            other => {
                let hint = suggestion::suggest_or_list(other, "formats", ["CSV", "PARQUET"]);
                let message = format!("a table cannot be stored as '{other}'");
                errors.push(text.error(statement.format.span, message).hint(hint));
                None
            }
        };
        for clause in &mut statement.options {
            if !clause.key.value.starts_with("format.") {
                clause.key.value.insert_str(0, "format.");
            }
            if clause.key.value == "format.has_header" {
                clause.value.value.make_ascii_lowercase();
            }
        }
        match format {
            Some(TableFormat::Csv) => check_csv_options(&statement, text, errors),
            Some(TableFormat::Parquet) => {
                WithOptions::new(text, &statement.options, "a Parquet table", &[], errors);
                if let Some(column) = statement.columns.first() {
                    let message = "the columns of a Parquet table are those of its file";
                    errors
                        .push(text.error(column.name.span, message).hint("remove the column list"));
                }
            }
            None => {}
        }
        let location = PathBuf::from(&statement.location.value);
        if statement.location.value.contains("://") {
            let message = "the location of a table must be a local path";
            errors.push(text.error(statement.location.span, message));
        }
        let columns = resolve_columns(&statement.columns, text, zone, errors);
        let table = Self {
            place: text.place(statement.name.span),
            location_place: text.place(statement.location.span),
            name: statement.name.value,
            format: format?,
            location,
            columns: (!statement.columns.is_empty()).then_some(columns),
            options: (statement.options.into_iter())
                .map(|o| (o.key.value, o.value.value))
                .collect(),
        };
        (errors.len() == before).then_some(table)
    }
}

fn check_csv_options(statement: &TableStatement, text: &SqlText, errors: &mut Vec<Error>) {
    let options = WithOptions::new(text, &statement.options, "a CSV table", &CSV_OPTIONS, errors);
    if let Some(header) = options.get("format.has_header")
        && !matches!(header.value.as_str(), "true" | "false")
    {
        let message = format!("'format.has_header' must be true or false, not '{}'", header.value);
        errors.push(text.error(header.span, message));
    }
    if let Some(delimiter) = options.get("format.delimiter")
        && !(delimiter.value.len() == 1 && delimiter.value.is_ascii())
    {
        let message =
            format!("'{}' is not a valid delimiter: use one ASCII character", delimiter.value);
        errors.push(text.error(delimiter.span, message));
    }
}

fn resolve_columns(
    clauses: &[ColumnClause],
    text: &SqlText,
    zone: Tz,
    errors: &mut Vec<Error>,
) -> SchemaRef {
    let mut fields: Vec<Field> = Vec::new();
    for clause in clauses {
        let name = &clause.name;
        if fields.iter().any(|field| *field.name() == name.value) {
            errors
                .push(text.error(name.span, format!("column '{}' is declared twice", name.value)));
        }
        if !matches!(clause.source, SourceClause::Payload) {
            let message = format!(
                "column '{}' of a table cannot have AS, METADATA FROM or FORMAT",
                name.value
            );
            errors.push(text.error(name.span, message).hint("write only name, type and NOT NULL"));
        }
        match arrow_type(&clause.sql_type, zone) {
            Ok(data_type) => {
                fields.push(Field::new(&name.value, data_type, clause.not_null.is_none()))
            }
            Err((message, hint)) => {
                errors.push(text.error(clause.type_span, message).hint(hint));
            }
        }
    }
    Arc::new(Schema::new(fields))
}
