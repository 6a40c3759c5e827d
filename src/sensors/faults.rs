//! Faults of simulated sensors and their frequency: `malformed=5%,late=2%,silent=1084@30s..60s`.
//!
//! An event has at most one fault, so each share is the fraction of events with that fault. This
//! file also encodes the payloads, both with and without a fault.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDateTime, Timelike};
use chrono_tz::Tz;
use rand::Rng;
use rand::rngs::StdRng;

use crate::error::{Error, Result};
use crate::sensors::units;
use crate::time::{DAY, HOUR, MINUTE, Micros, SECOND};

/// The fault of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A payload that no schema of positions accepts.
    MalformedPayload(MalformedPayload),
    /// The same payload sent twice in a row.
    Duplicate,
    /// An event time from one minute to thirty hours ago.
    Late,
    /// An event time ten minutes to a year ahead of the real clock.
    Future,
    /// An event time up to twenty seconds back, which is within the declared delay and not late.
    Disorder,
    /// `7:41:38`: no leading zero in the hour. A valid row; from 10:00 on it has no effect.
    Unpadded,
    /// `Living Room ` or `livingroom`: a valid row with another spelling.
    Spelling,
    /// A null payload.
    Tombstone,
}

/// The meaning of a name in a specification: one fault, or a random kind of malformed payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FaultChoice {
    One(Fault),
    AnyOf(&'static [MalformedPayload]),
}

/// The names of faults in a specification. They are part of the command line.
const FAULT_NAMES: [(&str, FaultChoice); 10] = [
    ("malformed", FaultChoice::AnyOf(&MalformedPayload::ALL)),
    (
        "null",
        FaultChoice::AnyOf(&[
            MalformedPayload::NullPerson,
            MalformedPayload::NullRoom,
            MalformedPayload::NullTime,
        ]),
    ),
    (
        "wrong-type",
        FaultChoice::AnyOf(&[
            MalformedPayload::TextPerson,
            MalformedPayload::FractionalPerson,
            MalformedPayload::ObjectRoom,
        ]),
    ),
    ("duplicate", FaultChoice::One(Fault::Duplicate)),
    ("late", FaultChoice::One(Fault::Late)),
    ("future", FaultChoice::One(Fault::Future)),
    ("disorder", FaultChoice::One(Fault::Disorder)),
    ("unpadded", FaultChoice::One(Fault::Unpadded)),
    ("spelling", FaultChoice::One(Fault::Spelling)),
    ("tombstone", FaultChoice::One(Fault::Tombstone)),
];

macro_rules! malformed {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// The kinds of malformed payloads. Each yields exactly one rejected message.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum MalformedPayload { $($(#[$doc])* $name),* }
        impl MalformedPayload {
            /// Every kind.
            pub const ALL: [Self; [$($text),*].len()] = [$(Self::$name),*];
            /// Its name in reports.
            pub fn name(self) -> &'static str { match self { $(Self::$name => $text),* } }
        }
    };
}

malformed! {
    /// Text that is not JSON.
    PlainText = "plain text",
    /// JSON that ends in the middle.
    Truncated = "truncated",
    /// No bytes at all.
    Empty = "empty",
    /// A JSON array.
    Array = "array",
    /// A JSON number.
    Scalar = "scalar",
    /// Invalid UTF-8 inside a string.
    InvalidUtf8 = "invalid UTF-8",
    /// A comma before the closing brace.
    TrailingComma = "trailing comma",
    /// Single quotes.
    SingleQuotes = "single quotes",
    /// `01084`: a number with a leading zero, which JSON forbids.
    LeadingZero = "leading zero",
    /// `NaN` for a number.
    NotANumber = "NaN",
    /// A control character inside a string.
    ControlCharacter = "control character",
    /// A valid object, followed by other text on the same line.
    TrailingText = "trailing text",
    /// `part_id` is null.
    NullPerson = "null part_id",
    /// `room` is null.
    NullRoom = "null room",
    /// `ts_time` is null.
    NullTime = "null ts_time",
    /// No `part_id`.
    MissingPerson = "missing part_id",
    /// No `room`.
    MissingRoom = "missing room",
    /// No `ts_date`.
    MissingDate = "missing ts_date",
    /// `part_id` is a string that is not a number.
    TextPerson = "text in part_id",
    /// `part_id` has a fraction.
    FractionalPerson = "fraction in part_id",
    /// `part_id` does not fit 64 bits.
    HugePerson = "huge part_id",
    /// `room` is an object.
    ObjectRoom = "object in room",
    /// A date in a thirteenth month: the row decodes, its event time cannot be computed.
    ImpossibleDate = "impossible date",
    /// `25:61:00`: the row decodes, its event time cannot be computed.
    ImpossibleTime = "impossible time",
}

