//! Streamed equals batch: what comes out of absorb, reduce and close is what plain DataFusion
//! says about the same rows.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt32Array};
use arrow::compute::{cast, concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::util::pretty::pretty_format_batches;
use chrono_tz::Tz;
use datafusion::datasource::MemTable;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::sqlparser::ast::Statement;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::catalog::*;
use crate::error::Place;
use crate::planner::planning_session::PlanningSession;
use crate::time::{HOUR, MINUTE, Window};

const ZONE: Tz = chrono_tz::Europe::Helsinki;

fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(ZONE.name().into()))
}

fn place() -> Place {
    Place::new(&PathBuf::from("schemas/home.sql"), "", 1, 1, 1)
}

fn stream(columns: Vec<(&str, DataType, bool, Option<&str>)>) -> Arc<Stream> {
    let columns = (columns.into_iter())
        .map(|(name, data_type, nullable, computed)| StreamColumn {
            name: name.to_owned(),
            data_type,
            nullable,
            source: match computed {
                Some(sql) => {
                    let mut parser = Parser::new(&GenericDialect {}).try_with_sql(sql).unwrap();
                    ColumnSource::Computed(Box::new(parser.parse_expr().unwrap()))
                }
                None => ColumnSource::Payload { format: None },
            },
            place: place(),
        })
        .collect();
    Arc::new(Stream {
        name: "positions".to_owned(),
        columns,
        watermark: Watermark { column: "event_time".to_owned(), delay_us: 0 },
        topics: Topics::List(vec!["positions".to_owned()]),
        format: RecordFormat::Json,
        start: Start::Earliest,
        idle_timeout_us: 30_000_000,
        max_future_us: 300_000_000,
        max_drift_us: None,
        history: true,
        place: place(),
    })
}

fn positions() -> Arc<Stream> {
    stream(vec![
        ("person", DataType::Int64, true, None),
        ("room", DataType::Utf8, true, None),
        ("steps", DataType::Int64, true, None),
        ("speed", DataType::Float64, true, None),
        ("ok", DataType::Boolean, true, None),
        ("event_time", instant(), false, None),
    ])
}

fn query(name: &str, text: &str, kind: QueryKind) -> Arc<Query> {
    // The catalog drops this word from the tokens.
    let text = text.replace("(TABLE ", "(");
    let statement = Parser::parse_sql(&GenericDialect {}, &text).unwrap().remove(0);
    let Statement::Query(select) = statement else { panic!("not a query: {text}") };
    let file = PathBuf::from(format!("queries/home/{name}.sql"));
    Arc::new(Query {
        name: name.to_owned(),
        customer: "home".to_owned(),
        place: Place::new(&file, &text, 1, 1, 1),
        file,
        text,
        comment: String::new(),
        select,
        kind,
        topic: name.to_owned(),
        emit: Emit::Final,
        allowed_lateness_us: 0,
        ttl_us: None,
        start: crate::catalog::QueryStart::Latest,
        inputs: Vec::new(),
    })
}

fn customer(queries: Vec<Arc<Query>>) -> Customer {
    Customer {
        name: "home".to_owned(),
        zone: ZONE,
        settings: CustomerSettings::default(),
        streams: vec![positions()],
        tables: Vec::new(),
        queries,
    }
}

fn rooms() -> RecordBatch {
    let schema = Arc::new(Schema::new(vec![
        Field::new("room", DataType::Utf8, true),
        Field::new("zone_name", DataType::Utf8, true),
        Field::new("allowed", DataType::Int64, true),
    ]));
    let names = StringArray::from(vec!["kitchen", "hall", "bath"]);
    let zones = StringArray::from(vec![Some("wet"), Some("dry"), None]);
    let allowed = arrow::array::Int64Array::from(vec![3, 40, 1]);
    RecordBatch::try_new(schema, vec![Arc::new(names), Arc::new(zones), Arc::new(allowed)]).unwrap()
}

fn tables() -> Vec<(String, SchemaRef)> {
    vec![("rooms".to_owned(), rooms().schema())]
}

fn relations() -> Relations {
    Relations::from([("rooms".to_owned(), Arc::new(vec![rooms()]))])
}

fn plan_with(queries: Vec<Arc<Query>>) -> CustomerPlan {
    match plan_customer(&customer(queries), &tables()) {
        Ok(plan) => plan,
        Err(errors) => panic!("{}", errors.iter().map(|e| e.to_string()).collect::<String>()),
    }
}

fn plan_one(text: &str) -> Arc<QueryPlan> {
    plan_with(vec![query("q", text, QueryKind::Unstated)]).queries[0].clone()
}

fn refusal(text: &str) -> String {
    refusal_of(text, QueryKind::Unstated)
}

fn refusal_of(text: &str, kind: QueryKind) -> String {
    let planned = plan_customer(&customer(vec![query("q", text, kind)]), &tables());
    planned.expect_err(text).iter().map(|error| format!("{error}\n")).collect()
}

/// `rows` events within five hours, with nulls and ties in everything but time.
fn events(rows: usize, seed: u64) -> RecordBatch {
    let mut random = StdRng::seed_from_u64(seed);
    let mut columns: Vec<Vec<Option<String>>> = vec![Vec::new(); 6];
    for _ in 0..rows {
        let mut maybe = |value: String| (random.random_range(0..10) > 0).then_some(value);
        columns[0].push(maybe("p".to_owned()));
        columns[1].push(maybe("r".to_owned()));
        columns[2].push(maybe("s".to_owned()));
        columns[3].push(maybe("v".to_owned()));
        columns[4].push(maybe("b".to_owned()));
        for (column, choices) in [(0, 5), (2, 20), (3, 8)] {
            let value = random.random_range(0..choices).to_string();
            let slot = columns[column].last_mut().unwrap();
            *slot = slot.take().map(|_| value);
        }
        let room = ["kitchen", "hall", "bath", "attic"][random.random_range(0..4)];
        let ok = ["true", "false"][random.random_range(0..2)];
        for (column, value) in [(1, room), (4, ok)] {
            let slot = columns[column].last_mut().unwrap();
            *slot = slot.take().map(|_| value.to_owned());
        }
        columns[5].push(Some((random.random_range(0..5 * 60) * MINUTE).to_string()));
    }
    let schema = positions().schema();
    let arrays = columns.into_iter().zip(schema.fields()).map(|(values, field)| {
        let text: ArrayRef = Arc::new(StringArray::from(values));
        match field.data_type() {
            DataType::Timestamp(..) => {
                cast(&cast(&text, &DataType::Int64).unwrap(), field.data_type()).unwrap()
            }
            other => cast(&text, other).unwrap(),
        }
    });
    let arrays = arrays.collect();
    RecordBatch::try_new(schema, arrays).unwrap()
}

fn times(batch: &RecordBatch) -> Vec<i64> {
    let column = batch.column_by_name("event_time").unwrap();
    let array = column.as_any().downcast_ref::<arrow::array::TimestampMicrosecondArray>();
    array.unwrap().values().to_vec()
}

