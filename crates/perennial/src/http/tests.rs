//! The endpoints over a real socket, field by field.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use perennial_core::breaker::{Breaker, BreakerState, Part};
use perennial_core::checkpoint::BatchCounts;
use perennial_core::dead_letter::{DeadLetter, DeadLetterStats, Entry, EntrySummary, LetterBatch, Mark, Standing};
use perennial_core::env::Clock;
use perennial_core::error::{Error, Result, class};
use perennial_core::offset::Offset;
use perennial_core::plan::OperatorProgress;
use perennial_core::policy::Action;
use perennial_core::progress::{BatchReport, Observer, Phases, QueryState, SourceProgress};
use perennial_core::source::Lag;
use perennial_core::status::Role;
use serde_json::{Value, json};

use super::*;

/// 2025-11-21T09:00:00 UTC.
const START: i64 = 1_763_715_600_000_000;
const SECOND: i64 = 1_000_000;

#[derive(Debug)]
struct SetClock(AtomicI64);

#[async_trait]
impl Clock for SetClock {
    fn now_micros(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    async fn sleep(&self, _: Duration) {}
}

struct Letters;

#[async_trait]
impl DeadLetters for Letters {
    fn place(&self) -> String {
        "./dlq".into()
    }

    async fn mark(&self, _: &[Mark]) -> Result<()> {
        Ok(())
    }

    async fn entries(&self) -> Result<Vec<Entry>> {
        Ok(Vec::new())
    }

    async fn standings(&self) -> Result<BTreeMap<String, Standing>> {
        Ok(BTreeMap::new())
    }

    async fn records(&self, _: &Entry) -> Result<Vec<serde_json::Map<String, Value>>> {
        Ok(Vec::new())
    }

    async fn purge(&self, _: &HashSet<String>) -> Result<u64> {
        Ok(0)
    }

    async fn expire(&self, _: i64) -> Result<u64> {
        Ok(0)
    }

    async fn write(&self, _: &LetterBatch, _: Vec<DeadLetter>) -> Result<()> {
        Ok(())
    }

    async fn stats(&self) -> Result<DeadLetterStats> {
        let entry = |batch_id| EntrySummary {
            batch_id,
            timestamp: "2025-11-21T09:45:30.123456".into(),
            error_type: "ServerSelectionTimeoutError".into(),
        };
        Ok(DeadLetterStats {
            total_entries: 3,
            error_types: [("ServerSelectionTimeoutError".into(), 2), ("Timeout".into(), 1)].into(),
            first_error: Some(entry(40)),
            last_error: Some(entry(42)),
            dlq_directory: "./dlq".into(),
        })
    }
}

struct World {
    clock: Arc<SetClock>,
    board: Arc<StatusBoard>,
    progress: Arc<ProgressBook>,
    server: Server,
    controls: Arc<Controls>,
    stop: CancellationToken,
}

const JOB: &str = "
sources:
  readings: { rate: { rows_per_second: 1 } , schema: 'timestamp TIMESTAMP, value BIGINT' }
queries:
  per_minute: { sql: SELECT value FROM readings, sink: console }
http: { token: 'open sesame' }
";

impl World {
    fn new() -> Self {
        Self::with(JOB, Heartbeat::new())
    }

    fn with(job: &str, heartbeat: Heartbeat) -> Self {
        let clock = Arc::new(SetClock(AtomicI64::new(START)));
        let board = StatusBoard::new(clock.clone(), "greenhouse", "1.0", ["per_minute"], Duration::from_secs(3600));
        let board = Arc::new(board.with_trigger(Duration::from_secs(10)));
        let (controls, stop) = (Arc::new(Controls::default()), CancellationToken::new());
        let job = Arc::new(Job::from_text("job.yaml", job).unwrap());
        let progress = Arc::new(ProgressBook::new(&job, &crate::env(Arc::new(object_store::memory::InMemory::new()))));
        let context = HttpContext {
            board: board.clone(),
            progress: progress.clone(),
            heartbeat,
            dead_letters: Arc::new(Letters),
            controls: controls.clone(),
            stop: stop.clone(),
            job,
            runtime: tokio::runtime::Handle::current(),
        };
        let server = bind("127.0.0.1:0", "a test").unwrap().serve(router(context), None).unwrap();
        Self { clock, board, progress, server, controls, stop }
    }

