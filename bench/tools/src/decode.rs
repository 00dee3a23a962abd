//! How fast JSON lines become columns, on one core: all columns, some of them, and Arrow's own reader on the same bytes.
//!
//! `cargo run --release -p perennial-bench --bin perennial-bench-decode` prints the median of several runs; `RECORDS` sets how many records there are.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::{Field, Schema};
use perennial_connectors::format::{Format, decoder};
use perennial_core::ddl;
use perennial_core::records::{Input, Payload, Position, RecordBlock};

const RECORDS: usize = 1_000_000;
const BLOCK: usize = 4 << 20;
const RUNS: usize = 7;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let records: usize = std::env::var("RECORDS").ok().and_then(|n| n.parse().ok()).unwrap_or(RECORDS);
    let text = sensors(records)?;
    let blocks = blocks(&text);
    let bytes = text.len();
    println!("{records} records of {} bytes, {} blocks, median of {RUNS} runs", bytes / records, blocks.len());

    let declared = ddl::parse(
        "sensor_id STRING NOT NULL, event_time TIMESTAMP NOT NULL, temperature DOUBLE, ph DOUBLE, battery INT, signal INT",
    )?;
    for (what, columns) in [
        ("all columns", &[0, 1, 2, 3, 4, 5][..]),
        ("sensor_id, event_time, temperature", &[0, 1, 2]),
        ("event_time, battery, signal", &[1, 4, 5]),
        ("battery", &[4]),
        ("no column", &[]),
    ] {
        let decoder = decoder(&Format::default(), &declared, columns)?;
        let took = median(
            || {
                let mut rows = 0;
                for block in &blocks {
                    rows += decoder.decode(Input::Records(block.clone()))?.rows.num_rows();
                }
                Ok(rows)
            },
            records,
        )?;
        print(what, records, bytes, took);
    }

    let schema = Arc::new(Schema::new(
        declared.fields().iter().map(|f| Field::new(f.name(), f.data_type().clone(), true)).collect::<Vec<_>>(),
    ));
    let took = median(
        || {
            let mut rows = 0;
            for block in &blocks {
                let Payload::Lines(text) = &block.payload else { continue };
                let reader = arrow::json::ReaderBuilder::new(schema.clone())
                    .with_batch_size(8192)
                    .build(std::io::Cursor::new(text))?;
                for batch in reader {
                    rows += batch?.num_rows();
                }
            }
            Ok(rows)
        },
        records,
    )?;
    print("arrow-json, all columns", records, bytes, took);
    Ok(())
}

fn print(what: &str, records: usize, bytes: usize, took: Duration) {
    let seconds = took.as_secs_f64();
    println!(
        "{what:<40} {:>6.2} million records/s {:>8.0} MB/s {:>6.0} ns/record",
        records as f64 / seconds / 1e6,
        bytes as f64 / seconds / 1e6,
        seconds * 1e9 / records as f64
    );
}

fn median(mut run: impl FnMut() -> Outcome<usize>, expected: usize) -> Outcome<Duration> {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let (start, cpu) = (Instant::now(), time_on_cpu());
        let rows = run()?;
        times.push(match (cpu, time_on_cpu()) {
            (Some(before), Some(after)) => after - before,
            _ => start.elapsed(),
        });
        assert_eq!(rows, expected, "records were lost");
    }
    times.sort();
    Ok(times[RUNS / 2])
}

/// How long this thread has run, where the system tells it: what other processes take does not count.
fn time_on_cpu() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// Greenhouse readings, always the same ones.
fn sensors(records: usize) -> Outcome<Vec<u8>> {
    let mut text = Vec::with_capacity(records * 136);
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for record in 0..records as u64 {
        let second = record / 100;
        writeln!(
            text,
            "{{\"sensor_id\":\"sensor-{:04}\",\"event_time\":\"2025-11-{:02}T{:02}:{:02}:{:02}.{:03}Z\",\"temperature\":{}.{:02},\
             \"ph\":{}.{:02},\"battery\":{},\"signal\":-{}}}",
            random(1000),
            21 + second / 86_400,
            second / 3600 % 24,
            second / 60 % 60,
            second % 60,
            random(1000),
            15 + random(15),
            random(100),
            5 + random(3),
            random(100),
            random(101),
            30 + random(70),
        )?;
    }
    Ok(text)
}

/// Whole lines of a few megabytes each, as the sources give them.
fn blocks(text: &[u8]) -> Vec<RecordBlock> {
    let mut blocks = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let end = (start + BLOCK).min(text.len());
        let end = text[..end].iter().rposition(|b| *b == b'\n').map_or(text.len(), |at| at + 1);
        let position = Position::File { path: "bench.json".into(), offset: start as u64 };
        blocks
            .push(RecordBlock { payload: Payload::Lines(bytes::Bytes::copy_from_slice(&text[start..end])), position });
        start = end;
    }
    blocks
}
