//! How fast the sinks are: greenhouse readings into each of them, and what one write of the local store costs.
//!
//! `cargo run --release -p perennial-bench --bin perennial-bench-sinks [-- ROWS [FILTER]]`. PostgreSQL and InfluxDB are measured where
//! `PERENNIAL_TEST_POSTGRES` and `PERENNIAL_TEST_INFLUXDB` say where they are.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark may stop at the first surprise")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Float64Array, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::Schema;
use async_trait::async_trait;
use futures::{StreamExt, stream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{PutMode, PutOptions};
use perennial_connectors::sinks::files::FilesSink;
use perennial_connectors::sinks::influxdb::InfluxDbSink;
use perennial_connectors::sinks::postgres::PostgresSink;
use perennial_connectors::sinks::sqlite::SqliteSink;
use perennial_connectors::storage::{self, StorageOptions};
use perennial_core::env::{Clock, Entropy, Env};
use perennial_core::sink::{OutputMode, SinkBatch, SinkContext, SinkFactory};
use serde_json::json;

#[derive(Debug)]
struct Stopped;

#[async_trait]
impl Clock for Stopped {
    fn now_micros(&self) -> i64 {
        1_795_254_263_000_000
    }
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
    async fn sleep(&self, _: Duration) {}
}

impl Entropy for Stopped {
    fn next_u64(&self) -> u64 {
        0
    }
}

/// Readings of 1,000 sensors in blocks as an engine makes them; each row has a time of its own.
fn readings(rows: usize) -> Vec<RecordBatch> {
    const BLOCK: usize = 8192;
    let sensors: Vec<String> = (0..1000).map(|i| format!("sensor-{i:04}")).collect();
    (0..rows)
        .step_by(BLOCK)
        .map(|first| {
            let numbers: Vec<usize> = (first..rows.min(first + BLOCK)).collect();
            // Scattered as measured values are, and the same in every run.
            let noise =
                |i: usize, salt: usize| (i.wrapping_mul(2_654_435_761).wrapping_add(salt * 97) % 1000) as f64 / 100.0;
            let column =
                |value: &dyn Fn(usize) -> f64| Float64Array::from_iter_values(numbers.iter().map(|i| value(*i)));
            RecordBatch::try_from_iter([
                (
                    "sensor_id",
                    Arc::new(StringArray::from_iter_values(numbers.iter().map(|i| &sensors[i % 1000]))) as ArrayRef,
                ),
                (
                    "event_time",
                    Arc::new(
                        TimestampMicrosecondArray::from_iter_values(
                            numbers.iter().map(|i| 1_795_254_263_000_000 + *i as i64 * 250),
                        )
                        .with_timezone("UTC"),
                    ),
                ),
                ("temperature", Arc::new(column(&|i| 18.0 + noise(i, 1)))),
                ("ph", Arc::new(column(&|i| 5.0 + noise(i, 2) / 5.0))),
                ("battery", Arc::new(Int32Array::from_iter_values(numbers.iter().map(|i| (i % 101) as i32)))),
                ("signal", Arc::new(Int32Array::from_iter_values(numbers.iter().map(|i| -((i % 90) as i32))))),
            ])
            .unwrap()
        })
        .collect()
}

struct Bench {
    rows: Vec<RecordBatch>,
    filter: String,
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        name.contains(&self.filter)
    }

    fn context(&self, mode: OutputMode) -> SinkContext {
        let schema = Schema::clone(&self.rows[0].schema());
        let key = [(perennial_connectors::sinks::UNIQUE_KEY.to_owned(), "sensor_id,event_time".to_owned())];
        SinkContext {
            env: Env {
                clock: Arc::new(Stopped),
                entropy: Arc::new(Stopped),
                storage: Arc::new(InMemory::new()),
                crash: Default::default(),
            },
            job: "bench".to_owned(),
            query: "bench".to_owned(),
            query_id: "0123456789abcdef".to_owned(),
            schema: Arc::new(schema.with_metadata(key.into())),
            output_mode: mode,
        }
    }

    /// Two batches; the second one, which finds connection and table ready, is measured.
    async fn sink(&self, name: &str, factory: &dyn SinkFactory, mode: OutputMode) {
        let sink = factory.open(self.context(mode)).unwrap();
        let batch = |id| SinkBatch { id, epoch: 1, timestamp_ms: 0, again: false };
        sink.write(&batch(0), stream::iter(self.rows[..1].to_vec()).map(Ok).boxed()).await.unwrap();
        let start = Instant::now();
        let written = sink.write(&batch(1), stream::iter(self.rows.clone()).map(Ok).boxed()).await.unwrap();
        report(name, start.elapsed(), written.rows, written.bytes);
    }
}

fn report(name: &str, took: Duration, rows: u64, bytes: u64) {
    let seconds = took.as_secs_f64();
    println!(
        "{name:<36} {:>10.0} rows/s   {:>7.1} MB written   {seconds:>7.3} s",
        rows as f64 / seconds,
        bytes as f64 / 1e6
    );
}

