//! Properties of librdkafka in a job file.

use std::collections::BTreeMap;
use std::fmt;

use perennial_core::error::{Error, Result, class};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Text, a number or a truth value, as the text that a property file would have.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Scalar(pub String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, a number, or true or false")
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar(value.to_owned()))
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// Properties of librdkafka. Values of keys that hold secrets never show.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Properties(BTreeMap<String, String>);

/// Properties that are set otherwise, and why they cannot be set.
const REFUSED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set brokers instead"),
    ("metadata.broker.list", "set brokers instead"),
    ("group.id", "set group_id of the source instead"),
    ("isolation.level", "set isolation of the source instead"),
    ("auto.offset.reset", "set starting_offsets instead; what happens to lost records is for fail_on_data_loss to say"),
    ("enable.auto.commit", "offsets are committed after the batch that read them (commit_to_group)"),
    ("auto.commit.enable", "offsets are committed after the batch that read them (commit_to_group)"),
    ("auto.commit.interval.ms", "offsets are committed after the batch that read them (commit_to_group)"),
    ("enable.auto.offset.store", "offsets are kept in the checkpoint"),
    ("offset.store.method", "offsets are kept in the checkpoint"),
    ("enable.partition.eof", "the end of a range is found with it"),
    ("group.instance.id", "partitions are assigned by the source, not by a consumer group"),
    ("group.protocol", "partitions are assigned by the source, not by a consumer group"),
    ("group.remote.assignor", "partitions are assigned by the source, not by a consumer group"),
    ("partition.assignment.strategy", "partitions are assigned by the source, not by a consumer group"),
    ("client.rack", "a replica that lags behind its leader would end a batch too early"),
    ("allow.auto.create.topics", "a misspelt topic is an error"),
    ("test.mock.num.brokers", "it replaces the brokers"),
    ("enable.idempotence", "the producer always is"),
    ("transactional.id", "the sink's follows from the identity of the query (id_prefix)"),
    ("log.queue", "log lines go to the job's own log"),
    ("plugin.library.paths", "native plugins are not loaded"),
];

impl Properties {
    /// Properties from pairs of key and value.
    pub fn new<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }

    /// Whether the value of `key` must not show.
    pub(super) fn is_secret(key: &str) -> bool {
        ["password", "secret", "key.pem", "oauthbearer.config", "jaas", "token", "assertion"]
            .iter()
            .any(|part| key.contains(part))
    }

    /// A configuration of librdkafka with these properties and our own habits.
    pub(crate) fn client_config(&self, brokers: &str) -> Result<ClientConfig> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("client.id", "perennial")
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.keepalive.enable", "true")
            .set_log_level(RDKafkaLogLevel::Info);
        for (key, value) in &self.0 {
            if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| refused == key) {
                let message = format!("the property {key} cannot be set: {why}");
                return Err(Error::new(class::CONFIG_INVALID, message));
            }
            config.set(key, value);
        }
        config.create_native_config().map_err(|error| super::errors::config_error(&error))?;
        Ok(config)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    fn shown(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), if Self::is_secret(key) { "***" } else { value }))
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.shown()).finish()
    }
}

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.shown())
    }
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pairs = BTreeMap::<String, Scalar>::deserialize(deserializer)?;
        Ok(Self::new(pairs.into_iter().map(|(key, value)| (key, value.0))))
    }
}

impl JsonSchema for Properties {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "KafkaProperties".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "Properties of librdkafka. Write secrets as `${VAR}` or `${file:/path}`; they are never shown.",
            "additionalProperties": { "type": ["string", "number", "boolean"] },
            "examples": [{ "security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": "job",
                           "sasl.password": "${KAFKA_PASSWORD}" }],
        })
    }
}
