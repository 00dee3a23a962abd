//! Against a real broker (those marked so), librdkafka's mock brokers, and hand-made ones that behave badly.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use arrow::array::Array;
use perennial_core::config::HumanDuration;
use perennial_core::records::{Input, Payload, Position, RecordBlock};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset as At, TopicPartitionList};

use super::*;
use crate::kafka::testing::settle;
use crate::simulate::{Generator, Progress, Rate, Recipe, Run, Target, produce};
use crate::sources::testing::{World, collect, try_collect};

/// Against hanging for ever.
const LIMIT: Duration = Duration::from_secs(60);

/// The broker of the tests, and a topic of the test's own.
struct Kafka {
    brokers: String,
    topic: String,
    admin: AdminClient<DefaultClientContext>,
    producer: BaseProducer,
}

impl Kafka {
    async fn with_topic(test: &str, partitions: i32) -> Self {
        Self::with_config(test, partitions, &[]).await
    }

    async fn with_config(test: &str, partitions: i32, config: &[(&str, &str)]) -> Self {
        let brokers = std::env::var("PERENNIAL_TEST_KAFKA")
            .expect("PERENNIAL_TEST_KAFKA names the broker of the tests (scripts/services starts one)");
        let topic = format!("{test}-{}-{}", std::process::id(), chrono::Utc::now().timestamp_micros());
        let kafka = Self::over(brokers, topic);
        kafka.create(partitions, config).await;
        kafka
    }

    fn over(brokers: String, topic: String) -> Self {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &brokers);
        let admin = client.create().unwrap();
        // Small batches, so that a partition has several.
        client.set("linger.ms", "5").set("batch.num.messages", "1000").set("partitioner", "murmur2_random");
        Self { admin, producer: client.create().unwrap(), brokers, topic }
    }

    async fn create(&self, partitions: i32, config: &[(&str, &str)]) {
        let mut topic = NewTopic::new(&self.topic, partitions, TopicReplication::Fixed(1));
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(LIMIT));
        let created = self.admin.create_topics([&topic], &options).await.unwrap();
        created.into_iter().for_each(|result| _ = result.unwrap());
        eventually("the topic is there", async || self.partitions() == partitions as usize).await;
    }

    fn partitions(&self) -> usize {
        let metadata = self.producer.client().fetch_metadata(None, LIMIT).unwrap();
        let ready = |topic: &rdkafka::metadata::MetadataTopic| {
            topic.partitions().iter().filter(|p| p.error().is_none() && p.leader() >= 0).count()
        };
        metadata.topics().iter().find(|topic| topic.name() == self.topic).map_or(0, ready)
    }

    async fn delete(&self) {
        let deleted = self.admin.delete_topics(&[&self.topic], &AdminOptions::new()).await.unwrap();
        deleted.into_iter().for_each(|result| _ = result.unwrap());
        eventually("the topic is gone", async || self.partitions() == 0).await;
    }

    /// Sends `count` records `<partition>:<number>` to a partition, numbered from `first` on.
    fn send(&self, partition: i32, first: usize, count: usize) {
        send(&self.producer, &self.topic, partition, first, count);
        self.producer.flush(LIMIT).unwrap();
    }

    /// Deletes the records of a partition before an offset.
    async fn delete_records(&self, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, partition, At::Offset(before)).unwrap();
        self.admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
    }

    fn settings(&self) -> KafkaSource {
        KafkaSource { starting_offsets: StartingOffsets::Earliest, ..KafkaSource::new(&self.brokers, &self.topic) }
    }

    fn offset(&self, offsets: &[(i32, i64)]) -> Offset {
        let mut all = Offsets::default();
        offsets.iter().for_each(|(partition, offset)| all.set(&self.topic, *partition, *offset));
        all.encode().unwrap()
    }
}

fn send(producer: &BaseProducer, topic: &str, partition: i32, first: usize, count: usize) {
    for number in first..first + count {
        let value = format!("{partition}:{number}");
        let key = format!("key-{number}");
        let mut record = BaseRecord::to(topic).partition(partition).key(&key).payload(&value);
        while let Err((_, returned)) = producer.send(record) {
            record = returned;
            producer.poll(Duration::from_millis(10));
        }
    }
}

async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < LIMIT, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn open(world: &World, settings: &KafkaSource) -> Box<dyn Source> {
    settings.open(world.context()).unwrap()
}

async fn latest(source: &dyn Source, start: Option<&Offset>) -> Option<Offset> {
    source.latest(start, &ReadLimit::default()).await.unwrap()
}

/// Partition, offset and value of each record, in order.
fn records(inputs: &[Input]) -> Vec<(i32, i64, String)> {
    let mut records = Vec::new();
    for input in inputs {
        let Input::Records(RecordBlock {
            payload: Payload::Values(values),
            position: Position::Kafka { partition, offsets, timestamps, keys, .. },
        }) = input
        else {
            panic!("not a block of Kafka records: {input:?}");
        };
        assert_eq!((values.len(), values.len()), (offsets.len(), timestamps.len()));
        assert_eq!(values.len(), keys.len());
        assert!(offsets.windows(2).all(|pair| pair[0] < pair[1]));
        for at in 0..values.len() {
            let value =
                if values.is_null(at) { "null".into() } else { String::from_utf8(values.value(at).to_vec()).unwrap() };
            records.push((*partition, offsets[at], value));
        }
    }
    records.sort();
    records
}

