//! The Arrow types of declared columns.

use std::sync::Arc;

use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, TimeUnit};
use chrono_tz::Tz;
use datafusion::sql::sqlparser::ast::{self, ExactNumberInfo, TimezoneInfo};

use crate::catalog::suggestion;

/// The types that a hint suggests.
const SUGGESTED: [&str; 13] = [
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

/// The type of every instant of a customer: microseconds since the Unix epoch, displayed in `zone`.
pub(super) fn timestamp_type(zone: Tz) -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from(zone.name())))
}

/// The Arrow type of a declared column.
///
/// # Errors
/// A message and a hint, if no column can have this type.
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
            timestamp_type(zone)
        }
        Sql::Timestamp(Some(_), _) => {
            return Err(("a TIMESTAMP has microsecond precision".into(), "write TIMESTAMP".into()));
        }
        Sql::Timestamp(..) | Sql::TimestampNtz(_) | Sql::Datetime(_) => {
            let hint =
                "write TIMESTAMP; text without an offset is interpreted in millstream.timezone";
            return Err((
                format!("{sql} is not supported: time columns are instants"),
                hint.into(),
            ));
        }
        Sql::Decimal(size) | Sql::Numeric(size) | Sql::Dec(size) => decimal(*size)?,
        Sql::Varchar(None) | Sql::Text | Sql::String(None) | Sql::CharVarying(None) => {
            DataType::Utf8
        }
        Sql::Varchar(Some(_)) | Sql::String(Some(_)) | Sql::CharVarying(Some(_)) => {
            return Err((
                "the length of a text column is not enforced".into(),
                "write VARCHAR".into(),
            ));
        }
        Sql::Bytea | Sql::Varbinary(None) => DataType::Binary,
        other => {
            let name = other.to_string();
            let hint = suggestion::suggest_or_list(&name, "types", SUGGESTED);
            return Err((format!("unknown column type {name}"), hint));
        }
    })
}

/// DECIMAL(precision, scale); the default is (38, 10), as in DataFusion.
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
            format!("DECIMAL({precision}, {scale}) is not a valid type"),
            "the precision is 1 to 38, the scale 0 to the precision".into(),
        )),
    }
}
