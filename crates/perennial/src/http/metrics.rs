//! Metrics in the Prometheus text format.
//!
//! The four `spark_…` metrics have the names that dashboards of PySpark jobs use; everything else is `perennial_…`. Labels are names from
//! the job file, error classes and partitions, so their number is bounded by the job and the topic.

use std::fmt::{Display, Write};

use axum::extract::State;
use axum::http::{HeaderName, header};
use perennial_core::breaker::{Breaker, BreakerState};
use perennial_core::status::{Histogram, QueryStatus, STATE_NAMES, Status, state_name};

use super::HttpContext;

/// More partitions than this are not told apart: their lag is in the sum only.
const MAX_PARTITIONS: usize = 200;

pub(super) async fn endpoint(State(context): State<HttpContext>) -> ([(HeaderName, &'static str); 1], String) {
    let text = render(&context.board.snapshot());
    ([(header::CONTENT_TYPE, Exposition::CONTENT_TYPE)], text)
}

/// Metrics one after the other.
#[derive(Debug, Default)]
pub struct Exposition {
    families: Vec<Family>,
}

/// A metric with its values.
#[derive(Debug)]
pub(crate) struct Family {
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    pub help: String,
    pub points: Vec<Point>,
}

/// A value with its labels.
#[derive(Debug)]
pub(crate) struct Point {
    pub labels: Vec<(String, String)>,
    pub value: Value,
}

#[derive(Debug)]
pub(crate) enum Value {
    /// A number, as it is written.
    Number(String),
    /// How often something took how long.
    Histogram(Histogram),
}

fn owned(labels: &[(&str, &str)]) -> Vec<(String, String)> {
    labels.iter().map(|(label, content)| ((*label).to_owned(), (*content).to_owned())).collect()
}

impl Exposition {
    /// What HTTP calls the format.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Begins a metric. `kind` is `counter`, `gauge` or `histogram`.
    pub fn metric(&mut self, name: &str, kind: &str, help: &str) {
        let (name, kind, help) = (name.to_owned(), kind.to_owned(), help.to_owned());
        self.families.push(Family { name, kind, help, points: Vec::new() });
    }

    fn point(&mut self, labels: &[(&str, &str)], value: Value) {
        if let Some(family) = self.families.last_mut() {
            family.points.push(Point { labels: owned(labels), value });
        }
    }

    /// One value of the metric begun last.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.point(labels, Value::Number(value.to_string()));
    }

    /// A metric with one value.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.metric(name, kind, help);
        self.sample(&[], value);
    }

    fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        self.point(labels, Value::Histogram(histogram.clone()));
    }

    /// As text.
    pub fn finish(self) -> String {
        let mut text = String::new();
        for Family { name, kind, help, points } in self.families {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for Point { labels, value } in points {
                match value {
                    Value::Number(number) => line(&mut text, &name, &labels, number),
                    Value::Histogram(histogram) => lines(&mut text, &name, labels, &histogram),
                }
            }
        }
        text
    }
}

fn line(text: &mut String, name: &str, labels: &[(String, String)], value: impl Display) {
    text.push_str(name);
    for (i, (label, content)) in labels.iter().enumerate() {
        text.push(if i == 0 { '{' } else { ',' });
        let content = content.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{label}=\"{content}\"");
    }
    if !labels.is_empty() {
        text.push('}');
    }
    let _ = writeln!(text, " {value}");
}

/// All lines of a histogram.
fn lines(text: &mut String, name: &str, mut labels: Vec<(String, String)>, histogram: &Histogram) {
    let mut below = 0;
    for (count, bound) in
        histogram.counts.iter().zip(Histogram::BOUNDS.iter().map(f64::to_string).chain(["+Inf".into()]))
    {
        below += count;
        labels.push(("le".into(), bound));
        line(text, &format!("{name}_bucket"), &labels, below);
        labels.pop();
    }
    line(text, &format!("{name}_sum"), &labels, histogram.sum_seconds);
    line(text, &format!("{name}_count"), &labels, histogram.count());
}

