//! What each batch did, in the shape of Spark's `StreamingQueryProgress`: over HTTP, and in the log.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, SecondsFormat};
use parking_lot::Mutex;
use perennial_core::env::Env;
use perennial_core::error::Error;
use perennial_core::offset::Offset;
use perennial_core::policy::Action;
use perennial_core::progress::{BatchReport, Observer, QueryState, SourceProgress};
use perennial_core::sink::BatchId;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::job::Job;

/// So many batches are kept for each query, as many as Spark keeps.
const KEPT: usize = 100;

/// One batch of a query. The fields are Spark's; what Spark does not have is left to `perennial`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueryProgress {
    /// Identity of the query, which survives restarts.
    id: String,
    /// Identity of this life of the query.
    run_id: String,
    /// Name of the query.
    name: String,
    /// When the batch began.
    timestamp: String,
    /// Number of the batch.
    batch_id: BatchId,
    /// From trigger to commit, in milliseconds.
    batch_duration: u64,
    /// Records read.
    num_input_rows: u64,
    /// Records per second since the batch before began.
    #[serde(skip_serializing_if = "Option::is_none")]
    input_rows_per_second: Option<f64>,
    /// Records per second of the batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    processed_rows_per_second: Option<f64>,
    /// Where the time went, in milliseconds.
    duration_ms: BTreeMap<&'static str, u64>,
    /// Greatest event time of the batch, and its watermark.
    event_time: BTreeMap<&'static str, String>,
    /// Stateful operators, from the sink towards the sources.
    state_operators: Vec<OperatorDetails>,
    /// What was read where.
    sources: Vec<SourceDetails>,
    /// What was written.
    sink: SinkDetails,
    /// Metrics that the query was told to observe: none.
    observed_metrics: BTreeMap<String, Value>,
    /// What became of the records; see the conservation of records in the documentation.
    perennial: perennial_core::checkpoint::BatchCounts,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct OperatorDetails {
    operator_name: String,
    num_rows_total: u64,
    num_rows_updated: u64,
    num_rows_removed: u64,
    memory_used_bytes: u64,
    num_rows_dropped_by_watermark: u64,
    num_shuffle_partitions: usize,
    num_state_store_instances: usize,
    custom_metrics: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct SourceDetails {
    description: String,
    start_offset: Value,
    end_offset: Value,
    num_input_rows: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_rows_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    processed_rows_per_second: Option<f64>,
    metrics: BTreeMap<&'static str, String>,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct SinkDetails {
    description: String,
    num_output_rows: u64,
}

/// Keeps the last batches of each query, and logs each.
pub struct ProgressBook {
    /// What the sources and sinks are, by their names.
    sources: BTreeMap<String, String>,
    sinks: BTreeMap<String, String>,
    parallelism: usize,
    queries: Mutex<BTreeMap<String, Kept>>,
}

struct Kept {
    run_id: String,
    /// When the batch before began, in milliseconds since the epoch.
    before_ms: Option<i64>,
    recent: VecDeque<QueryProgress>,
}

impl std::fmt::Debug for ProgressBook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProgressBook").field("sinks", &self.sinks).finish_non_exhaustive()
    }
}

impl ProgressBook {
    /// A book for the queries of a job that starts now.
    pub fn new(job: &Job, env: &Env) -> Self {
        let kept =
            |name: &String| (name.clone(), Kept { run_id: env.uuid(), before_ms: None, recent: VecDeque::new() });
        Self {
            sources: job.sources.iter().map(|(name, source)| (name.clone(), source.connector.clone())).collect(),
            sinks: job.queries.iter().map(|(name, query)| (name.clone(), query.sink_name.clone())).collect(),
            parallelism: job.parallelism,
            queries: Mutex::new(job.queries.keys().map(kept).collect()),
        }
    }

    /// The last batches of a query, oldest first; `None` where there is no such query.
    pub fn recent(&self, query: &str) -> Option<Vec<QueryProgress>> {
        self.queries.lock().get(query).map(|kept| kept.recent.iter().cloned().collect())
    }

    /// The last batch of each query.
    pub fn last(&self) -> BTreeMap<String, Option<QueryProgress>> {
        self.queries.lock().iter().map(|(name, kept)| (name.clone(), kept.recent.back().cloned())).collect()
    }

