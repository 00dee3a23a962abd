//! Rows on which an expression of the query fails.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::support::PERENNIAL;

const ROWS: i64 = 5_000;
/// Rows that divide by zero; two of them are neighbours, one is the first and one the last.
const BAD: [i64; 5] = [0, 1_234, 1_235, 4_000, ROWS - 1];

const FILES: &str = "{ files: { path: ./out, format: json } }";

fn write_input(home: &Path) {
    let mut text = String::new();
    for id in 0..ROWS {
        let divisor = if BAD.contains(&id) { 0 } else { 1 + id % 3 };
        let minute = id / 100;
        writeln!(text, r#"{{"id":{id},"d":{divisor},"at":"2026-01-01T00:{minute:02}:00Z"}}"#).unwrap();
    }
    std::fs::create_dir(home.join("in")).unwrap();
    std::fs::write(home.join("in/rows.json"), text).unwrap();
}

/// Runs a query over the rows until all are processed.
fn run(home: &Path, query: &str, sink: &str) -> Output {
    let job = format!(
        "name: division\nsources:\n  rows:\n    files: {{ path: ./in, settle: 0s }}\n    format: json\n    \
         schema: id BIGINT, d INT, at TIMESTAMP\n    watermark: {{ column: at, delay: 1 minute }}\n\
         queries:\n  q:\n{query}\n    sink: {sink}\n\
         trigger: available_now\nhttp: {{ enabled: false }}\nguarantee: exactly_once\n"
    );
    std::fs::write(home.join("job.yaml"), job).unwrap();
    Command::new(PERENNIAL).args(["run", "job.yaml"]).current_dir(home).output().unwrap()
}

fn json_lines(dir: &Path, keep: impl Fn(&str) -> bool) -> Vec<Value> {
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && keep(&path.file_name().unwrap().to_string_lossy()) {
            let text = std::fs::read_to_string(path).unwrap();
            rows.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
        }
    }
    rows
}

fn output(home: &Path) -> Vec<Value> {
    json_lines(&home.join("out"), |name| name.ends_with(".json") && !name.starts_with('_'))
}

/// The entry in the dead letters, of which there is one.
fn dead_letter(home: &Path) -> Value {
    let entries = json_lines(&home.join("dlq"), |name| name.starts_with("failed_batches_"));
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0].clone()
}

#[test]
fn a_row_on_which_an_expression_fails_stops_the_query_by_default() {
    let home = tempfile::tempdir().unwrap();
    write_input(home.path());
    let ran = run(home.path(), "    sql: SELECT id, id / d AS ratio FROM rows", FILES);
    let text = String::from_utf8(ran.stderr).unwrap() + &String::from_utf8(ran.stdout).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{text}");
    assert!(text.to_lowercase().contains("zero") && text.contains("on_error: dead_letter"), "{text}");
}

#[test]
fn exactly_the_rows_that_fail_are_dead_letters() {
    let home = tempfile::tempdir().unwrap();
    write_input(home.path());
    let ran = run(home.path(), "    sql: SELECT id, id / d AS ratio FROM rows\n    on_error: dead_letter", FILES);
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
    let mut ids: Vec<i64> = output(home.path()).iter().map(|row| row["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..ROWS).filter(|id| !BAD.contains(id)).collect::<Vec<_>>());

    let entry = dead_letter(home.path());
    assert_eq!(entry["error"]["type"], "ExpressionFailed", "{entry}");
    let sample: Vec<i64> =
        entry["sample_records"].as_array().unwrap().iter().map(|r| r["id"].as_i64().unwrap()).collect();
    assert_eq!(sample, BAD, "{entry}");
}

#[test]
fn state_holds_the_rows_that_pass() {
    let home = tempfile::tempdir().unwrap();
    write_input(home.path());
    let query = "    sql: SELECT 1 AS one, count(*) AS n, sum(id % d) AS s FROM rows GROUP BY 1\n    output_mode: update\n    on_error: dead_letter";
    let ran = run(home.path(), query, "{ sqlite: { path: ./out.db, table: totals, key: [one] } }");
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
    let database = rusqlite::Connection::open(home.path().join("out.db")).unwrap();
    let totals: (i64, i64) =
        database.query_row("SELECT n, s FROM totals", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let good = || (0..ROWS).filter(|id| !BAD.contains(id));
    assert_eq!(totals, (good().count() as i64, good().map(|id| id % (1 + id % 3)).sum::<i64>()));
}
