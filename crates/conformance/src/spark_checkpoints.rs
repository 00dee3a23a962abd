//! Checkpoints that a real Spark wrote: each query goes on where Spark stopped, and gives the rows that Spark itself gave.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, TimestampMicrosecondType};
use async_trait::async_trait;
use base64::Engine;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use perennial::Job;
use perennial::connectors::storage::{self, StorageOptions};
use perennial_core::checkpoint::Inspector;
use perennial_core::dead_letter::FileDeadLetters;
use perennial_core::job::JobSpec;
use perennial_core::progress::Observers;
use perennial_core::query::{Query, Step};
use perennial_core::sink::{Delivery, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
use perennial_spark_checkpoint::{Directory, Export, Exported, Import, Imported, PathMap};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A query that Spark ran.
struct Fixture {
    name: &'static str,
    /// Name of each source, where its files are, its columns, and what else is said of it.
    sources: &'static [(&'static str, &'static str, &'static str, &'static str)],
    sql: &'static str,
    mode: &'static str,
    /// Rows of state that are taken over.
    state: u64,
}

const EVENTS: &str = "k STRING, v BIGINT, x DOUBLE, ts TIMESTAMP";
const PLAIN: &[(&str, &str, &str, &str)] = &[("events", "in", EVENTS, "")];
const MARKED: &[(&str, &str, &str, &str)] = &[("events", "in", EVENTS, "watermark: { column: ts, delay: 5 minutes }")];
const PEOPLE: &str = "id BIGINT, name STRING, ts TIMESTAMP";
const AMOUNTS: &str = "rid BIGINT, amt DOUBLE, rts TIMESTAMP";
const SIDES: &[(&str, &str, &str, &str)] = &[
    ("lsrc", "left", PEOPLE, "watermark: { column: ts, delay: 2 minutes }"),
    ("rsrc", "right", AMOUNTS, "watermark: { column: rts, delay: 3 minutes }"),
];
const TYPES: &str = "kb BOOLEAN, ki INT, kl BIGINT, kd DATE, kt TIMESTAMP, kdec DECIMAL(12,2), kbig DECIMAL(30,5), kf FLOAT, kx DOUBLE, \
     ks STRING, kst STRUCT<a:INT,b:STRING>, karr ARRAY<INT>, kbin BINARY, kntz TIMESTAMP_NTZ, v BIGINT, x DOUBLE, \
     d12 DECIMAL(12,2), d30 DECIMAL(30,5), str STRING, ts TIMESTAMP, i INT, b BOOLEAN";
const SIX: &str = "c1 STRING, c2 STRING, c3 STRING, c4 STRING, c5 STRING, c6 STRING";

const WINDOWS: &str = "SELECT k, window(ts, '10 minutes') AS window, count(*) AS n, sum(v) AS s, avg(x) AS a, min(v) AS lo, max(x) AS hi \
     FROM events GROUP BY k, window(ts, '10 minutes')";
const AVERAGES: &str = "SELECT k, window(ts, '10 minutes') AS window, count(*) AS n, sum(v) AS s, avg(x) AS a FROM events \
     GROUP BY k, window(ts, '10 minutes')";
const SUMS: &str = "SELECT k, window(ts, '10 minutes') AS window, count(*) AS n, sum(v) AS s FROM events GROUP BY k, window(ts, '10 minutes')";
const SESSIONS: &str = "SELECT k, session_window(ts, '3 minutes') AS session_window, count(*) AS n, sum(v) AS sv FROM events \
     GROUP BY k, session_window(ts, '3 minutes')";
const JOIN: &str =
    "SELECT * FROM lsrc LEFT OUTER JOIN rsrc ON id = rid AND rts >= ts AND rts <= ts + INTERVAL 5 MINUTES";
const ALL: &str = "SELECT * FROM events";

const FIXTURES: &[Fixture] = &[
    fixture("a_file_to_parquet", PLAIN, "SELECT k, v * 2 AS v2, x, ts FROM events", "append", 0),
    fixture("a2_file_compaction", PLAIN, "SELECT k, v FROM events", "append", 0),
    fixture("c_window_agg_hdfs", MARKED, WINDOWS, "append", 3),
    fixture(
        "c2_types_hdfs",
        &[("events", "in", TYPES, "")],
        "SELECT kb, ki, kl, kd, kt, kdec, kbig, kf, kx, ks, kst, karr, kbin, kntz, sum(d12) sd12, sum(d30) sd30, avg(d12) ad12, \
         avg(d30) ad30, avg(v) av, sum(x) sx, sum(i) si, min(str) mins, max(str) maxs, min(ts) mints, max(d30) maxd30, max(d12) maxd12, \
         max(b) mb, stddev(x) sd, count(i) ci, first(i) fi FROM events GROUP BY kb, ki, kl, kd, kt, kdec, kbig, kf, kx, ks, kst, karr, kbin, kntz",
        "update",
        4,
    ),
    fixture("c4_global_agg_hdfs", PLAIN, "SELECT count(*) n, sum(v) sv FROM events", "complete", 1),
    fixture("d1_window_agg_rocksdb", MARKED, WINDOWS, "append", 3),
    fixture("d2_window_agg_rocksdb_changelog", MARKED, WINDOWS, "append", 3),
    fixture(
        "e1_dedup_watermark",
        &[(
            "events",
            "in",
            EVENTS,
            "watermark: { column: ts, delay: 5 minutes }\n    deduplicate: { columns: [k, v, ts] }",
        )],
        ALL,
        "append",
        4,
    ),
    fixture(
        "e2_dedup_within_watermark",
        &[(
            "events",
            "in",
            EVENTS,
            "watermark: { column: ts, delay: 5 minutes }\n    deduplicate: { columns: [k, v], within_watermark: true }",
        )],
        ALL,
        "append",
        3,
    ),
    fixture("f_left_outer_join_hdfs", SIDES, JOIN, "append", 6),
    fixture("f2_left_outer_join_rocksdb", SIDES, JOIN, "append", 6),
    fixture("g1_killed_before_sink_ran", MARKED, AVERAGES, "append", 3),
    fixture("g2_killed_after_state_written", MARKED, AVERAGES, "update", 3),
    fixture("h_session_window", MARKED, SESSIONS, "append", 3),
    fixture(
        "j_union_void_offset",
        &[("in1", "in1", EVENTS, ""), ("in2", "in2", EVENTS, "")],
        "SELECT k, sum(v) sv FROM (SELECT * FROM in1 UNION ALL SELECT * FROM in2) GROUP BY k",
        "update",
        2,
    ),
    fixture("v2_rowchecksum_hdfs", MARKED, SUMS, "append", 4),
    fixture("v3_zstd_hdfs", MARKED, SUMS, "append", 4),
    fixture("v4_offsetlog_v2", MARKED, SUMS, "append", 4),
    fixture("v5_ckptformat2_rocksdb", MARKED, SUMS, "append", 4),
    fixture("v6_join_v3_rocksdb", SIDES, JOIN, "append", 4),
    fixture("v10_join_v4_rocksdb", SIDES, JOIN, "append", 4),
    fixture("v7_named_sources_join", SIDES, JOIN, "append", 4),
    fixture("v8_agg_state_v1", MARKED, SUMS, "append", 4),
    fixture(
        "v9_session_rocksdb",
        MARKED,
        "SELECT k, session_window(ts, '3 minutes') AS session_window, count(*) AS n FROM events GROUP BY k, session_window(ts, '3 minutes')",
        "append",
        3,
    ),
    fixture(
        "x_dedup_order_det",
        &[("events", "in", SIX, "deduplicate: { columns: [c5, c1, c6, c3, c2, c4] }")],
        ALL,
        "append",
        1,
    ),
    fixture(
        "x_dedup_order_nodet",
        &[("events", "in", SIX, "deduplicate: { columns: [c5, c1, c6, c3, c2, c4] }")],
        ALL,
        "append",
        1,
    ),
];

const fn fixture(
    name: &'static str,
    sources: &'static [(&'static str, &'static str, &'static str, &'static str)],
    sql: &'static str,
    mode: &'static str,
    state: u64,
) -> Fixture {
    Fixture { name, sources, sql, mode, state }
}

/// A fixture on disk, with a job beside it.
struct Home {
    dir: TempDir,
    name: &'static str,
}

impl Home {
    fn new(fixture: &Fixture) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let archive = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../spark-checkpoint/fixtures")
            .join(format!("{}.tar.gz", fixture.name));
        let file = flate2::read::GzDecoder::new(std::fs::File::open(archive).unwrap());
        tar::Archive::new(file).unpack(dir.path()).unwrap();
        let home = Self { dir, name: fixture.name };
        let mut job = String::from("name: moved\nsources:\n");
        for (name, files, columns, more) in fixture.sources {
            let connector = match files.starts_with("rate:") {
                true => (*files).to_owned(),
                false => {
                    let path = home.path(&format!("{files}_all"));
                    format!("files: {{ path: \"{}\", max_files_per_batch: 1, settle: 0s }}", path.display())
                }
            };
            job += &format!("  {name}:\n    {connector}\n    format: json\n    schema: \"{columns}\"\n");
            if !more.is_empty() {
                job += &format!("    {more}\n");
            }
        }
        job += &format!(
            "queries:\n  q:\n    sql: \"{}\"\n    output_mode: {}\n    sink: {{ console: {{}} }}\ntrigger: available_now\n\
             checkpoint: \"{}\"\ndead_letters: {{ path: \"{}\" }}\nhttp: {{ enabled: false }}\n",
            fixture.sql,
            fixture.mode,
            home.dir.path().join("checkpoints").display(),
            home.dir.path().join("dlq").display(),
        );
        std::fs::write(home.dir.path().join("job.yaml"), job).unwrap();
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(self.name).join(name)
    }

    /// Where the files are now that were below `/data`.
    fn paths(&self, fixture: &Fixture) -> PathMap {
        let moved = |files: &str| self.path(&format!("{files}_all")).to_str().unwrap().to_owned();
        let pairs =
            fixture.sources.iter().map(|(_, files, ..)| (format!("/data/{}/{files}", fixture.name), moved(files)));
        PathMap::new(pairs)
    }

    /// Takes a checkpoint of Spark over, or looks whether it could be.
    fn import_from(&self, from: &Path, paths: PathMap, dry: bool) -> Result<Imported, String> {
        let taken = on_large_stack(|| {
            runtime().block_on(async {
                let spec = self.spec().await?;
                let from = Directory::new(open(from)?, Default::default(), from.to_str().unwrap());
                let (env, job, query) = (&spec.env, &*spec.name, &spec.queries[0]);
                let import = Import { from: &from, env, job, query, paths, in_place: false };
                if dry { import.look().await } else { import.run().await }
            })
        });
        taken.map_err(|error| error.to_string())
    }

    fn import(&self, fixture: &Fixture) -> Result<Imported, String> {
        self.import_from(&self.path("checkpoint"), self.paths(fixture), false)
    }

    /// Gives the query to Spark.
    fn export(&self) -> Result<(PathBuf, Exported), String> {
        let to = self.dir.path().join("for-spark");
        let given = on_large_stack(|| {
            runtime().block_on(async {
                let spec = self.spec().await?;
                let survey = Inspector::new(spec.env.clone(), "q".into()).survey().await?;
                let directory = Directory::new(open(&to)?, Default::default(), to.to_str().unwrap());
                let (env, query, paths) = (&spec.env, &spec.queries[0], PathMap::default());
                Export { to: &directory, env, query, survey: &survey, paths, partitions: Some(3) }.run().await
            })
        });
        given.map(|exported| (to, exported)).map_err(|error: perennial_core::Error| error.to_string())
    }

    /// Puts Spark's checkpoint where the query has its own. Only the paths of the files are other ones, as if they had been so before.
    fn put_in_place(&self, fixture: &Fixture) {
        let target = self.dir.path().join("checkpoints/q");
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::rename(self.path("checkpoint"), &target).unwrap();
        for file in files_below(&target.join("sources")) {
            let Ok(mut text) = std::fs::read_to_string(&file) else { continue };
            for (_, files, ..) in fixture.sources {
                let now = format!("{}/", self.path(&format!("{files}_all")).display());
                text = text.replace(&format!("/data/{}/{files}/", fixture.name), &now);
            }
            std::fs::write(&file, text).unwrap();
        }
    }

    /// The rows of each batch until there is nothing more to do.
    fn run(&self) -> Result<BTreeMap<u64, Vec<Value>>, String> {
        let recorder = Recorder::default();
        let show = |error: perennial_core::Error| error.to_string();
        on_large_stack(|| {
            runtime().block_on(async {
                let mut spec = self.spec().await.map_err(show)?;
                spec.queries[0].sink = Arc::new(recorder.clone());
                let mut query = Query::open(&spec, &spec.queries[0]).await.map_err(show)?;
                while let Step::Committed(report) = query.run_batch().await.map_err(show)? {
                    recorder.0.lock().unwrap().entry(report.batch).or_default();
                }
                Ok::<_, String>(())
            })
        })?;
        let mut rows = recorder.0.lock().unwrap().clone();
        rows.values_mut().for_each(|rows| rows.sort_by_key(Value::to_string));
        Ok(rows)
    }

    async fn spec(&self) -> perennial_core::Result<JobSpec> {
        let job = Job::from_file(self.dir.path().join("job.yaml")).unwrap();
        let storage = open(Path::new(&job.checkpoint))?;
        let letters: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let letters = FileDeadLetters::new(letters.clone(), Arc::new(letters), "dlq");
        job.plan(perennial::env(storage), Arc::new(letters), Arc::new(Observers(Vec::new()))).await
    }

    /// What Spark gave when it went on, batch by batch.
    fn expected(&self) -> BTreeMap<u64, Vec<Value>> {
        let mut expected: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
        for file in files_below(&self.path("out_resume")) {
            let batch = file.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            let text = std::fs::read_to_string(&file).unwrap();
            let rows = text.lines().map(|line| serde_json::from_str(line).unwrap()).map(|row| spelled(&row)).collect();
            expected.insert(batch, rows);
        }
        // Spark's own sink of files has them, too.
        let of_file = |name: &str| -> BTreeMap<String, Vec<Value>> {
            std::fs::read_to_string(self.path(name))
                .map_or_else(|_| BTreeMap::new(), |text| serde_json::from_str(&text).unwrap())
        };
        let before = of_file("sink_rows.json");
        for (batch, rows) in of_file("sink_after_resume_rows.json") {
            if !before.contains_key(&batch) {
                expected.insert(batch.parse().unwrap(), rows.iter().map(spelled).collect());
            }
        }
        let written = |dir: &str| -> Vec<PathBuf> {
            files_below(&self.path(dir)).into_iter().filter(|f| f.extension().is_some_and(|e| e == "json")).collect()
        };
        if expected.is_empty() && self.path("sink").exists() {
            let log = self.path("sink_after_resume/_spark_metadata");
            let before: Vec<String> = written("sink").iter().map(|file| name_of(file)).collect();
            for file in written("sink_after_resume").iter().filter(|file| !before.contains(&name_of(file))) {
                let batch = batch_of(&log, &name_of(file));
                let text = std::fs::read_to_string(file).unwrap();
                let rows = text.lines().map(|line| spelled(&serde_json::from_str(line).unwrap()));
                expected.entry(batch).or_default().extend(rows);
            }
        }
        expected.values_mut().for_each(|rows: &mut Vec<Value>| rows.sort_by_key(Value::to_string));
        expected
    }
}

