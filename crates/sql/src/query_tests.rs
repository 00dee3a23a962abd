//! What users rely on beyond the recorded cases: the account of every row, restarts, pinned time, and that batches do not matter.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use futures::{StreamExt, stream};
use perennial_core::error::{Error, ErrorKind, class};
use perennial_core::plan::{BatchInfo, QueryPlan};
use perennial_core::sink::{OutputMode, RowStream};
use serde_json::{Value, json};

use crate::testing::batches::Loop;
use crate::testing::values::{rows_from_json, rows_to_json, same_rows, schema};
use crate::{Planner, PlannerOptions, SourceTable, SourceWatermark, TableKind, UNIQUE_KEY};

const EVENTS: &str = "user STRING, ts TIMESTAMP, v BIGINT";

fn events(delay_minutes: Option<i64>) -> SourceTable {
    let watermark =
        delay_minutes.map(|minutes| SourceWatermark { column: "ts".into(), delay_micros: minutes * 60_000_000 });
    SourceTable { name: "events".into(), schema: schema(EVENTS), watermark, deduplicate: None, kind: TableKind::Stream }
}

fn planner(parallelism: usize) -> Planner {
    Planner::new(PlannerOptions { parallelism, ..PlannerOptions::default() })
}

async fn plan(sql: &str, source: SourceTable, mode: OutputMode) -> Arc<dyn QueryPlan> {
    planner(2).plan(sql, &[source], mode).await.unwrap()
}

async fn refusal(sql: &str, mode: OutputMode) -> Error {
    planner(2).plan(sql, &[events(Some(10))], mode).await.err().unwrap()
}

/// Rows of `events` with the columns that the plan reads.
fn rows(plan: &dyn QueryPlan, rows: &[Value]) -> RecordBatch {
    rows_from_json(rows, &Arc::new(schema(EVENTS).project(&plan.inputs()[0].columns).unwrap()))
}

fn json_of(batches: &[RecordBatch]) -> Vec<Value> {
    batches.iter().flat_map(rows_to_json).collect()
}

#[tokio::test]
async fn every_row_is_accounted_for() {
    let sql = "SELECT window.start AS s, count(*) AS n FROM events WHERE v > 0 GROUP BY window(ts, '10 minutes', '5 minutes')";
    let plan = plan(sql, events(Some(0)), OutputMode::Append).await;
    let mut running = Loop::new(plan.clone());
    let first = rows(
        &*plan,
        &[
            json!({"ts": "2024-03-01T12:01:00Z", "v": 1}),
            json!({"ts": "2024-03-01T12:30:00Z", "v": 1}),
            json!({"ts": "2024-03-01T12:31:00Z", "v": 0}),
            json!({"v": 1}),
        ],
    );
    let ran = running.batch(vec![vec![vec![first]]]).await.unwrap();
    // Two rows in two windows each; one left out by WHERE, one without a time.
    assert_eq!((ran.outcome.held, ran.outcome.multiplied, ran.outcome.filtered, ran.outcome.late), (4, 2, 2, 0));
    let ran = running.empty_batch().await.unwrap();
    assert_eq!(json_of(&ran.rows).len(), 2);

    let second =
        rows(&*plan, &[json!({"ts": "2024-03-01T12:24:00Z", "v": 5}), json!({"ts": "2024-03-01T12:26:00Z", "v": 5})]);
    let ran = running.batch(vec![vec![vec![second]]]).await.unwrap();
    // 12:24 is in windows that ended at 12:25 and at 12:30, 12:26 in one that ended at 12:30 and one that has not.
    assert_eq!((ran.outcome.held, ran.outcome.multiplied, ran.outcome.filtered, ran.outcome.late), (1, 2, 0, 3));
    assert_eq!(ran.outcome.operators[0].rows_dropped_by_watermark, 2);
}

