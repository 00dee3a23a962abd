//! `perennial checkpoint`, and what damage does: every kind of file of a checkpoint, harmed in every way, and the query started again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use perennial::Job;
use perennial::run::RunSummary;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::PERENNIAL;

/// Records of a batch.
const BATCH: u64 = 50;
/// Batches with records of the first run: enough for a snapshot of the state. The aggregate has one more, in which it emits the last windows
/// that close.
const BATCHES: u64 = 70;

/// A job with an aggregate and a copy, as far as `records`.
fn job_text(dir: &Path, records: u64) -> String {
    let dir = dir.display();
    format!(
        r#"
name: small
sources:
  readings:
    simulate: {{ profile: greenhouse, seed: 7, keys: 5, rate: max, records: {records}, max_records_per_batch: {BATCH},
                 start: "2026-01-01T00:00:00Z", event_interval: 1s, out_of_order: 0.1, max_delay: 20 seconds }}
    format: json
    schema: sensor_id STRING NOT NULL, event_time TIMESTAMP NOT NULL, temperature DOUBLE
    watermark: {{ column: event_time, delay: 20 seconds }}
queries:
  counts:
    sql: |
      SELECT window.start AS minute, sensor_id, count(*) AS readings, max(temperature) AS greatest
      FROM readings GROUP BY window(event_time, '1 minute'), sensor_id
    sink: {{ sqlite: {{ path: "{dir}/out.db", table: counts }} }}
  copies:
    sql: SELECT sensor_id, event_time, temperature FROM readings
    sink: {{ files: {{ path: "{dir}/copies", format: json }} }}
trigger: available_now
parallelism: 2
checkpoint: "{dir}/checkpoints"
dead_letters: {{ path: "{dir}/dlq" }}
guarantee: exactly_once
http: {{ enabled: false }}
"#
    )
}

/// Runs the job in this process.
fn summary(dir: &Path, records: u64) -> RunSummary {
    let job = Job::from_text("small.yaml", &job_text(dir, records)).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(job.run(Default::default())).unwrap()
}

/// What is said of each query that failed.
fn failures(summary: &RunSummary) -> BTreeMap<String, String> {
    summary.failed().map(|(query, error)| (query.to_owned(), error.to_string())).collect()
}

/// Runs the job in this process: what it says of each query that fails.
fn run(dir: &Path, records: u64) -> BTreeMap<String, String> {
    failures(&summary(dir, records))
}

/// Copies a directory. What nobody changes in place is only linked, which is much quicker.
fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    let links = ["offsets", "commits", "state", "copies"].iter().any(|name| from.ends_with(name));
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &target),
            false if links => std::fs::hard_link(entry.path(), target).unwrap(),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() { files.extend(files_below(&entry)) } else { files.push(entry) }
    }
    files.sort();
    files
}

/// The job after its first run, made once.
fn base() -> &'static TempDir {
    static BASE: OnceLock<TempDir> = OnceLock::new();
    BASE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        assert!(run(dir.path(), BATCH * BATCHES).is_empty());
        dir
    })
}

/// A copy of the job after its first run.
fn fresh() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_tree(base().path(), dir.path());
    std::fs::write(dir.path().join("small.yaml"), job_text(dir.path(), BATCH * BATCHES)).unwrap();
    dir
}

/// What the sinks have: the table of counts, and the lines of the copies.
fn results(dir: &Path) -> (Vec<String>, Vec<String>) {
    let connection = rusqlite::Connection::open(dir.join("out.db")).unwrap();
    let mut statement = connection.prepare("SELECT minute, sensor_id, readings, greatest FROM counts").unwrap();
    let rows = statement.query_map([], |row| {
        Ok(format!("{:?} {:?} {:?} {:?}", row.get_ref(0)?, row.get_ref(1)?, row.get_ref(2)?, row.get_ref(3)?))
    });
    let mut counts: Vec<String> = rows.unwrap().map(Result::unwrap).collect();
    counts.sort();
    let mut lines = Vec::new();
    for file in files_below(&dir.join("copies")) {
        lines.extend(std::fs::read_to_string(file).unwrap().lines().map(str::to_owned));
    }
    lines.sort();
    (counts, lines)
}

