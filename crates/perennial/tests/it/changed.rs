//! A query that is changed between two runs: the state that can be kept is kept, and nothing is dropped that nobody agreed to lose.

use rusqlite::types::Value;

use crate::support::{Home, code, stderr};

/// A job whose one query writes to the table `results`.
struct Form<'a> {
    columns: &'a str,
    sql: &'a str,
    key: &'a str,
    backend: &'a str,
    table: &'a str,
}

const FORM: Form<'_> =
    Form { columns: "id INT NOT NULL, at TIMESTAMP NOT NULL", sql: "", key: "k", backend: "memory", table: "results" };

impl Form<'_> {
    fn job(&self) -> String {
        let Self { columns, sql, key, backend, table } = self;
        format!(
            "\
name: changed
sources:
  input:
    files: {{ path: in, settle: 0s, max_files_per_batch: 1 }}
    format: json
    schema: {columns}
    watermark: {{ column: at, delay: 1 hour }}
queries:
  q:
    sql: {sql}
    output_mode: update
    sink: {{ sqlite: {{ path: out.db, table: {table}, key: [{key}] }} }}
trigger: available_now
checkpoint: checkpoint
state: {{ backend: {backend} }}
http: {{ enabled: false }}
"
        )
    }
}

fn rows(home: &Home, table: &str) -> Vec<Vec<Value>> {
    let database = rusqlite::Connection::open(home.path("out.db")).unwrap();
    let mut statement = database.prepare(&format!("SELECT * FROM {table} ORDER BY 1")).unwrap();
    let width = statement.column_count();
    let rows = statement.query_map([], |row| (0..width).map(|column| row.get(column)).collect());
    rows.unwrap().map(Result::unwrap).collect()
}

/// Rows of whole numbers.
fn numbers(rows: &[&[i64]]) -> Vec<Vec<Value>> {
    rows.iter().map(|row| row.iter().map(|number| Value::Integer(*number)).collect()).collect()
}

fn runs(home: &Home) -> String {
    let output = home.run();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    stderr(&output)
}

/// The form of the query that ran first; the numbers 0 to 9 have gone through it, in two batches.
fn begun(first: &Form<'_>) -> Home {
    let home = Home::new(&first.job());
    home.give(0..5);
    home.give(5..10);
    runs(&home);
    home
}

const BEFORE: Form<'_> =
    Form { sql: "SELECT id % 2 AS k, count(*) AS n, sum(id) AS s, max(id) AS m FROM input GROUP BY id % 2", ..FORM };

#[test]
fn what_can_be_kept_is_kept() {
    for backend in ["memory", "disk"] {
        let before = Form { backend, ..BEFORE };
        // A new one, one that is gone, and others in another place under another name, filtered, in another table.
        let after = Form {
            sql: "SELECT id % 2 AS k, sum(id) AS total, min(id) AS least, avg(id) AS mean, count(*) AS n FROM input \
                  WHERE id < 100 GROUP BY id % 2",
            table: "after",
            ..before
        };
        let home = begun(&before);
        home.write_job(&after.job());
        home.give(10..20);
        home.give(200..210);
        let log = runs(&home);
        for said in ["min(input.id)", "it begins empty", "max(input.id)", "no longer needed"] {
            assert!(log.contains(said), "`{said}` is not in the log:\n{log}");
        }
        let row = |k: i64, total: i64, least: i64, mean: f64, n: i64| {
            let [k, total, least, n] = [k, total, least, n].map(Value::Integer);
            vec![k, total, least, Value::Real(mean), n]
        };
        // Sum and count go on; the others know the numbers since 10 only.
        assert_eq!(rows(&home, "after"), [row(0, 90, 10, 14.0, 10), row(1, 100, 11, 15.0, 10)], "{backend}");
        // And back: what was dropped begins empty again.
        home.write_job(&Form { table: "back", ..before }.job());
        home.give(20..22);
        runs(&home);
        assert_eq!(rows(&home, "back"), numbers(&[&[0, 11, 110, 20], &[1, 11, 121, 21]]), "{backend}");
    }
}

#[test]
fn a_wider_type_goes_on() {
    let home = begun(&BEFORE);
    let wider = Form { columns: "id BIGINT NOT NULL, at TIMESTAMP NOT NULL", table: "wide", ..BEFORE };
    home.write_job(&wider.job());
    home.give(10..12);
    let log = runs(&home);
    assert!(log.contains("wider types"), "{log}");
    assert_eq!(rows(&home, "wide"), numbers(&[&[0, 6, 30, 10], &[1, 6, 36, 11]]));
}

