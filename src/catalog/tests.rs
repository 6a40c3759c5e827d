//! Whole projects: what loads, and how each mistake is shown.

use std::fs;
use std::path::Path;

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::sql::sqlparser::ast::Spanned;

use super::*;
use crate::time::{HOUR, SECOND};

const CUSTOMER_A: &str = include_str!("../../schemas/customer_a.sql");
const CUSTOMER_B: &str = include_str!("../../schemas/customer_b.sql");

/// A stream that is right, to be made wrong.
const GOOD: &str = "CREATE STREAM s (
  id BIGINT NOT NULL,
  ts TIMESTAMP,
  WATERMARK FOR ts AS ts
) WITH (topics = 't1');
";

struct Project(tempfile::TempDir);

impl Project {
    fn new(files: &[(&str, &str)]) -> Self {
        let project = Self(tempfile::tempdir().unwrap());
        for (path, text) in files {
            let path = project.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        project
    }

    /// The repository's own schema files with these queries of customer A.
    fn shipped(queries: &[(&str, &str)]) -> Self {
        let mut files = vec![
            ("schemas/customer_a.sql", CUSTOMER_A),
            ("schemas/customer_b.sql", CUSTOMER_B),
            ("data/rooms.csv", "room,seats\nhall,2\n"),
            ("data/office_rooms.csv", "room,seats\nlobby,2\n"),
        ];
        files.extend(queries);
        Self::new(&files)
    }

    fn load(&self) -> Catalog {
        load(self.0.path(), &[]).unwrap_or_else(|errors| panic!("{}", self.render(&errors)))
    }

    fn errors(&self) -> String {
        self.errors_of(&[])
    }

    fn errors_of(&self, only: &[&str]) -> String {
        let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
        self.render(&load(self.0.path(), &only).unwrap_err())
    }

    fn render(&self, errors: &[Error]) -> String {
        let texts: Vec<String> = errors.iter().map(Error::to_string).collect();
        texts.join("\n\n").replace(&format!("{}/", self.0.path().display()), "")
    }
}

/// The errors of a schema file alone.
fn schema_errors(schema: &str) -> String {
    Project::new(&[("schemas/c.sql", schema)]).errors()
}

/// The errors of query files over [`GOOD`].
fn query_errors(queries: &[(&str, &str)]) -> String {
    let mut files = vec![("schemas/c.sql", GOOD)];
    files.extend(queries);
    Project::new(&files).errors()
}

/// The errors of [`GOOD`] with `from` replaced.
fn broken(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from));
    schema_errors(&GOOD.replace(from, to))
}

/// Asserts message, place and hint, without the quoted line.
#[track_caller]
fn expect(errors: &str, message: &str, place: &str, hint: &str) {
    assert!(errors.starts_with(&format!("{message}\n")), "{errors}");
    assert!(errors.contains(&format!("--> {place}\n")), "{errors}");
    assert!(hint.is_empty() || errors.ends_with(&format!("hint: {hint}")), "{errors}");
    assert_eq!(errors.matches("-->").count(), 1, "one error, not\n{errors}");
}

