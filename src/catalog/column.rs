//! The columns of a stream and the checks of their declarations.
//!
//! The `Debug` text of [`Metadata`] and of a payload format is part of the fingerprint of a stream.
//! Renaming a variant of [`Metadata`] changes it, and a deployed pipeline then refuses to continue.

use std::collections::HashSet;

use arrow::datatypes::DataType;
use chrono::format::{Item, StrftimeItems};
use chrono_tz::Tz;
use datafusion::sql::sqlparser::ast;

use crate::catalog::data_type::{arrow_type, timestamp_type};
use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::{ColumnClause, SourceClause, SpannedText};
use crate::catalog::suggestion;
use crate::error::{Error, Place};

/// The names of columns that history or a window function adds to those of the stream.
const RESERVED_COLUMNS: [&str; 9] = [
    "_topic",
    "_partition",
    "_offset",
    "_position",
    "_timestamp",
    "event_date",
    "window_start",
    "window_end",
    "window_time",
];

const METADATA: [(&str, Metadata); 6] = [
    ("topic", Metadata::Topic),
    ("partition", Metadata::Partition),
    ("offset", Metadata::Offset),
    ("key", Metadata::Key),
    ("timestamp", Metadata::Timestamp),
    ("headers", Metadata::Headers),
];

/// One column of a stream.
#[derive(Debug, Clone)]
pub struct StreamColumn {
    /// The name; for a payload column also the JSON key.
    pub name: String,
    /// The Arrow type; a TIMESTAMP has microseconds and the zone of the customer.
    pub data_type: DataType,
    /// Whether values may be null; false for NOT NULL.
    pub nullable: bool,
    /// The source of its values.
    pub source: ColumnSource,
    /// The place of its name.
    pub place: Place,
}

/// The source of the values of a column.
#[derive(Debug, Clone)]
pub enum ColumnSource {
    /// A field of the message. A TIMESTAMP may declare a strftime format, or `epoch_s`, `epoch_ms`
    /// or `epoch_us`.
    Payload {
        /// The declared format, which is valid.
        format: Option<String>,
    },
    /// Metadata of the Kafka record.
    Metadata(Metadata),
    /// An expression over the other columns; spans refer to the schema file.
    Computed(Box<ast::Expr>),
}

/// Metadata of a Kafka record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metadata {
    /// The name of the topic: VARCHAR.
    Topic,
    /// The partition: INT.
    Partition,
    /// The offset: BIGINT.
    Offset,
    /// The key: VARCHAR or BYTEA; null if the record has no key.
    Key,
    /// The timestamp of the record: TIMESTAMP; null if the record has no timestamp.
    Timestamp,
    /// The headers: VARCHAR, a JSON object that maps names to texts.
    Headers,
}