/// What a stateless query has passed on is unknown to an aggregate that takes its place.
#[test]
fn an_operator_that_is_new_needs_consent() {
    let home = begun(&Form { sql: "SELECT id AS k, id AS n FROM input", ..FORM });
    home.write_job(&Form { table: "counts", ..BEFORE }.job());
    let output = home.run();
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains("is new, and knows nothing of what was before"), "{}", stderr(&output));
}

/// The process dies at each durable step around the first batch of the changed query: nothing is converted twice, or half.
#[test]
fn a_death_while_a_query_changes_loses_nothing() {
    let after = Form {
        sql: "SELECT id % 2 AS k, count(*) AS n, sum(id) AS s, min(id) AS m FROM input GROUP BY id % 2",
        table: "after",
        ..BEFORE
    };
    for point in [
        "takeover.after",
        "offsets.after",
        "sink.before",
        "sink.after",
        "state.before",
        "state.after",
        "commit.before",
        "commit.after",
    ] {
        let home = begun(&BEFORE);
        home.write_job(&after.job());
        home.give(10..20);
        let mut command = home.command(&["run", "--available-now", "job.yaml"]);
        let died = command.env("PERENNIAL_CRASH_AT", format!("{point}:1")).output().unwrap();
        assert_eq!(died.status.code(), None, "{point}: {}", stderr(&died));
        runs(&home);
        assert_eq!(rows(&home, "after"), numbers(&[&[0, 10, 90, 10], &[1, 10, 100, 11]]), "after a death at {point}");
    }
}

/// A changed query begins a batch and dies, and the query is as it was again: the batch may be in the sink in another form, which needs consent;
/// the state is that of the query, and stays.
#[test]
fn a_change_that_is_taken_back_keeps_the_state() {
    let home = begun(&BEFORE);
    home.write_job(
        &Form { sql: "SELECT id % 2 AS k, count(*) AS n FROM input GROUP BY id % 2", table: "other", ..BEFORE }.job(),
    );
    home.give(10..20);
    let mut command = home.command(&["run", "--available-now", "job.yaml"]);
    let died = command.env("PERENNIAL_CRASH_AT", "offsets.after:1").output().unwrap();
    assert_eq!(died.status.code(), None, "{}", stderr(&died));
    home.write_job(&BEFORE.job());
    let output = home.run();
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains("was begun before the change"), "{}", stderr(&output));
    let output = home.command(&["run", "--available-now", "--accept-state-changes", "job.yaml"]).output().unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(rows(&home, "results"), numbers(&[&[0, 10, 90, 18], &[1, 10, 100, 19]]));
}

#[test]
fn what_cannot_be_kept_needs_consent() {
    let others = [
        ("SELECT id % 3 AS k, count(*) AS n FROM input GROUP BY id % 3", "now are by"),
        (
            "SELECT id % 2 AS k, CAST(id % 5 AS INT) AS r, count(*) AS n FROM input GROUP BY id % 2, id % 5",
            "now are by",
        ),
    ];
    for (sql, why) in others {
        let home = begun(&BEFORE);
        let key = if sql.contains(" AS r") { "k, r" } else { "k" };
        home.write_job(&Form { sql, key, table: "other", ..BEFORE }.job());
        home.give(10..12);
        let checkpoint = home.files_below("checkpoint/q/state");
        for _ in 0..2 {
            let output = home.run();
            let said = stderr(&output);
            assert_eq!(code(&output), 1, "{sql}\n{said}");
            for part in [why, "--accept-state-changes", "CheckpointMismatch"] {
                assert!(said.contains(part), "{sql}: `{part}` is not in:\n{said}");
            }
        }
        assert_eq!(home.files_below("checkpoint/q/state"), checkpoint, "a refusal changed the state");
        let output = home.command(&["run", "--available-now", "--accept-state-changes", "job.yaml"]).output().unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let counted = rows(&home, "other").iter().map(|row| row.last().cloned()).collect::<Vec<_>>();
        assert_eq!(counted, [Some(Value::Integer(1)), Some(Value::Integer(1))], "{sql}");
    }
}
