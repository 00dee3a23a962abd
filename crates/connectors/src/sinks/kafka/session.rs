//! The connection to the brokers, and transactions on it. Everything here blocks.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use futures::executor::block_on;
use perennial_core::error::{Error, Result, class};
use perennial_core::sink::{SinkBatch, SinkContext, Written};
use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext, Offset as At, TopicPartitionList};
use tokio::sync::mpsc;

use super::KafkaSink;
use super::ledger::{self, Entry, Note, Place, Verdict};
use super::records::{Layout, Records};
use crate::kafka::{Events, Requests, admin, classify, config_error, missing_topic};
use crate::sinks::columns::Digest;

/// How long an abort may take. One that does not succeed is made good by the next session.
const ABORT: Duration = Duration::from_secs(5);
/// How long brokers keep offsets at least, where they do not tell: the shortest default that a version of Kafka ever had.
const LEAST_RETENTION: Duration = Duration::from_secs(24 * 3600);
/// Rows that are encoded at once.
const ROWS: usize = 8192;

/// What a session gets from the runtime.
pub(super) enum Message {
    Rows(RecordBatch),
    /// There are no more rows, and the batch is to be committed.
    End,
}

/// What is needed to connect.
pub(super) struct Link {
    settings: KafkaSink,
    ledger: Place,
    producer: ClientConfig,
    consumer: ClientConfig,
    note: Note,
}

/// Writes a batch, with the session that is left from the last one or a new one. Returns the session where it is in order.
pub(super) fn write(
    link: Arc<Link>,
    layout: &Layout,
    session: Option<Session>,
    batch: &SinkBatch,
    now_ms: i64,
    mut rows: mpsc::Receiver<Message>,
) -> (Result<Written>, Option<Session>) {
    let mut session = match session.map_or_else(|| Session::connect(link), Ok) {
        Ok(session) => session,
        Err(error) => return (Err(error), None),
    };
    match session.write(layout, batch, now_ms, &mut rows) {
        Ok(Some(written)) => (Ok(written), Some(session)),
        Ok(None) => {
            let in_order = session.abort().is_ok();
            (Err(Error::bug("kafka sink: a batch that was given up is asked for")), in_order.then_some(session))
        }
        Err(error) => (Err(session.fail(error)), None),
    }
}

impl Link {
    pub(super) fn new(settings: &KafkaSink, ledger: Place, context: &SinkContext) -> Result<Self> {
        let base = settings.properties.client_config(&settings.brokers)?;
        let mut producer = base.clone();
        let transaction_ms = settings.transaction_timeout.0.as_millis();
        producer
            .set("transactional.id", &ledger.group)
            .set("transaction.timeout.ms", transaction_ms.to_string())
            .set("message.timeout.ms", settings.timeout.0.as_millis().min(transaction_ms).to_string())
            .set("compression.type", settings.compression.name());
        for (key, value) in [
            ("partitioner", "murmur2_random"),
            ("linger.ms", "5"),
            ("queue.buffering.max.messages", "200000"),
            ("queue.buffering.max.kbytes", "65536"),
        ] {
            if !settings.properties.has(key) {
                producer.set(key, value);
            }
        }
        let mut consumer = base;
        consumer
            .set("group.id", &ledger.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("allow.auto.create.topics", "false");
        for config in [&producer, &consumer] {
            config.create_native_config().map_err(|error| config_error(&error))?;
        }
        let note = Note { job: context.job.clone(), query: context.query.clone(), ..Note::default() };
        Ok(Self { settings: settings.clone(), ledger, producer, consumer, note })
    }

    /// Topic and brokers, for messages.
    pub(super) fn place(&self) -> String {
        match &self.settings.topic {
            Some(topic) => format!("kafka sink: topic {topic}"),
            None => "kafka sink".to_owned(),
        }
    }

    fn requests<'a>(&'a self, events: &'a Events, serve: &'a dyn Fn()) -> Requests<'a> {
        Requests { events, brokers: &self.settings.brokers, timeout: self.settings.timeout.0, serve }
    }

    /// The topics that are known without a row.
    fn own_topics(&self) -> impl Iterator<Item = &String> {
        self.settings.topic.iter().chain([&self.ledger.topic])
    }

    /// Whether topic and ledger can be reached. Does not open the `transactional.id`, which would fence a job that runs.
    pub(super) fn check(&self) -> Result<()> {
        // Offsets that a running job is just committing are not waited for.
        let consumer = self.ledger_client("read_uncommitted")?;
        let serve = || while consumer.poll(Duration::from_millis(5)).is_some() {};
        let requests = self.requests(consumer.context(), &serve);
        let names = requests.topics(consumer.client())?;
        if self.settings.create_partitions.is_none()
            && let Some(missing) = self.own_topics().find(|topic| !names.contains(topic))
        {
            return Err(missing_topic(&self.settings.brokers, missing, names));
        }
        if names.contains(&self.ledger.topic) {
            self.read_ledger(&consumer)?;
        }
        Ok(())
    }

    fn ledger_client(&self, isolation: &str) -> Result<BaseConsumer<Events>> {
        let mut config = self.consumer.clone();
        config.set("isolation.level", isolation);
        config.create_with_context(Events::default()).map_err(|error| config_error(&error))
    }

    fn read_ledger(&self, consumer: &BaseConsumer<Events>) -> Result<Option<Entry>> {
        let serve = || while consumer.poll(Duration::from_millis(5)).is_some() {};
        let what = format!("reading the ledger ({})", self.ledger);
        let found = self.requests(consumer.context(), &serve).ask(&what, |timeout| {
            let mut list = TopicPartitionList::new();
            list.add_partition(&self.ledger.topic, 0);
            let found = consumer.committed_offsets(list, timeout)?;
            found.elements().iter().try_for_each(|element| element.error())?;
            Ok(found)
        })?;
        Ok(found.elements().first().and_then(|element| match element.offset() {
            At::Offset(next) => Some(Entry { next: next.max(0) as u64, note: Note::decode(element.metadata()) }),
            _ => None,
        }))
    }
}

