//! The batch oracle: computes the expected result of a query with plain DataFusion over all rows, one
//! window at a time. Window bounds come from a calendar that steps through time instead of computing.
//!
//! It shares no code with the engine except DataFusion.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::{cast, concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use chrono::{
    DateTime, Datelike, Days, Duration, LocalResult, NaiveDate, NaiveDateTime, NaiveTime, Offset,
    TimeZone, Utc,
};
use chrono_tz::Tz;
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};

const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;

/// The length of a window or slide.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    Micros(i64),
    Days(i64),
    Weeks(i64),
    Months(i64),
}

/// A named relation with all its rows, in the order in which they came.
#[derive(Clone)]
pub struct Relation {
    pub name: String,
    pub rows: RecordBatch,
}

/// The watermark just before each row, and the allowed lateness.
#[derive(Clone)]
pub struct Lateness {
    pub before: Vec<i64>,
    pub allowed_us: i64,
}

/// A window function call found in the text of a query.
pub struct Call {
    text: Range<usize>,
    pub relation: String,
    pub column: String,
    slide: Length,
    size: Length,
    offset_us: i64,
}

/// Rows of all relations, and the time zone of calendar windows.
pub struct Oracle {
    pub zone: Tz,
    pub relations: Vec<Relation>,
}

impl Oracle {
    /// Returns the result rows of `sql` over all relations, and the indexes of the source rows for which
    /// its expressions fail.
    pub async fn answer(
        &self,
        sql: &str,
        late: Option<&Lateness>,
    ) -> Result<(RecordBatch, Vec<usize>), String> {
        match self.evaluate(sql, late, &[]).await {
            Ok(rows) => Ok((rows, Vec::new())),
            Err(error) => {
                let refused = self.refused_rows(sql).await.ok_or(error)?;
                Ok((self.evaluate(sql, late, &refused).await?, refused))
            }
        }
    }

    async fn evaluate(
        &self,
        sql: &str,
        late: Option<&Lateness>,
        without: &[usize],
    ) -> Result<RecordBatch, String> {
        let Some(call) = Call::find(sql)? else {
            let source = self.source(sql);
            let relations = self.relations.iter().map(|r| match source {
                Some(name) if *name == r.name => {
                    Relation { name: r.name.clone(), rows: drop_rows(&r.rows, without) }
                }
                _ => r.clone(),
            });
            return run(&relations.collect::<Vec<_>>(), sql).await;
        };
        let windows = self.assign(&call, late, without)?;
        let text = format!("{}__windowed{}", &sql[..call.text.start], &sql[call.text.end..]);
        let mut answers = Vec::new();
        for rows in windows.values() {
            let mut relations = self.relations.clone();
            relations.push(Relation { name: "__windowed".into(), rows: rows.clone() });
            answers.push(run(&relations, &text).await?);
        }
        if answers.is_empty() {
            let mut relations = self.relations.clone();
            relations.push(Relation { name: "__windowed".into(), rows: self.empty(&call)? });
            answers.push(run(&relations, &text).await?.slice(0, 0));
        }
        concat_batches(&answers[0].schema(), &answers).map_err(|e| e.to_string())
    }

    /// Each window's rows, with the window's columns, by (end, start).
    fn assign(
        &self,
        call: &Call,
        late: Option<&Lateness>,
        without: &[usize],
    ) -> Result<std::collections::BTreeMap<(i64, i64), RecordBatch>, String> {
        let rows = self.rows(&call.relation)?;
        let mut members: std::collections::BTreeMap<(i64, i64), Vec<u32>> = Default::default();
        for (index, time) in self.times(call)?.into_iter().enumerate() {
            let Some(time) = time.filter(|_| !without.contains(&index)) else { continue };
            for (start, end) in call.windows(self.zone, time) {
                let refused =
                    late.is_some_and(|l| end.saturating_add(l.allowed_us) <= l.before[index]);
                if !refused {
                    members.entry((end, start)).or_default().push(u32::try_from(index).unwrap());
                }
            }
        }
        let mut windows = std::collections::BTreeMap::new();
        for ((end, start), indexes) in members {
            let batch =
                take_record_batch(rows, &UInt32Array::from(indexes)).map_err(|e| e.to_string())?;
            windows.insert((end, start), self.with_window(&batch, start, end));
        }
        Ok(windows)
    }