/// A period in which a sensor sends nothing, in real time after the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    /// The topic of the sensor.
    pub topic: String,
    /// The start of the period, in microseconds.
    pub from_us: Micros,
    /// The end of the period, exclusive, in microseconds.
    pub until_us: Micros,
}

/// The faults to inject and their frequency.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Pairs of an index into [`FAULT_NAMES`] and the fraction of events.
    shares: Vec<(usize, f64)>,
    /// The periods in which sensors are silent.
    pub silences: Vec<Silence>,
}

impl Faults {
    /// Draws the fault of the next event.
    pub(super) fn draw(&self, rng: &mut StdRng) -> Option<Fault> {
        let mut at: f64 = rng.random();
        for (word, share) in &self.shares {
            if at < *share {
                return Some(match FAULT_NAMES[*word].1 {
                    FaultChoice::One(fault) => fault,
                    FaultChoice::AnyOf(kinds) => {
                        Fault::MalformedPayload(kinds[rng.random_range(0..kinds.len())])
                    }
                });
            }
            at -= share;
        }
        None
    }

    /// Whether the sensor of `topic` is silent `after_us` into the run.
    pub fn is_silent(&self, topic: &str, after_us: Micros) -> bool {
        self.silences
            .iter()
            .any(|s| s.topic == topic && (s.from_us..s.until_us).contains(&after_us))
    }

    fn add(&mut self, word: &str, value: &str) -> Result<()> {
        if word == "silent" {
            self.silences.push(parse_silence(value)?);
            return Ok(());
        }
        let known = || FAULT_NAMES.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        let index =
            (FAULT_NAMES.iter().position(|(known, _)| *known == word)).ok_or_else(|| {
                Error::config(format!("unknown fault '{word}'"))
                    .hint(format!("the faults are {}, silent", known()))
            })?;
        if self.shares.iter().any(|(seen, _)| *seen == index) {
            return Err(Error::config(format!("the fault '{word}' is given twice")));
        }
        let share = units::share(value)
            .map_err(|error| error.detail(format!("in the fault '{word}={value}'")))?;
        self.shares.push((index, share));
        Ok(())
    }
}

/// Parses `1084@30s..60s`.
fn parse_silence(text: &str) -> Result<Silence> {
    let wrong = || {
        Error::config(format!("cannot parse 'silent={text}'"))
            .hint("write the sensor and a period, as in silent=1084@30s..60s")
    };
    let (topic, span) = text.split_once('@').ok_or_else(wrong)?;
    let (from, until) = span.split_once("..").ok_or_else(wrong)?;
    let from_us = units::span(from).map_err(|_| wrong())?;
    let until_us = units::span(until).map_err(|_| wrong())?;
    if topic.is_empty() || from_us >= until_us {
        return Err(wrong());
    }
    Ok(Silence { topic: topic.to_owned(), from_us, until_us })
}

impl FromStr for Faults {
    type Err = Error;

    /// Parses comma-separated `fault=share` and `silent=topic@from..until`; `silent` may be repeated.
    fn from_str(text: &str) -> Result<Self> {
        let mut faults = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (word, value) = part.split_once('=').ok_or_else(|| {
                Error::config(format!("cannot parse '{part}' as a fault"))
                    .hint("write fault=share, as in malformed=5%")
            })?;
            faults.add(word.trim(), value.trim())?;
        }
        let all: f64 = faults.shares.iter().map(|(_, share)| share).sum();
        if all > 1.0 + 1e-9 {
            return Err(Error::config(format!(
                "the faults make up {:.1}% of all events",
                all * 100.0
            ))
            .hint("an event has at most one fault: keep the sum at or below 100%"));
        }
        Ok(faults)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shares = self.shares.iter().map(|(word, share)| {
            let percent = format!("{:.4}", share * 100.0);
            format!(
                "{}={}%",
                FAULT_NAMES[*word].0,
                percent.trim_end_matches('0').trim_end_matches('.')
            )
        });
        let silences = self.silences.iter().map(|s| {
            let seconds = |us: Micros| us as f64 / SECOND as f64;
            format!("silent={}@{}s..{}s", s.topic, seconds(s.from_us), seconds(s.until_us))
        });
        f.write_str(&shares.chain(silences).collect::<Vec<_>>().join(","))
    }
}

