//! What can be set.

use std::collections::BTreeMap;
use std::fmt;

use perennial_core::config::HumanDuration;
use perennial_core::error::{Error, Result, class};
use rdkafka::ClientConfig;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::client::Subscription;
use crate::kafka::{Properties, Scalar, check_topic_name};
use crate::sources::Timestamp;

/// Topics of Apache Kafka. Offsets live in the checkpoint; every batch reads an exact range per partition, so that a batch that is run
/// again reads the same records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaSource {
    /// Addresses of brokers, separated by commas: `kafka-1:9092,kafka-2:9092`. One that answers is enough to find the others.
    pub brokers: String,
    /// The topic to read. Give exactly one of `topic`, `topics` and `topic_pattern`.
    #[serde(default)]
    pub topic: Option<String>,
    /// Several topics to read.
    #[serde(default)]
    pub topics: Option<Vec<String>>,
    /// A regular expression that the whole name of a topic must match; topics that appear later are read, too, from their start.
    #[serde(default)]
    pub topic_pattern: Option<String>,
    /// Where a new query begins (one that has a checkpoint goes on where it was): `latest`, `earliest`, a point in time (the first record
    /// with this timestamp or a later one; the end where there is none), or an offset per partition, `{0: 15, 1: 20}` (for several topics
    /// `{orders: {0: 15}}`), where -1 is the end and -2 the start. Partitions that appear later begin at their start. Default: `latest`.
    #[serde(default)]
    pub starting_offsets: StartingOffsets,
    /// Whether the query fails when records that it has not read are gone (deleted by retention, or with their topic). Otherwise it
    /// warns and goes on with what is left. Default: true.
    #[serde(default = "yes")]
    pub fail_on_data_loss: bool,
    /// At most this many records in one batch, spread over the partitions in proportion to what waits there (offsets without a record,
    /// which compaction and transactions leave, count). Default: no limit.
    #[serde(default)]
    pub max_records_per_batch: Option<u64>,
    /// The consumer group to which the end of each batch is committed. Default: `perennial-<job>-<query>-<source>`.
    #[serde(default)]
    pub group_id: Option<String>,
    /// Whether the end of each batch is committed to the consumer group, so that tools that watch groups see the lag. Perennial itself
    /// never reads it. Default: true.
    #[serde(default = "yes")]
    pub commit_to_group: bool,
    /// Whether records of transactions that are still open or were aborted are left out. Default: `read_committed`.
    #[serde(default)]
    pub isolation: Isolation,
    /// How long a broker may take to answer before the batch fails with `Timeout`. Default: 30 seconds.
    #[serde(default = "default_timeout")]
    pub timeout: HumanDuration,
    /// Properties of librdkafka, for TLS, SASL and tuning: `security.protocol: SASL_SSL`, `sasl.mechanism: SCRAM-SHA-512`,
    /// `sasl.username`, `sasl.password`, `ssl.ca.location`. Values of keys that hold secrets never show. Default: none.
    #[serde(default)]
    pub properties: Properties,
}

fn yes() -> bool {
    true
}

fn default_timeout() -> HumanDuration {
    HumanDuration(std::time::Duration::from_secs(30))
}

/// Which records of transactions are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Only those of committed transactions, and only up to the oldest open one.
    #[default]
    ReadCommitted,
    /// All.
    ReadUncommitted,
}

