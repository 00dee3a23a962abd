//! Apache Kafka.

use perennial_core::error::{Error, Result};
use perennial_core::source::{Source, SourceContext, SourceFactory};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Apache Kafka.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaSource {
    /// Addresses of the brokers, `host:port`, separated by commas.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// Where the first batch starts: `latest`, `earliest`, offsets by partition or a timestamp.
    #[serde(default)]
    pub starting_offsets: Option<serde_json::Value>,
    /// Stop when records are gone before they were read.
    #[serde(default)]
    pub fail_on_data_loss: bool,
    /// At most this many records per batch.
    #[serde(default)]
    pub max_records_per_batch: Option<u64>,
    /// Properties of librdkafka.
    #[serde(default)]
    pub properties: std::collections::BTreeMap<String, perennial_core::config::Secret>,
}

impl SourceFactory for KafkaSource {
    fn open(&self, _: SourceContext) -> Result<Box<dyn Source>> {
        Err(Error::bug("placeholder"))
    }
}
