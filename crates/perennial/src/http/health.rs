//! Health in the shapes that monitors and probes of PySpark jobs read.
//!
//! Fields may be added, never renamed.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use perennial_core::breaker::Breaker;
use perennial_core::checkpoint::BatchCounts;
use perennial_core::dead_letter::{DeadLetterStats, timestamp_text};
use perennial_core::progress::QueryState;
use perennial_core::sink::BatchId;
use perennial_core::status::{Health, Obstacle, ObstacleKind, QueryStatus, Role, Status, state_name};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Heartbeat, HttpContext};

/// How the job is, in short.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Summary {
    /// `initializing` while a query has not got through its start, `healthy` without errors in the window, `degraded` with 1 to 4, `unhealthy` with
    /// 5 or more.
    status: Health,
    /// `active`, or `standby` while the process waits beside the one that runs the job.
    role: Role,
    /// Number of the batch that was committed last.
    last_batch_id: Option<BatchId>,
    /// When that was.
    last_processed_at: Option<String>,
    /// Errors since the start.
    errors_count: u64,
    /// Errors since the start, by class.
    errors_by_type: BTreeMap<&'static str, u64>,
    /// Batches since the start.
    batches_processed: u64,
    /// Records since the start.
    records_processed: u64,
    /// When the process started.
    start_time: String,
    /// Seconds since then.
    uptime_seconds: u64,
    /// Version of the job.
    version: String,
    /// Name of the job.
    job: String,
    /// Errors within the window that counts for `status`.
    errors_in_window: usize,
}