/// Rows by one-hour window.
fn by_hour(batch: &RecordBatch) -> BTreeMap<Window, RecordBatch> {
    let mut rows: BTreeMap<Window, Vec<u32>> = BTreeMap::new();
    for (row, time) in times(batch).into_iter().enumerate() {
        let start = time.div_euclid(HOUR) * HOUR;
        rows.entry(Window { start, end: start + HOUR }).or_default().push(row as u32);
    }
    let take = |rows: Vec<u32>| take_record_batch(batch, &UInt32Array::from(rows)).unwrap();
    rows.into_iter().map(|(window, rows)| (window, take(rows))).collect()
}

/// Random cuts of the rows, absorbed and reduced at random.
async fn keep(
    plan: &QueryPlan,
    rows: &RecordBatch,
    bucket: Option<Window>,
    random: &mut StdRng,
) -> Vec<Vec<RecordBatch>> {
    let rows = rows.project(plan.leaf_projection()).unwrap();
    let mut kept = vec![Vec::new(); plan.slots()];
    let mut from = 0;
    while from < rows.num_rows() {
        let length = random.random_range(1..=rows.num_rows() - from);
        let batch = rows.slice(from, length.min(7));
        from += batch.num_rows();
        let partials = plan.run_batch_plan(batch, bucket, &relations()).await.unwrap();
        for (slot, partial) in partials.into_iter().enumerate() {
            kept[slot].push(partial);
            if kept[slot].len() > 2 && random.random_bool(0.4) {
                let reduced = plan.reduce(slot, std::mem::take(&mut kept[slot])).await.unwrap();
                kept[slot].push(reduced);
            }
        }
    }
    plan.dedup_key_sets(kept).await.unwrap()
}

fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let text = pretty_format_batches(batches).unwrap().to_string();
    let mut lines: Vec<String> = text.lines().skip(3).map(str::to_owned).collect();
    lines.retain(|line| !line.starts_with('+'));
    lines.iter_mut().for_each(|line| *line = line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines
}

/// Plain DataFusion over a table `positions` of these rows.
async fn plain(sql: &str, rows: &RecordBatch) -> Vec<String> {
    let mut config = SessionConfig::new().with_target_partitions(1);
    config.options_mut().execution.time_zone = Some(ZONE.name().to_owned());
    let context = SessionContext::new_with_config(config);
    for (name, batch) in [("positions", rows.clone()), ("rooms", rooms())] {
        let table = MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap();
        context.register_table(name, Arc::new(table)).unwrap();
    }
    lines(&context.sql(sql).await.unwrap().collect().await.unwrap())
}

