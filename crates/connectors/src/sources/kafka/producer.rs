//! Simulated records into a topic.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perennial_core::error::{Error, Result, class};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext};

use crate::kafka::{Events, Properties, Requests, classify, config_error, missing_topic};
use crate::simulate::Progress;
use crate::simulate::produce::Output;

/// How long brokers may take to answer, and to take a record.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A topic that gets records: idempotent, partitioned by key as Kafka's own clients do it.
#[derive(Debug, Clone)]
pub struct KafkaTarget {
    /// Addresses of brokers, separated by commas.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// Makes the topic with so many partitions where it does not exist. Without it a missing topic is an error.
    pub create_partitions: Option<i32>,
    /// Properties of librdkafka, for TLS, SASL and tuning.
    pub properties: Properties,
}

impl KafkaTarget {
    fn config(&self) -> Result<ClientConfig> {
        let mut config = self.properties.client_config(&self.brokers)?;
        for (key, value) in [
            ("enable.idempotence", "true"),
            ("partitioner", "murmur2_random"),
            ("linger.ms", "20"),
            ("compression.type", "lz4"),
            ("queue.buffering.max.messages", "200000"),
            ("queue.buffering.max.kbytes", "65536"),
            ("message.timeout.ms", "30000"),
        ] {
            if !self.properties.has(key) {
                config.set(key, value);
            }
        }
        Ok(config)
    }

    /// Connects, and makes the topic where that is wanted.
    pub(crate) fn open(self, progress: Arc<Progress>) -> Result<impl Output> {
        let context = Delivery { events: Events::default(), progress, failed: Mutex::new(None) };
        let config = self.config()?;
        let producer: BaseProducer<Delivery> = config.create_with_context(context).map_err(|e| config_error(&e))?;
        let output = KafkaOutput { producer, target: self };
        output.find_topic(&config)?;
        Ok(output)
    }
}

struct Delivery {
    events: Events,
    progress: Arc<Progress>,
    failed: Mutex<Option<KafkaError>>,
}

impl ClientContext for Delivery {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.events.log(level, facility, line);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.events.error(error, reason);
    }
}

impl ProducerContext for Delivery {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.progress.count_error();
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
        }
    }
}

struct KafkaOutput {
    producer: BaseProducer<Delivery>,
    target: KafkaTarget,
}

impl KafkaOutput {
    fn explain(&self, error: KafkaError, what: &str) -> Error {
        self.producer.context().events.explain(error, &self.target.brokers, what)
    }

    fn find_topic(&self, config: &ClientConfig) -> Result<()> {
        let topic = &self.target.topic;
        let serve = || self.producer.poll(Duration::from_millis(5));
        let events = &self.producer.context().events;
        let requests = Requests { events, brokers: &self.target.brokers, timeout: TIMEOUT, serve: &serve };
        let names = requests.topics(self.producer.client())?;
        match self.target.create_partitions {
            _ if names.contains(topic) => Ok(()),
            Some(partitions) => requests.create_topic(config, topic, partitions),
            None => Err(missing_topic(&self.target.brokers, topic, names)),
        }
    }

    /// The first record that was not delivered ends the run.
    fn check(&self) -> Result<()> {
        match self.producer.context().failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            None => Ok(()),
            Some(error) => Err(self.explain(error, &format!("sending records to topic {}", self.target.topic))),
        }
    }
}

impl Output for KafkaOutput {
    fn send(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let mut record = BaseRecord::to(&self.target.topic).key(key).payload(value);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned)) => {
                    // Records that are not delivered in time leave the queue, so that this ends.
                    self.producer.poll(Duration::from_millis(20));
                    self.check()?;
                    record = returned;
                }
                Err((error, _)) => {
                    let what = format!("sending records to topic {}", self.target.topic);
                    return Err(self.explain(error, &what));
                }
            }
        }
    }

    fn tick(&mut self) -> Result<()> {
        self.producer.poll(Duration::ZERO);
        self.check()
    }

    fn finish(&mut self) -> Result<()> {
        let flushed = self.producer.flush(TIMEOUT * 2);
        self.check()?;
        flushed.map_err(|error| {
            let left = self.producer.in_flight_count();
            match error.rdkafka_error_code().map(|code| classify(code, "")) {
                Some(found) if found == class::TIMEOUT => Error::new(
                    class::TIMEOUT,
                    format!("Kafka at {}: {left} records were not taken in time", self.target.brokers),
                ),
                _ => self.explain(error, "sending the last records"),
            }
        })
    }
}
