//! The main job as a plain batch query of DataFusion: its own JSON reader, its own Parquet writer, two partitions.

use std::time::{SystemTime, UNIX_EPOCH};

use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::{JsonReadOptions, SessionConfig, SessionContext};

use crate::Result;

const QUERY: &str = "\
    SELECT date_trunc('minute', event_time) AS minute, sensor_id, count(*) AS readings, \
        avg(temperature) AS temperature_avg, min(temperature) AS temperature_min, max(temperature) AS temperature_max \
    FROM readings WHERE battery >= 20 GROUP BY 1, 2";

/// Runs it over `BENCH_INPUT`, writes to `rows/` in `BENCH_OUTPUT`, and prints the result line that `bench/peers/run.py` describes.
pub async fn run() -> Result<()> {
    let task = |name: &str| std::env::var(name).map_err(|error| format!("{name}: {error}"));
    let config = SessionConfig::new().with_target_partitions(2).with_collect_statistics(false);
    let context = SessionContext::new_with_config(config);
    let schema = schema();
    let options = JsonReadOptions::default().schema(&schema);
    context.register_json("readings", task("BENCH_INPUT")?, options).await?;
    let rows = context.sql(QUERY).await?;
    let target = format!("{}/rows/", task("BENCH_OUTPUT")?);
    rows.write_parquet(&target, DataFrameWriteOptions::new(), None).await?;

    let started: f64 = task("BENCH_STARTED")?.parse()?;
    let (records, bytes): (u64, u64) = (task("BENCH_RECORDS")?.parse()?, task("BENCH_BYTES")?.parse()?);
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() - started;
    let version = datafusion::DATAFUSION_VERSION;
    let result = serde_json::json!({
        "runner": "datafusion-batch", "version": version, "records": records, "bytes": bytes, "seconds": seconds,
    });
    println!("{result}");
    Ok(())
}

fn schema() -> Schema {
    Schema::new(vec![
        Field::new("sensor_id", DataType::Utf8, true),
        Field::new("event_time", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("temperature", DataType::Float64, true),
        Field::new("ph", DataType::Float64, true),
        Field::new("battery", DataType::Int32, true),
        Field::new("signal", DataType::Int32, true),
    ])
}
