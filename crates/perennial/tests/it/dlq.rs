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
    let home = with_readings(JOB);
    let run = home.run();
    assert_eq!(code(&run), 0, "{}", stderr(&run));
    home
}

fn with_readings(job: &str) -> Home {
    let home = Home::new(job);
    let battery = |id| match id {
        3 => "250",
        4 => "-1",
        7 => "\"low\"",
        _ => "50",
    };
    let lines: String = (0..10).map(|id| reading(id, battery(id))).chain(["{\"id\": 11,\n".to_owned()]).collect();
    std::fs::write(home.path("in/a.json"), lines).unwrap();
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
    are_looked_into(&home());
}

fn are_looked_into(home: &Home) {
    let stats = json(home, &["stats"]);
    assert_eq!(stats["dlq"]["total_entries"], 4, "{stats}");
    assert_eq!(stats["records"], 8, "{stats}");
    let text = dlq(home, &["list", "--query", "raw"]);
    assert!(text.contains("raw-0-ExpectationFailed") && !text.contains("per_minute"), "{text}");
    assert_eq!(json(home, &["list", "--class", "malformedrecord", "--text", "low"]).as_array().unwrap().len(), 2);
    assert_eq!(json(home, &["list", "--until", "2026-01-01"]), Value::Array(Vec::new()));

    let entry = json(home, &["show", "raw-0-ExpectationFailed"]);
    assert_eq!(entry["all_records"][0]["value"], reading(3, "250").trim_end(), "whole, as it was read: {entry}");
    assert_eq!(entry["all_records"][0]["rules"][0], "battery_in_range");
    let groups = json(home, &["group", "--query", "raw"]);
    assert_eq!(groups[0]["records"], 2, "{groups}");
    let lines = dlq(home, &["export", "--query", "raw"]);
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
    go_through_once(&home());
}

fn go_through_once(home: &Home) {
    let set = ["--set", "battery = greatest(least(battery, 100), 0)"];
    let requested = json(home, &[&["replay", "--class", "ExpectationFailed"], &set[..]].concat());
    assert_eq!(requested["queries"].as_array().unwrap().len(), 2, "{requested}");
    assert_eq!(statuses(home).iter().filter(|(_, status)| status == "replaying").count(), 2);

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

    assert_eq!(number(home, "out.db", "SELECT count(*) FROM raw"), 9);
    assert_eq!(number(home, "out.db", "SELECT battery FROM raw WHERE id = 3"), 100);
    assert_eq!(number(home, "out.db", "SELECT battery FROM raw WHERE id = 4"), 0);
    assert_eq!(number(home, "minutes.db", "SELECT n FROM per_minute"), 9);
    assert_eq!(number(home, "minutes.db", "SELECT ids FROM per_minute"), 45 - 7);
    let expected = |class: &str, status: &str| {
        ["per_minute", "raw"].map(|query| (format!("{query}-0-{class}"), status.to_owned()))
    };
    let mut all = [expected("ExpectationFailed", "recovered"), expected("MalformedRecord", "open")].concat();
    all.sort();
    assert_eq!(statuses(home), all);

    // What fails again is a new entry, and after three times it is left alone.
    for _ in 0..3 {
        dlq(home, &["replay", "raw-0-MalformedRecord"]);
        assert_eq!(code(&home.run()), 0);
    }
    assert!(statuses(home).contains(&("raw-0-MalformedRecord".into(), "failed_again".into())), "{:?}", statuses(home));
    let again = json(home, &["replay", "raw-0-MalformedRecord"]);
    assert_eq!(again["left_out"][0], "raw-0-MalformedRecord", "{again}");

    dlq(home, &["resolve", "--query", "raw", "--note", "a broken sensor"]);
    let purge = home.command(&["dlq", "purge", "job.yaml", "--query", "raw"]).output().unwrap();
    assert_eq!(code(&purge), 2, "only with --yes");
    dlq(home, &["purge", "--query", "raw", "--yes"]);
    assert!(statuses(home).iter().all(|(id, _)| id.starts_with("per_minute")), "{:?}", statuses(home));
}

/// Tables of its own for dead letters in PostgreSQL.
#[cfg(feature = "kafka")]
struct Tables {
    url: String,
    name: String,
    runtime: tokio::runtime::Runtime,
}

#[cfg(feature = "kafka")]
impl Tables {
    fn new() -> Self {
        Self {
            url: crate::support::server("PERENNIAL_TEST_POSTGRES"),
            name: format!("letters_{}", rand::random::<u32>()),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        }
    }

    fn job(&self, retention: &str) -> String {
        let Self { url, name, .. } = self;
        format!("{JOB}dead_letters: {{ postgres: {{ url: '{url}', table: {name} }}, retention: {retention} }}\n")
    }

