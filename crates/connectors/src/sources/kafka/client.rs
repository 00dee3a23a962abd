//! Requests to Kafka, and what its errors mean.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use perennial_core::error::{Error, ErrorClass, Result, class};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, ClientContext, Offset as At, TopicPartitionList};

use super::offsets::Offsets;
use super::settings::{KafkaSource, StartingOffsets};

/// Which topics are read.
#[derive(Debug, Clone)]
pub(super) enum Subscription {
    Names(Vec<String>),
    Pattern(regex::Regex),
}

/// Topics and the numbers of their partitions.
pub(super) type Topics = BTreeMap<String, Vec<i32>>;

/// What a partition holds: the first offset, and the one behind the last that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub low: i64,
    pub high: i64,
}

/// What librdkafka tells while it works: its log lines go to the job's log, and its last complaint explains why a request failed.
#[derive(Debug, Default)]
pub(crate) struct Events(Mutex<Complaints>);

#[derive(Debug, Default)]
struct Complaints {
    last: Option<(RDKafkaErrorCode, String)>,
    /// No broker answers, or none lets us in: waiting does not help.
    hopeless: bool,
}

impl ClientContext for Events {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        // Whatever matters comes as an error, too; the lines are for those who look for the why.
        tracing::debug!(target: "librdkafka", ?level, facility, "{line}");
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
        let Some(code) = error.rdkafka_error_code() else { return };
        if code == RDKafkaErrorCode::PartitionEOF {
            return; // Told as an error, and none.
        }
        let mut complaints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = matches!(classify(code, reason).code, "AuthenticationFailed" | "TlsFailed");
        complaints.hopeless |= refused || code == RDKafkaErrorCode::AllBrokersDown;
        // That all brokers are down is only the sum of what was said about each.
        if code != RDKafkaErrorCode::AllBrokersDown {
            complaints.last = Some((code, reason.to_owned()));
        }
    }
}

impl ConsumerContext for Events {}

impl Events {
    pub(super) fn is_hopeless(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).hopeless
    }

    /// All is well again.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Complaints::default();
    }

    /// The error of a request to `brokers`; `what` says what was asked for.
    pub(crate) fn explain(&self, error: KafkaError, brokers: &str, what: &str) -> Error {
        let complaint = self.0.lock().unwrap_or_else(PoisonError::into_inner).last.clone();
        let code = error.rdkafka_error_code();
        let (class, why) = match (code, complaint) {
            // That nothing came back is explained by what went wrong meanwhile.
            (Some(code), Some((cause, reason))) if is_silence(code) => (classify(cause, &reason), reason),
            (Some(code), None) if is_silence(code) => (class::TIMEOUT, "no broker answered in time".to_owned()),
            (Some(code), _) => (classify(code, &error.to_string()), error.to_string()),
            (None, _) => (class::SERVER_UNAVAILABLE, error.to_string()),
        };
        let explained = Error::new(class, format!("Kafka at {brokers}: {what}: {why}{}", advice(class)));
        // "Timed out" behind the reason for it would only be noise.
        if why == error.to_string() { explained.caused_by(error) } else { explained }
    }
}

/// Codes that only say that no answer came.
fn is_silence(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::*;
    matches!(
        code,
        OperationTimedOut
            | TimedOutQueue
            | MessageTimedOut
            | BrokerTransportFailure
            | AllBrokersDown
            | WaitingForCoordinator
    )
}

fn advice(class: &ErrorClass) -> &'static str {
    match class.code {
        "ConnectionRefused" => "; check that the broker runs and that `brokers` names its address",
        "NameNotResolved" => "; check the host names in `brokers`",
        "AuthenticationFailed" => "; check `sasl.mechanism`, `sasl.username` and `sasl.password` in `properties`",
        "TlsFailed" => "; check `security.protocol` and the certificates (`ssl.ca.location`) in `properties`",
        "AuthorizationFailed" => "; let the job's user read the topic (and its consumer group)",
        "ConnectionLost" => "; check the network, and that `security.protocol` in `properties` is that of the listener",
        _ => "",
    }
}

