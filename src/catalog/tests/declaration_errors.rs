//! Invalid clauses of a single statement: columns, watermarks, options, settings and tables.

use crate::catalog::tests::{expect_error, query_errors, schema_errors, schema_errors_with};

#[test]
fn invalid_columns() {
    let column = |text: &str| schema_errors_with("id BIGINT NOT NULL", text);
    expect_error(
        &column("id VARCHR"),
        "unknown column type VARCHR",
        "schemas/c.sql:2:6",
        "did you mean 'VARCHAR'?",
    );
    expect_error(
        &column("id VARCHAR(20)"),
        "the length of a text column is not enforced",
        "schemas/c.sql:2:6",
        "write VARCHAR",
    );
    expect_error(
        &column("id DECIMAL(40, 2)"),
        "DECIMAL(40, 2) is not a valid type",
        "schemas/c.sql:2:6",
        "",
    );
    expect_error(
        &column("id TIMESTAMP WITHOUT TIME ZONE"),
        "TIMESTAMP WITHOUT TIME ZONE is not supported: time columns are instants",
        "schemas/c.sql:2:6",
        "",
    );
    expect_error(
        &column("id TIMESTAMP(9)"),
        "a TIMESTAMP has microsecond precision",
        "schemas/c.sql:2:6",
        "write TIMESTAMP",
    );
    expect_error(
        &column("id"),
        "expected the type of column 'id', found ,",
        "schemas/c.sql:2:5",
        "",
    );
    expect_error(
        &column("ID INT, id INT"),
        "column 'id' is declared twice",
        "schemas/c.sql:2:11",
        "",
    );
    expect_error(
        &column("_offset BIGINT"),
        "the column name '_offset' is reserved",
        "schemas/c.sql:2:3",
        "history and window functions add a column with this name",
    );
    expect_error(
        &column("id INT FORMAT '%Y'"),
        "only a TIMESTAMP column can have a FORMAT",
        "schemas/c.sql:2:17",
        "",
    );
    expect_error(
        &column("id TIMESTAMP FORMAT '%Y-%Q'"),
        "'%Y-%Q' contains an unknown % specifier",
        "schemas/c.sql:2:23",
        "",
    );
    expect_error(
        &column("id TIMESTAMP FORMAT 'epoch_ns'"),
        "unknown time format 'epoch_ns'",
        "schemas/c.sql:2:23",
        "did you mean 'epoch_s'?",
    );
    expect_error(
        &column("id INT METADATA FROM 'partitions'"),
        "unknown metadata 'partitions'",
        "schemas/c.sql:2:24",
        "did you mean 'partition'?",
    );
    expect_error(
        &column("id BIGINT METADATA FROM 'partition'"),
        "metadata 'partition' cannot have the type BIGINT",
        "schemas/c.sql:2:6",
        "declare it as INT",
    );
    expect_error(
        &column("id BYTEA NOT NULL METADATA FROM 'key'"),
        "metadata 'key' can be null",
        "schemas/c.sql:2:12",
        "remove NOT NULL",
    );
    expect_error(
        &column("id INT AS 1 + ts NOT NULL"),
        "NOT NULL after an expression is parsed as part of the expression",
        "schemas/c.sql:2:20",
        "write NOT NULL before AS",
    );
    expect_error(
        &column("id INT AS 1 METADATA FROM 'topic'"),
        "expected NOT NULL, AS, METADATA FROM, FORMAT, a comma or a closing parenthesis, found METADATA",
        "schemas/c.sql:2:15",
        "",
    );
}