    /// The (row, first refused start, last refused end) that a stream in offset order refuses.
    pub fn late_rows(&self, sql: &str, late: &Lateness) -> Result<Vec<(usize, i64, i64)>, String> {
        let Some(call) = Call::find(sql)? else { return Ok(Vec::new()) };
        let mut refused = Vec::new();
        for (index, time) in self.times(&call)?.into_iter().enumerate() {
            let Some(time) = time else { continue };
            let mut windows: Vec<_> = call.windows(self.zone, time);
            windows.retain(|(_, end)| end.saturating_add(late.allowed_us) <= late.before[index]);
            windows.sort_unstable();
            if let (Some(first), Some(last)) = (windows.first(), windows.last()) {
                refused.push((index, first.0, last.1));
            }
        }
        Ok(refused)
    }

    fn times(&self, call: &Call) -> Result<Vec<Option<i64>>, String> {
        let column =
            self.rows(&call.relation)?.column_by_name(&call.column).ok_or("no such column")?;
        let times = cast(column, &DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())))
            .map_err(|e| e.to_string())?;
        let times =
            times.as_any().downcast_ref::<TimestampMicrosecondArray>().ok_or("not a time")?;
        Ok(times.iter().collect())
    }

    fn rows(&self, name: &str) -> Result<&RecordBatch, String> {
        let found = self.relations.iter().find(|r| r.name == name);
        Ok(&found.ok_or_else(|| format!("the oracle has no relation {name}"))?.rows)
    }

    fn empty(&self, call: &Call) -> Result<RecordBatch, String> {
        Ok(self.with_window(&self.rows(&call.relation)?.slice(0, 0), 0, 0))
    }

    fn with_window(&self, rows: &RecordBatch, start: i64, end: i64) -> RecordBatch {
        let zone: Arc<str> = self.zone.name().into();
        let constant = |value: i64| -> ArrayRef {
            Arc::new(
                TimestampMicrosecondArray::from(vec![value; rows.num_rows()])
                    .with_timezone(Arc::clone(&zone)),
            )
        };
        let mut fields: Vec<Field> =
            rows.schema().fields().iter().map(|f| f.as_ref().clone()).collect();
        let mut columns = rows.columns().to_vec();
        for (name, value) in
            [("window_start", start), ("window_end", end), ("window_time", end - 1_000)]
        {
            // Over another query's results the new window's columns hide those of the old one.
            if let Some(old) = fields.iter().position(|f| f.name() == name) {
                fields.remove(old);
                columns.remove(old);
            }
            let kind = DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::clone(&zone)));
            fields.push(Field::new(name, kind, false));
            columns.push(constant(value));
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    }

    /// The relation that a query without window functions reads first.
    fn source(&self, sql: &str) -> Option<&String> {
        let lower = sql.to_lowercase();
        let position = |name: &str| lower.find(&format!("from {name}"));
        self.relations
            .iter()
            .filter_map(|r| Some((position(&r.name)?, &r.name)))
            .min()
            .map(|(_, name)| name)
    }

    /// The indexes of the source rows for which the query fails, each row alone.
    async fn refused_rows(&self, sql: &str) -> Option<Vec<usize>> {
        let name = match Call::find(sql).ok()? {
            Some(call) => call.relation,
            None => self.source(sql)?.clone(),
        };
        let mut refused = Vec::new();
        for index in 0..self.rows(&name).ok()?.num_rows() {
            let mut relations = self.relations.clone();
            for relation in relations.iter_mut().filter(|r| r.name == name) {
                relation.rows = relation.rows.slice(index, 1);
            }
            let alone = Self { zone: self.zone, relations };
            if Box::pin(alone.evaluate(sql, None, &[])).await.is_err() {
                refused.push(index);
            }
        }
        (!refused.is_empty()).then_some(refused)
    }
}