#[tokio::test]
async fn stateless_rows_are_written_or_filtered() {
    let plan = plan("SELECT user FROM events WHERE v > 1", events(None), OutputMode::Append).await;
    assert_eq!(plan.inputs()[0].columns, [0, 2]);
    assert!(!plan.wants_no_data_batch());
    let input = rows(&*plan, &[json!({"user": "a", "v": 1}), json!({"user": "b", "v": 2}), json!({"user": "c"})]);
    let ran = Loop::new(plan).batch(vec![vec![vec![input]]]).await.unwrap();
    assert_eq!(json_of(&ran.rows), [json!({"user": "b"})]);
    assert_eq!((ran.outcome.filtered, ran.outcome.held, ran.outcome.late), (2, 0, 0));
}

#[tokio::test]
async fn rows_that_go_past_state_are_written() {
    let sql = "SELECT user, count(*) AS n FROM events GROUP BY user UNION ALL SELECT user, v FROM events WHERE v > 1";
    let plan = plan(sql, events(None), OutputMode::Update).await;
    let input = |index: usize| {
        let columns = Arc::new(schema(EVENTS).project(&plan.inputs()[index].columns).unwrap());
        vec![vec![rows_from_json(&[json!({"user": "a", "v": 1}), json!({"user": "a", "v": 2})], &columns)]]
    };
    let streams = vec![input(0), input(1)];
    let execution = plan
        .execute(
            info(),
            streams
                .into_iter()
                .map(|streams| {
                    streams
                        .into_iter()
                        .map(|rows| {
                            let rows: RowStream = stream::iter(rows.into_iter().map(Ok)).boxed();
                            rows
                        })
                        .collect()
                })
                .collect(),
            Loop::new(plan.clone()).state(),
        )
        .await
        .unwrap();
    let rows: Vec<RecordBatch> = execution.rows.map(|rows| rows.unwrap()).collect().await;
    assert!(same_rows(&json_of(&rows), &[json!({"user": "a", "n": 2}), json!({"user": "a", "n": 2})], false));
    let outcome = (execution.outcome)().unwrap();
    // Four rows read: two counted and one written as it is (no longer the batch's to write, like those in state), one left out.
    assert_eq!((outcome.held, outcome.filtered), (3, 1));
}

#[tokio::test]
async fn only_used_columns_are_read_and_the_event_time_always() {
    let count = plan("SELECT count(*) AS n FROM events", events(None), OutputMode::Update).await;
    assert_eq!(count.inputs()[0].columns, [0_usize; 0]);
    let watched = plan("SELECT user FROM events", events(Some(5)), OutputMode::Append).await;
    assert_eq!(watched.inputs()[0].columns, [0, 1]);
    assert_eq!(watched.inputs()[0].watermark_delay, Some(300_000_000));
    let union = plan(
        "SELECT user FROM events WHERE v = 1 UNION ALL SELECT 'x' FROM events",
        events(Some(5)),
        OutputMode::Append,
    )
    .await;
    assert_eq!(union.inputs().iter().map(|input| input.columns.as_slice()).collect::<Vec<_>>(), [&[0, 1, 2][..], &[1]]);
}

#[tokio::test]
async fn counting_rows_without_columns_works() {
    let plan = plan("SELECT count(*) AS n FROM events", events(None), OutputMode::Update).await;
    let input = rows(&*plan, &[json!({}), json!({}), json!({})]);
    let mut running = Loop::new(plan);
    let ran = running.batch(vec![vec![vec![input.clone()], vec![input]]]).await.unwrap();
    assert_eq!(json_of(&ran.rows), [json!({"n": 6})]);
    let ran = running.empty_batch().await.unwrap();
    assert_eq!(json_of(&ran.rows), [json!({"n": 6})]);
}

