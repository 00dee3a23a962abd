//! Reading and writing the logs of one query, under an epoch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde_json::json;

use super::format::{self, CommitEntry, Metadata, OffsetEntry};
use super::inspect::Inspector;
use super::recovery::{Damage, Found, Part};
use super::source_log::SourceLog;
use crate::crash::CrashPoint;
use crate::env::Env;
use crate::error::{Error, ErrorKind, Result, ResultExt, class};
use crate::replay::ReplayRequest;
use crate::shape::PlanShape;
use crate::sink::BatchId;

/// The logs of one query. All paths of a checkpoint are made here.
///
/// Opening it for writing takes a new epoch: whoever took an earlier one is fenced from then on.
#[derive(Debug, Clone)]
pub struct CheckpointLog {
    env: Env,
    root: Path,
    epoch: u64,
    /// Bytes that were written since somebody asked.
    written: Arc<AtomicU64>,
}

impl CheckpointLog {
    /// The logs of `query` below the root of the storage. Takes the next epoch.
    pub async fn open(env: Env, query: &str) -> Result<Self> {
        let mut log = Self { env, root: Path::from(query), epoch: 0, written: Arc::default() };
        let last = log.numbers("_perennial/epochs").await?.last().copied().unwrap_or(0);
        // Epochs only have to be ordered, but that they must be, even where somebody removed the files.
        log.epoch = last.max(log.logged_epoch().await?) + 1;
        let owner = json!({ "epoch": log.epoch, "since_ms": log.env.now_ms() }).to_string();
        log.env.crash.pass(CrashPoint::BeforeTakeover).await;
        log.create(&log.epoch_path(log.epoch), owner.into()).await?;
        log.env.crash.pass(CrashPoint::AfterTakeover).await;
        // The last ones are kept for people.
        for old in log.numbers("_perennial/epochs").await?.into_iter().filter(|n| n + 10 < log.epoch) {
            log.remove(&log.epoch_path(old)).await?;
        }
        Ok(log)
    }

    /// The epoch of this process.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Bytes that were written to the logs since this was asked last.
    pub fn take_written(&self) -> u64 {
        self.written.swap(0, Ordering::Relaxed)
    }

    /// Where the state lies.
    pub fn state_dir(&self) -> Path {
        self.root.clone().join("state")
    }

    /// The own log of source `index`.
    pub fn source_log(&self, index: usize) -> SourceLog {
        let dir = |root: Path| root.join("sources").join(index.to_string());
        SourceLog::new(self.env.clone(), dir(self.root.clone()))
            .with_checksums(dir(self.root.clone().join("_perennial")))
    }

    /// A file, by its path below the query's directory.
    pub(super) fn file(&self, relative: &str) -> Path {
        relative.split('/').fold(self.root.clone(), |path, part| path.join(part))
    }

    pub(super) fn storage(&self) -> &dyn ObjectStore {
        &*self.env.storage
    }

    fn path(&self, log: &str, number: u64) -> Path {
        self.root.clone().join(log).join(number.to_string())
    }

    fn epoch_path(&self, epoch: u64) -> Path {
        self.root.clone().join("_perennial").join("epochs").join(epoch.to_string())
    }

    /// Fails when another process took the checkpoint over.
    pub async fn check_fence(&self) -> Result<()> {
        // Who slept for long may find its successor's file removed. Its own was removed before: what is old goes oldest first.
        let (own, next) = (self.epoch_path(self.epoch), self.epoch_path(self.epoch + 1));
        match futures::join!(self.env.storage.head(&own), self.env.storage.head(&next)) {
            (Ok(_), Err(object_store::Error::NotFound { .. })) => Ok(()),
            (Err(error), _) | (_, Err(error)) if !matches!(error, object_store::Error::NotFound { .. }) => {
                Err(error.into())
            }
            _ => Err(Error::new(
                class::FENCED,
                format!(
                    "another process took over the checkpoint {} after this one (epoch {}): this one stops writing; run only one process per checkpoint",
                    self.root, self.epoch
                ),
            )),
        }
    }

