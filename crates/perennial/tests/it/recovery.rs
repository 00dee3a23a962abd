//! The main job with real servers, killed with SIGKILL again and again, compared with a plain computation over the same messages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int32Type, TimestampMicrosecondType};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message, Offset, TopicPartitionList};
use serde_json::Value;

use crate::support::{PERENNIAL, server};

const PARTITIONS: i32 = 4;
const MINUTE_MICROS: i64 = 60_000_000;
const DELAY_MICROS: i64 = 10 * MINUTE_MICROS;

/// What a sensor said in a minute: count, sums of temperature and pH, least and greatest battery.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct PerMinute {
    readings: i64,
    temperature: f64,
    ph: f64,
    least: i32,
    greatest: i32,
}

type Aggregates = BTreeMap<(i64, String), PerMinute>;
/// Sensor, event time in microseconds, temperature and pH as bits, battery, signal.
type Row = (String, i64, u64, u64, i32, i32);
/// Partition, offset and raw value.
type Letters = BTreeSet<(i32, i64, Vec<u8>)>;

/// What a batch computation makes of the topic.
#[derive(Default)]
struct Expected {
    rows: BTreeMap<Row, u64>,
    aggregates: Aggregates,
    malformed: Letters,
    messages: u64,
}

struct Proof {
    dir: PathBuf,
    brokers: String,
    postgres: String,
    influx: String,
    topic: String,
    records: u64,
}

