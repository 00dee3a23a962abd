//! The `kafka` sink: records in topics of Apache Kafka, exactly once.
//!
//! A batch is one transaction of Kafka. Its records and its number are committed together: the number as an offset of a consumer
//! group that nobody consumes with, the **ledger** (group `<id_prefix><query id>`, partition 0 of the sink's topic, offset = number of
//! the next batch). `transactional.id` is the same name, so a new process of the query fences the one before at the brokers and ends
//! what that one left open: `init_transactions` aborts a transaction that was open and waits for one that was being committed. After
//! that the ledger stands still and is read, as a reader of committed offsets does; a batch that runs again and is in it is left out.
//!
//! Why offsets, and not a compacted topic of our own: they need no right to create topics, they are there in every cluster, ordinary
//! tools show them (`kafka-consumer-groups.sh --describe`), and reading one is one request, where a topic has to be read through.
//! Their price is that brokers forget them, `offsets.retention.minutes` (7 days) after the last commit. That is bounded as follows. An
//! entry of a batch is never older than the batch. So where the ledger is empty and the batch is younger than the retention, there
//! never was an entry, and the batch is written. Only where a batch was begun longer ago than that, and not committed, nothing proves
//! either way: the sink refuses, and `lost_ledger` says how to go on.
//!
//! The transaction begins with the first row and ends with the batch: committed, or aborted on any error and whenever the batch is given
//! up, so that readers of committed records do not wait for it. Of a process that is killed the next one ends it, or else the brokers
//! do after `transaction_timeout`. An empty batch has no transaction.

mod json;
mod ledger;
mod records;
mod session;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use perennial_core::config::HumanDuration;
use perennial_core::env::Env;
use perennial_core::error::{Error, Result, ResultExt, class};
use perennial_core::sink::{Delivery, OutputMode, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc};

use self::ledger::Place;
use self::records::Layout;
use self::session::{Link, Message, Session};
use crate::kafka::{Properties, check_topic_name};

/// Writes rows to topics of Apache Kafka, exactly once for consumers with `isolation.level: read_committed`.
///
/// A batch is one transaction. In `update` mode changed rows are written with the columns of `key` as the record's key, so that for
/// each key the last record counts (a compacted topic keeps just that). `complete` is refused: records cannot be taken back.
///
/// The job's user needs the rights to write the topics, to use the `transactional.id` and to read the consumer group that are named
/// `id_prefix` and the identity of the query (in the checkpoint's file `metadata`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaSink {
    /// Addresses of brokers, separated by commas: `kafka-1:9092,kafka-2:9092`. One that answers is enough to find the others.
    pub brokers: String,
    /// The topic to write to. It may be left out with `format: columns` where each row names its topic. Default: none.
    #[serde(default)]
    pub topic: Option<String>,
    /// What a record is made of. `json`: the value is the row as a JSON object, as Spark's `to_json` writes it. `columns`: the columns
    /// are the parts of the record, as for Spark's Kafka sink: `value` (STRING or BINARY), and where they are wanted `key`, `topic`
    /// (the setting `topic` goes before it), `partition` (INT) and `headers` (ARRAY<STRUCT<key STRING, value BINARY>>). Default: `json`.
    #[serde(default)]
    pub format: KafkaFormat,
    /// Columns that make up the record's key, by which Kafka's own hash (murmur2) chooses the partition. The key is the text of one
    /// column (BINARY as it is), or a JSON object of several. Required in update mode with `format: json`. Default: none.
    #[serde(default)]
    pub key: Vec<String>,
    /// The TIMESTAMP column with the record's timestamp. Default: the time of writing.
    #[serde(default)]
    pub timestamp: Option<String>,
    /// How records are compressed. Default: `lz4`.
    #[serde(default)]
    pub compression: KafkaCompression,
    /// Makes a missing topic, with so many partitions. Without it a missing topic is an error. Default: none.
    #[serde(default)]
    pub create_partitions: Option<i32>,
    /// How long a batch may take, from its first row to its commit; then the brokers abort it. Where a process dies in the middle of a
    /// batch and none takes over, readers of committed records wait as long. Brokers allow at most 15 minutes unless they are set
    /// otherwise (`transaction.max.timeout.ms`). Default: 5 minutes.
    #[serde(default = "default_transaction_timeout")]
    pub transaction_timeout: HumanDuration,
    /// How long brokers may take to answer, and to take a record, before the batch fails with `Timeout`. Default: 30 seconds.
    #[serde(default = "default_timeout")]
    pub timeout: HumanDuration,
    /// How the names of the `transactional.id` and of the ledger's consumer group begin; the identity of the query follows. With another
    /// prefix the sink does not find its ledger. Default: `perennial-`.
    #[serde(default = "default_id_prefix")]
    pub id_prefix: String,
    /// The topic at whose partition 0 the ledger's offset is kept; nothing is written to it. Default: `topic`.
    #[serde(default)]
    pub ledger_topic: Option<String>,
    /// What happens to a batch that was begun so long ago that Kafka no longer knows whether it was written (see
    /// `offsets.retention.minutes` of the brokers, 7 days by default): the query stops (`fail`), or, after somebody looked into the topic,
    /// the batch is written (`write`) or left out (`leave_out`). Default: `fail`.
    #[serde(default)]
    pub lost_ledger: LostLedger,
    /// Properties of librdkafka, for TLS, SASL and tuning: `security.protocol: SASL_SSL`, `sasl.mechanism: SCRAM-SHA-512`,
    /// `sasl.username`, `sasl.password`, `ssl.ca.location`. Values of keys that hold secrets never show. Default: none.
    #[serde(default)]
    pub properties: Properties,
}