fn with_window(rows: &RecordBatch, window: Window) -> RecordBatch {
    let mut fields = rows.schema().fields().to_vec();
    let mut columns = rows.columns().to_vec();
    for column in exec::inputs::WindowColumn::ALL {
        fields.push(Arc::new(Field::new(column.name(), instant(), false)));
        columns.push(column.constant(window, &instant(), rows.num_rows()));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

const TUMBLE: &str = "TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR)";

/// The query (over `{input}`), streamed window by window, against the batch.
async fn check_windowed(sql: &str) -> Arc<QueryPlan> {
    let plan = plan_one(&sql.replace("{input}", TUMBLE));
    assert_eq!(plan.kind, PlanKind::Windowed);
    let mut random = StdRng::seed_from_u64(7);
    let mut rows_out = 0;
    for (window, rows) in by_hour(&events(400, 3)) {
        let kept = keep(&plan, &rows, Some(window), &mut random).await;
        let result = plan.run_final_plan(kept, Some(window), &relations()).await.unwrap();
        assert_eq!(result.schema(), plan.output);
        rows_out += result.num_rows();
        let oracle = plain(&sql.replace("{input}", "positions"), &with_window(&rows, window)).await;
        let (mut ours, mut theirs) = (lines(&[result]), oracle);
        if !sql.contains("ORDER BY 1") {
            ours.sort();
            theirs.sort();
        }
        assert_eq!(ours, theirs, "{sql}\n{}", plan.explain());
    }
    assert!(rows_out > 0, "{sql}");
    plan
}

#[tokio::test]
async fn every_aggregate_of_the_list_merges_as_it_counts_alone() {
    let calls = [
        "count(*)",
        "count(room)",
        "sum(steps)",
        "sum(speed)",
        "min(room)",
        "max(room)",
        "min(steps)",
        "max(speed)",
        "avg(steps)",
        "avg(speed)",
        "bool_and(ok)",
        "bool_or(ok)",
        "bit_and(steps)",
        "bit_or(steps)",
        "bit_xor(steps)",
        "first_value(room ORDER BY event_time, room)",
        "last_value(steps ORDER BY event_time, steps)",
        "last_value(room ORDER BY event_time DESC, room)",
        "round(stddev(speed), 6)",
        "round(stddev_pop(speed), 6)",
        "round(var(speed), 6)",
        "round(var_pop(speed), 6)",
        "round(covar_samp(speed, steps), 6)",
        "round(covar_pop(speed, steps), 6)",
        "round(corr(speed, steps), 6)",
        "approx_distinct(room)",
        "approx_distinct(steps)",
        "approx_percentile_cont(0.5) WITHIN GROUP (ORDER BY speed)",
        "approx_median(steps)",
        "sum(steps) FILTER (WHERE ok)",
        "count(*) FILTER (WHERE speed > 3)",
        "max(event_time)",
        "count(DISTINCT room)",
        "sum(DISTINCT steps) FILTER (WHERE ok)",
        "avg(DISTINCT speed)",
        "max(DISTINCT room)",
        "array_agg(DISTINCT steps ORDER BY steps)",
    ];
    let tested: Vec<&str> = distinct_rewrite::partial_aggregates().to_vec();
    for name in tested {
        assert!(calls.iter().any(|call| call.contains(name)), "no test of {name}");
    }
    for call in calls {
        for keys in ["window_start, window_end, person", "window_start"] {
            let sql = format!("SELECT {keys}, {call} AS value FROM {{input}} GROUP BY {keys}");
            let plan = check_windowed(&sql).await;
            assert!(plan.state_description().starts_with("partials"), "{call}");
        }
    }
    for call in [
        "median(steps)",
        "string_agg(room, ',' ORDER BY event_time, room)",
        "percentile_cont(0.5) WITHIN GROUP (ORDER BY speed)",
    ] {
        let sql =
            format!("SELECT window_start, {call} AS value FROM {{input}} GROUP BY window_start");
        let plan = check_windowed(&sql).await;
        assert!(plan.state_description().starts_with("rows"), "{call}");
    }
}

#[tokio::test]
async fn any_sql_is_allowed_inside_a_window() {
    for sql in [
        "SELECT window_start, person, count(*) AS n, count(DISTINCT room) AS rooms, \
           count(DISTINCT room) FILTER (WHERE ok) AS ok_rooms, sum(DISTINCT steps) AS steps \
         FROM {input} GROUP BY window_start, window_end, person HAVING count(*) > 4",
        "SELECT person, count(*) AS n, window_start FROM {input} WHERE ok \
         GROUP BY window_start, person ORDER BY 1 NULLS FIRST LIMIT 3",
        "SELECT count(DISTINCT person) AS n, count(DISTINCT room) AS m, window_end FROM {input} GROUP BY window_end",
        "SELECT window_start, person, n FROM (SELECT window_start, person, count(*) AS n FROM {input} \
           GROUP BY window_start, person) a WHERE n > (SELECT avg(m) FROM (SELECT window_start, \
           count(*) AS m FROM {input} GROUP BY window_start, person) b)",
        "SELECT * FROM (SELECT person, room, steps, event_time, row_number() OVER (PARTITION BY person \
           ORDER BY event_time, steps, room, ok, speed) AS n, ok, speed FROM {input}) a WHERE n <= 2",
        "WITH c AS (SELECT window_start, room, count(*) AS n FROM {input} GROUP BY window_start, room) \
         SELECT a.room, a.n, b.n AS m, a.window_start FROM c a JOIN c b ON a.n > b.n",
        "SELECT window_start, room, CASE WHEN room = 'hall' THEN 'h' ELSE upper(room) END AS u, \
           max(steps) - min(steps) AS spread FROM {input} GROUP BY window_start, room, 3",
        "SELECT window_start, r.zone_name, count(*) AS n, sum(r.allowed) AS a, count(DISTINCT p.person) AS persons \
         FROM {input} p JOIN rooms r ON p.room = r.room GROUP BY window_start, r.zone_name",
        "SELECT window_start, r.zone_name, p.room, count(*) AS n FROM {input} p LEFT JOIN rooms r \
         ON p.room = r.room GROUP BY window_start, r.zone_name, p.room",
        "SELECT window_start, count(*) AS n FROM {input} WHERE room NOT IN (SELECT room FROM rooms WHERE allowed < 5) \
         AND EXISTS (SELECT 1 FROM rooms r WHERE r.allowed > steps) GROUP BY window_start",
        "SELECT DISTINCT window_start, room FROM {input}",
        "SELECT window_start, room, steps FROM {input} ORDER BY steps DESC NULLS LAST, room, person LIMIT 5",
        "SELECT window_start, room, count(*) AS n FROM {input} GROUP BY window_start, room \
         UNION ALL SELECT window_start, 'all', count(*) FROM {input} GROUP BY window_start",
        "SELECT window_start, window_end, window_time, person, room FROM {input} WHERE person = 1",
        "SELECT window_start, person, last_value(room ORDER BY event_time, room) AS room, \
           first_value(steps ORDER BY event_time, steps) AS s FROM {input} GROUP BY window_start, person",
        "SELECT window_start, room, count(*) AS n FROM {input} GROUP BY GROUPING SETS ((window_start, room), (window_start))",
    ] {
        let plan = check_windowed(sql).await;
        println!(
            "{sql}\n{}key {:?} panes {} fp {}\n",
            plan.explain(),
            plan.key,
            plan.panes,
            plan.fingerprint
        );
    }
}

#[tokio::test]
async fn partials_merge_under_a_finite_memory_pool_too() {
    // There DataFusion takes another code path for PartialReduce.
    let sql = "SELECT person, count(*) AS n, sum(steps) AS s, avg(speed) AS v, min(room) AS a, \
        max(room) AS b, last_value(room ORDER BY event_time, room) AS l, bool_or(ok) AS o, \
        bit_xor(steps) AS x, round(stddev(speed), 6) AS d, round(corr(speed, steps), 6) AS c, \
        approx_distinct(room) AS e, approx_median(steps) AS m, count(DISTINCT room) AS r, \
        first_value(steps ORDER BY event_time, steps) AS f, round(covar_pop(speed, steps), 6) AS w \
        FROM positions GROUP BY person";
    let mut plan = Arc::into_inner(plan_one(sql)).unwrap();
    let pool = Arc::new(GreedyMemoryPool::new(64 << 20));
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().unwrap();
    let context = TaskContext::default().with_runtime(runtime);
    plan.context = Arc::new(context);
    plan.final_context = Arc::clone(&plan.context);
    let rows = events(500, 11);
    let kept = keep(&plan, &rows, None, &mut StdRng::seed_from_u64(5)).await;
    let result = plan.run_final_plan(kept, None, &relations()).await.unwrap();
    let (mut ours, mut theirs) = (lines(&[result]), plain(sql, &rows).await);
    ours.sort();
    theirs.sort();
    assert_eq!(ours, theirs);
}

#[tokio::test]
async fn views_add_partials_slot_for_ever() {
    for sql in [
        "SELECT person, last_value(room ORDER BY event_time, room) AS room, max(event_time) AS since \
         FROM positions GROUP BY person",
        "SELECT room, count(*) AS persons FROM (SELECT person, last_value(room ORDER BY event_time, room) \
         AS room FROM positions GROUP BY person) p GROUP BY room",
        "SELECT count(*) AS n FROM positions",
        "SELECT person, count(*) AS n FROM positions GROUP BY person ORDER BY n DESC, person LIMIT 2",
    ] {
        let plan = plan_one(sql);
        assert_eq!(plan.kind, PlanKind::View);
        let rows = events(300, 9);
        let kept = keep(&plan, &rows, None, &mut StdRng::seed_from_u64(1)).await;
        let result = plan.run_final_plan(kept, None, &relations()).await.unwrap();
        let (mut ours, mut theirs) = (lines(&[result]), plain(sql, &rows).await);
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs, "{sql}");
    }
    let plan = plan_one("SELECT person, count(*) AS n FROM positions GROUP BY person");
    assert_eq!(plan.key, [0]);
    let rows = plan.run_final_plan(vec![Vec::new()], None, &relations()).await.unwrap();
    assert_eq!(rows.num_rows(), 0);
}

#[tokio::test]
async fn views_on_views_are_derived_and_keep_their_keys() {
    let current = "SELECT person, last_value(room ORDER BY event_time) AS room FROM positions GROUP BY person";
    let occupancy = "SELECT room, count(*) AS persons FROM current_room GROUP BY room";
    let crowded = "SELECT o.room, o.persons, r.allowed FROM occupancy o JOIN rooms r ON o.room = r.room \
        WHERE o.persons > r.allowed";
    let all = plan_with(vec![
        query("current_room", current, QueryKind::View),
        query("occupancy", occupancy, QueryKind::View),
        query("crowded", crowded, QueryKind::View),
    ]);
    let [current, occupancy, crowded] = all.queries.as_slice() else { panic!() };
    assert_eq!(current.kind, PlanKind::View);
    assert_eq!((occupancy.kind, &occupancy.input), (PlanKind::Derived, &Input::Views));
    assert_eq!(occupancy.tables, ["current_room"]);
    assert_eq!(crowded.tables, ["occupancy", "rooms"]);
    assert_eq!((&current.key, &occupancy.key, &crowded.key), (&vec![0], &vec![0], &vec![0]));
    let rows = events(300, 2);
    let mut relations = relations();
    let kept = keep(current, &rows, None, &mut StdRng::seed_from_u64(1)).await;
    let content = current.run_final_plan(kept, None, &relations).await.unwrap();
    relations.insert("current_room".to_owned(), Arc::new(vec![content]));
    let content = occupancy.run_final_plan(Vec::new(), None, &relations).await.unwrap();
    let persons: i64 = (lines(std::slice::from_ref(&content)).iter())
        .map(|line| line.split('|').nth(2).unwrap().trim().parse::<i64>().unwrap())
        .sum();
    assert_eq!(persons, 6, "five persons and null");
    relations.insert("occupancy".to_owned(), Arc::new(vec![content]));
    crowded.run_final_plan(Vec::new(), None, &relations).await.unwrap();
    let twice = arrow::compute::concat_batches(&rooms().schema(), [&rooms(), &rooms()]).unwrap();
    relations.insert("rooms".to_owned(), Arc::new(vec![twice]));
    let refused = crowded.run_final_plan(Vec::new(), None, &relations).await;
    if let Err(error) = refused {
        assert!(error.to_string().contains("same key"), "{error}");
    }
}

#[tokio::test]
async fn date_bin_and_date_trunc_in_group_by_are_windows() {
    for (sql, spec) in [
        (
            "SELECT date_bin(INTERVAL '1 hour', event_time) AS hour, person, count(*) AS n FROM positions GROUP BY 1, person",
            "DateBin { stride: Fixed(3600000000), origin: 0 }",
        ),
        (
            "SELECT hour, count(DISTINCT room) AS n FROM (SELECT date_bin('1 hour', event_time, TIMESTAMP '2000-01-01T00:00:00Z') AS hour, room FROM positions) p GROUP BY hour",
            "DateBin { stride: Fixed(3600000000), origin: 946684800000000 }",
        ),
        (
            "SELECT date_trunc('hour', event_time) AS hour, median(steps) AS m FROM positions WHERE ok GROUP BY date_trunc('hour', event_time) HAVING count(*) > 1",
            "DateTrunc { unit: Hour }",
        ),
    ] {
        let plan = plan_one(sql);
        assert_eq!(plan.kind, PlanKind::Windowed, "{sql}");
        assert_eq!(format!("{:?}", plan.window.unwrap()), spec);
        assert_eq!(plan.key.first(), Some(&0), "{sql}");
        assert_eq!(plan.output.field(0).data_type(), &instant());
        let rows = events(400, 4);
        let mut ours = Vec::new();
        for (window, rows) in by_hour(&rows) {
            let kept = keep(&plan, &rows, Some(window), &mut StdRng::seed_from_u64(1)).await;
            ours.extend(lines(&[plan
                .run_final_plan(kept, Some(window), &relations())
                .await
                .unwrap()]));
        }
        let mut theirs = plain(sql, &rows).await;
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs, "{sql}");
    }
}

