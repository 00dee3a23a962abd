//! SQLite.

use perennial_core::error::{Error, Result};
use perennial_core::sink::{Sink, SinkContext, SinkFactory};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// SQLite.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqliteSink {
    /// The database file.
    pub path: String,
    /// The table.
    pub table: String,
    /// Columns by which rows are upserted.
    #[serde(default)]
    pub key: Vec<String>,
}

impl SinkFactory for SqliteSink {
    fn open(&self, _: SinkContext) -> Result<Box<dyn Sink>> {
        Err(Error::bug("placeholder"))
    }
}
