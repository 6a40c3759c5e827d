//! `date_bin` and `date_trunc` windows against DataFusion's own functions.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, IntervalMonthDayNano, TimeUnit, TimestampMicrosecondType};
use chrono_tz::Tz;
use datafusion::common::ScalarValue;
use datafusion::common::config::ConfigOptions;
use datafusion::functions::datetime::{date_bin, date_trunc};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF};
use proptest::prelude::*;

use crate::time::{DAY, HOUR, MINUTE, Micros, SECOND};
use crate::types::{Size, TruncUnit, WindowSpec};
use crate::window::Assigner;

fn timestamps(zone: Tz) -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(zone.name().into()))
}

/// The function's answer for each instant, as an array function (its scalar form differs).
fn call(
    function: &ScalarUDF,
    mut args: Vec<ColumnarValue>,
    zone: Tz,
    at: &[Micros],
) -> Vec<Micros> {
    let times = TimestampMicrosecondArray::from(at.to_vec()).with_timezone(zone.name());
    args.insert(1, ColumnarValue::Array(Arc::new(times) as ArrayRef));
    let arg_fields = args.iter().map(|a| Arc::new(Field::new("a", a.data_type(), true))).collect();
    let args = ScalarFunctionArgs {
        args,
        arg_fields,
        number_rows: at.len(),
        return_field: Arc::new(Field::new("r", timestamps(zone), true)),
        config_options: Arc::new(ConfigOptions::default()),
    };
    let result = function.invoke_with_args(args).unwrap().into_array(at.len()).unwrap();
    assert_eq!(result.null_count(), 0);
    result.as_primitive::<TimestampMicrosecondType>().values().to_vec()
}

const UNITS: [(TruncUnit, &str); 10] = [
    (TruncUnit::Microsecond, "microsecond"),
    (TruncUnit::Millisecond, "millisecond"),
    (TruncUnit::Second, "second"),
    (TruncUnit::Minute, "minute"),
    (TruncUnit::Hour, "hour"),
    (TruncUnit::Day, "day"),
    (TruncUnit::Week, "week"),
    (TruncUnit::Month, "month"),
    (TruncUnit::Quarter, "quarter"),
    (TruncUnit::Year, "year"),
];

/// With zones that change their clocks at midnight (Havana, Sao Paulo), across it (St Johns,
/// until 2006) and by half an hour (Lord Howe).
const ZONES: [Tz; 9] = [
    chrono_tz::Europe::Helsinki,
    chrono_tz::Asia::Shanghai,
    chrono_tz::Asia::Kathmandu,
    chrono_tz::Australia::Lord_Howe,
    chrono_tz::America::New_York,
    chrono_tz::America::Havana,
    chrono_tz::America::Sao_Paulo,
    chrono_tz::America::St_Johns,
    chrono_tz::UTC,
];

/// 1930 to 2030, in runs of an hour's disorder, so that remembered answers are used.
fn instants() -> impl Strategy<Value = Vec<Micros>> {
    let start = -1_262_304_000 * SECOND..1_893_456_000 * SECOND;
    (start, prop::collection::vec(-HOUR..HOUR, 1..50)).prop_map(|(start, steps)| {
        steps.iter().enumerate().map(|(i, s)| start + i as i64 * 40 * MINUTE + s).collect()
    })
}

/// The instants at which a zone's offset changes, for hourly steps around each.
fn around_changes(zone: Tz) -> Vec<Micros> {
    use chrono::{Offset, TimeZone};
    let offset = |t: Micros| {
        let utc = chrono::DateTime::from_timestamp_micros(t).unwrap().naive_utc();
        zone.offset_from_utc_datetime(&utc).fix().local_minus_utc()
    };
    (-15_000..22_000)
        .map(|day| day * DAY)
        .filter(|day| offset(*day) != offset(day + DAY))
        .flat_map(|day| (-200..300).map(move |step| day + step * 10 * MINUTE + 7))
        .collect()
}

/// Starts equal DataFusion's; and rows of one start never come after its window's end.
fn agrees(spec: WindowSpec, zone: Tz, at: &[Micros], starts: &[Micros]) {
    let mut assigner = Assigner::new(spec, zone).unwrap();
    for (t, start) in at.iter().zip(starts) {
        let (_, windows) = assigner.locate(*t);
        assert_eq!(windows.len(), 1);
        assert_eq!(windows[0].start, *start, "{spec:?} {zone} {t}");
        assert!(*t < windows[0].end, "{spec:?} {zone} {t} {windows:?}");
    }
}

#[test]
fn date_trunc_agrees_around_every_change_of_the_clock() {
    for zone in ZONES {
        let at = around_changes(zone);
        for (unit, name) in UNITS.into_iter().skip(3) {
            let unit_name = ColumnarValue::Scalar(ScalarValue::from(name));
            let starts = call(&date_trunc(), vec![unit_name], zone, &at);
            agrees(WindowSpec::DateTrunc { unit }, zone, &at, &starts);
        }
    }
}

proptest! {
    #[test]
    fn date_trunc_agrees(
        zone in prop::sample::select(ZONES.to_vec()), at in instants(),
        (unit, name) in prop::sample::select(UNITS.to_vec()),
    ) {
        let unit_name = ColumnarValue::Scalar(ScalarValue::from(name));
        let starts = call(&date_trunc(), vec![unit_name], zone, &at);
        agrees(WindowSpec::DateTrunc { unit }, zone, &at, &starts);
    }

    #[test]
    fn date_bin_agrees(
        zone in prop::sample::select(ZONES.to_vec()), at in instants(),
        (months, days, us) in prop_oneof![
            (1i32..30).prop_map(|m| (m, 0, 0)),
            (0i32..3, 1i64..DAY).prop_map(|(d, us)| (0, d, us)),
        ],
        origin in prop_oneof![Just(0), -3_000 * DAY..3_000 * DAY],
    ) {
        let interval = IntervalMonthDayNano::new(months, days, us * 1_000);
        let stride = ColumnarValue::Scalar(ScalarValue::IntervalMonthDayNano(Some(interval)));
        let from = ScalarValue::TimestampNanosecond(Some(origin * 1_000), Some("+00:00".into()));
        let starts = call(&date_bin(), vec![stride, ColumnarValue::Scalar(from)], zone, &at);
        let stride = match u32::try_from(months) {
            Ok(months) if months > 0 => Size::Months(months),
            _ => Size::Fixed(i64::from(days) * DAY + us),
        };
        agrees(WindowSpec::DateBin { stride, origin }, zone, &at, &starts);
    }
}
