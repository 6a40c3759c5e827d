//! Readings from a CSV file with the columns `part_id`, `ts_date`, `ts_time` and `room`, in any order.
//!
//! Values are sent unchanged (`7:41:38`, `Living Room `); the date and time determine the schedule.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{NaiveDateTime, TimeZone};
use chrono_tz::Tz;

use crate::error::{Error, Kind, Result};
use crate::sensors::{Profile, Reading, faults};
use crate::time::Micros;

const COLUMNS: [&str; 4] = ["part_id", "ts_date", "ts_time", "room"];

/// Reads the lines of a file in order. Each is sent at its time after the first line, divided by
/// `speed`; a line that is earlier than a previous one is sent immediately. The topic of a person is
/// the topic of the profile with the same number, otherwise the number of the person.
///
/// # Errors
/// The file cannot be read, a column is missing, or a line has no valid time.
pub fn read_recording(path: &Path, profile: &Profile, speed: f64) -> Result<Vec<Reading>> {
    let failed = |error: csv::Error| {
        Error::new(Kind::Config, format!("cannot read the recording {}", path.display()))
            .because(error)
    };
    let mut reader = csv::Reader::from_path(path).map_err(failed)?;
    let headers = reader.headers().map_err(failed)?.clone();
    let mut columns = [0; 4];
    for (column, name) in columns.iter_mut().zip(COLUMNS) {
        *column = headers.iter().position(|header| header.trim() == name).ok_or_else(|| {
            Error::config(format!("the recording {} has no column '{name}'", path.display()))
                .detail(format!(
                    "its first line is {}",
                    headers.iter().collect::<Vec<_>>().join(",")
                ))
                .hint(format!("the first line must name the columns: {}", COLUMNS.join(",")))
        })?;
    }
    let mut readings = Vec::new();
    let mut schedule = Schedule { first: None, latest_us: 0, speed };
    for record in reader.records() {
        let record = record.map_err(failed)?;
        let [person, date, time, room] =
            columns.map(|column| record.get(column).unwrap_or_default());
        let shown = parse_instant(date, time, profile.zone).ok_or_else(|| {
            let line = record.position().map_or(0, csv::Position::line);
            Error::config(format!("line {line} of {} has no valid time", path.display()))
                .detail(format!("ts_date is '{date}', ts_time is '{time}'"))
                .hint("write them as in 20191030 and 14:06:35")
        })?;
        readings.push(new_reading(
            person,
            date,
            time,
            room,
            shown,
            schedule.after_us(shown),
            profile,
        ));
    }
    Ok(readings)
}

/// Computes the times at which lines are sent.
struct Schedule {
    first: Option<Micros>,
    latest_us: Micros,
    speed: f64,
}

impl Schedule {
    /// The time after the start for a line with the event time `shown`; never decreases.
    fn after_us(&mut self, shown: Micros) -> Micros {
        let first = *self.first.get_or_insert(shown);
        self.latest_us = self.latest_us.max(((shown - first) as f64 / self.speed) as Micros);
        self.latest_us
    }
}

/// The instant of a local date and time, the first if there are two; `None` if the text is invalid.
fn parse_instant(date: &str, time: &str, zone: Tz) -> Option<Micros> {
    let local = NaiveDateTime::parse_from_str(
        &format!("{} {}", date.trim(), time.trim()),
        "%Y%m%d %H:%M:%S",
    )
    .ok()?;
    let instant = zone.from_local_datetime(&local).earliest();
    // A local time that the clock skips: for the schedule, UTC is precise enough.
    Some(
        instant.map_or_else(
            || local.and_utc().timestamp_micros(),
            |instant| instant.timestamp_micros(),
        ),
    )
}

fn new_reading(
    person: &str,
    date: &str,
    time: &str,
    room: &str,
    shown: Micros,
    after_us: Micros,
    profile: &Profile,
) -> Reading {
    let text = |value: &str| serde_json::Value::from(value).to_string();
    let number: Option<i64> = person.trim().parse().ok();
    let topic =
        profile.topics.iter().find(|topic| number.is_some() && topic.parse().ok() == number);
    let topic = topic.map_or(person.trim(), String::as_str);
    let part_id = number.map_or_else(|| text(person), |number| number.to_string());
    let payload = faults::encode_position(&part_id, &text(date), &text(time), &text(room));
    Reading {
        after_us,
        topic: Arc::from(topic),
        key: profile.keyed.then(|| Bytes::copy_from_slice(topic.as_bytes())),
        payload: Some(Bytes::from(payload)),
        part_id: number.unwrap_or_default(),
        room: Arc::from(room),
        shown,
        fault: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{MINUTE, SECOND};

    fn read_text(text: &str, customer: &str, speed: f64) -> Result<Vec<Reading>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sample.csv");
        std::fs::write(&path, text).unwrap();
        read_recording(&path, &Profile::named(customer).unwrap(), speed)
    }

    #[test]
    fn lines_keep_their_text_and_relative_times() {
        let text = "part_id,ts_date,ts_time,room\n2,20191030,7:41:38,\"Living Room \"\n1,20191030,07:42:38,a \"\"b\"\"\n2,20191030,07:42:08,hall\n";
        let readings = read_text(text, "customer_b", 60.0).unwrap();
        assert_eq!(readings[0].payload.as_deref().unwrap(), br#"{"part_id": 2, "ts_date": "20191030", "ts_time": "7:41:38", "room": "Living Room "}"#);
        assert_eq!(
            readings.iter().map(|r| &*r.topic).collect::<Vec<_>>(),
            ["0002", "0001", "0002"]
        );
        assert_eq!(readings.iter().map(|r| r.after_us).collect::<Vec<_>>(), [0, SECOND, SECOND]);
        assert_eq!(readings[1].shown - readings[0].shown, MINUTE);
        serde_json::from_slice::<serde_json::Value>(readings[1].payload.as_ref().unwrap()).unwrap();
    }

    #[test]
    fn errors_name_the_line_or_the_column() {
        let error = read_text(
            "part_id,ts_date,ts_time,room\n1,20191030,07:41:38,hall\n1,20191030,soon,hall\n",
            "customer_a",
            1.0,
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("line 3 of") && error.contains("ts_time is 'soon'"), "{error}");
        let error =
            read_text("part_id,date,ts_time,room\n", "customer_a", 1.0).unwrap_err().to_string();
        assert!(error.contains("no column 'ts_date'"), "{error}");
    }

    #[test]
    fn the_sample_of_the_repository_is_readable() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/sample.csv");
        let readings = read_recording(&path, &Profile::named("customer_a").unwrap(), 60.0).unwrap();
        assert!(readings.len() >= 200);
        assert!(readings.iter().all(|r| ["1084", "1085", "1086"].contains(&&*r.topic)));
        let text = std::fs::read_to_string(path).unwrap();
        assert!(
            text.contains(",7:41:38,")
                && text.contains("Living Room ")
                && text.contains("livingroom")
        );
    }
}
