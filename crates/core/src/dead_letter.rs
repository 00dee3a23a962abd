//! Dead letters: what could not be processed, kept whole with the reason, once.

mod entry;
mod files;
mod outcome;
mod record;
mod retention;

use std::collections::{BTreeMap, HashSet};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{ErrorClass, Result};
use crate::records::RawRecord;
use crate::sink::BatchId;

pub use entry::entries_of;
pub use files::{FileDeadLetters, Journal};
pub use outcome::{Mark, Outcome, Standing};
pub use record::{KeptRecord, decode as decode_record, set_value};

/// Where in the way of a batch a record failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It could not be decoded.
    Decode,
    /// It broke an expectation.
    Expectation,
    /// An expression of the query failed on it.
    Execute,
    /// The sink refused it.
    Sink,
    /// The watermark had passed its event time.
    Watermark,
}

/// How the name in [`DeadLetter::source`] begins where the letter is no record of a source, but a row of the result of the query that
/// follows: the sink refused it, and the records that it came from are in the state. It cannot be run again.
pub const RESULT_OF: &str = "result of ";

/// One record that failed.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Name of the source; see [`RESULT_OF`].
    pub source: String,
    /// The record exactly as read. For sources of rows, the value is the row as JSON.
    pub record: RawRecord,
    /// Where it failed.
    pub stage: Stage,
    /// Class of the error.
    pub class: &'static ErrorClass,
    /// What was wrong.
    pub message: String,
    /// Expectations that it broke.
    pub rules: Vec<String>,
}

/// The batch that dead letters belong to.
#[derive(Debug, Clone)]
pub struct LetterBatch {
    /// Name of the query.
    pub query: String,
    /// Number of the batch.
    pub batch: BatchId,
    /// Timestamp of the batch in the offset log, in milliseconds since the epoch: the same in every attempt.
    pub timestamp_ms: i64,
    /// Timestamp of the batch before, in milliseconds since the epoch; 0 for none.
    pub last_timestamp_ms: i64,
    /// Records that the batch read.
    pub records_read: u64,
    /// Version of the job.
    pub job_version: String,
    /// Whether an earlier attempt at this batch may have written its letters.
    pub again: bool,
}

/// The error part of an entry, as people know it from their PySpark jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntryError {
    /// The error class.
    #[serde(rename = "type")]
    pub class: String,
    /// The message of the first record.
    pub message: String,
    /// What to do.
    pub recommendation: String,
    /// What the job did.
    pub action: String,
}

/// The context part of an entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntryContext {
    /// The batch.
    pub batch_id: BatchId,
    /// The batch timestamp of the batch before.
    pub last_ts: String,
    /// Records that the batch read.
    pub records_queried: u64,
}

/// One line of `failed_batches_YYYYMMDD.json`: one for each batch and error class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The batch.
    pub batch_id: BatchId,
    /// The batch timestamp, `2025-11-21T09:45:30.123456`, UTC.
    pub timestamp: String,
    /// The error.
    pub error: EntryError,
    /// The context.
    pub context: EntryContext,
    /// At most the first five records, as JSON where they are JSON.
    pub sample_records: Vec<serde_json::Value>,
    /// Identity of the entry: query, batch and class. Unique.
    pub id: String,
    /// The query.
    pub query: String,
    /// How many records failed so.
    pub records: u64,
    /// The object that holds them all, whole, relative to the directory of the dead letters.
    pub records_object: String,
    /// The version of the job.
    pub job_version: String,
}

/// What is in the dead letters, in the shape of `GET /health/dlq`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, schemars::JsonSchema)]
pub struct DeadLetterStats {
    /// Number of entries (batches and errors, not records).
    pub total_entries: u64,
    /// Entries by error class.
    pub error_types: BTreeMap<String, u64>,
    /// The oldest entry.
    pub first_error: Option<EntrySummary>,
    /// The newest entry.
    pub last_error: Option<EntrySummary>,
    /// Where they lie.
    pub dlq_directory: String,
}

/// An entry, in short.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema)]
pub struct EntrySummary {
    /// The batch.
    pub batch_id: BatchId,
    /// When.
    pub timestamp: String,
    /// The error class.
    pub error_type: String,
}

/// Where dead letters go, and where they are looked into.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// Where they lie, as people are told.
    fn place(&self) -> String;

    /// Writes the letters of a batch; durable when it returns. Writing the letters of a batch again has no effect.
    async fn write(&self, batch: &LetterBatch, letters: Vec<DeadLetter>) -> Result<()>;

    /// Notes how entries stand now. Noting the same again has no effect.
    async fn mark(&self, marks: &[Mark]) -> Result<()>;

    /// All entries, oldest first.
    async fn entries(&self) -> Result<Vec<Entry>>;

    /// How the entries stand that have a mark, by their ids.
    async fn standings(&self) -> Result<BTreeMap<String, Standing>>;

    /// The records of an entry in their order, one JSON object each, as [`decode_record`] takes them.
    async fn records(&self, entry: &Entry) -> Result<Vec<serde_json::Map<String, serde_json::Value>>>;

    /// Removes entries with their records, whatever their age; returns how many there were.
    async fn purge(&self, gone: &HashSet<String>) -> Result<u64>;

    /// What is there.
    async fn stats(&self) -> Result<DeadLetterStats>;

    /// Removes what is older than it is to be kept, where that is limited; returns how many entries were removed. `now_ms` is the time in
    /// milliseconds since the epoch. Called now and then; what fails is tried again the next time.
    async fn expire(&self, now_ms: i64) -> Result<u64>;
}

/// A timestamp as the entries have it: microseconds, UTC, without a suffix.
pub fn timestamp_text(micros: i64) -> String {
    chrono::DateTime::from_timestamp_micros(micros).unwrap_or_default().format("%Y-%m-%dT%H:%M:%S%.6f").to_string()
}

/// Bytes as JSON: text where they are UTF-8.
fn text_or_base64(bytes: &Bytes) -> (&'static str, String) {
    use base64::Engine;
    match std::str::from_utf8(bytes) {
        Ok(text) => ("", text.to_owned()),
        Err(_) => ("_base64", base64::engine::general_purpose::STANDARD.encode(bytes)),
    }
}