#[tokio::test]
async fn stateless_queries_answer_batch_by_batch() {
    for sql in [
        "SELECT person, upper(room) AS room, event_time FROM positions WHERE steps > 10",
        "SELECT p.event_time, p.person, r.zone_name FROM positions p JOIN rooms r ON p.room = r.room AND r.allowed < p.steps",
        "SELECT p.person, r.zone_name, p.steps FROM rooms r RIGHT JOIN positions p ON p.room = r.room",
        "SELECT person, steps FROM positions WHERE room IN (SELECT room FROM rooms WHERE allowed > 2)",
        "SELECT person, 'a' AS what FROM positions WHERE ok UNION ALL SELECT steps, 'b' FROM positions",
        "SELECT person, (SELECT max(allowed) FROM rooms) AS most FROM positions",
    ] {
        let plan = plan_one(sql);
        assert_eq!(plan.kind, PlanKind::Stateless, "{sql}");
        let rows = events(200, 5);
        let projected = rows.project(plan.leaf_projection()).unwrap();
        let (one, two) = (projected.slice(0, 77), projected.slice(77, 123));
        let one = plan.run_stateless(one, &relations()).await.unwrap();
        let two = plan.run_stateless(two, &relations()).await.unwrap();
        let mut ours = lines(&[concat_batches(&plan.output, [&one, &two]).unwrap()]);
        let mut theirs = plain(sql, &rows).await;
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs, "{sql}");
    }
    let plan = plan_one("SELECT p.person FROM positions p JOIN rooms r ON p.room = r.room");
    let rows = events(50, 5).project(plan.leaf_projection()).unwrap();
    assert!(plan.run_stateless(rows.clone(), &relations()).await.unwrap().num_rows() > 0);
    let emptied = Relations::from([("rooms".to_owned(), Arc::new(vec![rooms().slice(0, 0)]))]);
    assert_eq!(plan.run_stateless(rows, &emptied).await.unwrap().num_rows(), 0, "a changed table");
    let plan = plan_one("SELECT person, event_time AS at FROM positions");
    assert_eq!((plan.event_time, plan.leaf_projection()), (Some(1), [0, 5].as_slice()));
}

#[tokio::test]
async fn a_stream_keeps_the_order_of_its_rows_in_a_join_with_a_table() {
    let plan =
        plan_one("SELECT p.steps, p.event_time FROM positions p JOIN rooms r ON p.room = r.room");
    let rows = events(200, 5);
    let out = plan.run_stateless(rows.project(plan.leaf_projection()).unwrap(), &relations()).await;
    let wanted: Vec<i64> = (times(&rows).into_iter().zip(rooms_of(&rows)))
        .filter(|(_, room)| room.as_deref().is_some_and(|room| room != "attic"))
        .map(|(time, _)| time)
        .collect();
    assert_eq!(times(&out.unwrap()), wanted);
}

fn rooms_of(rows: &RecordBatch) -> Vec<Option<String>> {
    let column = rows.column_by_name("room").unwrap();
    let column = column.as_any().downcast_ref::<StringArray>().unwrap();
    column.iter().map(|room| room.map(str::to_owned)).collect()
}

