//! Health in the shapes that monitors and probes of PySpark jobs read.
//!
//! Fields may be added, never renamed.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use perennial_core::dead_letter::timestamp_text;
use perennial_core::progress::QueryState;
use perennial_core::sink::BatchId;
use perennial_core::status::{Health, QueryStatus, Status, state_name};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Heartbeat, HttpContext};

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
    fn of(status: &Status) -> Self {
        let last = status.last_batch();
        let errors_by_type = status.errors_by_type();
        Self {
            status: status.health(),
            last_batch_id: last.map(|batch| batch.id),
            last_processed_at: last.map(|batch| timestamp_text(batch.finished_at_micros)),
            errors_count: errors_by_type.values().sum(),
            errors_by_type,
            batches_processed: status.batches(),
            records_processed: status.records(),
            start_time: timestamp_text(status.start_micros),
            uptime_seconds: status.seconds_since(status.start_micros) as u64,
            version: status.version.clone(),
            job: status.job.clone(),
            errors_in_window: status.errors_in_window(),
        }
    }
}

pub(super) async fn summary(State(context): State<HttpContext>) -> Json<Summary> {
    Json(Summary::of(&context.board.snapshot()))
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
    let status = context.board.snapshot();
    Json(Detailed {
        summary: Summary::of(&status),
        avg_batch_processing_time_sec: status.average_batch_seconds(),
        records_per_second: status.records_per_second(),
        seconds_since_last_batch: status.last_batch().map(|batch| status.seconds_since(batch.finished_at_micros)),
        recommendations: status.recommendations(),
        queries: status.queries.iter().map(|(name, query)| (name.clone(), describe(query))).collect(),
    })
}

fn describe(query: &QueryStatus) -> Value {
    json!({
        "state": state_name(&query.state),
        "reason": reason(&query.state),
        "since": timestamp_text(query.since_micros),
        "last_batch": query.last_batch.as_ref().map(|batch| json!({
            "batch_id": batch.id,
            "finished_at": timestamp_text(batch.finished_at_micros),
            "duration_sec": batch.duration.as_secs_f64(),
            "records": batch.counts,
            "records_missing": batch.missing,
        })),
        "batches_processed": query.batches,
        "records": query.counts,
        "unaccounted_batches": query.unaccounted_batches,
        "records_per_second": query.records_per_second(),
        "watermark": query.watermark_ms.map(|ms| timestamp_text(ms.saturating_mul(1000))),
        "lag": query.lag.iter().map(|(source, lag)| {
            let partitions: Map<_, _> = lag.partitions.iter().map(|(name, records)| (name.clone(), (*records).into())).collect();
            (source.clone(), json!({ "records": lag.records, "partitions": partitions }))
        }).collect::<Map<_, _>>(),
        "state_rows": query.operators.iter().map(|o| o.rows_total).sum::<u64>(),
        "state_bytes": query.operators.iter().map(|o| o.memory_bytes).sum::<u64>(),
        "retries": query.retries,
        "errors_by_type": query.errors,
        "dead_letters_by_type": query.dead_letters,
        "last_error": query.last_error.as_ref().map(|error| json!({
            "type": error.class.code,
            "kind": error.class.kind.to_string(),
            "message": error.message,
            "recommendation": error.class.recommendation,
            "timestamp": timestamp_text(error.at_micros),
        })),
    })
}

/// What a state says beyond its name.
fn reason(state: &QueryState) -> Option<String> {
    match state {
        QueryState::BackingOff { wait } => Some(format!("waits {} ms after an error", wait.as_millis())),
        QueryState::BreakerOpen { wait } => {
            Some(format!("the circuit breaker is open; the next probe comes after {} ms", wait.as_millis()))
        }
        QueryState::Paused => Some("paused; it goes on when it is resumed".to_owned()),
        _ => None,
    }
}

pub(super) async fn dead_letters(State(context): State<HttpContext>) -> (StatusCode, Json<Value>) {
    let timestamp = timestamp_text(context.board.snapshot().now_micros);
    // A batch that writes dead letters holds them for a moment; a request does not wait for a disk that hangs.
    let stats = tokio::time::timeout(Duration::from_secs(5), context.dead_letters.stats()).await;
    match stats {
        Ok(Ok(stats)) => (StatusCode::OK, Json(json!({ "dlq": stats, "timestamp": timestamp }))),
        Ok(Err(error)) => unavailable(&format!("the dead letters cannot be read: {error}"), &timestamp),
        Err(_) => unavailable("the dead letters do not answer", &timestamp),
    }
}

fn unavailable(error: &str, timestamp: &str) -> (StatusCode, Json<Value>) {
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": error, "timestamp": timestamp })))
}

pub(super) async fn ready(State(context): State<HttpContext>) -> (StatusCode, Json<Value>) {
    let status = context.board.snapshot();
    let health = status.health();
    if health.is_ready() {
        return (StatusCode::OK, Json(json!({ "ready": true })));
    }
    let queries: Vec<Value> = status
        .queries
        .iter()
        .filter(|(_, query)| !matches!(query.state, QueryState::Running | QueryState::Idle | QueryState::Started { .. }))
        .map(|(name, query)| {
            let error = query.last_error.as_ref().map(|e| format!("{}: {}", e.class.code, e.message));
            let reason = error.or_else(|| reason(&query.state));
            json!({ "query": name, "state": state_name(&query.state), "reason": reason, "since": timestamp_text(query.since_micros) })
        })
        .collect();
    let answer = json!({
        "ready": false,
        "reason": "Job initializing or unhealthy",
        "status": health,
        "errors_in_window": status.errors_in_window(),
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
