//! Reading and writing the logs of one query, under an epoch.

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};
use serde_json::json;

use super::format::{CommitEntry, Metadata, OffsetEntry};
use super::recovery::Found;
use super::source_log::SourceLog;
use crate::env::Env;
use crate::error::{Error, Result, ResultExt, class};
use crate::sink::BatchId;

/// The logs of one query. All paths of a checkpoint are made here.
///
/// Opening it for writing takes a new epoch: whoever took an earlier one is fenced from then on.
#[derive(Debug, Clone)]
pub struct CheckpointLog {
    env: Env,
    root: Path,
    epoch: u64,
}

impl CheckpointLog {
    /// The logs of `query` below the root of the storage. Takes the next epoch.
    pub async fn open(env: Env, query: &str) -> Result<Self> {
        let mut log = Self { env, root: Path::from(query), epoch: 0 };
        let last = log.numbers("_perennial/epochs").await?.last().copied().unwrap_or(0);
        log.epoch = last + 1;
        let owner = json!({ "epoch": log.epoch, "since_ms": log.env.now_ms() }).to_string();
        log.create(&log.epoch_path(log.epoch), owner.into()).await?;
        // Epochs only have to be ordered; the last ones are kept for people.
        for old in log.numbers("_perennial/epochs").await?.into_iter().filter(|n| n + 10 < log.epoch) {
            log.remove(&log.epoch_path(old)).await?;
        }
        Ok(log)
    }

    /// The epoch of this process.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Where the state lies.
    pub fn state_dir(&self) -> Path {
        self.root.clone().join("state")
    }

    /// The own log of source `index`.
    pub fn source_log(&self, index: usize) -> SourceLog {
        SourceLog::new(self.env.clone(), self.root.clone().join("sources").join(index.to_string()))
    }

    fn path(&self, log: &str, number: u64) -> Path {
        self.root.clone().join(log).join(number.to_string())
    }

    fn epoch_path(&self, epoch: u64) -> Path {
        self.root.clone().join("_perennial").join("epochs").join(epoch.to_string())
    }

    /// Fails when another process took the checkpoint over.
    pub async fn check_fence(&self) -> Result<()> {
        match self.env.storage.head(&self.epoch_path(self.epoch + 1)).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(Error::new(
                class::FENCED,
                format!(
                    "another process took over the checkpoint {} (epoch {} after this one's {}): this one stops writing; run only one process per checkpoint",
                    self.root,
                    self.epoch + 1,
                    self.epoch
                ),
            )),
        }
    }

    /// What is in the logs.
    pub async fn find(&self) -> Result<Found> {
        Ok(Found {
            metadata: self.read_metadata().await?.is_some(),
            offsets: self.numbers("offsets").await?,
            commits: self.numbers("commits").await?,
        })
    }

    /// The identity of the query, if it has one.
    pub async fn read_metadata(&self) -> Result<Option<Metadata>> {
        let path = self.root.clone().join("metadata");
        let Some(text) = self.read(&path).await? else { return Ok(None) };
        Ok(Some(Metadata::decode(&text).at(|| path.to_string())?))
    }

    /// Gives the query its identity.
    pub async fn write_metadata(&self, metadata: &Metadata) -> Result<()> {
        self.create(&self.root.clone().join("metadata"), metadata.encode().into()).await
    }

    /// `offsets/N`.
    ///
    /// # Errors
    /// `CheckpointCorrupt` when it is missing or damaged.
    pub async fn read_offsets(&self, batch: BatchId) -> Result<OffsetEntry> {
        let path = self.path("offsets", batch);
        let text = self.read(&path).await?.ok_or_else(|| missing(&path))?;
        OffsetEntry::decode(&text).at(|| path.to_string())
    }

    /// Logs what batch N reads. Durable when it returns.
    pub async fn write_offsets(&self, batch: BatchId, entry: &OffsetEntry) -> Result<()> {
        self.create(&self.path("offsets", batch), entry.encode().into()).await
    }

    /// `commits/N`.
    ///
    /// # Errors
    /// `CheckpointCorrupt` when it is missing or damaged.
    pub async fn read_commit(&self, batch: BatchId) -> Result<CommitEntry> {
        let path = self.path("commits", batch);
        let text = self.read(&path).await?.ok_or_else(|| missing(&path))?;
        CommitEntry::decode(&text).at(|| path.to_string())
    }

    /// Commits batch N. Durable when it returns.
    pub async fn write_commit(&self, batch: BatchId, entry: &CommitEntry) -> Result<()> {
        self.check_fence().await?;
        self.create(&self.path("commits", batch), entry.encode()?.into()).await
    }

    /// Removes the logs of batches before `oldest`. Offsets go last, so that a crash in between leaves no commit without its offsets.
    pub async fn retain(&self, oldest: BatchId, known: &mut Vec<BatchId>) -> Result<()> {
        let keep = known.partition_point(|batch| *batch < oldest);
        for batch in known.drain(..keep) {
            self.remove(&self.path("commits", batch)).await?;
            self.remove(&self.path("offsets", batch)).await?;
        }
        Ok(())
    }

    /// The all-digit names in a directory, ascending.
    async fn numbers(&self, dir: &str) -> Result<Vec<u64>> {
        let dir = dir.split('/').fold(self.root.clone(), |path, part| path.join(part));
        let files: Vec<_> = self.env.storage.list(Some(&dir)).try_collect().await?;
        let digits = |name: &str| name.bytes().all(|b| b.is_ascii_digit()).then(|| name.parse().ok()).flatten();
        let mut numbers: Vec<u64> = files.iter().filter_map(|f| f.location.filename().and_then(digits)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    async fn read(&self, path: &Path) -> Result<Option<String>> {
        let bytes = match self.env.storage.get(path).await {
            Ok(found) => found.bytes().await?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let text = String::from_utf8(bytes.to_vec());
        text.map(Some).map_err(|_| Error::new(class::CHECKPOINT_CORRUPT, format!("{path}: it is not text")))
    }

    /// Creates a file that must not exist yet. One with the same content is this process's own, from an attempt whose answer got lost.
    async fn create(&self, path: &Path, content: Bytes) -> Result<()> {
        let options = PutOptions { mode: PutMode::Create, ..Default::default() };
        match self.env.storage.put_opts(path, content.clone().into(), options).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => {
                let there = self.env.storage.get(path).await?.bytes().await?;
                if there == content {
                    return Ok(());
                }
                Err(Error::new(
                    class::FENCED,
                    format!(
                        "{path} was written by another process: two processes use this checkpoint; stop one of them"
                    ),
                ))
            }
            Err(error) => Err(Error::from(error).at(path.to_string())),
        }
    }

    async fn remove(&self, path: &Path) -> Result<()> {
        match self.env.storage.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn missing(path: &Path) -> Error {
    Error::new(
        class::CHECKPOINT_CORRUPT,
        format!(
            "{path} is missing. The query does not start, because it could lose or double records. Restore the file from a backup, or begin with another checkpoint directory"
        ),
    )
}
