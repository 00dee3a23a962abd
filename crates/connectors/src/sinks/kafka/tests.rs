//! Against a real broker (those marked so).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use arrow::array::BinaryBuilder;
use arrow::array::{
    ArrayRef, AsArray, BinaryArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::array::{GenericListBuilder, StringBuilder, StructBuilder};
use arrow::datatypes::{DataType, Field, Fields, Int64Type, Schema};
use perennial_core::error::ErrorKind;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Message as _, Offset as At, TopicPartitionList};
use serde_json::json;

use super::*;
use crate::kafka::testing::{is_blocked, settle};
use crate::sinks::testing::{
    all_kinds, batch, context, failing_stream, hanging_stream, numbered, rows_of, server, stream_of,
};

/// Against hanging for ever.
const LIMIT: Duration = Duration::from_secs(60);
/// What the clock of the tests' contexts says.
const NOW_MS: i64 = 1_795_254_263_000;

/// The broker of the tests, and a topic of the test's own.
struct Kafka {
    brokers: String,
    topic: String,
    admin: AdminClient<DefaultClientContext>,
}

impl Kafka {
    async fn with_topic(test: &str, partitions: i32) -> Self {
        let kafka = Self::without_topic(test);
        kafka.create(&kafka.topic, partitions).await;
        kafka
    }

    fn without_topic(test: &str) -> Self {
        let brokers = server("PERENNIAL_TEST_KAFKA");
        let topic = format!("{test}-{}-{}", std::process::id(), chrono::Utc::now().timestamp_micros());
        let admin = ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
        Self { brokers, topic, admin }
    }

    async fn create(&self, topic: &str, partitions: i32) {
        // The records are as old as their timestamps say.
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1)).set("retention.ms", "-1");
        let created = self.admin.create_topics([&new], &AdminOptions::new().operation_timeout(Some(LIMIT))).await;
        created.unwrap().into_iter().for_each(|result| _ = result.unwrap());
    }

    fn settings(&self, more: serde_json::Value) -> KafkaSink {
        let mut all = json!({"brokers": self.brokers, "topic": self.topic});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    /// The query's identity is that of the test, so that tests do not fence each other.
    fn context(&self, rows: &RecordBatch, mode: OutputMode) -> SinkContext {
        SinkContext { query_id: self.topic.clone(), ..context(rows.schema(), mode) }
    }

    fn open(&self, rows: &RecordBatch, more: serde_json::Value) -> Box<dyn Sink> {
        self.settings(more).open(self.context(rows, OutputMode::Append)).unwrap()
    }

    fn reader(&self, topic: &str, isolation: &str) -> BaseConsumer {
        let reader: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", format!("reader-of-{topic}"))
            .set("isolation.level", isolation)
            .set("enable.partition.eof", "true")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .create()
            .unwrap();
        reader
    }

    /// All records that a reader sees when no transaction is open, by partition.
    fn committed(&self, topic: &str) -> BTreeMap<i32, Vec<OwnedMessage>> {
        self.settle(topic);
        self.read(topic, "read_committed")
    }

    /// All records that a reader sees now, by partition.
    fn read(&self, topic: &str, isolation: &str) -> BTreeMap<i32, Vec<OwnedMessage>> {
        let reader = self.reader(topic, isolation);
        let metadata = reader.fetch_metadata(Some(topic), LIMIT).unwrap();
        let mut list = TopicPartitionList::new();
        let mut found = BTreeMap::new();
        for partition in metadata.topics()[0].partitions() {
            list.add_partition_offset(topic, partition.id(), At::Beginning).unwrap();
            found.insert(partition.id(), Vec::new());
        }
        reader.assign(&list).unwrap();
        let (mut left, began) = (found.len(), Instant::now());
        while left > 0 {
            assert!(began.elapsed() < LIMIT, "the reader does not come to an end");
            match reader.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => found.get_mut(&message.partition()).unwrap().push(message.detach()),
                Some(Err(KafkaError::PartitionEOF(_))) => left -= 1,
                Some(Err(error)) => panic!("{error}"),
                None => {}
            }
        }
        found
    }

    /// The `id` of each record that readers of committed ones see, sorted.
    fn ids(&self) -> Vec<i64> {
        let id = |message: OwnedMessage| {
            let row: serde_json::Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
            row["id"].as_i64().unwrap()
        };
        let mut ids: Vec<_> = self.committed(&self.topic).into_values().flatten().map(id).collect();
        ids.sort_unstable();
        ids
    }

    fn settle(&self, topic: &str) {
        settle(&self.brokers, topic);
    }

    fn is_blocked(&self) -> bool {
        is_blocked(&self.brokers, &self.topic)
    }

    /// What ordinary tools see of the ledger.
    fn ledger(&self) -> Option<i64> {
        let group: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", format!("perennial-{}", self.topic))
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, 0);
        match group.committed_offsets(list, LIMIT).unwrap().elements()[0].offset() {
            At::Offset(offset) => Some(offset),
            _ => None,
        }
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LIMIT, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn again(id: u64) -> SinkBatch {
    SinkBatch { again: true, timestamp_ms: NOW_MS - 60_000, ..batch(id) }
}

