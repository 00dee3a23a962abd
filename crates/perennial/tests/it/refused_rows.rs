//! Rows that the target of a sink refuses: exactly they are dead letters, and the rest of the batch is written once.

use std::fmt::Write as _;

use serde_json::Value;

use crate::support::{Home, code, stderr, stdout};

/// A job that copies `id` and `value` to a table.
fn job(sink: &str, more: &str) -> String {
    format!(
        "name: poison\nsources:\n  rows:\n    files: {{ path: ./in, settle: 0s }}\n    format: json\n    schema: id BIGINT, value BIGINT\n\
         queries:\n  q:\n    sql: SELECT id, value FROM rows WHERE value <> 7\n    sink: {sink}\n\
         trigger: available_now\nguarantee: exactly_once\nhttp: {{ enabled: false }}\n{more}\n"
    )
}

fn give(home: &Home, file: &str, rows: impl Iterator<Item = (i64, i64)>) {
    let mut text = String::new();
    for (id, value) in rows {
        writeln!(text, r#"{{"id":{id},"value":{value}}}"#).unwrap();
    }
    std::fs::write(home.path("in").join(file), text).unwrap();
}

/// Class and samples of the entries in the dead letters.
fn letters(home: &Home) -> Vec<(String, Vec<i64>, u64)> {
    let entries =
        home.files_below("dlq").into_iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "json"));
    let mut letters = Vec::new();
    for (_, text) in entries {
        for line in String::from_utf8(text).unwrap().lines() {
            let entry: Value = serde_json::from_str(line).unwrap();
            let ids = entry["sample_records"].as_array().unwrap().iter().map(|record| record["id"].as_i64().unwrap());
            letters.push((
                entry["error"]["type"].as_str().unwrap().to_owned(),
                ids.collect(),
                entry["records"].as_u64().unwrap(),
            ));
        }
    }
    letters
}

fn sqlite(home: &Home, sql: &str) -> i64 {
    let database = rusqlite::Connection::open(home.path("out.db")).unwrap();
    database.query_row(sql, [], |row| row.get(0)).unwrap()
}

const TABLE: &str = "{ sqlite: { path: out.db, table: rows } }";

fn with_table(more: &str) -> Home {
    let home = Home::new(&job(TABLE, more));
    let database = rusqlite::Connection::open(home.path("out.db")).unwrap();
    database.execute_batch("CREATE TABLE rows (id INTEGER PRIMARY KEY, value INTEGER CHECK (value < 1000))").unwrap();
    home
}

#[test]
fn rows_that_break_a_constraint_and_keys_that_come_twice_are_set_aside() {
    let home = with_table("");
    // 20 and 4,000 are too large; 77 comes twice in the batch, and 5 came in the batch before.
    give(&home, "a.json", (0..10).map(|id| (id, 1)));
    assert_eq!(code(&home.run()), 0);
    let rows = (20..5_000).map(|id| (id, if [20, 4_000].contains(&id) { 1_000 } else { id % 100 }));
    give(&home, "b.json", rows.chain([(77, 3), (5, 3)]));
    let run = home.run();
    assert_eq!(code(&run), 0, "{}", stderr(&run));
    assert!(stderr(&run).contains("rows that fail go to the dead letters"), "{}", stderr(&run));
    assert_eq!(letters(&home), [("ConstraintViolation".to_owned(), vec![20, 4_000, 77, 5], 4)]);
    let filtered = (20..5_000).filter(|id| id % 100 == 7).count() as i64;
    assert_eq!(sqlite(&home, "SELECT count(*) FROM rows"), 10 + 4_980 - 2 - filtered);
    assert_eq!(sqlite(&home, "SELECT value FROM rows WHERE id = 77"), 77, "the first of two is written");
}