    async fn post(&self, path: &str, token: Option<&str>, body: &str) -> (u16, Value) {
        let request = reqwest::Client::new().post(format!("{}{path}", self.server.url())).body(body.to_owned());
        let request = request.header("content-type", "application/json");
        let request = token.into_iter().fold(request, reqwest::RequestBuilder::bearer_auth);
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap())
    }

    /// `seconds` and a bit after the start.
    fn at(&self, seconds: i64) -> &Self {
        self.clock.0.store(START + seconds * SECOND, Ordering::Relaxed);
        self
    }

    /// As in the examples of the documentation: batch 42 is the hundredth, 15,000 records were read.
    fn run(&self) {
        for batch in 0..100 {
            let finished_at_micros = START + 2730 * SECOND + 123_456 - (99 - batch) * 10 * SECOND;
            let counts = BatchCounts {
                read: 150,
                held: 100,
                filtered: 40,
                late: 3,
                dead_lettered: 7,
                written: 12,
                ..Default::default()
            };
            let report = BatchReport {
                query_id: "12345".into(),
                batch: (batch as u64).saturating_sub(57),
                timestamp_ms: START / 1000 + 10_000 * batch,
                finished_at_micros,
                again: false,
                duplicate: false,
                counts,
                bytes_read: 1000,
                warned: 1,
                dead_letters: vec![("MalformedRecord", 7)],
                dead_letters_expired: 2,
                phases: Phases {
                    execute: Duration::from_millis(400),
                    commit: Duration::from_millis(100),
                    ..Default::default()
                },
                watermark_ms: Some(START / 1000),
                next_watermark_ms: Some(START / 1000),
                operators: vec![OperatorProgress {
                    name: "stateStoreSave".into(),
                    rows_total: 7,
                    memory_bytes: 700,
                    ..Default::default()
                }],
                state_bytes_written: 10,
                checkpoint_bytes_written: 15,
                sources: vec![SourceProgress {
                    source: "readings".into(),
                    start: Some(Offset::from_json("{\"t\":{\"0\":5}}")),
                    end: Some(Offset::from_json("{\"t\":{\"0\":155}}")),
                    records: 150,
                }],
                max_event_time_micros: Some(START),
                lag: vec![(
                    "readings".into(),
                    Lag { records: Some(30), partitions: vec![("t-0".into(), 10), ("t-1".into(), 20)] },
                )],
            };
            self.board.committed("per_minute", &report);
            self.progress.committed("per_minute", &report);
        }
    }

    fn fail(&self, times: usize) {
        for _ in 0..times {
            let error = Error::new(class::TIMEOUT, "no answer").at("sink");
            self.board.failed("per_minute", Some(1), &error, Action::Retry { after: Duration::from_secs(1) });
        }
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let answer = reqwest::get(format!("{}{path}", self.server.url())).await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/json", "{path}");
        let status = answer.status().as_u16();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap())
    }
}

/// All fields of `expected` are there with these values; there may be more.
fn assert_has(found: &Value, expected: &Value) {
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(found.get(key), Some(value), "{key} in {found:#}");
    }
}