impl KafkaSource {
    /// The settings of one topic, all others at their defaults.
    pub fn new(brokers: impl Into<String>, topic: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            topic: Some(topic.into()),
            topics: None,
            topic_pattern: None,
            starting_offsets: StartingOffsets::default(),
            fail_on_data_loss: true,
            max_records_per_batch: None,
            group_id: None,
            commit_to_group: true,
            isolation: Isolation::default(),
            timeout: default_timeout(),
            properties: Properties::default(),
        }
    }

    /// Which topics are read; refuses settings that do not go together.
    pub(super) fn subscription(&self) -> Result<Subscription> {
        let invalid = |what: String| Err(Error::new(class::CONFIG_INVALID, what));
        if self.brokers.trim().is_empty() {
            return invalid("brokers is empty: give at least one address, host:port".into());
        }
        if self.max_records_per_batch == Some(0) {
            return invalid("max_records_per_batch is 0: give at least 1, or leave it out".into());
        }
        if self.timeout.0.is_zero() {
            return invalid("timeout is 0: give a duration such as `30 seconds`".into());
        }
        let subscription = match (&self.topic, &self.topics, &self.topic_pattern) {
            (Some(topic), None, None) => Subscription::Names(vec![topic.clone()]),
            (None, Some(topics), None) => Subscription::Names(topics.clone()),
            (None, None, Some(pattern)) => match regex::Regex::new(&format!("^(?:{pattern})$")) {
                Ok(regex) => Subscription::Pattern(regex),
                Err(error) => {
                    return invalid(format!("topic_pattern `{pattern}` is not a regular expression: {error}"));
                }
            },
            _ => return invalid("give exactly one of topic, topics and topic_pattern".into()),
        };
        if let Subscription::Names(names) = &subscription {
            if names.is_empty() {
                return invalid("topics is empty: give at least one name".into());
            }
            for name in names {
                check_topic_name(name)?;
            }
            if names.len() > 1 && matches!(self.starting_offsets, StartingOffsets::Partitions(_)) {
                return invalid(
                    "starting_offsets by partition is for one topic: write {topic: {0: 15}} for several".into(),
                );
            }
        } else if matches!(self.starting_offsets, StartingOffsets::Partitions(_)) {
            return invalid(
                "starting_offsets by partition is for one topic: write {topic: {0: 15}} with a topic_pattern".into(),
            );
        }
        Ok(subscription)
    }

    /// The configuration for requests: metadata, offsets, commits.
    pub(super) fn client_config(&self, group: &str) -> Result<ClientConfig> {
        let mut config = self.properties.client_config(&self.brokers)?;
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("allow.auto.create.topics", "false")
            .set(
                "isolation.level",
                match self.isolation {
                    Isolation::ReadCommitted => "read_committed",
                    Isolation::ReadUncommitted => "read_uncommitted",
                },
            );
        Ok(config)
    }

    /// The configuration for reading so many partitions. What the client reads ahead is bounded by about 64 MB and 100,000 records in all;
    /// what is set in `properties` wins.
    pub(super) fn reader_config(&self, group: &str, partitions: usize) -> Result<ClientConfig> {
        let mut config = self.client_config(group)?;
        let partitions = partitions.max(1);
        for (key, value) in [
            ("queued.min.messages", (100_000 / partitions).clamp(2_000, 50_000)),
            ("queued.max.messages.kbytes", (65_536 / partitions).clamp(1_024, 16_384)),
            // A full queue must not stop the fetches for long: it is drained a million times a second.
            ("fetch.queue.backoff.ms", 5),
            ("fetch.wait.max.ms", 50),
        ] {
            if !self.properties.has(key) {
                config.set(key, value.to_string());
            }
        }
        Ok(config)
    }
}

/// Where a new query begins.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum StartingOffsets {
    /// At the end: only records that come from now on.
    #[default]
    Latest,
    /// At the oldest record that is there.
    Earliest,
    /// At the first record with this timestamp or a later one.
    Timestamp(Timestamp),
    /// At an offset per partition of the one topic; -1 is the end, -2 the start.
    Partitions(BTreeMap<i32, i64>),
    /// At an offset per topic and partition.
    Topics(BTreeMap<String, BTreeMap<i32, i64>>),
}