fn open(place: &Path) -> perennial_core::Result<Arc<dyn ObjectStore>> {
    let options = StorageOptions { fsync: false, ..Default::default() };
    Ok(storage::open(place.to_str().unwrap(), &options)?.store)
}

fn name_of(file: &Path) -> String {
    file.file_name().unwrap().to_str().unwrap().to_owned()
}

/// The batch of which the log of Spark's sink says that it wrote a file.
fn batch_of(log: &Path, name: &str) -> u64 {
    let mut batches: Vec<u64> = files_below(log)
        .iter()
        .filter(|file| std::fs::read_to_string(file).is_ok_and(|text| text.contains(name)))
        .filter_map(|file| name_of(file).trim_end_matches(".compact").parse().ok())
        .collect();
    batches.sort_unstable();
    batches[0]
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => files.push(path),
        }
    }
    files.retain(|file| !name_of(file).starts_with('.'));
    files.sort();
    files
}

fn runtime() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).thread_stack_size(crate::STACK).enable_all().build().unwrap()
}

/// Debug builds of the planner go deep.
fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        std::thread::Builder::new().stack_size(crate::STACK).spawn_scoped(scope, work).unwrap().join().unwrap()
    })
}

/// A sink that keeps the rows of each batch.
#[derive(Debug, Clone, Default)]
struct Recorder(Arc<Mutex<BTreeMap<u64, Vec<Value>>>>);

