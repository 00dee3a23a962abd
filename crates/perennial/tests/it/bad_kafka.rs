//! Kafka that is not there, refuses or lacks the topic: the job says so, waits, and reads everything when it is mended.

use std::net::{SocketAddr, TcpListener, TcpStream};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::support::{Home, Running, code, server, stdout};

const RECORDS: u64 = 500;
const PARTITIONS: i32 = 2;

struct Topic {
    brokers: String,
    name: String,
}

impl Topic {
    fn new(subject: &str) -> Self {
        let name = format!("{subject}-{}-{}", std::process::id(), rand::random::<u32>());
        Self { brokers: server("PERENNIAL_TEST_KAFKA"), name }
    }

    /// Makes the topic, with a record for each number in it.
    fn create(&self) {
        self.create_with(|n| format!("{{\"id\": {n}}}"));
    }

    /// Makes the topic, with these records in it, the even ones in partition 0 and the odd ones in partition 1.
    fn create_with(&self, record: impl Fn(u64) -> String) {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.brokers);
        let admin: AdminClient<DefaultClientContext> = client.create().unwrap();
        let topic = NewTopic::new(&self.name, PARTITIONS, TopicReplication::Fixed(1));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for result in runtime.block_on(admin.create_topics([&topic], &AdminOptions::new())).unwrap() {
            result.unwrap();
        }
        let producer: BaseProducer = client.create().unwrap();
        for n in 0..RECORDS {
            let payload = record(n);
            let record = BaseRecord::<(), _>::to(&self.name).partition(n as i32 % PARTITIONS).payload(&payload);
            producer.send(record).unwrap();
        }
        producer.flush(std::time::Duration::from_secs(30)).unwrap();
    }

    fn job(&self, brokers: &str, properties: &str) -> String {
        format!(
            "\
name: copy
sources:
  input:
    kafka: {{ brokers: \"{brokers}\", topic: {}, starting_offsets: earliest, timeout: 5s, properties: {{ {properties} }} }}
    format: json
    schema: id BIGINT
queries:
  q:
    sql: SELECT id FROM input
    sink: {{ files: {{ path: out, format: json }} }}
checkpoint: checkpoint
dead_letters: {{ path: dlq }}
retry: {{ initial: 10ms, max: 20ms }}
circuit_breaker: {{ open_for: 20ms }}
http: {{ enabled: false }}
",
            self.name
        )
    }
}

/// Lets the job run until it has read everything, ends it in order and looks at what it wrote.
fn assert_reads_everything(home: &Home, mut job: Running) {
    let mut read = 0;
    while read < RECORDS {
        let line = job.wait_for_text("batch committed");
        read += line.split_once("read=").unwrap().1.split(' ').next().unwrap().parse::<u64>().unwrap();
    }
    job.signal("TERM");
    let (code, log) = job.end();
    assert_eq!(code, 0, "{log}");
    assert_eq!(home.results("id"), (0..RECORDS).collect::<Vec<_>>());
}

#[test]
#[ignore = "needs Kafka: run make test"]
fn a_topic_that_does_not_exist_is_named_and_waited_for() {
    let topic = Topic::new("missing");
    let home = Home::new(&topic.job(&topic.brokers, ""));
    let check = home.command(&["check", "job.yaml"]).output().unwrap();
    assert_eq!(code(&check), 1);
    assert!(stdout(&check).contains(&topic.name) && stdout(&check).contains("(TargetMissing)"), "{}", stdout(&check));

    let mut job = Running::start(home.command(&["run", "job.yaml"]));
    for _ in 0..2 {
        let said = job.wait_for_text("TargetMissing");
        assert!(said.contains(&topic.name) && said.contains(&topic.brokers), "{said}");
        assert!(said.contains("Create it, or correct its name in the job file"), "{said}");
    }
    topic.create();
    assert_reads_everything(&home, job);
}

#[test]
#[ignore = "needs Kafka: run make test"]
fn wrong_credentials_are_told_without_showing_them() {
    let topic = Topic::new("credentials");
    topic.create();
    let address = server("PERENNIAL_TEST_KAFKA_SASL_SSL");
    let properties = |password: &str| {
        format!(
            "security.protocol: SASL_SSL, sasl.mechanism: PLAIN, sasl.username: perennial, sasl.password: {password}, \
             ssl.ca.location: \"{}\"",
            server("PERENNIAL_TEST_CA")
        )
    };
    let home = Home::new(&topic.job(&address, &properties("hunter2")));
    let check = home.command(&["check", "job.yaml"]).output().unwrap();
    assert_eq!(code(&check), 1);
    for part in [&address, "check `sasl.mechanism`, `sasl.username` and `sasl.password`", "(AuthenticationFailed)"] {
        assert!(stdout(&check).contains(part), "{part}: {}", stdout(&check));
    }
    let mut job = Running::start(home.command(&["run", "job.yaml"]));
    for _ in 0..2 {
        let said = job.wait_for_text("AuthenticationFailed");
        assert!(said.contains("Check the credentials"), "{said}");
    }
    job.signal("TERM");
    let (end, log) = job.end();
    assert_eq!(end, 0, "asked to stop while it waits: {log}");
    assert!(!log.contains("hunter2") && !stdout(&check).contains("hunter2"), "{log}");

    home.write_job(&topic.job(&address, &properties("perennial")));
    assert_reads_everything(&home, Running::start(home.command(&["run", "job.yaml"])));
}

#[test]
#[ignore = "needs Kafka: run make test"]
fn a_broker_that_is_not_there_is_waited_for() {
    let topic = Topic::new("absent");
    topic.create();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = Home::new(&topic.job(&free.to_string(), ""));
    let mut job = Running::start(home.command(&["run", "job.yaml"]));
    for _ in 0..2 {
        let said = job.wait_for_text("ConnectionRefused");
        assert!(said.contains(&free.to_string()), "{said}");
        assert!(said.contains("Check that the server runs and that address and port are right"), "{said}");
    }
    forward(free, topic.brokers.clone());
    assert_reads_everything(&home, job);
}

/// Makes a server answer at another address, too.
fn forward(from: SocketAddr, to: String) {
    let listener = TcpListener::bind(from).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut there, mut back) = (stream.unwrap(), TcpStream::connect(&to).unwrap());
            let (mut from_there, mut from_back) = (there.try_clone().unwrap(), back.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from_there, &mut back));
            std::thread::spawn(move || std::io::copy(&mut from_back, &mut there));
        }
    });
}