/// A row of a query with state comes from many records: it is set aside as it is, and the state keeps what it came from.
#[test]
fn a_refused_row_of_a_query_with_state_is_set_aside_and_its_state_goes_on() {
    let home = with_table("");
    let sql = "SELECT id % 100 AS id, sum(value) AS value FROM rows GROUP BY id % 100\n    output_mode: update";
    let keyed = TABLE.replace("table: rows", "table: rows, key: [id]");
    home.write_job(&job(&keyed, "").replace("SELECT id, value FROM rows WHERE value <> 7", sql));
    let too_large = [3, 42];
    give(&home, "a.json", (0..1_000).map(|id| (id, if too_large.contains(&(id % 100)) { 100 } else { 1 })));
    let run = home.run();
    assert_eq!(code(&run), 0, "{}", stderr(&run));
    assert!(
        stderr(&run).contains("rows of the result that the sink refuses go to the dead letters"),
        "{}",
        stderr(&run)
    );
    assert!(!stderr(&run).contains("do not close"), "{}", stderr(&run));
    let (class, mut ids, records) = letters(&home).remove(0);
    ids.sort_unstable();
    assert_eq!((class.as_str(), ids.as_slice(), records), ("ConstraintViolation", &too_large[..], 2));
    assert_eq!(sqlite(&home, "SELECT count(*) FROM rows WHERE value = 10"), 98);
    assert_eq!(sqlite(&home, "SELECT count(*) FROM rows"), 98);

    give(&home, "b.json", [(3, -500), (4, 5)].into_iter());
    let run = home.run();
    assert_eq!(code(&run), 0, "{}", stderr(&run));
    assert_eq!(sqlite(&home, "SELECT value FROM rows WHERE id = 3"), 500);
    assert_eq!(sqlite(&home, "SELECT value FROM rows WHERE id = 4"), 15);

    let replay = home.command(&["dlq", "replay", "job.yaml"]).output().unwrap();
    for said in ["left out, these are rows of the result", "no entry is left to replay"] {
        assert!(stdout(&replay).contains(said), "{}{}", stdout(&replay), stderr(&replay));
    }
}

#[test]
fn a_whole_batch_can_be_set_aside_and_the_next_goes_on() {
    let home = with_table("on_error: { ConstraintViolation: dead_letter_batch }");
    give(&home, "a.json", (0..10).map(|id| (id, 100 * (id + 1))));
    assert_eq!(code(&home.run()), 0);
    give(&home, "b.json", (20..30).map(|id| (id, 1)));
    assert_eq!(code(&home.run()), 0);
    assert_eq!(letters(&home), [("ConstraintViolation".to_owned(), vec![0, 1, 2, 3, 4], 10)]);
    assert_eq!(sqlite(&home, "SELECT count(*) FROM rows"), 10);
}

#[test]
fn what_to_do_can_be_to_stop() {
    let home = with_table("on_error: { default: stop }");
    give(&home, "a.json", (0..10).map(|id| (id, 100 * (id + 1))));
    let run = home.run();
    assert_eq!(code(&run), 1);
    assert!(stderr(&run).contains("ConstraintViolation"), "{}", stderr(&run));
    assert_eq!(letters(&home), []);
    assert_eq!(sqlite(&home, "SELECT count(*) FROM rows"), 0);
}

#[test]
fn a_reaction_that_makes_no_sense_is_refused() {
    let home = with_table("on_error: { ConnectionRefused: dead_letter_batch }");
    let run = home.run();
    assert_eq!(code(&run), 78);
    assert!(stderr(&run).contains("good rows are no dead letters"), "{}", stderr(&run));
}

#[cfg(feature = "kafka")]
#[test]
#[ignore = "needs PostgreSQL: run make test"]
fn one_poison_row_among_100_000_in_postgres() {
    use crate::support::server;

    const ROWS: i64 = 100_000;
    const POISON: i64 = 61_803;
    let (url, table) = (server("PERENNIAL_TEST_POSTGRES"), format!("poison_{}", rand::random::<u32>()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sql = |sql: String| {
        runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
            let connection = tokio::spawn(connection);
            let rows = client.simple_query(&sql).await.unwrap();
            drop(client);
            connection.await.unwrap().unwrap();
            rows.iter().find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
                _ => None,
            })
        })
    };
    // Nextval counts also what is rolled back: how many rows the server was given.
    sql(format!(
        "CREATE SEQUENCE {table}_given; CREATE TABLE {table} (id bigint, value bigint CHECK (value <> 13 AND nextval('{table}_given') > 0))"
    ));
    let home = Home::new(&job(&format!("{{ postgres: {{ url: '{url}', table: {table} }} }}"), ""));
    give(&home, "a.json", (0..ROWS).map(|id| (id, if id == POISON { 13 } else { 1 })));
    let run = home.run();
    assert_eq!(code(&run), 0, "{}", stderr(&run));
    assert_eq!(letters(&home), [("ConstraintViolation".to_owned(), vec![POISON], 1)]);
    assert_eq!(sql(format!("SELECT count(*) FROM {table} WHERE value = 1")).unwrap(), (ROWS - 1).to_string());
    let given: i64 = sql(format!("SELECT last_value FROM {table}_given")).unwrap().parse().unwrap();
    assert!(given < 4 * ROWS, "{given} rows were sent to find one of {ROWS}");
    sql(format!("DROP TABLE {table}; DROP SEQUENCE {table}_given"));
}