impl SinkFactory for Recorder {
    fn open(&self, _: SinkContext) -> perennial_core::Result<Box<dyn Sink>> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl Sink for Recorder {
    fn delivery(&self) -> Delivery {
        Delivery::Append
    }

    async fn check(&self) -> perennial_core::Result<()> {
        Ok(())
    }

    async fn write(&self, batch: &SinkBatch, rows: RowStream) -> perennial_core::Result<Written> {
        let batches: Vec<RecordBatch> = rows.try_collect().await?;
        let rows: Vec<Value> = batches.iter().flat_map(rows_of).collect();
        let count = rows.len() as u64;
        self.0.lock().unwrap().insert(batch.id, rows);
        Ok(Written { rows: count, ..Default::default() })
    }
}

fn rows_of(rows: &RecordBatch) -> Vec<Value> {
    let names = rows.schema();
    let row = |row| {
        let fields = names.fields().iter().zip(rows.columns());
        let values = fields.filter(|(_, column)| column.is_valid(row));
        spelled(&Value::Object(values.map(|(field, column)| (field.name().clone(), value(column, row))).collect()))
    };
    (0..rows.num_rows()).map(row).collect()
}

/// A value as Spark's JSON has it.
fn value(column: &ArrayRef, row: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::Binary => {
            base64::engine::general_purpose::STANDARD.encode(column.as_binary::<i32>().value(row)).into()
        }
        DataType::Timestamp(_, zone) => {
            let micros = column.as_primitive::<TimestampMicrosecondType>().value(row);
            let time = chrono::DateTime::from_timestamp_micros(micros).unwrap();
            let zone = if zone.is_some() { "Z" } else { "" };
            format!("{}{zone}", time.format("%Y-%m-%dT%H:%M:%S%.3f")).into()
        }
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(column.as_struct().columns());
            Value::Object(columns.map(|(field, column)| (field.name().clone(), value(column, row))).collect())
        }
        DataType::List(_) => {
            let elements = column.as_list::<i32>().value(row);
            (0..elements.len()).map(|element| value(&elements, element)).collect()
        }
        DataType::Float64 => {
            let number = column.as_primitive::<Float64Type>().value(row);
            serde_json::Number::from_f64(number).map_or_else(|| json!(number.to_string()), Value::Number)
        }
        _ => {
            let text = arrow::util::display::array_value_to_string(column, row).unwrap();
            match column.data_type() {
                DataType::Utf8 | DataType::Date32 => text.into(),
                _ => serde_json::from_str(&text).unwrap(),
            }
        }
    }
}

