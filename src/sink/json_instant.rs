//! Instants as JSON texts from which the same instant is read back.
//!
//! RFC 3339 offsets have no seconds, but until standard time came (in some zones as late as 1972)
//! clocks went by local mean time: Helsinki's were 1:39:49 ahead. arrow-json rounds such an offset
//! and leaves the clock's face as it is, which is another instant. Here the offset becomes the
//! next whole minute, and the clock's face moves along: `1900-01-01T00:00:11+01:40` is midnight in
//! Helsinki.

use arrow::array::{Array, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, FieldRef, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::json::writer::NullableEncoder;
use arrow::json::{Encoder, EncoderFactory, EncoderOptions};
use chrono::{DateTime, FixedOffset, Offset, SecondsFormat, TimeZone};
use chrono_tz::Tz;

use crate::time::Micros;

/// From 1973 on all zones' offsets are whole minutes (Liberia was the last, in January 1972).
const WHOLE_MINUTES: Micros = 94_694_400_000_000;

/// Encodes columns that hold such instants, and leaves all others to arrow-json.
#[derive(Debug)]
pub(super) struct Exact;

impl EncoderFactory for Exact {
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
        // Null slots hold anything; to look at them too does no harm.
        if values.values().iter().all(|&at| at >= WHOLE_MINUTES) {
            return Ok(None);
        }
        let Ok(zone) = zone.parse::<Tz>() else { return Ok(None) };
        Ok(Some(NullableEncoder::new(Box::new(Instants { values, zone }), values.nulls().cloned())))
    }
}

struct Instants<'a> {
    values: &'a TimestampMicrosecondArray,
    zone: Tz,
}

impl Encoder for Instants<'_> {
    fn encode(&mut self, index: usize, out: &mut Vec<u8>) {
        match text(self.values.value(index), self.zone) {
            Some(text) => {
                out.push(b'"');
                out.extend_from_slice(text.as_bytes());
                out.push(b'"');
            }
            None => out.extend_from_slice(b"null"),
        }
    }
}

/// An instant in RFC 3339, as arrow-json writes those with whole minutes. `None`: beyond the years
/// that chrono has.
fn text(at: Micros, zone: Tz) -> Option<String> {
    let at = DateTime::from_timestamp_micros(at)?;
    let seconds = zone.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc();
    // Upwards: the clock's face then never is before the year in which it was.
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

    /// What history makes of the rows.
    fn read_back(rows: &RecordBatch) -> RecordBatch {
        let lines = crate::sink::json_rows(rows).unwrap().join(&b'\n');
        let mut reader = ReaderBuilder::new(rows.schema()).build(lines.as_slice()).unwrap();
        reader.next().unwrap().unwrap()
    }

    #[test]
    fn the_same_instant_is_read_back_in_every_zone_and_century() {
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
    fn other_instants_are_written_as_before_whatever_stands_beside_them() {
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