/// Rows that look random but are the same each time.
fn many_rows(count: usize) -> Vec<Value> {
    let mut seed = 7_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    (0..count)
        .map(|_| {
            let user = match random(20) {
                0 => Value::Null,
                user => json!(format!("user-{user}")),
            };
            json!({"user": user, "ts": format!("2024-03-01T12:{:02}:{:02}Z", random(60), random(60)), "v": random(1000)})
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_streams_and_restarts_do_not_change_the_result() {
    let sql = "SELECT window.start AS s, user, count(*) AS n, sum(v) AS total, avg(v) AS mean, min(v) AS low, max(v) AS high, \
        stddev(v) AS spread, approx_count_distinct(v) AS different FROM events GROUP BY window(ts, '7 minutes', '3 minutes'), user";
    let all = many_rows(3_000);
    let mut results: Vec<Vec<Value>> = Vec::new();
    for (parallelism, batches, streams) in [(1, 1, 1), (3, 1, 5), (2, 13, 2), (4, 50, 1)] {
        let plan = planner(parallelism).plan(sql, &[events(None)], OutputMode::Complete).await.unwrap();
        let mut running = Loop::new(plan.clone());
        let mut last = Vec::new();
        for (number, part) in all.chunks(all.len().div_ceil(batches)).enumerate() {
            let input = part.chunks(part.len().div_ceil(streams)).map(|part| vec![rows(&*plan, part)]).collect();
            last = json_of(&running.batch(vec![input]).await.unwrap().rows);
            if number % 5 == 0 {
                running.restart();
            }
        }
        results.push(last);
    }
    assert!(results[0].len() > 400);
    for other in &results[1..] {
        assert!(same_rows(&results[0], other, false));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_run_again_gives_the_same_rows_in_the_same_order() {
    let sql = "SELECT user, avg(v / 7) AS mean FROM events GROUP BY user";
    let mut seen: Option<Vec<Value>> = None;
    for _ in 0..5 {
        let plan = planner(3).plan(sql, &[events(None)], OutputMode::Update).await.unwrap();
        let all = many_rows(2_000);
        let input = all.chunks(100).map(|part| vec![rows(&*plan, part)]).collect();
        let again = json_of(&Loop::new(plan).batch(vec![input]).await.unwrap().rows);
        // Exactly, to the last digit of every mean.
        assert_eq!(seen.get_or_insert_with(|| again.clone()), &again);
    }
}

#[tokio::test]
async fn now_is_the_time_of_the_batch() {
    let sql = "SELECT current_timestamp() AS t, now() AS n, current_date AS d, user FROM events WHERE ts < now()";
    let plan = plan(sql, events(None), OutputMode::Append).await;
    assert!(plan.deterministic());
    let mut running = Loop::new(plan.clone());
    for batch in 0..2 {
        let input =
            rows(&*plan, &[json!({"user": "a", "ts": "2020-01-01T00:00:00Z"}), json!({"ts": "2999-01-01T00:00:00Z"})]);
        let ran = running.batch(vec![vec![vec![input]]]).await.unwrap();
        let now = format!("2023-11-14T22:13:20{}Z", if batch == 0 { "" } else { ".001000" });
        assert_eq!(json_of(&ran.rows), [json!({"t": now, "n": now, "d": "2023-11-14", "user": "a"})]);
    }
}

#[tokio::test]
async fn randomness_and_order_are_not_deterministic() {
    for (sql, mode) in [
        ("SELECT rand() AS r FROM events", OutputMode::Append),
        ("SELECT user FROM events WHERE uuid() <> user", OutputMode::Append),
        ("SELECT user, first(v) AS f FROM events GROUP BY user", OutputMode::Update),
    ] {
        assert!(!plan(sql, events(None), mode).await.deterministic(), "{sql}");
    }
    let sum = plan("SELECT user, sum(v) AS s FROM events GROUP BY user", events(None), OutputMode::Update).await;
    assert!(sum.deterministic());
}

#[tokio::test]
async fn the_unique_key_is_what_tells_the_group() {
    for (sql, key) in [
        (
            "SELECT window.start AS minute, user AS u, count(*) AS n FROM events GROUP BY window(ts, '1 minute'), user",
            Some("minute,u"),
        ),
        ("SELECT user, window, count(*) AS n FROM events GROUP BY window(ts, '1 minute'), user", Some("window,user")),
        ("SELECT window.end AS e, count(*) AS n FROM events GROUP BY window(ts, '1 minute')", Some("e")),
        ("SELECT window.start AS s, count(*) AS n FROM events GROUP BY window(ts, '1 minute'), user", None),
        ("SELECT upper(user) AS u, count(*) AS n FROM events GROUP BY user", None),
        ("SELECT DISTINCT user, v FROM events", Some("user,v")),
        ("SELECT count(*) AS n FROM events", None),
        ("SELECT user FROM events", None),
    ] {
        let plan = plan(sql, events(Some(1)), OutputMode::Update).await;
        assert_eq!(plan.schema().metadata().get(UNIQUE_KEY).map(String::as_str), key, "{sql}");
    }
}

#[tokio::test]
async fn the_fingerprint_is_that_of_the_state() {
    let of = async |sql: &str| plan(sql, events(Some(1)), OutputMode::Update).await.fingerprint();
    let base = of("SELECT user, count(*) AS n FROM events GROUP BY user").await;
    assert_eq!(
        base,
        of("SELECT upper(user) AS u, count(*) + 1 AS n FROM events GROUP BY user HAVING count(*) > 1").await
    );
    for other in [
        "SELECT v, count(*) AS n FROM events GROUP BY v",
        "SELECT user, count(v) AS n FROM events GROUP BY user",
        "SELECT user, sum(v) AS n FROM events GROUP BY user",
        "SELECT user, count(*) AS n FROM events GROUP BY user, window(ts, '1 minute')",
        "SELECT user FROM events",
    ] {
        assert_ne!(base, of(other).await, "{other}");
    }
    let window = of("SELECT count(*) AS n FROM events GROUP BY window(ts, '1 minute')").await;
    assert_ne!(window, of("SELECT count(*) AS n FROM events GROUP BY window(ts, '2 minutes')").await);
}

#[tokio::test]
async fn the_plan_can_be_read() {
    let sql = "SELECT window.start AS s, avg(v) AS mean FROM events GROUP BY window(ts, '1 minute')";
    let text = plan(sql, events(Some(10)), OutputMode::Append).await.explain();
    for part in [
        "Watermark: events.ts, delay 10 minutes",
        "Windows: of events.ts, size 1 minute",
        "Stateful: operator 0, Append mode",
        "Input 0: source events",
        "State 0 (stateStoreSave): by [__window_start Timestamp",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
}

#[tokio::test]
async fn wrong_sql_is_answered_with_condition_position_and_names() {
    for (sql, parts) in [
        ("SELECT usr FROM events", &["UNRESOLVED_COLUMN.WITH_SUGGESTION", "`usr` (line 1, column 8)", "`user`"][..]),
        ("SELECT user,\n  countt(v) FROM events", &["UNRESOLVED_ROUTINE", "`countt` (line 2, column 3)", "`count`"]),
        ("SELECT user FROM event", &["TABLE_OR_VIEW_NOT_FOUND", "`event` (line 1, column 18)"]),
        ("SELECT user FROM events GROUP BY", &["PARSE_SYNTAX_ERROR"]),
        ("SELECT user v FROM events WHERE )", &["PARSE_SYNTAX_ERROR", "Line: 1"]),
        ("SELECT user, count(*) AS n, v FROM events GROUP BY user", &["MISSING_AGGREGATION", "events.v"]),
        ("INSERT INTO x VALUES (1)", &["SELECT statement"]),
        ("SELECT true + v AS x FROM events", &["DATATYPE_MISMATCH"]),
    ] {
        let error = refusal(sql, OutputMode::Update).await;
        assert_eq!(error.class(), class::ANALYSIS, "{sql}: {error:?}");
        for part in parts {
            assert!(error.to_string().contains(part), "{sql}: no `{part}` in {error}");
        }
    }
}

#[tokio::test]
async fn what_cannot_run_is_refused_with_what_to_do() {
    for (sql, mode, class, part) in [
        (
            "SELECT user, count(*) AS n FROM events GROUP BY user",
            OutputMode::Append,
            class::UNSUPPORTED_OPERATION,
            "STREAMING_OUTPUT_MODE.UNSUPPORTED_OPERATION",
        ),
        ("SELECT user FROM events", OutputMode::Complete, class::UNSUPPORTED_OPERATION, "use append mode"),
        (
            "SELECT user FROM events WHERE v > (SELECT max(v) FROM events)",
            OutputMode::Append,
            class::UNSUPPORTED_OPERATION,
            "INVALID_SUBQUERY_EXPRESSION.STREAMING_QUERY",
        ),
        (
            "SELECT user, count(*) AS n FROM events GROUP BY user, session_window(ts, '5 minutes')",
            OutputMode::Update,
            class::UNSUPPORTED_OPERATION,
            "session",
        ),
        ("SELECT user FROM events LIMIT 3", OutputMode::Update, class::UNSUPPORTED_OPERATION, "LIMIT"),
        ("SELECT 1 AS one", OutputMode::Append, class::UNSUPPORTED_OPERATION, "reads no stream"),
        (
            "SELECT count(*) AS n FROM events GROUP BY window(ts, '1 month')",
            OutputMode::Update,
            class::UNSUPPORTED_OPERATION,
            "months",
        ),
    ] {
        let error = refusal(sql, mode).await;
        assert_eq!(error.class(), class, "{sql}: {error:?}");
        assert!(error.to_string().contains(part), "{sql}: no `{part}` in {error}");
    }
}

#[tokio::test]
async fn a_watermark_needs_a_timestamp_column() {
    for (column, delay, part) in
        [("tss", 0, "`ts`"), ("v", 0, "EVENT_TIME_IS_NOT_ON_TIMESTAMP_TYPE"), ("ts", -1, "negative")]
    {
        let watermark = Some(SourceWatermark { column: column.into(), delay_micros: delay });
        let source = SourceTable { watermark, ..events(None) };
        let error = planner(1).plan("SELECT * FROM events", &[source], OutputMode::Append).await.err().unwrap();
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn names_are_case_insensitive() {
    let source = SourceTable {
        name: "Readings".into(),
        schema: schema("sensorId STRING, ts TIMESTAMP, ph DOUBLE"),
        ..events(None)
    };
    let sql = "SELECT R.SENSORID, COUNT(*) AS N, avg(PH) FROM readings r WHERE sensorid IS NOT NULL GROUP BY SensorId";
    let plan = planner(1).plan(sql, &[source], OutputMode::Update).await.unwrap();
    let names: Vec<String> = plan.schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["sensorId", "N", "avg(ph)"]);
}

#[tokio::test]
async fn unnamed_columns_have_sparks_names() {
    let sql = "SELECT window, window.start, window.end, count(*), sum(v) + 1, upper('x') FROM events GROUP BY window(ts, '1 minute')";
    let plan = plan(sql, events(None), OutputMode::Update).await;
    let names: Vec<String> = plan.schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["window", "start", "end", "count(1)", "(sum(v) + 1)", "upper(x)"]);
}

#[tokio::test]
async fn local_time_is_that_of_the_session_and_results_are_in_utc() {
    let planner =
        Planner::new(PlannerOptions { time_zone: "Europe/Berlin".into(), parallelism: 1, ..PlannerOptions::default() });
    let sql = "SELECT hour(ts) AS h, ts, CAST(ts AS STRING) AS s, window.start AS w FROM \
        (SELECT ts, window(ts, '1 hour') AS window FROM events)";
    let plan = planner.plan(sql, &[events(None)], OutputMode::Append).await.unwrap();
    assert_eq!(plan.schema().field(1).data_type(), schema(EVENTS).field(1).data_type());
    let input = rows(&*plan, &[json!({"ts": "2024-07-01T22:30:00Z"})]);
    let ran = Loop::new(plan).batch(vec![vec![vec![input]]]).await.unwrap();
    let row = &json_of(&ran.rows)[0];
    assert_eq!(
        (&row["h"], &row["ts"], &row["w"]),
        (&json!(0), &json!("2024-07-01T22:30:00Z"), &json!("2024-07-01T22:00:00Z"))
    );
}

#[tokio::test]
async fn an_unknown_time_zone_is_an_error_of_the_settings() {
    let planner = Planner::new(PlannerOptions { time_zone: "Europe/Berln".into(), ..PlannerOptions::default() });
    let error = planner.plan("SELECT * FROM events", &[events(None)], OutputMode::Append).await.err().unwrap();
    assert_eq!(error.class(), class::CONFIG_INVALID);
    assert!(error.to_string().contains("Europe/Berln"));
}

#[tokio::test]
async fn own_functions_can_be_used() {
    let twice = create_udf(
        "twice",
        vec![DataType::Int64],
        DataType::Int64,
        Volatility::Immutable,
        Arc::new(|args| {
            let values = args[0].to_array(1)?;
            let doubled: arrow::array::Int64Array = values.as_primitive::<Int64Type>().unary(|v| v * 2);
            Ok(ColumnarValue::Array(Arc::new(doubled)))
        }),
    );
    let functions: Vec<Arc<ScalarUDF>> = vec![Arc::new(twice)];
    let planner = Planner::new(PlannerOptions { functions, ..PlannerOptions::default() });
    let plan = planner.plan("SELECT twice(v) AS t FROM events", &[events(None)], OutputMode::Append).await.unwrap();
    let input = rows(&*plan, &[json!({"v": 21})]);
    let ran = Loop::new(plan).batch(vec![vec![vec![input]]]).await.unwrap();
    assert_eq!(json_of(&ran.rows), [json!({"t": 42})]);
}

fn info() -> BatchInfo {
    BatchInfo { id: 0, timestamp_ms: 0, watermark_ms: 0, late_watermark_ms: 0 }
}

#[tokio::test]
async fn an_error_of_the_input_comes_out_as_it_went_in() {
    for sql in ["SELECT user FROM events", "SELECT user FROM events WHERE v > 0"] {
        let plan = plan(sql, events(None), OutputMode::Append).await;
        let broken: RowStream = stream::iter([Err(Error::new(class::CONNECTION_LOST, "the broker went away"))]).boxed();
        let mut execution = plan.execute(info(), vec![vec![broken]], vec![]).await.unwrap();
        let error = execution.rows.next().await.unwrap().unwrap_err();
        assert_eq!((error.class(), error.message()), (class::CONNECTION_LOST, "the broker went away"));
        assert!(execution.rows.next().await.is_none());
        assert_eq!((execution.outcome)().unwrap_err().kind(), ErrorKind::Bug);
    }
}

#[tokio::test]
async fn an_error_below_an_aggregate_keeps_its_class() {
    let plan = plan("SELECT user, count(*) AS n FROM events GROUP BY user", events(None), OutputMode::Update).await;
    let mut running = Loop::new(plan.clone());
    // State comes from a first batch; the second breaks.
    running.batch(vec![vec![vec![rows(&*plan, &[json!({"user": "a"})])]]]).await.unwrap();
    let broken: RowStream = stream::iter([Err(Error::new(class::CONNECTION_LOST, "the broker went away"))]).boxed();
    let state = running.state();
    let mut execution = plan.execute(info(), vec![vec![broken]], state).await.unwrap();
    let error = execution.rows.next().await.unwrap().unwrap_err();
    assert_eq!(error.class(), class::CONNECTION_LOST, "{error:?}");
}

#[tokio::test]
async fn a_panic_is_a_bug_and_stops_the_batch_only() {
    let plan = plan("SELECT user FROM events", events(None), OutputMode::Append).await;
    let broken: RowStream = stream::iter([()]).map(|()| panic!("a decoder broke")).boxed();
    let mut execution = plan.execute(info(), vec![vec![broken]], vec![]).await.unwrap();
    let error = execution.rows.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Bug);
}

#[tokio::test]
async fn a_failing_expression_is_an_error_of_the_data() {
    for sql in
        ["SELECT v / 0 AS q FROM events", "SELECT CAST(user AS INT) AS i FROM events", "SELECT v * v AS s FROM events"]
    {
        let plan = plan(sql, events(None), OutputMode::Append).await;
        let input = rows(&*plan, &[json!({"user": "x", "v": i64::MAX})]);
        let error = Loop::new(plan).batch(vec![vec![vec![input]]]).await.err().unwrap();
        assert_eq!(error.class(), class::EXPRESSION_FAILED, "{sql}: {error:?}");
    }
}

#[tokio::test]
async fn a_batch_with_the_wrong_parts_is_refused() {
    let plan = plan("SELECT user, count(*) AS n FROM events GROUP BY user", events(None), OutputMode::Update).await;
    assert_eq!(plan.execute(info(), vec![], vec![]).await.err().unwrap().kind(), ErrorKind::Bug);
    assert_eq!(plan.execute(info(), vec![vec![]], vec![]).await.err().unwrap().kind(), ErrorKind::Bug);
}

#[tokio::test]
async fn checks_of_expectations() {
    let planner = planner(1);
    let source = schema("id STRING, Battery INT, ts TIMESTAMP, x DOUBLE");
    let check = |sql: &str| planner.predicate(sql, &source);
    let data = [json!({"id": "a", "Battery": 50}), json!({"id": "b", "Battery": 101}), json!({"id": "c"})];
    let data = rows_from_json(&data, &source);

    let range = check("battery BETWEEN 0 AND 100").unwrap();
    assert_eq!(range.columns(), [1]);
    assert_eq!(range.evaluate(&data).unwrap().iter().collect::<Vec<_>>(), [Some(true), Some(false), None]);
    // Only the columns that it reads need to be there.
    assert_eq!(range.evaluate(&data.project(&[1]).unwrap()).unwrap().len(), 3);
    let both = check("ts > TIMESTAMP'2020-01-01 00:00:00' OR id = 'a'").unwrap();
    assert_eq!(both.columns(), [0, 2]);
    assert_eq!(both.evaluate(&data).unwrap().iter().collect::<Vec<_>>(), [Some(true), None, None]);
    assert_eq!(check("true").unwrap().evaluate(&data).unwrap().true_count(), 3);

    for (sql, class, part) in [
        ("battery", class::ANALYSIS, "must be BOOLEAN"),
        ("batery > 1", class::ANALYSIS, "`Battery`"),
        ("battery > 1 id", class::ANALYSIS, "ends before"),
        ("ts < now()", class::UNSUPPORTED_OPERATION, "now()"),
        ("rand() < 1", class::UNSUPPORTED_OPERATION, "not the same"),
        ("count(*) > 1", class::UNSUPPORTED_OPERATION, "many rows"),
    ] {
        let error = check(sql).err().unwrap();
        assert_eq!(error.class(), class, "{sql}: {error:?}");
        assert!(error.to_string().contains(part), "{sql}: no `{part}` in {error}");
    }
    let error = check("100 / (battery - 50) > 1").unwrap().evaluate(&data).unwrap_err();
    assert_eq!(error.class(), class::EXPRESSION_FAILED);
}

#[tokio::test]
async fn windows_of_negative_times_and_micros_are_exact() {
    let sql = "SELECT window.start AS s FROM (SELECT window(ts, '7 seconds', '7 seconds', '-2 seconds') AS window FROM events)";
    let plan = plan(sql, events(None), OutputMode::Append).await;
    let times =
        ["1969-12-31T23:59:58Z", "1969-12-31T23:59:57.999999Z", "1970-01-01T00:00:05Z", "1970-01-01T00:00:04.999999Z"];
    let input: Vec<Value> = times.iter().map(|ts| json!({"ts": ts})).collect();
    let input = rows(&*plan, &input);
    let ran = Loop::new(plan).batch(vec![vec![vec![input]]]).await.unwrap();
    let starts: Vec<i64> = ran
        .rows
        .iter()
        .flat_map(|rows| rows.column(0).as_primitive::<TimestampMicrosecondType>().values().to_vec())
        .collect();
    assert_eq!(starts, [-2_000_000, -9_000_000, 5_000_000, -2_000_000]);
}