fn default_transaction_timeout() -> HumanDuration {
    HumanDuration(Duration::from_secs(300))
}

fn default_timeout() -> HumanDuration {
    HumanDuration(Duration::from_secs(30))
}

fn default_id_prefix() -> String {
    "perennial-".to_owned()
}

/// What a record is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KafkaFormat {
    /// The value is the row as a JSON object, as Spark's `to_json` writes it: a NULL is left out, a TIMESTAMP is
    /// `2026-11-21T09:44:23.120Z`, BINARY is in base 64.
    #[default]
    Json,
    /// The columns are the parts of the record, as for Spark's Kafka sink: `value` (STRING or BINARY), and where they are wanted `key`
    /// (STRING or BINARY), `topic` (STRING; the setting `topic` goes before it), `partition` (INT) and `headers`
    /// (ARRAY<STRUCT<key STRING, value BINARY>>).
    Columns,
}

/// How records are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KafkaCompression {
    /// Not at all.
    None,
    /// Gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4, which costs little.
    #[default]
    Lz4,
    /// Zstandard, which saves most.
    Zstd,
}

impl KafkaCompression {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// What happens to a batch of which nobody knows whether it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LostLedger {
    /// The query stops with an error that names the batch.
    #[default]
    Fail,
    /// The batch is written: somebody looked, and its rows are not in the topic.
    Write,
    /// The batch is left out: somebody looked, and its rows are in the topic.
    LeaveOut,
}

impl KafkaSink {
    /// The settings of one topic, all others at their defaults.
    pub fn new(brokers: impl Into<String>, topic: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            topic: Some(topic.into()),
            format: KafkaFormat::default(),
            key: Vec::new(),
            timestamp: None,
            compression: KafkaCompression::default(),
            create_partitions: None,
            transaction_timeout: default_transaction_timeout(),
            timeout: default_timeout(),
            id_prefix: default_id_prefix(),
            ledger_topic: None,
            lost_ledger: LostLedger::default(),
            properties: Properties::default(),
        }
    }

    /// Refuses settings that do not go together. Gives the topic of the ledger.
    fn validate(&self) -> Result<&str> {
        let invalid = |what: &str| Err(Error::new(class::CONFIG_INVALID, what));
        if self.brokers.trim().is_empty() {
            return invalid("brokers is empty: give at least one address, host:port");
        }
        if self.topic.is_none() && self.format == KafkaFormat::Json {
            return invalid("topic is missing: name the topic to write to");
        }
        if self.create_partitions.is_some_and(|partitions| partitions < 1) {
            return invalid("create_partitions must be at least 1");
        }
        if self.timeout.0.is_zero() || self.transaction_timeout.0 < Duration::from_secs(1) {
            return invalid("timeout must be more than 0, and transaction_timeout at least 1 second");
        }
        for topic in self.topic.iter().chain(&self.ledger_topic) {
            check_topic_name(topic)?;
        }
        for (key, instead) in [
            ("transaction.timeout.ms", "transaction_timeout"),
            ("compression.type", "compression"),
            ("compression.codec", "compression"),
            ("message.timeout.ms", "timeout"),
            ("delivery.timeout.ms", "timeout"),
        ] {
            if self.properties.has(key) {
                return invalid(&format!("the property {key} cannot be set: set {instead} instead"));
            }
        }
        match self.ledger_topic.as_deref().or(self.topic.as_deref()) {
            Some(topic) => Ok(topic),
            None => invalid("without topic, ledger_topic is needed: the topic at which the ledger's offset is kept"),
        }
    }
}

