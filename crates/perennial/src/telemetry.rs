//! OpenTelemetry: each batch as a trace, and the metrics of the job, sent to a collector by OTLP over HTTP, in JSON.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use perennial_core::env::{Clock, Env};
use perennial_core::error::{Error, Result, class};
use perennial_core::policy::Action;
use perennial_core::progress::{BatchReport, Observer, QueryState};
use perennial_core::sink::BatchId;
use perennial_core::status::{Histogram, StatusBoard};
use serde_json::{Value, json};

use crate::http::{Family, MetricValue, families};
use crate::job::Job;
use crate::job_file::OtlpSettings;

/// So many spans wait for a collector that does not answer; then the oldest are dropped.
const MOST_WAITING: usize = 8192;
/// Spans of a request.
const PER_REQUEST: usize = 1024;
/// How long a collector may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A failure, as OTLP has it among the states of a span.
const STATUS_ERROR: u8 = 2;
/// Work that nobody asked for from outside, as OTLP has it among the kinds of spans.
const KIND_INTERNAL: u8 = 1;
/// Values count from the start of the process.
const CUMULATIVE: u8 = 2;

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

/// Whole numbers are texts in OTLP's JSON.
fn whole(key: &str, value: u64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}

fn seconds(key: &str, value: Duration) -> Value {
    json!({ "key": key, "value": { "doubleValue": value.as_secs_f64() } })
}

fn nanos(micros: i64) -> String {
    micros.saturating_mul(1000).to_string()
}

/// Makes a trace of each batch.
pub(crate) struct Tracer {
    clock: Arc<dyn Clock>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    spans: VecDeque<Value>,
    dropped: u64,
}

/// A trace in the making.
struct Trace {
    id: String,
    spans: Vec<Value>,
}

impl Trace {
    fn new() -> Self {
        Self { id: format!("{:032x}", rand::random::<u128>().max(1)), spans: Vec::new() }
    }

    /// Adds a span; gives its identity.
    fn span(&mut self, parent: Option<&str>, name: &str, (from, to): (i64, i64), attributes: Vec<Value>) -> String {
        let id = format!("{:016x}", rand::random::<u64>().max(1));
        let mut span = json!({
            "traceId": self.id,
            "spanId": id,
            "name": name,
            "kind": KIND_INTERNAL,
            "startTimeUnixNano": nanos(from),
            "endTimeUnixNano": nanos(to),
            "attributes": attributes,
        });
        if let Some(parent) = parent {
            span["parentSpanId"] = parent.into();
        }
        self.spans.push(span);
        id
    }
}

impl Tracer {
    fn keep(&self, trace: Trace) {
        let mut waiting = self.waiting.lock();
        waiting.spans.extend(trace.spans);
        let over = waiting.spans.len().saturating_sub(MOST_WAITING);
        waiting.spans.drain(..over);
        waiting.dropped += over as u64;
    }
}

impl Observer for Tracer {
    fn committed(&self, query: &str, report: &BatchReport) {
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let phases = &report.phases;
        let begin = report.finished_at_micros.saturating_sub(micros(phases.total()));
        let counts = &report.counts;
        let mut trace = Trace::new();
        let attributes = vec![
            text("perennial.query", query),
            whole("perennial.batch", report.batch),
            whole("perennial.records.read", counts.read),
            whole("perennial.records.written", counts.written),
            whole("perennial.records.held", counts.held),
            whole("perennial.records.filtered", counts.filtered),
            whole("perennial.records.late", counts.late),
            whole("perennial.records.dropped", counts.dropped),
            whole("perennial.records.dead_lettered", counts.dead_lettered),
            json!({ "key": "perennial.again", "value": { "boolValue": report.again } }),
        ];
        let batch = trace.span(None, "batch", (begin, report.finished_at_micros), attributes);
        // One after the other; those that overlap are attributes of what they are a part of.
        let mut at = begin;
        for (name, took) in [
            ("trigger", phases.trigger),
            ("log_offsets", phases.log_offsets),
            ("execute", phases.execute),
            ("state", phases.state),
            ("dead_letters", phases.dead_letters),
            ("commit", phases.commit),
        ] {
            if took.is_zero() {
                continue;
            }
            let parts = match name {
                "execute" => vec![
                    seconds("perennial.read_seconds", phases.read),
                    seconds("perennial.decode_seconds", phases.decode),
                    seconds("perennial.sink_seconds", phases.sink),
                ],
                _ => Vec::new(),
            };
            let end = at.saturating_add(micros(took));
            trace.span(Some(&batch), name, (at, end), parts);
            at = end;
        }
        self.keep(trace);
    }