/// Checks the columns of a stream. Each is returned with whether its type is known; a column of an
/// unknown type has type `Null`, so that the watermark clause adds no further error for it.
pub(super) fn resolve_columns(
    clauses: Vec<ColumnClause>,
    text: &SqlText,
    zone: Tz,
    errors: &mut Vec<Error>,
) -> Vec<(StreamColumn, bool)> {
    let mut seen = HashSet::new();
    let mut columns = Vec::new();
    for clause in clauses {
        let SpannedText { value: name, span } = clause.name;
        if !seen.insert(name.clone()) {
            errors.push(text.error(span, format!("column '{name}' is declared twice")));
            continue;
        }
        if RESERVED_COLUMNS.contains(&name.as_str()) {
            errors.push(
                (text.error(span, format!("the column name '{name}' is reserved")))
                    .hint("history and window functions add a column with this name"),
            );
        }
        let (data_type, is_known) = match arrow_type(&clause.sql_type, zone) {
            Ok(data_type) => (data_type, true),
            Err((message, hint)) => {
                errors.push(text.error(clause.type_span, message).hint(hint));
                (DataType::Null, false)
            }
        };
        let source = match clause.source {
            SourceClause::Payload => ColumnSource::Payload { format: None },
            SourceClause::Computed(expr) => ColumnSource::Computed(expr),
            SourceClause::Format(format) => {
                if is_known {
                    check_format(&format, &data_type, text, errors);
                }
                ColumnSource::Payload { format: Some(format.value) }
            }
            SourceClause::Metadata(word) => {
                let Some(metadata) = resolve_metadata(&word, text, errors) else { continue };
                if is_known && !metadata.allowed_types(zone).contains(&data_type) {
                    let message = format!(
                        "metadata '{}' cannot have the type {}",
                        word.value, clause.sql_type
                    );
                    let hint = format!("declare it as {}", metadata.sql_types());
                    errors.push(text.error(clause.type_span, message).hint(hint));
                }
                if let (Some(span), Metadata::Key | Metadata::Timestamp) =
                    (clause.not_null, metadata)
                {
                    let message = format!("metadata '{}' can be null", word.value);
                    errors.push(text.error(span, message).hint("remove NOT NULL"));
                }
                ColumnSource::Metadata(metadata)
            }
        };
        let nullable = clause.not_null.is_none();
        columns.push((
            StreamColumn { name, data_type, nullable, source, place: text.place(span) },
            is_known,
        ));
    }
    columns
}

impl Metadata {
    /// The types that a column with this source may have.
    fn allowed_types(self, zone: Tz) -> Vec<DataType> {
        match self {
            Self::Topic | Self::Headers => vec![DataType::Utf8],
            Self::Partition => vec![DataType::Int32],
            Self::Offset => vec![DataType::Int64],
            Self::Key => vec![DataType::Utf8, DataType::Binary],
            Self::Timestamp => vec![timestamp_type(zone)],
        }
    }

    /// [`Metadata::allowed_types`] as SQL, for hints.
    fn sql_types(self) -> &'static str {
        match self {
            Self::Topic | Self::Headers => "VARCHAR",
            Self::Partition => "INT",
            Self::Offset => "BIGINT",
            Self::Key => "VARCHAR or BYTEA",
            Self::Timestamp => "TIMESTAMP",
        }
    }
}

fn resolve_metadata(
    word: &SpannedText,
    text: &SqlText,
    errors: &mut Vec<Error>,
) -> Option<Metadata> {
    let found = METADATA.iter().find(|(name, _)| *name == word.value);
    if found.is_none() {
        let hint = suggestion::suggest_or_list(
            &word.value,
            "metadata",
            METADATA.iter().map(|(name, _)| *name),
        );
        errors.push(text.error(word.span, format!("unknown metadata '{}'", word.value)).hint(hint));
    }
    found.map(|(_, metadata)| *metadata)
}

fn check_format(
    format: &SpannedText,
    data_type: &DataType,
    text: &SqlText,
    errors: &mut Vec<Error>,
) {
    const EPOCHS: [&str; 3] = ["epoch_s", "epoch_ms", "epoch_us"];
    let value = format.value.as_str();
    if !matches!(data_type, DataType::Timestamp(..)) {
        errors.push(text.error(format.span, "only a TIMESTAMP column can have a FORMAT"));
    } else if !value.contains('%') {
        if !EPOCHS.contains(&value) {
            let hint = suggestion::find_nearest(value, EPOCHS).map_or_else(
                || "e.g. '%Y-%m-%d %H:%M:%S', or 'epoch_s', 'epoch_ms', 'epoch_us'".to_owned(),
                |known| format!("did you mean '{known}'?"),
            );
            errors
                .push(text.error(format.span, format!("unknown time format '{value}'")).hint(hint));
        }
    } else if StrftimeItems::new(value).any(|item| matches!(item, Item::Error)) {
        errors.push(
            (text.error(format.span, format!("'{value}' contains an unknown % specifier")))
                .hint("use the specifiers of strftime: %Y %m %d %H %M %S %f %z ..."),
        );
    }
}