/// One spelling: no fields that are NULL, numbers as they are as DOUBLE, times without their zone.
fn spelled(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<&String> =
                fields.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name).collect();
            names.sort();
            Value::Object(names.into_iter().map(|name| (name.clone(), spelled(&fields[name]))).collect())
        }
        Value::Array(values) => values.iter().map(spelled).collect(),
        // serde_json reads the last digit of large numbers in another way than it writes it.
        Value::Number(number) => json!(number.as_f64().map(|number| format!("{number:.12e}"))),
        Value::String(text) if text.len() > 18 && text.as_bytes()[10] == b'T' => {
            let text = text.trim_end_matches('Z');
            if text.contains('.') { text.to_owned().into() } else { format!("{text}.000").into() }
        }
        other => other.clone(),
    }
}

/// The rows of the batches of which something came out, in their order. Their numbers differ where Spark had a batch without data between
/// two with data, because the input came file by file. Of a union all rows together: Spark was given the files of its sources one after the
/// other, so that they met in other batches.
fn filled(home: &Home, rows: &BTreeMap<u64, Vec<Value>>) -> Vec<Vec<Value>> {
    let mut batches: Vec<Vec<Value>> = rows.values().filter(|rows| !rows.is_empty()).cloned().collect();
    if home.name == "j_union_void_offset" {
        batches = vec![batches.concat()];
        batches[0].sort_by_key(Value::to_string);
    }
    batches
}

