//! Rows per second of the main query over rows in memory, against DataFusion's own batch query over the same rows.
//!
//! `cargo run --release -p perennial-bench --bin perennial-bench-throughput`

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark stops at the first error")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{Float64Array, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::catalog::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::{StreamExt, TryStreamExt, stream};
use perennial_core::plan::{BatchInfo, BatchState, QueryPlan};
use perennial_core::sink::{OutputMode, RowStream};
use perennial_core::state::{MemoryPartition, StatePartition};
use perennial_sql::{Planner, PlannerOptions, SourceTable, SourceWatermark, TableKind};

const ROWS: usize = 4_000_000;
const ROWS_PER_BLOCK: usize = 32_768;
const ROUNDS: usize = 5;

fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![
        Field::new("sensor_id", DataType::Utf8, true),
        Field::new("event_time", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("temperature", DataType::Float64, true),
        Field::new("battery", DataType::Int32, true),
    ]))
}

/// `sensors` sensors, one hour of event time.
fn blocks(sensors: usize) -> Vec<RecordBatch> {
    let mut seed = 42_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let start = 1_700_000_000_000_000_i64;
    (0..ROWS)
        .step_by(ROWS_PER_BLOCK)
        .map(|first| {
            let rows = first..(first + ROWS_PER_BLOCK).min(ROWS);
            let sensor = StringArray::from_iter_values(
                rows.clone().map(|_| format!("sensor-{:07}", random() as usize % sensors)),
            );
            let time = TimestampMicrosecondArray::from_iter_values(
                rows.clone().map(|row| start + row as i64 * 3_600_000_000 / ROWS as i64),
            );
            let temperature = Float64Array::from_iter_values(rows.clone().map(|_| (random() % 4000) as f64 / 100.0));
            let battery = Int32Array::from_iter_values(rows.clone().map(|_| (random() % 100) as i32));
            let columns: Vec<arrow::array::ArrayRef> =
                vec![Arc::new(sensor), Arc::new(time.with_timezone("UTC")), Arc::new(temperature), Arc::new(battery)];
            RecordBatch::try_new(schema(), columns).unwrap()
        })
        .collect()
}

fn split(blocks: &[RecordBatch], parts: usize) -> Vec<Vec<RecordBatch>> {
    let size = blocks.len().div_ceil(parts);
    blocks.chunks(size).map(<[RecordBatch]>::to_vec).collect()
}

fn new_state(plan: &dyn QueryPlan) -> BatchState {
    let partition =
        |spec| Arc::new(Mutex::new(MemoryPartition::new(spec, 0).unwrap())) as Arc<Mutex<dyn StatePartition>>;
    plan.state().iter().map(|spec| (0..plan.parallelism()).map(|_| partition(spec)).collect()).collect()
}

async fn run(plan: &dyn QueryPlan, inputs: &[Vec<RecordBatch>], state: &BatchState, id: u64) -> usize {
    let columns = plan.inputs()[0].columns.clone();
    let streams: Vec<RowStream> = inputs
        .iter()
        .map(|blocks| {
            let columns = columns.clone();
            let rows: Vec<_> = blocks.iter().map(move |rows| Ok(rows.project(&columns).unwrap())).collect();
            stream::iter(rows).boxed()
        })
        .collect();
    let info = BatchInfo { id, timestamp_ms: 0, watermark_ms: 0, late_watermark_ms: 0 };
    let execution = plan.execute(info, vec![streams], state.clone()).await.unwrap();
    let rows: Vec<RecordBatch> = execution.rows.try_collect().await.unwrap();
    (execution.outcome)().unwrap();
    rows.iter().map(RecordBatch::num_rows).sum()
}

fn report(what: &str, rows: usize, mut times: Vec<Duration>) {
    times.sort();
    let median = times[times.len() / 2];
    println!("{what:<60} {:>8.2} million rows/s ({median:.1?})", rows as f64 / median.as_secs_f64() / 1e6);
}

fn main() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for sensors in [1_000, 1_000_000] {
            let blocks = blocks(sensors);
            let inputs = split(&blocks, cores);

            let context = SessionContext::new_with_config(
                SessionConfig::new().with_target_partitions(cores).with_collect_statistics(false),
            );
            context.register_table("readings", Arc::new(MemTable::try_new(schema(), inputs.clone()).unwrap())).unwrap();
            let batch_sql = "SELECT date_bin(interval '1 minute', event_time) AS minute, sensor_id, count(*) AS n, \
                avg(temperature) AS mean, min(temperature) AS low, max(temperature) AS high \
                FROM readings WHERE battery > 20 GROUP BY 1, 2";
            let mut times = Vec::new();
            for _ in 0..ROUNDS {
                let start = Instant::now();
                context.sql(batch_sql).await.unwrap().collect().await.unwrap();
                times.push(start.elapsed());
            }
            report(&format!("{sensors} sensors: DataFusion batch query"), ROWS, times);

            let source = SourceTable {
                name: "readings".into(),
                schema: schema(),
                watermark: Some(SourceWatermark { column: "event_time".into(), delay_micros: 600_000_000 }),
                deduplicate: None,
                kind: TableKind::Stream,
            };
            let sql = "SELECT window.start AS minute, sensor_id, count(*) AS n, avg(temperature) AS mean, \
                min(temperature) AS low, max(temperature) AS high \
                FROM readings WHERE battery > 20 GROUP BY window(event_time, '1 minute'), sensor_id";
            let planner = Planner::new(PlannerOptions::default());
            for mode in [OutputMode::Append, OutputMode::Update] {
                let plan = planner.plan(sql, std::slice::from_ref(&source), mode).await.unwrap();
                let mut times = Vec::new();
                for _ in 0..ROUNDS {
                    let state = new_state(&*plan);
                    let start = Instant::now();
                    run(&*plan, &inputs, &state, 0).await;
                    times.push(start.elapsed());
                }
                report(&format!("{sensors} sensors: one batch, {mode:?}"), ROWS, times);
            }
            let plan = planner.plan(sql, std::slice::from_ref(&source), OutputMode::Update).await.unwrap();
            let state = new_state(&*plan);
            let mut times = Vec::new();
            for id in 0..1000 {
                let one = vec![vec![blocks[0].slice(id, 1)]];
                let start = Instant::now();
                run(&*plan, &one, &state, id as u64).await;
                times.push(start.elapsed());
            }
            times.sort();
            println!("{sensors} sensors: a batch of one row: median {:.1?}, 99% {:.1?}", times[500], times[990]);
        }
    });
}
