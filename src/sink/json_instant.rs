//! Encodes instants as JSON texts that decode to the same instant.
//!
//! RFC 3339 offsets have no seconds, but before standard time (in some zones until 1972) zones used
//! local mean time: the offset of Helsinki was 1:39:49. arrow-json rounds such an offset and leaves
//! the local time unchanged, which results in another instant. This encoder rounds the offset up to
//! a whole minute and adjusts the local time: `1900-01-01T00:00:11+01:40` is midnight in Helsinki.

use arrow::array::{Array, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, FieldRef, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::json::writer::NullableEncoder;
use arrow::json::{Encoder, EncoderFactory, EncoderOptions};
use chrono::{DateTime, FixedOffset, Offset, SecondsFormat, TimeZone};
use chrono_tz::Tz;

use crate::time::Micros;

/// The first instant of 1973 (UTC). From then on the offsets of all zones are whole minutes (Liberia
/// was the last zone to change, in January 1972).
const WHOLE_MINUTES_SINCE: Micros = 94_694_400_000_000;

/// Creates encoders for columns that contain such instants. arrow-json encodes all other columns.
#[derive(Debug)]
pub(super) struct InstantEncoderFactory;

impl EncoderFactory for InstantEncoderFactory {
    fn make_default_encoder<'a>(
        &self,
        _: &'a FieldRef,
        array: &'a dyn Array,
        _: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) = array.data_type() else {
            return Ok(None);
        };
        let values = array.as_primitive::<TimestampMicrosecondType>();
        // Null slots have arbitrary values. They can only cause an unnecessary use of this encoder.
        if values.values().iter().all(|&at| at >= WHOLE_MINUTES_SINCE) {
            return Ok(None);
        }
        let Ok(zone) = zone.parse::<Tz>() else { return Ok(None) };
        Ok(Some(NullableEncoder::new(
            Box::new(InstantEncoder { values, zone }),
            values.nulls().cloned(),
        )))
    }
}

/// Encodes the instants of one column.
struct InstantEncoder<'a> {
    values: &'a TimestampMicrosecondArray,
    zone: Tz,
}

impl Encoder for InstantEncoder<'_> {
    fn encode(&mut self, index: usize, out: &mut Vec<u8>) {
        match format_instant(self.values.value(index), self.zone) {
            Some(text) => {
                out.push(b'"');
                out.extend_from_slice(text.as_bytes());
                out.push(b'"');
            }
            None => out.extend_from_slice(b"null"),
        }
    }
}

/// Returns an instant in RFC 3339, in the format that arrow-json uses for offsets of whole minutes.
/// `None` if the year is outside the range of chrono.
fn format_instant(at: Micros, zone: Tz) -> Option<String> {
    let at = DateTime::from_timestamp_micros(at)?;
    let seconds = zone.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc();
    // Rounds up, so that the adjusted local time is never in an earlier year.
    let minutes = seconds.div_euclid(60) + i32::from(seconds.rem_euclid(60) > 0);
    let offset = FixedOffset::east_opt(minutes * 60)?;
    Some(at.with_timezone(&offset).to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, ListArray, RecordBatch};
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::Field;
    use arrow::json::ReaderBuilder;
    use chrono::NaiveDate;

    fn batch(zone: Tz, times: Vec<Option<i64>>) -> RecordBatch {
        let times = TimestampMicrosecondArray::from(times).with_timezone(zone.name());
        let item = Arc::new(Field::new("item", times.data_type().clone(), true));
        let lengths = OffsetBuffer::from_repeated_length(1, times.len());
        let list = ListArray::new(item, lengths, Arc::new(times.clone()), None);
        RecordBatch::try_from_iter_with_nullable([
            ("t", Arc::new(times) as ArrayRef, true),
            ("all", Arc::new(list), true),
        ])
        .unwrap()
    }

    /// Encodes and decodes the rows, as history does.
    fn read_back(rows: &RecordBatch) -> RecordBatch {
        let lines = crate::sink::json_rows(rows).unwrap().join(&b'\n');
        let mut reader = ReaderBuilder::new(rows.schema()).build(lines.as_slice()).unwrap();
        reader.next().unwrap().unwrap()
    }

    #[test]
    fn instants_survive_encoding_and_decoding_in_every_zone_and_century() {
        let local = |zone: Tz, year: i32| {
            let midnight =
                NaiveDate::from_ymd_opt(year, 1, 1).unwrap().and_hms_micro_opt(0, 0, 0, 7);
            zone.from_local_datetime(&midnight.unwrap()).earliest().unwrap().timestamp_micros()
        };
        for zone in [Tz::Europe__Helsinki, Tz::Africa__Monrovia, Tz::Europe__Amsterdam, Tz::UTC] {
            let times = [1, 2, 1884, 1900, 1921, 1922, 1936, 1971, 1973, 2019]
                .map(|year| Some(local(zone, year)));
            let rows = batch(zone, times.into_iter().chain([None]).collect());
            assert_eq!(read_back(&rows), rows, "{zone}");
        }
    }

    #[test]
    fn other_instants_of_the_column_keep_the_arrow_json_format() {
        let zone = Tz::Europe__Helsinki;
        let lmt = -2_208_994_789_000_000;
        let both = crate::sink::json_rows(&batch(zone, vec![Some(lmt), Some(0)])).unwrap();
        let alone = crate::sink::json_rows(&batch(zone, vec![Some(0)])).unwrap();
        assert_eq!(both[1], alone[0]);
        assert_eq!(
            both[0],
            r#"{"t":"1900-01-01T00:00:11+01:40","all":["1900-01-01T00:00:11+01:40"]}"#
        );
    }
}