/// The class of an error of librdkafka; `reason` is what it says about it.
pub fn classify(code: RDKafkaErrorCode, reason: &str) -> &'static ErrorClass {
    use RDKafkaErrorCode::*;
    match code {
        Resolve => class::NAME_NOT_RESOLVED,
        SSL => class::TLS_FAILED,
        Authentication | SaslAuthenticationFailed | UnsupportedSASLMechanism | IllegalSASLState | SecurityDisabled => {
            class::AUTHENTICATION_FAILED
        }
        TopicAuthorizationFailed
        | GroupAuthorizationFailed
        | ClusterAuthorizationFailed
        | TransactionalIdAuthorizationFailed
        | DelegationTokenAuthorizationFailed => class::AUTHORIZATION_FAILED,
        UnknownTopic | UnknownPartition | UnknownTopicOrPartition | UnknownTopicId | InvalidTopic => {
            class::TARGET_MISSING
        }
        BrokerTransportFailure | AllBrokersDown | NetworkException | BrokerDestroy | DestroyBroker => {
            // One code for all that can befall a connection; the text tells them apart.
            if reason.contains("Connection refused") {
                class::CONNECTION_REFUSED
            } else if reason.contains("Failed to resolve") {
                class::NAME_NOT_RESOLVED
            } else if reason.contains("SSL handshake") || reason.contains("certificate") {
                class::TLS_FAILED
            } else if reason.contains("timed out") {
                class::TIMEOUT
            } else {
                class::CONNECTION_LOST
            }
        }
        OperationTimedOut | TimedOutQueue | MessageTimedOut | RequestTimedOut | WaitingForCoordinator => class::TIMEOUT,
        OffsetOutOfRange | AutoOffsetReset | NoOffset | LogTruncation => class::OFFSET_OUT_OF_RANGE,
        ThrottlingQuotaExceeded => class::THROTTLED,
        MessageSizeTooLarge | MessageBatchTooLarge | InvalidRecord | InvalidTimestamp | PolicyViolation => {
            class::SINK_REJECTED
        }
        BadMessage | InvalidMessage | BadCompression | InvalidMessageSize => class::MALFORMED_RECORD,
        InvalidArgument
        | InvalidConfig
        | UnsupportedFeature
        | NotImplemented
        | UnsupportedVersion
        | InvalidGroupId
        | InvalidReplicationFactor
        | InvalidPartitions
        | UnsupportedCompressionType => class::CONFIG_INVALID,
        // Leaders move, coordinators load, disks fail: brokers that cannot answer now.
        _ => class::SERVER_UNAVAILABLE,
    }
}

/// The error of a client that cannot be made: a property is unknown or has a value that does not fit.
pub(super) fn config_error(error: &KafkaError) -> Error {
    let message = match error {
        // The text of librdkafka quotes the value, which may be a secret.
        KafkaError::ClientConfig(_, _, key, _) if super::settings::Properties::is_secret(key) => {
            format!("the property {key} has a value that does not fit")
        }
        KafkaError::ClientConfig(_, why, key, _) => format!("the property {key}: {}", why.trim()),
        other => format!("no client can be made with these properties: {other}"),
    };
    Error::new(class::CONFIG_INVALID, message)
}

/// Serves what librdkafka has to tell, for at most about this long.
pub(super) fn serve(consumer: &BaseConsumer<Events>, wait: Duration) {
    // Without an assignment no record can come this way: only errors, which the context has already seen.
    while consumer.poll(wait).is_some() {}
}

/// Makes a request, with more patience from try to try, until it succeeds, time is up, or it is known to be hopeless.
///
/// A single long wait would only report after all of it what is often known at once: that nobody listens at the address, or that the
/// password is wrong.
pub(super) fn ask<T>(
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
                let silent = error.rdkafka_error_code().is_some_and(is_silence);
                if !silent || events.is_hopeless() || Instant::now() >= deadline {
                    return Err(error);
                }
            }
        }
        patience *= 2;
    }
}

/// A connection for requests.
pub(super) struct Client {
    consumer: BaseConsumer<Events>,
    brokers: String,
    timeout: Duration,
}

impl Client {
    pub(super) fn new(config: &ClientConfig, settings: &KafkaSource) -> Result<Self> {
        let consumer = config.create_with_context(Events::default()).map_err(|error| config_error(&error))?;
        Ok(Self { consumer, brokers: settings.brokers.clone(), timeout: settings.timeout.0 })
    }

    fn ask<T>(&self, what: &str, request: impl Fn(Duration) -> Result<T, KafkaError>) -> Result<T> {
        let events = self.consumer.context();
        let serve = || serve(&self.consumer, Duration::from_millis(5));
        ask(events, self.timeout, serve, request).map_err(|error| events.explain(error, &self.brokers, what))
    }

    /// The topics of a subscription. A named one that does not exist is an error; a pattern may match none.
    pub(super) fn topics(&self, subscription: &Subscription) -> Result<Topics> {
        let topics = self.topics_left(subscription)?;
        if let Subscription::Names(names) = subscription
            && let Some(missing) = names.iter().find(|name| !topics.contains_key(*name))
        {
            return Err(self.missing(missing)?);
        }
        Ok(topics)
    }