/// The event time of an event with `fault`; `real` is the current time of the real clock.
pub(super) fn shift_event_time(
    fault: Option<Fault>,
    at: Micros,
    real: Micros,
    rng: &mut StdRng,
) -> Micros {
    match fault {
        Some(Fault::Late) if rng.random_bool(0.5) => at - rng.random_range(MINUTE..30 * MINUTE),
        Some(Fault::Late) => at - rng.random_range(30 * MINUTE..30 * HOUR),
        Some(Fault::Future) => at.max(real) + rng.random_range(10 * MINUTE..365 * DAY),
        Some(Fault::Disorder) => at - rng.random_range(SECOND..=20 * SECOND),
        _ => at,
    }
}

/// The local date and time in `zone` at the instant `at`.
fn local_time(at: Micros, zone: Tz) -> NaiveDateTime {
    DateTime::from_timestamp_micros(at).unwrap_or_default().with_timezone(&zone).naive_local()
}

/// Encodes the payload for a person in a room at an instant; `None` is a tombstone.
pub(super) fn encode_payload(
    person: i64,
    room: &str,
    at: Micros,
    zone: Tz,
    fault: Option<Fault>,
    rng: &mut StdRng,
) -> Option<Vec<u8>> {
    let local = local_time(at, zone);
    let date = local.format("%Y%m%d").to_string();
    let time = local.format("%H:%M:%S").to_string();
    let valid = |time: &str, room: &str| {
        encode_position(
            &person.to_string(),
            &format!("\"{date}\""),
            &format!("\"{time}\""),
            &format!("\"{room}\""),
        )
    };
    Some(match fault {
        Some(Fault::Tombstone) => return None,
        Some(Fault::MalformedPayload(kind)) => malformed_payload(kind, person, &date, &time, room),
        Some(Fault::Unpadded) if local.hour() < 10 => valid(&time[1..], room).into_bytes(),
        Some(Fault::Spelling) => valid(&time, &second_spelling(room, rng)).into_bytes(),
        _ => valid(&time, room).into_bytes(),
    })
}

/// A JSON object of four values, each given as JSON text.
pub(super) fn encode_position(person: &str, date: &str, time: &str, room: &str) -> String {
    format!("{{\"part_id\": {person}, \"ts_date\": {date}, \"ts_time\": {time}, \"room\": {room}}}")
}

/// The spelling of a room by another firmware; `replace(lower(trim(room)), ...)` normalizes it.
fn second_spelling(room: &str, rng: &mut StdRng) -> String {
    if room == "living room" && rng.random_bool(0.5) {
        return "livingroom".to_owned();
    }
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    room.split(' ').map(capital).collect::<Vec<_>>().join(" ") + " "
}

fn malformed_payload(
    kind: MalformedPayload,
    person: i64,
    date: &str,
    time: &str,
    room: &str,
) -> Vec<u8> {
    let (id, d, t, r) =
        (person.to_string(), format!("\"{date}\""), format!("\"{time}\""), format!("\"{room}\""));
    let good = encode_position(&id, &d, &t, &r);
    let text = match kind {
        MalformedPayload::PlainText => format!("sensor {id} restarted"),
        MalformedPayload::Truncated => good[..good.len() - 9].to_owned(),
        MalformedPayload::Empty => String::new(),
        MalformedPayload::Array => format!("[{id}, {d}, {t}, {r}]"),
        MalformedPayload::Scalar => id,
        MalformedPayload::InvalidUtf8 => return invalid_utf8(&good, room),
        MalformedPayload::TrailingComma => good.replace('}', ",}"),
        MalformedPayload::SingleQuotes => good.replace('"', "'"),
        MalformedPayload::LeadingZero => encode_position(&format!("0{id}"), &d, &t, &r),
        MalformedPayload::NotANumber => encode_position("NaN", &d, &t, &r),
        MalformedPayload::ControlCharacter => {
            encode_position(&id, &d, &t, &format!("\"\u{1}{room}\""))
        }
        MalformedPayload::TrailingText => format!("{good} ok"),
        MalformedPayload::NullPerson => encode_position("null", &d, &t, &r),
        MalformedPayload::NullRoom => encode_position(&id, &d, &t, "null"),
        MalformedPayload::NullTime => encode_position(&id, &d, "null", &r),
        MalformedPayload::MissingPerson => {
            format!("{{\"ts_date\": {d}, \"ts_time\": {t}, \"room\": {r}}}")
        }
        MalformedPayload::MissingRoom => {
            format!("{{\"part_id\": {id}, \"ts_date\": {d}, \"ts_time\": {t}}}")
        }
        MalformedPayload::MissingDate => {
            format!("{{\"part_id\": {id}, \"ts_time\": {t}, \"room\": {r}}}")
        }
        MalformedPayload::TextPerson => encode_position("\"unknown\"", &d, &t, &r),
        MalformedPayload::FractionalPerson => encode_position(&format!("{id}.5"), &d, &t, &r),
        MalformedPayload::HugePerson => encode_position("99999999999999999999", &d, &t, &r),
        MalformedPayload::ObjectRoom => encode_position(&id, &d, &t, &format!("{{\"name\": {r}}}")),
        MalformedPayload::ImpossibleDate => {
            encode_position(&id, &format!("\"{}1345\"", &date[..4]), &t, &r)
        }
        MalformedPayload::ImpossibleTime => encode_position(&id, &d, "\"25:61:00\"", &r),
    };
    text.into_bytes()
}

