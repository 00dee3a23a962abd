//! Health in the shapes that monitors and probes of PySpark jobs read.
//!
//! Fields may be added, never renamed.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use chrono::DateTime;
use perennial_core::sink::BatchId;
use perennial_core::status::{Health, QueryState, QueryStatus, RecordCounts, Status, seconds_between};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

use super::{Heartbeat, HttpContext};

/// A point in time as these endpoints write it: UTC with microseconds and without a suffix, `2025-11-21T09:45:30.123456`.
pub fn timestamp(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros).map_or_else(String::new, |at| at.format("%Y-%m-%dT%H:%M:%S%.6f").to_string())
}

/// `GET /health`.
#[derive(Debug, Serialize)]
pub struct Summary {
    status: Health,
    last_batch_id: Option<BatchId>,
    last_processed_at: Option<String>,
    errors_count: u64,
    errors_by_type: BTreeMap<&'static str, u64>,
    batches_processed: u64,
    records_processed: u64,
    start_time: String,
    uptime_seconds: u64,
    version: String,
    job: String,
    errors_in_window: usize,
}

impl Summary {
    fn of(status: &Status, now_micros: i64) -> Self {
        let last = status.last_batch();
        let errors_by_type = status.errors_by_type();
        Self {
            status: status.health(now_micros),
            last_batch_id: last.map(|batch| batch.id),
            last_processed_at: last.map(|batch| timestamp(batch.finished_at_micros)),
            errors_count: errors_by_type.values().sum(),
            errors_by_type,
            batches_processed: status.batches(),
            records_processed: status.records(),
            start_time: timestamp(status.start_micros),
            uptime_seconds: seconds_between(status.start_micros, now_micros) as u64,
            version: status.version.clone(),
            job: status.job.clone(),
            errors_in_window: status.errors_in_window(now_micros),
        }
    }
}

pub(super) async fn summary(State(context): State<HttpContext>) -> Json<Summary> {
    Json(Summary::of(&context.board.snapshot(), context.clock.now_micros()))
}

/// `GET /health/detailed`.
#[derive(Debug, Serialize)]
pub struct Detailed {
    #[serde(flatten)]
    summary: Summary,
    avg_batch_processing_time_sec: f64,
    records_per_second: f64,
    seconds_since_last_batch: Option<f64>,
    recommendations: Vec<&'static str>,
    queries: Map<String, Value>,
}

pub(super) async fn detailed(State(context): State<HttpContext>) -> Json<Detailed> {
    let (status, now) = (context.board.snapshot(), context.clock.now_micros());
    Json(Detailed {
        summary: Summary::of(&status, now),
        avg_batch_processing_time_sec: status.average_batch_seconds(),
        records_per_second: status.records_per_second(),
        seconds_since_last_batch: status.last_batch().map(|batch| seconds_between(batch.finished_at_micros, now)),
        recommendations: status.recommendations(now),
        queries: status.queries.iter().map(|(name, query)| (name.clone(), describe(query))).collect(),
    })
}

fn describe(query: &QueryStatus) -> Value {
    let counts = |records: &RecordCounts| {
        let mut value = serde_json::to_value(records).unwrap_or_default();
        value["closes"] = records.closes().into();
        value
    };
    json!({
        "state": query.state,
        "reason": query.reason,
        "since": timestamp(query.since_micros),
        "last_batch": query.last_batch.as_ref().map(|batch| json!({
            "batch_id": batch.id,
            "finished_at": timestamp(batch.finished_at_micros),
            "duration_sec": batch.duration.as_secs_f64(),
            "records": counts(&batch.records),
        })),
        "batches_processed": query.batches,
        "records": counts(&query.records),
        "unaccounted_batches": query.unaccounted_batches,
        "records_per_second": query.records_per_second(),
        "watermark": query.watermark_ms.map(|ms| timestamp(ms.saturating_mul(1000))),
        "lag": query.lag.iter().map(|(source, lag)| {
            let partitions: Map<_, _> = lag.partitions.iter().map(|(name, records)| (name.clone(), (*records).into())).collect();
            (source.clone(), json!({ "records": lag.records, "partitions": partitions }))
        }).collect::<Map<_, _>>(),
        "state_rows": query.operators.iter().map(|o| o.rows_total).sum::<u64>(),
        "state_bytes": query.operators.iter().map(|o| o.memory_bytes).sum::<u64>(),
        "errors_by_type": query.errors,
        "dead_letters_by_type": query.dead_letters,
        "last_error": query.last_error.as_ref().map(|error| json!({
            "type": error.class.code,
            "kind": error.class.kind.to_string(),
            "message": error.message,
            "recommendation": error.class.recommendation,
            "timestamp": timestamp(error.at_micros),
        })),
    })
}

pub(super) async fn dead_letters(State(context): State<HttpContext>) -> Json<Value> {
    let status = context.board.snapshot();
    let letters = &status.dead_letters;
    let entry = |entry: &perennial_core::status::DeadLetterEntry| {
        json!({ "batch_id": entry.batch_id, "timestamp": timestamp(entry.at_micros), "error_type": entry.class.code })
    };
    Json(json!({
        "dlq": {
            "total_entries": letters.entries,
            "error_types": letters.by_class,
            "first_error": letters.first.as_ref().map(entry),
            "last_error": letters.last.as_ref().map(entry),
            "dlq_directory": context.dead_letters,
            "since": timestamp(status.start_micros),
        },
        "timestamp": timestamp(context.clock.now_micros()),
    }))
}

pub(super) async fn ready(State(context): State<HttpContext>) -> (StatusCode, Json<Value>) {
    let (status, now) = (context.board.snapshot(), context.clock.now_micros());
    let health = status.health(now);
    if health.is_ready() {
        return (StatusCode::OK, Json(json!({ "ready": true })));
    }
    let queries: Vec<Value> = status
        .queries
        .iter()
        .filter(|(_, query)| !matches!(query.state, QueryState::Running | QueryState::Waiting))
        .map(|(name, query)| {
            let error = query.last_error.as_ref().map(|e| format!("{}: {}", e.class.code, e.message));
            let reason = query.reason.clone().or(error);
            json!({ "query": name, "state": query.state, "reason": reason, "since": timestamp(query.since_micros) })
        })
        .collect();
    let answer = json!({
        "ready": false,
        "reason": "Job initializing or unhealthy",
        "status": health,
        "errors_in_window": status.errors_in_window(now),
        "queries": queries,
    });
    (StatusCode::SERVICE_UNAVAILABLE, Json(answer))
}

pub(super) async fn live(State(context): State<HttpContext>) -> (StatusCode, Json<Value>) {
    let silence = context.heartbeat.silence();
    if Heartbeat::is_alive(silence) {
        (StatusCode::OK, Json(json!({ "alive": true })))
    } else {
        let reason = format!("the job's runtime has made no progress for {} seconds", silence.as_secs());
        (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "alive": false, "reason": reason })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_have_microseconds_and_no_suffix() {
        assert_eq!(timestamp(1_763_718_330_123_456), "2025-11-21T09:45:30.123456");
        assert_eq!(timestamp(1_763_715_600_000_000), "2025-11-21T09:00:00.000000");
        assert_eq!(timestamp(-1), "1969-12-31T23:59:59.999999");
    }
}
