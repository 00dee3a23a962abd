//! Files: Parquet, JSON lines, CSV.

use perennial_core::error::{Error, Result};
use perennial_core::sink::{Sink, SinkContext, SinkFactory};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Files: Parquet, JSON lines, CSV.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesSink {
    /// The directory.
    pub path: String,
    /// `parquet`, `json` or `csv`.
    #[serde(default)]
    pub format: Option<String>,
    /// Columns that become directories.
    #[serde(default)]
    pub partition_by: Vec<String>,
}

impl SinkFactory for FilesSink {
    fn open(&self, _: SinkContext) -> Result<Box<dyn Sink>> {
        Err(Error::bug("placeholder"))
    }
}