/// `good` with the first byte of the room replaced by one that is invalid in UTF-8.
fn invalid_utf8(good: &str, room: &str) -> Vec<u8> {
    let mut bytes = good.as_bytes().to_vec();
    if let Some(at) = good.rfind(room) {
        bytes[at] = 0xff;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_specification_round_trips() {
        let text = "malformed=5%,duplicate=1%,late=2%,future=0.1%,silent=1084@30s..60s";
        let faults: Faults = text.parse().unwrap();
        assert_eq!(faults.to_string(), text);
        assert!(
            faults.is_silent("1084", 30 * SECOND)
                && !faults.is_silent("1084", 60 * SECOND)
                && !faults.is_silent("1085", 40 * SECOND)
        );
        assert_eq!("".parse::<Faults>().unwrap().to_string(), "");
    }

    #[test]
    fn errors_show_the_expected_form() {
        for (text, part) in [
            ("malformd=5%", "unknown fault 'malformd'\n  hint: the faults are malformed, null,"),
            ("malformed=5", "in the fault 'malformed=5'"),
            ("malformed", "write fault=share"),
            ("late=1%,late=2%", "given twice"),
            ("late=60%,duplicate=60%", "120.0% of all events"),
            ("silent=1084", "silent=1084@30s..60s"),
            ("silent=1084@60s..30s", "silent=1084@30s..60s"),
        ] {
            let error = text.parse::<Faults>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn every_malformed_payload_is_invalid() {
        assert!(MalformedPayload::ALL.len() >= 12);
        for kind in MalformedPayload::ALL {
            let bytes = malformed_payload(kind, 1084, "20191030", "14:06:35", "living room");
            let object = serde_json::from_slice::<serde_json::Value>(&bytes).ok();
            let good = object.as_ref().is_some_and(|o| {
                o["part_id"].is_i64()
                    && o["room"].is_string()
                    && o["ts_date"] == "20191030"
                    && o["ts_time"] == "14:06:35"
            });
            assert!(!good, "{}: {}", kind.name(), String::from_utf8_lossy(&bytes));
            assert!(!bytes.contains(&b'\n'), "one message per record");
        }
    }

    #[test]
    fn valid_rows_may_have_unusual_text() {
        let mut rng = StdRng::seed_from_u64(1);
        let at =
            DateTime::parse_from_rfc3339("2019-10-30T07:41:38+02:00").unwrap().timestamp_micros();
        let mut text = |fault| {
            String::from_utf8(
                encode_payload(
                    1084,
                    "living room",
                    at,
                    chrono_tz::Europe::Helsinki,
                    fault,
                    &mut rng,
                )
                .unwrap(),
            )
            .unwrap()
        };
        assert_eq!(
            text(None),
            r#"{"part_id": 1084, "ts_date": "20191030", "ts_time": "07:41:38", "room": "living room"}"#
        );
        assert!(text(Some(Fault::Unpadded)).contains(r#""ts_time": "7:41:38""#));
        let spellings: Vec<String> = (0..20).map(|_| text(Some(Fault::Spelling))).collect();
        assert!(
            spellings.iter().any(|s| s.contains(r#""Living Room ""#))
                && spellings.iter().any(|s| s.contains(r#""livingroom""#))
        );
    }
}