#[test]
fn invalid_watermarks() {
    let watermark = |text: &str| schema_errors_with("WATERMARK FOR ts AS ts", text);
    expect_error(
        &schema_errors_with("  WATERMARK FOR ts AS ts\n", "  x INT\n"),
        "stream 's' has no watermark",
        "schemas/c.sql:1:15",
        "declare the event time: WATERMARK FOR event_time AS event_time - INTERVAL '30' SECOND",
    );
    expect_error(
        &watermark("WATERMARK FOR ts AS ts, WATERMARK FOR ts AS ts"),
        "stream 's' has two watermarks",
        "schemas/c.sql:4:27",
        "",
    );
    expect_error(
        &watermark("WATERMARK FOR tz AS tz"),
        "watermark column 'tz' does not exist",
        "schemas/c.sql:4:17",
        "did you mean 'ts'?",
    );
    expect_error(
        &watermark("WATERMARK FOR id AS id"),
        "watermark column 'id' is not a TIMESTAMP",
        "schemas/c.sql:4:17",
        "add a computed column: event_time TIMESTAMP AS to_timestamp(...)",
    );
    expect_error(
        &watermark("WATERMARK FOR ts AS id - INTERVAL '1' DAY"),
        "a watermark must be 'ts' or 'ts' minus a fixed INTERVAL",
        "schemas/c.sql:4:23",
        "write ts, or ts - INTERVAL '30' SECOND",
    );
    expect_error(
        &watermark("WATERMARK FOR ts AS ts - 30"),
        "the delay of a watermark must be an INTERVAL",
        "schemas/c.sql:4:23",
        "",
    );
    expect_error(
        &watermark("WATERMARK FOR ts AS ts - INTERVAL '1' MONTH"),
        "a duration in MONTH has no fixed length",
        "schemas/c.sql:4:23",
        "",
    );
    expect_error(
        &watermark("WATERMARK FOR ts AS ts - INTERVAL '-1' DAY"),
        "cannot parse '-1 DAY' as a duration",
        "schemas/c.sql:4:23",
        "",
    );
}

#[test]
fn invalid_options() {
    let options = |text: &str| schema_errors_with("topics = 't1'", text);
    expect_error(
        &options("topics = 't1', topics = 't2'"),
        "option 'topics' is given twice",
        "schemas/c.sql:5:24",
        "",
    );
    expect_error(
        &options("format = 'json'"),
        "stream 's' has no topics",
        "schemas/c.sql:1:15",
        "add WITH (topics = 'a,b') or WITH (topic_pattern = '...')",
    );
    expect_error(
        &options("topics = 'a', topic_pattern = 'a'"),
        "stream 's' has both topics and topic_pattern",
        "schemas/c.sql:5:39",
        "remove one of them",
    );
    expect_error(
        &options("topics = 'a,b,a'"),
        "topic 'a' is listed twice",
        "schemas/c.sql:5:18",
        "",
    );
    expect_error(
        &options("topics = 'a,,b'"),
        "the name of a topic is empty",
        "schemas/c.sql:5:18",
        "",
    );
    expect_error(
        &options("topic_pattern = '10(['"),
        "cannot parse '10([' as a regular expression: unclosed character class",
        "schemas/c.sql:5:25",
        "",
    );
    expect_error(
        &options("topics = 't', format = 'avro'"),
        "unknown format 'avro'",
        "schemas/c.sql:5:32",
        "the only format is 'json'",
    );
    expect_error(
        &options("topics = 't', idle_timeout = 30"),
        "the duration '30' has no unit",
        "schemas/c.sql:5:38",
        "write a number and a unit: '25 ms', '30 seconds', '10 minutes', '2 h', '1 day'",
    );
    expect_error(
        &options("topics = 't', idle_timeout = '0 s'"),
        "'idle_timeout' must be greater than zero",
        "schemas/c.sql:5:38",
        "",
    );
    expect_error(
        &options("topics = 't', history = 'maybe'"),
        "'history' must be 'on' or 'off', not 'maybe'",
        "schemas/c.sql:5:33",
        "",
    );
    let stream = |text: &str| query_errors(&[("queries/c/q.sql", text)]);
    expect_error(
        &stream("CREATE STREAM q WITH (emit = 'often') AS SELECT 1"),
        "'often' is not a valid value of 'emit'",
        "queries/c/q.sql:1:30",
        "use 'final' or, for example, 'every 60 seconds'",
    );
    expect_error(
        &stream("CREATE STREAM q WITH (emit = 'every 60') AS SELECT 1"),
        "the duration '60' has no unit",
        "queries/c/q.sql:1:30",
        "",
    );
    expect_error(
        &stream("CREATE STREAM q WITH (start = '2026-11-01') AS SELECT 1"),
        "'2026-11-01' is not a valid start of a query",
        "queries/c/q.sql:1:31",
        "use 'earliest' or 'latest'; to start at a time, use 'earliest' and WHERE event_time >= ...",
    );
    expect_error(
        &stream("CREATE STREAM q WITH (ttl = '1 h') AS SELECT 1"),
        "a stream has no option 'ttl'",
        "queries/c/q.sql:1:23",
        "options: topic, emit, allowed_lateness, start",
    );
    expect_error(
        &stream("CREATE MATERIALIZED VIEW q WITH (emit = 'final') AS SELECT 1"),
        "a materialized view has no option 'emit'",
        "queries/c/q.sql:1:34",
        "options: topic, ttl, start",
    );
    expect_error(
        &stream("CREATE STREAM q WITH (topic = 'a/b') AS SELECT 1"),
        "'a/b' is not a valid topic: use at most 249 letters, digits, '.', '_' and '-'",
        "queries/c/q.sql:1:31",
        "",
    );
}

