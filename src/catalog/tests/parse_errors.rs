//! Statements that do not parse: place, message and hint.

use std::path::Path;

use crate::catalog::parse_query;
use crate::catalog::tests::{
    Project, VALID_SCHEMA, expect_error, query_errors, schema_errors_with,
};

#[test]
fn ad_hoc_queries_are_one_statement() {
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
        ("SELECT 'a", "unterminated string\n --> <command line>:1:8"),
        ("DROP TABLE x", "expected a statement, found DROP\n --> <command line>:1:1"),
        (
            "SELECT 1 FROM a b c",
            "expected the end of the statement, found c\n --> <command line>:1:19",
        ),
        (
            "WITH a AS (SELECT 1) INSERT INTO t SELECT 1",
            "INSERT, UPDATE, DELETE and MERGE are not allowed in a query\n --> <command line>:1:1",
        ),
    ] {
        let error = parse_query(file, text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}:\n{error}");
    }
}

#[test]
fn a_mistake_in_a_query_is_reported_at_its_own_word() {
    let window = "FROM TUMBLE(TABLE s, DESCRIPTOR(ts), INTERVAL '1' DAY)";
    for (query, message, place, hint) in [
        (
            "SELECT 1\nFROM s\nGRUOP BY id",
            "unexpected word 'GRUOP'",
            "3:1",
            "did you mean GROUP BY?",
        ),
        ("SELECT id FROM s\nWEHRE id = 1", "unexpected word 'WEHRE'", "2:1", "did you mean WHERE?"),
        ("SELECT id FORM s", "unexpected word 'FORM'", "1:11", "did you mean FROM?"),
        ("SELECT id FROM s JION t ON true", "unexpected word 'JION'", "1:18", "did you mean JOIN?"),
        ("SELCT 1", "expected a statement, found SELCT", "1:1", "did you mean SELECT?"),
        (
            "CREATE STRAEM q AS SELECT 1",
            "expected STREAM, MATERIALIZED VIEW or EXTERNAL TABLE, found STRAEM",
            "1:8",
            "did you mean STREAM?",
        ),
        (
            "SELECT 1 FROM TUMBEL(TABLE s, DESCRIPTOR(ts), INTERVAL '1' DAY)",
            "unknown window function 'TUMBEL'",
            "1:15",
            "did you mean TUMBLE?",
        ),
        (
            &format!("SELECT 1 {}", window.replace("DAY", "DYA")),
            "unknown time unit 'DYA'",
            "1:60",
            "did you mean DAY?",
        ),
        (
            "SELECT count(* FROM s",
            "expected ), found FROM",
            "1:16",
            "the parenthesis opened at line 1, column 13 is not closed",
        ),
        (
            "SELECT lower(id)) FROM s",
            "expected the end of the statement, found )",
            "1:17",
            "this ) has no matching (",
        ),
        (
            "SELECT id ts x FROM s",
            "expected the end of the statement, found x",
            "1:14",
            "is a comma or an operator missing before x?",
        ),
        (
            "SELECT CASE WHEN id = 1 THEN 2 AS c FROM s",
            "this CASE has no END",
            "1:8",
            "write END after the last branch",
        ),
        (
            "SELECT * FROM",
            "expected identifier, found the end of the statement",
            "1:14",
            "the statement is incomplete",
        ),
        (
            "WITH (emit = 'final') SELECT 1",
            "a bare query cannot have options",
            "1:1",
            "write CREATE STREAM name WITH (...) AS SELECT",
        ),
    ] {
        let errors = query_errors(&[("queries/c/q.sql", query)]);
        expect_error(&errors, message, &format!("queries/c/q.sql:{place}"), hint);
    }
}

#[test]
fn a_mistake_in_a_schema_is_reported_at_its_own_word() {
    let closing =
        "expected NOT NULL, AS, METADATA FROM, FORMAT, a comma or a closing parenthesis, found";
    for (from, to, message, place, hint) in [
        ("NOT NULL,", "NOT NULL", format!("{closing} ts"), "3:3", "is a comma missing before ts?"),
        (
            ") WITH",
            "WITH",
            format!("{closing} WITH"),
            "5:1",
            "the parenthesis opened at line 1, column 17 is not closed",
        ),
        (
            "WATERMARK",
            "WATERMRAK",
            "unexpected word 'WATERMRAK'".to_owned(),
            "4:3",
            "did you mean WATERMARK?",
        ),
        (") WITH (", ") (", "expected WITH, found (".to_owned(), "5:3", ""),
    ] {
        expect_error(
            &schema_errors_with(from, to),
            &message,
            &format!("schemas/c.sql:{place}"),
            hint,
        );
    }
}