#[tokio::test]
async fn health_has_the_documented_fields() {
    let world = World::new();
    let (status, before) = world.get("/health").await;
    assert_eq!(status, 200);
    assert_has(
        &before,
        &json!({"status": "initializing", "last_batch_id": null, "last_processed_at": null, "errors_count": 0, "errors_by_type": {},
                "batches_processed": 0, "records_processed": 0, "start_time": "2025-11-21T09:00:00.000000", "uptime_seconds": 0,
                "version": "1.0", "role": "active"}),
    );
    // A process that stands by does what it should, however long it takes.
    world.board.take_role(Role::Standby);
    let (_, standing_by) = world.at(100_000).get("/health").await;
    assert_has(&standing_by, &json!({"status": "healthy", "role": "standby"}));
    assert_eq!(world.get("/health/ready").await.0, 200);
    world.board.take_role(Role::Active);
    assert_has(&world.at(0).get("/health").await.1, &json!({"status": "initializing", "role": "active"}));
    world.run();
    let (status, healthy) = world.at(2730).get("/health").await;
    assert_eq!(status, 200);
    assert_has(
        &healthy,
        &json!({"status": "healthy", "last_batch_id": 42, "last_processed_at": "2025-11-21T09:45:30.123456", "errors_count": 0,
                "errors_by_type": {}, "batches_processed": 100, "records_processed": 15000,
                "start_time": "2025-11-21T09:00:00.000000", "uptime_seconds": 2730, "version": "1.0"}),
    );
    world.fail(4);
    assert_has(
        &world.get("/health").await.1,
        &json!({"status": "degraded", "errors_count": 4, "errors_by_type": {"Timeout": 4}}),
    );
    world.fail(1);
    let (status, unhealthy) = world.get("/health").await;
    assert_eq!(status, 200, "the answer is about the job, and it is an answer");
    assert_has(&unhealthy, &json!({"status": "unhealthy", "errors_count": 5}));
    assert_has(&world.at(2730 + 3600).get("/health").await.1, &json!({"status": "healthy", "errors_count": 5}));
}

#[tokio::test]
async fn health_in_detail_adds_to_it() {
    let world = World::new();
    world.run();
    world.at(2790).fail(11);
    world.board.state("per_minute", QueryState::BackingOff { wait: Duration::from_secs(1) });
    let (status, detailed) = world.at(2800).get("/health/detailed").await;
    assert_eq!(status, 200);
    assert_has(
        &detailed,
        &json!({"status": "unhealthy", "last_batch_id": 42, "batches_processed": 100, "avg_batch_processing_time_sec": 0.5,
                "records_per_second": 300.0, "recommendations": ["High error count detected - Review DLQ and error logs"]}),
    );
    assert!((detailed["seconds_since_last_batch"].as_f64().unwrap() - 69.876544).abs() < 1e-6, "{detailed}");
    let query = &detailed["queries"]["per_minute"];
    assert_has(
        query,
        &json!({"state": "backing_off", "reason": "waits 1000 ms after an error", "since": "2025-11-21T09:46:30.000000",
                "watermark": "2025-11-21T09:00:00.000000", "state_rows": 7, "state_bytes": 700, "unaccounted_batches": 0,
                "lag": {"readings": {"records": 30, "partitions": {"t-0": 10, "t-1": 20}}},
                "dead_letters_by_type": {"MalformedRecord": 700}}),
    );
    assert_has(
        &query["records"],
        &json!({"read": 15000, "held": 10000, "filtered": 4000, "late": 300, "dead_lettered": 700}),
    );
    assert_has(
        &query["last_error"],
        &json!({"type": "Timeout", "message": "sink: no answer",
                "recommendation": "Retry after 60 seconds - Check API availability", "timestamp": "2025-11-21T09:46:30.000000"}),
    );
}

#[tokio::test]
async fn dead_letters_have_the_documented_fields() {
    let world = World::new();
    let (status, letters) = world.at(2730).get("/health/dlq").await;
    assert_eq!(status, 200);
    let entry = |batch: u64| json!({"batch_id": batch, "timestamp": "2025-11-21T09:45:30.123456", "error_type": "ServerSelectionTimeoutError"});
    assert_eq!(
        letters,
        json!({"dlq": {"total_entries": 3, "error_types": {"ServerSelectionTimeoutError": 2, "Timeout": 1}, "first_error": entry(40),
                       "last_error": entry(42), "dlq_directory": "./dlq"},
               "timestamp": "2025-11-21T09:45:30.000000"})
    );
}