/// Two partitions with events, one ahead of the other, read in several batches.
#[test]
#[ignore = "needs Kafka: run make test"]
fn a_partition_that_is_behind_is_not_late_with_watermarks_per_partition() {
    let topic = Topic::new("behind");
    // Partition 0 has twice the time between its records.
    topic.create_with(|n| {
        let seconds = if n % 2 == 0 { n * 20 } else { n * 10 };
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        format!("{{\"id\": {n}, \"at\": \"2026-01-01T{hour:02}:{minute:02}:{second:02}Z\"}}")
    });
    let counted = |watermark: &str| {
        let home = Home::new(&format!(
            "\
name: behind
sources:
  input:
    kafka: {{ brokers: \"{}\", topic: {}, starting_offsets: earliest, max_records_per_batch: 50 }}
    format: json
    schema: id BIGINT, at TIMESTAMP
    watermark: {{ column: at, delay: 0s{watermark} }}
queries:
  q:
    sql: SELECT window.start, count(CASE WHEN id % 2 = 1 THEN 1 END) AS n FROM input GROUP BY window(at, '1 minute')
    sink: {{ files: {{ path: out, format: json }} }}
checkpoint: checkpoint
http: {{ enabled: false }}
",
            topic.brokers, topic.name
        ));
        let ran = home.run();
        assert_eq!(code(&ran), 0, "{}", crate::support::stderr(&ran));
        home.results("n").iter().sum::<u64>()
    };
    let behind = RECORDS / u64::from(PARTITIONS.unsigned_abs());
    let (apart, together) = (counted(", per_partition: true, idle_after: 1 minute"), counted(""));
    // Only the last minutes are still open at the end.
    assert!(apart > behind - 30 && together < behind / 2, "{apart} and {together} of {behind}");
}
