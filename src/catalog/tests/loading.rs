//! What a valid project loads as.

use std::path::Path;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::sql::sqlparser::ast::Spanned;

use crate::catalog::tests::{CUSTOMER_A, Project, VALID_SCHEMA};
use crate::catalog::*;
use crate::time::{HOUR, SECOND};

#[test]
fn shipped_schemas_load() {
    let catalog = Project::shipped(&[]).load();
    let a = catalog.customer("customer_a").unwrap();
    assert_eq!((a.name.as_str(), a.zone), ("customer_a", chrono_tz::Europe::Helsinki));
    let positions = a.stream("positions").unwrap();
    assert_eq!(positions.topics, Topics::Pattern("10[0-9][0-9]".to_owned()));
    assert_eq!(
        positions.watermark,
        Watermark { column: "event_time".into(), delay_us: 30 * SECOND }
    );
    assert_eq!((positions.format, positions.start), (RecordFormat::Json, Start::Earliest));
    assert_eq!(positions.idle_timeout_us, DEFAULT_IDLE_TIMEOUT_US);
    assert_eq!((positions.max_future_us, positions.max_drift_us), (DEFAULT_MAX_FUTURE_US, None));
    assert!(positions.history);
    let schema = positions.schema();
    let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["part_id", "ts_date", "ts_time", "room", "ingested_at", "event_time"]);
    let instant = DataType::Timestamp(TimeUnit::Microsecond, Some("Europe/Helsinki".into()));
    assert_eq!(schema.field(0).data_type(), &DataType::Int64);
    assert!(!schema.field(0).is_nullable() && schema.field(5).is_nullable());
    assert_eq!(schema.field(5).data_type(), &instant);
    assert!(matches!(positions.columns[4].source, ColumnSource::Metadata(Metadata::Timestamp)));
    let rooms = a.table("rooms").unwrap();
    assert_eq!(
        (rooms.format, rooms.location.as_path()),
        (TableFormat::Csv, Path::new("data/rooms.csv"))
    );
    assert_eq!(rooms.options, [("format.has_header".to_owned(), "true".to_owned())]);
    let b = catalog.customer("customer_b").unwrap();
    assert_eq!(b.zone, chrono_tz::Europe::Berlin);
    let four = ["0001", "0002", "0003", "0004"].map(str::to_owned).to_vec();
    assert_eq!(b.stream("positions").unwrap().topics, Topics::List(four));
}

#[test]
fn spans_refer_to_the_file() {
    let catalog = Project::shipped(&[(
        "queries/customer_a/q.sql",
        "-- Events of each day.\n\nSELECT *\nFROM TUMBLE(TABLE positions,\n  DESCRIPTOR(event_time), INTERVAL '1' DAY)",
    )])
    .load();
    let a = catalog.customer("customer_a").unwrap();
    let event_time = &a.stream("positions").unwrap().columns[5];
    assert_eq!((event_time.place.line, event_time.place.column), (11, 3));
    let ColumnSource::Computed(expr) = &event_time.source else { panic!("computed") };
    assert_eq!(CUSTOMER_A.lines().nth(10).unwrap().find("to_timestamp"), Some(27));
    assert_eq!((expr.span().start.line, expr.span().start.column), (11, 28));
    let query = a.query("q").unwrap();
    assert_eq!((query.place.line, query.place.column), (3, 1));
    let span = query.select.body.as_select().unwrap().from[0].span();
    assert_eq!((span.start.line, span.start.column), (4, 6));
}