/// The records that `send` made, where record `n` has offset `n`.
fn sent(partition: i32, range: std::ops::Range<usize>) -> impl Iterator<Item = (i32, i64, String)> {
    range.map(move |number| (partition, number as i64, format!("{partition}:{number}")))
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn ranges_are_read_exactly_and_again_after_a_restart() {
    let kafka = Kafka::with_topic("ranges", 3).await;
    kafka.send(0, 0, 5000);
    kafka.send(1, 0, 10);
    let world = World::new();
    let source = open(&world, &kafka.settings());
    source.check().await.unwrap();
    let first = latest(&*source, None).await.unwrap();
    assert_eq!(first, kafka.offset(&[(0, 5000), (1, 10), (2, 0)]));
    let log = world.log().read("0").await.unwrap().unwrap();
    assert_eq!(log, format!("\0v1\n{{\"{}\":{{\"0\":0,\"1\":0,\"2\":0}}}}", kafka.topic).as_bytes());
    let expected: Vec<_> = sent(0, 0..5000).chain(sent(1, 0..10)).collect();
    for parallelism in [1, 2, 8] {
        assert_eq!(records(&collect(&*source, None, &first, parallelism).await), expected);
    }
    assert_eq!(latest(&*source, Some(&first)).await, Some(first.clone()), "nothing new");

    kafka.send(0, 5000, 3000);
    kafka.send(2, 0, 7);
    let second = latest(&*source, Some(&first)).await.unwrap();
    let new: Vec<_> = sent(0, 5000..8000).chain(sent(2, 0..7)).collect();
    assert_eq!(records(&collect(&*source, Some(&first), &second, 2).await), new);

    let again = open(&world, &kafka.settings());
    assert_eq!(records(&collect(&*again, None, &first, 2).await), expected, "the first batch, from the logged start");
    assert_eq!(records(&collect(&*again, Some(&first), &second, 2).await), new);
    let some = (kafka.offset(&[(0, 100), (1, 3), (2, 7)]), kafka.offset(&[(0, 200), (1, 4), (2, 7)]));
    let expected: Vec<_> = sent(0, 100..200).chain(sent(1, 3..4)).collect();
    assert_eq!(records(&collect(&*again, Some(&some.0), &some.1, 2).await), expected);
    assert!(again.read(&OffsetRange { start: Some(second.clone()), end: second }, 2).await.unwrap().is_empty());
    let lag = again.lag(Some(&first)).await.unwrap().unwrap();
    assert_eq!(lag.records, Some(3007));
    assert_eq!(lag.partitions[0], (format!("{}-0", kafka.topic), 3000));
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn many_small_batches_follow_each_other_without_a_gap() {
    let kafka = Kafka::with_topic("batches", 4).await;
    for partition in 0..4 {
        kafka.send(partition, 0, 500 + partition as usize * 300);
    }
    let world = World::new();
    let settings = KafkaSource { max_records_per_batch: Some(170), ..kafka.settings() };
    let source = open(&world, &settings);
    let (mut start, mut all) = (None, Vec::new());
    loop {
        let end = latest(&*source, start.as_ref()).await;
        if end == start {
            break;
        }
        let batch = records(&collect(&*source, start.as_ref(), end.as_ref().unwrap(), 2).await);
        assert!((1..=170).contains(&batch.len()), "{}", batch.len());
        all.extend(batch);
        start = end;
    }
    all.sort();
    let expected: Vec<_> = (0..4).flat_map(|p| sent(p, 0..500 + p as usize * 300)).collect();
    assert_eq!(all, expected);
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn limits_bound_a_batch() {
    let kafka = Kafka::with_topic("limits", 2).await;
    kafka.send(0, 0, 300);
    kafka.send(1, 0, 100);
    let world = World::new();
    let source = open(&world, &KafkaSource { max_records_per_batch: Some(40), ..kafka.settings() });
    assert_eq!(latest(&*source, None).await, Some(kafka.offset(&[(0, 30), (1, 10)])));
    let one = ReadLimit { max_records: Some(1), until: None };
    assert_eq!(source.latest(None, &one).await.unwrap(), Some(kafka.offset(&[(0, 1), (1, 0)])));
    let until = source.newest(None, &ReadLimit::default()).await.unwrap().unwrap();
    assert_eq!(until, kafka.offset(&[(0, 300), (1, 100)]));
    kafka.send(0, 300, 50);
    let near = kafka.offset(&[(0, 295), (1, 100)]);
    let limit = ReadLimit { max_records: None, until: Some(until.clone()) };
    assert_eq!(source.latest(Some(&near), &limit).await.unwrap(), Some(until.clone()));
    assert_eq!(source.latest(Some(&until), &limit).await.unwrap(), Some(until));
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn a_query_begins_where_it_is_told() {
    // The records are as old as their timestamps say.
    let kafka = Kafka::with_config("starts", 2, &[("retention.ms", "-1")]).await;
    for partition in 0..2 {
        for number in 0..10_i64 {
            let value = format!("{partition}:{number}");
            let record = BaseRecord::<(), _>::to(&kafka.topic).partition(partition).payload(&value);
            kafka.producer.send(record.timestamp(1_000_000 + number * 1000)).unwrap();
        }
    }
    kafka.producer.flush(LIMIT).unwrap();
    kafka.delete_records(1, 2).await;
    let topic = kafka.topic.clone();
    let by_topic = format!(r#"{{"{topic}": {{"0": 4, "1": -1}}}}"#);
    for (start, expected) in [
        (r#""earliest""#, [(0, 0), (1, 2)]),
        (r#""latest""#, [(0, 10), (1, 10)]),
        ("1004500", [(0, 5), (1, 5)]),
        (r#""1970-01-01T00:16:43Z""#, [(0, 3), (1, 3)]),
        (r#""2100-01-01""#, [(0, 10), (1, 10)]),
        (r#"{"0": 7, "1": 3}"#, [(0, 7), (1, 3)]),
        (r#"{"0": -1, "1": -2}"#, [(0, 10), (1, 2)]),
        (&by_topic, [(0, 4), (1, 10)]),
    ] {
        let world = World::new();
        let settings = KafkaSource { starting_offsets: serde_json::from_str(start).unwrap(), ..kafka.settings() };
        let source = open(&world, &settings);
        latest(&*source, None).await;
        let log = world.log().read("0").await.unwrap().unwrap();
        assert_eq!(parse_log(&log).unwrap().encode().unwrap(), kafka.offset(&expected), "{start}");
    }
    for (start, part) in [
        (r#"{"0": 7}"#, "partition 1 of topic"),
        (r#"{"0": 7, "1": 3, "2": 0}"#, "has no partition 2"),
        (r#"{"0": 11, "1": 3}"#, "ends at offset 10, before 11"),
    ] {
        let settings = KafkaSource { starting_offsets: serde_json::from_str(start).unwrap(), ..kafka.settings() };
        let error = open(&World::new(), &settings).check().await.unwrap_err();
        assert_eq!(error.class(), class::CONFIG_INVALID);
        assert!(error.to_string().contains(part), "{error}");
    }
    // `latest` is fixed by the first look, not by the restart.
    let world = World::new();
    let settings = KafkaSource { starting_offsets: StartingOffsets::Latest, ..kafka.settings() };
    assert_eq!(latest(&*open(&world, &settings), None).await, None);
    kafka.send(0, 10, 3);
    let again = open(&world, &settings);
    let end = latest(&*again, None).await.unwrap();
    assert_eq!(records(&collect(&*again, None, &end, 1).await), sent(0, 10..13).collect::<Vec<_>>());
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn keys_timestamps_and_records_without_a_value_are_delivered() {
    let kafka = Kafka::with_config("values", 1, &[("retention.ms", "-1")]).await;
    let send = |key: Option<&str>, value: Option<&str>, at: i64| {
        let mut record = BaseRecord::<str, str>::to(&kafka.topic).timestamp(at);
        record.key = key;
        record.payload = value;
        kafka.producer.send(record).unwrap();
    };
    send(Some("k"), Some("v"), 1000);
    send(None, Some(""), 2000);
    send(Some("gone"), None, 3000);
    kafka.producer.flush(LIMIT).unwrap();
    let source = open(&World::new(), &kafka.settings());
    let end = latest(&*source, None).await.unwrap();
    let read = collect(&*source, None, &end, 1).await;
    let [Input::Records(block)] = &read[..] else { panic!("one block") };
    let Position::Kafka { keys, timestamps, topic, .. } = &block.position else { panic!("of Kafka") };
    assert_eq!((&**topic, &timestamps[..]), (&*kafka.topic, &[1000, 2000, 3000][..]));
    assert_eq!(keys.iter().collect::<Vec<_>>(), [Some(&b"k"[..]), None, Some(b"gone")]);
    let Payload::Values(values) = &block.payload else { panic!("values") };
    assert_eq!(values.iter().collect::<Vec<_>>(), [Some(&b"v"[..]), Some(b""), None]);
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn transactions_leave_gaps_and_nothing_else() {
    let kafka = Kafka::with_topic("transactions", 2).await;
    let transactional: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &kafka.brokers)
        .set("transactional.id", &kafka.topic)
        .create()
        .unwrap();
    transactional.init_transactions(LIMIT).unwrap();
    let transaction = |first: usize, count: usize, commit: bool| {
        transactional.begin_transaction().unwrap();
        send(&transactional, &kafka.topic, 0, first, count);
        send(&transactional, &kafka.topic, 1, first, count);
        transactional.flush(LIMIT).unwrap();
        if commit {
            transactional.commit_transaction(LIMIT).unwrap()
        } else {
            transactional.abort_transaction(LIMIT).unwrap()
        }
        settle(&kafka.brokers, &kafka.topic);
    };
    let values = |inputs: &[Input]| -> Vec<String> {
        records(inputs).into_iter().filter(|(partition, ..)| *partition == 0).map(|(.., value)| value).collect()
    };
    let numbers = |range: std::ops::Range<usize>| range.map(|n| format!("0:{n}")).collect::<Vec<_>>();
    let world = World::new();
    let source = open(&world, &kafka.settings());

    // The range ends with a marker that is no record.
    transaction(0, 10, true);
    let first = latest(&*source, None).await.unwrap();
    assert_eq!(first, kafka.offset(&[(0, 11), (1, 11)]));
    assert_eq!(values(&collect(&*source, None, &first, 2).await), numbers(0..10));

    // A range of nothing but aborted records and their marker.
    transaction(10, 5, false);
    let second = latest(&*source, Some(&first)).await.unwrap();
    assert_eq!(second, kafka.offset(&[(0, 17), (1, 17)]));
    assert!(collect(&*source, Some(&first), &second, 1).await.is_empty());

    // Aborted ones before and between committed ones, over several batches of the same reader.
    transaction(20, 3, false);
    transaction(30, 4, true);
    transaction(40, 3, false);
    let third = latest(&*source, Some(&second)).await.unwrap();
    transaction(50, 2, true);
    assert_eq!(values(&collect(&*source, Some(&second), &third, 1).await), numbers(30..34));
    let fourth = latest(&*source, Some(&third)).await.unwrap();
    assert_eq!(values(&collect(&*source, Some(&third), &fourth, 1).await), numbers(50..52));
    assert_eq!(
        values(&collect(&*source, None, &fourth, 2).await),
        [numbers(0..10), numbers(30..34), numbers(50..52)].concat()
    );

    // Each offset as the end of a range of its own, so that ends fall on records, on gaps and on markers.
    let mut all = Vec::new();
    for end in 1..=17 {
        let (from, to) = (kafka.offset(&[(0, end - 1), (1, 0)]), kafka.offset(&[(0, end), (1, 0)]));
        all.extend(values(&collect(&*source, Some(&from), &to, 1).await));
    }
    assert_eq!(all, numbers(0..10));

    // An open transaction holds back what is behind it; who reads uncommitted records sees all.
    transactional.begin_transaction().unwrap();
    send(&transactional, &kafka.topic, 0, 60, 3);
    transactional.flush(LIMIT).unwrap();
    kafka.send(0, 70, 1);
    assert_eq!(latest(&*source, Some(&fourth)).await, Some(fourth.clone()));
    let uncommitted = open(&World::new(), &KafkaSource { isolation: Isolation::ReadUncommitted, ..kafka.settings() });
    let end = latest(&*uncommitted, None).await.unwrap();
    let seen = values(&collect(&*uncommitted, None, &end, 1).await);
    assert_eq!(seen.len(), 10 + 5 + 3 + 4 + 3 + 2 + 3 + 1);
    transactional.abort_transaction(LIMIT).unwrap();
    settle(&kafka.brokers, &kafka.topic);
    let fifth = latest(&*source, Some(&fourth)).await.unwrap();
    assert_eq!(values(&collect(&*source, Some(&fourth), &fifth, 1).await), numbers(70..71));
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn compaction_leaves_gaps_and_nothing_else() {
    let config = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("max.compaction.lag.ms", "100"),
        ("delete.retention.ms", "100"),
    ];
    let kafka = Kafka::with_config("compaction", 1, &config).await;
    let put = |key: &str, value: &str| {
        kafka.producer.send(BaseRecord::to(&kafka.topic).partition(0).key(key).payload(value)).unwrap();
        kafka.producer.flush(LIMIT).unwrap();
    };
    for number in 0..20 {
        put("same", &number.to_string());
    }
    put("other", "kept");
    let source = open(&World::new(), &kafka.settings());
    let end = latest(&*source, None).await.unwrap();
    let read = async || records(&collect(&*open(&World::new(), &kafka.settings()), None, &end, 1).await);
    // Only segments that are closed are compacted, and a segment is closed by a record that comes after its time.
    let fillers = std::sync::atomic::AtomicUsize::new(0);
    eventually("the topic is compacted", async || {
        put("filler", &fillers.fetch_add(1, Ordering::Relaxed).to_string());
        read().await.len() < 21
    })
    .await;
    let (left, last) = (read().await, end.decode::<Offsets>().unwrap().get(&kafka.topic, 0).unwrap());
    assert_eq!(left.last(), Some(&(0, last - 1, "kept".to_owned())));
    assert!(left.len() < 21 && left[0].1 > 0, "{left:?}");
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn new_partitions_are_read_from_their_start() {
    let kafka = Kafka::with_topic("partitions", 1).await;
    kafka.send(0, 0, 5);
    let world = World::new();
    let source = open(&world, &KafkaSource { starting_offsets: StartingOffsets::Latest, ..kafka.settings() });
    assert_eq!(latest(&*source, None).await, None);
    kafka.send(0, 5, 2);
    let first = latest(&*source, None).await.unwrap();
    assert_eq!(records(&collect(&*source, None, &first, 1).await), sent(0, 5..7).collect::<Vec<_>>());
    let more = NewPartitions::new(&kafka.topic, 3);
    kafka.admin.create_partitions([&more], &AdminOptions::new()).await.unwrap();
    eventually("the partitions are there", async || kafka.partitions() == 3).await;
    kafka.send(2, 0, 4);
    let second = latest(&*source, Some(&first)).await.unwrap();
    assert_eq!(second, kafka.offset(&[(0, 7), (2, 4)]));
    let expected: Vec<_> = sent(2, 0..4).collect();
    assert_eq!(records(&collect(&*source, Some(&first), &second, 2).await), expected);
    assert_eq!(records(&collect(&*open(&world, &kafka.settings()), Some(&first), &second, 2).await), expected);
    assert_eq!(latest(&*source, Some(&second)).await, Some(second.clone()));
    kafka.send(1, 0, 1);
    assert_eq!(latest(&*source, Some(&second)).await, Some(kafka.offset(&[(0, 7), (1, 1), (2, 4)])));
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn a_pattern_finds_topics_that_come_later() {
    let kafka = Kafka::with_topic("pattern", 1).await;
    kafka.send(0, 0, 3);
    let settings = KafkaSource { topic: None, topic_pattern: Some(format!("{}.*", kafka.topic)), ..kafka.settings() };
    let world = World::new();
    let source = open(&world, &settings);
    let first = latest(&*source, None).await.unwrap();
    assert_eq!(first, kafka.offset(&[(0, 3)]));
    let other = Kafka::over(kafka.brokers.clone(), format!("{}-other", kafka.topic));
    other.create(1, &[]).await;
    other.send(0, 0, 2);
    let second = latest(&*source, Some(&first)).await.unwrap();
    assert_eq!(second.as_str(), format!(r#"{{"{}":{{"0":3}},"{}":{{"0":2}}}}"#, kafka.topic, other.topic));
    assert_eq!(records(&collect(&*source, Some(&first), &second, 1).await), sent(0, 0..2).collect::<Vec<_>>());
    let none = KafkaSource { topic_pattern: Some("no-such-topic-.*".into()), ..settings };
    assert_eq!(latest(&*open(&World::new(), &none), None).await, None);
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn a_topic_that_does_not_exist_is_answered_with_those_that_do() {
    let kafka = Kafka::with_topic("missing", 1).await;
    let misspelt = KafkaSource { topic: Some(kafka.topic.replace("missing", "mising")), ..kafka.settings() };
    let source = open(&World::new(), &misspelt);
    for error in [source.check().await.unwrap_err(), source.latest(None, &ReadLimit::default()).await.unwrap_err()] {
        assert_eq!(error.class(), class::TARGET_MISSING);
        let message = error.to_string();
        assert!(
            message.contains(&format!("did you mean {}?", kafka.topic)) && message.contains(&kafka.brokers),
            "{message}"
        );
    }
    assert_eq!(
        kafka
            .producer
            .client()
            .fetch_metadata(None, LIMIT)
            .unwrap()
            .topics()
            .iter()
            .filter(|t| t.name().starts_with("mising"))
            .count(),
        0,
        "looking does not create it"
    );
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn the_group_shows_how_far_the_query_is() {
    let kafka = Kafka::with_topic("group", 2).await;
    kafka.send(0, 0, 9);
    kafka.send(1, 0, 4);
    let committed = |group: &str| {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &kafka.brokers).set("group.id", group).create().unwrap();
        let mut list = TopicPartitionList::new();
        (0..2).for_each(|partition| _ = list.add_partition(&kafka.topic, partition));
        let committed = consumer.committed_offsets(list, LIMIT).unwrap();
        committed.elements().iter().map(|element| element.offset()).collect::<Vec<_>>()
    };
    let own = format!("{}-group", kafka.topic);
    let world = World::new();
    let source = open(&world, &KafkaSource { group_id: Some(own.clone()), ..kafka.settings() });
    let end = latest(&*source, None).await.unwrap();
    source.acknowledge(&end).await.unwrap();
    eventually("the offsets are committed", async || committed(&own) == [At::Offset(9), At::Offset(4)]).await;

    let mut context = world.context();
    context.job.clone_from(&kafka.topic);
    let source = kafka.settings().open(context).unwrap();
    source.acknowledge(&end).await.unwrap();
    let default = format!("perennial-{}-query-source", kafka.topic);
    eventually("the offsets are committed", async || committed(&default) == [At::Offset(9), At::Offset(4)]).await;

    let none = format!("{}-none", kafka.topic);
    let settings = KafkaSource { group_id: Some(none.clone()), commit_to_group: false, ..kafka.settings() };
    open(&world, &settings).acknowledge(&end).await.unwrap();
    assert_eq!(committed(&none), [At::Invalid, At::Invalid]);
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn records_deleted_by_retention_are_an_error_or_left_out() {
    let kafka = Kafka::with_topic("retention", 2).await;
    kafka.send(0, 0, 100);
    kafka.send(1, 0, 10);
    let strict = open(&World::new(), &kafka.settings());
    let lenient = open(&World::new(), &KafkaSource { fail_on_data_loss: false, ..kafka.settings() });
    let (start, end) = (kafka.offset(&[(0, 20), (1, 0)]), kafka.offset(&[(0, 60), (1, 10)]));
    kafka.delete_records(0, 50).await;

    // Before the batch is planned, and after.
    for error in [
        strict.latest(Some(&start), &ReadLimit::default()).await.unwrap_err(),
        try_collect(&*strict, Some(&start), &end, 2).await.unwrap_err(),
    ] {
        assert_eq!(error.class(), class::DATA_LOSS);
        let message = error.to_string();
        for part in [
            &format!("partition 0 of topic {} begins at offset 50", kafka.topic),
            "up to 20",
            "30 records",
            "fail_on_data_loss",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }
    assert_eq!(latest(&*lenient, Some(&start)).await, Some(kafka.offset(&[(0, 100), (1, 10)])));
    let left: Vec<_> = sent(0, 50..60).chain(sent(1, 0..10)).collect();
    assert_eq!(records(&collect(&*lenient, Some(&start), &end, 2).await), left);
    let limited = ReadLimit { max_records: Some(5), until: None };
    let from = kafka.offset(&[(0, 20), (1, 10)]);
    assert_eq!(lenient.latest(Some(&from), &limited).await.unwrap(), Some(kafka.offset(&[(0, 55), (1, 10)])));

    // All of the range is gone, and the reader that was in the middle of it goes on behind.
    kafka.delete_records(0, 80).await;
    assert_eq!(records(&collect(&*lenient, Some(&start), &end, 2).await), sent(1, 0..10).collect::<Vec<_>>());
    let rest = kafka.offset(&[(0, 100), (1, 10)]);
    assert_eq!(records(&collect(&*lenient, Some(&end), &rest, 2).await), sent(0, 80..100).collect::<Vec<_>>());
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn a_topic_that_was_made_again_is_an_error_or_read_from_its_start() {
    let kafka = Kafka::with_topic("again", 1).await;
    kafka.send(0, 0, 100);
    let strict = open(&World::new(), &kafka.settings());
    let lenient = open(&World::new(), &KafkaSource { fail_on_data_loss: false, ..kafka.settings() });
    let end = latest(&*strict, None).await.unwrap();
    assert_eq!(latest(&*lenient, None).await, Some(end.clone()));
    assert_eq!(records(&collect(&*lenient, None, &end, 1).await).len(), 100);

    kafka.delete().await;
    let error = strict.latest(Some(&end), &ReadLimit::default()).await.unwrap_err();
    assert_eq!(error.class(), class::DATA_LOSS);
    assert!(error.to_string().contains("partition 0 of topic") && error.to_string().contains("is gone"), "{error}");
    let error = try_collect(&*strict, None, &end, 1).await.unwrap_err();
    assert_eq!(error.class(), class::DATA_LOSS, "{error}");
    assert!(collect(&*lenient, None, &end, 1).await.is_empty());

    kafka.create(1, &[]).await;
    kafka.send(0, 0, 30);
    let error = strict.latest(Some(&end), &ReadLimit::default()).await.unwrap_err();
    assert_eq!(error.class(), class::DATA_LOSS);
    assert!(error.to_string().contains("ends at offset 30, but the query has read up to 100"), "{error}");
    let next = latest(&*lenient, Some(&end)).await.unwrap();
    assert_eq!(next, kafka.offset(&[(0, 30)]));
    assert_eq!(records(&collect(&*lenient, Some(&end), &next, 1).await), sent(0, 0..30).collect::<Vec<_>>());
    kafka.send(0, 30, 5);
    let then = latest(&*lenient, Some(&next)).await.unwrap();
    assert_eq!(records(&collect(&*lenient, Some(&next), &then, 1).await), sent(0, 30..35).collect::<Vec<_>>());
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn a_stream_that_is_dropped_does_not_spoil_the_next_batch() {
    let kafka = Kafka::with_topic("dropped", 2).await;
    kafka.send(0, 0, 200_000);
    kafka.send(1, 0, 10);
    let world = World::new();
    let source = open(&world, &kafka.settings());
    let end = latest(&*source, None).await.unwrap();
    let range = OffsetRange { start: None, end: end.clone() };
    let mut streams = source.read(&range, 2).await.unwrap();
    futures::StreamExt::next(&mut streams[0]).await.unwrap().unwrap();
    drop(streams);
    let all = records(&collect(&*source, None, &end, 2).await);
    assert_eq!(all.len(), 200_010);
    assert_eq!(records(&collect(&*source, None, &end, 2).await), all);
}

#[tokio::test]
#[ignore = "needs Kafka: run make test"]
async fn the_producer_sends_what_the_generator_makes() {
    let kafka = Kafka::with_topic("producer", 1).await;
    let topic = format!("{}-made", kafka.topic);
    let target = |create_partitions| {
        let properties = Properties::default();
        KafkaTarget { brokers: kafka.brokers.clone(), topic: topic.clone(), create_partitions, properties }
    };
    let generator =
        Generator::new(Recipe { malformed: 0.02, duplicates: 0.05, keys: 20, ..Recipe::default() }).unwrap();
    let run = Run { generator: generator.clone(), first: 0, records: Some(20_000), rate: Rate::Max };
    let missing =
        produce(run.clone(), Target::Kafka(target(None)), Arc::default(), Default::default()).await.unwrap_err();
    assert_eq!(missing.class(), class::TARGET_MISSING);

    let progress = Arc::new(Progress::default());
    produce(run, Target::Kafka(target(Some(3))), progress.clone(), Default::default()).await.unwrap();
    assert_eq!((progress.messages(), progress.errors()), (20_000, 0));
    let source = open(&World::new(), &KafkaSource { topic: Some(topic.clone()), ..kafka.settings() });
    let end = latest(&*source, None).await.unwrap();
    let (mut read, mut partition_of) = (Vec::new(), BTreeMap::new());
    for input in collect(&*source, None, &end, 2).await {
        let Input::Records(RecordBlock { payload: Payload::Values(values), position }) = input else {
            panic!("records")
        };
        let Position::Kafka { keys, partition, .. } = position else { panic!("of Kafka") };
        for at in 0..values.len() {
            read.push(values.value(at).to_vec());
            let before = partition_of.insert(keys.value(at).to_vec(), partition);
            assert!(before.is_none_or(|before| before == partition), "a key stays in its partition");
        }
    }
    let mut expected: Vec<Vec<u8>> = (0..20_000)
        .map(|number| {
            let mut bytes = Vec::new();
            generator.generate(number, &mut bytes);
            bytes
        })
        .collect();
    read.sort();
    expected.sort();
    assert!(read == expected);
    assert_eq!(partition_of.values().collect::<BTreeSet<_>>().len(), 3);
}

fn impatient(brokers: impl Into<String>) -> KafkaSource {
    KafkaSource {
        timeout: HumanDuration(Duration::from_secs(2)),
        starting_offsets: StartingOffsets::Earliest,
        ..KafkaSource::new(brokers, "topic")
    }
}

async fn check_error(settings: KafkaSource) -> Error {
    let source = open(&World::new(), &settings);
    let result = tokio::time::timeout(LIMIT, source.check()).await.expect("a check ends");
    result.unwrap_err()
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    // The default timeout: that nobody listens is known long before.
    let error = check_error(KafkaSource { timeout: HumanDuration(LIMIT * 10), ..impatient(&free) }).await;
    assert_eq!(error.class(), class::CONNECTION_REFUSED, "{error}");
    assert!(error.to_string().contains(&free), "{error}");

    let error = check_error(impatient("no-such-host.invalid:9092")).await;
    assert_eq!(error.class(), class::NAME_NOT_RESOLVED, "{error}");

    // The source tries again, and fails again, without being made anew.
    let source = open(&World::new(), &impatient(&free));
    for _ in 0..2 {
        let error = source.latest(None, &ReadLimit::default()).await.unwrap_err();
        assert_eq!(error.class(), class::CONNECTION_REFUSED, "{error}");
    }
    source.acknowledge(&Offset::from_json(r#"{"topic":{"0":1}}"#)).await.unwrap();
}

#[tokio::test]
async fn a_broker_that_never_answers_is_a_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Connections are taken by the kernel and stay unanswered while the listener lives.
    let error = check_error(impatient(&address)).await;
    assert_eq!(error.class(), class::TIMEOUT, "{error}");
    assert!(error.to_string().contains(&address), "{error}");
    drop(listener);
}

#[tokio::test]
async fn wrong_credentials_are_an_error_at_once() {
    let address = refusing_broker();
    let properties = Properties::new([
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", "job"),
        ("sasl.password", "hunter2"),
    ]);
    let error =
        check_error(KafkaSource { timeout: HumanDuration(LIMIT * 10), properties, ..impatient(&address) }).await;
    assert_eq!(error.class(), class::AUTHENTICATION_FAILED, "{error}");
    assert!(error.to_string().contains("sasl.password") && !error.to_string().contains("hunter2"), "{error}");
}

#[tokio::test]
async fn another_protocol_than_the_listeners_is_a_tls_error() {
    let address = refusing_broker();
    let properties = Properties::new([("security.protocol", "SSL")]);
    let error = check_error(KafkaSource { properties, ..impatient(&address) }).await;
    assert_eq!(error.class(), class::TLS_FAILED, "{error}");
}

/// A broker that speaks just enough of Kafka's protocol to refuse every password.
fn refusing_broker() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serve = |mut stream: TcpStream| -> std::io::Result<()> {
        loop {
            let mut length = [0; 4];
            stream.read_exact(&mut length)?;
            let length = u32::from_be_bytes(length);
            if length > 1 << 24 {
                return stream.write_all(b"not TLS"); // The length is a part of a TLS greeting.
            }
            let mut request = vec![0; length as usize];
            stream.read_exact(&mut request)?;
            let (api, version) = ([request[0], request[1]], [request[2], request[3]]);
            let mut body: Vec<u8> = match (u16::from_be_bytes(api), u16::from_be_bytes(version)) {
                // ApiVersions: only version 0 is known; SaslHandshake 0..1, SaslAuthenticate 0..1, ApiVersions 0, Metadata 0..4.
                (18, version) => {
                    let error = if version == 0 { [0, 0] } else { [0, 35] };
                    let apis = [[0, 17, 0, 0, 0, 1], [0, 36, 0, 0, 0, 1], [0, 18, 0, 0, 0, 0], [0, 3, 0, 0, 0, 4]];
                    [&error[..], &[0, 0, 0, 4], &apis.concat()].concat()
                }
                (17, _) => [&[0, 0, 0, 0, 0, 1, 0, 5][..], b"PLAIN"].concat(),
                (36, version) => {
                    let message = b"Authentication failed: Invalid username or password";
                    let session = if version == 0 { vec![] } else { vec![0; 8] };
                    [&[0, 58, 0, message.len() as u8][..], message, &[0; 4], &session].concat()
                }
                _ => return Ok(()),
            };
            let mut response = ((body.len() + 4) as u32).to_be_bytes().to_vec();
            response.extend_from_slice(&request[4..8]);
            response.append(&mut body);
            stream.write_all(&response)?;
        }
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

/// librdkafka's own mock of a cluster, in this process.
fn mock() -> (MockCluster<'static, rdkafka::producer::DefaultProducerContext>, Kafka) {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("topic", 2, 1).unwrap();
    let kafka = Kafka::over(cluster.bootstrap_servers(), "topic".into());
    (cluster, kafka)
}

#[tokio::test]
async fn a_broker_that_dies_while_it_is_read_is_an_error_in_bounded_time() {
    let (cluster, kafka) = mock();
    kafka.send(0, 0, 100);
    let source = open(&World::new(), &impatient(&kafka.brokers));
    let end = latest(&*source, None).await.unwrap();
    assert_eq!(records(&collect(&*source, None, &end, 1).await).len(), 100);
    kafka.send(0, 100, 100);
    let next = latest(&*source, Some(&end)).await.unwrap();
    let streams = source.read(&OffsetRange { start: Some(end), end: kafka.offset(&[(0, 200)]) }, 1).await.unwrap();
    drop(streams);
    cluster.broker_down(1).unwrap();
    let read = tokio::time::timeout(LIMIT, try_collect(&*source, None, &next, 1)).await.expect("reading ends");
    let error = read.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    let latest =
        tokio::time::timeout(LIMIT, source.latest(Some(&next), &ReadLimit::default())).await.expect("asking ends");
    assert_eq!(latest.unwrap_err().kind(), ErrorKind::Transient);

    cluster.broker_up(1).unwrap();
    eventually("the source gets over it", async || {
        try_collect(&*source, None, &next, 1).await.is_ok_and(|read| records(&read).len() == 200)
    })
    .await;
}

#[tokio::test]
async fn records_that_never_come_are_an_error_in_bounded_time() {
    let (cluster, kafka) = mock();
    kafka.send(0, 0, 10);
    let settings = impatient(&kafka.brokers);
    let source = open(&World::new(), &settings);
    let end = latest(&*source, None).await.unwrap();
    // Fetches are answered with errors that the client takes for passing ones.
    let not_leader = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
    cluster.request_errors(rdkafka::types::RDKafkaApiKey::Fetch, &[not_leader; 10_000]);
    let read = tokio::time::timeout(LIMIT, try_collect(&*source, None, &end, 1)).await.expect("reading ends");
    let error = read.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(error.to_string().contains("partition 0 of topic topic"), "{error}");
}

/// `PERENNIAL_BENCH_RECORDS` (default 4,000,000) greenhouse records in 4 partitions.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka; a measurement: cargo test --release kafka::tests::speed -- --ignored --nocapture"]
async fn speed() {
    let count: u64 = std::env::var("PERENNIAL_BENCH_RECORDS").map_or(200_000, |count| count.parse().unwrap());
    let kafka = Kafka::with_topic("speed", 4).await;
    let run =
        Run { generator: Generator::new(Recipe::default()).unwrap(), first: 0, records: Some(count), rate: Rate::Max };
    let target = KafkaTarget {
        brokers: kafka.brokers.clone(),
        topic: kafka.topic.clone(),
        create_partitions: None,
        properties: Properties::default(),
    };
    let began = Instant::now();
    produce(run, Target::Kafka(target), Arc::default(), Default::default()).await.unwrap();
    println!("produced {:.2} million records/s", count as f64 / began.elapsed().as_secs_f64() / 1e6);
    for parallelism in [1, 2, 4] {
        let source = open(&World::new(), &kafka.settings());
        let end = latest(&*source, None).await.unwrap();
        for round in ["cold", "warm"] {
            let began = Instant::now();
            let streams = source.read(&OffsetRange { start: None, end: end.clone() }, parallelism).await.unwrap();
            let counts = streams.into_iter().map(|stream| {
                tokio::spawn(futures::TryStreamExt::try_fold(stream, 0_usize, async |sum, input| match input {
                    Input::Records(RecordBlock { payload: Payload::Values(values), .. }) => Ok(sum + values.len()),
                    _ => panic!("values"),
                }))
            });
            let read: usize =
                futures::future::join_all(counts).await.into_iter().map(|sum| sum.unwrap().unwrap()).sum();
            assert_eq!(read as u64, count);
            let seconds = began.elapsed().as_secs_f64();
            println!("{parallelism} streams, {round}: {:.2} million records/s", count as f64 / seconds / 1e6);
        }
    }
    kafka.delete().await;
}
