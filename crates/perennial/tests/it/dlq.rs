//! Dead letters as people work with them: looked at, mended, run again.

use std::time::Duration;

use serde_json::Value;

use crate::support::{Home, Running, code, stderr, stdout};

const JOB: &str = "\
name: greenhouse
sources:
  readings:
    files: { path: ./in, settle: 0s }
    format: json
    schema: id BIGINT, at TIMESTAMP, battery INT
    expectations:
      battery_in_range: { check: battery BETWEEN 0 AND 100, on_violation: dead_letter }
queries:
  raw:
    sql: SELECT id, battery FROM readings
    sink: { sqlite: { path: out.db, table: raw, busy_timeout: 1 hour } }
  per_minute:
    sql: SELECT window.start AS minute, count(*) AS n, sum(id) AS ids FROM readings GROUP BY window(at, '1 minute')
    output_mode: update
    sink: { sqlite: { path: minutes.db, table: per_minute, key: [minute] } }
trigger: { every: 50 ms }
guarantee: exactly_once
http: { enabled: false }
";

fn reading(id: u64, battery: &str) -> String {
    format!("{{\"id\":{id},\"at\":\"2026-01-01T00:00:{:02}Z\",\"battery\":{battery},\"site\":\"north\"}}\n", id % 60)
}

/// Ten readings: 3 and 4 have a battery that is out of range, 7 one that is no number, and one line is broken.
fn home() -> Home {
    let home = Home::new(JOB);
    let battery = |id| match id {
        3 => "250",
        4 => "-1",
        7 => "\"low\"",
        _ => "50",
    };
    let lines: String = (0..10).map(|id| reading(id, battery(id))).chain(["{\"id\": 11,\n".to_owned()]).collect();
    std::fs::write(home.path("in/a.json"), lines).unwrap();
    let run = home.run();
    assert_eq!(code(&run), 0, "{}", stderr(&run));
    home
}

fn dlq(home: &Home, arguments: &[&str]) -> String {
    let words: Vec<&str> =
        ["dlq", arguments[0], "job.yaml"].into_iter().chain(arguments[1..].iter().copied()).collect();
    let output = home.command(&words).output().unwrap();
    assert_eq!(code(&output), 0, "{words:?}: {}", stderr(&output));
    stdout(&output)
}