    fn failed(&self, query: &str, batch: Option<BatchId>, error: &Error, action: Action) {
        let now = self.clock.now_micros();
        let mut attributes = vec![text("perennial.query", query), text("perennial.action", action.describe())];
        attributes.extend(batch.map(|batch| whole("perennial.batch", batch)));
        let mut trace = Trace::new();
        trace.span(None, "batch", (now, now), attributes);
        let message = error.to_string();
        for span in &mut trace.spans {
            span["status"] = json!({ "code": STATUS_ERROR, "message": message });
            let what = [
                text("exception.type", error.class().code),
                text("exception.message", &message),
                text("perennial.recommendation", error.class().recommendation),
            ];
            span["events"] = json!([{ "name": "exception", "timeUnixNano": nanos(now), "attributes": what }]);
        }
        self.keep(trace);
    }

    fn state(&self, _: &str, _: QueryState) {}
}

/// Sends to a collector.
pub(crate) struct Exporter {
    settings: OtlpSettings,
    client: reqwest::Client,
    tracer: Arc<Tracer>,
    board: Arc<StatusBoard>,
    clock: Arc<dyn Clock>,
    /// Who sends.
    resource: Value,
    /// Spans on their way.
    sending: Vec<Value>,
    /// Whether it was told that the collector does not take anything.
    told: bool,
}

/// What became of a request.
enum Outcome {
    Taken,
    /// It is worth another try.
    Later(String),
    /// It never will be taken.
    Refused(String),
}

impl Exporter {
    /// The one of a job that wants one.
    ///
    /// # Errors
    /// Where TLS cannot be set up.
    pub fn new(job: &Job, board: Arc<StatusBoard>, env: &Env) -> Result<Option<Self>> {
        let Some(settings) = job.telemetry.otlp.clone() else { return Ok(None) };
        let client = reqwest::Client::builder().timeout(TIMEOUT).user_agent("perennial").build();
        let client =
            client.map_err(|e| Error::new(class::TLS_FAILED, "telemetry: TLS cannot be set up").caused_by(e))?;
        let resource = json!({ "attributes": [
            text("service.name", &job.name),
            text("service.version", &job.version),
            text("service.instance.id", &env.uuid()),
        ] });
        Ok(Some(Self {
            settings,
            client,
            tracer: Arc::new(Tracer { clock: env.clock.clone(), waiting: Mutex::default() }),
            board,
            clock: env.clock.clone(),
            resource,
            sending: Vec::new(),
            told: false,
        }))
    }

    /// Who has to hear what happens.
    pub fn observer(&self) -> Option<Arc<dyn Observer>> {
        self.settings.traces.then(|| self.tracer.clone() as _)
    }

    /// Sends what is left when a job has ended, without waiting for it for long.
    pub async fn end(mut self) {
        let _ = tokio::time::timeout(TIMEOUT, self.send()).await;
    }

    async fn send(&mut self) {
        let said = match self.send_spans().await {
            Ok(()) if self.settings.metrics => self.send_metrics().await,
            other => other,
        };
        match said {
            Ok(()) if self.told => tracing::info!("the collector of telemetry takes it again"),
            Err(why) if !self.told => tracing::warn!("telemetry is not taken: {why}"),
            _ => return,
        }
        self.told = !self.told;
    }