impl Serialize for StartingOffsets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Latest => serializer.serialize_str("latest"),
            Self::Earliest => serializer.serialize_str("earliest"),
            Self::Timestamp(at) => at.serialize(serializer),
            Self::Partitions(offsets) => offsets.serialize(serializer),
            Self::Topics(offsets) => offsets.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for StartingOffsets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = StartingOffsets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`latest`, `earliest`, a point in time, or offsets by partition (`{0: 15, 1: 20}`)")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<StartingOffsets, E> {
                match text.trim() {
                    "latest" => Ok(StartingOffsets::Latest),
                    "earliest" => Ok(StartingOffsets::Earliest),
                    other => other
                        .parse()
                        .map(StartingOffsets::Timestamp)
                        .map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_i64<E: de::Error>(self, ms: i64) -> Result<StartingOffsets, E> {
                Ok(StartingOffsets::Timestamp(Timestamp(ms)))
            }

            fn visit_u64<E: de::Error>(self, ms: u64) -> Result<StartingOffsets, E> {
                i64::try_from(ms).map(|ms| StartingOffsets::Timestamp(Timestamp(ms))).map_err(E::custom)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<StartingOffsets, A::Error> {
                let (mut partitions, mut topics) = (BTreeMap::new(), BTreeMap::new());
                while let Some(Scalar(key)) = map.next_key()? {
                    match map.next_value()? {
                        Value::Offset(offset) => {
                            let partition = partition::<A::Error>(&key)?;
                            partitions.insert(partition, checked(offset)?);
                        }
                        Value::Partitions(offsets) => {
                            let offsets = offsets
                                .into_iter()
                                .map(|(key, offset)| Ok((partition::<A::Error>(&key.0)?, checked(offset)?)))
                                .collect::<Result<_, A::Error>>()?;
                            topics.insert(key, offsets);
                        }
                    }
                }
                match (partitions.is_empty(), topics.is_empty()) {
                    (false, true) => Ok(StartingOffsets::Partitions(partitions)),
                    (true, false) => Ok(StartingOffsets::Topics(topics)),
                    (true, true) => Err(de::Error::custom("starting_offsets has no partition")),
                    (false, false) => Err(de::Error::custom("starting_offsets mixes partitions and topics")),
                }
            }
        }

        fn partition<E: de::Error>(key: &str) -> Result<i32, E> {
            match key.parse() {
                Ok(partition) if partition >= 0 => Ok(partition),
                _ => Err(E::custom(format!("`{key}` is not the number of a partition"))),
            }
        }

        fn checked<E: de::Error>(offset: i64) -> Result<i64, E> {
            if offset >= -2 {
                Ok(offset)
            } else {
                Err(E::custom(format!(
                    "{offset} is not an offset: give 0 or more, -1 for the end, or -2 for the start"
                )))
            }
        }

        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Value {
            Offset(i64),
            Partitions(BTreeMap<Scalar, i64>),
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for StartingOffsets {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "StartingOffsets".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let partitions = serde_json::json!({
            "type": "object",
            "propertyNames": { "pattern": "^[0-9]+$" },
            "additionalProperties": { "type": "integer", "minimum": -2 },
        });
        json_schema!({
            "description": "`latest`, `earliest`, a point in time, or an offset per partition (-1: the end, -2: the start).",
            "anyOf": [
                { "enum": ["latest", "earliest"] },
                { "type": ["string", "integer"], "description": "A point in time: ISO text or milliseconds since the epoch." },
                partitions,
                { "type": "object", "additionalProperties": partitions },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> KafkaSource {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn starting_offsets_are_read_in_all_forms() {
        for (json, expected) in [
            (r#""latest""#, StartingOffsets::Latest),
            (r#""earliest""#, StartingOffsets::Earliest),
            (r#""1970-01-01T00:00:01Z""#, StartingOffsets::Timestamp(Timestamp(1000))),
            ("1500", StartingOffsets::Timestamp(Timestamp(1500))),
            (r#"{"0": 15, "1": -2}"#, StartingOffsets::Partitions([(0, 15), (1, -2)].into())),
            (r#"{"t": {"0": 15}}"#, StartingOffsets::Topics([("t".into(), [(0, 15)].into())].into())),
        ] {
            let read: StartingOffsets = serde_json::from_str(json).unwrap();
            assert_eq!(read, expected, "{json}");
            let back = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<StartingOffsets>(&back).unwrap(), expected, "{back}");
        }
        for (wrong, part) in [
            (r#""newest""#, "expected `latest`, `earliest`"),
            (r#"{"0": -3}"#, "-3 is not an offset"),
            (r#"{"zero": 3}"#, "`zero` is not the number of a partition"),
            ("{}", "no partition"),
            (r#"{"0": 3, "t": {"0": 1}}"#, "mixes"),
            ("[1]", "expected"),
        ] {
            let error = serde_json::from_str::<StartingOffsets>(wrong).unwrap_err().to_string();
            assert!(error.contains(part), "{wrong}: {error}");
        }
    }

    #[test]
    fn secrets_in_properties_do_not_show() {
        let settings = settings(
            r#"{"brokers": "b", "topic": "t",
                "properties": {"sasl.password": "hunter2", "ssl.key.password": "hunter2", "sasl.username": "job", "socket.timeout.ms": 5000}}"#,
        );
        for shown in [format!("{settings:?}"), serde_json::to_string(&settings).unwrap()] {
            assert!(!shown.contains("hunter2"), "{shown}");
            assert!(shown.contains("\"sasl.username\"") && shown.contains("5000"), "{shown}");
        }
    }

    #[test]
    fn wrong_settings_say_what_to_do() {
        for (json, part) in [
            (r#"{"brokers": "b"}"#, "exactly one of topic"),
            (r#"{"brokers": "b", "topic": "t", "topics": ["u"]}"#, "exactly one of topic"),
            (r#"{"brokers": " ", "topic": "t"}"#, "brokers is empty"),
            (r#"{"brokers": "b", "topics": []}"#, "topics is empty"),
            (r#"{"brokers": "b", "topic": "a b"}"#, "`a b` is not the name of a topic"),
            (r#"{"brokers": "b", "topic_pattern": "("}"#, "not a regular expression"),
            (r#"{"brokers": "b", "topics": ["t", "u"], "starting_offsets": {"0": 1}}"#, "write {topic: {0: 15}}"),
            (r#"{"brokers": "b", "topic": "t", "max_records_per_batch": 0}"#, "at least 1"),
        ] {
            let error = settings(json).subscription().unwrap_err();
            assert_eq!(error.class(), class::CONFIG_INVALID);
            assert!(error.to_string().contains(part), "{json}: {error}");
        }
        for (properties, part) in [
            (r#"{"enable.auto.commit": true}"#, "enable.auto.commit cannot be set: offsets are committed after"),
            (r#"{"group.id": "g"}"#, "set group_id of the source instead"),
            (r#"{"auto.offset.reset": "earliest"}"#, "set starting_offsets instead"),
            (r#"{"no.such.key": "x"}"#, "no.such.key"),
            (r#"{"security.protocol": "carrier pigeon"}"#, "security.protocol"),
        ] {
            let settings = settings(&format!(r#"{{"brokers": "b", "topic": "t", "properties": {properties}}}"#));
            let error = settings.client_config("g").unwrap_err();
            assert_eq!(error.class(), class::CONFIG_INVALID, "{properties}");
            assert!(error.to_string().contains(part), "{properties}: {error}");
        }
        assert!(
            serde_json::from_str::<KafkaSource>(r#"{"brokers": "b", "topic": "t", "fail_on_dataloss": true}"#).is_err()
        );
    }
}
