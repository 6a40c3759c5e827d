//! `SET millstream.key = value`: what holds for a whole customer.

use chrono_tz::{TZ_VARIANTS, Tz};

use crate::catalog::duration::{self, parse_bytes};
use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::{SetStatement, Word};
use crate::catalog::suggestion;
use crate::catalog::with_options::as_sql;
use crate::error::Error;

const PREFIX: &str = "millstream.";
const KNOWN: [&str; 3] =
    ["millstream.timezone", "millstream.commit_interval", "millstream.memory_limit"];

/// The settings of a customer; `None`: the engine's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CustomerSettings {
    /// Shortest time between two commits, in milliseconds.
    pub commit_interval_ms: Option<u64>,
    /// How much memory the customer's state may take before it spills, in bytes.
    pub memory_limit_bytes: Option<u64>,
}

/// Reads the SET statements of a schema file. Without a time zone, the zone is UTC.
pub(super) fn resolve(
    sets: &[SetStatement],
    text: &SqlText,
    errors: &mut Vec<Error>,
) -> (Tz, CustomerSettings) {
    let (mut zone, mut settings) = (Tz::UTC, CustomerSettings::default());
    for (index, SetStatement { key, value }) in sets.iter().enumerate() {
        if sets.iter().take(index).any(|other| other.key.value == key.value) {
            errors.push(text.error(key.span, format!("'{}' is set twice", key.value)));
        }
        match key.value.as_str() {
            "millstream.timezone" => {
                zone = time_zone(value, text, errors).unwrap_or(zone);
            }
            "millstream.commit_interval" => {
                settings.commit_interval_ms = commit_interval(value, text, errors);
            }
            "millstream.memory_limit" => match parse_bytes(&value.value) {
                Ok(bytes) => settings.memory_limit_bytes = Some(bytes),
                Err(error) => errors.push(as_sql(error, text, value)),
            },
            other => {
                let full =
                    if other.contains('.') { other.to_owned() } else { format!("{PREFIX}{other}") };
                let hint = suggestion::suggest_or_list(&full, "settings", KNOWN);
                errors.push(text.error(key.span, format!("unknown setting '{other}'")).hint(hint));
            }
        }
    }
    (zone, settings)
}

fn commit_interval(value: &Word, text: &SqlText, errors: &mut Vec<Error>) -> Option<u64> {
    match duration::parse(&value.value) {
        Ok(micros) if micros >= 1_000 && micros % 1_000 == 0 => u64::try_from(micros / 1_000).ok(),
        Ok(_) => {
            errors.push(
                text.error(value.span, "a commit interval has whole milliseconds, at least 1"),
            );
            None
        }
        Err(error) => {
            errors.push(as_sql(error, text, value));
            None
        }
    }
}

fn time_zone(value: &Word, text: &SqlText, errors: &mut Vec<Error>) -> Option<Tz> {
    let zone = value.value.parse::<Tz>();
    if zone.is_err() {
        let names = TZ_VARIANTS.iter().map(|zone| zone.name());
        let hint = suggestion::find_nearest(&value.value, names).map_or_else(
            || "use a name of the IANA database, e.g. 'Europe/Helsinki'".to_owned(),
            |known| format!("did you mean '{known}'?"),
        );
        errors.push(
            text.error(value.span, format!("unknown time zone '{}'", value.value)).hint(hint),
        );
    }
    zone.ok()
}
