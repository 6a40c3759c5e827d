//! The settings of a customer: `SET millstream.key = value`.

use chrono_tz::{TZ_VARIANTS, Tz};

use crate::catalog::duration::{self, parse_bytes};
use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::{SetStatement, SpannedText};
use crate::catalog::suggestion;
use crate::catalog::with_options::error_at_value;
use crate::error::Error;

const PREFIX: &str = "millstream.";
const KNOWN: [&str; 3] =
    ["millstream.timezone", "millstream.commit_interval", "millstream.memory_limit"];

/// The settings of a customer; `None` selects the default of the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CustomerSettings {
    /// The shortest time between two commits, in milliseconds.
    pub commit_interval_ms: Option<u64>,
    /// The most memory for the state of the customer, in bytes; state beyond it spills to disk.
    pub memory_limit_bytes: Option<u64>,
}

/// Checks the SET statements of a schema file. The default time zone is UTC.
pub(super) fn resolve_settings(
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
                zone = parse_time_zone(value, text, errors).unwrap_or(zone);
            }
            "millstream.commit_interval" => {
                settings.commit_interval_ms = parse_commit_interval(value, text, errors);
            }
            "millstream.memory_limit" => match parse_bytes(&value.value) {
                Ok(bytes) => settings.memory_limit_bytes = Some(bytes),
                Err(error) => errors.push(error_at_value(error, text, value)),
            },
            other => {
                let qualified = match other.contains('.') {
                    true => other.to_owned(),
                    false => format!("{PREFIX}{other}"),
                };
                let hint = suggestion::suggest_or_list(&qualified, "settings", KNOWN);
                errors.push(text.error(key.span, format!("unknown setting '{other}'")).hint(hint));
            }
        }
    }
    (zone, settings)
}

fn parse_commit_interval(
    value: &SpannedText,
    text: &SqlText,
    errors: &mut Vec<Error>,
) -> Option<u64> {
    match duration::parse(&value.value) {
        Ok(micros) if micros >= 1_000 && micros % 1_000 == 0 => u64::try_from(micros / 1_000).ok(),
        Ok(_) => {
            errors.push(
                text.error(value.span, "a commit interval must be a whole number of milliseconds"),
            );
            None
        }
        Err(error) => {
            errors.push(error_at_value(error, text, value));
            None
        }
    }
}

fn parse_time_zone(value: &SpannedText, text: &SqlText, errors: &mut Vec<Error>) -> Option<Tz> {
    let zone = value.value.parse::<Tz>();
    if zone.is_err() {
        let names = TZ_VARIANTS.iter().map(|zone| zone.name());
        let hint = suggestion::find_nearest(&value.value, names).map_or_else(
            || "use a name of the IANA time zone database, e.g. 'Europe/Helsinki'".to_owned(),
            |known| format!("did you mean '{known}'?"),
        );
        errors.push(
            text.error(value.span, format!("unknown time zone '{}'", value.value)).hint(hint),
        );
    }
    zone.ok()
}