#[tokio::test]
async fn hops_use_panes_unless_an_expression_looks_at_the_window() {
    let hop = |select: &str, keys: &str| {
        plan_one(&format!(
            "SELECT {select} FROM HOP(TABLE positions, DESCRIPTOR(event_time), INTERVAL '30' MINUTE, \
             INTERVAL '1' HOUR) GROUP BY {keys}"
        ))
    };
    let plan = hop(
        "window_start, window_end, person, count(*) AS n, count(DISTINCT room) AS r",
        "window_start, window_end, person",
    );
    assert!(plan.panes);
    assert_eq!(plan.key, [0, 2]);
    assert!(!hop("window_start, median(steps) AS n", "window_start").panes);
    assert!(
        !hop(
            "window_start, max(event_time - window_start) > INTERVAL '1 hour' AS n",
            "window_start"
        )
        .panes
    );
    let plan = hop("window_start, window_end, count(*) AS n", "window_start, window_end");
    assert!(plan.panes);
    let window = Window { start: 0, end: HOUR };
    let (mut kept, rows) = (Vec::new(), events(300, 6));
    let mut expected = 0;
    for pane in [Window { start: 0, end: HOUR / 2 }, Window { start: HOUR / 2, end: HOUR }] {
        let inside: Vec<u32> = (times(&rows).iter().enumerate())
            .filter(|(_, time)| (pane.start..pane.end).contains(*time))
            .map(|(row, _)| row as u32)
            .collect();
        expected += inside.len();
        let rows = take_record_batch(&rows, &UInt32Array::from(inside)).unwrap();
        let partials = keep(&plan, &rows, Some(pane), &mut StdRng::seed_from_u64(1)).await;
        for batch in &partials[0] {
            kept.push(plan.set_window(0, batch, window).unwrap());
        }
    }
    let kept = plan.dedup_key_sets(vec![kept]).await.unwrap();
    let result = plan.run_final_plan(kept, Some(window), &relations()).await.unwrap();
    assert_eq!(
        lines(&[result]),
        [format!("| 1970-01-01T02:00:00+02:00 | 1970-01-01T03:00:00+02:00 | {expected} |")]
    );
}

/// Plans that ask a set for no more than the number of its keys by group say the same, in the same
/// order, of these numbers and of the keys.
#[tokio::test]
async fn counts_by_group_close_a_window_as_its_keys_do() {
    let window = Window { start: 0, end: HOUR };
    for (select, keys, counted) in [
        (
            "window_start, room, count(*) AS n, count(DISTINCT person) AS p",
            "room",
            &[false, true][..],
        ),
        ("room, count(DISTINCT person) AS p, window_end", "room, window_end", &[true]),
        (
            "person, room, sum(speed) AS s, count(DISTINCT steps) AS d, count(DISTINCT steps + 1) AS e",
            "room, person",
            &[false, true, true],
        ),
        ("room, count(DISTINCT person) AS p, count(DISTINCT steps) AS s", "room", &[true, true]),
        ("room, count(DISTINCT person) AS p, sum(DISTINCT person) AS s", "room", &[false]),
        ("room, count(DISTINCT person) FILTER (WHERE ok) AS p", "room", &[false]),
        ("sum(DISTINCT steps) AS s, count(*) AS n, room", "room", &[false, false]),
        ("window_start, count(*) AS n, count(DISTINCT person) AS p", "window_end", &[false, false]),
        ("count(DISTINCT window_end) AS p", "window_end", &[false]),
    ] {
        let plan = plan_one(&format!(
            "SELECT {select} FROM HOP(TABLE positions, DESCRIPTOR(event_time), INTERVAL '30' MINUTE, \
             INTERVAL '1' HOUR) GROUP BY window_start, {keys}"
        ));
        assert!(plan.panes);
        let uses_counts = (0..plan.slots()).map(|slot| plan.uses_counts(slot)).collect::<Vec<_>>();
        assert_eq!(uses_counts, counted, "{select}");
        let kept = keep(&plan, &events(400, 6), Some(window), &mut StdRng::seed_from_u64(2)).await;
        let mut content = WindowState::from(kept.clone());
        for slot in (0..plan.slots()).filter(|slot| plan.uses_counts(*slot)) {
            let mut in_panes = plan.new_sliding_key_set(slot).unwrap();
            let mut in_window = plan.new_key_set(slot).unwrap();
            for batch in std::mem::take(&mut content.batches[slot]) {
                in_panes.add_to_back(&batch).unwrap();
                in_window.insert(&batch).unwrap();
            }
            let counts = in_panes.counts(0, None).unwrap();
            assert!(counts.is_some());
            assert_eq!(in_window.take_counts().unwrap(), counts);
            content.counts.resize(plan.slots(), None);
            content.counts[slot] = counts;
        }
        let of_keys = plan.run_final_plan(kept, Some(window), &relations()).await.unwrap();
        let of_counts = plan.run_final_plan(content, Some(window), &relations()).await.unwrap();
        assert!(of_keys.num_rows() > 0);
        assert_eq!(of_counts, of_keys, "{select}");
    }
}

#[tokio::test]
async fn queries_read_the_results_of_other_queries() {
    let hourly = format!(
        "SELECT window_start, window_time, person, count(*) AS n FROM {TUMBLE} GROUP BY 1, window_end, 2, 3"
    );
    let daily = "SELECT window_start, max(n) AS most FROM TUMBLE(TABLE hourly, DESCRIPTOR(window_time), INTERVAL '1' DAY) GROUP BY window_start";
    let all = plan_with(vec![
        query("hourly", &hourly, QueryKind::Unstated),
        query("daily", daily, QueryKind::Stream),
    ]);
    assert_eq!(all.queries[0].event_time, Some(1));
    assert_eq!(all.queries[1].input, Input::Query("hourly".to_owned()));
    // The input has columns of the same names; the window function's come last, as in Flink.
    assert_eq!(all.queries[1].kind, PlanKind::Windowed);
}

#[tokio::test]
async fn now_is_the_time_of_the_epoch() {
    let all = plan_with(vec![query(
        "q",
        "SELECT person, now() AS at, current_date AS today, current_time AS t, localtimestamp AS l, \
         current_timestamp AS c FROM positions WHERE event_time < now()",
        QueryKind::Unstated,
    )]);
    let plan = &all.queries[0];
    let rows = events(50, 5).project(plan.leaf_projection()).unwrap();
    all.now.set(0);
    assert_eq!(plan.run_stateless(rows.clone(), &relations()).await.unwrap().num_rows(), 0);
    all.now.set(23 * HOUR);
    let result = plan.run_stateless(rows, &relations()).await.unwrap();
    assert_eq!(result.num_rows(), 50);
    assert!(lines(&[result])[0].ends_with(
        "| 1970-01-02T01:00:00+02:00 | 1970-01-02 | 01:00:00 | 1970-01-02T01:00:00 | 1970-01-02T01:00:00+02:00 |"
    ));
}

