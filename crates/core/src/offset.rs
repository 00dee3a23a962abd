//! Offsets: positions in a source, as the offset log holds them.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, Result, class};

/// A position in a source: "everything before this has been read".
///
/// It is the JSON text that stands in `offsets/N`, in the shape that Spark gives that source (Kafka: `{"topic":{"0":23}}`, files:
/// `{"logOffset":3}`), so that Spark's tools can read it. Only the source knows what is inside. One line, compact.
#[derive(Clone, PartialEq, Eq)]
pub struct Offset(Arc<str>);

impl Offset {
    /// The offset that stands in a line of the log.
    pub fn from_json(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// Writes a source's own offset type.
    pub fn encode<T: Serialize>(value: &T) -> Result<Self> {
        let text = serde_json::to_string(value).map_err(|e| Error::bug(format!("an offset does not encode: {e}")))?;
        Ok(Self(text.into()))
    }

    /// Reads a source's own offset type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.0).map_err(|e| {
            Error::new(class::CHECKPOINT_MISMATCH, format!("the offset {self} is not one of this source: {e}"))
        })
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a batch reads from one source: from `start` (exclusive of nothing, `None` = from the source's first offset) up to `end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetRange {
    /// Where the batch before ended; `None` for the first batch of a source.
    pub start: Option<Offset>,
    /// Where this batch ends.
    pub end: Offset,
}

impl OffsetRange {
    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.start.as_ref() == Some(&self.end)
    }
}