#[tokio::test]
async fn probes_answer_with_their_status() {
    let world = World::new();
    let (status, answer) = world.get("/health/ready").await;
    assert_eq!(status, 503);
    assert_has(&answer, &json!({"ready": false, "reason": "Job initializing or unhealthy", "status": "initializing"}));
    assert_has(
        &answer["queries"][0],
        &json!({"query": "per_minute", "state": "initializing", "since": "2025-11-21T09:00:00.000000"}),
    );
    world.board.state("per_minute", QueryState::Idle);
    assert_eq!(world.get("/health/ready").await, (200, json!({"ready": true})));
    world.fail(5);
    world.board.state("per_minute", QueryState::BreakerOpen { wait: Duration::from_secs(30) });
    let (status, answer) = world.get("/health/ready").await;
    assert_eq!(status, 503);
    assert_has(&answer["queries"][0], &json!({"state": "breaker_open", "reason": "Timeout: sink: no answer"}));

    assert_eq!(world.get("/health/live").await, (200, json!({"alive": true})));
}

#[tokio::test]
async fn a_runtime_that_hangs_is_not_alive() {
    // As if the process had started long ago and the heart had never beaten.
    let heartbeat =
        Heartbeat { origin: Instant::now().checked_sub(Duration::from_secs(60)).unwrap(), ..Heartbeat::new() };
    let world = World::with(JOB, heartbeat);
    let (status, answer) = world.get("/health/live").await;
    assert_eq!((status, &answer["alive"]), (503, &json!(false)), "{answer}");
}

#[tokio::test]
async fn unknown_paths_list_the_known_ones() {
    let world = World::new();
    let (status, answer) = world.get("/helth").await;
    assert_eq!(status, 404);
    for endpoint in ENDPOINTS {
        assert!(answer["endpoints"].get(endpoint.path).is_some(), "{answer}");
    }
    let answer = reqwest::Client::new().post(format!("{}/health", world.server.url())).body("x").send().await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["allow"]), (405, &"GET,HEAD".parse().unwrap()));
    let index = reqwest::get(world.server.url()).await.unwrap().text().await.unwrap();
    assert!(index.contains("<title>greenhouse - Perennial</title>") && index.contains("href=\"/metrics\""), "{index}");
}

