//! Requests of the source.

use std::collections::BTreeMap;
use std::time::Duration;

use perennial_core::error::{Error, Result, class};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, Offset as At, TopicPartitionList};

use super::offsets::Offsets;
use super::settings::{KafkaSource, StartingOffsets};
use crate::kafka::{Events, Requests, classify, config_error, missing_topic};

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

/// Serves what librdkafka has to tell, for at most about this long.
pub(super) fn serve(consumer: &BaseConsumer<Events>, wait: Duration) {
    // Without an assignment no record can come this way: only errors, which the context has already seen.
    while consumer.poll(wait).is_some() {}
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
        let serve = || serve(&self.consumer, Duration::from_millis(5));
        let events = self.consumer.context();
        Requests { events, brokers: &self.brokers, timeout: self.timeout, serve: &serve }.ask(what, request)
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