fn json(home: &Home, arguments: &[&str]) -> Value {
    let text = dlq(home, &[arguments, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Id and status of the entries.
fn statuses(home: &Home) -> Vec<(String, String)> {
    let entries = json(home, &["list"]);
    let field = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
    let mut found: Vec<_> =
        entries.as_array().unwrap().iter().map(|entry| (field(entry, "id"), field(entry, "status"))).collect();
    found.sort();
    found
}

fn number(home: &Home, database: &str, sql: &str) -> i64 {
    rusqlite::Connection::open(home.path(database)).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn dead_letters_are_counted_listed_shown_grouped_and_exported() {
    let home = home();
    let stats = json(&home, &["stats"]);
    assert_eq!(stats["dlq"]["total_entries"], 4, "{stats}");
    assert_eq!(stats["records"], 8, "{stats}");
    let text = dlq(&home, &["list", "--query", "raw"]);
    assert!(text.contains("raw-0-ExpectationFailed") && !text.contains("per_minute"), "{text}");
    assert_eq!(json(&home, &["list", "--class", "malformedrecord", "--text", "low"]).as_array().unwrap().len(), 2);
    assert_eq!(json(&home, &["list", "--until", "2026-01-01"]), Value::Array(Vec::new()));

    let entry = json(&home, &["show", "raw-0-ExpectationFailed"]);
    assert_eq!(entry["all_records"][0]["value"], reading(3, "250").trim_end(), "whole, as it was read: {entry}");
    assert_eq!(entry["all_records"][0]["rules"][0], "battery_in_range");
    let groups = json(&home, &["group", "--query", "raw"]);
    assert_eq!(groups[0]["records"], 2, "{groups}");
    let lines = dlq(&home, &["export", "--query", "raw"]);
    assert_eq!(lines.lines().count(), 4, "{lines}");

    let missing = home.command(&["dlq", "show", "job.yaml", "raw-9-X"]).output().unwrap();
    assert_eq!(code(&missing), 1);
    assert!(stderr(&missing).contains("there is no entry raw-9-X"), "{}", stderr(&missing));
}

#[test]
fn a_rehearsal_says_what_would_pass_and_changes_nothing() {
    let home = home();
    let as_it_is = json(&home, &["replay", "--query", "raw", "--dry-run"]);
    assert_eq!(
        (&as_it_is["queries"][0]["records"], &as_it_is["queries"][0]["passed"]),
        (&4.into(), &0.into()),
        "{as_it_is}"
    );
    let mended =
        json(&home, &["replay", "raw-0-ExpectationFailed", "--set", "battery = least(battery, 100)", "--dry-run"]);
    assert_eq!(mended["queries"][0]["passed"], 1, "{mended}");
    assert!(mended["queries"][0]["failed"][0]["message"].as_str().unwrap().contains("battery_in_range"), "{mended}");
    assert!(statuses(&home).iter().all(|(_, status)| status == "open"));

    // The rule is changed: what would pass now?
    home.write_job(&JOB.replace("BETWEEN 0 AND 100", "BETWEEN -5 AND 300"));
    let changed = json(&home, &["replay", "raw-0-ExpectationFailed", "--dry-run"]);
    assert_eq!(changed["queries"][0]["passed"], 2, "{changed}");
}

#[test]
fn mended_letters_go_through_once_even_when_the_process_dies_in_the_middle() {
    let home = home();
    let set = ["--set", "battery = greatest(least(battery, 100), 0)"];
    let requested = json(&home, &[&["replay", "--class", "ExpectationFailed"], &set[..]].concat());
    assert_eq!(requested["queries"].as_array().unwrap().len(), 2, "{requested}");
    assert_eq!(statuses(&home).iter().filter(|(_, status)| status == "replaying").count(), 2);

    // The sink of one query hangs; the process is killed when the letters of both are on their way.
    let hangs = rusqlite::Connection::open(home.path("out.db")).unwrap();
    hangs.busy_timeout(Duration::from_secs(60)).unwrap();
    hangs.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut running = Running::start(home.command(&["run", "job.yaml"]));
    running.wait_for_text("dead letters are run again");
    running.wait_for_text("dead letters are run again");
    running.signal("KILL");
    running.end();
    drop(hangs);

    let mut running = Running::start(home.command(&["run", "job.yaml"]));
    running.wait_for("the batch of raw", |line| line.contains("batch committed") && line.contains("\"raw\""));
    running.signal("TERM");
    assert_eq!(running.end().0, 0);
    let run = home.run();
    assert_eq!(code(&run), 0, "{}", stderr(&run));

    assert_eq!(number(&home, "out.db", "SELECT count(*) FROM raw"), 9);
    assert_eq!(number(&home, "out.db", "SELECT battery FROM raw WHERE id = 3"), 100);
    assert_eq!(number(&home, "out.db", "SELECT battery FROM raw WHERE id = 4"), 0);
    assert_eq!(number(&home, "minutes.db", "SELECT n FROM per_minute"), 9);
    assert_eq!(number(&home, "minutes.db", "SELECT ids FROM per_minute"), 45 - 7);
    let expected = |class: &str, status: &str| {
        ["per_minute", "raw"].map(|query| (format!("{query}-0-{class}"), status.to_owned()))
    };
    let mut all = [expected("ExpectationFailed", "recovered"), expected("MalformedRecord", "open")].concat();
    all.sort();
    assert_eq!(statuses(&home), all);

    // What fails again is a new entry, and after three times it is left alone.
    for _ in 0..3 {
        dlq(&home, &["replay", "raw-0-MalformedRecord"]);
        assert_eq!(code(&home.run()), 0);
    }
    assert!(
        statuses(&home).contains(&("raw-0-MalformedRecord".into(), "failed_again".into())),
        "{:?}",
        statuses(&home)
    );
    let again = json(&home, &["replay", "raw-0-MalformedRecord"]);
    assert_eq!(again["left_out"][0], "raw-0-MalformedRecord", "{again}");

    dlq(&home, &["resolve", "--query", "raw", "--note", "a broken sensor"]);
    let purge = home.command(&["dlq", "purge", "job.yaml", "--query", "raw"]).output().unwrap();
    assert_eq!(code(&purge), 2, "only with --yes");
    dlq(&home, &["purge", "--query", "raw", "--yes"]);
    assert!(statuses(&home).iter().all(|(id, _)| id.starts_with("per_minute")), "{:?}", statuses(&home));
}