#[tokio::test]
async fn what_keeps_a_job_from_its_work_is_told_with_its_time() {
    let world = World::new();
    world.run();
    world.board.state("per_minute", QueryState::Running);
    assert_eq!(world.at(2730).get("/health/ready").await.0, 200);

    // An open breaker, though the errors are too few to be unhealthy.
    world.fail(2);
    let open = Breaker {
        state: BreakerState::Open { until_micros: START + 2760 * SECOND },
        since_micros: START + 2730 * SECOND,
        failures: 2,
        opened: 1,
        probes: 0,
    };
    world.board.breaker("per_minute", &Part::Sink, &open);
    world.board.breaker("per_minute", &Part::source("readings"), &Breaker::default());
    let (status, answer) = world.get("/health/ready").await;
    assert_eq!(
        (status, &answer["status"], &answer["reason"]),
        (503, &json!("degraded"), &json!("Job initializing or unhealthy"))
    );
    assert_eq!(
        answer["reasons"],
        json!([{"query": "per_minute", "kind": "breaker_open", "since": "2025-11-21T09:45:30.000000",
                "reason": "the circuit breaker of sink is open, the next probe is due at 2025-11-21T09:46:00.000000: Timeout: sink: no answer"}])
    );
    let (_, detailed) = world.get("/health/detailed").await;
    let sink = json!({"part": "sink", "state": "open", "since": "2025-11-21T09:45:30.000000",
                      "next_probe": "2025-11-21T09:46:00.000000", "failures": 2, "opened": 1, "probes": 0});
    let query = &detailed["queries"]["per_minute"];
    assert_eq!((&query["breaker"], &query["breakers"]["sink"]), (&sink, &sink));
    assert_eq!(query["breakers"]["sources.readings"]["state"], "closed");
    let metrics = reqwest::get(format!("{}/metrics", world.server.url())).await.unwrap().text().await.unwrap();
    let samples = parse(&metrics);
    let labels =
        |state: &str| format!("perennial_breaker_state{{query=\"per_minute\",part=\"sink\",state=\"{state}\"}}");
    assert_eq!((samples[&labels("open")], samples[&labels("closed")]), (1.0, 0.0));
    world.board.breaker("per_minute", &Part::Sink, &Breaker::default());
    assert_eq!(world.get("/health/ready").await.0, 200);

    // Triggers without a commit.
    assert_eq!(world.at(2730 + 100).get("/health/ready").await.0, 200);
    let (status, answer) = world.at(2730 + 101).get("/health/ready").await;
    assert_eq!((status, &answer["reasons"][0]["kind"]), (503, &json!("no_commit")), "{answer}");
    assert_eq!(answer["reasons"][0]["reason"], "no commit for more than 10 triggers");
    world.board.state("per_minute", QueryState::Idle);
    assert_eq!(world.get("/health/ready").await.0, 200, "idle is not stale");

    // A lag that grows for a minute.
    for seconds in 0..=13 {
        let lag = Lag { records: Some(100 + seconds), partitions: vec![] };
        world.at(3000 + 5 * seconds as i64).board.lag("per_minute", &[("readings".into(), lag)]);
    }
    let (status, answer) = world.get("/health/ready").await;
    assert_eq!((status, &answer["reasons"][0]["kind"]), (503, &json!("lag_growing")), "{answer}");
    for records in [50, 0] {
        let lag = Lag { records: Some(records), partitions: vec![] };
        world.at(3165 - records as i64).board.lag("per_minute", &[("readings".into(), lag)]);
        let (_, detailed) = world.get("/health/detailed").await;
        // 63 in 50 seconds.
        let left = detailed["queries"]["per_minute"]["seconds_to_caught_up"].as_f64().unwrap();
        assert!((left - records as f64 * 50.0 / 63.0).abs() < 0.01, "{left}");
    }
    assert_eq!(world.get("/health/ready").await.0, 200);
}

#[tokio::test]
async fn progress_is_told_as_spark_tells_it() {
    let world = World::new();
    assert_eq!(world.get("/queries").await, (200, json!({"queries": {"per_minute": null}})));
    world.run();
    let (status, recent) = world.get("/queries/per_minute/progress").await;
    let recent = recent.as_array().unwrap();
    assert_eq!((status, recent.len()), (200, 100));
    let last = &recent[99];
    assert_eq!(world.get("/queries").await.1["queries"]["per_minute"], *last);
    assert_has(
        last,
        &json!({"id": "12345", "name": "per_minute", "timestamp": "2025-11-21T09:16:30.000Z", "batchId": 42, "batchDuration": 500,
                "numInputRows": 150, "inputRowsPerSecond": 15.0, "processedRowsPerSecond": 300.0,
                "eventTime": {"max": "2025-11-21T09:00:00.000Z", "watermark": "2025-11-21T09:00:00.000Z"},
                "sink": {"description": "console", "numOutputRows": 12}, "observedMetrics": {}}),
    );
    assert_has(&last["durationMs"], &json!({"addBatch": 400, "commitOffsets": 100, "triggerExecution": 500}));
    assert_has(
        &last["stateOperators"][0],
        &json!({"operatorName": "stateStoreSave", "numRowsTotal": 7, "memoryUsedBytes": 700}),
    );
    assert_eq!(
        last["sources"][0],
        json!({"description": "rate[readings]", "startOffset": {"t": {"0": 5}}, "endOffset": {"t": {"0": 155}}, "numInputRows": 150,
               "inputRowsPerSecond": 15.0, "processedRowsPerSecond": 300.0, "metrics": {"recordsBehindLatest": "30"}})
    );
    assert_eq!(last["runId"], recent[0]["runId"]);
    assert_eq!(world.get("/queries/other/progress").await.0, 404);
}