/// What became of the records.
struct Reports {
    events: Events,
    failed: Mutex<Option<KafkaError>>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.events.log(level, facility, line);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.events.error(error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            // What comes after the first is only its consequence.
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
        }
    }
}

/// A producer that owns the query's `transactional.id`, until another one fences it.
pub(super) struct Session {
    link: Arc<Link>,
    producer: BaseProducer<Reports>,
    /// Reads the ledger once, and is the group to which it is written.
    ledger: BaseConsumer<Events>,
    /// The newest entry. Only this session can write another one.
    entry: Option<Entry>,
    /// Topics that are known to exist.
    topics: HashSet<String>,
    /// When the open transaction began.
    began: Option<Instant>,
}

impl Session {
    fn connect(link: Arc<Link>) -> Result<Self> {
        let context = Reports { events: Events::default(), failed: Mutex::new(None) };
        let producer = link.producer.create_with_context(context).map_err(|error| config_error(&error))?;
        let ledger = link.ledger_client("read_committed")?;
        let mut session = Self { link, producer, ledger, entry: None, topics: HashSet::new(), began: None };
        let link = session.link.clone();
        for topic in link.own_topics() {
            session.find_topic(topic)?;
        }
        let what = format!("opening transactional.id {}", link.ledger.group);
        let opened = {
            let serve = || session.producer.poll(Duration::from_millis(5));
            let requests = link.requests(&session.producer.context().events, &serve);
            requests.ask(&what, |timeout| session.producer.init_transactions(timeout))
        };
        opened.map_err(|error| match session.producer.client().fatal_error() {
            Some((RDKafkaErrorCode::InvalidTransactionTimeout, _)) => Error::new(
                class::CONFIG_INVALID,
                format!(
                    "transaction_timeout is {}, which is more than the brokers allow (transaction.max.timeout.ms); lower it",
                    link.settings.transaction_timeout
                ),
            ),
            Some(_) => session.explain(KafkaError::Global(RDKafkaErrorCode::Fatal), &what),
            None => error,
        })?;
        // Now all transactions before are over, and nobody but this session can begin one: the ledger stands still.
        session.entry = link.read_ledger(&session.ledger)?;
        Ok(session)
    }

    /// Makes sure that a topic exists: a record for one that does not would make it on brokers that are set so, or wait in vain.
    fn find_topic(&mut self, topic: &str) -> Result<()> {
        if self.topics.contains(topic) {
            return Ok(());
        }
        let serve = || self.producer.poll(Duration::from_millis(5));
        let requests = self.link.requests(&self.producer.context().events, &serve);
        let names = requests.topics(self.producer.client())?;
        if !names.iter().any(|name| name == topic) {
            match self.link.settings.create_partitions {
                Some(partitions) => requests.create_topic(&self.link.producer, topic, partitions)?,
                None => return Err(missing_topic(&self.link.settings.brokers, topic, names)),
            }
        }
        self.topics.insert(topic.to_owned());
        Ok(())
    }

