//! Requests that fail as soon as it is known that they will, and those about topics.

use std::time::{Duration, Instant};

use futures::executor::block_on;
use perennial_core::error::{Error, Result, class};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, ClientContext};

use super::errors::{Events, config_error, is_silence};

/// A way to make requests through some client. All methods block.
pub(crate) struct Requests<'a> {
    /// What the client told.
    pub events: &'a Events,
    /// Whom it asks, for messages.
    pub brokers: &'a str,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Lets the client tell more.
    pub serve: &'a dyn Fn(),
}

impl Requests<'_> {
    /// Makes a request; `what` says in an error what was asked for.
    pub(crate) fn ask<T>(&self, what: &str, request: impl Fn(Duration) -> Result<T, KafkaError>) -> Result<T> {
        ask(self.events, self.timeout, self.serve, request).map_err(|error| self.explain(error, what))
    }

    /// The error of a request.
    pub(crate) fn explain(&self, error: KafkaError, what: &str) -> Error {
        self.events.explain(error, self.brokers, what)
    }

    /// The names of all topics. One that is asked for by its name would be made by brokers that are set so; this makes none.
    pub(crate) fn topics<C: ClientContext>(&self, client: &Client<C>) -> Result<Vec<String>> {
        let metadata = self.ask("listing the topics", |timeout| client.fetch_metadata(None, timeout))?;
        Ok(metadata.topics().iter().map(|topic| topic.name().to_owned()).collect())
    }

    /// Makes a topic with so many partitions, and as many replicas as the brokers have as their default.
    pub(crate) fn create_topic(&self, config: &ClientConfig, topic: &str, partitions: i32) -> Result<()> {
        let what = format!("creating topic {topic}");
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
        let timeout = Some(self.timeout);
        let options = AdminOptions::new().operation_timeout(timeout).request_timeout(timeout);
        match block_on(admin(config)?.create_topics([&new], &options)) {
            Err(error) => Err(self.explain(error, &what)),
            Ok(results) => match results.into_iter().next() {
                None | Some(Ok(_)) | Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
                Some(Err((_, code))) => Err(self.explain(KafkaError::AdminOp(code), &what)),
            },
        }
    }
}

/// Refuses what cannot be the name of a topic.
pub(crate) fn check_topic_name(name: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > 249 || !name.bytes().all(fits) {
        return Err(Error::new(
            class::CONFIG_INVALID,
            format!("`{name}` is not the name of a topic: Kafka allows up to 249 letters, digits, `.`, `_` and `-`"),
        ));
    }
    Ok(())
}

/// A client for administration, with the configuration of a producer.
pub(crate) fn admin(config: &ClientConfig) -> Result<AdminClient<DefaultClientContext>> {
    let mut config = config.clone();
    // Properties of producers that a client for administration does not know would be warned about.
    for key in ["enable.idempotence", "transactional.id", "transaction.timeout.ms", "partitioner", "linger.ms"] {
        config.remove(key);
    }
    for key in ["compression.type", "message.timeout.ms", "queue.buffering.max.messages", "queue.buffering.max.kbytes"]
    {
        config.remove(key);
    }
    config.create().map_err(|error| config_error(&error))
}

/// Makes a request, with more patience from try to try, until it succeeds, time is up, or it is known to be hopeless.
///
/// A single long wait would only report after all of it what is often known at once: that nobody listens at the address, or that the
/// password is wrong.
fn ask<T>(
    events: &Events,
    timeout: Duration,
    mut serve: impl FnMut(),
    request: impl Fn(Duration) -> Result<T, KafkaError>,
) -> Result<T, KafkaError> {
    let deadline = Instant::now() + timeout;
    let mut patience = Duration::from_millis(250);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let result = request(patience.min(left));
        serve();
        match result {
            Ok(answer) => {
                events.forget();
                return Ok(answer);
            }
            Err(error) => {
                if !may_pass(&error) || events.is_hopeless() || Instant::now() >= deadline {
                    return Err(error);
                }
            }
        }
        patience *= 2;
    }
}

/// Whether the same request may succeed a little later: no answer came yet, or the coordinator is still busy with the transaction of a
/// process before this one.
fn may_pass(error: &KafkaError) -> bool {
    match error {
        KafkaError::Transaction(error) => error.is_retriable(),
        other => other
            .rdkafka_error_code()
            .is_some_and(|code| is_silence(code) || code == RDKafkaErrorCode::UnstableOffsetCommit),
    }
}

/// The error about a topic that does not exist, with the names that are nearest to it.
pub(crate) fn missing_topic(brokers: &str, name: &str, mut existing: Vec<String>) -> Error {
    existing.retain(|other| !other.starts_with("__"));
    let total = existing.len();
    existing.sort_by(|a, b| {
        let likeness = |other: &str| strsim::jaro_winkler(name, other);
        likeness(b).total_cmp(&likeness(a)).then_with(|| a.cmp(b))
    });
    existing.truncate(5);
    let nearest = match existing.as_slice() {
        [] => "there are no topics".to_owned(),
        [nearest, ..] if strsim::jaro_winkler(name, nearest) > 0.8 => {
            format!("did you mean {nearest}? of {total} topics the nearest are {}", existing.join(", "))
        }
        _ => format!("of {total} topics the nearest are {}", existing.join(", ")),
    };
    Error::new(
        class::TARGET_MISSING,
        format!(
            "Kafka at {brokers} has no topic {name} (or the user may not see it): {nearest}; create it, or correct its name"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_topic_is_answered_with_its_neighbours() {
        let names = ["orders", "hydroponic-sensors", "__consumer_offsets"].map(str::to_owned).to_vec();
        let error = missing_topic("b:9092", "hydroponic-sensor", names).to_string();
        assert!(error.contains("did you mean hydroponic-sensors?") && !error.contains("__consumer"), "{error}");
        assert!(missing_topic("b:9092", "x", vec![]).to_string().contains("there are no topics"));
    }
}