#[test]
#[ignore = "needs Kafka, PostgreSQL and InfluxDB: run make test"]
fn a_job_that_is_killed_again_and_again_loses_and_doubles_nothing() {
    let records = std::env::var("PERENNIAL_PROOF_RECORDS").map_or(30_000, |n| n.parse().unwrap());
    let kept = std::env::var_os("PERENNIAL_PROOF_DIR").map(PathBuf::from);
    let temporary = tempfile::tempdir().unwrap();
    let dir = kept.unwrap_or_else(|| temporary.path().to_owned());
    let topic = format!("proof-{}-{}", std::process::id(), rand::random::<u32>());
    let proof = Proof {
        dir,
        brokers: server("PERENNIAL_TEST_KAFKA"),
        postgres: server("PERENNIAL_TEST_POSTGRES"),
        influx: server("PERENNIAL_TEST_INFLUXDB"),
        topic,
        records,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(proof.create_topic());
    proof.write_job_file();

    let mut producer = proof.produce();
    let kills = proof.kill_while(|| producer.try_wait().unwrap().is_none());
    assert!(producer.wait().unwrap().success(), "the simulator failed");
    assert!(kills >= 5, "only {kills} kills");
    let last = proof.job(true).wait_with_output().unwrap();
    assert!(last.status.success(), "{}", String::from_utf8_lossy(&last.stderr));

    let expected = proof.expected();
    assert_eq!(expected.messages, records);
    assert!(expected.malformed.len() as u64 > records / 200, "{} malformed", expected.malformed.len());
    proof.assert_accounts_close(&expected);
    for query in ["to_postgres", "to_influxdb", "raw"] {
        assert!(
            proof.letters(query) == expected.malformed,
            "the dead letters of {query} are not the malformed messages"
        );
    }
    assert!(proof.parquet_rows() == expected.rows, "the Parquet rows are not the messages");
    assert_aggregates("PostgreSQL", &runtime.block_on(proof.postgres_rows()), &expected.aggregates);
    assert_aggregates("InfluxDB", &runtime.block_on(proof.influx_rows()), &expected.aggregates);
    println!(
        "{} messages, {} kills: {} aggregates, {} rows and {} dead letters, none lost, none doubled",
        records,
        kills,
        expected.aggregates.len(),
        expected.rows.values().sum::<u64>(),
        expected.malformed.len()
    );
}

fn assert_aggregates(target: &str, found: &Aggregates, expected: &Aggregates) {
    assert_eq!(found.len(), expected.len(), "number of aggregates in {target}");
    for ((key, found), (expected_key, expected)) in found.iter().zip(expected) {
        assert_eq!(key, expected_key, "{target}");
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs();
        let averages = close(found.temperature, expected.temperature / expected.readings as f64)
            && close(found.ph, expected.ph / expected.readings as f64);
        let rest =
            PerMinute { temperature: 0.0, ph: 0.0, ..*found } == PerMinute { temperature: 0.0, ph: 0.0, ..*expected };
        assert!(averages && rest, "{target}: {key:?}: {found:?}, expected {expected:?}");
    }
}

impl Proof {
    fn table(&self) -> String {
        self.topic.replace('-', "_")
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    async fn create_topic(&self) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let topic = NewTopic::new(&self.topic, PARTITIONS, TopicReplication::Fixed(1));
        for result in admin.create_topics([&topic], &AdminOptions::new()).await.unwrap() {
            result.unwrap();
        }
    }

    fn write_job_file(&self) {
        let aggregate = "SELECT window.start AS minute, sensor_id, count(*) AS readings, avg(temperature) AS temperature, avg(ph) AS ph, \
             min(battery) AS least, max(battery) AS greatest FROM readings GROUP BY window(event_time, '1 minute'), sensor_id";
        let (dir, table) = (self.dir.display(), self.table());
        let (brokers, topic, postgres, influx) = (&self.brokers, &self.topic, &self.postgres, &self.influx);
        let per_batch = self.records / 30;
        let text = format!(
            r#"
name: proof
sources:
  readings:
    kafka: {{ brokers: "{brokers}", topic: {topic}, starting_offsets: earliest, max_records_per_batch: {per_batch} }}
    format: json
    schema: |
      sensor_id STRING NOT NULL, event_time TIMESTAMP NOT NULL,
      temperature DOUBLE, ph DOUBLE, battery INT, signal INT
    watermark: {{ column: event_time, delay: 10 minutes }}
queries:
  to_postgres:
    sql: {aggregate}
    sink: {{ postgres: {{ url: "{postgres}", table: {table} }} }}
  to_influxdb:
    sql: {aggregate}
    sink: {{ influxdb: {{ url: "{influx}", database: {table}, measurement: per_minute, tags: [sensor_id], time: minute, create_database: true }} }}
  raw:
    sql: SELECT * FROM readings
    sink: {{ files: {{ path: "{dir}/raw", format: parquet }} }}
trigger: {{ every: 0s }}
checkpoint: {dir}/checkpoints
batches_to_retain: 100000
dead_letters: {{ path: "{dir}/dlq" }}
guarantee: exactly_once
http: {{ listen: "127.0.0.1:0" }}
"#
        );
        std::fs::write(self.dir.join("job.yaml"), text).unwrap();
    }

    /// The simulator in its own process: 1% malformed, 2% out of order within the delay, 1% sent twice.
    fn produce(&self) -> Child {
        let (records, rate) = (self.records.to_string(), (self.records / 12).to_string());
        Command::new(PERENNIAL)
            .args(["simulate", "greenhouse", "--to", "kafka", "--brokers", &self.brokers, "--topic", &self.topic])
            .args(["--records", &records, "--rate", &rate, "--keys", "50", "--seed", "42", "--event-interval", "100ms"])
            .args(["--malformed", "0.01", "--out-of-order", "0.02", "--max-delay", "2 minutes", "--duplicates", "0.01"])
            .args(["--metrics", "off", "--log-level", "error"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn job(&self, available_now: bool) -> Child {
        let mut command = Command::new(PERENNIAL);
        command.arg("run").arg(self.dir.join("job.yaml")).args(["--log-format", "json"]);
        if available_now {
            command.arg("--available-now");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn commits(&self) -> usize {
        let queries = ["to_postgres", "to_influxdb", "raw"];
        let dirs = queries.iter().map(|query| self.dir.join("checkpoints").join(query).join("commits"));
        dirs.filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().count()
    }

    /// Runs the job and kills it at random moments, again and again for as long as `more` says, at least 5 times.
    fn kill_while(&self, mut more: impl FnMut() -> bool) -> u32 {
        let mut kills = 0;
        while kills < 5 || more() {
            let mut job = self.job(false);
            // Some lives get a few batches done, others die while they start.
            let enough = self.commits() + rand::random_range(0..6);
            let mut looks = 0;
            while self.commits() < enough && looks < 1000 {
                assert!(job.try_wait().unwrap().is_none(), "the job ended by itself: {}", stderr(job));
                std::thread::sleep(Duration::from_millis(2));
                looks += 1;
            }
            std::thread::sleep(Duration::from_micros(rand::random_range(0..50_000)));
            job.kill().unwrap();
            job.wait().unwrap();
            kills += 1;
        }
        kills
    }

    /// Reads the whole topic and computes what must come out.
    fn expected(&self) -> Expected {
        let consumer: BaseConsumer = self.client().set("group.id", "proof-check").create().unwrap();
        let mut assignment = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            assignment.add_partition_offset(&self.topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&assignment).unwrap();
        let mut expected = Expected::default();
        let mut newest = i64::MIN;
        let mut all: Aggregates = BTreeMap::new();
        let mut silent = 0;
        while expected.messages < self.records {
            // Nothing may also be an event of the client.
            let Some(message) = consumer.poll(Duration::from_secs(1)) else {
                silent += 1;
                assert!(silent < 30, "the topic has {} messages instead of {}", expected.messages, self.records);
                continue;
            };
            silent = 0;
            let message = message.unwrap();
            expected.messages += 1;
            let payload = message.payload().unwrap();
            let Some((sensor, time, temperature, ph, battery, signal)) = parse(payload) else {
                expected.malformed.insert((message.partition(), message.offset(), payload.to_vec()));
                continue;
            };
            newest = newest.max(time);
            let row = (sensor.clone(), time, temperature.to_bits(), ph.to_bits(), battery, signal);
            *expected.rows.entry(row).or_default() += 1;
            let window = all.entry((time.div_euclid(MINUTE_MICROS) * MINUTE_MICROS, sensor)).or_insert(PerMinute {
                least: i32::MAX,
                greatest: i32::MIN,
                ..Default::default()
            });
            window.readings += 1;
            window.temperature += temperature;
            window.ph += ph;
            window.least = window.least.min(battery);
            window.greatest = window.greatest.max(battery);
        }
        let watermark = newest.div_euclid(1000) * 1000 - DELAY_MICROS;
        expected.aggregates = all.into_iter().filter(|((start, _), _)| start + MINUTE_MICROS <= watermark).collect();
        assert!(expected.aggregates.len() > 100, "only {} closed windows: too little data", expected.aggregates.len());
        expected
    }

    /// Every batch of every query accounts for each of its records, and together they read the topic once.
    fn assert_accounts_close(&self, expected: &Expected) {
        for query in ["to_postgres", "to_influxdb", "raw"] {
            let commits = self.dir.join("checkpoints").join(query).join("commits");
            let mut read = 0;
            for file in std::fs::read_dir(commits).unwrap() {
                let path = file.unwrap().path();
                let text = std::fs::read_to_string(&path).unwrap();
                let Some(json) = text.strip_prefix("v1\n") else { continue };
                let commit: Value = serde_json::from_str(json).unwrap();
                let count = |name: &str| commit["perennial"]["counts"][name].as_u64().unwrap();
                let passed = if query == "raw" { count("written") } else { count("held") };
                let accounted = passed + count("filtered") + count("late") + count("dead_lettered") + count("dropped");
                assert_eq!(count("read"), accounted, "{}: {text}", path.display());
                assert_eq!(count("late"), 0, "{}: nothing is late here", path.display());
                read += count("read");
            }
            assert_eq!(read, expected.messages, "{query}");
        }
    }

    fn letters(&self, query: &str) -> Letters {
        let mut letters = Letters::new();
        let dlq = self.dir.join("dlq");
        let days = std::fs::read_dir(&dlq).unwrap().map(|f| f.unwrap().path());
        for day in days.filter(|path| path.extension().is_some_and(|e| e == "json")) {
            for line in std::fs::read_to_string(day).unwrap().lines() {
                let entry: Value = serde_json::from_str(line).unwrap();
                if entry["query"] != query {
                    continue;
                }
                let packed = std::fs::read(dlq.join(entry["records_object"].as_str().unwrap())).unwrap();
                let plain = String::from_utf8(zstd::decode_all(packed.as_slice()).unwrap()).unwrap();
                assert_eq!(plain.lines().count() as u64, entry["records"].as_u64().unwrap());
                for record in plain.lines() {
                    let record: Value = serde_json::from_str(record).unwrap();
                    assert_eq!(record["topic"], self.topic.as_str());
                    let value = match &record["value"] {
                        Value::String(text) => text.clone().into_bytes(),
                        _ => base64(record["value_base64"].as_str().unwrap()),
                    };
                    let position =
                        (record["partition"].as_i64().unwrap() as i32, record["offset"].as_i64().unwrap(), value);
                    assert!(letters.insert(position), "a dead letter of {query} is there twice: {record}");
                }
            }
        }
        letters
    }

    fn parquet_rows(&self) -> BTreeMap<Row, u64> {
        let mut rows = BTreeMap::new();
        for file in files_below(&self.dir.join("raw")) {
            let file = std::fs::File::open(file).unwrap();
            let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
            for batch in reader.build().unwrap() {
                let batch = batch.unwrap();
                let column = |name: &str| batch.column_by_name(name).unwrap().clone();
                let sensor = arrow::compute::cast(&column("sensor_id"), &arrow::datatypes::DataType::Utf8).unwrap();
                for row in 0..batch.num_rows() {
                    let key = (
                        sensor.as_string::<i32>().value(row).to_owned(),
                        column("event_time").as_primitive::<TimestampMicrosecondType>().value(row),
                        column("temperature").as_primitive::<Float64Type>().value(row).to_bits(),
                        column("ph").as_primitive::<Float64Type>().value(row).to_bits(),
                        column("battery").as_primitive::<Int32Type>().value(row),
                        column("signal").as_primitive::<Int32Type>().value(row),
                    );
                    *rows.entry(key).or_default() += 1;
                }
            }
        }
        rows
    }

    async fn postgres_rows(&self) -> Aggregates {
        let (client, connection) = tokio_postgres::connect(&self.postgres, tokio_postgres::NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        let sql = format!(
            "SELECT (extract(epoch FROM minute) * 1000000)::bigint, sensor_id, readings, temperature, ph, least, greatest FROM {}",
            self.table()
        );
        let mut aggregates = Aggregates::new();
        for row in client.query(&sql, &[]).await.unwrap() {
            let found = PerMinute {
                readings: row.get(2),
                temperature: row.get(3),
                ph: row.get(4),
                least: row.get(5),
                greatest: row.get(6),
            };
            let twice = aggregates.insert((row.get(0), row.get(1)), found);
            assert_eq!(twice, None, "a row of PostgreSQL is there twice");
        }
        client.batch_execute(&format!("DROP TABLE {}", self.table())).await.unwrap();
        connection.abort();
        aggregates
    }

    async fn influx_rows(&self) -> Aggregates {
        let table = self.table();
        let query = "SELECT readings, temperature, ph, least, greatest FROM per_minute GROUP BY sensor_id";
        let url = reqwest::Url::parse_with_params(
            &format!("{}/query", self.influx),
            [("db", table.as_str()), ("epoch", "u"), ("q", query)],
        );
        let text = reqwest::get(url.unwrap()).await.unwrap().error_for_status().unwrap().text().await.unwrap();
        let answer: Value = serde_json::from_str(&text).unwrap();
        let mut aggregates = Aggregates::new();
        for series in answer["results"][0]["series"].as_array().expect("no points in InfluxDB") {
            let sensor = series["tags"]["sensor_id"].as_str().unwrap();
            for point in series["values"].as_array().unwrap() {
                let found = PerMinute {
                    readings: point[1].as_i64().unwrap(),
                    temperature: point[2].as_f64().unwrap(),
                    ph: point[3].as_f64().unwrap(),
                    least: point[4].as_i64().unwrap() as i32,
                    greatest: point[5].as_i64().unwrap() as i32,
                };
                aggregates.insert((point[0].as_i64().unwrap(), sensor.to_owned()), found);
            }
        }
        let drop = reqwest::Url::parse_with_params(
            &format!("{}/query", self.influx),
            [("q", format!("DROP DATABASE {table}"))],
        );
        reqwest::Client::new().post(drop.unwrap()).send().await.unwrap();
        aggregates
    }
}

/// A message as plain code reads it; `None` for a malformed one.
fn parse(payload: &[u8]) -> Option<(String, i64, f64, f64, i32, i32)> {
    let json: Value = serde_json::from_slice(payload).ok()?;
    let time = chrono::DateTime::parse_from_rfc3339(json["event_time"].as_str()?).ok()?;
    Some((
        json["sensor_id"].as_str()?.to_owned(),
        time.timestamp_micros(),
        json["temperature"].as_f64()?,
        json["ph"].as_f64()?,
        json["battery"].as_i64()? as i32,
        json["signal"].as_i64()? as i32,
    ))
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let hidden = entry.file_name().to_string_lossy().starts_with(['.', '_']);
        match entry.file_type().unwrap().is_dir() {
            _ if hidden => {}
            true => files.extend(files_below(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}

fn base64(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

fn stderr(child: Child) -> String {
    String::from_utf8_lossy(&child.wait_with_output().unwrap().stderr).into_owned()
}
