//! Rows that come when the watermark has passed their event time, with `late: dead_letter`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{Home, code, stderr};

/// Two sources of which each has a watermark without delay, a table, and the query of a case.
fn job(query: &str, late: &str) -> String {
    let source = |name: &str| {
        format!(
            "  {name}:\n    files: {{ path: {name}, settle: 0s }}\n    format: json\n    schema: id BIGINT NOT NULL, k STRING, at TIMESTAMP\n    \
             watermark: {{ column: at, delay: 0s }}\n"
        )
    };
    format!(
        "name: late\nsources:\n{}{}  plain:\n    files: {{ path: a, settle: 0s }}\n    format: json\n    schema: id BIGINT, k STRING, at TIMESTAMP\n    \
         watermark: {{ column: at, delay: 0s }}\n    deduplicate: {{ columns: [id] }}\n\
         tables:\n  names:\n    files: {{ path: names.json }}\n    format: json\n    schema: k STRING, name STRING\n\
         queries:\n  q:\n    sql: {query}\n    late: {late}\n    sink: {{ files: {{ path: out, format: json }} }}\n\
         checkpoint: checkpoint\ndead_letters: {{ path: dlq }}\nguarantee: exactly_once\nhttp: {{ enabled: false }}\n",
        source("a"),
        source("b"),
    )
}

/// What is given one after the other: per file the source and its rows. The watermark is at 12:10:30 when the second files come.
const GIVEN: [&[(&str, &str)]; 2] = [
    &[("a", "1 x 12:00:00, 2 y 12:10:30"), ("b", "21 x 12:00:10, 22 y 12:10:30")],
    &[
        // 3 and 6 are late in any case, 4 is in time for one of two overlapping windows, and 7 has no time.
        ("a", "3 x 12:01:00, 4 y 12:06:00, 5 x 12:10:40, 6 z 11:59:00, 7 x -"),
        ("b", "23 x 12:01:10, 24 x 12:20:00, 25 y 12:10:30"),
    ],
];

fn give(home: &Home, number: usize) {
    for (source, rows) in GIVEN[number] {
        let line = |row: &str| {
            let [id, k, time] = row.split(' ').collect::<Vec<_>>()[..] else { panic!("{row}") };
            let time = if time == "-" { "null".to_owned() } else { format!("\"2026-01-01T{time}Z\"") };
            format!("{{\"id\":{id},\"k\":\"{k}\",\"at\":{time}}}\n")
        };
        let bad = if number == 1 { "broken\n" } else { "" };
        let text: String = rows.split(", ").map(line).collect::<String>() + bad;
        std::fs::create_dir_all(home.path(source)).unwrap();
        std::fs::write(home.path(&format!("{source}/{number}.json")), text).unwrap();
    }
}

fn home(query: &str, late: &str) -> Home {
    let home = Home::new(&job(query, late));
    std::fs::write(home.path("names.json"), "{\"k\":\"x\",\"name\":\"X\"}\n{\"k\":\"x\",\"name\":\"XX\"}\n").unwrap();
    give(&home, 0);
    let ran = home.run();
    assert_eq!(code(&ran), 0, "{query}: {}", stderr(&ran));
    give(&home, 1);
    home
}

/// The rows of the sink, sorted.
fn written(home: &Home) -> Vec<String> {
    let files = home.files_below("out").into_values().map(|content| String::from_utf8(content).unwrap());
    let mut rows: Vec<String> = files.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    rows.sort_unstable();
    rows
}

/// The entries of the dead letters.
fn entries(home: &Home) -> Vec<Value> {
    let is_day = |path: &std::path::Path| path.file_name().unwrap().to_string_lossy().starts_with("failed_batches_");
    let days = home.files_below("dlq").into_iter().filter(|(path, _)| is_day(path));
    days.flat_map(|(_, content)| {
        String::from_utf8(content).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>()
    })
    .collect()
}

/// The numbers of the records that are dead letters because they were late.
fn late_letters(home: &Home) -> Vec<u64> {
    let late = entries(home).into_iter().filter(|entry| entry["error"]["type"] == "LateRecord");
    let mut ids: Vec<u64> = late
        .flat_map(|entry| {
            let message = entry["error"]["message"].as_str().unwrap();
            assert!(message.contains("2026-01-01T12:10:30.000000"), "the watermark that was missed: {entry}");
            let records = entry["sample_records"].as_array().unwrap();
            assert_eq!(entry["records"], records.len());
            records.iter().map(|record| record["id"].as_u64().unwrap()).collect::<Vec<_>>()
        })
        .collect();
    ids.sort_unstable();
    ids
}

/// The counts of all batches together.
fn counts(home: &Home) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (_, content) in home.files_below("checkpoint/q/commits") {
        let text = String::from_utf8(content).unwrap();
        let commit = text.lines().find_map(|line| serde_json::from_str::<Value>(line).ok()).unwrap();
        for (name, count) in commit["perennial"]["counts"].as_object().unwrap() {
            *sums.entry(name.clone()).or_insert(0) += count.as_u64().unwrap();
        }
    }
    sums
}

