//! Real servers that go away under load and come back: a job lives through it, says so everywhere, and loses and doubles nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Message, Offset, TopicPartitionList};
use serde_json::Value;

use crate::support::{Home, PATIENCE, Running, Watched};

/// Records of the first batch after a time without any.
const SMALL: u64 = 100;

/// How long a server is away: as long as it takes to see what is said about it, or longer.
fn outage() -> Duration {
    let seconds = std::env::var("PERENNIAL_PROOF_OUTAGE_SECONDS").map_or(0, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

const TOKEN: &str = "open-sesame";

/// How a server is away.
#[derive(Clone, Copy, PartialEq)]
enum Away {
    Dead,
    Hanging,
}

/// Servers that belong to one test, because it stops them.
struct Servers {
    directory: tempfile::TempDir,
    addresses: BTreeMap<String, String>,
}

impl Servers {
    fn up() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut servers = Self { directory, addresses: BTreeMap::new() };
        servers.script(&["up"]);
        let addresses = servers.script(&["env"]);
        let pairs = addresses.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        servers.addresses = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        servers
    }

    fn script(&self, arguments: &[&str]) -> String {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../scripts/services");
        let output =
            Command::new(script).args(arguments).env("PERENNIAL_SERVICES_DIR", self.directory.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/services {arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A server that hangs: it is there, and its connections stay open, and it does nothing; or goes on with its work.
    fn signal(&self, server: &str, signal: &str) {
        let pid = std::fs::read_to_string(self.directory.path().join(server).join("pid")).unwrap();
        let pid = pid.split_whitespace().next().unwrap();
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status().unwrap();
        assert!(sent.success());
    }

    fn take_away(&self, server: &str, how: Away) {
        match how {
            Away::Dead => drop(self.script(&["stop", server, "--now"])),
            Away::Hanging => self.signal(server, "STOP"),
        }
    }

    fn give_back(&self, server: &str, how: Away) {
        match how {
            Away::Dead => drop(self.script(&["start", server])),
            Away::Hanging => self.signal(server, "CONT"),
        }
    }

    fn at(&self, server: &str) -> &str {
        &self.addresses[&format!("PERENNIAL_TEST_{server}")]
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.script(&["down", "--purge"]);
    }
}

/// Numbers in a topic, more and more of them until it is told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<u64>,
}

impl Load {
    fn start(brokers: &str) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("enable.idempotence", "true").set("linger.ms", "5");
        // What cannot be sent while the brokers are away is sent when they are back.
        config.set("message.timeout.ms", "300000").set("reconnect.backoff.max.ms", "500");
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            let producer: ThreadedProducer<DefaultProducerContext> = config.create().unwrap();
            let mut next = 0;
            while !stopped.load(Ordering::Relaxed) {
                for id in next..next + 10 {
                    let value = format!("{{\"id\": {id}, \"at\": \"2026-01-01T00:00:00Z\"}}");
                    producer.send(BaseRecord::<(), _>::to("numbers").payload(&value)).map_err(|(e, _)| e).unwrap();
                }
                next += 10;
                count.store(next, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
            producer.flush(PATIENCE).unwrap();
            next
        });
        Self { stop, sent, thread }
    }

    /// How many there are, all of them.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

async fn until_caught_up(watched: &Watched, load: &Load) {
    let sent = load.sent.load(Ordering::Relaxed);
    let all = |answer: &Value| {
        answer["queries"].as_object().unwrap().values().all(|query| query["records"]["read"].as_u64().unwrap() >= sent)
    };
    watched.until("/health/detailed", "all queries caught up", all).await;
}

const QUERIES: [&str; 3] = ["to_postgres", "to_influxdb", "to_kafka"];

fn job(servers: &Servers) -> String {
    let tls = servers.directory.path().join("tls");
    let tls = tls.display();
    let (brokers, postgres, influx) = (servers.at("KAFKA"), servers.at("POSTGRES"), servers.at("INFLUXDB"));
    format!(
        r#"
name: outage
sources:
  numbers:
    kafka: {{ brokers: "{brokers}", topic: numbers, starting_offsets: earliest, timeout: 3s }}
    format: json
    schema: id BIGINT, at TIMESTAMP
queries:
  to_postgres:
    sql: SELECT id FROM numbers
    sink: {{ postgres: {{ url: "{postgres}", table: numbers, create_table: true }} }}
  to_influxdb:
    sql: SELECT id, CAST(id AS STRING) AS name, at FROM numbers
    sink: {{ influxdb: {{ url: "{influx}", database: outage, measurement: numbers, tags: [name], time: at, create_database: true, timeout: 2s, allow_overwrite: true }} }}
  to_kafka:
    sql: SELECT id FROM numbers
    sink: {{ kafka: {{ brokers: "{brokers}", topic: copies, timeout: 5s }} }}
trigger: {{ every: 100 ms }}
backpressure: {{ target_batch_time: 500 ms, min_records: {SMALL} }}
retry: {{ initial: 50 ms, max: 200 ms }}
circuit_breaker: {{ failures: 3, open_for: 1s }}
health: {{ error_window: 5s }}
guarantee: exactly_once
http:
  listen: "127.0.0.1:0"
  token: {TOKEN}
  tls: {{ certificate: "{tls}/server.crt", key: "{tls}/server.key" }}
"#
    )
}

fn create_topics(runtime: &tokio::runtime::Runtime, brokers: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let topics = ["numbers", "copies"].map(|name| NewTopic::new(name, 2, TopicReplication::Fixed(1)));
    for result in runtime.block_on(admin.create_topics(&topics, &AdminOptions::new())).unwrap() {
        result.unwrap();
    }
}

#[test]
#[ignore = "needs Kafka, PostgreSQL and InfluxDB: run make test"]
fn servers_that_go_away_and_come_back_cost_nothing_but_time() {
    let servers = Servers::up();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    create_topics(&runtime, servers.at("KAFKA"));
    let home = Home::new(&job(&servers));
    let load = Load::start(servers.at("KAFKA"));
    let mut running = Running::start(home.command(&["run", "--log-format", "json", "job.yaml"]));
    let url = running.url();
    assert!(url.starts_with("https://"), "{url}");
    let authority = std::fs::read(servers.directory.path().join("tls/ca.crt")).unwrap();
    let authority = reqwest::Certificate::from_pem(&authority).unwrap();
    let client = reqwest::Client::builder().add_root_certificate(authority).build().unwrap();
    let watched = Watched { url, client };

    runtime.block_on(async {
        watched.until("/health", "it is healthy", |health| health["status"] == "healthy").await;
        until_caught_up(&watched, &load).await;
        let sink = |query| [(query, "sink")];
        let source = QUERIES.map(|query| (query, "sources.numbers"));
        for (server, how, parts) in [
            ("postgres", Away::Dead, &sink("to_postgres")[..]),
            ("influxdb", Away::Dead, &sink("to_influxdb")),
            ("kafka", Away::Dead, &source),
            ("influxdb", Away::Hanging, &sink("to_influxdb")),
            ("kafka", Away::Hanging, &source),
        ] {
            one_goes_away(&servers, &watched, &load, server, how, parts).await;
        }
        one_is_paused(&watched, &load).await;
    });
    let sent = load.end();
    runtime.block_on(watched.until("/health/detailed", "all is written", |answer| {
        QUERIES.iter().all(|query| answer["queries"][query]["records"]["written"] == sent)
    }));
    assert_eq!(runtime.block_on(watched.post("/stop", TOKEN)), 202);
    let (code, log) = running.end();
    assert_eq!(code, 0, "{log}");

    let expected: Vec<i64> = (0..sent as i64).collect();
    assert!(runtime.block_on(in_postgres(servers.at("POSTGRES"))) == expected, "rows of PostgreSQL");
    assert!(runtime.block_on(in_influxdb(servers.at("INFLUXDB"))) == expected, "points of InfluxDB");
    assert!(in_kafka(servers.at("KAFKA"), sent) == expected, "records of Kafka");
    assert_grows_from_small(&log);
}

/// Takes a server away, sees what is said about it, gives it back, and sees that all is well again.
async fn one_goes_away(
    servers: &Servers,
    watched: &Watched,
    load: &Load,
    server: &str,
    how: Away,
    parts: &[(&str, &str)],
) {
    let before = watched.json("/health/detailed").await;
    let gone_at = Instant::now();
    servers.take_away(server, how);
    for (query, part) in parts {
        let open = |answer: &Value| answer["queries"][query]["breakers"][part]["state"] == "open";
        let answer = watched.until("/health/detailed", &format!("the breaker of {query}: {part} is open"), open).await;
        let found = &answer["queries"][query];
        let breaker = &found["breakers"][part];
        assert!(breaker["next_probe"].as_str() > breaker["since"].as_str(), "{breaker}");
        assert!(breaker["failures"].as_u64() >= Some(3), "{breaker}");
        let error = &found["last_error"];
        let class = error["type"].as_str().unwrap();
        let (classes, recommendation) = match how {
            Away::Dead => (&["ConnectionRefused", "ConnectionLost", "ServerUnavailable", "Timeout"][..], "Check "),
            Away::Hanging => (&["Timeout"][..], "Retry after 60 seconds"),
        };
        assert!(classes.contains(&class), "{error}");
        assert!(class == "Timeout" || error["recommendation"].as_str().unwrap().starts_with(recommendation), "{error}");
        assert!(found["errors_by_type"][class].as_u64().unwrap() <= answer["errors_by_type"][class].as_u64().unwrap());
        let metrics = watched.text("/metrics").await;
        let opened = breaker["opened"].as_u64().unwrap();
        assert_eq!(opened, before["queries"][query]["breakers"][part]["opened"].as_u64().unwrap() + 1, "{breaker}");
        let line = format!("perennial_breaker_opened_total{{query=\"{query}\",part=\"{part}\"}} {opened}");
        assert!(metrics.contains(&line), "{line} is not in the metrics");
    }
    let not_ready = |answer: &Value| {
        let reasons = answer["reasons"].as_array();
        reasons.is_some_and(|all| all.iter().any(|r| r["kind"] == "breaker_open" && r["query"] == parts[0].0))
    };
    let answer = watched.until("/health/ready", "it is not ready", not_ready).await;
    assert_eq!((&answer["ready"], &answer["reason"]), (&false.into(), &"Job initializing or unhealthy".into()));
    let status = watched.json("/health").await;
    assert!(["degraded", "unhealthy"].contains(&status["status"].as_str().unwrap()), "{status}");

    // At least one probe fails, and the other queries go on meanwhile.
    for (query, part) in parts {
        let probed = |answer: &Value| answer["queries"][query]["breakers"][part]["probes"].as_u64() > Some(0);
        watched.until("/health/detailed", "it was probed", probed).await;
    }
    for other in QUERIES.iter().filter(|other| parts.iter().all(|(query, _)| query != *other)) {
        let read = |answer: &Value| answer["queries"][other]["records"]["read"].as_u64().unwrap();
        let more = |answer: &Value| read(answer) > read(&before);
        watched.until("/health/detailed", &format!("{other} goes on"), more).await;
    }

    let longer = outage().saturating_sub(gone_at.elapsed());
    tokio::time::sleep(longer).await;
    println!(
        "{server} was {} for {:.0} s",
        if how == Away::Dead { "dead" } else { "hanging" },
        gone_at.elapsed().as_secs_f64()
    );
    servers.give_back(server, how);
    let back_at = Instant::now();
    for (query, part) in parts {
        let closed = |answer: &Value| answer["queries"][query]["breakers"][part]["state"] == "closed";
        watched.until("/health/detailed", "the breaker is closed", closed).await;
    }
    until_caught_up(watched, load).await;
    watched.until("/health", "it is healthy again", |health| health["status"] == "healthy").await;
    watched.until("/health/ready", "it is ready again", |answer| answer["ready"] == true).await;
    println!("  and all was well again after {:.1} s", back_at.elapsed().as_secs_f64());
}

/// A query that is paused over HTTP reads nothing, and goes on where it was.
async fn one_is_paused(watched: &Watched, load: &Load) {
    assert_eq!(watched.post("/queries/to_kafka/pause", "wrong").await, 401);
    assert_eq!(watched.post("/queries/to_kafka/pause", TOKEN).await, 200);
    let state = |answer: &Value| answer["queries"]["to_kafka"]["state"].clone();
    let paused = watched.until("/health/detailed", "it is paused", |answer| state(answer) == "paused").await;
    let read = |answer: &Value, query: &str| answer["queries"][query]["records"]["read"].as_u64().unwrap();
    let more = |answer: &Value| read(answer, "to_postgres") > read(&paused, "to_postgres") + SMALL;
    let later = watched.until("/health/detailed", "the others go on", more).await;
    assert_eq!(read(&later, "to_kafka"), read(&paused, "to_kafka"));
    assert_eq!(watched.post("/queries/to_kafka/resume", TOKEN).await, 200);
    until_caught_up(watched, load).await;
}

/// After each time in which a query was held up the first new batch is small, and none is more than double the one before.
fn assert_grows_from_small(log: &str) {
    let mut limits: BTreeMap<String, Option<u64>> = BTreeMap::new();
    let mut restarts = 0;
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let query = line["query"].as_str().unwrap_or_default().to_owned();
        match line["message"].as_str().unwrap_or_default() {
            // It is told before the batch that closed it, which was begun before.
            message if message.contains("closed again") => {
                limits.insert(query, None);
                restarts += 1;
            }
            "batch committed" => {
                let read = line["read"].as_u64().unwrap();
                match limits.get_mut(&query) {
                    Some(limit @ None) => *limit = Some(SMALL),
                    Some(Some(limit)) => {
                        assert!(read <= *limit, "{line}: at most {limit} was expected");
                        *limit = limit.saturating_mul(2);
                    }
                    None => {}
                }
            }
            _ => {}
        }
    }
    assert!(restarts >= 9, "{restarts} breakers closed");
}

async fn in_postgres(url: &str) -> Vec<i64> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let rows = client.query("SELECT id FROM numbers ORDER BY id", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn in_influxdb(url: &str) -> Vec<i64> {
    let query = [("db", "outage"), ("q", "SELECT id FROM numbers")];
    let answer = reqwest::Client::new().get(format!("{url}/query")).query(&query).send().await.unwrap();
    let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let rows = answer["results"][0]["series"][0]["values"].as_array().unwrap();
    let mut ids: Vec<i64> = rows.iter().map(|row| row[1].as_i64().unwrap()).collect();
    ids.sort_unstable();
    ids
}

/// What a reader of committed records sees.
fn in_kafka(brokers: &str, expected: u64) -> Vec<i64> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "check").set("isolation.level", "read_committed");
    config.set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.create().unwrap();
    let mut assignment = TopicPartitionList::new();
    for partition in 0..2 {
        assignment.add_partition_offset("copies", partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let (mut ids, mut ends, begin) = (Vec::new(), 0, Instant::now());
    while ends < 2 {
        assert!(begin.elapsed() < PATIENCE, "only {} of {expected} records", ids.len());
        match consumer.poll(Duration::from_millis(500)) {
            Some(Ok(message)) => {
                let row: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
                ids.push(row["id"].as_i64().unwrap());
            }
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => ends += 1,
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
    ids.sort_unstable();
    ids
}