    /// Those topics of a subscription that exist.
    pub(super) fn topics_left(&self, subscription: &Subscription) -> Result<Topics> {
        let mut topics = Topics::new();
        match subscription {
            Subscription::Names(names) => {
                for name in names {
                    let metadata = self.ask(&format!("looking for topic {name}"), |timeout| {
                        self.consumer.fetch_metadata(Some(name), timeout)
                    })?;
                    for topic in metadata.topics().iter().filter(|topic| topic.name() == name) {
                        self.add(topic, &mut topics)?;
                    }
                }
            }
            Subscription::Pattern(pattern) => {
                let metadata = self.all_topics()?;
                // Kafka's own topics are never meant by a pattern.
                let meant = |name: &str| !name.starts_with("__") && pattern.is_match(name);
                for topic in metadata.topics().iter().filter(|topic| meant(topic.name())) {
                    self.add(topic, &mut topics)?;
                }
            }
        }
        Ok(topics)
    }

    fn all_topics(&self) -> Result<rdkafka::metadata::Metadata> {
        self.ask("listing the topics", |timeout| self.consumer.fetch_metadata(None, timeout))
    }

    fn add(&self, topic: &rdkafka::metadata::MetadataTopic, topics: &mut Topics) -> Result<()> {
        let name = topic.name();
        match topic.error().map(RDKafkaErrorCode::from) {
            None => {
                topics.insert(name.to_owned(), topic.partitions().iter().map(|p| p.id()).collect());
                Ok(())
            }
            Some(code) if classify(code, "") == class::TARGET_MISSING => Ok(()),
            Some(code) => {
                let what = format!("looking for topic {name}");
                Err(self.consumer.context().explain(KafkaError::MetadataFetch(code), &self.brokers, &what))
            }
        }
    }

    /// The error about a topic that does not exist, with those that do.
    fn missing(&self, name: &str) -> Result<Error> {
        let metadata = self.all_topics()?;
        let names = metadata.topics().iter().map(|topic| topic.name().to_owned()).collect();
        Ok(missing_topic(&self.brokers, name, names))
    }

    /// First and end offset of all partitions.
    pub(super) fn bounds(&self, topics: &Topics) -> Result<BTreeMap<(String, i32), Bounds>> {
        let low = self.list_offsets(topics, At::Beginning)?;
        let mut high = self.list_offsets(topics, At::End)?;
        let bounds = low.into_iter().filter_map(|(partition, low)| {
            let high = high.remove(&partition)?;
            Some((partition, Bounds { low, high }))
        });
        Ok(bounds.collect())
    }

    /// The offsets of all partitions at a place: the start, the end, or (as [`At::Offset`]) a timestamp in milliseconds, where -1 is
    /// returned for partitions that have nothing that late.
    fn list_offsets(&self, topics: &Topics, at: At) -> Result<BTreeMap<(String, i32), i64>> {
        let mut wanted = BTreeMap::new();
        for (topic, partitions) in topics {
            wanted.extend(partitions.iter().map(|partition| ((topic.clone(), *partition), at)));
        }
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        let what =
            || format!("asking for the offsets of topic {}", topics.keys().cloned().collect::<Vec<_>>().join(", "));
        // The request is Kafka's ListOffsets, in which the start and the end are special timestamps.
        let answer = self.ask(&what(), |timeout| {
            let mut list = TopicPartitionList::with_capacity(wanted.len());
            for ((topic, partition), at) in &wanted {
                list.add_partition_offset(topic, *partition, *at)?;
            }
            self.consumer.offsets_for_times(list, timeout)
        })?;
        let mut offsets = BTreeMap::new();
        for element in answer.elements() {
            element.error().map_err(|error| self.consumer.context().explain(error, &self.brokers, &what()))?;
            let offset = match element.offset() {
                At::Offset(offset) => offset,
                _ => -1,
            };
            offsets.insert((element.topic().to_owned(), element.partition()), offset);
        }
        Ok(offsets)
    }

    /// The offsets of a start.
    pub(super) fn resolve(&self, start: &StartingOffsets, topics: &Topics) -> Result<Offsets> {
        let bounds = self.bounds(topics)?;
        let mut offsets = Offsets::default();
        match start {
            StartingOffsets::Earliest => {
                bounds.iter().for_each(|((topic, partition), bounds)| offsets.set(topic, *partition, bounds.low));
            }
            StartingOffsets::Latest => {
                bounds.iter().for_each(|((topic, partition), bounds)| offsets.set(topic, *partition, bounds.high));
            }
            StartingOffsets::Timestamp(at) => {
                let found = self.list_offsets(topics, At::Offset(at.0))?;
                for ((topic, partition), bounds) in &bounds {
                    let offset = found.get(&(topic.clone(), *partition)).copied().filter(|offset| *offset >= 0);
                    offsets.set(topic, *partition, offset.unwrap_or(bounds.high).min(bounds.high));
                }
            }
            StartingOffsets::Partitions(partitions) => {
                let topic = topics.keys().next().cloned().unwrap_or_default();
                return self.resolve_given(&BTreeMap::from([(topic, partitions.clone())]), &bounds);
            }
            StartingOffsets::Topics(given) => return self.resolve_given(given, &bounds),
        }
        Ok(offsets)
    }