/// All metrics of a job, as text.
pub fn render(status: &Status) -> String {
    all(status).finish()
}

fn all(status: &Status) -> Exposition {
    let mut out = Exposition::default();
    spark(&mut out, status);
    job(&mut out, status);
    queries(&mut out, status);
    out
}

/// All metrics of a job.
pub(crate) fn families(status: &Status) -> Vec<Family> {
    all(status).families
}

/// Names that people's dashboards know.
fn spark(out: &mut Exposition, status: &Status) {
    let last = status.last_batch().map_or(0.0, |batch| batch.duration.as_secs_f64());
    out.single("spark_batch_processing_time_sec", "gauge", "Time of the last batch in seconds.", last);
    let rate = status.records_per_second();
    out.single(
        "spark_records_per_second",
        "gauge",
        "Records per second of the last batch of each query, summed.",
        rate,
    );
    let errors: u64 = status.errors_by_type().values().sum();
    out.single("spark_errors_total", "counter", "Errors since the start.", errors);
    out.single("spark_batches_processed_total", "counter", "Batches committed since the start.", status.batches());
}

fn job(out: &mut Exposition, status: &Status) {
    out.metric("perennial_info", "gauge", "Job and program, in the labels.");
    let labels = [("job", &*status.job), ("job_version", &*status.version), ("version", env!("CARGO_PKG_VERSION"))];
    out.sample(&labels, 1);
    let start = status.start_micros as f64 / 1e6;
    out.single("perennial_start_time_seconds", "gauge", "When the process started, in seconds since the epoch.", start);
    let health = status.health();
    out.metric("perennial_health", "gauge", "1 for the health that the job has, 0 for the others.");
    for name in ["initializing", "healthy", "degraded", "unhealthy"] {
        out.sample(&[("status", name)], u8::from(health.as_str() == name));
    }
    let name = "perennial_disk_free_ratio";
    out.metric(name, "gauge", "The share of a disk that is free.");
    for (disk, free) in &status.disks {
        out.sample(&[("disk", disk)], free);
    }
    let help = "Bytes that state and batches hold.";
    out.single("perennial_memory_bytes", "gauge", help, status.memory_bytes);
    if let Some(limit) = status.memory_limit {
        out.single("perennial_memory_limit_bytes", "gauge", "How many they may hold.", limit);
    }
    let recent = status.errors_in_window();
    out.single("perennial_errors_in_window", "gauge", "Errors that count towards health.", recent);
}

