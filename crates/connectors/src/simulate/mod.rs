//! Simulated records: replayable profiles.

use perennial_core::error::{Error, Result};
use perennial_core::source::{Source, SourceContext, SourceFactory};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Simulated records: replayable profiles.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SimulateSource {
    /// Which records.
    pub profile: String,
    /// Records per second.
    #[serde(default)]
    pub rate: Option<u64>,
    /// Another seed gives other records.
    #[serde(default)]
    pub seed: u64,
}

impl SourceFactory for SimulateSource {
    fn open(&self, _: SourceContext) -> Result<Box<dyn Source>> {
        Err(Error::bug("placeholder"))
    }
}
