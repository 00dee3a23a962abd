//! Decoding: raw records to rows, with the rejected ones aside.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::error::{ErrorClass, Result};
use crate::records::{Input, RecordBlock, RecordIndex};

/// Turns blocks of raw records into rows of a fixed schema. Called from several threads at once.
pub trait Decoder: Send + Sync + std::fmt::Debug {
    /// The schema of the rows.
    fn schema(&self) -> SchemaRef;

    /// Whether it takes rows ([`Input::Rows`], of a format that is columnar by itself) rather than raw records.
    fn takes_rows(&self) -> bool {
        false
    }

    /// Decodes one block. One malformed record never spoils its neighbours: it becomes a [`Rejected`], or whatever the format's mode
    /// says. An error stops the batch.
    fn decode(&self, input: Input) -> Result<Decoded>;
}

/// The outcome of decoding one block.
///
/// Every record is in it: `rows` and `rejected` add up to what was read, where a record of several rows (a JSON array) counts once per
/// row, and `dropped` counts the records that the format was told to drop.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// The rows, in the order of the records.
    pub rows: RecordBatch,
    /// Which record each row came from.
    pub origin: Origin,
    /// Records that could not be decoded.
    pub rejected: Vec<Rejected>,
    /// Records that were dropped silently because the job file says so (`mode: dropmalformed`).
    pub dropped: u64,
}

/// Which record of which block each row came from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The block, or `None` when the source gave rows and there are no raw bytes: then the row itself is the record.
    pub block: Option<Arc<RecordBlock>>,
    /// Per row the record; `None` when row `i` is record `i`.
    pub records: Option<Vec<RecordIndex>>,
}

impl Origin {
    /// The record of row `row`.
    pub fn record_of(&self, row: usize) -> RecordIndex {
        self.records.as_ref().map_or(row as RecordIndex, |records| records[row])
    }
}

/// A record that cannot be decoded.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// Which record of the block.
    pub record: RecordIndex,
    /// Its class.
    pub class: &'static ErrorClass,
    /// What is wrong with it, and where in it.
    pub reason: String,
}
