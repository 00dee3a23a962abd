//! The daily files of dead letters on a local disk: real appends, which no object store has.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use perennial_core::dead_letter::Journal;
use perennial_core::error::{Error, Result, class};

/// Files in one directory that grow line by line; an append is on disk when it returns.
#[derive(Debug)]
pub struct LocalJournal {
    dir: PathBuf,
}

impl LocalJournal {
    /// A journal in `dir`, which is made when the first line is written.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        tokio::task::spawn_blocking(work).await.map_err(|e| Error::bug(format!("a file operation panicked: {e}")))?
    }
}

#[async_trait]
impl Journal for LocalJournal {
    async fn append(&self, name: &str, lines: String) -> Result<()> {
        let (dir, path) = (self.dir.clone(), self.dir.join(name));
        Self::blocking(move || append(&dir, &path, lines.as_bytes()).map_err(|e| failed(&path, e))).await
    }

    async fn read(&self, name: &str) -> Result<Bytes> {
        let path = self.dir.join(name);
        Self::blocking(move || match fs::read(&path) {
            Ok(content) => Ok(content.into()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Bytes::new()),
            Err(error) => Err(failed(&path, error)),
        })
        .await
    }

    async fn names(&self) -> Result<Vec<String>> {
        let dir = self.dir.clone();
        Self::blocking(move || {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(failed(&dir, error)),
            };
            let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            names.collect::<std::io::Result<_>>().map_err(|e| failed(&dir, e))
        })
        .await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        Self::blocking(move || match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(&path, error)),
            _ => Ok(()),
        })
        .await
    }
}

fn append(dir: &Path, path: &Path, lines: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let length = file.metadata()?.len();
    let whole = end_of_last_line(&mut file, length)?;
    if whole < length {
        file.set_len(whole)?;
    }
    file.seek(SeekFrom::Start(whole))?;
    let written = file.write_all(lines).and_then(|()| file.sync_all());
    if written.is_err() {
        // A full disk may have taken half of it.
        let _ = file.set_len(whole);
    } else if length == 0 {
        File::open(dir)?.sync_all()?;
    }
    written
}

/// Where the last whole line ends: at the end of the file, unless a crash tore the last line.
fn end_of_last_line(file: &mut File, length: u64) -> std::io::Result<u64> {
    let mut end = length;
    let mut chunk = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(chunk.len() as u64);
        let part = &mut chunk[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|b| *b == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    let class = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => class::DISK_FULL,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => class::STORAGE_PERMISSION_DENIED,
        _ => class::STORAGE_UNAVAILABLE,
    };
    Error::new(class, format!("{}: {error}", path.display())).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_added_and_a_torn_one_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let journal = LocalJournal::new(dir.path().join("dlq"));
        assert_eq!(journal.names().await.unwrap(), Vec::<String>::new());
        journal.append("a.json", "one\ntwo\n".into()).await.unwrap();
        for torn in ["thr".to_owned(), "x".repeat(10_000)] {
            let path = dir.path().join("dlq/a.json");
            let mut content = fs::read(&path).unwrap();
            content.extend(torn.bytes());
            fs::write(&path, content).unwrap();
            journal.append("a.json", "more\n".into()).await.unwrap();
        }
        assert_eq!(journal.read("a.json").await.unwrap(), "one\ntwo\nmore\nmore\n");
        assert_eq!(journal.read("b.json").await.unwrap(), "");
        assert_eq!(journal.names().await.unwrap(), ["a.json"]);
    }
}