#[test]
fn invalid_settings_and_tables() {
    expect_error(
        &schema_errors("SET millstream.timezone = 'Europe/Helsinky'"),
        "unknown time zone 'Europe/Helsinky'",
        "schemas/c.sql:1:27",
        "did you mean 'Europe/Helsinki'?",
    );
    expect_error(
        &schema_errors("SET timezone = 'UTC'"),
        "unknown setting 'timezone'",
        "schemas/c.sql:1:5",
        "did you mean 'millstream.timezone'?",
    );
    expect_error(
        &schema_errors("SET millstream.commit_interval = '10 us'"),
        "a commit interval must be a whole number of milliseconds",
        "schemas/c.sql:1:34",
        "",
    );
    expect_error(
        &schema_errors("SET millstream.memory_limit = '10'"),
        "the size '10' has no unit",
        "schemas/c.sql:1:31",
        "write a number and a unit: '512 MB', '4 GB', '256 MiB'",
    );
    expect_error(
        &schema_errors("SET millstream.timezone = 'UTC';\nSET millstream.timezone = 'UTC'"),
        "'millstream.timezone' is set twice",
        "schemas/c.sql:2:5",
        "",
    );
    let table = |text: &str| schema_errors(&format!("CREATE EXTERNAL TABLE t {text}"));
    expect_error(
        &table("STORED AS JSON LOCATION 'schemas/c.sql'"),
        "a table cannot be stored as 'json'",
        "schemas/c.sql:1:35",
        "formats: CSV, PARQUET",
    );
    expect_error(
        &table("STORED AS CSV"),
        "expected LOCATION '..', found the end of the statement",
        "schemas/c.sql:1:38",
        "",
    );
    expect_error(
        &table("STORED AS CSV LOCATION 's3://b/k'"),
        "the location of a table must be a local path",
        "schemas/c.sql:1:48",
        "",
    );
    expect_error(
        &table("STORED AS CSV LOCATION 'schemas/c.sql' OPTIONS (has_heder true)"),
        "a CSV table has no option 'format.has_heder'",
        "schemas/c.sql:1:73",
        "did you mean 'format.has_header'?",
    );
    expect_error(
        &table("(a INT AS 1) STORED AS CSV LOCATION 'schemas/c.sql'"),
        "column 'a' of a table cannot have AS, METADATA FROM or FORMAT",
        "schemas/c.sql:1:26",
        "write only name, type and NOT NULL",
    );
    expect_error(
        &table("STORED AS CSV LOCATION 'schemas/c.sql' OPTIONS (delimiter '||')"),
        "'||' is not a valid delimiter: use one ASCII character",
        "schemas/c.sql:1:83",
        "",
    );
    expect_error(
        &table("STORED AS CSV LOCATION 'schemas/c.sql' OPTIONS ('format.has_header' 'yes')"),
        "'format.has_header' must be true or false, not 'yes'",
        "schemas/c.sql:1:93",
        "",
    );
    expect_error(
        &table("(a INT) STORED AS PARQUET LOCATION 'schemas/c.sql'"),
        "the columns of a Parquet table are those of its file",
        "schemas/c.sql:1:26",
        "remove the column list",
    );
    expect_error(
        &schema_errors("CREATE TABLE t (a INT)"),
        "expected STREAM, MATERIALIZED VIEW or EXTERNAL TABLE, found TABLE",
        "schemas/c.sql:1:8",
        "use CREATE STREAM for Kafka topics and CREATE EXTERNAL TABLE for files",
    );
}