/// A process of its own that runs [`child`] on a topic; what it prints.
struct Killed {
    process: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Killed {
    fn start(kafka: &Kafka, what: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["sinks::kafka::tests::child", "--exact", "--ignored", "--nocapture"])
            .env("PERENNIAL_TEST_CHILD", format!("{what} {}", kafka.topic))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { process, output }
    }

    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the process ended before it said {word}");
        }
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Not a test: the process that other tests kill. It writes batch 0 with ids 0 to 999 and, as it is told, batch 1 with ids 1000 to
/// 1999 halfway or wholly; transactions time out after a second.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka: run make test"]
async fn child() {
    let Ok(task) = std::env::var("PERENNIAL_TEST_CHILD") else { return };
    let (what, topic) = task.split_once(' ').unwrap();
    let kafka = Kafka { topic: topic.to_owned(), ..Kafka::without_topic("child") };
    let rows = numbered(0, 1000);
    let sink = kafka.open(&rows, json!({"transaction_timeout": "1 second", "key": ["id"]}));
    sink.write(&batch(0), stream_of(vec![rows])).await.unwrap();
    let rows = numbered(1000, 1000);
    match what {
        "whole" => {
            sink.write(&batch(1), stream_of(vec![rows])).await.unwrap();
            println!("written");
            std::future::pending::<()>().await;
        }
        _ => {
            println!("begun");
            sink.write(&batch(1), hanging_stream(vec![rows])).await.unwrap();
        }
    }
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn rows_arrive_once_and_a_repeated_batch_has_no_effect() {
    let kafka = Kafka::with_topic("once", 3).await;
    let rows = numbered(0, 1000);
    let sink = kafka.open(&rows, json!({"key": ["id"]}));
    sink.check().await.unwrap();
    let written = sink.write(&batch(0), stream_of(vec![rows.slice(0, 400), rows.slice(400, 600)])).await.unwrap();
    assert_eq!((written.rows, written.duplicate), (1000, false));
    assert_eq!(kafka.ids(), (0..1000).collect::<Vec<_>>());
    assert_eq!(kafka.ledger(), Some(1));
    sink.check().await.unwrap();

    // Repeated by the same process, and by one that was started anew.
    for sink in [sink, kafka.open(&rows, json!({"key": ["id"]}))] {
        let repeated = sink.write(&again(0), stream_of(vec![rows.slice(400, 600), rows.slice(0, 400)])).await.unwrap();
        assert_eq!((repeated.rows, repeated.bytes, repeated.duplicate), (1000, 0, true));
    }
    assert_eq!(kafka.ids(), (0..1000).collect::<Vec<_>>());

    // The next batch, whose first attempt wrote nothing; and an empty one.
    let sink = kafka.open(&rows, json!({"key": ["id"]}));
    let written = sink.write(&again(1), stream_of(vec![numbered(1000, 10)])).await.unwrap();
    assert_eq!((written.rows, written.duplicate), (10, false));
    let empty = sink.write(&batch(2), stream_of(vec![rows.slice(0, 0)])).await.unwrap();
    assert_eq!(empty, Written::default());
    assert_eq!((kafka.ids(), kafka.ledger()), ((0..1010).collect::<Vec<_>>(), Some(2)));

    let records = kafka.committed(&kafka.topic);
    let bytes: usize =
        records.values().flatten().map(|record| record.payload().unwrap().len() + record.key().unwrap().len()).sum();
    let first = records.values().flatten().find(|record| record.key() == Some(b"7")).unwrap();
    assert_eq!(first.payload(), Some(&br#"{"id":7,"value":3.5}"#[..]));
    assert!(bytes > 1010 * 20 && records.values().all(|records| records.len() > 200), "spread over partitions");
    // Keys go where Kafka's own clients put them.
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &kafka.brokers).set("partitioner", "murmur2").create().unwrap();
    producer.send(BaseRecord::to(&kafka.topic).key("7").payload(r#"{"id":-7}"#)).unwrap();
    producer.flush(LIMIT).unwrap();
    let with_key_7: Vec<_> = kafka
        .committed(&kafka.topic)
        .into_values()
        .map(|records| records.iter().filter(|record| record.key() == Some(b"7")).count())
        .collect();
    assert!(with_key_7.contains(&2), "{with_key_7:?}");
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn a_process_that_is_killed_in_the_middle_leaves_nothing_and_blocks_nobody() {
    let kafka = Kafka::with_topic("killed", 2).await;
    let mut killed = Killed::start(&kafka, "half");
    killed.wait_for("begun");
    eventually("records of the open transaction are there", || kafka.is_blocked()).await;
    killed.kill();

    let rows = numbered(1000, 1000);
    let sink = kafka.open(&rows, json!({"key": ["id"]}));
    let written = sink.write(&again(1), stream_of(vec![rows])).await.unwrap();
    assert_eq!((written.rows, written.duplicate), (1000, false));
    kafka.settle(&kafka.topic);
    assert_eq!(kafka.ids(), (0..2000).collect::<Vec<_>>());
    let all: usize = kafka.read(&kafka.topic, "read_uncommitted").values().map(Vec::len).sum();
    assert!(all > 2000, "the aborted records were there: {all}");
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn a_downtime_longer_than_the_transaction_timeout_loses_and_doubles_nothing() {
    for what in ["half", "whole"] {
        let kafka = Kafka::with_topic(&format!("downtime-{what}"), 2).await;
        let mut killed = Killed::start(&kafka, what);
        if what == "half" {
            killed.wait_for("begun");
            eventually("records of the open transaction are there", || kafka.is_blocked()).await;
        } else {
            killed.wait_for("written");
        }
        killed.kill();
        // Nobody takes over: the brokers end what was left open.
        eventually("the brokers aborted the transaction", || !kafka.is_blocked()).await;
        assert_eq!(kafka.ids().len(), if what == "half" { 1000 } else { 2000 });
        let rows = numbered(1000, 1000);
        let sink = kafka.open(&rows, json!({"key": ["id"]}));
        let written = sink.write(&again(1), stream_of(vec![rows])).await.unwrap();
        assert_eq!((written.rows, written.duplicate), (1000, what == "whole"));
        assert_eq!(kafka.ids(), (0..2000).collect::<Vec<_>>(), "{what}");
    }
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn a_batch_that_fails_or_is_given_up_is_aborted_at_once() {
    let kafka = Kafka::with_topic("aborted", 2).await;
    let rows = numbered(0, 1000);
    let sink = kafka.open(&rows, json!({}));
    let error = sink.write(&batch(0), failing_stream(vec![rows.clone()])).await.unwrap_err();
    assert!(error.to_string().contains("the source went away"), "{error}");
    kafka.settle(&kafka.topic);
    let hung = again(0);
    let waiting = sink.write(&hung, hanging_stream(vec![rows.clone()]));
    tokio::select! {
        _ = waiting => panic!("the stream has no end"),
        () = eventually("records are there", || kafka.is_blocked()) => {}
    }
    eventually("the transaction is over", || !kafka.is_blocked()).await;
    assert!(kafka.ids().is_empty());
    sink.write(&again(0), stream_of(vec![rows])).await.unwrap();
    assert_eq!(kafka.ids(), (0..1000).collect::<Vec<_>>());
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn a_later_writer_fences_the_one_before() {
    let kafka = Kafka::with_topic("fenced", 1).await;
    let rows = numbered(0, 100);
    let first = kafka.open(&rows, json!({}));
    first.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap();
    let second = kafka.open(&rows, json!({}));
    second.write(&SinkBatch { epoch: 2, ..batch(1) }, stream_of(vec![numbered(100, 100)])).await.unwrap();
    // The first wakes up and goes on with the batch that it was at.
    let error = first.write(&batch(1), stream_of(vec![numbered(100, 100)])).await.unwrap_err();
    assert_eq!((error.class(), error.kind()), (class::FENCED, ErrorKind::Fenced), "{error}");
    assert!(error.to_string().contains("another process has taken over this query"), "{error}");
    kafka.settle(&kafka.topic);
    // Should it connect anew, it finds the later epoch in the ledger.
    let error = first.write(&again(1), stream_of(vec![numbered(100, 100)])).await.unwrap_err();
    assert_eq!(error.class(), class::FENCED, "{error}");
    assert!(error.to_string().contains("epoch 2"), "{error}");
    assert_eq!(kafka.ids(), (0..200).collect::<Vec<_>>());

    // In the middle of a batch.
    let first = kafka.open(&rows, json!({}));
    let third = SinkBatch { epoch: 3, ..batch(2) };
    let (sender, receiver) = mpsc::channel(1);
    let slow = futures::stream::unfold(receiver, async |mut rows: mpsc::Receiver<RecordBatch>| {
        rows.recv().await.map(|next| (Ok(next), rows))
    });
    let (written, ()) = tokio::join!(first.write(&third, Box::pin(slow)), async {
        sender.send(numbered(200, 10)).await.unwrap();
        eventually("records are there", || kafka.is_blocked()).await;
        let second = kafka.open(&rows, json!({}));
        let fourth = SinkBatch { epoch: 4, timestamp_ms: NOW_MS, ..again(2) };
        second.write(&fourth, stream_of(vec![numbered(200, 20)])).await.unwrap();
        let _ = sender.send(numbered(210, 10)).await;
        drop(sender);
    });
    assert_eq!(written.unwrap_err().class(), class::FENCED);
    kafka.settle(&kafka.topic);
    assert_eq!(kafka.ids(), (0..220).collect::<Vec<_>>());
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn a_batch_that_takes_longer_than_the_transaction_may_says_so() {
    let kafka = Kafka::with_topic("slow", 1).await;
    let rows = numbered(0, 10);
    let sink = kafka.open(&rows, json!({"transaction_timeout": "1 second"}));
    let slow_batch = batch(0);
    let (sender, receiver) = mpsc::channel(1);
    let slow = futures::stream::unfold(receiver, async |mut rows: mpsc::Receiver<RecordBatch>| {
        rows.recv().await.map(|next| (Ok(next), rows))
    });
    let (written, ()) = tokio::join!(sink.write(&slow_batch, Box::pin(slow)), async {
        sender.send(numbered(0, 10)).await.unwrap();
        eventually("records are there", || kafka.is_blocked()).await;
        eventually("the brokers aborted the transaction", || !kafka.is_blocked()).await;
        let _ = sender.send(numbered(10, 10)).await;
        drop(sender);
    });
    let error = written.unwrap_err();
    assert_eq!(error.class(), class::TIMEOUT, "{error}");
    assert!(error.to_string().contains("took longer than transaction_timeout"), "{error}");
    sink.write(&again(0), stream_of(vec![numbered(0, 20)])).await.unwrap();
    assert_eq!(kafka.ids(), (0..20).collect::<Vec<_>>());
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn a_ledger_that_may_have_been_forgotten_stops_the_query() {
    let kafka = Kafka::with_topic("forgotten", 1).await;
    let rows = numbered(0, 10);
    // Begun two weeks ago: the brokers of the tests keep offsets for one.
    let old = SinkBatch { timestamp_ms: NOW_MS - 14 * 86_400_000, ..again(5) };
    let error = kafka.open(&rows, json!({})).write(&old, stream_of(vec![rows.clone()])).await.unwrap_err();
    assert_eq!(error.class(), class::CHECKPOINT_MISMATCH, "{error}");
    assert!(error.to_string().contains("begun 336 hours ago") && error.to_string().contains("168 hours"), "{error}");
    let left_out = kafka.open(&rows, json!({"lost_ledger": "leave_out"}));
    assert!(left_out.write(&old, stream_of(vec![rows.clone()])).await.unwrap().duplicate);
    assert!(kafka.ids().is_empty());
    // Begun today: an entry would still be there.
    let today = SinkBatch { timestamp_ms: NOW_MS - 86_400_000, ..again(5) };
    let sink = kafka.open(&rows, json!({}));
    assert!(!sink.write(&today, stream_of(vec![rows.clone()])).await.unwrap().duplicate);
    assert!(sink.write(&old, stream_of(vec![rows.clone()])).await.unwrap().duplicate, "now the ledger knows");
    // A checkpoint that was set back.
    let error = sink.write(&batch(5), stream_of(vec![rows.clone()])).await.unwrap_err();
    assert_eq!(error.class(), class::CHECKPOINT_MISMATCH, "{error}");
    assert_eq!(kafka.ids(), (0..10).collect::<Vec<_>>());
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn many_rows_are_written_in_one_transaction() {
    let kafka = Kafka::with_topic("many", 4).await;
    let rows = numbered(0, 1);
    let sink = kafka.open(&rows, json!({"key": ["id"]}));
    sink.write(&batch(0), stream_of(vec![rows])).await.unwrap();
    let blocks: Vec<_> = (0..25).map(|block| numbered(1 + block * 4_000, 4_000)).collect();
    let began = Instant::now();
    let written = sink.write(&batch(1), stream_of(blocks)).await.unwrap();
    println!("100,000 rows, {} bytes in {:?}", written.bytes, began.elapsed());
    assert_eq!(written.rows, 100_000);
    assert_eq!(kafka.ids(), (0..100_001).collect::<Vec<_>>());
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn columns_are_the_parts_of_records() {
    let kafka = Kafka::with_topic("parts", 3).await;
    let other = format!("{}-other", kafka.topic);
    kafka.create(&other, 1).await;
    let parts =
        Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Binary, true)]);
    let mut headers = GenericListBuilder::<i32, _>::new(StructBuilder::from_fields(parts, 0));
    let header = headers.values();
    header.field_builder::<StringBuilder>(0).unwrap().append_value("trace");
    header.field_builder::<BinaryBuilder>(1).unwrap().append_value(b"\x01");
    header.append(true);
    header.field_builder::<StringBuilder>(0).unwrap().append_value("none");
    header.field_builder::<BinaryBuilder>(1).unwrap().append_null();
    header.append(true);
    headers.append(true);
    headers.append(false);
    headers.append(true);
    let topics = vec![Some(kafka.topic.as_str()), Some(other.as_str()), Some(kafka.topic.as_str())];
    let at = vec![Some(1_000_000_000), None, Some(2_000_000_000)];
    let rows = rows_of([
        ("key", Arc::new(StringArray::from(vec![Some("k"), None, Some("")])) as ArrayRef),
        ("value", Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), Some(b"plain"), None])) as _),
        ("topic", Arc::new(StringArray::from(topics)) as _),
        ("partition", Arc::new(Int32Array::from(vec![Some(2), None, Some(1)])) as _),
        ("headers", Arc::new(headers.finish()) as _),
        ("at", Arc::new(TimestampMicrosecondArray::from(at).with_timezone("UTC")) as _),
    ]);
    let more = json!({"format": "columns", "topic": null, "ledger_topic": kafka.topic, "timestamp": "at"});
    let sink = kafka.open(&rows, more.clone());
    sink.check().await.unwrap();
    let written = sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap();
    assert_eq!((written.rows, written.bytes), (3, 8));
    let found = kafka.committed(&kafka.topic);
    let [first] = found[&2].as_slice() else { panic!("{found:?}") };
    assert_eq!((first.key(), first.payload()), (Some(&b"k"[..]), Some(&b"\x00\xff"[..])));
    assert_eq!(first.timestamp().to_millis(), Some(1_000_000));
    let headers: Vec<_> = first.headers().unwrap().iter().map(|header| (header.key, header.value)).collect();
    assert_eq!(headers, [("trace", Some(&b"\x01"[..])), ("none", None)]);
    let [gone] = found[&1].as_slice() else { panic!("{found:?}") };
    assert_eq!((gone.key(), gone.payload(), gone.timestamp().to_millis()), (Some(&b""[..]), None, Some(2_000_000)));
    let elsewhere = kafka.committed(&other);
    assert_eq!((elsewhere[&0][0].key(), elsewhere[&0][0].payload()), (None, Some(&b"plain"[..])));

    // The setting goes before the column; a row without a topic is an error that leaves nothing.
    let fixed = json!({"format": "columns", "timestamp": "at"});
    kafka.open(&rows, fixed).write(&batch(1), stream_of(vec![rows.clone()])).await.unwrap();
    assert_eq!(kafka.committed(&other)[&0].len(), 1);
    let mut columns = rows.columns().to_vec();
    columns[2] = Arc::new(StringArray::from(vec![Some(kafka.topic.as_str()), None, None]));
    let without = RecordBatch::try_new(rows.schema(), columns).unwrap();
    let sink = kafka.open(&rows, more);
    let error = sink.write(&batch(2), stream_of(vec![without])).await.unwrap_err();
    assert_eq!(error.class(), class::CONSTRAINT_VIOLATION);
    assert!(error.to_string().contains("row 1 of the batch has NULL in `topic`"), "{error}");
    assert_eq!(kafka.committed(&kafka.topic).values().map(Vec::len).sum::<usize>(), 5);
    kafka.settle(&kafka.topic);
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn updates_are_records_with_a_key_and_missing_topics_are_made_when_told() {
    let kafka = Kafka::without_topic("updates");
    let rows = rows_of([
        ("sensor", Arc::new(StringArray::from(vec![Some("a"), Some("b"), Some("a")])) as ArrayRef),
        ("minute", Arc::new(TimestampMicrosecondArray::from(vec![0, 0, 0]).with_timezone("UTC")) as _),
        ("n", Arc::new(Int64Array::from(vec![1, 2, 3])) as _),
    ]);
    let open = |more: serde_json::Value| {
        let sink = kafka.settings(more).open(kafka.context(&rows, OutputMode::Update));
        sink.unwrap()
    };
    let error = open(json!({"key": ["sensor", "minute"]})).check().await.unwrap_err();
    assert_eq!(error.class(), class::TARGET_MISSING, "{error}");
    let error = open(json!({"key": ["sensor", "minute"]})).write(&batch(0), stream_of(vec![])).await.unwrap_err();
    assert_eq!(error.class(), class::TARGET_MISSING, "{error}");
    let sink = open(json!({"key": ["sensor", "minute"], "create_partitions": 2}));
    sink.check().await.unwrap();
    sink.write(&again(0), stream_of(vec![rows.clone()])).await.unwrap();
    let mut last = BTreeMap::new();
    for record in kafka.committed(&kafka.topic).into_values().flatten() {
        let row: serde_json::Value = serde_json::from_slice(record.payload().unwrap()).unwrap();
        last.insert(String::from_utf8(record.key().unwrap().to_vec()).unwrap(), row["n"].as_i64().unwrap());
    }
    let key = |sensor| format!(r#"{{"sensor":"{sensor}","minute":"1970-01-01T00:00:00.000Z"}}"#);
    assert_eq!(last, BTreeMap::from([(key("a"), 3), (key("b"), 2)]), "the last of a key counts");

    let mut columns = rows.columns().to_vec();
    columns[0] = Arc::new(StringArray::from(vec![Some("a"), None, None]));
    let nulls = RecordBatch::try_new(rows.schema(), columns).unwrap();
    let error = sink.write(&batch(1), stream_of(vec![rows.clone(), nulls])).await.unwrap_err();
    assert_eq!(error.class(), class::CONSTRAINT_VIOLATION);
    assert!(error.to_string().contains("row 4 of the batch has NULL in `sensor`"), "{error}");
    kafka.settle(&kafka.topic);
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn what_goes_wrong_is_named() {
    let kafka = Kafka::with_topic("wrong", 1).await;
    let rows = rows_of([("s", Arc::new(StringArray::from(vec!["x".repeat(2 << 20)])) as ArrayRef)]);
    // Bigger than a record may be.
    let error = kafka.open(&rows, json!({})).write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap_err();
    assert_eq!(error.class(), class::SINK_REJECTED, "{error}");
    kafka.settle(&kafka.topic);
    // Longer than the brokers allow.
    let long = kafka.open(&rows, json!({"transaction_timeout": "1 hour"}));
    let error = long.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap_err();
    assert_eq!(error.class(), class::CONFIG_INVALID, "{error}");
    assert!(error.to_string().contains("transaction.max.timeout.ms"), "{error}");
    // TLS and SASL.
    let tls = |password: &str| {
        let properties = json!({
            "security.protocol": "SASL_SSL", "ssl.ca.location": server("PERENNIAL_TEST_CA"), "sasl.mechanism": "PLAIN",
            "sasl.username": "perennial", "sasl.password": password,
        });
        kafka.open(&rows, json!({"brokers": server("PERENNIAL_TEST_KAFKA_SASL_SSL"), "properties": properties}))
    };
    let error = tls("wrong").check().await.unwrap_err();
    assert_eq!(error.class(), class::AUTHENTICATION_FAILED, "{error}");
    let small = RecordBatch::try_new(rows.schema(), vec![Arc::new(StringArray::from(vec!["small"]))]).unwrap();
    let sink = tls("perennial");
    sink.check().await.unwrap();
    sink.write(&batch(0), stream_of(vec![small])).await.unwrap();
    assert_eq!(kafka.committed(&kafka.topic)[&0].len(), 1);
}

#[tokio::test]
async fn brokers_that_are_away_are_noticed_at_once() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let rows = numbered(0, 1);
    let sink = KafkaSink::new(address.to_string(), "t").open(context(rows.schema(), OutputMode::Append)).unwrap();
    let began = Instant::now();
    for error in
        [sink.check().await.unwrap_err(), sink.write(&batch(0), stream_of(vec![rows.clone()])).await.unwrap_err()]
    {
        assert_eq!(error.class(), class::CONNECTION_REFUSED, "{error}");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let rows = all_kinds();
    let refused = |more: serde_json::Value, schema: &Schema, mode: OutputMode| {
        let mut all = json!({"brokers": "b:9092", "topic": "t"});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let settings: KafkaSink = serde_json::from_value(all).unwrap();
        let Err(error) = settings.open(context(Arc::new(schema.clone()), mode)) else { panic!("{more}") };
        assert_eq!(error.class(), class::CONFIG_INVALID, "{error}");
        error.to_string()
    };
    let schema = rows.schema();
    for (more, part) in [
        (json!({"brokers": " "}), "brokers is empty"),
        (json!({"topic": null}), "topic is missing"),
        (json!({"topic": "a b"}), "`a b` is not the name of a topic"),
        (json!({"key": ["nothing"]}), "key names `nothing`, which the query does not give"),
        (json!({"timestamp": "id"}), "`id`, which is no TIMESTAMP"),
        (json!({"create_partitions": 0}), "at least 1"),
        (json!({"transaction_timeout": "10 ms"}), "at least 1 second"),
        (json!({"format": "columns"}), "needs a column `value`"),
        (json!({"properties": {"transactional.id": "x"}}), "transactional.id cannot be set"),
        (json!({"properties": {"compression.type": "zstd"}}), "set compression instead"),
        (json!({"properties": {"acks": "sometimes"}}), "acks"),
    ] {
        let error = refused(more, &schema, OutputMode::Append);
        assert!(error.contains(part) && error.contains("kafka sink"), "{error}");
    }
    assert!(refused(json!({}), &schema, OutputMode::Complete).contains("output_mode: update with `key`"));
    assert!(refused(json!({}), &schema, OutputMode::Update).contains("needs `key`"));
    let parts = |fields: Vec<(&str, DataType)>| {
        Schema::new(fields.into_iter().map(|(name, t)| Field::new(name, t, true)).collect::<Vec<_>>())
    };
    let columns = json!({"format": "columns"});
    for (fields, part) in [
        (vec![("value", DataType::Int64)], "it must be STRING or BINARY"),
        (vec![("value", DataType::Utf8), ("rest", DataType::Utf8)], "column `rest` has no place in a record"),
        (vec![("value", DataType::Utf8), ("headers", DataType::Utf8)], "ARRAY<STRUCT<key STRING, value BINARY>>"),
    ] {
        let error = refused(columns.clone(), &parts(fields), OutputMode::Append);
        assert!(error.contains(part), "{error}");
    }
    let value = parts(vec![("value", DataType::Utf8)]);
    assert!(refused(columns, &value, OutputMode::Update).contains("needs a column `key`"));
    let routed = json!({"format": "columns", "topic": null});
    assert!(refused(routed.clone(), &value, OutputMode::Append).contains("ledger_topic is needed"));
    let routed = json!({"format": "columns", "topic": null, "ledger_topic": "l"});
    assert!(refused(routed, &value, OutputMode::Append).contains("no topic"));
}

#[test]
fn all_types_have_a_form_in_json_and_as_key() {
    let rows = all_kinds();
    let key = vec!["d".to_owned()];
    let settings = KafkaSink { key, ..KafkaSink::new("b", "t") };
    let layout = Layout::new(&settings, &context(rows.schema(), OutputMode::Append)).unwrap();
    let records = layout.records(&rows, 0).unwrap();
    assert_eq!(records.key(1), Some(&b"0.000005"[..]));
    assert_eq!(records.key(2), None, "NULL is no key");
    let row: serde_json::Value = serde_json::from_slice(records.value(0).unwrap()).unwrap();
    assert_eq!(row["at"], "2026-11-21T09:44:23.120Z");
    assert_eq!(row["small"], 12.30);
    assert_eq!(row["list"], json!([1, null]));
    let ids = rows["id"].as_primitive::<Int64Type>();
    assert_eq!(row["id"], ids.value(0));
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(records.value(2).unwrap()).unwrap(),
        json!({"id": 3, "nested": {"s": "y"}})
    );
}
