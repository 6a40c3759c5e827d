//! Measures decoding in events per second on one core: `cargo bench --bench decode`. For comparison,
//! arrow-json decodes records of several shapes from the same bytes with the same schema.
//!
//! Times are CPU times, see support/cpu_time.rs.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/cpu_time.rs"]
mod cpu_time;
#[path = "support/records.rs"]
mod records;

use std::hint::black_box;

use arrow::datatypes::{DataType, TimeUnit};
use arrow::json::ReaderBuilder;
use bytes::Bytes;
use chrono_tz::Tz;
use cpu_time::CpuTime;
use criterion::{BatchSize, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use millstream::decode::{Decoder, Field, TimestampFormat};
use millstream::source::chunk::{Chunk, Record};

/// Events in a chunk: about as many as in one Fetch response of 1 MB.
const EVENTS: usize = 10_000;

fn chunk(message: impl Fn(usize) -> String) -> Chunk {
    let mut bytes = Vec::new();
    let mut records = Vec::new();
    for event in 0..EVENTS {
        let start = bytes.len() as u32;
        bytes.extend_from_slice(message(event).as_bytes());
        let value = Some(start..bytes.len() as u32);
        let offset = event as i64;
        records.push(Record { offset, timestamp_ms: -1, key: None, value, headers: 0..0 });
    }
    Chunk {
        topic: "1084".into(),
        partition: 0,
        first_offset: 0,
        next_offset: EVENTS as i64,
        bytes: Bytes::from(bytes),
        records,
        append_time: false,
    }
}

fn fields() -> Vec<Field> {
    let field = |name: &str, data_type| Field {
        name: name.to_owned(),
        data_type,
        nullable: false,
        format: None,
    };
    vec![
        field("part_id", DataType::Int64),
        field("ts_date", DataType::Utf8),
        field("ts_time", DataType::Utf8),
        field("room", DataType::Utf8),
    ]
}

/// The first customer's event, 84 bytes with "living room".
fn event(n: usize, rooms: [&str; 4]) -> String {
    let (hour, minute, second) = (n / 3600 % 24, n / 60 % 60, n % 60);
    format!(
        "{{\"part_id\": {}, \"ts_date\": \"20191030\", \"ts_time\": \"{hour:02}:{minute:02}:{second:02}\", \"room\": \"{}\"}}",
        1000 + n * 7919 % 1000,
        rooms[n * 31 % 97 % 4]
    )
}

fn decode(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(EVENTS as u64)).sampling_mode(SamplingMode::Flat);
    let same = ["living room"; 4];
    let rooms = ["living room", "kitchen", "hall", "bathroom"];
    let cases = [
        ("84 bytes", chunk(|n| event(n, same))),
        ("four rooms", chunk(|n| event(n, rooms))),
        ("not ASCII", chunk(|n| event(n, ["olohuone", "keittiö", "eteinen", "kylpyhuone"]))),
        ("escapes", chunk(|n| event(n, ["living\\u0020room"; 4]))),
        (
            "any order",
            chunk(|n| match n % 2 {
                0 => event(n, same),
                _ => event(n, same)
                    .replace("part_id", "x")
                    .replace("room\": ", "part_id\": 1, \"room\": "),
            }),
        ),
    ];
    for (name, chunk) in &cases {
        let mut decoder = Decoder::new(fields(), Tz::Europe__Helsinki).unwrap();
        group.bench_function(*name, |bencher| {
            bencher.iter(|| {
                let decoded = decoder.decode(black_box(chunk)).unwrap();
                assert_eq!(decoded.batch.num_rows(), EVENTS);
                decoded
            });
        });
    }
    group.finish();
}