#[test]
fn what_cannot_be_streamed_is_refused_with_a_place_and_a_hint() {
    let cases: &[(&str, &[&str])] = &[
        (
            "SELECT nope FROM positions",
            &["q.sql:1:8", "no column 'nope'", "hint: available: person"],
        ),
        ("SELECT person\nFROM nowhere", &["q.sql:2:6", "'nowhere'", "available: positions, rooms"]),
        ("SELECT person + room FROM positions WHERE steps = nofunc(1)", &["q.sql:1:51", "nofunc"]),
        (
            "SELECT person FROM SESSION(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR)",
            &["SESSION windows are not supported yet", "q.sql:1:20"],
        ),
        (
            "SELECT person FROM CUMULATE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR, INTERVAL '1' DAY)",
            &["CUMULATE"],
        ),
        (
            "SELECT person FROM TUMBLE(TABLE positions, DESCRIPTOR(person), INTERVAL '1' HOUR)",
            &["DESCRIPTOR(event_time)"],
        ),
        (
            "SELECT person FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), 5)",
            &["must be an INTERVAL"],
        ),
        (
            "SELECT person FROM TUMBLE(TABLE rooms, DESCRIPTOR(event_time), INTERVAL '1' HOUR)",
            &["'rooms' is not a stream"],
        ),
        (
            "SELECT a.person FROM positions a JOIN positions b ON a.person = b.person",
            &["joins of streams"],
        ),
        (
            "SELECT person, row_number() OVER (ORDER BY event_time) FROM positions",
            &["OVER needs a window"],
        ),
        ("SELECT person FROM positions ORDER BY event_time", &["ORDER BY over a stream"]),
        ("SELECT person FROM positions LIMIT 3", &["LIMIT over a stream"]),
        ("SELECT DISTINCT person FROM positions", &["DISTINCT over a stream"]),
        (
            "SELECT person, median(steps) FROM positions GROUP BY person",
            &["a view cannot store all rows", "median"],
        ),
        ("SELECT uuid() FROM positions", &["uuid()", "q.sql:1:8"]),
        ("SELECT max(random()) FROM positions", &["random()"]),
        (
            "SELECT person, count(*) FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR)\nGROUP BY person",
            &["needs the window in its GROUP BY", "q.sql:2:10", "add window_start, window_end"],
        ),
        (
            "SELECT DISTINCT person FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR)",
            &["DISTINCT needs the window"],
        ),
        ("SELECT event_time - event_time AS d FROM positions", &["'d' has"]),
        ("SELECT person FROM positions p WHERE steps > (SELECT avg(steps) FROM positions)", &[""]),
    ];
    for (sql, expected) in cases {
        let text = refusal(sql);
        for expected in *expected {
            assert!(text.contains(expected), "{sql}\n{text}\nlacks: {expected}");
        }
    }
    let text =
        refusal_of("SELECT person, count(*) FROM positions GROUP BY person", QueryKind::Stream);
    assert!(text.contains("needs a window"), "{text}");
    let text = refusal_of("SELECT person FROM positions", QueryKind::View);
    assert!(text.contains("needs a GROUP BY"), "{text}");
}

#[test]
fn mistakes_are_told_in_sqls_words_at_their_own_word() {
    let hour = "FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR) GROUP BY window_start";
    for (sql, place, message, hint) in [
        (
            "SELECT person,\n rom FROM positions",
            "2:2",
            "there is no column 'rom'",
            "did you mean 'room'?",
        ),
        (
            "SELECT q.room FROM positions p",
            "1:8",
            "there is no column 'q.room'",
            "did you mean 'p.room'?",
        ),
        (
            "SELECT lower(room) AS r FROM positions WHERE r = 'x'",
            "1:46",
            "there is no column 'r'",
            "is not known in WHERE",
        ),
        (
            "SELECT room FROM positions WHERE room = \"hall\"",
            "1:41",
            "there is no column 'hall'",
            "single quotes: 'hall'",
        ),
        (
            "SELECT p.room, r.zone FROM positions p JOIN rooms r ON p.room = r.room",
            "1:16",
            "no column 'r.zone'",
            "available: room, zone_name, allowed\n",
        ),
        ("SELECT 'nope' AS x /* nope */, nope FROM positions", "1:32", "no column 'nope'", ""),
        (
            &format!("SELECT window_start, cuont(*) AS n {hour}"),
            "1:22",
            "there is no function 'cuont'",
            "did you mean 'count'?",
        ),
        (
            &format!("SELECT window_start, sum(room) AS n {hour}"),
            "1:22",
            "sum() does not take VARCHAR\n",
            "CAST the argument",
        ),
        (
            &format!("SELECT sum(person) AS m, sum(room) AS n {hour}"),
            "1:26",
            "sum() does not take VARCHAR\n",
            "CAST the argument",
        ),
        (
            "SELECT lag(room) AS x FROM positions",
            "1:8",
            "lag() needs an OVER clause",
            "OVER (PARTITION BY",
        ),
        (
            "SELECT replace(room) AS x FROM positions",
            "1:8",
            "replace() does not take 1 argument\n",
            "",
        ),
        (
            "SELECT substr(room) AS x FROM positions",
            "1:8",
            "substr() does not take 1 argument\n",
            "substr(text, start)",
        ),
        (
            "SELECT 1 AS x FROM TUMBEL(positions, 1)",
            "1:20",
            "there is no table function 'tumbel'",
            "did you mean TUMBLE?",
        ),
        (
            "SELECT tumble(event_time) AS x FROM positions",
            "1:8",
            "TUMBLE is allowed in FROM only",
            "FROM TUMBLE(TABLE t",
        ),
        (
            "SELECT person FROM positions WHERE person + 1",
            "1:36",
            "a condition is true or false, and person + 1 is BIGINT",
            "",
        ),
        (
            "SELECT person FROM positions WHERE person = 'abc'",
            "1:45",
            "cannot parse 'abc' as BIGINT",
            "try_cast",
        ),
        ("SELECT room + 1 AS x FROM positions", "1:8", "there is no VARCHAR + BIGINT", "CAST"),
        (
            "SELECT event_time - 5 AS x FROM positions",
            "1:8",
            "there is no TIMESTAMP - BIGINT",
            "INTERVAL",
        ),
        (
            "SELECT person FROM positions WHERE person LIKE '1%'",
            "1:43",
            "LIKE does not compare BIGINT and VARCHAR",
            "CAST",
        ),
        (
            "SELECT CAST(room AS INTT) AS x FROM positions",
            "1:21",
            "there is no type 'INTT'",
            "did you mean 'INT'?",
        ),
        (
            "SELECT event_time + INTERVAL '1 dya' AS x FROM positions",
            "1:30",
            "cannot parse '1 dya' as INTERVAL",
            "INTERVAL '1' DAY",
        ),
        (
            &format!("SELECT window_start, room, count(*) AS n {hour}"),
            "1:22",
            "the column 'room' is neither in GROUP BY nor in an aggregate",
            "max(room)",
        ),
        (
            &format!("SELECT window_start, sum(count(*)) AS n {hour}"),
            "1:26",
            "the aggregate count(*) is nested in another aggregate",
            "sub-query",
        ),
        (
            "SELECT person, room AS person FROM positions",
            "1:24",
            "two columns of the result have the name 'person'",
            "AS other_name",
        ),
        (
            "SELECT person, person FROM positions",
            "1:16",
            "two columns of the result have the name 'person'",
            "AS other_name",
        ),
        (
            "SELECT person FROM positions WHERE event_time BETWEEN 1 AND 2",
            "1:47",
            "BETWEEN does not compare TIMESTAMP and BIGINT",
            "",
        ),
        (
            "SELECT person > 1 AS a FROM positions WHERE event_time > 5",
            "1:56",
            "there is no TIMESTAMP > BIGINT",
            "a time",
        ),
        (
            "SELECT person FROM positions WHERE room AND person",
            "1:41",
            "there is no VARCHAR AND BIGINT",
            "x = 1 AND y = 2",
        ),
        (
            "SELECT count(*) AS n FROM positions GROUP BY count(*)",
            "1:37",
            "an aggregate is not allowed here",
            "HAVING",
        ),
        (
            "SELECT 1 AS x FROM TUMBLE(TABLE positions, DESCRIPTR(event_time), INTERVAL '1' DAY)",
            "1:38",
            "DESCRIPTOR(column)",
            "",
        ),
        (
            "SELECT person FROM positions ORDER BY person",
            "1:30",
            "ORDER BY over a stream needs a window",
            "",
        ),
    ] {
        let text = refusal(sql);
        for expected in [&format!("q.sql:{place}\n"), message, hint] {
            assert!(text.contains(expected), "{sql}\n{text}\nlacks: {expected}");
        }
        for raw in ["internal", "DataFusion", "Int64", "Utf8", "Error during", "Span("] {
            assert!(!text.contains(raw), "{sql}\n{text}\nhas: {raw}");
        }
    }
}

