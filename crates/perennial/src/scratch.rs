//! Directories for files that nobody misses: the state of queries on a local disk.

use std::io;
use std::path::{Path, PathBuf};

use perennial_connectors::storage::{self, Lock};
use perennial_core::error::{Error, Result, class};
use perennial_core::state::Scratch;

/// A local directory for one process at a time. What an earlier one left in it is removed.
#[derive(Debug)]
pub(crate) struct LocalScratch {
    directory: PathBuf,
    _lock: Lock,
}

impl LocalScratch {
    /// Takes the directory. Fails with `Fenced` when another process has it.
    pub fn new(directory: &Path) -> Result<Self> {
        let lock = storage::lock(directory)?;
        let directory = std::path::absolute(directory).map_err(|error| failed("find", directory, &error))?;
        let entries = std::fs::read_dir(&directory).map_err(|error| failed("read", &directory, &error))?;
        for entry in entries {
            let path = entry.map_err(|error| failed("read", &directory, &error))?.path();
            // Only what was made here: a directory that somebody named by mistake keeps its files.
            if path.join(MARK).exists() {
                std::fs::remove_dir_all(&path).map_err(|error| failed("remove", &path, &error))?;
            }
        }
        Ok(Self { directory, _lock: lock })
    }
}

/// A file that says that a directory may be removed.
const MARK: &str = ".perennial-state";

impl Scratch for LocalScratch {
    fn empty(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        // The first part of the name is what is looked at when the directory is taken again.
        let first = name.split('/').next().unwrap_or_default();
        let make = || {
            match std::fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => std::fs::create_dir_all(&path)?,
            }
            std::fs::write(self.directory.join(first).join(MARK), "The files here are removed when the job starts.\n")
        };
        make().map_err(|error| failed("make", &path, &error))?;
        Ok(path)
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    let class = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => class::DISK_FULL,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => class::STORAGE_PERMISSION_DENIED,
        _ => class::STORAGE_UNAVAILABLE,
    };
    Error::new(class, format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_is_removed_and_what_is_not_ours_stays() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("photos")).unwrap();
        let left = {
            let scratch = LocalScratch::new(directory.path()).unwrap();
            let path = scratch.empty("query/state/0").unwrap();
            std::fs::write(path.join("rows"), "old").unwrap();
            assert_eq!(scratch.empty("query/state/0").unwrap(), path);
            assert!(!path.join("rows").exists(), "a directory is empty when it is given");
            std::fs::write(path.join("rows"), "old").unwrap();
            let error = LocalScratch::new(directory.path()).unwrap_err();
            assert_eq!(error.class(), class::FENCED);
            path
        };
        LocalScratch::new(directory.path()).unwrap();
        assert!(!left.exists() && !directory.path().join("query").exists());
        assert!(directory.path().join("photos").exists());
    }
}