#[test]
fn a_query_goes_on_where_spark_stopped_with_the_rows_that_spark_gave() {
    let mut wrong = Vec::new();
    for fixture in FIXTURES {
        let home = Home::new(fixture);
        let expected = home.expected();
        let imported = match home.import(fixture) {
            Ok(imported) => imported,
            Err(error) => {
                wrong.push(format!("{} is not imported: {error}", fixture.name));
                continue;
            }
        };
        let state: u64 = imported.rows.iter().map(|(_, rows)| rows).sum();
        match home.run() {
            Err(error) => wrong.push(format!("{} does not run: {error}", fixture.name)),
            Ok(rows) if filled(&home, &rows) != filled(&home, &expected) => {
                wrong.push(format!(
                    "{}:\n  it gives {:?}\n  Spark gave {:?}",
                    fixture.name,
                    filled(&home, &rows),
                    filled(&home, &expected)
                ));
            }
            Ok(_) if state != fixture.state => wrong.push(format!("{}: {state} rows of state", fixture.name)),
            Ok(_) => {}
        }

        let home = Home::new(fixture);
        home.put_in_place(fixture);
        match home.run() {
            Ok(rows) if filled(&home, &rows) == filled(&home, &expected) => {}
            other => wrong.push(format!("{} in place: {other:?}", fixture.name)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn counting_goes_on_at_the_next_number() {
    const NUMBERS: &str = "timestamp TIMESTAMP, value BIGINT";
    let batches = fixture(
        "b2_rate_micro_batch",
        &[("numbers", "rate: { rows_per_batch: 4, start: 1000, advance: 500ms }", NUMBERS, "")],
        "SELECT * FROM numbers",
        "append",
        0,
    );
    let home = Home::new(&batches);
    home.import(&batches).unwrap();
    // There is always a next batch: each run takes one.
    let mut rows = home.run().unwrap();
    rows.extend(home.run().unwrap());
    assert_eq!(rows, home.expected());

    let seconds = fixture(
        "b_rate_noop",
        &[("numbers", "rate: { rows_per_second: 5 }", NUMBERS, "")],
        "SELECT value FROM numbers",
        "append",
        0,
    );
    let home = Home::new(&seconds);
    assert_eq!(home.import(&seconds).unwrap().last, Some(2));
}

fn find(name: &str) -> &'static Fixture {
    FIXTURES.iter().find(|fixture| fixture.name == name).unwrap()
}

/// The job of a fixture with something else in it.
fn with_job(fixture: &Fixture, change: impl Fn(String) -> String) -> Home {
    let home = Home::new(fixture);
    let path = home.dir.path().join("job.yaml");
    std::fs::write(&path, change(std::fs::read_to_string(&path).unwrap())).unwrap();
    home
}

#[test]
fn what_is_not_the_same_query_is_refused_and_nothing_is_written() {
    let cases: &[(&str, &str, &str, &str)] = &[
        ("c_window_agg_hdfs", "sum(v) AS s, avg(x) AS a", "avg(v) AS s, sum(x) AS a", "the aggregates differ"),
        ("c_window_agg_hdfs", "avg(x) AS a", "skewness(x) AS a", "is not the same in both engines"),
        ("c_window_agg_hdfs", "'10 minutes'", "'5 minutes'", "no window of the job's size"),
        (
            "a_file_to_parquet",
            "SELECT k, v * 2 AS v2, x, ts FROM events",
            "SELECT count(*) FROM events",
            "keeps the state of []",
        ),
        (
            "h_session_window",
            "session_window(ts, '3 minutes')",
            "window(ts, '3 minutes')",
            "`sessionWindowStateStoreSaveExec` in its place",
        ),
        ("e1_dedup_watermark", "[k, v, ts]", "[k, x, ts]", "the columns that tell duplicates differ"),
        (
            "f_left_outer_join_hdfs",
            "id BIGINT, name STRING",
            "id BIGINT, called STRING",
            "does not keep the column `called`",
        ),
        (
            "f_left_outer_join_hdfs",
            "LEFT OUTER JOIN rsrc ON id = rid",
            "LEFT OUTER JOIN rsrc ON name = rid::STRING",
            "the keys of the join differ",
        ),
        ("v7_named_sources_join", "lsrc", "first", "give them the same names"),
        ("j_union_void_offset", " UNION ALL SELECT * FROM in2", "", "reads 2 sources, the job's reads 1"),
        ("x_dedup_order_det", "/in_all", "/nowhere", "none of the 1 input files"),
    ];
    let mut wrong = Vec::new();
    for (name, from, to, expected) in cases {
        let fixture = find(name);
        let home = with_job(fixture, |job| {
            let changed = job.replace(from, to);
            assert_ne!(changed, job, "{name}");
            if *expected == "the aggregates differ" || *name == "a_file_to_parquet" {
                changed.replace("append", "update")
            } else {
                changed
            }
        });
        let paths = if *to == "/nowhere" { PathMap::default() } else { home.paths(fixture) };
        match home.import_from(&home.path("checkpoint"), paths, false) {
            Err(said) if said.contains(expected) => {}
            other => wrong.push(format!("{name} with {to}: {other:?}")),
        }
        if !files_below(&home.dir.path().join("checkpoints/q")).is_empty() {
            wrong.push(format!("{name} with {to}: something was written"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_checkpoint_is_not_written_over() {
    let fixture = find("a_file_to_parquet");
    let home = Home::new(fixture);
    home.import_from(&home.path("checkpoint"), home.paths(fixture), true).unwrap();
    assert!(files_below(&home.dir.path().join("checkpoints")).is_empty(), "who only looks writes nothing");
    home.import(fixture).unwrap();
    let again = home.import(fixture).unwrap_err();
    assert!(again.contains("there is a checkpoint of q already"), "{again}");
}

/// Each kind of harm at each file: it is read around, or refused by the name of a file.
#[test]
fn damaged_checkpoints_are_refused() {
    let mut wrong = Vec::new();
    for name in [
        "c_window_agg_hdfs",
        "d1_window_agg_rocksdb",
        "v5_ckptformat2_rocksdb",
        "v3_zstd_hdfs",
        "f2_left_outer_join_rocksdb",
    ] {
        let fixture = find(name);
        let home = Home::new(fixture);
        let root = home.path("checkpoint");
        let paths = home.paths(fixture);
        on_large_stack(|| {
            runtime().block_on(async {
                let spec = home.spec().await.unwrap();
                let files: Vec<(String, Vec<u8>)> = all_files(&root)
                    .iter()
                    .map(|file| {
                        (file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(), std::fs::read(file).unwrap())
                    })
                    .collect();
                let look = async |harmed: Option<(&str, Option<Vec<u8>>)>| {
                    let store = Arc::new(InMemory::new());
                    for (file, content) in &files {
                        let content = match &harmed {
                            Some((of, harmed)) if of == file => harmed.clone(),
                            _ => Some(content.clone()),
                        };
                        if let Some(content) = content {
                            object_store::ObjectStoreExt::put(&*store, &file.as_str().into(), content.into())
                                .await
                                .unwrap();
                        }
                    }
                    let from = Directory::new(store, Default::default(), "there");
                    let import = Import {
                        from: &from,
                        env: &spec.env,
                        job: "moved",
                        query: &spec.queries[0],
                        paths: paths.clone(),
                        in_place: false,
                    };
                    import.look().await
                };
                let whole = look(None).await.unwrap();
                for (file, content) in files.iter().filter(|(file, _)| !file.contains("/.") && !file.starts_with('.')) {
                    let middle = content.len() / 2;
                    let mut flipped = content.clone();
                    flipped[middle] ^= 0x01;
                    for harmed in [None, Some(content[..middle].to_vec()), Some(flipped)] {
                        match look(Some((file, harmed))).await {
                            // A source's log is taken as it is: paths in it are changed by hand.
                            Ok(read) if file.starts_with("sources/") || read == whole => {}
                            // A batch without its commit was begun, and runs again.
                            Ok(read)
                                if whole.last.is_some_and(|last| *file == format!("commits/{last}"))
                                    && read.again == whole.last => {}
                            Ok(read) => wrong.push(format!("{name}/{file}: read as {read:?}")),
                            Err(error)
                                if error.to_string().contains("there/") || error.to_string().contains("is missing") => {
                            }
                            Err(error) => wrong.push(format!("{name}/{file}: {error}")),
                        }
                    }
                }
            })
        });
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn all_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(all_files(&path)) } else { files.push(path) }
    }
    files
}

/// Queries of which Spark takes the state back.
const GIVEN: &[&str] = &[
    "a_file_to_parquet",
    "c_window_agg_hdfs",
    "c2_types_hdfs",
    "c4_global_agg_hdfs",
    "e1_dedup_watermark",
    "e2_dedup_within_watermark",
    "j_union_void_offset",
    "v8_agg_state_v1",
    "x_dedup_order_det",
];

#[test]
fn what_is_given_to_spark_can_be_taken_back() {
    let mut wrong = Vec::new();
    for name in GIVEN {
        let fixture = find(name);
        let home = Home::new(fixture);
        home.import(fixture).unwrap();
        let back = home.export().and_then(|(given, _)| {
            std::fs::remove_dir_all(home.dir.path().join("checkpoints")).unwrap();
            home.import_from(&given, PathMap::default(), false)
        });
        if let Err(error) = back {
            wrong.push(format!("{name}: {error}"));
            continue;
        }
        match home.run() {
            Ok(rows) if filled(&home, &rows) == filled(&home, &home.expected()) => {}
            other => wrong.push(format!("{name}: {other:?}")),
        }
    }
    for name in ["h_session_window", "f_left_outer_join_hdfs"] {
        let fixture = find(name);
        let home = Home::new(fixture);
        home.import(fixture).unwrap();
        match home.export() {
            Err(said) if said.contains("only the state of aggregations and deduplications") => {}
            other => wrong.push(format!("{name}: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A real Spark goes on from what is given to it.
#[test]
#[ignore = "needs a Python with PySpark, whose path is in PERENNIAL_PYSPARK: run make test"]
fn spark_goes_on_from_what_is_given_to_it() {
    let python =
        std::env::var_os("PERENNIAL_PYSPARK").expect("PERENNIAL_PYSPARK is not set: `scripts/pyspark` gives it");
    let mut homes = Vec::new();
    let mut jobs = Vec::new();
    for name in GIVEN {
        let fixture = find(name);
        let home = Home::new(fixture);
        home.import(fixture).unwrap();
        let (given, _) = home.export().unwrap();
        let sources: Vec<Value> = fixture
            .sources
            .iter()
            .map(|(name, files, columns, more)| {
                json!({ "name": name, "path": home.path(&format!("{files}_all")), "schema": columns, "more": more })
            })
            .collect();
        jobs.push(json!({
            "sources": sources, "sql": fixture.sql, "mode": fixture.mode, "checkpoint": given,
            "out": home.dir.path().join("spark-out"),
        }));
        homes.push((*name, home));
    }
    let work = tempfile::tempdir().unwrap();
    let list = work.path().join("jobs.json");
    std::fs::write(&list, json!(jobs).to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("spark_resume.py");
    let output = std::process::Command::new(python).arg(script).arg(&list).current_dir(work.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut wrong = Vec::new();
    for (name, home) in homes {
        let mut rows: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
        for file in files_below(&home.dir.path().join("spark-out")) {
            let batch = file.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            let text = std::fs::read_to_string(&file).unwrap();
            let of: &mut Vec<Value> = rows.entry(batch).or_default();
            of.extend(text.lines().map(|line| spelled(&serde_json::from_str(line).unwrap())));
            of.sort_by_key(Value::to_string);
        }
        if filled(&home, &rows) != filled(&home, &home.expected()) {
            wrong.push(format!(
                "{name}:\n  Spark now gives {:?}\n  Spark gave {:?}",
                filled(&home, &rows),
                filled(&home, &home.expected())
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
