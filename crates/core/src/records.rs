//! Raw records on their way from a source to the decoder, with where they came from.
//!
//! A block is the unit of work: a few megabytes that one core decodes in one go. Records stay in the buffer they were read into;
//! nothing is copied until a record is dead-lettered.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, BinaryArray, RecordBatch};
use bytes::Bytes;

/// What a source gives: raw records, or rows from a format that is columnar by itself (Parquet).
#[derive(Debug, Clone)]
pub enum Input {
    /// Records that a decoder has to decode.
    Records(RecordBlock),
    /// Rows that are decoded already, from `position` (of the first row) on. Their columns are those that the decoder was asked for.
    Rows(RecordBatch, Position),
}

impl Input {
    /// Where the first record came from.
    pub fn position(&self) -> &Position {
        match self {
            Self::Records(block) => &block.position,
            Self::Rows(_, position) => position,
        }
    }
}

/// Raw records of one source in one buffer.
#[derive(Debug, Clone)]
pub struct RecordBlock {
    /// The bytes.
    pub payload: Payload,
    /// Where the first record came from, and with what.
    pub position: Position,
}

/// The bytes of a block.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Text lines, each ended by `\n` (or `\r\n`); the last may lack it. A block always holds whole lines.
    Lines(Bytes),
    /// One value per record; null is a record without a value (a tombstone in Kafka).
    Values(BinaryArray),
}

/// Where the records of a block came from.
#[derive(Debug, Clone)]
pub enum Position {
    /// A file: its path or URL and the byte offset (of the decompressed content) or row number at which the block begins.
    File {
        /// Path or URL.
        path: Arc<str>,
        /// Byte offset of the block's first byte; for columnar formats the number of its first row.
        offset: u64,
    },
    /// A Kafka partition; the arrays go with the records of the block.
    Kafka {
        /// Topic.
        topic: Arc<str>,
        /// Partition.
        partition: i32,
        /// Offset of each record.
        offsets: Arc<[i64]>,
        /// Timestamp of each record, in milliseconds since the epoch; -1 where the record has none.
        timestamps: Arc<[i64]>,
        /// Key of each record.
        keys: BinaryArray,
    },
    /// A sequence in which record `i` of the block is number `first + i` (generators, tables with a running number).
    Sequence {
        /// Which sequence, for people.
        name: Arc<str>,
        /// Number of the first record.
        first: u64,
    },
}

impl Position {
    /// The partition of the source that the records are in: Kafka's, or the sequence. The files of a source are one.
    pub fn partition(&self) -> String {
        match self {
            Self::File { .. } => String::new(),
            Self::Kafka { topic, partition, .. } => format!("{topic}-{partition}"),
            Self::Sequence { name, .. } => name.to_string(),
        }
    }
}

/// Which record of a block: its index for [`Payload::Values`], the byte offset of its first byte for [`Payload::Lines`].
pub type RecordIndex = u32;

/// Where one record came from, as dead letters tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordPosition {
    /// In a file.
    File {
        /// Path or URL.
        path: Arc<str>,
        /// Byte offset (or row number).
        offset: u64,
    },
    /// In a Kafka partition.
    Kafka {
        /// Topic.
        topic: Arc<str>,
        /// Partition.
        partition: i32,
        /// Offset.
        offset: i64,
        /// Milliseconds since the epoch, -1 for none.
        timestamp: i64,
    },
    /// In a sequence.
    Sequence {
        /// Which.
        name: Arc<str>,
        /// Number of the record.
        number: u64,
    },
}

impl fmt::Display for RecordPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, offset } => write!(f, "{path} at {offset}"),
            Self::Kafka { topic, partition, offset, .. } => write!(f, "{topic}-{partition} at {offset}"),
            Self::Sequence { name, number } => write!(f, "{name}, row {number}"),
        }
    }
}

/// One record, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRecord {
    /// Key, where the source has keys.
    pub key: Option<Bytes>,
    /// Value exactly as read; `None` is a record without a value.
    pub value: Option<Bytes>,
    /// Where it came from.
    pub position: RecordPosition,
}

impl RecordBlock {
    /// Bytes of payload.
    pub fn byte_len(&self) -> usize {
        match &self.payload {
            Payload::Lines(text) => text.len(),
            Payload::Values(values) => values.value_data().len(),
        }
    }

    /// The record at `index`, copied out of the block. `None` where the block has no such record.
    pub fn record(&self, index: RecordIndex) -> Option<RawRecord> {
        let at = index as usize;
        let value = match &self.payload {
            Payload::Lines(text) => {
                let rest = text.get(at..)?;
                let end = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
                let line = &rest[..end];
                Some(Bytes::copy_from_slice(line.strip_suffix(b"\r").unwrap_or(line)))
            }
            Payload::Values(values) if at >= values.len() => return None,
            Payload::Values(values) => values.is_valid(at).then(|| Bytes::copy_from_slice(values.value(at))),
        };
        let (key, position) = match &self.position {
            Position::File { path, offset } => {
                (None, RecordPosition::File { path: path.clone(), offset: offset + u64::from(index) })
            }
            Position::Kafka { topic, partition, offsets, timestamps, keys } => (
                keys.is_valid(at).then(|| Bytes::copy_from_slice(keys.value(at))),
                RecordPosition::Kafka {
                    topic: topic.clone(),
                    partition: *partition,
                    offset: *offsets.get(at)?,
                    timestamp: *timestamps.get(at)?,
                },
            ),
            Position::Sequence { name, first } => {
                (None, RecordPosition::Sequence { name: name.clone(), number: first + u64::from(index) })
            }
        };
        Some(RawRecord { key, value, position })
    }
}