#[test]
fn a_hint_lists_only_what_there_is() {
    let mut nobody = customer(vec![query("q", "SELECT 1 AS x FROM nowhere", QueryKind::Unstated)]);
    nobody.streams.clear();
    let errors = plan_customer(&nobody, &[]).unwrap_err();
    assert_eq!(errors.iter().map(|error| error.hint.clone()).collect::<Vec<_>>(), [None]);
}

#[test]
fn a_table_without_columns_is_told_once() {
    let sql = "SELECT r.x FROM positions p JOIN blank r ON p.room = r.room";
    let mut reader = Arc::into_inner(query("q", sql, QueryKind::Unstated)).unwrap();
    reader.inputs = vec!["positions".to_owned(), "blank".to_owned()];
    let mut owner = customer(vec![Arc::new(reader)]);
    owner.tables.push(Arc::new(Table {
        name: "blank".to_owned(),
        format: TableFormat::Csv,
        location: "data/blank.csv".into(),
        columns: None,
        options: Vec::new(),
        place: place(),
        location_place: place(),
    }));
    let empty = ("blank".to_owned(), Arc::new(Schema::empty()));
    let errors = plan_customer(&owner, &[empty]).unwrap_err();
    let messages: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
    assert_eq!(messages, ["the file of the table 'blank' has no columns"]);
}

#[test]
fn a_query_over_a_failed_declaration_is_left_out() {
    let mut reader =
        Arc::into_inner(query("q", "SELECT x FROM broken", QueryKind::Unstated)).unwrap();
    reader.inputs = vec!["broken".to_owned()];
    let plan = plan_customer(&customer(vec![Arc::new(reader)]), &tables()).unwrap();
    assert!(plan.queries.is_empty());
}

#[test]
fn whether_results_tell_their_window() {
    let windows = "FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR) GROUP BY window_start, window_end, room";
    assert!(!plan_one(&format!("SELECT room, count(*) AS n {windows}")).has_window_column);
    assert!(
        plan_one(&format!("SELECT window_end, room, count(*) AS n {windows}")).has_window_column
    );
}

#[tokio::test]
async fn a_trial_finds_what_planning_does_not() {
    let bad = plan_one(
        "SELECT date_trunc('dya', event_time) AS d, count(*) AS n FROM positions GROUP BY 1",
    );
    let text = bad.dry_run().await.unwrap_err().to_string();
    assert!(text.contains("'dya'") && text.contains("q.sql:1:19"), "{text}");
    for good in [
        "SELECT 100 / count(*) AS n FROM positions",
        "SELECT p.person, r.allowed FROM positions p JOIN rooms r ON p.room = r.room WHERE 10 / steps > 1",
        "SELECT window_start, median(steps) AS n FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR) GROUP BY window_start",
        "SELECT date_bin(INTERVAL '15 minutes', event_time) AS quarter, count(DISTINCT room) AS n FROM positions GROUP BY 1",
    ] {
        plan_one(good).dry_run().await.unwrap();
    }
}

#[test]
fn all_errors_of_all_queries_are_told_once() {
    let mut reader = Arc::into_inner(query("c", "SELECT n FROM a", QueryKind::Unstated)).unwrap();
    reader.inputs = vec!["a".to_owned()];
    let queries = vec![
        query("a", "SELECT nope AS n FROM positions", QueryKind::Unstated),
        query("b", "SELECT x FROM nowhere", QueryKind::Unstated),
        Arc::new(reader),
    ];
    let errors = plan_customer(&customer(queries), &tables()).unwrap_err();
    assert_eq!(errors.len(), 2);
}

#[test]
fn some_queries_take_rows_in_any_order() {
    for (columns, is_insensitive) in [
        ("count(*) AS n, count(DISTINCT room) AS r, max(steps) AS m, sum(steps) AS s", true),
        ("count(*) FILTER (WHERE ok) AS n", true),
        ("sum(speed) AS s", false),
        ("avg(steps) AS a", false),
        ("first_value(room ORDER BY steps) AS f", false),
        ("median(steps) AS m", false),
        ("array_agg(room) AS a", false),
    ] {
        let sql = format!(
            "SELECT window_start, {columns} FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR) \
             GROUP BY window_start"
        );
        assert_eq!(plan_one(&sql).is_order_insensitive(), is_insensitive, "{columns}");
    }
    assert!(!plan_one("SELECT room, steps FROM positions WHERE ok").is_order_insensitive());
}

#[test]
fn plans_do_not_depend_on_what_was_planned_before() {
    let sql = "SELECT window_start, count(*) AS n FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR) \
        WHERE steps > (SELECT avg(allowed) FROM rooms) GROUP BY window_start";
    let alone = plan_one(sql);
    let after =
        plan_with(vec![query("x", sql, QueryKind::Unstated), query("q", sql, QueryKind::Unstated)]);
    assert_eq!(alone.fingerprint, after.queries[1].fingerprint);
    assert_ne!(alone.fingerprint, plan_one(&sql.replace("'1' HOUR", "'2' HOUR")).fingerprint);
}