#[test]
fn columns_of_every_type_and_source() {
    let schema = "SET millstream.timezone = 'Asia/Kathmandu';
      CREATE STREAM s (
        a BIGINT, b INT NOT NULL, c SMALLINT, d DOUBLE, e REAL, f FLOAT, g BOOLEAN, h DATE,
        i DECIMAL(10, 2), j VARCHAR, k TEXT, l STRING, m BYTEA, n VARBINARY, o DOUBLE PRECISION,
        \"camelCase\" BIGINT, UPPER BIGINT,
        t1 TIMESTAMP NOT NULL FORMAT '%Y-%m-%d %H:%M:%S', t2 TIMESTAMP FORMAT 'epoch_ms', t3 TIMESTAMPTZ NULL,
        m1 VARCHAR NOT NULL METADATA FROM 'topic', m2 INT METADATA FROM 'partition' NOT NULL,
        m3 BIGINT METADATA FROM 'offset', m4 BYTEA METADATA FROM 'key', m5 VARCHAR METADATA FROM 'headers',
        x BOOLEAN AS (a IS NOT NULL), y BIGINT NOT NULL AS a + b * 2,
        WATERMARK FOR t1 AS t1 - INTERVAL '5 minutes'
      ) WITH (topics = ' a, b.c ', start = '2026-11-01', idle_timeout = '10 s', max_future = '1 h',
              max_drift = '2 h', history = 'off')";
    let catalog = Project::new(&[("schemas/c.sql", schema)]).load();
    let stream = catalog.customer("c").unwrap().stream("s").unwrap();
    let found = |name: &str| stream.schema().field_with_name(name).unwrap().data_type().clone();
    for (name, data_type) in [
        ("a", DataType::Int64),
        ("b", DataType::Int32),
        ("c", DataType::Int16),
        ("d", DataType::Float64),
        ("e", DataType::Float32),
        ("f", DataType::Float32),
        ("g", DataType::Boolean),
        ("h", DataType::Date32),
        ("i", DataType::Decimal128(10, 2)),
        ("j", DataType::Utf8),
        ("k", DataType::Utf8),
        ("l", DataType::Utf8),
        ("m", DataType::Binary),
        ("n", DataType::Binary),
        ("o", DataType::Float64),
        ("camelCase", DataType::Int64),
        ("upper", DataType::Int64),
        ("t3", DataType::Timestamp(TimeUnit::Microsecond, Some("Asia/Kathmandu".into()))),
    ] {
        assert_eq!(found(name), data_type, "{name}");
    }
    let source = |name: &str| &stream.columns.iter().find(|c| c.name == name).unwrap().source;
    assert!(matches!(source("t2"), ColumnSource::Payload { format: Some(f) } if f == "epoch_ms"));
    assert!(matches!(source("m4"), ColumnSource::Metadata(Metadata::Key)));
    assert!(matches!(source("y"), ColumnSource::Computed(e) if e.to_string() == "a + b * 2"));
    let nullable: Vec<&str> =
        stream.columns.iter().filter(|c| !c.nullable).map(|c| c.name.as_str()).collect();
    assert_eq!(nullable, ["b", "t1", "m1", "m2", "y"]);
    assert_eq!(stream.topics, Topics::List(vec!["a".into(), "b.c".into()]));
    assert_eq!(stream.watermark.delay_us, 300 * SECOND);
    // Midnight in Kathmandu is 18:15 of the day before in UTC.
    assert_eq!(stream.start, Start::At(1_793_470_500 * SECOND));
    assert_eq!((stream.idle_timeout_us, stream.max_future_us), (10 * SECOND, HOUR));
    assert_eq!((stream.max_drift_us, stream.history), (Some(2 * HOUR), false));
}

#[test]
fn queries_of_every_kind() {
    let catalog = Project::new(&[
        ("schemas/c.sql", VALID_SCHEMA),
        ("queries/c/a_last.sql", "SELECT * FROM hourly JOIN now_in USING (id)"),
        (
            "queries/c/pair.sql",
            "-- Counts per hour,\n-- early and late.\nCREATE STREAM Hourly WITH (emit = 'every 60 seconds', allowed_lateness = '2 h')
             AS SELECT count(*) AS id FROM TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '1' HOUR);
             -- Who is where.
             CREATE MATERIALIZED VIEW now_in WITH (topic = 'who.is.where', ttl = '30 days', start = 'earliest') AS
             WITH s AS (SELECT * FROM s) SELECT id FROM s GROUP BY id; -- the end",
        ),
        ("queries/c/README.md", "not a query"),
    ])
    .load();
    let customer = catalog.customer("c").unwrap();
    let order: Vec<&str> = customer.queries.iter().map(|query| query.name.as_str()).collect();
    assert_eq!(order, ["hourly", "now_in", "a_last"]);
    let hourly = customer.query("hourly").unwrap();
    assert_eq!((hourly.kind, hourly.emit), (QueryKind::Stream, Emit::Every(60 * SECOND)));
    assert_eq!(hourly.comment, "Counts per hour, early and late.");
    assert_eq!((hourly.allowed_lateness_us, hourly.ttl_us), (2 * HOUR, None));
    assert_eq!((hourly.topic.as_str(), hourly.customer.as_str()), ("millstream.c.hourly", "c"));
    assert_eq!(hourly.inputs, ["s"]);
    let view = customer.query("now_in").unwrap();
    assert_eq!((view.kind, view.topic.as_str()), (QueryKind::View, "who.is.where"));
    assert_eq!((view.ttl_us, view.comment.as_str()), (Some(720 * HOUR), "Who is where."));
    assert_eq!(view.inputs, ["s"]);
    assert_eq!((view.start, hourly.start), (QueryStart::Earliest, QueryStart::Latest));
    let last = customer.query("a_last").unwrap();
    assert_eq!(
        (last.kind, last.emit, last.comment.as_str()),
        (QueryKind::Unstated, Emit::Final, "")
    );
    assert_eq!(last.inputs, ["hourly", "now_in"]);
    assert!(last.file.ends_with("queries/c/a_last.sql"));
}

