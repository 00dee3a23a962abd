//! Directories for state on disk that go with the test.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use perennial_core::error::{Error, Result};
use perennial_core::state::Scratch;
use tempfile::TempDir;

/// New directories, each given once.
#[derive(Debug)]
pub struct TemporaryScratch {
    directory: TempDir,
    given: AtomicU64,
}

impl TemporaryScratch {
    /// In memory where the system has such a directory: nothing is proved by waiting for a disk.
    pub fn new() -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let directory = directory.map_err(|error| Error::bug("no directory for state on disk").caused_by(error))?;
        Ok(Self { directory, given: AtomicU64::new(0) })
    }
}

impl Scratch for TemporaryScratch {
    fn empty(&self, _: &str) -> Result<PathBuf> {
        Ok(self.directory.path().join(self.given.fetch_add(1, Ordering::Relaxed).to_string()))
    }
}