    /// The first column of the first row; `ENTRIES` and `RECORDS` stand for the tables.
    fn ask(&self, sql: &str) -> String {
        let sql = sql.replace("RECORDS", &format!("{}_records", self.name)).replace("ENTRIES", &self.name);
        self.runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await.unwrap();
            let connection = tokio::spawn(connection);
            let rows = client.simple_query(&sql).await.unwrap();
            drop(client);
            connection.await.unwrap().unwrap();
            let first = rows.iter().find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
                _ => None,
            });
            first.unwrap_or_default()
        })
    }
}

#[cfg(feature = "kafka")]
impl Drop for Tables {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.ask("DROP TABLE IF EXISTS RECORDS; DROP TABLE IF EXISTS ENTRIES");
        }
    }
}

#[cfg(feature = "kafka")]
#[test]
#[ignore = "needs PostgreSQL: run make test"]
fn in_postgres_they_are_written_once_looked_into_and_run_again() {
    use perennial_core::crash::CrashPoint;

    let tables = Tables::new();
    let home = with_readings(&tables.job("30 days"));
    // Bytes that are no text, and a character that PostgreSQL has not.
    std::fs::write(home.path("in/a-raw.json"), b"\xff\xfe\n{\"id\":12,\"battery\":\"\\u0000\"}\n").unwrap();

    // It dies when the letters are written and not committed, and when they are committed and the batch is not.
    for point in [CrashPoint::LetterRecords, CrashPoint::AfterLetters] {
        let mut command = home.command(&["run", "--available-now", "job.yaml"]);
        let output = command.env("PERENNIAL_CRASH_AT", format!("{point}:1")).output().unwrap();
        assert_eq!(output.status.code(), None, "{point}: {}", stderr(&output));
    }
    let run = home.run();
    assert_eq!(code(&run), 0, "{}", stderr(&run));
    assert_eq!(tables.ask("SELECT count(*) FROM RECORDS"), "12", "six for each query, once");
    assert_eq!(tables.ask("SELECT count(*) FROM RECORDS WHERE query = 'raw' AND value = '\\xfffe'"), "1");
    assert!(!home.path("dlq").exists(), "there are no files");
    let records = dlq(&home, &["export", "--query", "raw", "--class", "MalformedRecord"]);
    assert!(records.contains("value_base64\":\"//4=\""), "{records}");
}

#[cfg(feature = "kafka")]
#[test]
#[ignore = "needs PostgreSQL: run make test"]
fn in_postgres_every_command_does_what_it_does_with_files() {
    let tables = Tables::new();
    let home = with_readings(&tables.job("30 days"));
    assert_eq!(code(&home.run()), 0);
    are_looked_into(&home);
    go_through_once(&home);
    assert_eq!(tables.ask("SELECT count(*) FROM RECORDS WHERE query = 'raw'"), "0", "purged with their records");

    // Another job in the same tables sees and removes nothing of this one.
    let other = with_readings(&tables.job("30 days").replace("name: greenhouse", "name: other"));
    assert!(statuses(&other).is_empty());
    // The job with a new checkpoint counts from 0 again, and keeps what is there.
    let before = statuses(&home).len();
    std::fs::remove_dir_all(home.path("checkpoints")).unwrap();
    home.write_job(&tables.job("30 days").replace("out.db", "out2.db").replace("minutes.db", "minutes2.db"));
    let run = home.run();
    assert_eq!(code(&run), 0, "{}", stderr(&run));
    assert_eq!(statuses(&home).len(), before + 4, "{:?}", statuses(&home));

    // What is older than the retention goes.
    home.write_job(&tables.job("1 hour"));
    tables.ask("UPDATE ENTRIES SET at = at - interval '2 hours'");
    std::fs::write(home.path("in/b.json"), reading(20, "101")).unwrap();
    let run = home.run();
    assert_eq!(code(&run), 0, "{}", stderr(&run));
    assert_eq!(statuses(&home).len(), 2, "{:?}", statuses(&home));
}

#[cfg(feature = "kafka")]
#[test]
#[ignore = "needs PostgreSQL: run make test"]
fn without_its_letters_a_batch_does_not_commit() {
    let tables = Tables::new();
    // A table of somebody else has the name.
    tables.ask("CREATE TABLE ENTRIES (id int); CREATE TABLE RECORDS (id int)");
    let home = with_readings(&format!("{}retry: {{ initial: 10ms, max: 20ms }}\n", tables.job("30 days")));
    let mut running = Running::start(home.command(&["run", "job.yaml"]));
    running.wait_for_text("dead letters in postgres");
    running.signal("KILL");
    running.end();
    assert!(home.files_below("checkpoints").keys().all(|path| !path.to_string_lossy().contains("/commits/")));
}