/// Decodes each shape with Millstream and with arrow-json, in bytes per second.
fn shapes(criterion: &mut Criterion<CpuTime>) {
    let plain = records::Kind {
        name: "84 bytes",
        fields: fields(),
        make: |n| event(n, ["living room"; 4]),
    };
    for records::Kind { name, fields, make } in records::kinds().into_iter().chain([plain]) {
        let lines: Vec<String> = (0..EVENTS / 5).map(make).collect();
        let chunk = lines_of(&lines);
        let bytes = chunk.bytes.len();
        eprintln!("{name}: {} bytes per record", bytes / lines.len());
        let mut group = criterion.benchmark_group(format!("shape/{name}"));
        group.throughput(Throughput::Bytes(bytes as u64)).sampling_mode(SamplingMode::Flat);
        let mut decoder = Decoder::new(fields, Tz::UTC).unwrap();
        group.bench_function("millstream", |bencher| {
            bencher.iter(|| {
                let decoded = decoder.decode(black_box(&chunk)).unwrap();
                assert_eq!(decoded.batch.num_rows(), lines.len());
                decoded
            });
        });
        let schema = decoder.schema().clone();
        let ours = decoder.decode(&chunk).unwrap().batch;
        let theirs = ReaderBuilder::new(schema.clone()).with_batch_size(lines.len());
        let mut theirs = theirs.build_decoder().unwrap();
        group.bench_function("arrow-json", |bencher| {
            bencher.iter(|| {
                let read = theirs.decode(black_box(&chunk.bytes)).unwrap();
                let batch = theirs.flush().unwrap().unwrap();
                assert_eq!((read, batch.num_rows()), (bytes, lines.len()));
                batch
            });
        });
        theirs.decode(&chunk.bytes).unwrap();
        assert_eq!(theirs.flush().unwrap().unwrap(), ours, "{name}");
        group.finish();
    }
}

/// A chunk in which each record is a line, as arrow-json expects.
fn lines_of(lines: &[String]) -> Chunk {
    let mut chunk = chunk(|_| String::new());
    let mut bytes = Vec::new();
    chunk.records.truncate(lines.len());
    for (record, line) in chunk.records.iter_mut().zip(lines) {
        let start = bytes.len() as u32;
        bytes.extend_from_slice(line.as_bytes());
        record.value = Some(start..bytes.len() as u32);
        bytes.push(b'\n');
    }
    Chunk { bytes: Bytes::from(bytes), next_offset: lines.len() as i64, ..chunk }
}

fn typed(criterion: &mut Criterion<CpuTime>) {
    let chunk = chunk(|n| {
        let (hour, minute, second) = (n / 3600 % 24, n / 60 % 60, n % 60);
        format!(
            "{{\"sensor\":{},\"time\":\"2019-10-30T{hour:02}:{minute:02}:{second:02}.{:03}Z\",\"celsius\":{}.{},\"ok\":true}}",
            n % 100,
            n % 1000,
            n % 40,
            n % 10
        )
    });
    let field = |name: &str, data_type| Field {
        name: name.to_owned(),
        data_type,
        nullable: true,
        format: None,
    };
    let fields = vec![
        field("sensor", DataType::Int32),
        field("time", DataType::Timestamp(TimeUnit::Microsecond, Some("Europe/Helsinki".into()))),
        field("celsius", DataType::Float64),
        field("ok", DataType::Boolean),
    ];
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(EVENTS as u64)).sampling_mode(SamplingMode::Flat);
    let mut decoder = Decoder::new(fields, Tz::Europe__Helsinki).unwrap();
    group.bench_function("timestamp, double, boolean", |bencher| {
        bencher.iter(|| decoder.decode(black_box(&chunk)).unwrap());
    });
    group.finish();
}

fn timestamps(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("timestamp");
    group.throughput(Throughput::Elements(EVENTS as u64)).sampling_mode(SamplingMode::Flat);
    let format = TimestampFormat::compile("%Y%m%d %H:%M:%S", Tz::Europe__Helsinki).unwrap();
    let of_date = |date: &dyn Fn(usize) -> usize| -> Vec<String> {
        let time = |n: usize| (n / 3600 % 24, n / 60 % 60, n % 60);
        (0..EVENTS)
            .map(|n| (time(n * 7), 20_191_001 + date(n)))
            .map(|((hour, minute, second), date)| {
                format!("{date} {hour:02}:{minute:02}:{second:02}")
            })
            .collect()
    };
    for (name, texts) in [("one date", of_date(&|_| 29)), ("30 dates", of_date(&|n| n * 7 % 30))] {
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || (),
                |()| texts.iter().filter_map(|text| format.parse(text.as_bytes())).max(),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = cpu_time::criterion();
    targets = decode, shapes, typed, timestamps
}
criterion_main!(benches);
