//! PostgreSQL.

use perennial_core::error::{Error, Result};
use perennial_core::sink::{Sink, SinkContext, SinkFactory};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// PostgreSQL.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresSink {
    /// `postgres://user:password@host:port/database`.
    pub url: perennial_core::config::Secret,
    /// The table.
    pub table: String,
    /// Columns by which rows are upserted.
    #[serde(default)]
    pub key: Vec<String>,
}

impl SinkFactory for PostgresSink {
    fn open(&self, _: SinkContext) -> Result<Box<dyn Sink>> {
        Err(Error::bug("placeholder"))
    }
}
