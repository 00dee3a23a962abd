//! A limit on memory: smaller batches first, then a clear error; never more than the limit, never a lost row.

use crate::support::{Home, code, stderr, stdout};

/// A job that counts 30,000 readings by windows of a second and by a key of 2,000 bytes: 60 MB of keys.
fn job(settings: &str, query: &str, key: &str) -> String {
    format!(
        "name: limited
sources:
  readings:
    simulate: {{ profile: greenhouse, seed: 3, keys: 1000, rate: max, records: 30000, start: '2026-01-01T00:00:00Z', event_interval: 1 ms }}
    schema: sensor_id STRING, event_time TIMESTAMP
    watermark: {{ column: event_time, delay: 1 second }}
queries:
  counts:
    {query}
    sink: {{ sqlite: {{ path: counts.db, table: counts, key: {key} }} }}
http: {{ enabled: false }}
{settings}
"
    )
}

const WINDOWS: &str = "sql: SELECT window.start AS second, repeat(sensor_id, 150) AS sensor, count(*) AS n FROM readings GROUP BY window(event_time, '1 second'), repeat(sensor_id, 150)";

fn rows(home: &Home) -> Vec<(String, String, i64)> {
    let database = rusqlite::Connection::open(home.path("counts.db")).unwrap();
    let mut rows = database.prepare("SELECT second, sensor, n FROM counts ORDER BY second, sensor").unwrap();
    rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap().map(Result::unwrap).collect()
}

#[test]
fn batches_get_smaller_until_they_fit() {
    let free = Home::new(&job("", WINDOWS, "[second, sensor]"));
    let run = free.run();
    assert_eq!(code(&run), 0, "{}", stderr(&run));
    let limited = Home::new(&job("memory: { limit: 16 MB }\nparallelism: 2", WINDOWS, "[second, sensor]"));
    let run = limited.run();
    assert_eq!(code(&run), 0, "{}", stderr(&run));
    assert!(stderr(&run).contains("the batch did not fit into the memory"), "{}", stderr(&run));
    assert!(stdout(&run).contains("30000 records read"), "{}", stdout(&run));
    let expected = rows(&free);
    assert!(expected.len() > 15_000, "{} rows", expected.len());
    assert!(rows(&limited) == expected, "the same rows, whatever the batches");
}

#[test]
fn state_that_outgrows_the_limit_stops_the_query_and_says_what_to_do() {
    let query = "sql: SELECT repeat(concat(sensor_id, event_time), 60) AS sensor, count(*) AS n FROM readings GROUP BY repeat(concat(sensor_id, event_time), 60)\n    output_mode: update";
    let home = Home::new(&job("memory: { limit: 16 MB }", query, "[sensor]"));
    let run = home.run();
    assert_eq!(code(&run), 1, "{}", stderr(&run));
    for part in ["above `memory.limit` (16 MB)", "backend: disk", "MemoryLimit"] {
        assert!(stderr(&run).contains(part), "{part}: {}", stderr(&run));
    }
    // What was committed stays, and with more memory it goes on from there.
    home.write_job(&job("memory: { limit: 400 MB }", query, "[sensor]"));
    let run = home.run();
    assert_eq!(code(&run), 0, "{}", stderr(&run));
    let database = rusqlite::Connection::open(home.path("counts.db")).unwrap();
    let sum: i64 = database.query_row("SELECT sum(n) FROM counts", [], |row| row.get(0)).unwrap();
    assert_eq!(sum, 30_000);
}