#[test]
fn computed_columns_read_the_columns_before_them() {
    let declared = stream(vec![
        ("day", DataType::Utf8, false, None),
        (
            "event_time",
            instant(),
            false,
            Some("to_timestamp(day || ' ' || clock, '%Y%m%d %H:%M:%S')"),
        ),
        ("clock", DataType::Utf8, false, None),
        ("doubled", DataType::Int32, true, Some("length(clock) * 2")),
        ("again", DataType::Int64, true, Some("doubled + 1")),
    ]);
    let session = PlanningSession::new(ZONE, &EpochNow::default()).unwrap();
    let plan = StreamPlan::new(&session, &declared).unwrap();
    let text = |values: [&str; 2]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let base = |clocks| {
        let columns = vec![text(["20190715", "20190101"]), text(clocks)];
        RecordBatch::try_new(plan.base_schema(), columns).unwrap()
    };
    let rows = plan.compute(&base(["10:00:00", "07:41:38"])).unwrap();
    assert_eq!(rows.schema(), plan.schema);
    assert_eq!(
        lines(&[rows]),
        [
            "| 20190715 | 2019-07-15T10:00:00+03:00 | 10:00:00 | 16 | 17 |",
            "| 20190101 | 2019-01-01T07:41:38+02:00 | 07:41:38 | 16 | 17 |",
        ]
    );
    let error = plan.compute(&base(["10:00:00", "soon"])).unwrap_err();
    assert!(
        error.to_string().contains("cannot parse '20190101 soon' as a timestamp of the form"),
        "{error}"
    );
    let wrong = stream(vec![
        ("event_time", instant(), false, None),
        ("a", DataType::Int64, true, Some("nope + 1")),
        ("b", DataType::Int64, true, Some("uuid()")),
        ("c", DataType::Int64, true, Some("to_timestamp('x', 'no format')")),
    ]);
    let errors = StreamPlan::new(&session, &wrong).unwrap_err();
    assert_eq!(errors.len(), 3);
}

#[test]
fn a_time_in_pieces_is_read_as_the_whole_of_it_would_be() {
    let declared = stream(vec![
        ("day", DataType::Utf8, true, None),
        ("hour", DataType::Int64, true, None),
        (
            "event_time",
            instant(),
            true,
            Some("to_timestamp('d' || day || ' ' || hour || ':30', '%F', 'd%Y%m%d %H:%M')"),
        ),
        ("whole", DataType::Utf8, true, Some("'d' || day || ' ' || hour || ':30'")),
        ("again", instant(), true, Some("to_timestamp(whole, '%F', 'd%Y%m%d %H:%M')")),
    ]);
    let session = PlanningSession::new(ZONE, &EpochNow::default()).unwrap();
    let plan = StreamPlan::new(&session, &declared).unwrap();
    let days = [Some("20190715"), Some("20190715"), None, Some("20190715"), Some("20190101")];
    let hours = [Some(7), Some(7), Some(7), Some(8), None];
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(days.to_vec())),
        Arc::new(arrow::array::Int64Array::from(hours.to_vec())),
    ];
    let base = RecordBatch::try_new(plan.base_schema(), columns).unwrap();
    let rows = plan.compute(&base).unwrap();
    assert_eq!(rows.column(2), rows.column(4));
    assert_eq!(rows.column(2).null_count(), 2);
}

#[test]
fn another_format_is_another_plan() {
    let planned = |format: &str| {
        let sql = format!("SELECT to_timestamp(room || ' 1', '{format}') AS t FROM positions");
        plan_one(&sql).fingerprint.clone()
    };
    assert_ne!(planned("%Y%m%d %H"), planned("%Y%d%m %H"));
}

/// Not a test of anything: microseconds per call, `--ignored --nocapture` shows them.
#[tokio::test]
#[ignore = "measures"]
async fn cost_of_a_call() {
    let daily = format!(
        "SELECT window_start, window_end, person, count(*) AS events, count(DISTINCT room) AS rooms FROM {TUMBLE} GROUP BY window_start, window_end, person"
    );
    let simple = format!(
        "SELECT window_start, person, count(*) AS events FROM {TUMBLE} GROUP BY window_start, window_end, person"
    );
    let joined = format!(
        "SELECT window_start, r.zone_name, count(*) AS events FROM {TUMBLE} p JOIN rooms r ON p.room = r.room GROUP BY window_start, r.zone_name"
    );
    for (name, sql) in [("simple", simple), ("distinct", daily), ("joined", joined)] {
        let plan = plan_one(&sql);
        for rows in [10, 1_000, 20_000] {
            let rows = events(rows, 1).project(plan.leaf_projection()).unwrap();
            let window = Some(Window { start: 0, end: HOUR });
            let (runs, start) = (2_000, std::time::Instant::now());
            for _ in 0..runs {
                plan.run_batch_plan(rows.clone(), window, &relations()).await.unwrap();
            }
            let micros = start.elapsed().as_micros() as f64 / f64::from(runs);
            println!("{name}: absorb of {} rows takes {micros:.1} us", rows.num_rows());
        }
        let rows = events(1_000, 1).project(plan.leaf_projection()).unwrap();
        let window = Some(Window { start: 0, end: HOUR });
        let mut kept = Vec::new();
        for _ in 0..8 {
            kept.push(plan.run_batch_plan(rows.clone(), window, &relations()).await.unwrap());
        }
        let slot = |number: usize| kept.iter().map(|k| k[number].clone()).collect::<Vec<_>>();
        let (runs, start) = (1_000, std::time::Instant::now());
        for _ in 0..runs {
            plan.reduce(0, slot(0)).await.unwrap();
        }
        println!(
            "{name}: reduce of 8 takes {:.1} us",
            start.elapsed().as_micros() as f64 / f64::from(runs)
        );
        let start = std::time::Instant::now();
        for _ in 0..runs {
            let kept = plan.dedup_key_sets((0..plan.slots()).map(slot).collect()).await.unwrap();
            plan.run_final_plan(kept, window, &relations()).await.unwrap();
        }
        println!(
            "{name}: close takes {:.1} us",
            start.elapsed().as_micros() as f64 / f64::from(runs)
        );
    }
}

#[test]
fn the_customers_of_the_repository_plan() {
    let catalog = match crate::catalog::load(std::path::Path::new("."), &[]) {
        Ok(catalog) => catalog,
        Err(errors) => panic!("{}", errors.iter().map(|e| format!("{e}\n")).collect::<String>()),
    };
    let field = |name: &str, data_type| Field::new(name, data_type, true);
    let rooms = Schema::new(vec![
        field("room", DataType::Utf8),
        field("restricted", DataType::Boolean),
        field("max_persons", DataType::Int64),
    ]);
    for customer in &catalog.customers {
        let tables: Vec<_> = (customer.tables.iter())
            .map(|table| (table.name.clone(), Arc::new(rooms.clone())))
            .collect();
        let plans = match plan_customer(customer, &tables) {
            Ok(plans) => plans,
            Err(errors) => {
                panic!("{}", errors.iter().map(|e| format!("{e}\n")).collect::<String>())
            }
        };
        for plan in &plans.queries {
            println!(
                "{}.{}: {:?} {:?}, key {:?}, time {:?}, {}\n{}",
                customer.name,
                plan.name,
                plan.kind,
                plan.input,
                plan.key,
                plan.event_time,
                plan.state_description(),
                plan.explain()
            );
            let has_key = !plan.key.is_empty();
            assert_eq!(has_key, plan.kind != PlanKind::Stateless, "{}", plan.name);
            // Rows are kept only where a function outside the list needs them.
            assert!(!plan.state_description().contains("rows:"), "{}", plan.name);
        }
    }
}
