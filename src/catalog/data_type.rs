//! Declared types: SQL to Arrow.

use std::sync::Arc;

use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, TimeUnit};
use chrono_tz::Tz;
use datafusion::sql::sqlparser::ast::{self, ExactNumberInfo, TimezoneInfo};

use crate::catalog::suggestion;

const KNOWN: [&str; 13] = [
    "BIGINT",
    "INT",
    "SMALLINT",
    "DOUBLE",
    "REAL",
    "FLOAT",
    "BOOLEAN",
    "DATE",
    "TIMESTAMP",
    "DECIMAL",
    "VARCHAR",
    "TEXT",
    "BYTEA",
];

/// The type of every instant of a customer: microseconds, shown in `zone`.
pub(super) fn timestamp(zone: Tz) -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from(zone.name())))
}

/// The Arrow type of a declared column.
///
/// # Errors
/// (message, hint) for a type that columns cannot have.
pub(super) fn arrow_type(sql: &ast::DataType, zone: Tz) -> Result<DataType, (String, String)> {
    use ast::DataType as Sql;
    Ok(match sql {
        Sql::BigInt(None) | Sql::Int8(None) | Sql::Int64 => DataType::Int64,
        Sql::Int(None) | Sql::Integer(None) | Sql::Int4(None) | Sql::Int32 => DataType::Int32,
        Sql::SmallInt(None) | Sql::Int2(None) | Sql::Int16 => DataType::Int16,
        Sql::Double(ExactNumberInfo::None) | Sql::DoublePrecision | Sql::Float8 | Sql::Float64 => {
            DataType::Float64
        }
        Sql::Real | Sql::Float(ExactNumberInfo::None) | Sql::Float4 | Sql::Float32 => {
            DataType::Float32
        }
        Sql::Boolean | Sql::Bool => DataType::Boolean,
        Sql::Date | Sql::Date32 => DataType::Date32,
        Sql::Timestamp(None | Some(0..=6), zoned) if *zoned != TimezoneInfo::WithoutTimeZone => {
            timestamp(zone)
        }
        Sql::Timestamp(Some(_), _) => {
            return Err(("instants have microseconds".into(), "write TIMESTAMP".into()));
        }
        Sql::Timestamp(..) | Sql::TimestampNtz(_) | Sql::Datetime(_) => {
            let hint = "write TIMESTAMP; text without an offset is read in millstream.timezone";
            return Err((format!("{sql} is no instant"), hint.into()));
        }
        Sql::Decimal(size) | Sql::Numeric(size) | Sql::Dec(size) => decimal(*size)?,
        Sql::Varchar(None) | Sql::Text | Sql::String(None) | Sql::CharVarying(None) => {
            DataType::Utf8
        }
        Sql::Varchar(Some(_)) | Sql::String(Some(_)) | Sql::CharVarying(Some(_)) => {
            return Err(("the length of a text is not checked".into(), "write VARCHAR".into()));
        }
        Sql::Bytea | Sql::Varbinary(None) => DataType::Binary,
        other => {
            let name = other.to_string();
            let hint = suggestion::suggest_or_list(&name, "types", KNOWN);
            return Err((format!("unknown column type {name}"), hint));
        }
    })
}

/// DECIMAL(precision, scale); without them (38, 10), as DataFusion has it.
fn decimal(size: ExactNumberInfo) -> Result<DataType, (String, String)> {
    let (precision, scale) = match size {
        ExactNumberInfo::None => (u64::from(DECIMAL128_MAX_PRECISION), 10),
        ExactNumberInfo::Precision(precision) => (precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (precision, scale),
    };
    match (u8::try_from(precision), i8::try_from(scale)) {
        (Ok(p @ 1..=DECIMAL128_MAX_PRECISION), Ok(s)) if (0..=p.cast_signed()).contains(&s) => {
            Ok(DataType::Decimal128(p, s))
        }
        _ => Err((
            format!("there is no DECIMAL({precision}, {scale})"),
            "DECIMAL(precision, scale) has 1 to 38 digits, of which 0 to precision are fractional"
                .into(),
        )),
    }
}
