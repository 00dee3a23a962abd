//! The contract of state: keyed rows of a stateful operator, versioned by batch.

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::datatypes::SchemaRef;

use crate::error::Result;

/// What an operator keeps: the columns of its keys, then those of its values.
#[derive(Debug, Clone, PartialEq)]
pub struct StateSpec {
    /// Number of the operator in its query, from the sink towards the sources (as Spark counts).
    pub operator: usize,
    /// Name of the operator, for people (`stateStoreSave`, `dedupe`, …: Spark's).
    pub name: String,
    /// All columns; the first `keys` ones are the key. Keys compare as Spark's grouping keys do: NULL equals NULL.
    pub schema: SchemaRef,
    /// How many columns are the key; 0 for a global aggregate, whose state is at most one row.
    pub keys: usize,
    /// The `Int64` or timestamp column by which rows are found for emission and eviction ([`StatePartition::due`]), if any.
    pub expiry: Option<usize>,
}

/// The rows of one operator whose keys fall into one partition. Memory-resident or not; always inside one batch at a time.
///
/// Changes are visible at once to later calls of the same batch and become durable with the store's commit; an abort takes back all
/// changes since the last commit. A key's rows are whole rows in [`StateSpec::schema`].
pub trait StatePartition: Send {
    /// The stored rows of those keys that are stored. `keys` are the key columns, each key at most once. The first result tells for
    /// each returned row which of the given keys it belongs to, ascending.
    fn get(&mut self, keys: &[ArrayRef]) -> Result<(UInt32Array, RecordBatch)>;

    /// Inserts rows, or replaces those of the same keys. Each key at most once per call.
    fn put(&mut self, rows: &RecordBatch) -> Result<()>;

    /// Removes rows by key; unknown keys are ignored.
    fn remove(&mut self, keys: &[ArrayRef]) -> Result<()>;

    /// Rows whose expiry column is `<= at`, in chunks. The cost is that of the rows returned, not of the state. Rows with a NULL there are never due.
    fn due(&mut self, at: i64) -> Result<Vec<RecordBatch>>;

    /// All rows, in chunks.
    fn scan(&mut self) -> Result<Vec<RecordBatch>>;

    /// Rows held now.
    fn rows(&self) -> u64;

    /// Bytes of memory held now.
    fn bytes(&self) -> u64;
}

// TEMPORARY until the state store arrives.
/// Ref.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct StateRef {}
impl StateRef {
    /// b
    pub fn bytes_written(&self) -> u64 {
        0
    }
}
/// Options.
#[derive(Default)]
pub struct StateOptions {}
/// Store.
pub struct StateStore {}
#[allow(missing_docs, clippy::all)]
impl StateStore {
    pub async fn open(
        _env: &crate::env::Env,
        _d: object_store::path::Path,
        _s: &[StateSpec],
        _p: usize,
        _f: &(dyn Fn(usize, &[ArrayRef], usize) -> Result<Vec<u32>> + Send + Sync),
        _r: Option<&StateRef>,
        _o: StateOptions,
    ) -> Result<(Self, ())> {
        Ok((Self {}, ()))
    }
    pub fn partitions(&self) -> crate::plan::BatchState {
        vec![]
    }
    pub async fn stage(&mut self, _v: u64, _e: u64) -> Result<StateRef> {
        Ok(StateRef {})
    }
    pub fn commit(&mut self) {}
    pub fn abort(&mut self) {}
    pub async fn retain(&self, _r: &StateRef) -> Result<()> {
        Ok(())
    }
    pub fn rows(&self) -> u64 {
        0
    }
}