    /// The greatest epoch that the newest files of the logs were written under.
    async fn logged_epoch(&self) -> Result<u64> {
        let mut epoch = 0;
        if let Some(batch) = self.numbers("offsets").await?.last() {
            epoch = unless_damaged(self.read_offsets(*batch).await.map(Some))?.map_or(0, |entry| entry.epoch);
        }
        if let Some(batch) = self.numbers("commits").await?.last()
            && let Some(details) =
                unless_damaged(self.read_commit(*batch).await.map(Some))?.and_then(|entry| entry.perennial)
        {
            epoch = epoch.max(details.epoch);
        }
        Ok(epoch)
    }

    /// What is in the logs. Of the files, those are read that recovery needs: from the newest backwards to the last commit that is sound.
    ///
    /// # Errors
    /// `CheckpointNewer` where a newer version wrote the last files.
    pub async fn find(&self) -> Result<Found> {
        let (metadata, repair) = self.mend_metadata().await?;
        let mut found = Found {
            metadata: metadata.is_some(),
            offsets: self.numbers("offsets").await?,
            commits: self.numbers("commits").await?,
            damage: Vec::new(),
            repairs: repair.into_iter().collect(),
        };
        let mut batches = found.offsets.clone();
        while let Some(batch) = batches.pop() {
            let offsets = damage_of(self.read_offsets(batch).await)?;
            let offsets_are_sound = offsets.is_none();
            found.damage.extend(offsets.map(|why| Damage { part: Part::Offsets, batch, why }));
            if found.commits.binary_search(&batch).is_err() {
                continue;
            }
            let commit = damage_of(self.read_commit(batch).await)?;
            let commit_is_sound = commit.is_none();
            found.damage.extend(commit.map(|why| Damage { part: Part::Commit, batch, why }));
            if offsets_are_sound && commit_is_sound {
                break;
            }
        }
        Ok(found)
    }

    /// The identity of the query, if it has one. There are two copies of it, and where one got lost the other one replaces it.
    pub async fn read_metadata(&self) -> Result<Option<Metadata>> {
        Ok(self.mend_metadata().await?.0)
    }

    /// The identity, and what was mended.
    async fn mend_metadata(&self) -> Result<(Option<Metadata>, Option<String>)> {
        let [main, copy] = self.metadata_paths();
        let parse = |path: &Path, text: Result<Option<String>>| {
            text.and_then(|text| text.map(|text| Metadata::decode(&text)).transpose()).at(|| path.to_string())
        };
        let found = parse(&main, self.read(&main).await);
        if let Err(error) = &found
            && error.kind() != ErrorKind::Corrupt
        {
            return found.map(|metadata| (metadata, None));
        }
        let spare = unless_damaged(parse(&copy, self.read(&copy).await))?;
        match (found, spare) {
            (Ok(Some(metadata)), Some(spare)) if metadata == spare => Ok((Some(metadata), None)),
            (Ok(Some(metadata)), _) => {
                // It was lost, or the process that made the other one did not get so far, or Spark made it.
                self.env.storage.put(&copy, metadata.encode().into()).await?;
                Ok((Some(metadata), None))
            }
            (found, Some(spare)) => {
                let what = found.err().map_or_else(|| format!("{main} is missing"), |error| error.to_string());
                self.set_aside(&main).await?;
                self.env.storage.put(&main, spare.encode().into()).await?;
                Ok((Some(spare), Some(format!("{what}; it was restored from its copy {copy}"))))
            }
            (found, None) => found.map(|metadata| (metadata, None)),
        }
    }

    /// Gives the query its identity.
    pub async fn write_metadata(&self, metadata: &Metadata) -> Result<()> {
        let crash = &self.env.crash;
        crash.pass(CrashPoint::BeforeIdentity).await;
        let [main, copy] = self.metadata_paths();
        self.create(&main, metadata.encode().into()).await?;
        crash.pass(CrashPoint::HalfIdentity).await;
        // Who created the one has the other, whatever was left there by damage.
        self.env.storage.put(&copy, metadata.encode().into()).await?;
        crash.pass(CrashPoint::AfterIdentity).await;
        Ok(())
    }

