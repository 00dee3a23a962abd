//! What users rely on in joins of streams beyond the recorded cases: results do not depend on how rows come in batches, every row is
//! accounted for, and what is refused says why.

use std::collections::BTreeMap;
use std::sync::Arc;

use perennial_core::error::class;
use perennial_core::plan::QueryPlan;
use perennial_core::sink::OutputMode;
use serde_json::{Value, json};

use crate::testing::batches::{Loop, Ran};
use crate::testing::values::{rows_from_json, rows_to_json, same_rows, schema, timestamp};
use crate::{Planner, PlannerOptions, SourceTable, SourceWatermark, TableKind};

const COLUMNS: &str = "k STRING, ts TIMESTAMP, v BIGINT";
const SECOND: i64 = 1_000_000;

fn source(name: &str, delay_seconds: Option<i64>) -> SourceTable {
    let watermark =
        delay_seconds.map(|seconds| SourceWatermark { column: "ts".into(), delay_micros: seconds * SECOND });
    SourceTable { name: name.into(), schema: schema(COLUMNS), watermark, deduplicate: None, kind: TableKind::Stream }
}

async fn plan_of(sql: &str, sources: &[SourceTable], mode: OutputMode) -> perennial_core::Result<Arc<dyn QueryPlan>> {
    Planner::new(PlannerOptions { parallelism: 2, ..PlannerOptions::default() }).plan(sql, sources, mode).await
}

fn event(key: i64, seconds: i64, v: i64) -> Value {
    json!({"k": format!("k{key}"), "ts": timestamp(seconds * SECOND), "v": v})
}

/// Runs a batch with rows by source, and the batches without rows that follow.
async fn feed(running: &mut Loop, rows: &BTreeMap<&str, Vec<Value>>) -> Vec<Ran> {
    let inputs = running.plan.inputs().iter().map(|input| {
        let schema = Arc::new(schema(COLUMNS).project(&input.columns).unwrap());
        rows.get(input.source.as_str()).map(|rows| vec![vec![rows_from_json(rows, &schema)]]).unwrap_or_default()
    });
    let inputs = inputs.collect();
    let mut watermark_ms = running.watermark_ms;
    let mut ran = vec![running.batch(inputs).await.unwrap()];
    while running.plan.wants_no_data_batch() && running.watermark_ms > watermark_ms {
        watermark_ms = running.watermark_ms;
        ran.push(running.empty_batch().await.unwrap());
    }
    ran
}

fn output(ran: &[Ran]) -> Vec<Value> {
    ran.iter().flat_map(|ran| &ran.rows).flat_map(rows_to_json).collect()
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: i64) -> i64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as i64).rem_euclid(bound)
    }
}

/// The matches of the rows so far, and the rows of each side without one.
fn expected(left: &[Value], right: &[Value]) -> (Vec<Value>, Vec<Value>, Vec<Value>) {
    let seconds = |row: &Value| {
        chrono::DateTime::parse_from_rfc3339(row["ts"].as_str().unwrap()).unwrap().timestamp_micros() / SECOND
    };
    let mut matches = Vec::new();
    let (mut alone_left, mut alone_right) = (vec![true; left.len()], vec![true; right.len()]);
    for (l, left) in left.iter().enumerate() {
        for (r, right) in right.iter().enumerate() {
            let apart = seconds(right) - seconds(left);
            let in_time = (0..=20).contains(&apart);
            if left["k"] == right["k"]
                && in_time
                && (left["v"].as_i64().unwrap() + right["v"].as_i64().unwrap()) % 3 != 0
            {
                matches.push(json!({"lk": left["k"], "lv": left["v"], "rk": right["k"], "rv": right["v"]}));
                (alone_left[l], alone_right[r]) = (false, false);
            }
        }
    }
    let of = |rows: &[Value], alone: &[bool], key: &str, value: &str, nulls: [&str; 2]| {
        let rows = rows.iter().zip(alone).filter(|(_, alone)| **alone);
        rows.map(|(row, _)| json!({key: row["k"], value: row["v"], nulls[0]: null, nulls[1]: null})).collect::<Vec<_>>()
    };
    let null = ["rk", "rv"];
    (matches, of(left, &alone_left, "lk", "lv", null), of(right, &alone_right, "rk", "rv", ["lk", "lv"]))
}