    /// Writes a batch and commits it. `None` where it was given up before its end.
    fn write(
        &mut self,
        layout: &Layout,
        batch: &SinkBatch,
        now_ms: i64,
        messages: &mut mpsc::Receiver<Message>,
    ) -> Result<Option<Written>> {
        let verdict = match ledger::judge(&self.link.ledger, batch, self.entry.as_ref())? {
            Verdict::Unproven => {
                ledger::settle(&self.link.ledger, batch, now_ms, self.retention(), self.link.settings.lost_ledger)?
            }
            verdict => verdict,
        };
        let mut written = Written { duplicate: verdict == Verdict::LeaveOut, ..Written::default() };
        let mut digest = Digest::default();
        loop {
            match messages.blocking_recv() {
                Some(Message::Rows(rows)) => {
                    for start in (0..rows.num_rows()).step_by(ROWS) {
                        let rows = rows.slice(start, ROWS.min(rows.num_rows() - start));
                        let records = layout.records(&rows, written.rows)?;
                        digest.add(&records.columns(), records.len());
                        if !written.duplicate {
                            written.bytes += self.send(&records)?;
                        }
                        written.rows += records.len() as u64;
                    }
                }
                Some(Message::End) => break,
                None => return Ok(None),
            }
        }
        let note =
            Note { epoch: batch.epoch, rows: written.rows, digest: digest.to_string(), ..self.link.note.clone() };
        if written.duplicate {
            self.compare(batch, &note);
        } else if self.began.is_some() {
            self.commit(Entry { next: batch.id + 1, note })?;
        }
        Ok(Some(written))
    }

    /// Warns when a batch that is left out is not what it was.
    fn compare(&self, batch: &SinkBatch, now: &Note) {
        let place = &self.link.ledger;
        match &self.entry {
            Some(Entry { next, note }) if *next == batch.id + 1 && !note.digest.is_empty() => {
                if (note.rows, &note.digest) == (now.rows, &now.digest) {
                    tracing::info!(batch = batch.id, "the batch is in Kafka already ({place}); it is left out");
                } else {
                    tracing::warn!(
                        batch = batch.id,
                        rows_before = note.rows,
                        digest_before = note.digest,
                        rows_now = now.rows,
                        digest_now = now.digest,
                        "the repeated batch differs from the one in Kafka ({place}), which stays as it was written first: the query \
                         or its sources are not deterministic"
                    );
                }
            }
            _ => tracing::info!(batch = batch.id, "the batch is left out"),
        }
    }

