//! InfluxDB.

use perennial_core::error::{Error, Result};
use perennial_core::sink::{Sink, SinkContext, SinkFactory};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// InfluxDB.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InfluxDbSink {
    /// Base URL.
    pub url: String,
    /// The database.
    #[serde(default)]
    pub database: Option<String>,
    /// The token.
    #[serde(default)]
    pub token: Option<perennial_core::config::Secret>,
    /// The measurement.
    pub measurement: String,
    /// Columns that become tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Column of the timestamp.
    #[serde(default)]
    pub time: Option<String>,
}

impl SinkFactory for InfluxDbSink {
    fn open(&self, _: SinkContext) -> Result<Box<dyn Sink>> {
        Err(Error::bug("placeholder"))
    }
}
