//! State that was kept in RocksDB.

use perennial_core::error::Result;

use crate::refused;
use crate::state::{Rows, StateReader, StoreInfo};

/// The rows of a store in a partition.
pub(crate) async fn load(
    _reader: &StateReader<'_>,
    _operator: u64,
    _partition: usize,
    dir: &str,
    _store: &StoreInfo,
    _family: &str,
) -> Result<Rows> {
    Err(refused(format!("{dir}: the state is in RocksDB, which cannot be read yet")))
}