async fn puts(name: &str, fsync: bool, create: bool, count: u32) {
    let dir = tempfile::tempdir().unwrap();
    let options = StorageOptions { fsync, ..Default::default() };
    let store = storage::open(dir.path().to_str().unwrap(), &options).unwrap().store;
    let mode = if create { PutMode::Create } else { PutMode::Overwrite };
    let start = Instant::now();
    for i in 0..count {
        let options = PutOptions { mode: mode.clone(), ..Default::default() };
        store.put_opts(&Path::from(format!("offsets/{i}")), "a small file".into(), options).await.unwrap();
    }
    println!("{name:<36} {:>10.1} µs per put", start.elapsed().as_secs_f64() * 1e6 / f64::from(count));
    // What a file system asks at least: the file and its directory.
    if fsync && !create {
        let start = Instant::now();
        let parent = std::fs::File::open(dir.path()).unwrap();
        for i in 0..count {
            let path = dir.path().join(format!("bare-{i}"));
            std::fs::write(&path, "a small file").unwrap();
            std::fs::File::open(&path).unwrap().sync_data().unwrap();
            parent.sync_all().unwrap();
        }
        println!(
            "{:<36} {:>10.1} µs per file",
            "  of that, fsync of file and directory",
            start.elapsed().as_secs_f64() * 1e6 / f64::from(count)
        );
    }
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let rows = arguments.first().map_or(1_000_000, |n| n.parse().expect("the number of rows"));
    let bench = Bench { rows: readings(rows), filter: arguments.get(1).cloned().unwrap_or_default() };
    println!("{rows} rows of 6 columns in blocks of 8192");

    if bench.wants("put") {
        puts("put, no fsync", false, false, 5000).await;
        puts("put if absent, no fsync", false, true, 5000).await;
        puts("put", true, false, 300).await;
        puts("put if absent", true, true, 300).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();

    if bench.wants("parquet") {
        let properties = parquet::file::properties::WriterProperties::builder()
            .set_compression(parquet::basic::Compression::ZSTD(Default::default()))
            .build();
        let start = Instant::now();
        let file = std::fs::File::create(path("plain.parquet")).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, bench.rows[0].schema(), Some(properties)).unwrap();
        bench.rows.iter().for_each(|rows| writer.write(rows).unwrap());
        writer.close().unwrap();
        let bytes = std::fs::metadata(path("plain.parquet")).unwrap().len();
        report("ArrowWriter, zstd, for comparison", start.elapsed(), rows as u64, bytes);
    }
    for (name, more) in [
        ("files parquet zstd", json!({})),
        ("files parquet snappy", json!({"compression": "snappy"})),
        ("files parquet by sensor", json!({"partition_by": ["sensor_id"], "max_partitions": 1000})),
        ("files json", json!({"format": "json"})),
        ("files json zstd", json!({"format": "json", "compression": "zstd"})),
        ("files csv", json!({"format": "csv"})),
    ] {
        if bench.wants(name) {
            let mut settings = json!({"path": path(name)});
            settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let settings: FilesSink = serde_json::from_value(settings).unwrap();
            bench.sink(name, &settings, OutputMode::Append).await;
        }
    }
    let key = ["sensor_id", "event_time"];
    for (name, mode) in [("sqlite append", OutputMode::Append), ("sqlite update", OutputMode::Update)] {
        if bench.wants(name) {
            let mut settings = json!({"path": path("data.db"), "table": name});
            if mode == OutputMode::Update {
                settings["key"] = json!(key);
            }
            let settings: SqliteSink = serde_json::from_value(settings).unwrap();
            bench.sink(name, &settings, mode).await;
        }
    }
    match std::env::var("PERENNIAL_TEST_POSTGRES") {
        Err(_) => println!("postgres: left out, PERENNIAL_TEST_POSTGRES is not set"),
        Ok(url) => {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            client.batch_execute("DROP SCHEMA IF EXISTS bench CASCADE; CREATE SCHEMA bench").await.unwrap();
            for (name, mode) in [("postgres append", OutputMode::Append), ("postgres update", OutputMode::Update)] {
                if bench.wants(name) {
                    let mut settings = json!({"url": url, "table": format!("bench.{name}"), "sslmode": "disable"});
                    if mode == OutputMode::Update {
                        settings["key"] = json!(key);
                    }
                    let settings: PostgresSink = serde_json::from_value(settings).unwrap();
                    bench.sink(name, &settings, mode).await;
                }
            }
            client.batch_execute("DROP SCHEMA bench CASCADE").await.unwrap();
        }
    }
    match std::env::var("PERENNIAL_TEST_INFLUXDB") {
        Err(_) => println!("influxdb: left out, PERENNIAL_TEST_INFLUXDB is not set"),
        Ok(url) if bench.wants("influxdb") => {
            let settings: InfluxDbSink = serde_json::from_value(json!({
                "url": url, "database": "bench", "create_database": true, "measurement": "readings",
                "tags": ["sensor_id"], "time": "event_time",
            }))
            .unwrap();
            bench.sink("influxdb", &settings, OutputMode::Append).await;
        }
        Ok(_) => {}
    }
}