    fn metadata_paths(&self) -> [Path; 2] {
        [self.root.clone().join("metadata"), self.root.clone().join("_perennial").join("metadata")]
    }

    /// Writes the entry of a batch that goes on from what another engine wrote: in place of the other's entry, where there is one. That one is
    /// kept in `_perennial/aside`.
    pub async fn adopt_offsets(&self, batch: BatchId, entry: &OffsetEntry) -> Result<()> {
        self.adopt("offsets", batch, entry.encode()).await
    }

    /// The same for a commit: with it the batch is ours.
    pub async fn adopt_commit(&self, batch: BatchId, entry: &CommitEntry) -> Result<()> {
        self.adopt("commits", batch, entry.encode()?).await
    }

    async fn adopt(&self, log: &str, batch: BatchId, text: String) -> Result<()> {
        self.check_fence().await?;
        let path = self.path(log, batch);
        if let Some(before) = self.read(&path).await? {
            self.env.storage.put(&self.aside(&path), before.into()).await?;
            // Hadoop's checksum of what was there before.
            self.remove(&self.root.clone().join(log).join(format!(".{batch}.crc"))).await?;
        }
        self.env.storage.put(&path, text.into()).await?;
        Ok(())
    }

    /// Takes commits out of the log, newest first, so that their batches run again. What they were is kept in `_perennial/aside`.
    pub async fn set_commits_aside(&self, batches: impl DoubleEndedIterator<Item = BatchId>) -> Result<()> {
        self.check_fence().await?;
        self.env.crash.pass(CrashPoint::BeforeAside).await;
        for batch in batches.rev() {
            self.set_aside(&self.path("commits", batch)).await?;
        }
        self.env.crash.pass(CrashPoint::AfterAside).await;
        Ok(())
    }

