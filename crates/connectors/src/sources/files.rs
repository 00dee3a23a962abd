//! Files of a directory or a glob.

use perennial_core::error::{Error, Result};
use perennial_core::source::{Source, SourceContext, SourceFactory};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Files of a directory or a glob.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesSource {
    /// Directory or glob.
    pub path: String,
    /// At most this many files per batch.
    #[serde(default)]
    pub max_files_per_batch: Option<u64>,
}

impl SourceFactory for FilesSource {
    fn open(&self, _: SourceContext) -> Result<Box<dyn Source>> {
        Err(Error::bug("placeholder"))
    }
}