fn queries(out: &mut Exposition, status: &Status) {
    /// One metric with one value per query, for those that have it.
    fn each<V: Display>(
        out: &mut Exposition,
        status: &Status,
        (name, kind, help): (&str, &str, &str),
        value: impl Fn(&QueryStatus) -> Option<V>,
    ) {
        out.metric(name, kind, help);
        for (query, entry) in &status.queries {
            if let Some(value) = value(entry) {
                out.sample(&[("query", query)], value);
            }
        }
    }

    let name = "perennial_query_state";
    out.metric(name, "gauge", "1 for the state that the query is in, 0 for the others.");
    for (query, entry) in &status.queries {
        for state in STATE_NAMES {
            out.sample(&[("query", query), ("state", state)], u8::from(state_name(&entry.state) == state));
        }
    }
    breakers(out, status);
    each(out, status, ("perennial_batches_total", "counter", "Batches committed since the start."), |q| {
        Some(q.batches)
    });
    each(out, status, ("perennial_last_batch_id", "gauge", "Number of the last committed batch."), |q| {
        q.last_batch.as_ref().map(|batch| batch.id)
    });
    let help = "Seconds since the last commit.";
    each(out, status, ("perennial_seconds_since_last_batch", "gauge", help), |q| {
        q.last_batch.as_ref().map(|batch| status.seconds_since(batch.finished_at_micros))
    });

    let help = "Seconds in which a query that has something to do committed nothing; 0 where it has nothing to do.";
    each(out, status, ("perennial_seconds_without_commit", "gauge", help), |q| Some(status.seconds_without_commit(q)));
    let help = "Attempts that failed since the last commit.";
    each(out, status, ("perennial_failures_in_a_row", "gauge", help), |q| Some(q.failures_in_a_row));
    let name = "perennial_batch_seconds";
    out.metric(name, "histogram", "Time of a batch from trigger to commit.");
    for (query, entry) in &status.queries {
        out.histogram(&[("query", query)], &entry.batch_seconds);
    }
    let name = "perennial_batch_phase_seconds";
    out.metric(name, "histogram", "Time of the phases of a batch. Phases overlap.");
    for (query, entry) in &status.queries {
        for (phase, histogram) in &entry.phase_seconds {
            out.histogram(&[("query", query), ("phase", phase)], histogram);
        }
    }

    let name = "perennial_records_total";
    out.metric(name, "counter", "Records by outcome. read + multiplied is the sum of the others, with held in place of written where rows come out of state.");
    for (query, entry) in &status.queries {
        let c = &entry.counts;
        let outcomes = [
            ("read", c.read),
            ("multiplied", c.multiplied),
            ("written", c.written),
            ("held", c.held),
            ("filtered", c.filtered),
            ("late", c.late),
            ("dropped", c.dropped),
            ("dead_lettered", c.dead_lettered),
        ];
        for (outcome, count) in outcomes {
            out.sample(&[("query", query), ("outcome", outcome)], count);
        }
    }
    let help = "Bytes of records read.";
    each(out, status, ("perennial_read_bytes_total", "counter", help), |q| Some(q.bytes_read));
    let help = "Rows that broke an expectation which only warns.";
    each(out, status, ("perennial_warned_rows_total", "counter", help), |q| Some(q.warned));
    let help = "Times that a batch was tried again.";
    each(out, status, ("perennial_retries_total", "counter", help), |q| Some(q.retries));
    let help = "Batches whose counts did not add up. Anything but 0 is a bug.";
    each(out, status, ("perennial_unaccounted_batches_total", "counter", help), |q| Some(q.unaccounted_batches));
    let help = "Damaged parts of the checkpoint that were mended without loss.";
    each(out, status, ("perennial_checkpoint_repairs_total", "counter", help), |q| Some(q.repairs));

    by_class(out, status, ("perennial_errors_total", "Errors by class."), |q| &q.errors);
    by_class(out, status, ("perennial_dead_letters_total", "Dead-lettered records by class."), |q| &q.dead_letters);
    let help = "Entries of dead letters that were removed because of their age.";
    let expired = |q: &QueryStatus| Some(q.dead_letters_expired);
    each(out, status, ("perennial_dead_letters_expired_total", "counter", help), expired);

    let name = "perennial_lag_records";
    out.metric(name, "gauge", "Records that wait in the source.");
    for (query, entry) in &status.queries {
        for (source, lag) in &entry.lag {
            if let Some(records) = lag.records {
                out.sample(&[("query", query), ("source", source)], records);
            }
        }
    }
    let name = "perennial_lag_growing";
    out.metric(
        name,
        "gauge",
        "1 where what waits in the source became more six times in a row, for at least a minute.",
    );
    for (query, entry) in &status.queries {
        for (source, trend) in &entry.lag_trend {
            out.sample(&[("query", query), ("source", source)], u8::from(trend.grows(status.now_micros)));
        }
    }
    let name = "perennial_partition_lag_records";
    out.metric(name, "gauge", "Records that wait in a partition; the 200 first ones.");
    for (query, entry) in &status.queries {
        for (source, lag) in &entry.lag {
            for (partition, records) in lag.partitions.iter().take(MAX_PARTITIONS) {
                out.sample(&[("query", query), ("source", source), ("partition", partition)], records);
            }
        }
    }

    let help = "Watermark in seconds since the epoch.";
    each(out, status, ("perennial_watermark_seconds", "gauge", help), |q| q.watermark_ms.map(|ms| ms as f64 / 1e3));
    let help = "How far the watermark is behind the clock, in seconds.";
    each(out, status, ("perennial_watermark_delay_seconds", "gauge", help), |q| {
        q.watermark_ms.map(|ms| status.now_micros as f64 / 1e6 - ms as f64 / 1e3)
    });
    let help = "Rows in state.";
    each(out, status, ("perennial_state_rows", "gauge", help), |q| {
        Some(q.operators.iter().map(|o| o.rows_total).sum::<u64>())
    });
    let help = "Memory of the state in bytes.";
    each(out, status, ("perennial_state_bytes", "gauge", help), |q| {
        Some(q.operators.iter().map(|o| o.memory_bytes).sum::<u64>())
    });
    let help = "Bytes that the state wrote to the checkpoint.";
    each(out, status, ("perennial_state_written_bytes_total", "counter", help), |q| Some(q.state_bytes_written));
    let help = "Bytes written to the checkpoint, those of the state among them.";
    let written = |q: &QueryStatus| Some(q.checkpoint_bytes_written);
    each(out, status, ("perennial_checkpoint_written_bytes_total", "counter", help), written);
    let help = "Bytes that the last batch wrote to the checkpoint.";
    let last = |q: &QueryStatus| Some(q.last_checkpoint_bytes);
    each(out, status, ("perennial_last_checkpoint_bytes", "gauge", help), last);
}