    /// Moves a file to `_perennial/aside/<epoch>`; a missing one is fine.
    pub(super) async fn set_aside(&self, path: &Path) -> Result<()> {
        let content = match self.env.storage.get(path).await {
            Ok(found) => found.bytes().await?,
            Err(object_store::Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        self.env.storage.put(&self.aside(path), content.into()).await?;
        self.env.crash.pass(CrashPoint::HalfAside).await;
        self.remove(path).await
    }

    /// Where a file is kept that is no longer in its place.
    fn aside(&self, path: &Path) -> Path {
        let place = self.root.clone().join("_perennial").join("aside").join(self.epoch.to_string());
        path.prefix_match(&self.root).into_iter().flatten().fold(place, |place, part| place.join(part))
    }

    /// Adds to an error of a damaged checkpoint what is known to be good, and how to go on from there.
    pub async fn advise(&self, error: Error) -> Error {
        match Inspector::new(self.env.clone(), self.root.clone()).survey().await {
            Ok(survey) => {
                Error::new(error.class(), format!("{error}. {}", survey.advice(&self.env.storage.to_string())))
                    .caused_by(error)
            }
            Err(_) => error,
        }
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
        self.env.crash.pass(CrashPoint::BeforeOffsets).await;
        self.create(&self.path("offsets", batch), entry.encode().into()).await?;
        self.env.crash.pass(CrashPoint::AfterOffsets).await;
        Ok(())
    }

    /// What the form of the query keeps whose plan has this digest, where that was written down. A damaged note is as good as none.
    pub async fn read_shape(&self, digest: &str) -> Result<Option<PlanShape>> {
        let path = self.shape_path(digest);
        let text = unless_damaged(self.read(&path).await)?;
        unless_damaged(text.map(|text| format::decode_shape(&text)).transpose().at(|| path.to_string()))
    }

    /// Writes down what the query keeps, unless that was done before.
    pub async fn write_shape(&self, digest: &str, shape: &PlanShape) -> Result<()> {
        if self.read_shape(digest).await?.is_some() {
            return Ok(());
        }
        // Who writes the same digest writes the same.
        self.env.storage.put(&self.shape_path(digest), format::encode_shape(shape)?.into()).await?;
        Ok(())
    }

    fn shape_path(&self, digest: &str) -> Path {
        self.root.clone().join("_perennial").join("plans").join(digest)
    }

    /// The request to replay dead letters with this number, if somebody has made it.
    pub async fn read_replay(&self, number: u64) -> Result<Option<ReplayRequest>> {
        let path = self.replay_path(number);
        let text = self.read(&path).await?;
        text.map(|text| ReplayRequest::decode(&text)).transpose().at(|| path.to_string())
    }

    fn replay_path(&self, number: u64) -> Path {
        self.root.clone().join("_perennial").join("replays").join(number.to_string())
    }

    /// Takes back what batch N reads, so that it can be logged anew: only for a batch of which nothing was written anywhere.
    pub async fn withdraw_offsets(&self, batch: BatchId) -> Result<()> {
        Ok(self.env.storage.delete(&self.path("offsets", batch)).await?)
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

    /// `offsets/N` and `commits/N`, or which of both is damaged.
    pub async fn read_batch(&self, batch: BatchId) -> Result<Result<(OffsetEntry, CommitEntry), Damage>> {
        let damage = |part, error: Error| match error.kind() {
            ErrorKind::Corrupt => Ok(Err(Damage { part, batch, why: error.to_string() })),
            _ => Err(error),
        };
        let offsets = match self.read_offsets(batch).await {
            Ok(entry) => entry,
            Err(error) => return damage(Part::Offsets, error),
        };
        match self.read_commit(batch).await {
            Ok(commit) => Ok(Ok((offsets, commit))),
            Err(error) => damage(Part::Commit, error),
        }
    }

    /// Commits batch N. Durable when it returns.
    pub async fn write_commit(&self, batch: BatchId, entry: &CommitEntry) -> Result<()> {
        self.check_fence().await?;
        self.env.crash.pass(CrashPoint::BeforeCommit).await;
        self.create(&self.path("commits", batch), entry.encode()?.into()).await?;
        self.env.crash.pass(CrashPoint::AfterCommit).await;
        Ok(())
    }

    /// Removes the logs of batches before `oldest`. Offsets go last, so that a crash in between leaves no commit without its offsets.
    pub async fn retain(&self, oldest: BatchId, known: &mut Vec<BatchId>) -> Result<()> {
        while let Some(batch) = known.first().copied().filter(|batch| *batch < oldest) {
            self.remove(&self.path("commits", batch)).await?;
            self.env.crash.pass(CrashPoint::HalfCleanup).await;
            self.remove(&self.path("offsets", batch)).await?;
            // Not before: what could not be removed is the first to go the next time, or it would stand before a gap.
            known.remove(0);
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
        self.written.fetch_add(content.len() as u64, Ordering::Relaxed);
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

    pub(super) async fn remove(&self, path: &Path) -> Result<()> {
        match self.env.storage.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Leaves a request to replay dead letters in the checkpoint of a query, which may run; gives its number. Nothing else of the checkpoint is
/// touched.
pub async fn request_replay(env: &Env, query: &str, request: &ReplayRequest) -> Result<u64> {
    let log = CheckpointLog { env: env.clone(), root: Path::from(query), epoch: 0, written: Arc::default() };
    let content = Bytes::from(request.encode()?);
    let mut number = log.numbers("_perennial/replays").await?.last().map_or(0, |last| last + 1);
    loop {
        let options = PutOptions { mode: PutMode::Create, ..Default::default() };
        let path = log.replay_path(number);
        match env.storage.put_opts(&path, content.clone().into(), options).await {
            Ok(_) => return Ok(number),
            // Somebody else asked at the same moment.
            Err(object_store::Error::AlreadyExists { .. }) => number += 1,
            Err(error) => return Err(Error::from(error).at(path.to_string())),
        }
    }
}

fn missing(path: &Path) -> Error {
    Error::new(class::CHECKPOINT_CORRUPT, format!("{path} is missing"))
}

/// What was read, or `None` where it is damaged.
fn unless_damaged<T: Default>(read: Result<T>) -> Result<T> {
    match read {
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(T::default()),
        read => read,
    }
}

/// What is wrong with what was read, if it is damaged.
fn damage_of<T>(read: Result<T>) -> Result<Option<String>> {
    match read {
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}
