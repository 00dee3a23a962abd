//! The program dies at each crash point in turn, or at any moment, without a last word, and is started again: the result is the one without a
//! crash.

use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use perennial_core::crash::CrashPoint;

use crate::support::{Home, code, stderr};

/// Counts in windows into a database, copies into files by a partition, and into a Delta table.
pub const JOB: &str = "\
name: crashes
sources:
  input:
    files: { path: in, settle: 0s, max_files_per_batch: 1 }
    format: json
    schema: id BIGINT NOT NULL, at TIMESTAMP NOT NULL
    watermark: { column: at, delay: 0s }
queries:
  counts:
    sql: SELECT window.start AS s, count(*) AS n, sum(id) AS total FROM input GROUP BY window(at, '7 seconds')
    sink: { sqlite: { path: out.db, table: counts } }
  copies:
    sql: SELECT id, id % 2 AS half FROM input
    sink: { files: { path: out, format: parquet, partition_by: [half] } }
  lake:
    sql: SELECT id FROM input
    sink: { delta: { path: lake, checkpoint_interval: 3 } }
trigger: available_now
checkpoint: checkpoint
batches_to_retain: 2
dead_letters: { path: dlq }
guarantee: exactly_once
http: { enabled: false }
";

const FILES: u64 = 6;
const PER_FILE: u64 = 10;

/// What is everywhere in the end.
#[derive(Debug, PartialEq, Eq)]
pub struct Results {
    counts: Vec<(String, i64, i64)>,
    copies: Vec<i64>,
    lake: Vec<i64>,
    dead_letters: Vec<String>,
}

pub fn home(job: &str) -> Home {
    let home = Home::new(job);
    for file in 0..FILES {
        home.give(file * PER_FILE..(file + 1) * PER_FILE);
        std::fs::write(home.path(&format!("in/{:06}-bad.json", file * PER_FILE)), format!("bad {file}\n")).unwrap();
    }
    home
}

fn ids(path: &std::path::Path) -> Vec<i64> {
    let rows = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap().build().unwrap();
    rows.flat_map(|rows| rows.unwrap().column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

pub fn results(home: &Home) -> Results {
    let database = rusqlite::Connection::open(home.path("out.db")).unwrap();
    let mut statement = database.prepare("SELECT s, n, total FROM counts ORDER BY s").unwrap();
    let rows = statement.query_map([], |row| Ok((format!("{:?}", row.get_ref(0)?), row.get(1)?, row.get(2)?)));
    let counts = rows.unwrap().map(Result::unwrap).collect();
    let mut copies = Vec::new();
    for path in home.files_below("out").into_keys() {
        assert!(path.extension().is_some_and(|end| end == "parquet"), "not a result: {}", path.display());
        copies.extend(ids(&path));
    }
    copies.sort_unstable();
    let mut lake = Vec::new();
    for (_, content) in home
        .files_below("lake/_delta_log")
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|end| end == "json"))
    {
        for line in String::from_utf8(content).unwrap().lines() {
            let action: serde_json::Value = serde_json::from_str(line).unwrap();
            if let Some(file) = action["add"]["path"].as_str() {
                lake.extend(ids(&home.path("lake").join(file)));
            }
        }
    }
    lake.sort_unstable();
    let mut dead_letters = Vec::new();
    for (path, content) in home.files_below("dlq") {
        if path.extension().is_some_and(|end| end == "json") {
            let lines = String::from_utf8(content).unwrap();
            dead_letters.extend(lines.lines().map(|line| {
                let entry: serde_json::Value = serde_json::from_str(line).unwrap();
                // Which file comes first is not fixed, and so is not the number of its batch.
                format!("{} {}", entry["query"], entry["sample_records"])
            }));
        }
    }
    dead_letters.sort_unstable();
    Results { counts, copies, lake, dead_letters }
}

/// Runs the job until it dies at a point, and tells whether it did.
fn dies_at(home: &Home, point: CrashPoint, passage: u64) -> bool {
    let mut command = home.command(&["run", "job.yaml"]);
    let output = command.env("PERENNIAL_CRASH_AT", format!("{point}:{passage}")).output().unwrap();
    match output.status.code() {
        None => true,
        Some(0) => false,
        Some(code) => panic!("{point}: code {code}\n{}", stderr(&output)),
    }
}

#[test]
fn the_program_can_die_at_any_point() {
    let calm = home(JOB);
    assert_eq!(code(&calm.run()), 0);
    let expected = results(&calm);
    assert_eq!(expected.copies, (0..FILES * PER_FILE).map(|n| n as i64).collect::<Vec<_>>());
    assert_eq!(expected.lake, expected.copies);
    assert_eq!(expected.dead_letters.len() as u64, FILES * 3, "{:?}", expected.dead_letters);
    assert!(expected.counts.len() > 5, "{:?}", expected.counts);

    let points = Mutex::new(CrashPoint::ALL.iter().copied());
    let worker = || {
        loop {
            let Some(point) = points.lock().unwrap().next() else { return };
            // Snapshots come with more state than this job has: those are the simulator's.
            if matches!(point, CrashPoint::BeforeSnapshot | CrashPoint::AfterSnapshot) {
                continue;
            }
            let home = home(JOB);
            let mends = matches!(point, CrashPoint::BeforeAside | CrashPoint::HalfAside | CrashPoint::AfterAside);
            if mends {
                // The last commit is torn: its batch runs again, for which the commit is set aside.
                assert_eq!(code(&home.run()), 0);
                let commits = home.files_below("checkpoint/copies/commits").into_iter();
                let number =
                    |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().parse::<u64>().unwrap();
                let (last, content) = commits.max_by_key(|(path, _)| number(path)).unwrap();
                std::fs::write(last, &content[..content.len() / 2]).unwrap();
            }
            let of_a_start = ["takeover", "identity", "aside"].contains(&point.name().split_once('.').unwrap().0);
            let passage = if of_a_start { 1 } else { 3 };
            assert!(dies_at(&home, point, passage), "{point} was not passed {passage} times");
            let output = home.run();
            assert_eq!(code(&output), 0, "{point}: {}", stderr(&output));
            assert_eq!(results(&home), expected, "after a death at {point}");
        }
    };
    std::thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(worker)));
    });
}

/// Killed at random moments, as often as `PERENNIAL_PROOF_KILLS` says.
#[test]
fn the_program_can_be_killed_at_any_moment() {
    let wanted: u32 = std::env::var("PERENNIAL_PROOF_KILLS").map_or(12, |n| n.parse().unwrap());
    let calm = home(JOB);
    let began = Instant::now();
    assert_eq!(code(&calm.run()), 0);
    let (expected, whole) = (results(&calm), began.elapsed());
    let (kills, runs) = (AtomicU32::new(0), AtomicU32::new(0));
    let worker = || {
        while kills.load(Ordering::Relaxed) < wanted {
            let home = home(JOB);
            loop {
                let mut life =
                    home.command(&["run", "job.yaml"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                std::thread::sleep(whole.mul_f64(rand::random::<f64>() * 1.2));
                if let Some(status) = life.try_wait().unwrap() {
                    assert!(status.success(), "{:?}: {}", home.path(""), stderr(&home.run()));
                    break;
                }
                life.kill().unwrap();
                life.wait().unwrap();
                kills.fetch_add(1, Ordering::Relaxed);
            }
            assert_eq!(results(&home), expected);
            runs.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        (0..2).for_each(|_| drop(scope.spawn(worker)));
    });
    println!("{} kills in {} runs of the job, nothing lost, nothing doubled", kills.into_inner(), runs.into_inner());
}