#[test]
fn settings_and_tables_load() {
    let catalog = Project::new(&[
        (
            "schemas/c.sql",
            "SET millstream.commit_interval = '250 ms'; SET millstream.memory_limit TO '2 GB';
             CREATE EXTERNAL TABLE t (Name VARCHAR NOT NULL, since TIMESTAMP) STORED AS CSV
               LOCATION 'data/t.csv' OPTIONS (has_header true, 'format.delimiter' ';');
             CREATE EXTERNAL TABLE p STORED AS PARQUET LOCATION 'data/t.csv'",
        ),
        ("data/t.csv", "name;since\n"),
    ])
    .load();
    let customer = catalog.customer("c").unwrap();
    assert_eq!(customer.zone, chrono_tz::UTC);
    let expected =
        CustomerSettings { commit_interval_ms: Some(250), memory_limit_bytes: Some(2_000_000_000) };
    assert_eq!(customer.settings, expected);
    let table = customer.table("t").unwrap();
    let columns = table.columns.as_ref().unwrap();
    assert_eq!(columns.field(0).name(), "name");
    assert!(!columns.field(0).is_nullable());
    let options = [("format.has_header", "true"), ("format.delimiter", ";")];
    assert_eq!(table.options, options.map(|(k, v)| (k.to_owned(), v.to_owned())));
    let parquet = customer.table("p").unwrap();
    assert!(parquet.format == TableFormat::Parquet && parquet.columns.is_none());
}

#[test]
fn a_selection_of_customers_loads() {
    let project = Project::new(&[
        ("schemas/a.sql", VALID_SCHEMA),
        ("schemas/b.sql", "CREATE STREAM x ("),
        ("queries/a/q.sql", "SELECT * FROM s"),
    ]);
    let catalog = load(project.0.path(), &["a".to_owned()]).unwrap();
    assert_eq!(catalog.customers.len(), 1, "errors of customer b are not reported for a");
    assert!(catalog.customer("a").unwrap().query("q").is_some());
    assert!(
        project.errors_of(&["b"]).starts_with("expected identifier, found the end"),
        "{}",
        project.errors_of(&["b"])
    );
    assert_eq!(project.errors_of(&["c"]), "there is no customer 'c'\n  hint: did you mean 'a'?");
    let empty = Project::new(&[("README.md", "")]);
    assert!(empty.errors().starts_with("there is no folder 'schemas'"), "{}", empty.errors());
}

#[test]
fn sessions_reach_the_planner() {
    let text =
        "SELECT * FROM SESSION(TABLE s PARTITION BY id, DESCRIPTOR(ts), INTERVAL '5' MINUTE)";
    let catalog =
        Project::new(&[("schemas/c.sql", VALID_SCHEMA), ("queries/c/q.sql", text)]).load();
    assert_eq!(catalog.customer("c").unwrap().query("q").unwrap().inputs, ["s"]);
}

#[test]
fn a_byte_order_mark_is_ignored() {
    let project = Project::new(&[
        ("schemas/c.sql", &format!("\u{feff}{VALID_SCHEMA}")),
        ("queries/c/q.sql", "\u{feff}SELECT id FROM s"),
    ]);
    assert_eq!(project.load().customer("c").unwrap().queries.len(), 1);
}