/// What a run without damage gives in the end.
fn expected() -> &'static (Vec<String>, Vec<String>) {
    static EXPECTED: OnceLock<(Vec<String>, Vec<String>)> = OnceLock::new();
    EXPECTED.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        assert!(run(dir.path(), BATCH * (BATCHES + 3)).is_empty());
        let expected = results(dir.path());
        assert_eq!(expected.1.len() as u64, BATCH * (BATCHES + 3));
        assert!(expected.0.len() > 200, "{}", expected.0.len());
        expected
    })
}

/// Goes on with more records; what failed.
fn go_on(dir: &Path) -> BTreeMap<String, String> {
    run(dir, BATCH * (BATCHES + 3))
}

fn perennial(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(PERENNIAL).arg("checkpoint").args(arguments).current_dir(dir).output().unwrap()
}

/// What a command says; it must end with this code.
fn says(dir: &Path, arguments: &[&str], code: i32) -> String {
    let output = perennial(dir, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

fn json(dir: &Path, arguments: &[&str], code: i32) -> Value {
    let output = perennial(dir, &[arguments, &["--json"]].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}{errors}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
}

/// How a file is harmed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Harm {
    Torn,
    Empty,
    Flipped,
    Gone,
}

impl Harm {
    const ALL: [Self; 4] = [Self::Torn, Self::Empty, Self::Flipped, Self::Gone];

    fn to(self, path: &Path) {
        let mut content = std::fs::read(path).unwrap();
        match self {
            Self::Torn => content.truncate(content.len() * 2 / 3),
            Self::Empty => content.clear(),
            Self::Flipped => {
                let middle = content.len() / 2;
                content[middle] ^= 1;
            }
            Self::Gone => {}
        }
        std::fs::remove_file(path).unwrap();
        if self != Self::Gone {
            std::fs::write(path, content).unwrap();
        }
    }
}

/// The files of the checkpoint that are harmed: all that are not logs or state, and of these the first, the last and some between.
fn harmed_files() -> Vec<String> {
    let root = base().path().join("checkpoints");
    let names = files_below(&root).into_iter().map(|path| path.strip_prefix(&root).unwrap().display().to_string());
    let wanted = |name: &String| {
        let Some((dir, file)) = name.rsplit_once('/') else { return false };
        // The history of runs and the signs of life are of no query, and no query reads them.
        if dir.starts_with("_perennial/") {
            return false;
        }
        let last = if dir.starts_with("copies") { BATCHES - 1 } else { BATCHES };
        // Of the query without state, what its results hang on.
        if dir.starts_with("copies")
            && ![format!("s/{last}"), "s/metadata".into()].iter().any(|end| name.ends_with(end))
        {
            return false;
        }
        let number = file.split('.').next().and_then(|n| n.parse::<u64>().ok());
        match (number, dir.rsplit('/').next().unwrap()) {
            (Some(n), "offsets" | "commits") => [0, 30, last - 1, last].contains(&n),
            (Some(n), "state") if file.ends_with("delta") => [1, 30, BATCHES - 1, BATCHES, BATCHES + 1].contains(&n),
            _ => true,
        }
    };
    let files: Vec<String> = names.filter(wanted).collect();
    for kind in [
        "counts/metadata",
        "_perennial/metadata",
        "epochs/1",
        "sources/0/0",
        "_perennial/sources/0/0",
        ".snapshot",
        ".delta",
    ] {
        assert!(files.iter().any(|name| name.contains(kind)), "no {kind} in {files:?}");
    }
    files
}

/// Each kind of damage at each kind of file: the query either goes on exactly, or refuses, says which file it is, and what to do. In the second
/// case it has written nothing.
#[test]
fn after_any_damage_a_query_goes_on_exactly_or_refuses_clearly() {
    expected();
    let before = results(base().path());
    let cases: Vec<(String, Harm)> =
        harmed_files().into_iter().flat_map(|file| Harm::ALL.map(|harm| (file.clone(), harm))).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let outcomes = std::sync::Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((file, harm)) = cases.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let dir = fresh();
                    let path = dir.path().join("checkpoints").join(file);
                    harm.to(&path);
                    let summary = summary(dir.path(), BATCH * (BATCHES + 3));
                    let failed = failures(&summary);
                    let about = format!("{file} {harm:?}: {failed:?}");
                    let (query, name) = file.split_once('/').unwrap();
                    let after = results(dir.path());
                    assert!(failed.keys().all(|failed| failed == query), "the other query goes on: {about}");
                    let (ours, before, expected) = match query {
                        "counts" => (after.0, &before.0, &expected().0),
                        _ => (after.1, &before.1, &expected().1),
                    };
                    match failed.get(query) {
                        None => assert_eq!(&ours, expected, "{about}"),
                        Some(message) => {
                            assert!(message.contains(name), "it names the file: {about}");
                            assert!(message.contains("`perennial checkpoint "), "it says what to do: {about}");
                            assert_eq!(&ours, before, "nothing was written: {about}");
                            let sound = json(dir.path(), &["verify", "checkpoints", query], 1);
                            assert_eq!(sound["sound"], false, "{about}");
                        }
                    }
                    // What a start has to mend is counted; a commit that is gone looks as if it had never been there.
                    let newest = [
                        "state/69.",
                        "state/70.",
                        "state/71.",
                        ".snapshot",
                        "s/metadata",
                        "counts/commits/70",
                        "copies/commits/69",
                    ];
                    let mended = newest.iter().any(|part| file.contains(part));
                    let gone_commit = file.contains("commits/") && *harm == Harm::Gone;
                    let repairs = summary.status.queries[query].repairs;
                    assert_eq!(repairs > 0, mended && !gone_commit, "{repairs} repairs: {about}");
                    outcomes.lock().unwrap().insert((file.clone(), format!("{harm:?}")), failed.is_empty());
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    assert_eq!(outcomes.len(), cases.len());
    let exact = |part: &str| outcomes.iter().filter(|((file, _), _)| file.contains(part)).all(|(_, exact)| *exact);
    // What the documentation promises to be exact.
    for part in
        ["commits/", "/metadata", "epochs/", ".snapshot", "state/", "offsets/0", "offsets/30", "_perennial/sources"]
    {
        let gap = part.starts_with("offsets/");
        let all = outcomes.iter().filter(|((file, harm), _)| file.contains(part) && !(gap && harm == "Gone"));
        for ((file, harm), exact) in all {
            assert!(*exact, "{file} {harm} is exact");
        }
    }
    assert!(!exact(&format!("counts/offsets/{BATCHES}")) && !exact("counts/sources/0/0"), "some cannot be");
}

#[test]
fn ls_and_show_tell_what_is_there() {
    let dir = fresh();
    let list = json(dir.path(), &["ls", "small.yaml"], 0);
    assert_eq!(list["in_use_by"], Value::Null);
    let names: Vec<_> = list["queries"].as_array().unwrap().iter().map(|q| q["query"].as_str().unwrap()).collect();
    assert_eq!(names, ["copies", "counts"]);
    assert_eq!((&list["queries"][0]["last_batch"], &list["queries"][1]["last_batch"]), (&69.into(), &70.into()));
    let text = says(dir.path(), &["ls", "checkpoints"], 0);
    assert!(text.contains("QUERY") && text.contains("counts") && text.contains("sound"), "{text}");

    let shown = json(dir.path(), &["show", "small.yaml", "counts", "--batch", "3"], 0);
    assert_eq!(shown["sources"][0]["to"], 4 * BATCH);
    assert_eq!(shown["sources"][0]["from"], 3 * BATCH);
    assert_eq!(shown["counts"]["read"], BATCH);
    let text = says(dir.path(), &["show", "checkpoints/counts"], 0);
    for word in ["job small, query counts", "watermark", "readings", "state version", "HELD"] {
        assert!(text.contains(word), "{word}: {text}");
    }

    let rows = json(dir.path(), &["show", "small.yaml", "counts", "--state", "--limit", "0"], 0);
    let rows = rows.as_array().unwrap();
    assert_eq!(list["queries"][1]["state_rows"], rows.len());
    assert!(rows.iter().all(|row| row["sensor_id"].is_string()), "{rows:?}");
    let text = says(dir.path(), &["show", "small.yaml", "counts", "--state", "0"], 0);
    assert!(text.contains("key: ") && text.contains("| sensor_id"), "{text}");
    let sql = "SELECT count(*) AS n, count(DISTINCT sensor_id) AS sensors FROM state";
    let counted = json(dir.path(), &["show", "small.yaml", "counts", "--sql", sql], 0);
    assert_eq!(counted[0]["n"], rows.len());

    says(dir.path(), &["show", "small.yaml"], 1);
    assert!(says(dir.path(), &["show", "small.yaml", "cuonts"], 1).contains("it has copies, counts"));
    assert!(
        says(dir.path(), &["show", "small.yaml", "counts", "--batch", "99"], 1).contains("batches 0 to 70 are kept")
    );
    assert!(says(dir.path(), &["show", "small.yaml", "copies", "--state"], 1).contains("keeps no state"));
    assert!(says(dir.path(), &["ls", "nowhere"], 1).contains("there is no checkpoint in nowhere"));
    assert_eq!(perennial(dir.path(), &["rewind", "small.yaml", "counts"]).status.code(), Some(2), "--to is missing");
}

#[test]
fn verify_and_repair_find_and_mend() {
    let dir = fresh();
    let checkpoint = dir.path().join("checkpoints/counts");
    assert!(says(dir.path(), &["verify", "small.yaml"], 0).contains("counts: sound"));
    assert!(says(dir.path(), &["repair", "small.yaml", "counts"], 0).contains("nothing to do"));

    Harm::Torn.to(&checkpoint.join("metadata"));
    Harm::Flipped.to(&checkpoint.join("commits/68"));
    let text = says(dir.path(), &["verify", "small.yaml", "counts"], 1);
    assert!(
        text.contains("commits/68") && text.contains("metadata") && text.contains("perennial checkpoint repair"),
        "{text}"
    );
    let plan = says(dir.path(), &["repair", "small.yaml", "counts"], 2);
    assert!(plan.contains("write     metadata") && plan.contains("add --yes"), "{plan}");
    assert!(
        json(dir.path(), &["verify", "small.yaml", "counts"], 1)["queries"][0]["findings"].as_array().unwrap().len()
            == 2
    );
    says(dir.path(), &["repair", "small.yaml", "counts", "--yes"], 0);
    let after = says(dir.path(), &["verify", "small.yaml", "counts"], 1);
    assert!(after.contains("commits/68") && after.contains("one cannot go back to that batch"), "{after}");
    assert_eq!(go_on(dir.path()), BTreeMap::new());
    assert_eq!(&results(dir.path()), expected());

    // A gap in the history: what is before it goes.
    let dir = fresh();
    Harm::Gone.to(&dir.path().join("checkpoints/counts/offsets/30"));
    let refused = go_on(dir.path());
    assert!(
        refused["counts"].contains("offsets/30 is missing") && refused["counts"].contains("checkpoint repair"),
        "{refused:?}"
    );
    says(dir.path(), &["repair", "small.yaml", "counts", "--yes"], 0);
    assert_eq!(go_on(dir.path()), BTreeMap::new());
    assert_eq!(&results(dir.path()), expected());
    assert!(!dir.path().join("checkpoints/counts/offsets/29").exists());
}

#[test]
fn what_would_double_rows_is_refused() {
    let dir = fresh();
    Harm::Torn.to(&dir.path().join("checkpoints/counts/commits/70"));
    let sqlite = format!("sqlite: {{ path: \"{}/out.db\", table: counts }}", dir.path().display());
    let text = job_text(dir.path(), BATCH * (BATCHES + 3))
        .replace(&sqlite, "console: { rows: 0 }")
        .replace("guarantee: exactly_once", "");
    let job = Job::from_text("small.yaml", &text).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let summary = runtime.block_on(job.run(Default::default())).unwrap();
    let failed: Vec<String> = summary.failed().map(|(query, error)| format!("{query}: {error}")).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    for part in ["counts: ", "commits/70", "gives only at_least_once", "perennial checkpoint repair"] {
        assert!(failed[0].contains(part), "{failed:?}");
    }
    says(dir.path(), &["repair", "checkpoints", "counts", "--yes"], 0);
    assert!(says(dir.path(), &["verify", "checkpoints", "counts"], 0).contains("runs batch 70 again, which was begun"));
}

#[test]
fn a_rewind_with_its_ranges_is_exact_and_one_without_says_what_to_do() {
    let dir = fresh();
    let plan = says(dir.path(), &["rewind", "small.yaml", "counts", "--to", "59", "--keep-ranges"], 2);
    assert!(plan.contains("ledger of counts") && plan.contains("nothing is doubled"), "{plan}");
    says(dir.path(), &["rewind", "small.yaml", "counts", "--to", "59", "--keep-ranges", "--yes"], 0);
    says(dir.path(), &["rewind", "small.yaml", "copies", "--to", "59", "--keep-ranges", "--yes"], 0);
    assert_eq!(go_on(dir.path()), BTreeMap::new());
    assert_eq!(&results(dir.path()), expected());

    // Without: the ledger has to forget, and rows of those batches have to go.
    let dir = fresh();
    let plan = says(dir.path(), &["rewind", "small.yaml", "counts", "--to", "59"], 2);
    let sql = plan.lines().find_map(|line| line.split_once("sqlite3 ")).unwrap().1.split_once('\'').unwrap().1;
    assert!(sql.starts_with("DELETE FROM \"_perennial_batches\" WHERE job ="), "{sql}");
    let sql = sql.trim_end_matches('\'').replace("'\\''", "'");
    let connection = rusqlite::Connection::open(dir.path().join("out.db")).unwrap();
    assert_eq!(connection.execute(&sql, []).unwrap() as u64, BATCHES + 1 - 60);
    // Windows that closed after batch 59 can be told from its watermark.
    let shown = json(dir.path(), &["show", "small.yaml", "counts", "--batch", "59"], 0);
    let closed = chrono::DateTime::from_timestamp_millis(shown["watermark_ms"].as_i64().unwrap() - 60_000).unwrap();
    connection
        .execute("DELETE FROM counts WHERE minute > ?1", [closed.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()])
        .unwrap();
    drop(connection);
    says(dir.path(), &["rewind", "small.yaml", "counts", "--to", "59", "--yes"], 0);

    let plan = says(dir.path(), &["rewind", "small.yaml", "copies", "--to", "59"], 2);
    let find = plan.lines().find(|line| line.trim().starts_with("find ")).unwrap().to_owned();
    says(dir.path(), &["rewind", "small.yaml", "copies", "--to", "59", "--yes"], 0);
    assert!(Command::new("sh").args(["-c", &find]).status().unwrap().success());
    assert_eq!(results(dir.path()).1.len() as u64, BATCH * 60);
    assert_eq!(go_on(dir.path()), BTreeMap::new());
    assert_eq!(&results(dir.path()), expected());

    assert!(says(dir.path(), &["rewind", "small.yaml", "counts", "--to", "500"], 1).contains("batches 0 to"));
}

#[test]
fn offsets_can_be_set() {
    let dir = fresh();
    let offset = format!("readings={}", BATCH * (BATCHES + 1));
    let plan = says(dir.path(), &["set-offsets", "small.yaml", "copies", "--source", &offset], 2);
    assert!(plan.contains("readings: 3550 (was 3500)"), "{plan}");
    says(dir.path(), &["set-offsets", "small.yaml", "copies", "--source", &offset, "--yes"], 0);
    assert_eq!(go_on(dir.path()), BTreeMap::new());
    let (_, lines) = results(dir.path());
    assert_eq!(lines.len() as u64, BATCH * (BATCHES + 2), "one batch was passed over");

    says(dir.path(), &["set-offsets", "small.yaml", "copies", "--source", "readings=start", "--yes"], 0);
    assert_eq!(run(dir.path(), BATCH * (BATCHES + 3)), BTreeMap::new());
    let (_, lines) = results(dir.path());
    assert_eq!(lines.len() as u64, BATCH * (2 * BATCHES + 5), "everything came again");

    for (wrong, part) in [
        ("raedings=5", "the query reads readings"),
        ("readings={\"t\":{\"0\":1}}", "another shape"),
        ("readings=x", "not JSON"),
        ("readings=latest", "starting_offsets: latest"),
    ] {
        let text = says(dir.path(), &["set-offsets", "small.yaml", "copies", "--source", wrong, "--yes"], 1);
        assert!(text.contains(part), "{wrong}: {text}");
    }
}

#[test]
fn backups_are_verified_and_restored_and_forks_are_other_queries() {
    let dir = fresh();
    for place in ["backup.tar.zst", "backup"] {
        says(dir.path(), &["backup", "small.yaml", "--to", place], 0);
        assert!(says(dir.path(), &["backup", "small.yaml", "--to", place], 1).contains("is there already"));
    }
    // The checkpoint is lost.
    std::fs::remove_dir_all(dir.path().join("checkpoints")).unwrap();
    for place in ["backup.tar.zst", "backup"] {
        let _ = std::fs::remove_dir_all(dir.path().join("checkpoints"));
        let plan = says(dir.path(), &["restore", place, "--to", "small.yaml"], 2);
        assert!(plan.contains("goes on after batch 70") && plan.contains("ledger"), "{plan}");
        assert!(!dir.path().join("checkpoints/counts/metadata").exists());
        says(dir.path(), &["restore", place, "--to", "small.yaml", "--yes"], 0);
        assert!(says(dir.path(), &["restore", place, "--to", "small.yaml", "--yes"], 1).contains("--replace"));
        assert!(says(dir.path(), &["verify", "small.yaml"], 0).contains("counts: sound"));
    }
    says(dir.path(), &["restore", "backup", "counts", "--to", "small.yaml", "--replace", "--yes"], 0);
    assert_eq!(go_on(dir.path()), BTreeMap::new());
    assert_eq!(&results(dir.path()), expected());

    // A damaged backup is no backup.
    Harm::Flipped.to(&dir.path().join("backup/counts/offsets/3"));
    Harm::Torn.to(&dir.path().join("backup.tar.zst"));
    for place in ["backup.tar.zst", "backup"] {
        let text = says(dir.path(), &["restore", place, "--to", "elsewhere", "--yes"], 1);
        assert!(text.contains("is damaged"), "{text}");
        assert!(!dir.path().join("elsewhere").exists());
    }

    let id = |name: &str| {
        let text = std::fs::read_to_string(dir.path().join(name).join("metadata")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["id"].as_str().unwrap().to_owned()
    };
    let fork = ["fork", "small.yaml", "counts", "--to", "trial", "--job", "trial", "--batch", "40"];
    says(dir.path(), &fork, 0);
    assert!(says(dir.path(), &fork, 1).contains("already"));
    assert_ne!(id("trial/counts"), id("checkpoints/counts"));
    assert!(says(dir.path(), &["verify", "trial"], 0).contains("after batch 40"));
    let text = job_text(dir.path(), BATCH * BATCHES)
        .replace("name: small", "name: trial")
        .replace("/checkpoints", "/trial")
        .replace("/out.db", "/trial.db")
        .replace("/copies", "/trial-copies");
    let job = Job::from_text("trial.yaml", &text).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    assert_eq!(runtime.block_on(job.run(Default::default())).unwrap().failed().count(), 0);
    // It went on after batch 40, with the state of then: the same windows as the original has from there on, to the last row.
    let alike = json(
        dir.path(),
        &["diff", "small.yaml", "counts", "--batch", "70", "--with", "trial", "--with-batch", "70"],
        0,
    );
    assert_eq!(alike["alike"], true);
}

#[test]
fn diff_compares_states_by_key() {
    let dir = fresh();
    let same = json(dir.path(), &["diff", "small.yaml", "counts", "--batch", "40", "--with-batch", "40"], 0);
    assert_eq!(same["alike"], true);
    let diff = json(dir.path(), &["diff", "small.yaml", "counts", "--batch", "40", "--with-batch", "60"], 1);
    assert_eq!((&diff["sources"][0]["one"], &diff["sources"][0]["two"]), (&(41 * BATCH).into(), &(61 * BATCH).into()));
    let count = |batch: &str| {
        json(dir.path(), &["show", "small.yaml", "counts", "--state", "--limit", "0", "--batch", batch], 0)
            .as_array()
            .unwrap()
            .len() as u64
    };
    let state = |name: &str| diff["state"][0][name].as_u64().unwrap();
    assert_eq!(state("went") + state("changed") + state("alike"), count("40"), "{diff}");
    assert_eq!(state("came") + state("changed") + state("alike"), count("60"), "{diff}");
    assert!(state("came") > 0 && state("went") > 0);
    let text = says(dir.path(), &["diff", "small.yaml", "counts", "--batch", "40", "--with-batch", "60"], 1);
    assert!(text.contains("came:") && text.contains("| sensor_id"), "{text}");
}

#[test]
fn gc_removes_what_no_batch_needs() {
    let dir = fresh();
    let state = dir.path().join("checkpoints/counts/state");
    std::fs::write(state.join("999.9.delta"), "left by a crash").unwrap();
    let plan = says(dir.path(), &["gc", "small.yaml", "counts"], 2);
    assert!(plan.contains("state/999.9.delta"), "{plan}");
    assert!(state.join("999.9.delta").exists());
    says(dir.path(), &["gc", "small.yaml", "counts", "--yes"], 0);
    assert!(!state.join("999.9.delta").exists());
    says(dir.path(), &["gc", "small.yaml", "counts", "--keep", "5", "--yes"], 0);
    let shown = says(dir.path(), &["show", "small.yaml", "counts"], 0);
    assert!(shown.contains("batches 66 to 70"), "{shown}");
    assert!(says(dir.path(), &["verify", "small.yaml", "counts"], 0).contains("5 batches"));
    assert_eq!(go_on(dir.path()), BTreeMap::new());
    assert_eq!(&results(dir.path()), expected());
}

/// A job that waits for more, in its own process.
struct Running(Child);

impl Running {
    fn start(dir: &Path) -> Self {
        let text = job_text(dir, BATCH * BATCHES).replace("trigger: available_now", "trigger: { every: 10s }");
        std::fs::write(dir.join("running.yaml"), text).unwrap();
        let child = Command::new(PERENNIAL)
            .args(["run", "running.yaml", "--log-level", "error"])
            .current_dir(dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut running = Self(child);
        // It has the lock before it does anything else.
        while perennial_connectors_holder(dir).is_none() {
            assert!(running.0.try_wait().unwrap().is_none(), "the job ended");
            std::thread::yield_now();
        }
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn perennial_connectors_holder(dir: &Path) -> Option<String> {
    perennial::connectors::storage::holder(&dir.join("checkpoints")).unwrap()
}

#[test]
fn a_running_jobs_checkpoint_is_only_read() {
    let dir = fresh();
    let running = Running::start(dir.path());
    let pid = running.0.id();
    assert_eq!(json(dir.path(), &["ls", "small.yaml"], 0)["in_use_by"], pid);
    says(dir.path(), &["verify", "small.yaml"], 0);
    says(dir.path(), &["show", "small.yaml", "counts", "--state"], 0);
    says(dir.path(), &["backup", "small.yaml", "--to", "backup.tar.zst"], 0);
    says(dir.path(), &["fork", "small.yaml", "counts", "--to", "trial"], 0);
    let before = files_below(&dir.path().join("checkpoints/counts/commits"));
    for command in [
        &["rewind", "small.yaml", "counts", "--to", "59", "--yes"][..],
        &["repair", "small.yaml", "counts", "--yes"],
        &["gc", "small.yaml", "counts", "--yes"],
        &["set-offsets", "small.yaml", "counts", "--source", "readings=start", "--yes"],
        &["restore", "backup.tar.zst", "--to", "small.yaml", "--replace", "--yes"],
    ] {
        let text = says(dir.path(), command, 1);
        assert!(text.contains(&format!("in use by another process (pid {pid})")), "{command:?}: {text}");
    }
    assert_eq!(files_below(&dir.path().join("checkpoints/counts/commits")), before);
    drop(running);
    says(dir.path(), &["gc", "small.yaml", "counts", "--yes"], 0);
}
