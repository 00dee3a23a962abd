//! Formats: decoders from raw records to rows.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The format of a source's records.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// JSON.
    Json(JsonOptions),
    /// Parquet.
    Parquet,
}

impl Default for Format {
    fn default() -> Self {
        Self::Json(JsonOptions::default())
    }
}

/// Options of JSON.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JsonOptions {
    /// What happens to a malformed record.
    pub mode: Option<String>,
}