    /// Offsets given by partition: exactly those partitions that exist, and none beyond its end.
    fn resolve_given(
        &self,
        given: &BTreeMap<String, BTreeMap<i32, i64>>,
        bounds: &BTreeMap<(String, i32), Bounds>,
    ) -> Result<Offsets> {
        let invalid = |what: String| Error::new(class::CONFIG_INVALID, format!("starting_offsets: {what}"));
        let mut offsets = Offsets::default();
        for ((topic, partition), Bounds { low, high }) in bounds {
            let wanted = given.get(topic).and_then(|partitions| partitions.get(partition)).ok_or_else(|| {
                invalid(format!(
                    "partition {partition} of topic {topic} is missing: give an offset for each partition (-1 for the end, -2 for the \
                     start)"
                ))
            })?;
            let offset = match wanted {
                -1 => *high,
                -2 => *low,
                beyond if beyond > high => {
                    return Err(invalid(format!(
                        "partition {partition} of topic {topic} ends at offset {high}, before {beyond}"
                    )));
                }
                offset => *offset,
            };
            offsets.set(topic, *partition, offset);
        }
        for (topic, partitions) in given {
            if let Some(unknown) =
                partitions.keys().find(|partition| !bounds.contains_key(&(topic.clone(), **partition)))
            {
                return Err(invalid(format!("topic {topic} has no partition {unknown}")));
            }
        }
        Ok(offsets)
    }

    /// Commits offsets to the consumer group.
    pub(super) fn commit(&self, offsets: &Offsets) -> Result<()> {
        let explain =
            |error| self.consumer.context().explain(error, &self.brokers, "committing offsets to the consumer group");
        let mut list = TopicPartitionList::new();
        for (topic, partition, offset) in offsets.iter() {
            list.add_partition_offset(topic, partition, At::Offset(offset)).map_err(explain)?;
        }
        if list.count() == 0 {
            return Ok(());
        }
        self.consumer.commit(&list, CommitMode::Sync).map_err(explain)?;
        serve(&self.consumer, Duration::ZERO);
        Ok(())
    }
}

/// The error about a topic that does not exist, with the names that are nearest to it.
pub(super) fn missing_topic(brokers: &str, name: &str, mut existing: Vec<String>) -> Error {
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
    fn errors_are_classified_by_their_cause() {
        use RDKafkaErrorCode::*;
        for (code, reason, expected) in [
            (
                BrokerTransportFailure,
                "Connect to ipv4#127.0.0.1:1 failed: Connection refused",
                class::CONNECTION_REFUSED,
            ),
            (BrokerTransportFailure, "Failed to resolve 'nowhere:9092'", class::NAME_NOT_RESOLVED),
            (BrokerTransportFailure, "SSL handshake failed: certificate verify failed", class::TLS_FAILED),
            (BrokerTransportFailure, "Disconnected (after 3ms in state UP)", class::CONNECTION_LOST),
            (Resolve, "", class::NAME_NOT_RESOLVED),
            (Authentication, "", class::AUTHENTICATION_FAILED),
            (TopicAuthorizationFailed, "", class::AUTHORIZATION_FAILED),
            (UnknownTopicOrPartition, "", class::TARGET_MISSING),
            (OperationTimedOut, "", class::TIMEOUT),
            (NotLeaderForPartition, "", class::SERVER_UNAVAILABLE),
            (OffsetOutOfRange, "", class::OFFSET_OUT_OF_RANGE),
        ] {
            assert_eq!(classify(code, reason).code, expected.code, "{code:?} {reason}");
        }
    }

    #[test]
    fn silence_is_explained_by_the_last_complaint() {
        let events = Events::default();
        events.error(KafkaError::Global(RDKafkaErrorCode::Resolve), "Failed to resolve 'nowhere:9092'");
        events.error(KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert!(events.is_hopeless());
        let error =
            events.explain(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut), "nowhere:9092", "listing");
        assert_eq!(error.class(), class::NAME_NOT_RESOLVED);
        assert!(error.to_string().contains("Kafka at nowhere:9092: listing: Failed to resolve"), "{error}");
        events.forget();
        let error = events.explain(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut), "b:1", "listing");
        assert_eq!(error.class(), class::TIMEOUT);
    }

    #[test]
    fn a_missing_topic_is_answered_with_its_neighbours() {
        let names = ["orders", "hydroponic-sensors", "__consumer_offsets"].map(str::to_owned).to_vec();
        let error = missing_topic("b:9092", "hydroponic-sensor", names).to_string();
        assert!(error.contains("did you mean hydroponic-sensors?") && !error.contains("__consumer"), "{error}");
        assert!(missing_topic("b:9092", "x", vec![]).to_string().contains("there are no topics"));
    }
}
