//! The directory of a checkpoint, and the checksums that Hadoop's local file system keeps beside its files.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use perennial_core::error::{Error, Result};

use crate::damaged;

/// A directory with a checkpoint of Spark.
#[derive(Debug, Clone)]
pub struct Directory {
    store: Arc<dyn ObjectStore>,
    root: Path,
    shown: String,
}

impl Directory {
    /// The directory at `root` of a storage. `shown` is its name in messages.
    pub fn new(store: Arc<dyn ObjectStore>, root: Path, shown: impl Into<String>) -> Self {
        Self { store, root, shown: shown.into() }
    }

    /// A file for messages.
    pub(crate) fn shown(&self, name: &str) -> String {
        if self.shown.is_empty() { name.to_owned() } else { format!("{}/{name}", self.shown.trim_end_matches('/')) }
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').filter(|part| !part.is_empty()).fold(self.root.clone(), |path, part| path.join(part))
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        match self.store.get(&self.path(name)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(Error::from(error).at(self.shown(name))),
        }
    }

    /// A file, `None` where there is none.
    ///
    /// # Errors
    /// `CheckpointCorrupt` where it does not fit the checksum beside it.
    pub(crate) async fn read(&self, name: &str) -> Result<Option<Bytes>> {
        let Some(content) = self.get(name).await? else { return Ok(None) };
        match self.sums(name).await? {
            Some(sums) if !fits(&content, &sums) => Err(damaged(
                &self.shown(name),
                format!(
                    "it does not fit the checksum beside it ({}): it is damaged, or was changed; if the change is meant, remove the checksum",
                    sums_of(name)
                ),
            )),
            _ => Ok(Some(content)),
        }
    }

    /// A file that people may have changed, and whether it fits the checksum beside it.
    pub(crate) async fn read_edited(&self, name: &str) -> Result<(Bytes, bool)> {
        let content = self.get(name).await?.ok_or_else(|| self.missing(name))?;
        let fits = self.sums(name).await?.is_none_or(|sums| fits(&content, &sums));
        Ok((content, fits))
    }

    async fn sums(&self, name: &str) -> Result<Option<Bytes>> {
        self.get(&sums_of(name)).await
    }

    /// A file that must be there.
    pub(crate) async fn required(&self, name: &str) -> Result<Bytes> {
        self.read(name).await?.ok_or_else(|| self.missing(name))
    }

    /// A text that must be there.
    pub(crate) async fn text(&self, name: &str) -> Result<String> {
        let content = self.required(name).await?;
        String::from_utf8(content.to_vec()).map_err(|_| damaged(&self.shown(name), "it is not text"))
    }

    pub(crate) fn missing(&self, name: &str) -> Error {
        damaged(&self.shown(name), "it is missing")
    }

    /// Names of the files in a directory, and of the directories there; hidden ones are left out.
    pub(crate) async fn list(&self, name: &str) -> Result<(Vec<String>, Vec<String>)> {
        let listed = self.store.list_with_delimiter(Some(&self.path(name))).await;
        let listed = listed.map_err(|error| Error::from(error).at(self.shown(name)))?;
        let name = |path: &Path| path.filename().filter(|name| !name.starts_with('.')).map(str::to_owned);
        Ok((
            listed.objects.iter().filter_map(|file| name(&file.location)).collect(),
            listed.common_prefixes.iter().filter_map(name).collect(),
        ))
    }

    /// The numbers in a log, ascending.
    pub(crate) async fn numbers(&self, name: &str) -> Result<Vec<u64>> {
        let (files, _) = self.list(name).await?;
        let mut numbers: Vec<u64> = files.iter().filter_map(|name| number(name)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Whether nothing is there, hidden files included.
    pub(crate) async fn is_empty(&self) -> Result<bool> {
        Ok(self.store.list(Some(&self.root)).try_next().await?.is_none())
    }

    pub(crate) async fn write(&self, name: &str, content: Bytes) -> Result<()> {
        let written = self.store.put(&self.path(name), content.into()).await;
        written.map(drop).map_err(|error| Error::from(error).at(self.shown(name)))
    }
}

/// A name that is a number.
pub(crate) fn number(name: &str) -> Option<u64> {
    name.bytes().all(|byte| byte.is_ascii_digit()).then(|| name.parse().ok()).flatten()
}

/// Where the checksums of a file are.
fn sums_of(name: &str) -> String {
    match name.rsplit_once('/') {
        Some((dir, name)) => format!("{dir}/.{name}.crc"),
        None => format!(".{name}.crc"),
    }
}

/// Whether a file fits its checksums: a CRC-32 per so many bytes.
fn fits(content: &[u8], sums: &[u8]) -> bool {
    let Some((b"crc\0", rest)) = sums.split_first_chunk::<4>().map(|(magic, rest)| (magic.as_slice(), rest)) else {
        return true;
    };
    let Some((size, sums)) = rest.split_first_chunk::<4>() else { return true };
    let size = u32::from_be_bytes(*size) as usize;
    if size == 0 || sums.len() % 4 != 0 {
        return true;
    }
    let expected = content.chunks(size).flat_map(|chunk| crc32fast::hash(chunk).to_be_bytes());
    expected.eq(sums.iter().copied())
}