fn breakers(out: &mut Exposition, status: &Status) {
    let each = |out: &mut Exposition, name: &str, kind: &str, help: &str, value: fn(&Breaker) -> Option<f64>| {
        out.metric(name, kind, help);
        for (query, entry) in &status.queries {
            for (part, breaker) in &entry.breakers {
                if let Some(value) = value(breaker) {
                    out.sample(&[("query", query), ("part", &part.to_string())], value);
                }
            }
        }
    };
    let name = "perennial_breaker_state";
    out.metric(name, "gauge", "1 for the state that the circuit breaker of a part is in, 0 for the others.");
    for (query, entry) in &status.queries {
        for (part, breaker) in &entry.breakers {
            for state in BreakerState::NAMES {
                let labels = [("query", query.as_str()), ("part", &part.to_string()), ("state", state)];
                out.sample(&labels, u8::from(breaker.state.name() == state));
            }
        }
    }
    let help = "When the circuit breaker went into its state, in seconds since the epoch.";
    each(out, "perennial_breaker_since_seconds", "gauge", help, |b| Some(b.since_micros as f64 / 1e6));
    let help = "When the next probe is due, in seconds since the epoch; only while the breaker is open.";
    each(out, "perennial_breaker_next_probe_seconds", "gauge", help, |b| {
        b.next_probe_micros().map(|at| at as f64 / 1e6)
    });
    let help = "Failures in a row that were the fault of the part.";
    each(out, "perennial_breaker_failures", "gauge", help, |b| Some(f64::from(b.failures)));
    let help = "Times that the circuit breaker opened.";
    each(out, "perennial_breaker_opened_total", "counter", help, |b| Some(b.opened as f64));
    let help = "Attempts that probed whether the part is back.";
    each(out, "perennial_breaker_probes_total", "counter", help, |b| Some(b.probes as f64));
}

fn by_class(
    out: &mut Exposition,
    status: &Status,
    (name, help): (&str, &str),
    counts: impl Fn(&QueryStatus) -> &std::collections::BTreeMap<&'static str, u64>,
) {
    out.metric(name, "counter", help);
    for (query, entry) in &status.queries {
        for (class, count) in counts(entry) {
            out.sample(&[("query", query), ("class", class)], count);
        }
    }
}