    async fn send_spans(&mut self) -> Result<(), String> {
        loop {
            if self.sending.is_empty() {
                let mut waiting = self.tracer.waiting.lock();
                let many = waiting.spans.len().min(PER_REQUEST);
                self.sending.extend(waiting.spans.drain(..many));
                let dropped = std::mem::take(&mut waiting.dropped);
                if dropped > 0 {
                    tracing::warn!(dropped, "too many spans wait for the collector; the oldest are dropped");
                }
            }
            if self.sending.is_empty() {
                return Ok(());
            }
            let spans = json!({ "scope": scope(), "spans": self.sending });
            let body = json!({ "resourceSpans": [{ "resource": self.resource, "scopeSpans": [spans] }] });
            match self.post("v1/traces", &body).await {
                Outcome::Taken => self.sending.clear(),
                Outcome::Later(why) => return Err(why),
                Outcome::Refused(why) => {
                    self.sending.clear();
                    return Err(why);
                }
            }
        }
    }

    async fn send_metrics(&self) -> Result<(), String> {
        let status = self.board.snapshot();
        let (start, now) = (nanos(status.start_micros), nanos(status.now_micros));
        let families = families(&status);
        let with_points = families.iter().filter(|family| !family.points.is_empty());
        let metrics: Vec<Value> = with_points.map(|family| metric(family, &start, &now)).collect();
        let metrics = json!({ "scope": scope(), "metrics": metrics });
        let body = json!({ "resourceMetrics": [{ "resource": self.resource, "scopeMetrics": [metrics] }] });
        match self.post("v1/metrics", &body).await {
            Outcome::Taken => Ok(()),
            // The next ones have all that is in these.
            Outcome::Later(why) | Outcome::Refused(why) => Err(why),
        }
    }

    async fn post(&self, path: &str, body: &Value) -> Outcome {
        let url = format!("{}/{path}", self.settings.endpoint.trim_end_matches('/'));
        let request = self.client.post(url).header("content-type", "application/json");
        let headers = &self.settings.headers;
        let request = headers.iter().fold(request, |request, (name, value)| request.header(name, value.expose()));
        match request.body(body.to_string()).send().await {
            Ok(answer) if answer.status().is_success() => Outcome::Taken,
            Ok(answer) => {
                let why = format!("the collector answered {path} with {}", answer.status());
                match answer.status().as_u16() {
                    429 | 502..=504 => Outcome::Later(why),
                    _ => Outcome::Refused(why),
                }
            }
            // The address may hold a secret.
            Err(error) => Outcome::Later(crate::alerts::root_cause(&error.without_url())),
        }
    }
}

/// Sends for as long as it is polled, where there is somebody to send to.
pub(crate) async fn keep_sending(exporter: Option<&mut Exporter>) {
    let Some(exporter) = exporter else { return std::future::pending().await };
    loop {
        exporter.clock.sleep(exporter.settings.every.0).await;
        exporter.send().await;
    }
}

fn scope() -> Value {
    json!({ "name": "perennial", "version": env!("CARGO_PKG_VERSION") })
}

fn metric(family: &Family, start: &str, now: &str) -> Value {
    let points: Vec<Value> = family
        .points
        .iter()
        .map(|point| {
            let attributes: Vec<Value> = point.labels.iter().map(|(key, value)| text(key, value)).collect();
            let mut data = match &point.value {
                MetricValue::Number(number) => json!({ "asDouble": number.parse::<f64>().unwrap_or_default() }),
                MetricValue::Histogram(histogram) => json!({
                    "count": histogram.count().to_string(),
                    "sum": histogram.sum_seconds,
                    "bucketCounts": histogram.counts.map(|count| count.to_string()),
                    "explicitBounds": Histogram::BOUNDS,
                }),
            };
            data["attributes"] = attributes.into();
            data["startTimeUnixNano"] = start.into();
            data["timeUnixNano"] = now.into();
            data
        })
        .collect();
    let mut metric = json!({ "name": family.name, "description": family.help });
    let (kind, data) = match family.kind.as_str() {
        "counter" => {
            ("sum", json!({ "aggregationTemporality": CUMULATIVE, "isMonotonic": true, "dataPoints": points }))
        }
        "histogram" => ("histogram", json!({ "aggregationTemporality": CUMULATIVE, "dataPoints": points })),
        _ => ("gauge", json!({ "dataPoints": points })),
    };
    metric[kind] = data;
    metric
}