fn drop_rows(rows: &RecordBatch, without: &[usize]) -> RecordBatch {
    let keep =
        (0..rows.num_rows()).filter(|i| !without.contains(i)).map(|i| u32::try_from(i).unwrap());
    take_record_batch(rows, &UInt32Array::from_iter_values(keep)).unwrap()
}

async fn run(relations: &[Relation], sql: &str) -> Result<RecordBatch, String> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    for relation in relations {
        let table =
            MemTable::try_new(relation.rows.schema(), vec![vec![relation.rows.clone()]]).unwrap();
        context
            .register_table(relation.name.as_str(), Arc::new(table))
            .map_err(|e| e.to_string())?;
    }
    let frame = context.sql(sql).await.map_err(|e| e.to_string())?;
    let schema = Arc::new(frame.schema().as_arrow().clone());
    let batches = frame.collect().await.map_err(|e| e.to_string())?;
    let schema = batches.first().map_or(schema, |b| b.schema());
    concat_batches(&schema, &batches).map_err(|e| e.to_string())
}

impl Call {
    /// The first TUMBLE or HOP call of a query.
    pub fn find(sql: &str) -> Result<Option<Self>, String> {
        let upper = sql.to_uppercase();
        let found = ["TUMBLE", "HOP"].iter().find_map(|word| {
            let at =
                upper.find(&format!("{word}(")).or_else(|| upper.find(&format!("{word} (")))?;
            Some((*word, at))
        });
        let Some((word, start)) = found else { return Ok(None) };
        let open = start + sql[start..].find('(').ok_or("no bracket")?;
        let (arguments, end) = split(&sql[open + 1..])?;
        let relation = arguments[0].trim().trim_start_matches("TABLE ").trim().to_owned();
        let column = inside(&arguments[1]).ok_or("no DESCRIPTOR")?;
        let lengths =
            arguments[2..].iter().map(|text| Length::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let offset =
            |l: Option<&Length>| l.map_or(0, |l| if let Length::Micros(us) = l { *us } else { 0 });
        let (slide, size, offset_us) = match word {
            "TUMBLE" => (lengths[0], lengths[0], offset(lengths.get(1))),
            _ => (lengths[0], lengths[1], offset(lengths.get(2))),
        };
        Ok(Some(Self { text: start..open + 1 + end + 1, relation, column, slide, size, offset_us }))
    }

    /// All windows (start, end) that hold the instant.
    pub fn windows(&self, zone: Tz, time: i64) -> Vec<(i64, i64)> {
        let mut windows = Vec::new();
        let (mut start, first_end) = cell(zone, time - self.offset_us, self.slide);
        let tumbling = self.slide == self.size;
        loop {
            let end = if tumbling { first_end } else { plus(zone, start, self.size) };
            if end + self.offset_us <= time {
                return windows;
            }
            windows.push((start + self.offset_us, end + self.offset_us));
            if tumbling {
                return windows;
            }
            start = cell(zone, start - 1, self.slide).0;
        }
    }
}

/// The arguments up to the closing bracket, and the position of that bracket.
fn split(text: &str) -> Result<(Vec<String>, usize), String> {
    let (mut depth, mut arguments, mut from) = (0, Vec::new(), 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 0 => {
                arguments.push(text[from..at].to_owned());
                return Ok((arguments, at));
            }
            ')' => depth -= 1,
            ',' if depth == 0 => {
                arguments.push(text[from..at].to_owned());
                from = at + 1;
            }
            _ => {}
        }
    }
    Err("a bracket stays open".into())
}

fn inside(text: &str) -> Option<String> {
    Some(text[text.find('(')? + 1..text.rfind(')')?].trim().to_owned())
}

impl Length {
    /// `INTERVAL '10' MINUTE` or `INTERVAL '10 minutes'`.
    fn parse(text: &str) -> Result<Self, String> {
        let words = text.to_lowercase().replace('\'', " ");
        let words: Vec<&str> = words.split_whitespace().collect();
        let ["interval", count, unit] = words[..] else {
            return Err(format!("not an interval: {text}"));
        };
        let count: i64 = count.parse().map_err(|_| "not a number")?;
        Ok(match unit.trim_end_matches('s') {
            "microsecond" => Self::Micros(count),
            "millisecond" => Self::Micros(count * 1_000),
            "second" => Self::Micros(count * 1_000_000),
            "minute" => Self::Micros(count * 60_000_000),
            "hour" => Self::Micros(count * HOUR),
            "day" => Self::Days(count),
            "week" => Self::Weeks(count),
            "month" => Self::Months(count),
            other => return Err(format!("unknown unit {other}")),
        })
    }
}

