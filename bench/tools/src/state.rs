//! Queries with state over the real state store and checkpoint, rows coming from memory: many keys, single records, a join of streams, and
//! the time from a SIGKILL to the next commit.
//!
//! `cargo run --release -p perennial-bench --bin perennial-bench-state` (`-- keys one join recovery` for some of it; `KEYS=2000000` for
//! other numbers of keys).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a benchmark stops at the first error"
)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::memory::InMemory;
use parking_lot::Mutex;
use perennial::connectors::format::Format;
use perennial::connectors::storage::{self, StorageOptions};
use perennial::records::{Input, Position};
use perennial::sink::{Delivery, OutputMode, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
use perennial::source::{InputStream, ReadLimit, Replay, Source, SourceContext, SourceFactory};
use perennial::{Job, JobQuery, JobSource, Result, offset};
use perennial_core::dead_letter::FileDeadLetters;
use perennial_core::job::JobSpec;
use perennial_core::progress::{BatchReport, Observers};
use perennial_core::query::{Query, Step};

/// The program's own, so that what is compared differs in nothing else.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROWS_PER_BLOCK: usize = 32_768;
const START_MICROS: i64 = 1_767_225_600_000_000;

/// A source of rows in memory: each `give` is a batch.
#[derive(Debug, Clone)]
struct Rows {
    /// How many batches there were, and the rows of the last one.
    given: Arc<Mutex<(u64, Vec<RecordBatch>)>>,
}

impl Rows {
    /// `from` batches were given in an earlier life.
    fn new(from: u64) -> Self {
        Self { given: Arc::new(Mutex::new((from, Vec::new()))) }
    }

    fn give(&self, rows: Vec<RecordBatch>) {
        let mut given = self.given.lock();
        *given = (given.0 + 1, rows);
    }
}

impl SourceFactory for Rows {
    fn open(&self, _: SourceContext) -> Result<Box<dyn Source>> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl Source for Rows {
    fn replay(&self) -> Replay {
        Replay::Exact
    }

    async fn latest(&self, _: Option<&offset::Offset>, _: &ReadLimit) -> Result<Option<offset::Offset>> {
        match self.given.lock().0 {
            0 => Ok(None),
            given => offset::Offset::encode(&given).map(Some),
        }
    }

    async fn read(&self, _: &offset::OffsetRange, parallelism: usize) -> Result<Vec<InputStream>> {
        let mut shares: Vec<Vec<Result<Input>>> = (0..parallelism).map(|_| Vec::new()).collect();
        for (number, rows) in self.given.lock().1.iter().enumerate() {
            shares[number % parallelism]
                .push(Ok(Input::Rows(rows.clone(), Position::Sequence { name: "rows".into(), first: 0 })));
        }
        Ok(shares.into_iter().map(|share| stream::iter(share).boxed()).collect())
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// A sink that counts.
#[derive(Debug)]
struct Nowhere;

impl SinkFactory for Nowhere {
    fn open(&self, _: SinkContext) -> Result<Box<dyn Sink>> {
        Ok(Box::new(Self))
    }
}

#[async_trait]
impl Sink for Nowhere {
    fn delivery(&self) -> Delivery {
        Delivery::IdempotentByBatch
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }

    async fn write(&self, _: &SinkBatch, rows: RowStream) -> Result<Written> {
        let rows = rows.try_fold(0, |sum, rows| async move { Ok(sum + rows.num_rows() as u64) }).await?;
        Ok(Written { rows, ..Written::default() })
    }
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    spec: JobSpec,
    query: Option<Query>,
}

impl Bench {
    /// A query over sources of rows, with its checkpoint in a directory.
    fn new(directory: &Path, fsync: bool, sources: &[(&str, &str, &Rows)], sql: &str, mode: OutputMode) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let options = StorageOptions { fsync, ..StorageOptions::default() };
        let storage = storage::open(&directory.display().to_string(), &options).unwrap().store;
        let mut job = Job::builder("bench").parallelism(2);
        for (name, columns, rows) in sources {
            let mut source =
                JobSource::new((*rows).clone(), perennial::schema(columns).unwrap()).format(Format::Parquet);
            if columns.contains("TIMESTAMP") {
                source = source.watermark("at", Duration::from_secs(10));
            }
            job = job.source(*name, source);
        }
        let job = job.query("q", JobQuery::new(sql, Nowhere).output_mode(mode)).build().unwrap();
        let letters: Arc<dyn object_store::ObjectStore> = Arc::new(InMemory::new());
        let letters = Arc::new(FileDeadLetters::new(letters.clone(), Arc::new(letters), "letters"));
        let spec = job.plan(perennial::env(storage), letters, Arc::new(Observers(Vec::new())));
        let spec = runtime.block_on(spec).unwrap();
        Self { runtime, spec, query: None }
    }

    /// Loads the checkpoint; how long that took.
    fn open(&mut self) -> Duration {
        self.query = None;
        let began = Instant::now();
        self.query = Some(self.runtime.block_on(Query::open(&self.spec, &self.spec.queries[0])).unwrap());
        began.elapsed()
    }

    /// Runs the batch that was given, and those without data that follow it.
    fn run(&mut self) -> Box<BatchReport> {
        let query = self.query.as_mut().unwrap();
        let mut first = None;
        while let Step::Committed(report) = self.runtime.block_on(query.run_batch()).unwrap() {
            first.get_or_insert(report);
        }
        first.expect("a batch")
    }
}

/// Numbers without an end, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

const READINGS: &str = "device STRING, value DOUBLE";
const AGGREGATES: &str =
    "SELECT device, count(*) AS readings, avg(value) AS average, max(value) AS greatest FROM readings GROUP BY device";

fn readings(devices: impl Iterator<Item = u64>) -> Vec<RecordBatch> {
    let devices: Vec<u64> = devices.collect();
    let block = |devices: &[u64]| {
        let names = StringArray::from_iter_values(devices.iter().map(|device| format!("device-{device:08}")));
        let values = Float64Array::from_iter_values(devices.iter().map(|device| (device % 1_000) as f64 / 10.0));
        RecordBatch::try_from_iter_with_nullable([
            ("device", Arc::new(names) as ArrayRef, true),
            ("value", Arc::new(values) as ArrayRef, true),
        ])
        .unwrap()
    };
    devices.chunks(ROWS_PER_BLOCK).map(block).collect()
}

fn median<T: Ord + Copy>(mut all: Vec<T>) -> T {
    all.sort_unstable();
    all[all.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A line of `/proc/self/status`, in bytes.
fn process(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1_024
}

/// All keys twice, in batches of half a million rows; then batches in which 1% of the keys change; then a restart.
fn keys(keys: u64) {
    let directory = tempfile::tempdir().unwrap();
    let rows = Rows::new(0);
    let mut bench =
        Bench::new(directory.path(), true, &[("readings", READINGS, &rows)], AGGREGATES, OutputMode::Update);
    bench.open();
    let before = process("VmRSS");
    let mut random = Random(42);
    let (mut time, mut durable, mut records) = (Duration::ZERO, Duration::ZERO, 0);
    let mut last = None;
    for round in 0..2 {
        let mut order: Vec<u64> = (0..keys).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, (random.next() % (i as u64 + 1)) as usize);
        }
        for part in order.chunks(500_000) {
            rows.give(readings(part.iter().copied()));
            let report = bench.run();
            if round == 1 {
                time += report.phases.total();
                durable += report.phases.log_offsets + report.phases.state + report.phases.commit;
                records += report.counts.read;
            }
            last = Some(report);
        }
    }
    let state = &last.unwrap().operators[0];
    assert_eq!(state.rows_total, keys);
    let resident = process("VmRSS").saturating_sub(before);
    let (mut times, mut bytes) = (Vec::new(), Vec::new());
    for _ in 0..15 {
        rows.give(readings((0..keys / 100).map(|_| random.next() % keys)));
        let report = bench.run();
        times.push(report.phases.total());
        bytes.push(report.state_bytes_written);
    }
    let loaded = bench.open();
    println!(
        "{keys:>10} keys, update mode: {:.2} million records/s; {} bytes of state per key ({} resident); writing the log and the state {:.0}% of \
         a batch",
        records as f64 / time.as_secs_f64() / 1e6,
        state.memory_bytes / keys,
        resident / keys,
        100.0 * durable.as_secs_f64() / time.as_secs_f64(),
    );
    println!(
        "{:>10} 1% of the keys change: {:.1} ms and {:.2} MB per batch (median of 15); loaded after a restart in {:.2} s",
        "",
        millis(median(times)),
        median(bytes) as f64 / 1e6,
        loaded.as_secs_f64(),
    );
}

/// Batches of a single record, from the trigger to the commit.
fn one_record(fsync: bool) {
    let directory = tempfile::tempdir().unwrap();
    let rows = Rows::new(0);
    let columns = "at TIMESTAMP, device STRING, value DOUBLE";
    let sql = "SELECT window.start, device, count(*) AS n, avg(value) AS average FROM readings GROUP BY window(at, '1 minute'), device";
    let mut bench = Bench::new(directory.path(), fsync, &[("readings", columns, &rows)], sql, OutputMode::Append);
    bench.open();
    let mut times = Vec::new();
    for second in 0..600 {
        let at = TimestampMicrosecondArray::from(vec![START_MICROS + second * 10_000]).with_timezone("UTC");
        let row = RecordBatch::try_from_iter_with_nullable([
            ("at", Arc::new(at) as ArrayRef, true),
            ("device", Arc::new(StringArray::from(vec!["device-1"])) as ArrayRef, true),
            ("value", Arc::new(Float64Array::from(vec![1.0])) as ArrayRef, true),
        ]);
        rows.give(vec![row.unwrap()]);
        times.push(bench.run().phases.total());
    }
    times.sort_unstable();
    let at = |share: usize| millis(times[times.len() * share / 100]);
    let how = if fsync { "with fsync" } else { "without fsync" };
    println!("one record per batch, {how}: {:.2} ms from trigger to commit, 99th percentile {:.2} ms", at(50), at(99));
}

/// A million rows on each side, each with one partner.
fn join() {
    const ROWS: i64 = 1_000_000;
    let directory = tempfile::tempdir().unwrap();
    let (left, right) = (Rows::new(0), Rows::new(0));
    let sql = "SELECT l.id, l.value, r.value AS other FROM l JOIN r ON l.id = r.id AND r.at BETWEEN l.at AND l.at + INTERVAL 1 MINUTE";
    let columns = "id BIGINT, at TIMESTAMP, value DOUBLE";
    let mut bench =
        Bench::new(directory.path(), true, &[("l", columns, &left), ("r", columns, &right)], sql, OutputMode::Append);
    bench.open();
    let side = |ids: Vec<i64>| {
        let block = |ids: &[i64]| {
            let at = TimestampMicrosecondArray::from_iter_values(ids.iter().map(|id| START_MICROS + id * 1_000));
            RecordBatch::try_from_iter_with_nullable([
                ("id", Arc::new(Int64Array::from(ids.to_vec())) as ArrayRef, true),
                ("at", Arc::new(at.with_timezone("UTC")) as ArrayRef, true),
                ("value", Arc::new(Float64Array::from_iter_values(ids.iter().map(|id| *id as f64))) as ArrayRef, true),
            ])
            .unwrap()
        };
        ids.chunks(ROWS_PER_BLOCK).map(block).collect::<Vec<_>>()
    };
    let (mut time, mut written, mut most) = (Duration::ZERO, 0, 0);
    for first in (0..ROWS).step_by(100_000) {
        left.give(side((first..first + 100_000).collect()));
        right.give(side((first..first + 100_000).rev().collect()));
        let report = bench.run();
        time += report.phases.total();
        written += report.counts.written;
        most = most.max(report.operators.iter().map(|operator| operator.memory_bytes).sum());
    }
    println!(
        "join of two streams, {ROWS} rows a side in 10 batches: {:.2} million rows/s, {written} pairs, at most {} MB of state",
        2.0 * ROWS as f64 / time.as_secs_f64() / 1e6,
        most / 1_000_000
    );
}

/// From the start of a process, after another one was killed in the middle of a batch, to its first commit.
fn recovery(keys: u64) {
    let directory = tempfile::tempdir().unwrap();
    let child = |what: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([what, &keys.to_string()]).arg(directory.path()).stdout(Stdio::piped());
        command
    };
    let mut first = child("--fill").spawn().unwrap();
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
    let batches = lines.find_map(|line| line.unwrap().strip_prefix("filled ").map(str::to_owned)).unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    let mut times = Vec::new();
    for life in 0..3 {
        let began = Instant::now();
        let mut next = child("--resume").arg((batches.parse::<u64>().unwrap() + life).to_string()).spawn().unwrap();
        let mut lines = BufReader::new(next.stdout.take().unwrap()).lines();
        lines.find(|line| line.as_ref().unwrap() == "committed").unwrap().unwrap();
        times.push(began.elapsed());
        next.kill().unwrap();
        next.wait().unwrap();
    }
    println!(
        "recovery with {keys} keys: {:.2} s from the start of the process to the first commit (median of 3)",
        median(times).as_secs_f64()
    );
}

/// The process that is killed: fills the state, then goes on with small batches until it dies.
fn fill(keys: u64, directory: &Path) {
    let rows = Rows::new(0);
    let mut bench = Bench::new(directory, true, &[("readings", READINGS, &rows)], AGGREGATES, OutputMode::Update);
    bench.open();
    let mut random = Random(7);
    let mut batches = 0;
    for first in (0..keys).step_by(500_000) {
        rows.give(readings(first..(first + 500_000).min(keys)));
        bench.run();
        batches += 1;
    }
    loop {
        rows.give(readings((0..1_000).map(|_| random.next() % keys)));
        bench.run();
        batches += 1;
        if batches == keys.div_ceil(500_000) + 30 {
            println!("filled {}", batches + 1_000);
            std::io::stdout().flush().unwrap();
        }
    }
}

/// The process that takes over.
fn resume(keys: u64, directory: &Path, from: u64) {
    let rows = Rows::new(from);
    rows.give(readings((0..1_000).map(|device| device * 31 % keys)));
    let mut bench = Bench::new(directory, true, &[("readings", READINGS, &rows)], AGGREGATES, OutputMode::Update);
    bench.open();
    bench.run();
    println!("committed");
    std::io::stdout().flush().unwrap();
    std::thread::park();
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--fill", count, directory] => return fill(count.parse().unwrap(), Path::new(directory)),
        ["--resume", count, directory, from] => {
            return resume(count.parse().unwrap(), Path::new(directory), from.parse().unwrap());
        }
        _ => {}
    }
    let wanted = |name: &str| words.is_empty() || words.contains(&name);
    let counts: Vec<u64> = match std::env::var("KEYS") {
        Ok(count) => vec![count.parse().unwrap()],
        Err(_) => vec![2_000_000, 10_000_000],
    };
    if wanted("one") {
        one_record(false);
        one_record(true);
    }
    if wanted("join") {
        join();
    }
    if wanted("keys") {
        counts.iter().for_each(|count| keys(*count));
    }
    if wanted("recovery") {
        recovery(counts.first().map_or(1_000_000, |count| (*count).min(1_000_000)));
        recovery(*counts.last().unwrap());
    }
}
