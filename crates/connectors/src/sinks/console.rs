//! The terminal.

use perennial_core::error::{Error, Result};
use perennial_core::sink::{Sink, SinkContext, SinkFactory};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The terminal.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSink {
    /// At most this many rows per batch.
    #[serde(default)]
    pub rows: Option<u64>,
}

impl SinkFactory for ConsoleSink {
    fn open(&self, _: SinkContext) -> Result<Box<dyn Sink>> {
        Err(Error::bug("placeholder"))
    }
}