/// A few keys with many rows each, which come and go in all orders.
async fn joins_as_if_all_rows_were_there(join: &str, with_left: bool, with_right: bool) {
    let sql = format!(
        "SELECT l.k AS lk, l.v AS lv, r.k AS rk, r.v AS rv FROM l {join} r \
         ON l.k = r.k AND r.ts BETWEEN l.ts AND l.ts + INTERVAL 20 SECONDS AND (l.v + r.v) % 3 <> 0"
    );
    let sources = [source("l", Some(30)), source("r", Some(30))];
    let mut running = Loop::new(plan_of(&sql, &sources, OutputMode::Append).await.unwrap());
    let mut numbers = Numbers(7);
    let (mut left, mut right, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    for batch in 0..40 {
        let now = 1_000 + batch * 10;
        let mut some = |side: i64| -> Vec<Value> {
            let count = numbers.below(8);
            (0..count)
                .map(|row| {
                    event(
                        numbers.below(3),
                        now - numbers.below(30),
                        batch * 1_000 + side * 100 + row + numbers.below(5),
                    )
                })
                .collect()
        };
        let (of_left, of_right) = (some(1), some(2));
        left.extend(of_left.clone());
        right.extend(of_right.clone());
        rows.extend(output(&feed(&mut running, &BTreeMap::from([("l", of_left), ("r", of_right)])).await));
        if batch % 7 == 3 {
            running.restart();
        }
    }
    // Rows of a key that nobody else has, far ahead: everything before is done with.
    let last = BTreeMap::from([("l", vec![event(8, 5_000, 0)]), ("r", vec![event(9, 5_000, 0)])]);
    let ran = feed(&mut running, &last).await;
    rows.extend(output(&ran));
    assert_eq!(ran[ran.len() - 1].outcome.operators[0].rows_total, 2, "only the last two rows are still remembered");

    let (mut all, alone_left, alone_right) = expected(&left, &right);
    assert!(all.len() > 100 && alone_left.len() > 5 && alone_right.len() > 5);
    if with_left {
        all.extend(alone_left);
    }
    if with_right {
        all.extend(alone_right);
    }
    assert!(same_rows(&rows, &all, false), "{join}: {} rows, not {}", rows.len(), all.len());
}

#[tokio::test]
async fn an_inner_join_finds_every_match_once() {
    joins_as_if_all_rows_were_there("JOIN", false, false).await;
}

#[tokio::test]
async fn a_left_join_also_gives_left_rows_without_a_match_once() {
    joins_as_if_all_rows_were_there("LEFT JOIN", true, false).await;
}

#[tokio::test]
async fn a_right_join_also_gives_right_rows_without_a_match_once() {
    joins_as_if_all_rows_were_there("RIGHT JOIN", false, true).await;
}

#[tokio::test]
async fn a_full_join_gives_both() {
    joins_as_if_all_rows_were_there("FULL JOIN", true, true).await;
}

#[tokio::test]
async fn a_semi_join_gives_a_row_once_when_its_first_match_comes() {
    let sql = "SELECT k, v FROM l LEFT SEMI JOIN r ON l.k = r.k AND r.ts BETWEEN l.ts AND l.ts + INTERVAL 20 SECONDS";
    let sources = [source("l", Some(30)), source("r", Some(30))];
    let mut running = Loop::new(plan_of(sql, &sources, OutputMode::Append).await.unwrap());
    let first = [("l", vec![event(1, 100, 1), event(1, 100, 2), event(1, 105, 3)]), ("r", vec![event(1, 103, 0)])];
    let ran = feed(&mut running, &BTreeMap::from(first)).await;
    assert!(same_rows(&output(&ran), &[json!({"k": "k1", "v": 1}), json!({"k": "k1", "v": 2})], false));
    let second = [("r", vec![event(1, 104, 0), event(1, 106, 0), event(1, 106, 0)]), ("l", vec![])];
    let ran = feed(&mut running, &BTreeMap::from(second)).await;
    assert_eq!(output(&ran), [json!({"k": "k1", "v": 3})]);
    assert_eq!(ran[0].outcome.operators[0].rows_removed, 1, "a row that came out need not be remembered");
}

#[tokio::test]
async fn every_row_of_a_join_is_accounted_for() {
    let sql = "SELECT l.v AS a, r.v AS b FROM l JOIN r ON l.k = r.k AND r.ts >= l.ts WHERE l.v > 0";
    let sources = [source("l", Some(0)), source("r", Some(0))];
    let mut running = Loop::new(plan_of(sql, &sources, OutputMode::Append).await.unwrap());
    let first = [
        ("l", vec![event(1, 100, 1), event(1, 100, 0), json!({"ts": timestamp(100 * SECOND), "v": 1})]),
        ("r", vec![event(1, 100, 5), event(1, 101, 6)]),
    ];
    let ran = feed(&mut running, &BTreeMap::from(first)).await;
    let outcome = &ran[0].outcome;
    // One left out by WHERE, one without a key; two rows come out, which were counted on their way in.
    assert_eq!((outcome.held, outcome.filtered, outcome.late), (3, 2, 0));
    assert_eq!(output(&ran).len(), 2);
    let second = [("l", vec![event(1, 100, 2), event(1, 200, 3)]), ("r", vec![event(1, 99, 7)])];
    let ran = feed(&mut running, &BTreeMap::from(second)).await;
    assert_eq!((ran[0].outcome.held, ran[0].outcome.late), (1, 2));
}

#[tokio::test]
async fn keys_that_are_null_have_no_match() {
    for on in ["l.k = r.k", "upper(l.k) = upper(r.k)", "CAST(l.k AS STRING) = nullif(r.k, 'k5')"] {
        let sql = format!("SELECT l.v AS a, r.v AS b FROM l JOIN r ON {on}");
        let sources = [source("l", None), source("r", None)];
        let mut running = Loop::new(plan_of(&sql, &sources, OutputMode::Append).await.unwrap());
        let rows = vec![json!({"v": 1}), event(3, 0, 3), event(5, 0, 5)];
        let ran = feed(&mut running, &BTreeMap::from([("l", rows.clone()), ("r", rows)])).await;
        let expected = if on.contains("nullif") { vec![3] } else { vec![3, 5] };
        let expected: Vec<Value> = expected.into_iter().map(|v| json!({"a": v, "b": v})).collect();
        assert!(same_rows(&output(&ran), &expected, false), "{on}: {:?}", output(&ran));
    }
}

#[tokio::test]
async fn one_key_with_many_matches_comes_out_in_pieces() {
    let sql = "SELECT l.v AS a, r.v AS b FROM l JOIN r ON l.k = r.k";
    let mut running =
        Loop::new(plan_of(sql, &[source("l", None), source("r", None)], OutputMode::Append).await.unwrap());
    let rows = |count: i64| (0..count).map(|row| event(1, row, row)).collect::<Vec<_>>();
    let ran = feed(&mut running, &BTreeMap::from([("l", rows(300)), ("r", rows(200))])).await;
    assert_eq!(ran[0].rows.iter().map(|rows| rows.num_rows()).sum::<usize>(), 60_000);
    assert!(ran[0].rows.len() > 3, "{} pieces", ran[0].rows.len());
    assert_eq!(ran.len(), 1, "without a watermark there is no batch without rows");
}

#[tokio::test]
async fn joins_that_cannot_run_say_what_to_change() {
    let (bounded, free) = ([source("l", Some(10)), source("r", Some(10))], [source("l", None), source("r", None)]);
    let in_time = "l.k = r.k AND r.ts BETWEEN l.ts AND l.ts + INTERVAL 10 MINUTES";
    for (sql, sources, mode, parts) in [
        (
            format!("SELECT l.v FROM l LEFT JOIN r ON {in_time}"),
            &bounded,
            OutputMode::Update,
            ["LeftOuter", "Use append mode"],
        ),
        ("SELECT l.v FROM l LEFT JOIN r ON l.k = r.k".into(), &bounded, OutputMode::Append, ["LeftOuter", "BETWEEN"]),
        (format!("SELECT l.v FROM l FULL JOIN r ON {in_time}"), &free, OutputMode::Append, ["FullOuter", "watermark"]),
        (format!("SELECT l.v FROM l ANTI JOIN r ON {in_time}"), &bounded, OutputMode::Append, ["LeftAnti", "IS NULL"]),
        ("SELECT l.v FROM l JOIN r ON l.v < r.v".into(), &bounded, OutputMode::Append, ["equality", "ON"]),
        ("SELECT l.v FROM l, r".into(), &bounded, OutputMode::Append, ["equality", "ON"]),
        (
            format!("SELECT l.v, count(*) AS n FROM l JOIN r ON {in_time} GROUP BY l.v"),
            &bounded,
            OutputMode::Complete,
            ["Complete", "Update"],
        ),
        (
            "SELECT v FROM l WHERE k NOT IN (SELECT k FROM r)".into(),
            &bounded,
            OutputMode::Append,
            ["INVALID_SUBQUERY_EXPRESSION.STREAMING_QUERY", "JOIN"],
        ),
    ] {
        let error = plan_of(&sql, sources, mode).await.err().unwrap_or_else(|| panic!("{sql} is not refused"));
        assert_eq!(error.class(), class::UNSUPPORTED_OPERATION, "{sql}: {error}");
        for part in parts {
            assert!(error.to_string().contains(part), "{sql}: no `{part}` in {error}");
        }
    }
}