#[test]
fn the_shipped_schemas() {
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
fn spans_are_those_of_the_file() {
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
fn every_kind_of_column() {
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
fn every_kind_of_query() {
    let catalog = Project::new(&[
        ("schemas/c.sql", GOOD),
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
fn settings_and_tables() {
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
fn ad_hoc_queries() {
    let file = Path::new("<command line>");
    let query = parse_query(
        file,
        "SELECT *\nFROM HOP(TABLE a.b, DESCRIPTOR(t), INTERVAL '1' HOUR, INTERVAL '2' HOUR);",
    )
    .unwrap();
    assert!(query.to_string().contains("FROM HOP(a.b, DESCRIPTOR(t)"), "{query}");
    let created = parse_query(file, "CREATE STREAM x WITH (emit = 'final') AS SELECT 1").unwrap();
    assert_eq!(created.to_string(), "SELECT 1");
    for (text, expected) in [
        (" -- nothing\n", "there is no query\n --> <command line>:1:1"),
        ("SELECT 1; SELECT 2", "there is more than one statement\n --> <command line>:1:11"),
        (
            "SET millstream.x = 1",
            "this statement belongs in a schema file\n --> <command line>:1:1",
        ),
        ("SELECT a\n  FROM )", "expected identifier, found )\n --> <command line>:2:8"),
        ("SELECT (1", "expected ), found the end of the statement\n --> <command line>:1:10"),
        ("SELECT 'a", "this text is never closed\n --> <command line>:1:8"),
        ("DROP TABLE x", "expected a statement, found DROP\n --> <command line>:1:1"),
        (
            "SELECT 1 FROM a b c",
            "expected the end of the statement, found c\n --> <command line>:1:19",
        ),
        (
            "WITH a AS (SELECT 1) INSERT INTO t SELECT 1",
            "a query reads: INSERT, UPDATE, DELETE and MERGE have no place here\n --> <command line>:1:1",
        ),
    ] {
        let error = parse_query(file, text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}:\n{error}");
    }
}

#[test]
fn what_is_misread_is_told_at_its_own_word() {
    let window = "FROM TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '1' DAY)";
    for (query, message, place, hint) in [
        (
            "SELECT 1\nFROM s\nGRUOP BY id",
            "'GRUOP' does not belong here",
            "3:1",
            "did you mean GROUP BY?",
        ),
        (
            "SELECT id FROM s\nWEHRE id = 1",
            "'WEHRE' does not belong here",
            "2:1",
            "did you mean WHERE?",
        ),
        ("SELECT id FORM s", "'FORM' does not belong here", "1:11", "did you mean FROM?"),
        (
            "SELECT id FROM s JION t ON true",
            "'JION' does not belong here",
            "1:18",
            "did you mean JOIN?",
        ),
        ("SELCT 1", "expected a statement, found SELCT", "1:1", "did you mean SELECT?"),
        (
            "CREATE STRAEM q AS SELECT 1",
            "expected STREAM, MATERIALIZED VIEW or EXTERNAL TABLE, found STRAEM",
            "1:8",
            "did you mean STREAM?",
        ),
        (
            "SELECT 1 FROM TUMBEL(TABLE s, DESCRIPTOR(ts), INTERVAL '1' DAY)",
            "there is no window function 'TUMBEL'",
            "1:15",
            "did you mean TUMBLE?",
        ),
        (
            &format!("SELECT 1 {}", window.replace("DAY", "DYA")),
            "'DYA' is no unit of time",
            "1:60",
            "did you mean DAY?",
        ),
        (
            "SELECT count(* FROM s",
            "expected ), found FROM",
            "1:16",
            "the parenthesis that opens at line 1, column 13 is not closed",
        ),
        (
            "SELECT lower(id)) FROM s",
            "expected the end of the statement, found )",
            "1:17",
            "there is one ) too many",
        ),
        (
            "SELECT id ts x FROM s",
            "expected the end of the statement, found x",
            "1:14",
            "is a comma or an operator missing before x?",
        ),
        (
            "SELECT CASE WHEN id = 1 THEN 2 AS c FROM s",
            "this CASE is never ended",
            "1:8",
            "write END after its last branch",
        ),
        (
            "SELECT * FROM",
            "expected identifier, found the end of the statement",
            "1:14",
            "the statement is not complete",
        ),
        (
            "WITH (emit = 'final') SELECT 1",
            "a bare query has no options",
            "1:1",
            "write CREATE STREAM name WITH (...) AS SELECT",
        ),
    ] {
        let errors = query_errors(&[("queries/c/q.sql", query)]);
        expect(&errors, message, &format!("queries/c/q.sql:{place}"), hint);
    }
}

#[test]
fn what_is_misread_in_a_schema() {
    let closing =
        "expected NOT NULL, AS, METADATA FROM, FORMAT, a comma or a closing parenthesis, found";
    for (from, to, message, place, hint) in [
        ("NOT NULL,", "NOT NULL", format!("{closing} ts"), "3:3", "is a comma missing before ts?"),
        (
            ") WITH",
            "WITH",
            format!("{closing} WITH"),
            "5:1",
            "the parenthesis that opens at line 1, column 17 is not closed",
        ),
        (
            "WATERMARK",
            "WATERMRAK",
            "'WATERMRAK' does not belong here".to_owned(),
            "4:3",
            "did you mean WATERMARK?",
        ),
        (") WITH (", ") (", "expected WITH, found (".to_owned(), "5:3", ""),
    ] {
        expect(&broken(from, to), &message, &format!("schemas/c.sql:{place}"), hint);
    }
}

#[test]
fn what_is_never_closed_is_told_where_it_opens() {
    let text = "SELECT 'a'\nFROM s\nWHERE x = 'hall\nAND y = 'kitchen'";
    let closing = "write the closing '";
    expect(
        &query_errors(&[("queries/c/q.sql", text)]),
        "this text is never closed",
        "queries/c/q.sql:3:11",
        closing,
    );
    expect(
        &query_errors(&[("queries/c/q.sql", "SELECT 1 /* x\n")]),
        "this comment is never closed",
        "queries/c/q.sql:1:10",
        "write the closing */",
    );
    let name = query_errors(&[("queries/c/q.sql", "SELECT\n \"x FROM s")]);
    expect(&name, "this quoted name is never closed", "queries/c/q.sql:2:2", "");
    // Two are missing, so that the quotes are even again.
    let even = query_errors(&[("queries/c/q.sql", "SELECT 'a\nFROM s WHERE x = 'b AND c y")]);
    assert!(even.contains("line 1, column 8"), "{even}");
}

#[test]
fn a_declaration_that_failed_is_told_once() {
    let queries = [("queries/c/q.sql", "SELECT * FROM s"), ("queries/c/r.sql", "SELECT id FROM q")];
    let with = |schema: &str| {
        let mut files = vec![("schemas/c.sql", schema)];
        files.extend(queries);
        Project::new(&files).errors()
    };
    let option = with(&GOOD.replace("topics = 't1'", "topics = 't1', formt = 'json'"));
    expect(
        &option,
        "a stream has no option 'formt'",
        "schemas/c.sql:5:24",
        "did you mean 'format'?",
    );
    let semicolon = with(&format!("SET millstream.timezone = 'UTC'\n{GOOD}"));
    expect(
        &semicolon,
        "expected the end of the statement, found CREATE",
        "schemas/c.sql:2:1",
        "is a semicolon missing before CREATE?",
    );
    let nameless = with(&GOOD.replace("STREAM s (", "STREAM ("));
    expect(&nameless, "expected identifier, found (", "schemas/c.sql:1:15", "");
    let misspelt = with(&GOOD.replace("STREAM", "STRAEM"));
    let message = "expected STREAM, MATERIALIZED VIEW or EXTERNAL TABLE, found STRAEM";
    expect(&misspelt, message, "schemas/c.sql:1:8", "did you mean STREAM?");
    expect(&with("-- later\n"), "the file declares nothing", "schemas/c.sql:1:1", "");
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_text() {
    let project = Project::new(&[
        ("schemas/c.sql", &format!("\u{feff}{GOOD}")),
        ("queries/c/q.sql", "\u{feff}SELECT id FROM s"),
    ]);
    assert_eq!(project.load().customer("c").unwrap().queries.len(), 1);
}

#[test]
fn an_error_is_shown_with_its_line_a_caret_and_a_hint() {
    assert_eq!(
        broken("topics = 't1'", "topics = 't1',\n  formt = 'json'"),
        "a stream has no option 'formt'
 --> schemas/c.sql:6:3
  |
6 |   formt = 'json');
  |   ^^^^^
  hint: did you mean 'format'?"
    );
    assert_eq!(
        query_errors(&[(
            "queries/c/q.sql",
            "SELECT *\nFROM  TUMBLE(TABLE ss, DESCRIPTOR(ts), INTERVAL '1' DAY)"
        )]),
        "there is no stream, table or query 'ss'
 --> queries/c/q.sql:2:20
  |
2 | FROM  TUMBLE(TABLE ss, DESCRIPTOR(ts), INTERVAL '1' DAY)
  |                    ^^
  hint: did you mean 's'?"
    );
}

#[test]
fn all_errors_of_all_files_are_collected() {
    let project = Project::new(&[
        (
            "schemas/c.sql",
            "SET millstream.timezon = 'UTC';
CREATE STREAM s (id BIGNT, id INT, ts TIMESTAMP, WATERMARK FOR tss AS ts) WITH (topics = 'a b', start = 'now');
CREATE STREM t;
CREATE STREAM broken (;
SELECT 1",
        ),
        ("queries/c/a.sql", "SELEC 1"),
        ("queries/c/b.sql", "SELECT * FROM s JOIN broken USING (id) JOIN a USING (id) JOIN nowhere USING (id)"),
        ("queries/c/c.sql", "-- nothing yet"),
        ("queries/lost.sql", "SELECT 1"),
        ("queries/d/q.sql", "SELECT 1"),
    ]);
    let errors = project.errors();
    let firsts: Vec<String> = (errors.split("\n\n"))
        .map(|error| {
            let mut lines = error.lines();
            let message = lines.next().unwrap();
            format!("{} {message}", lines.next().unwrap().trim().trim_start_matches("--> "))
        })
        .collect();
    assert_eq!(
        firsts,
        [
            "queries/lost.sql:1:1 a query file outside any customer",
            "queries/d/q.sql:1:1 customer 'd' has no schema file",
            "schemas/c.sql:3:8 expected STREAM, MATERIALIZED VIEW or EXTERNAL TABLE, found STREM",
            "schemas/c.sql:4:23 expected identifier, found the end of the statement",
            "schemas/c.sql:5:1 a schema file holds no queries",
            "schemas/c.sql:1:5 unknown setting 'millstream.timezon'",
            "schemas/c.sql:2:21 unknown column type BIGNT",
            "schemas/c.sql:2:28 column 'id' is declared twice",
            "schemas/c.sql:2:64 the watermark's column 'tss' does not exist",
            "schemas/c.sql:2:90 'a b' cannot be a topic: letters, digits, '.', '_' and '-', at most 249",
            "schemas/c.sql:2:105 'now' is no start",
            "queries/c/a.sql:1:1 expected a statement, found SELEC",
            "queries/c/c.sql:1:1 the file holds no query",
            "queries/c/b.sql:1:63 there is no stream, table or query 'nowhere'",
        ]
    );
}

#[test]
fn wrong_columns() {
    let column = |text: &str| broken("id BIGINT NOT NULL", text);
    expect(
        &column("id VARCHR"),
        "unknown column type VARCHR",
        "schemas/c.sql:2:6",
        "did you mean 'VARCHAR'?",
    );
    expect(
        &column("id VARCHAR(20)"),
        "the length of a text is not checked",
        "schemas/c.sql:2:6",
        "write VARCHAR",
    );
    expect(&column("id DECIMAL(40, 2)"), "there is no DECIMAL(40, 2)", "schemas/c.sql:2:6", "");
    expect(
        &column("id TIMESTAMP WITHOUT TIME ZONE"),
        "TIMESTAMP WITHOUT TIME ZONE is no instant",
        "schemas/c.sql:2:6",
        "",
    );
    expect(
        &column("id TIMESTAMP(9)"),
        "instants have microseconds",
        "schemas/c.sql:2:6",
        "write TIMESTAMP",
    );
    expect(&column("id"), "expected the type of column 'id', found ,", "schemas/c.sql:2:5", "");
    expect(&column("ID INT, id INT"), "column 'id' is declared twice", "schemas/c.sql:2:11", "");
    expect(
        &column("_offset BIGINT"),
        "a stream's column cannot be called '_offset'",
        "schemas/c.sql:2:3",
        "history and window functions add a column of that name",
    );
    expect(
        &column("id INT FORMAT '%Y'"),
        "only a TIMESTAMP has a FORMAT",
        "schemas/c.sql:2:17",
        "",
    );
    expect(
        &column("id TIMESTAMP FORMAT '%Y-%Q'"),
        "'%Y-%Q' has an unknown % part",
        "schemas/c.sql:2:23",
        "",
    );
    expect(
        &column("id TIMESTAMP FORMAT 'epoch_ns'"),
        "unknown time format 'epoch_ns'",
        "schemas/c.sql:2:23",
        "did you mean 'epoch_s'?",
    );
    expect(
        &column("id INT METADATA FROM 'partitions'"),
        "unknown metadata 'partitions'",
        "schemas/c.sql:2:24",
        "did you mean 'partition'?",
    );
    expect(
        &column("id BIGINT METADATA FROM 'partition'"),
        "metadata 'partition' is no BIGINT",
        "schemas/c.sql:2:6",
        "declare it as INT",
    );
    expect(
        &column("id BYTEA NOT NULL METADATA FROM 'key'"),
        "metadata 'key' may be null",
        "schemas/c.sql:2:12",
        "leave out NOT NULL",
    );
    expect(
        &column("id INT AS 1 + ts NOT NULL"),
        "NOT NULL after an expression is read as part of it",
        "schemas/c.sql:2:20",
        "write NOT NULL in front of AS",
    );
    expect(
        &column("id INT AS 1 METADATA FROM 'topic'"),
        "expected NOT NULL, AS, METADATA FROM, FORMAT, a comma or a closing parenthesis, found METADATA",
        "schemas/c.sql:2:15",
        "",
    );
}

#[test]
fn wrong_watermarks() {
    let watermark = |text: &str| broken("WATERMARK FOR ts AS ts", text);
    expect(
        &broken("  WATERMARK FOR ts AS ts\n", "  x INT\n"),
        "stream 's' has no watermark",
        "schemas/c.sql:1:15",
        "say which column is the event time: WATERMARK FOR event_time AS event_time - INTERVAL '30' SECOND",
    );
    expect(
        &watermark("WATERMARK FOR ts AS ts, WATERMARK FOR ts AS ts"),
        "stream 's' has two watermarks",
        "schemas/c.sql:4:27",
        "",
    );
    expect(
        &watermark("WATERMARK FOR tz AS tz"),
        "the watermark's column 'tz' does not exist",
        "schemas/c.sql:4:17",
        "did you mean 'ts'?",
    );
    expect(
        &watermark("WATERMARK FOR id AS id"),
        "the watermark's column 'id' is no TIMESTAMP",
        "schemas/c.sql:4:17",
        "compute one: event_time TIMESTAMP AS to_timestamp(...)",
    );
    expect(
        &watermark("WATERMARK FOR ts AS id - INTERVAL '1' DAY"),
        "a watermark is 'ts' less a fixed INTERVAL",
        "schemas/c.sql:4:23",
        "write ts, or ts - INTERVAL '30' SECOND",
    );
    expect(
        &watermark("WATERMARK FOR ts AS ts - 30"),
        "a watermark's delay is an INTERVAL",
        "schemas/c.sql:4:23",
        "",
    );
    expect(
        &watermark("WATERMARK FOR ts AS ts - INTERVAL '1' MONTH"),
        "a duration in MONTH has no fixed length",
        "schemas/c.sql:4:23",
        "",
    );
    expect(
        &watermark("WATERMARK FOR ts AS ts - INTERVAL '-1' DAY"),
        "'-1 DAY' is no duration",
        "schemas/c.sql:4:23",
        "",
    );
}

#[test]
fn wrong_options() {
    let options = |text: &str| broken("topics = 't1'", text);
    expect(
        &options("topics = 't1', topics = 't2'"),
        "option 'topics' is given twice",
        "schemas/c.sql:5:24",
        "",
    );
    expect(
        &options("format = 'json'"),
        "stream 's' names no topics",
        "schemas/c.sql:1:15",
        "add WITH (topics = 'a,b') or WITH (topic_pattern = '...')",
    );
    expect(
        &options("topics = 'a', topic_pattern = 'a'"),
        "stream 's' has both topics and topic_pattern",
        "schemas/c.sql:5:39",
        "keep one of them",
    );
    expect(&options("topics = 'a,b,a'"), "topic 'a' is listed twice", "schemas/c.sql:5:18", "");
    expect(&options("topics = 'a,,b'"), "a topic has no name", "schemas/c.sql:5:18", "");
    expect(
        &options("topic_pattern = '10(['"),
        "'10([' is no regular expression: unclosed character class",
        "schemas/c.sql:5:25",
        "",
    );
    expect(
        &options("topics = 't', format = 'avro'"),
        "unknown format 'avro'",
        "schemas/c.sql:5:32",
        "the only format is 'json'",
    );
    expect(
        &options("topics = 't', idle_timeout = 30"),
        "the duration '30' has no unit",
        "schemas/c.sql:5:38",
        "write a number and a unit: '25 ms', '30 seconds', '10 minutes', '2 h', '1 day'",
    );
    expect(
        &options("topics = 't', idle_timeout = '0 s'"),
        "'idle_timeout' must be longer than that",
        "schemas/c.sql:5:38",
        "",
    );
    expect(
        &options("topics = 't', history = 'maybe'"),
        "'history' is 'on' or 'off', not 'maybe'",
        "schemas/c.sql:5:33",
        "",
    );
    let stream = |text: &str| query_errors(&[("queries/c/q.sql", text)]);
    expect(
        &stream("CREATE STREAM q WITH (emit = 'often') AS SELECT 1"),
        "'often' is no way to emit",
        "queries/c/q.sql:1:30",
        "'final' or e.g. 'every 60 seconds'",
    );
    expect(
        &stream("CREATE STREAM q WITH (emit = 'every 60') AS SELECT 1"),
        "the duration '60' has no unit",
        "queries/c/q.sql:1:30",
        "",
    );
    expect(
        &stream("CREATE STREAM q WITH (start = '2026-11-01') AS SELECT 1"),
        "'2026-11-01' is no start of a query",
        "queries/c/q.sql:1:31",
        "'earliest' or 'latest'; for a time: 'earliest', and WHERE event time >= that time",
    );
    expect(
        &stream("CREATE STREAM q WITH (ttl = '1 h') AS SELECT 1"),
        "a stream has no option 'ttl'",
        "queries/c/q.sql:1:23",
        "options: topic, emit, allowed_lateness, start",
    );
    expect(
        &stream("CREATE MATERIALIZED VIEW q WITH (emit = 'final') AS SELECT 1"),
        "a materialized view has no option 'emit'",
        "queries/c/q.sql:1:34",
        "options: topic, ttl, start",
    );
    expect(
        &stream("CREATE STREAM q WITH (topic = 'a/b') AS SELECT 1"),
        "'a/b' cannot be a topic: letters, digits, '.', '_' and '-', at most 249",
        "queries/c/q.sql:1:31",
        "",
    );
}

#[test]
fn wrong_settings_and_tables() {
    expect(
        &schema_errors("SET millstream.timezone = 'Europe/Helsinky'"),
        "unknown time zone 'Europe/Helsinky'",
        "schemas/c.sql:1:27",
        "did you mean 'Europe/Helsinki'?",
    );
    expect(
        &schema_errors("SET timezone = 'UTC'"),
        "unknown setting 'timezone'",
        "schemas/c.sql:1:5",
        "did you mean 'millstream.timezone'?",
    );
    expect(
        &schema_errors("SET millstream.commit_interval = '10 us'"),
        "a commit interval has whole milliseconds, at least 1",
        "schemas/c.sql:1:34",
        "",
    );
    expect(
        &schema_errors("SET millstream.memory_limit = '10'"),
        "the size '10' has no unit",
        "schemas/c.sql:1:31",
        "write a number and a unit: '512 MB', '4 GB', '256 MiB'",
    );
    expect(
        &schema_errors("SET millstream.timezone = 'UTC';\nSET millstream.timezone = 'UTC'"),
        "'millstream.timezone' is set twice",
        "schemas/c.sql:2:5",
        "",
    );
    let table = |text: &str| schema_errors(&format!("CREATE EXTERNAL TABLE t {text}"));
    expect(
        &table("STORED AS JSON LOCATION 'schemas/c.sql'"),
        "a table cannot be stored as 'json'",
        "schemas/c.sql:1:35",
        "formats: CSV, PARQUET",
    );
    expect(
        &table("STORED AS CSV"),
        "expected LOCATION '..', found the end of the statement",
        "schemas/c.sql:1:38",
        "",
    );
    expect(
        &table("STORED AS CSV LOCATION 's3://b/k'"),
        "a table's location is a path of this machine",
        "schemas/c.sql:1:48",
        "",
    );
    expect(
        &table("STORED AS CSV LOCATION 'schemas/c.sql' OPTIONS (has_heder true)"),
        "a CSV table has no option 'format.has_heder'",
        "schemas/c.sql:1:73",
        "did you mean 'format.has_header'?",
    );
    expect(
        &table("(a INT AS 1) STORED AS CSV LOCATION 'schemas/c.sql'"),
        "column 'a' of a table comes from its file",
        "schemas/c.sql:1:26",
        "write name, type and NOT NULL only",
    );
    expect(
        &table("STORED AS CSV LOCATION 'schemas/c.sql' OPTIONS (delimiter '||')"),
        "'||' is no delimiter: one ASCII character",
        "schemas/c.sql:1:83",
        "",
    );
    expect(
        &table("STORED AS CSV LOCATION 'schemas/c.sql' OPTIONS ('format.has_header' 'yes')"),
        "'format.has_header' is true or false, not 'yes'",
        "schemas/c.sql:1:93",
        "",
    );
    expect(
        &table("(a INT) STORED AS PARQUET LOCATION 'schemas/c.sql'"),
        "a Parquet file says itself which columns it has",
        "schemas/c.sql:1:26",
        "leave out the list",
    );
    expect(
        &schema_errors("CREATE TABLE t (a INT)"),
        "expected STREAM, MATERIALIZED VIEW or EXTERNAL TABLE, found TABLE",
        "schemas/c.sql:1:8",
        "rows from Kafka are a CREATE STREAM, a file is a CREATE EXTERNAL TABLE",
    );
}

#[test]
fn wrong_names() {
    let q = |name: &str, text: &str| query_errors(&[(&format!("queries/c/{name}.sql"), text)]);
    expect(
        &q("Daily-Visits", "SELECT 1"),
        "the file's name 'Daily-Visits' cannot be a query's",
        "queries/c/Daily-Visits.sql:1:1",
        "a name begins with a letter from a to z: rename the file, or write CREATE STREAM name AS SELECT",
    );
    expect(
        &q("q", "CREATE STREAM \"Q\" AS SELECT 1"),
        "'Q' cannot be a name",
        "queries/c/q.sql:1:15",
        "a name begins with a letter from a to z",
    );
    expect(
        &q("q", "CREATE STREAM a.b AS SELECT 1"),
        "expected a name of one part, found .",
        "queries/c/q.sql:1:16",
        "",
    );
    expect(
        &q("dead_letters", "SELECT 1"),
        "the name 'dead_letters' is taken",
        "queries/c/dead_letters.sql:1:1",
        "every customer has a topic of that name: choose another",
    );
    expect(&q("s_late", "SELECT 1"), "the name 's_late' is taken", "queries/c/s_late.sql:1:1", "");
    let twice = query_errors(&[
        ("queries/c/a.sql", "SELECT 1"),
        ("queries/c/b.sql", "CREATE STREAM a AS SELECT 2"),
    ]);
    expect(&twice, "the name 'a' is taken", "queries/c/b.sql:1:15", "");
    assert!(twice.contains("the first one is at queries/c/a.sql:1:1"), "{twice}");
    expect(&q("s", "SELECT * FROM s"), "the name 's' is taken", "queries/c/s.sql:1:1", "");
    expect(
        &q("a", "SELECT 1; SELECT 2"),
        "a second bare query in one file",
        "queries/c/a.sql:1:11",
        "it would have the same name: write CREATE STREAM name AS",
    );
    expect(
        &q("a", "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'x'"),
        "a query file holds queries only",
        "queries/c/a.sql:1:1",
        "move it to schemas/c.sql",
    );
    expect(
        &Project::new(&[("schemas/my customer.sql", GOOD)]).errors(),
        "'my customer' cannot be a customer's name",
        "schemas/my customer.sql:1:1",
        "a name consists of a-z, 0-9 and _: rename the file",
    );
    expect(
        &q("a", "SELECT * FROM c.s"),
        "there is no stream, table or query 'c.s'",
        "queries/c/a.sql:1:15",
        "write 's': a query sees its own customer's relations by their plain names",
    );
}

#[test]
fn cycles_are_named() {
    let files = [
        ("queries/c/a.sql", "SELECT * FROM s JOIN b ON true"),
        ("queries/c/b.sql", "SELECT *\nFROM d"),
        ("queries/c/d.sql", "SELECT * FROM a"),
        ("queries/c/outside.sql", "SELECT * FROM d"),
    ];
    let errors = query_errors(&files);
    expect(
        &errors,
        "queries read each other in a circle: a -> b -> d -> a",
        "queries/c/a.sql:1:22",
        "take one of these reads out",
    );
    let own = query_errors(&[("queries/c/a.sql", "SELECT * FROM a")]);
    expect(&own, "query 'a' reads itself", "queries/c/a.sql:1:15", "");
}

#[test]
fn topics_belong_to_one_customer() {
    let with = |topics: &str| GOOD.replace("topics = 't1'", topics);
    let project = |a: &str, b: &str| {
        Project::new(&[("schemas/a.sql", &with(a)), ("schemas/b.sql", &with(b))])
    };
    let lists = project("topics = '1,2'", "topics = '3,2'");
    let errors = lists.errors();
    expect(
        &errors,
        "topic '2' would be read by two customers, a and b",
        "schemas/b.sql:5:18",
        "a topic belongs to one customer",
    );
    assert!(errors.contains("the other one is at schemas/a.sql:5:18"), "{errors}");
    expect(
        &lists.errors_of(&["a"]),
        "topic '2' would be read by two customers, a and b",
        "schemas/a.sql:5:18",
        "",
    );
    let mixed = project("topic_pattern = '10.*'", "topics = '1084'");
    expect(
        &mixed.errors(),
        "topic '1084' would be read by two customers, a and b",
        "schemas/b.sql:5:18",
        "",
    );
    let patterns = project("topic_pattern = '10[0-9]+'", "topic_pattern = '[0-9]{4}'");
    expect(
        &patterns.errors(),
        "topic '1000' would be read by two customers, a and b",
        "schemas/b.sql:5:25",
        "",
    );
    let twice = format!("{GOOD}{}", GOOD.replace("STREAM s", "STREAM t"));
    expect(
        &schema_errors(&twice),
        "topic 't1' would be read by two streams, s and t",
        "schemas/c.sql:10:18",
        "declare one stream, which any number of queries may read",
    );
    let wide = schema_errors(&with("topic_pattern = '.*'"));
    expect(
        &wide,
        "stream 's' would read 'millstream.c.log', which Millstream writes",
        "schemas/c.sql:5:25",
        "a query may read another query's results by its name; narrow the topics",
    );
    let results = Project::new(&[
        ("schemas/c.sql", &with("topics = 'millstream.c.q'")),
        ("queries/c/q.sql", "SELECT 1"),
    ]);
    expect(
        &results.errors(),
        "stream 's' would read 'millstream.c.q', which Millstream writes",
        "schemas/c.sql:5:18",
        "",
    );
    let same = query_errors(&[
        ("queries/c/a.sql", "CREATE STREAM a WITH (topic = 'out') AS SELECT 1"),
        ("queries/c/b.sql", "CREATE STREAM b WITH (topic = 'out') AS SELECT 1"),
    ]);
    expect(
        &same,
        "topic 'out' takes the results of c.a already",
        "queries/c/b.sql:1:15",
        "choose another topic",
    );
    let log = query_errors(&[(
        "queries/c/a.sql",
        "CREATE STREAM a WITH (topic = 'millstream.c.log') AS SELECT 1",
    )]);
    expect(
        &log,
        "topic 'millstream.c.log' takes the progress log of c already",
        "queries/c/a.sql:1:15",
        "",
    );
}

#[test]
fn one_customer_of_several() {
    let project = Project::new(&[
        ("schemas/a.sql", GOOD),
        ("schemas/b.sql", "CREATE STREAM x ("),
        ("queries/a/q.sql", "SELECT * FROM s"),
    ]);
    let catalog = load(project.0.path(), &["a".to_owned()]).unwrap();
    assert_eq!(catalog.customers.len(), 1, "b's mistakes are b's");
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
    let catalog = Project::new(&[("schemas/c.sql", GOOD), ("queries/c/q.sql", text)]).load();
    assert_eq!(catalog.customer("c").unwrap().query("q").unwrap().inputs, ["s"]);
}

#[test]
fn local_times() {
    let helsinki = chrono_tz::Europe::Helsinki;
    let at = |text: &str| parse_instant(text, helsinki).unwrap();
    assert_eq!(at("2026-11-01 06:00:00"), at("2026-11-01T04:00:00Z"));
    assert_eq!(at("2026-11-01T06:00"), at("2026-11-01T06:00:00+02:00"));
    assert_eq!(
        at("2026-10-25 03:30"),
        at("2026-10-25T00:30:00Z"),
        "the hour that comes twice: the first"
    );
    assert_eq!(
        at("2026-03-29 03:30"),
        at("2026-03-29T01:30:00Z"),
        "the hour that is skipped: 04:30"
    );
    assert_eq!(parse_instant("yesterday", helsinki), None);
}
