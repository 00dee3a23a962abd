//! What holds the rows of a query while it runs: memory, or a disk.

use std::path::PathBuf;
use std::sync::Arc;

use super::StatePartition;
use super::row::{EncodedKeys, EncodedRows, KeyValue};
use crate::error::Result;
use arrow::array::RecordBatch;

/// Where the rows of a query's state are while it runs. What makes them durable is the same for all: the files of the checkpoint.
#[derive(Debug, Clone, Default)]
pub enum Backend {
    /// In memory.
    #[default]
    Memory,
    /// On a local disk, with a part of them in memory.
    Disk(DiskOptions),
}

/// How state is kept on a local disk.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// Where the files are.
    pub scratch: Arc<dyn Scratch>,
    /// Bytes of memory for what was read lately; what was written lately takes as many at most.
    pub cache_bytes: u64,
}

/// A place for files that nobody misses when they are gone.
pub trait Scratch: Send + Sync + std::fmt::Debug {
    /// An empty directory of this name, for the caller alone; what is there from before is removed. The name may have `/` in it.
    fn empty(&self, name: &str) -> Result<PathBuf>;
}

/// What a batch changed, for the delta: each key once, in `rows` or in `removed`.
pub(super) struct Changes {
    /// Rows that were added or changed, as they are now.
    pub rows: Vec<RecordBatch>,
    /// Keys that were there before the batch and are not any more.
    pub removed: Vec<RecordBatch>,
}

/// A partition as the store sees it.
///
/// Changes of a batch are seen at once; [`commit`](Self::commit) makes them final and [`abort`](Self::abort) takes them back, each at the cost
/// of the changes.
pub(super) trait Stored: StatePartition + std::fmt::Debug {
    /// How many records were written or removed since the last commit; 0 where nothing was.
    fn changed_records(&self) -> usize;

    /// What changed since the last commit.
    fn changes(&self) -> Result<Changes>;

    /// Makes the changes since the last commit final. After an error the partition cannot be used any more.
    fn commit(&mut self) -> Result<()>;

    /// Takes back the changes since the last commit.
    fn abort(&mut self);

    /// Inserts or replaces rows that were read back: the change is final at once.
    fn load(&mut self, rows: &EncodedRows) -> Result<()>;

    /// Removes keys as [`load`](Self::load) adds rows.
    fn unload(&mut self, keys: &EncodedKeys) -> Result<()>;

    /// All rows are loaded.
    fn loaded(&mut self) -> Result<()>;

    /// All rows as they are now, for a snapshot that is written while batches go on. What it needs stays until all ends of `pin` are dropped.
    fn picture(&mut self, pin: &Arc<()>) -> Picture;

    /// A copy of the bytes of a chunk of the memory, for a [`Picture::Chunks`].
    fn copy_chunk(&self, _chunk: usize) -> Vec<u8> {
        Vec::new()
    }
}

/// The rows of a partition for a snapshot.
pub(super) enum Picture {
    /// Chunks of memory, each to be copied when it is needed: rows may then be newer than the picture.
    Chunks(std::ops::Range<usize>),
    /// Rows as they were when the picture was taken.
    Rows(Box<dyn Iterator<Item = Result<OwnedRow>> + Send>),
}

/// Key and value of a row.
pub(super) struct OwnedRow {
    pub key: Box<[u8]>,
    pub value: Box<[u8]>,
}

impl OwnedRow {
    pub fn bytes(&self) -> KeyValue<'_> {
        (&self.key, &self.value)
    }
}