#[tokio::test]
async fn only_who_has_the_token_acts_on_the_job() {
    let world = World::new();
    let acting = || ENDPOINTS.iter().filter(|endpoint| endpoint.acts).map(|e| e.path.replace("{query}", "per_minute"));
    assert_eq!(acting().count(), 4);
    for path in acting() {
        for token in [None, Some("open sesam"), Some("")] {
            let (status, answer) = world.post(&path, token, "{}").await;
            assert_eq!(status, 401, "{path} with {token:?}: {answer}");
        }
    }
    assert!(!world.controls.is_paused("per_minute") && !world.stop.is_cancelled());

    let token = Some("open sesame");
    let paused = json!({"query": "per_minute", "paused": true});
    assert_eq!(world.post("/queries/per_minute/pause", token, "").await, (200, paused));
    assert!(world.controls.is_paused("per_minute"));
    assert_eq!(world.post("/queries/per_minute/resume", token, "").await.0, 200);
    assert!(!world.controls.is_paused("per_minute"));
    assert_eq!(world.post("/queries/other/pause", token, "").await.0, 404);
    for (body, status, said) in [
        ("{", 400, "JSON"),
        ("{\"were\": {}}", 422, "unknown field"),
        ("{}", 400, "say which entries"),
        (&format!("{{\"set\": [\"{}\"]}}", "x".repeat(100_000)), 413, "length limit"),
    ] {
        let (found, answer) = world.post("/dlq/replay", token, body).await;
        assert_eq!(found, status, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(said), "{answer}");
    }
    assert_eq!(world.post("/stop", token, "").await, (202, json!({"stopping": true})));
    assert!(world.stop.is_cancelled());

    let without = World::with(&JOB.replace("http:", "health: {}\n#"), Heartbeat::new());
    for path in acting() {
        assert_eq!(without.post(&path, token, "{}").await.0, 403, "{path}");
    }
}

#[tokio::test]
async fn the_openapi_document_describes_what_is_answered() {
    let world = World::new();
    world.run();
    world.fail(1);
    let (_, document) = world.get("/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");
    for endpoint in ENDPOINTS {
        let method = if endpoint.acts { "post" } else { "get" };
        let operation = &document["paths"][endpoint.path][method];
        assert!(operation["summary"].is_string(), "{}", endpoint.path);
        assert_eq!(operation["security"].is_array(), endpoint.acts, "{}", endpoint.path);
    }
    // Every reference leads somewhere, and every field that is answered is described.
    for path in ["/health", "/health/detailed", "/health/dlq", "/health/ready", "/health/live", "/queries"] {
        let (status, answer) = world.get(path).await;
        let schema =
            &document["paths"][path]["get"]["responses"][status.to_string()]["content"]["application/json"]["schema"];
        assert_described(&document, schema, &answer, path);
    }
}

/// The schema has each field of the value, and requires none that it has not.
fn assert_described(document: &Value, schema: &Value, value: &Value, at: &str) {
    // Anything may be there: an offset has the form of its source.
    if schema == &Value::Bool(true) {
        return;
    }
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#'));
        return assert_described(document, target.unwrap_or_else(|| panic!("{reference} at {at}")), value, at);
    }
    if let Some(forms) = schema["anyOf"].as_array() {
        let form = forms.iter().find(|form| (form["type"] == "null") == value.is_null());
        return assert_described(document, form.unwrap_or_else(|| panic!("{at}: {schema}")), value, at);
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        assert!(value.get(required.as_str().unwrap()).is_some(), "{at} has no {required}: {value}");
    }
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let field = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
                let field = field.unwrap_or_else(|| panic!("{at}.{name} is not described: {schema}"));
                assert_described(document, field, value, &format!("{at}.{name}"));
            }
        }
        Value::Array(items) => {
            items.iter().for_each(|item| assert_described(document, &schema["items"], item, at));
        }
        _ => {}
    }
}