const CASES: [(&str, &[u64]); 9] = [
    ("SELECT window.start AS s, count(*) AS n FROM a GROUP BY window(at, '5 minutes')", &[3, 4, 6]),
    ("SELECT window.start AS s, count(*) AS n FROM a GROUP BY window(at, '10 minutes', '5 minutes')", &[3, 6]),
    (
        "SELECT session_window.start AS s, k, count(*) AS n FROM a GROUP BY session_window(at, '1 minute'), k",
        &[3, 4, 6],
    ),
    ("SELECT at, count(*) AS n FROM a WHERE k <> 'z' GROUP BY at", &[3, 4]),
    ("SELECT id, at FROM plain", &[3, 4, 6]),
    (
        "SELECT a.id, b.id AS other FROM a JOIN b ON a.k = b.k AND b.at BETWEEN a.at AND a.at + INTERVAL 10 MINUTES",
        &[3, 4, 6, 23, 25],
    ),
    // Records of which the query makes several rows, or none, or that it reads twice.
    (
        "SELECT window.start AS s, count(*) AS n FROM (SELECT at FROM a UNION ALL SELECT at + INTERVAL 0 MINUTES FROM a WHERE id > 5) \
         GROUP BY window(at, '5 minutes')",
        &[3, 4, 6],
    ),
    (
        "SELECT window.start AS s, name, count(*) AS n FROM a JOIN names ON a.k = names.k GROUP BY window(at, '5 minutes'), name",
        &[3],
    ),
    (
        "SELECT window.start AS s, c, count(*) AS n FROM (SELECT at, explode(array(k, 'c', 'd')) AS c FROM a) \
         GROUP BY window(at, '5 minutes'), c",
        &[3, 4, 6],
    ),
];

#[test]
fn late_records_are_dead_letters_and_change_nothing_else() {
    for (query, expected) in CASES {
        let dropped = home(query, "drop");
        assert_eq!(code(&dropped.run()), 0);
        assert_eq!(late_letters(&dropped), [0; 0], "{query}");
        let home = home(query, "dead_letter");
        let ran = home.run();
        assert_eq!(code(&ran), 0, "{query}: {}", stderr(&ran));
        assert!(!stderr(&ran).contains("do not close"), "{query}: {}", stderr(&ran));
        assert_eq!(late_letters(&home), *expected, "{query}");
        assert_eq!(written(&home), written(&dropped), "{query}");
        let (counts, before) = (counts(&home), counts(&dropped));
        assert_eq!(counts["read"], before["read"], "{query}");
        assert_eq!(counts["held"], before["held"], "{query}");
        assert_eq!(counts["dead_lettered"], before["dead_lettered"] + expected.len() as u64, "{query}");
        assert!(counts["late"] < before["late"], "{query}: {counts:?}");
        assert_eq!(
            counts["held"] + counts["filtered"] + counts["late"] + counts["dead_lettered"] + counts["dropped"],
            counts["read"] + counts["multiplied"],
            "{query}: {counts:?}"
        );
    }
}

#[test]
fn a_crash_neither_loses_nor_doubles_a_late_record() {
    let (query, expected) = CASES[0];
    for point in ["sink.after", "letters.before", "letters.after", "commit.before", "commit.after"] {
        let home = home(query, "dead_letter");
        let mut command = home.command(&["run", "--available-now", "job.yaml"]);
        let died = command.env("PERENNIAL_CRASH_AT", format!("{point}:1")).output().unwrap();
        assert_eq!(died.status.code(), None, "{point}: {}", stderr(&died));
        let ran = home.run();
        assert_eq!(code(&ran), 0, "{point}: {}", stderr(&ran));
        assert_eq!(late_letters(&home), *expected, "{point}");
        assert_eq!(entries(&home).len(), 2, "the broken record and the late ones, once: {point}");
        let counts = counts(&home);
        assert_eq!((counts["late"], counts["dead_lettered"]), (0, expected.len() as u64 + 1), "{point}");
    }
}

#[test]
fn what_cannot_tell_its_late_rows_is_refused_by_check() {
    let query = "SELECT window.start AS s, count(*) AS n FROM a WHERE rand() < 0.5 GROUP BY window(at, '5 minutes')";
    let home = Home::new(&job(query, "dead_letter").replace("guarantee: exactly_once\n", ""));
    let check = home.command(&["check", "job.yaml"]).output().unwrap();
    let text = String::from_utf8(check.stdout.clone()).unwrap() + &stderr(&check);
    assert_eq!(code(&check), 78, "{text}");
    for part in ["queries.q.late", "rand() or uuid()", "StateUnsupported"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