#[test]
fn unterminated_text_is_reported_where_it_starts() {
    let text = "SELECT 'a'\nFROM s\nWHERE x = 'hall\nAND y = 'kitchen'";
    let closing = "write the closing '";
    expect_error(
        &query_errors(&[("queries/c/q.sql", text)]),
        "unterminated string",
        "queries/c/q.sql:3:11",
        closing,
    );
    expect_error(
        &query_errors(&[("queries/c/q.sql", "SELECT 1 /* x\n")]),
        "unterminated comment",
        "queries/c/q.sql:1:10",
        "write the closing */",
    );
    let name = query_errors(&[("queries/c/q.sql", "SELECT\n \"x FROM s")]);
    expect_error(&name, "unterminated quoted name", "queries/c/q.sql:2:2", "");
    // Two are missing, so that the quotes are even again.
    let even = query_errors(&[("queries/c/q.sql", "SELECT 'a\nFROM s WHERE x = 'b AND c y")]);
    assert!(even.contains("line 1, column 8"), "{even}");
}

#[test]
fn an_error_is_displayed_with_line_caret_and_hint() {
    assert_eq!(
        schema_errors_with("topics = 't1'", "topics = 't1',\n  formt = 'json'"),
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
            "queries/lost.sql:1:1 this query file is not in a customer's folder",
            "queries/d/q.sql:1:1 customer 'd' has no schema file",
            "schemas/c.sql:3:8 expected STREAM, MATERIALIZED VIEW or EXTERNAL TABLE, found STREM",
            "schemas/c.sql:4:23 expected identifier, found the end of the statement",
            "schemas/c.sql:5:1 a schema file cannot contain queries",
            "schemas/c.sql:1:5 unknown setting 'millstream.timezon'",
            "schemas/c.sql:2:21 unknown column type BIGNT",
            "schemas/c.sql:2:28 column 'id' is declared twice",
            "schemas/c.sql:2:64 watermark column 'tss' does not exist",
            "schemas/c.sql:2:90 'a b' is not a valid topic: use at most 249 letters, digits, '.', '_' and '-'",
            "schemas/c.sql:2:105 'now' is not a valid start",
            "queries/c/a.sql:1:1 expected a statement, found SELEC",
            "queries/c/c.sql:1:1 the query file contains no query",
            "queries/c/b.sql:1:63 there is no stream, table or query 'nowhere'",
        ]
    );
}

#[test]
fn an_invalid_declaration_is_reported_once() {
    let queries = [("queries/c/q.sql", "SELECT * FROM s"), ("queries/c/r.sql", "SELECT id FROM q")];
    let with = |schema: &str| {
        let mut files = vec![("schemas/c.sql", schema)];
        files.extend(queries);
        Project::new(&files).errors()
    };
    let option = with(&VALID_SCHEMA.replace("topics = 't1'", "topics = 't1', formt = 'json'"));
    expect_error(
        &option,
        "a stream has no option 'formt'",
        "schemas/c.sql:5:24",
        "did you mean 'format'?",
    );
    let semicolon = with(&format!("SET millstream.timezone = 'UTC'\n{VALID_SCHEMA}"));
    expect_error(
        &semicolon,
        "expected the end of the statement, found CREATE",
        "schemas/c.sql:2:1",
        "is a semicolon missing before CREATE?",
    );
    let nameless = with(&VALID_SCHEMA.replace("STREAM s (", "STREAM ("));
    expect_error(&nameless, "expected identifier, found (", "schemas/c.sql:1:15", "");
    let misspelt = with(&VALID_SCHEMA.replace("STREAM", "STRAEM"));
    let message = "expected STREAM, MATERIALIZED VIEW or EXTERNAL TABLE, found STRAEM";
    expect_error(&misspelt, message, "schemas/c.sql:1:8", "did you mean STREAM?");
    expect_error(
        &with("-- later\n"),
        "the schema file contains no statement",
        "schemas/c.sql:1:1",
        "",
    );
}
