//! State: keyed rows of the stateful operators of a query, versioned by batch.
//!
//! [`StatePartition`] is what an operator sees of it, within a batch. Its rows are in memory or on a local disk ([`Backend`]); both
//! are copies that a restart makes anew. [`StateStore`] owns the partitions of all operators of a query and makes versions durable:
//!
//! - A batch writes one file for all operators and partitions, `<version>.<epoch>.delta`: one file costs one fsync. It has
//!   the last value of each key that was changed, and the keys that were removed. A batch without a change writes nothing.
//! - Once the deltas are many or large, a snapshot is written in the background: all rows, in files of moderate size,
//!   `<version>.<epoch>.<part>.snapshot`, which are loaded in parallel. A snapshot can always be thrown away: the deltas are the truth.
//! - The commit log has a [`StateRef`] per batch. It says which files make up that version, so no directory is ever listed to find out.
//! - A file's sections are apart by operator and partition, so a reader can take those that it needs. A reader with another number of
//!   partitions spreads the rows by their keys.
//!
//! Names have the epoch of the writer in them and are created, never overwritten: whoever was left behind cannot change
//! what a newer process wrote. The container of the files is described in the module `file`.
//!
//! A snapshot is not a picture of one moment. Its writer goes through the memory chunk by chunk and holds a partition only while it
//! copies one chunk; batches go on in between. So a chunk may have rows that are newer than the version at which the snapshot began, and
//! it lacks those that the batch of that moment has touched. All of them are in deltas after that version, which hold last values: applying
//! these makes every row exact, as long as the version that is loaded is not older than any of the rows. That is why a snapshot
//! counts from the first version that is staged after it was finished, and why a batch that is taken back takes a snapshot with it that
//! has not counted yet. Nothing is copied on write, no batch waits, and memory grows by a few chunks. (State on disk gives its snapshot
//! exact rows; for those, all of this holds trivially.)

mod arena;
mod backend;
mod convert;
mod disk;
mod expiry;
mod file;
pub mod inspect;
mod loader;
mod manifest;
mod memory;
mod partitions;
mod row;
mod snapshot;
mod store;
#[cfg(test)]
mod tests;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::datatypes::SchemaRef;

pub use backend::{Backend, DiskOptions, Scratch};
pub use convert::{ColumnOrigin, Conversion, StateOrigin};
pub use file::DeltaId;
pub use manifest::{DeltaRun, SnapshotRef, StateRef};
pub use memory::MemoryPartition;
pub use store::{PartitionOf, RestoreReport, SnapshotStats, StageStats, StateOptions, StateStore};

use crate::error::Result;

/// What an operator keeps: the columns of its keys, then those of its values.
///
/// All types of Spark can be kept; dictionaries, unions and run-end encoded columns cannot, neither as keys nor as values.
#[derive(Debug, Clone, PartialEq)]
pub struct StateSpec {
    /// Number of the state in its query: each operator has one per input.
    pub operator: usize,
    /// Name of the operator, for people (`stateStoreSave`, `dedupe`, …: Spark's).
    pub name: String,
    /// All columns; the first `keys` ones are the key. Keys compare as Spark's grouping keys do: NULL equals NULL. Keys are told apart by
    /// their bytes, so values that Spark takes for equal (0.0 and -0.0, NaNs, maps in another order) must be made the same before.
    pub schema: SchemaRef,
    /// How many columns are the key; 0 for a global aggregate, whose state is at most one row.
    pub keys: usize,
    /// The `Int64` or timestamp column by which rows are found for emission and eviction ([`StatePartition::due`]), if any.
    pub expiry: Option<usize>,
}

/// How far a walk through all rows of a partition came; the default is its beginning.
#[derive(Debug, Clone, Default)]
pub struct ScanPosition {
    /// In memory: the chunk, and the place in it.
    place: (usize, usize),
    /// On disk: the last key.
    key: Option<Vec<u8>>,
}

impl ScanPosition {
    /// True the first time, for a partition that gives all its rows at once.
    pub fn is_first(&mut self) -> bool {
        std::mem::replace(&mut self.place.0, 1) == 0
    }
}

/// The rows of one operator whose keys fall into one partition. Memory-resident or not; always inside one batch at a time.
///
/// Changes are visible at once to later calls of the same batch and become durable with the store's commit; an abort takes back all
/// changes since the last commit. A key's rows are whole rows in [`StateSpec::schema`].
pub trait StatePartition: Send {
    /// The stored rows of those keys that are stored. `keys` are the key columns, each key at most once (without key columns: the one
    /// empty key). The first result tells for each returned row which of the given keys it belongs to, ascending.
    fn get(&mut self, keys: &[ArrayRef]) -> Result<(UInt32Array, RecordBatch)>;

    /// Inserts rows, or replaces those of the same keys. Each key at most once per call.
    fn put(&mut self, rows: &RecordBatch) -> Result<()>;

    /// Removes rows by key; unknown keys are ignored.
    fn remove(&mut self, keys: &[ArrayRef]) -> Result<()>;

    /// Rows whose expiry column is `<= at`, in chunks. The cost is that of the rows returned, not of the state. Rows with a NULL there are never due.
    fn due(&mut self, at: i64) -> Result<Vec<RecordBatch>>;

    /// The next rows of a walk through all of them, `None` at its end: for states that are too large to be held a second time. The changes
    /// that are made during a walk may be seen or not; a commit or an abort ends it.
    fn scan_next(&mut self, position: &mut ScanPosition) -> Result<Option<RecordBatch>>;

    /// All rows, in chunks.
    fn scan(&mut self) -> Result<Vec<RecordBatch>> {
        let mut position = ScanPosition::default();
        std::iter::from_fn(|| self.scan_next(&mut position).transpose()).collect()
    }

    /// Rows held now.
    fn rows(&self) -> u64;

    /// Bytes of memory held now.
    fn bytes(&self) -> u64;
}