/// Parses the exposition format strictly and gives samples by name and labels.
fn parse(text: &str) -> HashMap<String, f64> {
    let (mut types, mut samples) = (HashMap::new(), HashMap::new());
    let mut helped = HashSet::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            assert!(helped.insert(help.split(' ').next().unwrap().to_owned()), "twice: {line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            types.insert(name.to_owned(), kind.to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{line}");
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|s| name.strip_suffix(s))
                .filter(|b| types.get(*b).is_some_and(|t| t == "histogram"));
            assert!(types.contains_key(base.unwrap_or(name)), "no TYPE before {line}");
            assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
        }
    }
    samples
}

#[tokio::test]
async fn metrics_are_what_prometheus_reads() {
    let world = World::new();
    world.run();
    world.at(2730).fail(2);
    let answer = reqwest::get(format!("{}/metrics", world.server.url())).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let samples = parse(&answer.text().await.unwrap());
    for (series, value) in [
        ("spark_batch_processing_time_sec", 0.5),
        ("spark_records_per_second", 300.0),
        ("spark_errors_total", 2.0),
        ("spark_batches_processed_total", 100.0),
        ("perennial_health{status=\"degraded\"}", 1.0),
        ("perennial_health{status=\"healthy\"}", 0.0),
        ("perennial_query_state{query=\"per_minute\",state=\"running\"}", 1.0),
        ("perennial_records_total{query=\"per_minute\",outcome=\"read\"}", 15000.0),
        ("perennial_records_total{query=\"per_minute\",outcome=\"dead_lettered\"}", 700.0),
        ("perennial_batch_seconds_bucket{query=\"per_minute\",le=\"0.25\"}", 0.0),
        ("perennial_batch_seconds_bucket{query=\"per_minute\",le=\"0.5\"}", 100.0),
        ("perennial_batch_seconds_bucket{query=\"per_minute\",le=\"+Inf\"}", 100.0),
        ("perennial_batch_seconds_sum{query=\"per_minute\"}", 50.0),
        ("perennial_batch_seconds_count{query=\"per_minute\"}", 100.0),
        ("perennial_batch_phase_seconds_count{query=\"per_minute\",phase=\"commit\"}", 100.0),
        ("perennial_errors_total{query=\"per_minute\",class=\"Timeout\"}", 2.0),
        ("perennial_dead_letters_total{query=\"per_minute\",class=\"MalformedRecord\"}", 700.0),
        ("perennial_lag_records{query=\"per_minute\",source=\"readings\"}", 30.0),
        ("perennial_partition_lag_records{query=\"per_minute\",source=\"readings\",partition=\"t-1\"}", 20.0),
        ("perennial_watermark_delay_seconds{query=\"per_minute\"}", 2730.0),
        ("perennial_state_rows{query=\"per_minute\"}", 7.0),
        ("perennial_checkpoint_written_bytes_total{query=\"per_minute\"}", 1500.0),
        ("perennial_batch_phase_seconds_sum{query=\"per_minute\",phase=\"checkpoint\"}", 10.0),
        ("perennial_memory_bytes", 0.0),
        ("perennial_retries_total{query=\"per_minute\"}", 2.0),
    ] {
        // Sums of seconds are not exact.
        let found = *samples.get(series).unwrap_or_else(|| panic!("no {series}"));
        assert!((found - value).abs() < 1e-6, "{series}: {found} instead of {value}");
    }
}

#[test]
fn labels_are_escaped() {
    let mut out = Exposition::default();
    out.metric("m", "gauge", "A metric.");
    out.sample(&[("l", "a\"b\\c\nd")], 1);
    assert_eq!(out.finish(), "# HELP m A metric.\n# TYPE m gauge\nm{l=\"a\\\"b\\\\c\\nd\"} 1\n");
}

#[test]
fn a_heart_that_is_silent_for_too_long_is_not_alive() {
    let heart = Heartbeat::new();
    heart.beat(Duration::from_secs(100));
    for (now, alive) in [(100, true), (129, true), (130, false), (99, true)] {
        assert_eq!(Heartbeat::is_alive(heart.silence_at(Duration::from_secs(now))), alive, "at {now} s");
    }
    heart.beat(Duration::from_secs(130));
    assert!(Heartbeat::is_alive(heart.silence_at(Duration::from_secs(130))));
}