    /// Hands records to the client, in the transaction of the batch. Returns their bytes.
    fn send(&mut self, records: &Records) -> Result<u64> {
        let link = self.link.clone();
        let what = "sending records";
        if self.began.is_none() {
            self.producer.begin_transaction().map_err(|error| self.explain(error, "beginning a transaction"))?;
            self.began = Some(Instant::now());
        }
        let mut bytes = 0;
        for row in 0..records.len() {
            let topic = match &link.settings.topic {
                Some(topic) => topic,
                None => {
                    let topic = records.topic(row)?;
                    self.find_topic(topic)?;
                    topic
                }
            };
            let mut record = BaseRecord::<[u8], [u8]>::to(topic);
            (record.key, record.payload) = (records.key(row), records.value(row));
            (record.partition, record.timestamp) = (records.partition(row), records.timestamp_ms(row));
            record.headers = records.headers(row);
            bytes += (record.key.map_or(0, <[u8]>::len) + record.payload.map_or(0, <[u8]>::len)) as u64;
            while let Err((error, returned)) = self.producer.send(record) {
                if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                    return Err(self.explain(error, what));
                }
                // Records that are not delivered in time leave the queue, so that this ends.
                self.producer.poll(Duration::from_millis(2));
                self.check_delivered()?;
                record = returned;
            }
        }
        self.producer.poll(Duration::ZERO);
        self.check_delivered()?;
        Ok(bytes)
    }

    fn check_delivered(&self) -> Result<()> {
        match self.producer.context().failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            None => Ok(()),
            Some(error) => Err(self.explain(error, "sending records")),
        }
    }

    /// Commits the records and the entry together.
    fn commit(&mut self, entry: Entry) -> Result<()> {
        let timeout = self.link.settings.timeout.0;
        let what = "committing the batch";
        let noted = || {
            let mut list = TopicPartitionList::new();
            let mut element = list.add_partition(&self.link.ledger.topic, 0);
            element.set_offset(At::Offset(entry.next as i64))?;
            element.set_metadata(entry.note.encode());
            let group = self.ledger.group_metadata().ok_or(KafkaError::Canceled)?;
            self.producer.send_offsets_to_transaction(&list, &group, timeout)
        };
        noted().map_err(|error| self.explain(error, "writing the ledger"))?;
        // What the library's own flush does in steps of a tenth of a second.
        while self.producer.in_flight_count() > 0 {
            self.producer.poll(Duration::from_millis(1));
            self.check_delivered()?;
        }
        self.check_delivered()?;
        self.producer.commit_transaction(timeout).map_err(|error| self.explain(error, what))?;
        self.entry = Some(entry);
        self.began = None;
        Ok(())
    }

    /// Ends the open transaction, if there is one, so that nobody sees or waits for its records.
    fn abort(&mut self) -> Result<(), KafkaError> {
        if self.began.is_none() {
            return Ok(());
        }
        let deadline = Instant::now() + ABORT.min(self.link.settings.timeout.0);
        loop {
            // The call can be resumed, and in between the fate of the records has to be heard.
            match self.producer.abort_transaction(Duration::from_millis(100)) {
                Ok(()) => break,
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {
                    self.producer.poll(Duration::from_millis(5));
                }
                Err(error) => return Err(error),
            }
        }
        // The aborted records have told that they were not delivered.
        self.producer.context().failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.began = None;
        Ok(())
    }

    /// Aborts because of an error. That another process took over goes before what followed from it.
    fn fail(mut self, error: Error) -> Error {
        match self.abort() {
            Err(cause) if error.class() != class::FENCED => {
                let aborting = self.explain(cause, "aborting the batch");
                if aborting.class() == class::FENCED {
                    return aborting;
                }
                tracing::warn!(%aborting, "the transaction stays open until it is aborted by the next attempt or by the brokers");
                error
            }
            _ => error,
        }
    }

    /// The error of a call of the producer.
    fn explain(&self, error: KafkaError, what: &str) -> Error {
        let settings = &self.link.settings;
        let fatal = self.producer.client().fatal_error();
        let fenced = match &fatal {
            Some((code, reason)) => classify(*code, reason) == class::FENCED,
            None => error.rdkafka_error_code().is_some_and(|code| classify(code, "") == class::FENCED),
        };
        if fenced {
            // Brokers fence the producer of a transaction that took too long in the same way.
            if self.began.is_some_and(|began| began.elapsed() >= settings.transaction_timeout.0) {
                return Error::new(
                    class::TIMEOUT,
                    format!(
                        "Kafka at {}: {what}: the batch took longer than transaction_timeout ({}), so the brokers aborted it; raise \
                         it, or make batches smaller (max_records_per_batch of the source)",
                        settings.brokers, settings.transaction_timeout
                    ),
                );
            }
            return Error::new(
                class::FENCED,
                format!(
                    "Kafka at {}: {what}: another process has taken over this query (transactional.id {}); look for a second \
                     process with this checkpoint",
                    settings.brokers, self.link.ledger.group
                ),
            );
        }
        match fatal {
            Some((code, reason)) => {
                Error::new(classify(code, &reason), format!("Kafka at {}: {what}: {reason}", settings.brokers))
            }
            None => self.producer.context().events.explain(error, &settings.brokers, what),
        }
    }

    /// How long the brokers keep the ledger's entries.
    fn retention(&self) -> Duration {
        let serve = || self.producer.poll(Duration::from_millis(5));
        let requests = self.link.requests(&self.producer.context().events, &serve);
        let told = || {
            let metadata = requests
                .ask("listing the brokers", |timeout| {
                    self.producer.client().fetch_metadata(Some(&self.link.ledger.topic), timeout)
                })
                .ok()?;
            let broker = ResourceSpecifier::Broker(metadata.brokers().first()?.id());
            let options = AdminOptions::new().request_timeout(Some(self.link.settings.timeout.0));
            let admin = admin(&self.link.producer).ok()?;
            let mut configs = block_on(admin.describe_configs([&broker], &options)).ok()?;
            let config = configs.pop()?.ok()?;
            let minutes: u64 = config.get("offsets.retention.minutes")?.value.as_ref()?.parse().ok()?;
            Some(Duration::from_secs(minutes.saturating_mul(60)))
        };
        // A job's user need not have the right to ask.
        told().unwrap_or(LEAST_RETENTION)
    }
}