    fn progress(&self, query: &str, kept: &Kept, report: &BatchReport) -> QueryProgress {
        let phases = &report.phases;
        let total = phases.total();
        let since_ms = kept.before_ms.map(|before| report.timestamp_ms - before);
        let input_rate = |records: u64| since_ms.filter(|ms| *ms > 0).map(|ms| records as f64 * 1000.0 / ms as f64);
        let rate = |records: u64| (!total.is_zero()).then(|| records as f64 / total.as_secs_f64());
        let millis = |(name, time): (&'static str, std::time::Duration)| (name, time.as_millis() as u64);
        let durations = [
            ("latestOffset", phases.trigger),
            ("walCommit", phases.log_offsets),
            ("addBatch", phases.execute),
            ("read", phases.read),
            ("decode", phases.decode),
            ("sink", phases.sink),
            ("commitState", phases.state),
            ("deadLetters", phases.dead_letters),
            ("commitOffsets", phases.commit),
            ("triggerExecution", total),
        ];
        let times = [
            ("max", report.max_event_time_micros.map(|micros| micros.div_euclid(1000))),
            ("watermark", report.watermark_ms),
        ];
        let source = |source: &SourceProgress| SourceDetails {
            description: self.describe(&source.source),
            start_offset: json_of(source.start.as_ref()),
            end_offset: json_of(source.end.as_ref()),
            num_input_rows: source.records,
            input_rows_per_second: input_rate(source.records),
            processed_rows_per_second: rate(source.records),
            metrics: report
                .lag
                .iter()
                .filter(|(name, _)| *name == source.source)
                .filter_map(|(_, lag)| Some(("recordsBehindLatest", lag.records?.to_string())))
                .collect(),
        };
        let operator = |operator: &perennial_core::plan::OperatorProgress| OperatorDetails {
            operator_name: operator.name.clone(),
            num_rows_total: operator.rows_total,
            num_rows_updated: operator.rows_updated,
            num_rows_removed: operator.rows_removed,
            memory_used_bytes: operator.memory_bytes,
            num_rows_dropped_by_watermark: operator.rows_dropped_by_watermark,
            num_shuffle_partitions: self.parallelism,
            num_state_store_instances: self.parallelism,
            custom_metrics: BTreeMap::from([("numDroppedDuplicateRows", operator.rows_dropped_duplicate)]),
        };
        QueryProgress {
            id: report.query_id.to_string(),
            run_id: kept.run_id.clone(),
            name: query.to_owned(),
            timestamp: iso(report.timestamp_ms),
            batch_id: report.batch,
            batch_duration: total.as_millis() as u64,
            num_input_rows: report.counts.read,
            input_rows_per_second: input_rate(report.counts.read),
            processed_rows_per_second: rate(report.counts.read),
            duration_ms: durations.map(millis).into(),
            event_time: times.into_iter().filter_map(|(name, ms)| Some((name, iso(ms?)))).collect(),
            state_operators: report.operators.iter().map(operator).collect(),
            sources: report.sources.iter().map(source).collect(),
            sink: SinkDetails {
                description: self.sinks.get(query).cloned().unwrap_or_default(),
                num_output_rows: report.counts.written,
            },
            observed_metrics: BTreeMap::new(),
            perennial: report.counts,
        }
    }

    fn describe(&self, source: &str) -> String {
        format!("{}[{source}]", self.sources.get(source).map_or("", String::as_str))
    }
}

fn json_of(offset: Option<&Offset>) -> Value {
    let Some(offset) = offset else { return Value::Null };
    serde_json::from_str(offset.as_str()).unwrap_or_else(|_| Value::String(offset.to_string()))
}

/// A time as Spark writes it.
fn iso(millis: i64) -> String {
    DateTime::from_timestamp_millis(millis).unwrap_or_default().to_rfc3339_opts(SecondsFormat::Millis, true)
}

impl Observer for ProgressBook {
    fn committed(&self, query: &str, report: &BatchReport) {
        let mut queries = self.queries.lock();
        let Some(kept) = queries.get_mut(query) else { return };
        let progress = self.progress(query, kept, report);
        kept.before_ms = Some(report.timestamp_ms);
        if kept.recent.len() == KEPT {
            kept.recent.pop_front();
        }
        kept.recent.push_back(progress.clone());
        drop(queries);
        if tracing::enabled!(target: "perennial_progress", tracing::Level::INFO)
            && let Ok(progress) = serde_json::to_string(&progress)
        {
            tracing::info!(target: "perennial_progress", query, batch = report.batch, progress, "progress");
        }
    }

    fn failed(&self, _: &str, _: Option<BatchId>, _: &Error, _: Action) {}

    fn state(&self, _: &str, _: QueryState) {}
}