impl Summary {
    fn of(status: &Status) -> Self {
        let last = status.last_batch();
        let errors_by_type = status.errors_by_type();
        Self {
            status: status.health(),
            role: status.role,
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

/// How the job and each of its queries are.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Detailed {
    #[serde(flatten)]
    summary: Summary,
    /// Mean time of a batch since the start.
    avg_batch_processing_time_sec: f64,
    /// Of the last batch of each query, summed.
    records_per_second: f64,
    /// Seconds since the last commit.
    seconds_since_last_batch: Option<f64>,
    /// What a person should do.
    recommendations: Vec<&'static str>,
    /// The queries by name.
    queries: BTreeMap<String, QueryDetails>,
}

pub(super) async fn detailed(State(context): State<HttpContext>) -> Json<Detailed> {
    let status = context.board.snapshot();
    Json(Detailed {
        summary: Summary::of(&status),
        avg_batch_processing_time_sec: status.average_batch_seconds(),
        records_per_second: status.records_per_second(),
        seconds_since_last_batch: status.last_batch().map(|batch| status.seconds_since(batch.finished_at_micros)),
        recommendations: status.recommendations(),
        queries: status.queries.iter().map(|(name, query)| (name.clone(), QueryDetails::of(query))).collect(),
    })
}

/// How a query is.
#[derive(Debug, Serialize, JsonSchema)]
pub struct QueryDetails {
    /// Where it is in its life.
    state: &'static str,
    /// What that means, where it needs words.
    reason: Option<String>,
    /// Since when.
    since: String,
    /// The breaker that matters most: an open one before one that probes before a closed one.
    breaker: Option<BreakerDetails>,
    /// The breakers of all parts, by part: `sources.NAME`, `sink`, and `storage` for checkpoint and dead letters.
    breakers: BTreeMap<String, BreakerDetails>,
    /// The batch that was committed last.
    last_batch: Option<LastBatchDetails>,
    /// Batches since the start.
    batches_processed: u64,
    /// What became of the records since the start.
    records: BatchCounts,
    /// Batches whose counts did not add up; anything but 0 is a bug.
    unaccounted_batches: u64,
    /// Of the last batch.
    records_per_second: f64,
    /// The watermark.
    watermark: Option<String>,
    /// What waits, by source.
    lag: BTreeMap<String, LagDetails>,
    /// In about so many seconds all that waits is worked off, at the pace of the last minutes; null where that is not known or never.
    seconds_to_caught_up: Option<f64>,
    /// Rows in state.
    state_rows: u64,
    /// Memory of the state.
    state_bytes: u64,
    /// Times that a batch was tried again.
    retries: u64,
    /// Errors since the start, by class.
    errors_by_type: BTreeMap<&'static str, u64>,
    /// Dead-lettered records since the start, by class.
    dead_letters_by_type: BTreeMap<&'static str, u64>,
    /// The last error, also when it is over.
    last_error: Option<ErrorDetails>,
}

/// A circuit breaker.
#[derive(Debug, Serialize, JsonSchema)]
struct BreakerDetails {
    /// Whose it is.
    part: String,
    /// `closed`, `open` or `half_open`.
    state: &'static str,
    /// Since when.
    since: String,
    /// While it is open: when the next attempt is made.
    next_probe: Option<String>,
    /// Failures in a row.
    failures: u32,
    /// How often it opened since the start.
    opened: u64,
    /// How many attempts were probes.
    probes: u64,
}

impl BreakerDetails {
    fn of(part: String, breaker: &Breaker) -> Self {
        Self {
            part,
            state: breaker.state.name(),
            since: timestamp_text(breaker.since_micros),
            next_probe: breaker.next_probe_micros().map(timestamp_text),
            failures: breaker.failures,
            opened: breaker.opened,
            probes: breaker.probes,
        }
    }
}

/// A committed batch.
#[derive(Debug, Serialize, JsonSchema)]
struct LastBatchDetails {
    /// Its number.
    batch_id: BatchId,
    /// When it was committed.
    finished_at: String,
    /// From trigger to commit.
    duration_sec: f64,
    /// What became of its records.
    records: BatchCounts,
    /// Records that are unaccounted for; anything but 0 is a bug.
    records_missing: i64,
}

/// What waits in a source.
#[derive(Debug, Serialize, JsonSchema)]
struct LagDetails {
    /// Records, where the source can count them.
    records: Option<u64>,
    /// Records by partition.
    partitions: BTreeMap<String, u64>,
}

/// An error.
#[derive(Debug, Serialize, JsonSchema)]
struct ErrorDetails {
    /// Its class.
    #[serde(rename = "type")]
    class: &'static str,
    /// What sort of failure that is.
    kind: String,
    /// What happened.
    message: String,
    /// What to do.
    recommendation: &'static str,
    /// When it happened.
    timestamp: String,
}

impl QueryDetails {
    fn of(query: &QueryStatus) -> Self {
        let breakers = query.breakers.iter().map(|(part, breaker)| BreakerDetails::of(part.to_string(), breaker));
        let lag = query.lag.iter().map(|(source, lag)| {
            let partitions = lag.partitions.iter().cloned().collect();
            (source.clone(), LagDetails { records: lag.records, partitions })
        });
        Self {
            state: state_name(&query.state),
            reason: reason(&query.state),
            since: timestamp_text(query.since_micros),
            breaker: query.breaker().map(|(part, breaker)| BreakerDetails::of(part.to_string(), breaker)),
            breakers: breakers.map(|breaker| (breaker.part.clone(), breaker)).collect(),
            last_batch: query.last_batch.as_ref().map(|batch| LastBatchDetails {
                batch_id: batch.id,
                finished_at: timestamp_text(batch.finished_at_micros),
                duration_sec: batch.duration.as_secs_f64(),
                records: batch.counts,
                records_missing: batch.missing,
            }),
            batches_processed: query.batches,
            records: query.counts,
            unaccounted_batches: query.unaccounted_batches,
            records_per_second: query.records_per_second(),
            watermark: query.watermark_ms.map(|ms| timestamp_text(ms.saturating_mul(1000))),
            lag: lag.collect(),
            seconds_to_caught_up: query.seconds_to_caught_up(),
            state_rows: query.operators.iter().map(|o| o.rows_total).sum(),
            state_bytes: query.operators.iter().map(|o| o.memory_bytes).sum(),
            retries: query.retries,
            errors_by_type: query.errors.clone(),
            dead_letters_by_type: query.dead_letters.clone(),
            last_error: query.last_error.as_ref().map(|error| ErrorDetails {
                class: error.class.code,
                kind: error.class.kind.to_string(),
                message: error.message.clone(),
                recommendation: error.class.recommendation,
                timestamp: timestamp_text(error.at_micros),
            }),
        }
    }
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

/// What is in the dead letters.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DeadLetterAnswer {
    /// What is there.
    dlq: DeadLetterStats,
    /// When that was so.
    timestamp: String,
}

/// Why there is no answer.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Unavailable {
    /// Why.
    error: String,
    /// When.
    timestamp: String,
}

pub(super) async fn dead_letters(State(context): State<HttpContext>) -> Response {
    let timestamp = timestamp_text(context.board.snapshot().now_micros);
    // A batch that writes dead letters holds them for a moment; a request does not wait for a disk that hangs.
    let stats = tokio::time::timeout(Duration::from_secs(5), context.dead_letters.stats()).await;
    let error = match stats {
        Ok(Ok(dlq)) => return Json(DeadLetterAnswer { dlq, timestamp }).into_response(),
        Ok(Err(error)) => format!("the dead letters cannot be read: {error}"),
        Err(_) => "the dead letters do not answer".to_owned(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(Unavailable { error, timestamp })).into_response()
}

/// The job can do its work.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Ready {
    /// True.
    ready: bool,
}

/// The job cannot do its work.
#[derive(Debug, Serialize, JsonSchema)]
pub struct NotReady {
    /// False.
    ready: bool,
    /// Always the same words, for probes that look for them.
    reason: &'static str,
    /// How the job is.
    status: Health,
    /// Errors that count for that.
    errors_in_window: usize,
    /// What keeps the queries from their work.
    reasons: Vec<ReasonDetails>,
    /// Queries that are not at work.
    queries: Vec<NotReadyQuery>,
}

/// What keeps a query from its work.
#[derive(Debug, Serialize, JsonSchema)]
struct ReasonDetails {
    /// The query.
    query: String,
    /// What it is, in a word.
    kind: ObstacleKind,
    /// What it is.
    reason: String,
    /// Since when.
    since: String,
}

/// A query that is not at work.
#[derive(Debug, Serialize, JsonSchema)]
struct NotReadyQuery {
    /// The query.
    query: String,
    /// Where it is in its life.
    state: &'static str,
    /// Why.
    reason: Option<String>,
    /// Since when.
    since: String,
}

pub(super) async fn ready(State(context): State<HttpContext>) -> Response {
    let status = context.board.snapshot();
    if status.is_ready() {
        return Json(Ready { ready: true }).into_response();
    }
    let at_work =
        |state: &QueryState| matches!(state, QueryState::Running | QueryState::Idle | QueryState::Started { .. });
    let queries = status.queries.iter().filter(|(_, query)| !at_work(&query.state)).map(|(name, query)| {
        let error = query.last_error.as_ref().map(|e| format!("{}: {}", e.class.code, e.message));
        NotReadyQuery {
            query: name.clone(),
            state: state_name(&query.state),
            reason: error.or_else(|| reason(&query.state)),
            since: timestamp_text(query.since_micros),
        }
    });
    let reasons = status.obstacles().into_iter().map(|Obstacle { query, kind, what, since_micros }| ReasonDetails {
        query,
        kind,
        reason: what,
        since: timestamp_text(since_micros),
    });
    let answer = NotReady {
        ready: false,
        reason: "Job initializing or unhealthy",
        status: status.health(),
        errors_in_window: status.errors_in_window(),
        reasons: reasons.collect(),
        queries: queries.collect(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(answer)).into_response()
}

/// Whether the job's runtime makes progress.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Live {
    /// Whether it does.
    alive: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub(super) async fn live(State(context): State<HttpContext>) -> (StatusCode, Json<Live>) {
    let silence = context.heartbeat.silence();
    if Heartbeat::is_alive(silence) {
        (StatusCode::OK, Json(Live { alive: true, reason: None }))
    } else {
        let reason = format!("the job's runtime has made no progress for {} seconds", silence.as_secs());
        (StatusCode::SERVICE_UNAVAILABLE, Json(Live { alive: false, reason: Some(reason) }))
    }
}