fn local(zone: Tz, time: i64) -> NaiveDateTime {
    DateTime::<Utc>::from_timestamp_micros(time).unwrap().with_timezone(&zone).naive_local()
}

/// Converts a local time to an instant: the first of two, or forward over a gap.
pub fn instant(zone: Tz, time: NaiveDateTime) -> i64 {
    match zone.from_local_datetime(&time) {
        LocalResult::Single(t) | LocalResult::Ambiguous(t, _) => t.timestamp_micros(),
        LocalResult::None => {
            let before =
                zone.offset_from_utc_datetime(&(time - Duration::days(1))).fix().local_minus_utc();
            time.and_utc().timestamp_micros() - i64::from(before) * 1_000_000
        }
    }
}

fn midnight(zone: Tz, date: NaiveDate) -> i64 {
    instant(zone, date.and_time(NaiveTime::MIN))
}

fn epoch_day(date: NaiveDate) -> i64 {
    (date - NaiveDate::from_ymd_opt(1970, 1, 1).unwrap()).num_days()
}

fn date_of(epoch_day: i64) -> NaiveDate {
    NaiveDate::from_ymd_opt(1970, 1, 1).unwrap() + Duration::days(epoch_day)
}

fn month_of(index: i64) -> NaiveDate {
    let year = i32::try_from(1970 + index.div_euclid(12)).unwrap();
    NaiveDate::from_ymd_opt(year, u32::try_from(index.rem_euclid(12)).unwrap() + 1, 1).unwrap()
}

/// The cell [start, end) of the grid of `length` that holds the instant.
pub fn cell(zone: Tz, time: i64, length: Length) -> (i64, i64) {
    let date = local(zone, time).date();
    let days = |first: i64, count: i64| {
        (midnight(zone, date_of(first)), midnight(zone, date_of(first + count)))
    };
    match length {
        Length::Days(n) => days(epoch_day(date).div_euclid(n) * n, n),
        // 1970-01-01 was a Thursday, so that week's Monday is day -3.
        Length::Weeks(n) => days((epoch_day(date) + 3).div_euclid(7 * n) * 7 * n - 3, 7 * n),
        Length::Months(n) => {
            let index = (i64::from(date.year()) - 1970) * 12 + i64::from(date.month0());
            let first = index.div_euclid(n) * n;
            (midnight(zone, month_of(first)), midnight(zone, month_of(first + n)))
        }
        Length::Micros(us) if HOUR % us == 0 => {
            let (from, to) = days(epoch_day(date), 1);
            let mut start = from;
            while start + us <= time {
                start += us;
            }
            (start, (start + us).min(to))
        }
        Length::Micros(us) if DAY % us == 0 => {
            let step = |k: i64| {
                instant(zone, date.and_time(NaiveTime::MIN) + Duration::microseconds(k * us))
            };
            let k = (0..DAY / us).rev().find(|k| step(*k) <= time).unwrap_or(0);
            (step(k), step(k + 1))
        }
        Length::Micros(us) => (time.div_euclid(us) * us, time.div_euclid(us) * us + us),
    }
}

/// The end of a hop window of `size` that begins at `start`.
fn plus(zone: Tz, start: i64, size: Length) -> i64 {
    let from = local(zone, start);
    match size {
        Length::Days(n) => instant(zone, from + Days::new(u64::try_from(n).unwrap())),
        Length::Weeks(n) => instant(zone, from + Days::new(u64::try_from(7 * n).unwrap())),
        Length::Months(n) => instant(zone, from + chrono::Months::new(u32::try_from(n).unwrap())),
        Length::Micros(us) if us > HOUR && DAY % us == 0 => {
            instant(zone, from + Duration::microseconds(us))
        }
        Length::Micros(us) => start + us,
    }
}