impl SinkFactory for KafkaSink {
    fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let place = || "kafka sink".to_owned();
        if context.output_mode == OutputMode::Complete {
            return Err(Error::new(
                class::CONFIG_INVALID,
                "output_mode: complete writes the whole result each time, and records in Kafka cannot be taken back; use \
                 output_mode: update with `key`, so that for each key the last record counts, or append",
            )
            .at(place()));
        }
        let ledger_topic = self.validate().at(place)?;
        let layout = Layout::new(self, &context).at(place)?;
        let ledger = Place {
            brokers: self.brokers.clone(),
            group: format!("{}{}", self.id_prefix, context.query_id),
            topic: ledger_topic.to_owned(),
        };
        let link = Link::new(self, ledger, &context).at(place)?;
        Ok(Box::new(Kafka {
            link: Arc::new(link),
            layout: Arc::new(layout),
            env: context.env,
            session: Mutex::new(None),
        }))
    }
}

struct Kafka {
    link: Arc<Link>,
    layout: Arc<Layout>,
    env: Env,
    /// Taken out while it is used, and only put back when it is between transactions and in order.
    session: Mutex<Option<Session>>,
}

#[async_trait]
impl Sink for Kafka {
    fn delivery(&self) -> Delivery {
        Delivery::IdempotentByBatch
    }

    async fn check(&self) -> Result<()> {
        let link = self.link.clone();
        tokio::task::spawn_blocking(move || link.check()).await.map_err(broke_down)?.at(|| self.link.place())
    }

    async fn write(&self, batch: &SinkBatch, mut rows: RowStream) -> Result<Written> {
        let mut session = self.session.lock().await;
        // One block that is being sent and one that waits: more would only take memory. When the sender goes away without an end (the
        // stream failed, or this call was given up), the other side aborts the transaction.
        let (sender, receiver) = mpsc::channel(1);
        let work = {
            let (link, layout, taken, batch) = (self.link.clone(), self.layout.clone(), session.take(), batch.clone());
            let now_ms = self.env.now_ms();
            tokio::task::spawn_blocking(move || session::write(link, &layout, taken, &batch, now_ms, receiver))
        };
        let mut failed = None;
        while let Some(next) = rows.next().await {
            match next {
                Ok(rows) => {
                    if sender.send(Message::Rows(rows)).await.is_err() {
                        break;
                    }
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if failed.is_none() {
            // The other side may have gone with an error, which it tells below.
            let _ = sender.send(Message::End).await;
        }
        drop(sender);
        let (written, left) = work.await.map_err(broke_down)?;
        *session = left;
        match failed {
            Some(error) => Err(error),
            None => written.at(|| self.link.place()),
        }
    }
}

fn broke_down(panic: tokio::task::JoinError) -> Error {
    Error::bug("kafka sink: a call of the client library broke down").caused_by(panic)
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // Closing a client waits for its threads: not on a thread that runs the job.
        if let Some(session) = self.session.get_mut().take() {
            std::thread::spawn(move || drop(session));
        }
    }
}

#[cfg(test)]
mod tests;
