//! Errors across statements and files: names, dependency cycles and topics.

use crate::catalog::tests::{Project, VALID_SCHEMA, expect_error, query_errors, schema_errors};

#[test]
fn invalid_names() {
    let q = |name: &str, text: &str| query_errors(&[(&format!("queries/c/{name}.sql"), text)]);
    expect_error(
        &q("Daily-Visits", "SELECT 1"),
        "the file name 'Daily-Visits' is not a valid query name",
        "queries/c/Daily-Visits.sql:1:1",
        "a name must start with a letter from a to z: rename the file, or write CREATE STREAM name AS SELECT",
    );
    expect_error(
        &q("q", "CREATE STREAM \"Q\" AS SELECT 1"),
        "'Q' is not a valid name",
        "queries/c/q.sql:1:15",
        "a name must start with a letter from a to z",
    );
    expect_error(
        &q("q", "CREATE STREAM a.b AS SELECT 1"),
        "expected an unqualified name, found .",
        "queries/c/q.sql:1:16",
        "",
    );
    expect_error(
        &q("dead_letters", "SELECT 1"),
        "the name 'dead_letters' is reserved",
        "queries/c/dead_letters.sql:1:1",
        "every customer has a topic with this name: choose another name",
    );
    expect_error(
        &q("s_late", "SELECT 1"),
        "the name 's_late' is already used",
        "queries/c/s_late.sql:1:1",
        "",
    );
    let twice = query_errors(&[
        ("queries/c/a.sql", "SELECT 1"),
        ("queries/c/b.sql", "CREATE STREAM a AS SELECT 2"),
    ]);
    expect_error(&twice, "the name 'a' is already used", "queries/c/b.sql:1:15", "");
    assert!(twice.contains("it is first declared at queries/c/a.sql:1:1"), "{twice}");
    expect_error(
        &q("s", "SELECT * FROM s"),
        "the name 's' is already used",
        "queries/c/s.sql:1:1",
        "",
    );
    expect_error(
        &q("a", "SELECT 1; SELECT 2"),
        "a file can contain only one bare query",
        "queries/c/a.sql:1:11",
        "both would be named after the file: write CREATE STREAM name AS",
    );
    expect_error(
        &q("a", "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'x'"),
        "a query file can contain only queries",
        "queries/c/a.sql:1:1",
        "move it to schemas/c.sql",
    );
    expect_error(
        &Project::new(&[("schemas/my customer.sql", VALID_SCHEMA)]).errors(),
        "'my customer' is not a valid customer name",
        "schemas/my customer.sql:1:1",
        "a name may contain only a-z, 0-9 and _: rename the file",
    );
    expect_error(
        &q("a", "SELECT * FROM c.s"),
        "there is no stream, table or query 'c.s'",
        "queries/c/a.sql:1:15",
        "write 's': a query names its customer's relations without a qualifier",
    );
}

#[test]
fn cycles_are_reported_with_their_queries() {
    let files = [
        ("queries/c/a.sql", "SELECT * FROM s JOIN b ON true"),
        ("queries/c/b.sql", "SELECT *\nFROM d"),
        ("queries/c/d.sql", "SELECT * FROM a"),
        ("queries/c/outside.sql", "SELECT * FROM d"),
    ];
    let errors = query_errors(&files);
    expect_error(
        &errors,
        "queries read each other in a cycle: a -> b -> d -> a",
        "queries/c/a.sql:1:22",
        "remove one of these reads",
    );
    let own = query_errors(&[("queries/c/a.sql", "SELECT * FROM a")]);
    expect_error(&own, "query 'a' reads itself", "queries/c/a.sql:1:15", "");
}

#[test]
fn topics_are_read_and_written_once() {
    let with = |topics: &str| VALID_SCHEMA.replace("topics = 't1'", topics);
    let project = |a: &str, b: &str| {
        Project::new(&[("schemas/a.sql", &with(a)), ("schemas/b.sql", &with(b))])
    };
    let lists = project("topics = '1,2'", "topics = '3,2'");
    let errors = lists.errors();
    expect_error(
        &errors,
        "topic '2' would be read by two customers, a and b",
        "schemas/b.sql:5:18",
        "a topic can belong to only one customer",
    );
    assert!(errors.contains("the other declaration is at schemas/a.sql:5:18"), "{errors}");
    expect_error(
        &lists.errors_of(&["a"]),
        "topic '2' would be read by two customers, a and b",
        "schemas/a.sql:5:18",
        "",
    );
    let mixed = project("topic_pattern = '10.*'", "topics = '1084'");
    expect_error(
        &mixed.errors(),
        "topic '1084' would be read by two customers, a and b",
        "schemas/b.sql:5:18",
        "",
    );
    let patterns = project("topic_pattern = '10[0-9]+'", "topic_pattern = '[0-9]{4}'");
    expect_error(
        &patterns.errors(),
        "topic '1000' would be read by two customers, a and b",
        "schemas/b.sql:5:25",
        "",
    );
    let twice = format!("{VALID_SCHEMA}{}", VALID_SCHEMA.replace("STREAM s", "STREAM t"));
    expect_error(
        &schema_errors(&twice),
        "topic 't1' would be read by two streams, s and t",
        "schemas/c.sql:10:18",
        "declare one stream; several queries can read it",
    );
    let wide = schema_errors(&with("topic_pattern = '.*'"));
    expect_error(
        &wide,
        "stream 's' would read 'millstream.c.log', which Millstream writes",
        "schemas/c.sql:5:25",
        "narrow the topics; to read the results of a query, use its name in FROM",
    );
    let results = Project::new(&[
        ("schemas/c.sql", &with("topics = 'millstream.c.q'")),
        ("queries/c/q.sql", "SELECT 1"),
    ]);
    expect_error(
        &results.errors(),
        "stream 's' would read 'millstream.c.q', which Millstream writes",
        "schemas/c.sql:5:18",
        "",
    );
    let same = query_errors(&[
        ("queries/c/a.sql", "CREATE STREAM a WITH (topic = 'out') AS SELECT 1"),
        ("queries/c/b.sql", "CREATE STREAM b WITH (topic = 'out') AS SELECT 1"),
    ]);
    expect_error(
        &same,
        "topic 'out' already contains the results of c.a",
        "queries/c/b.sql:1:15",
        "choose another topic",
    );
    let log = query_errors(&[(
        "queries/c/a.sql",
        "CREATE STREAM a WITH (topic = 'millstream.c.log') AS SELECT 1",
    )]);
    expect_error(
        &log,
        "topic 'millstream.c.log' already contains the progress log of c",
        "queries/c/a.sql:1:15",
        "",
    );
}
