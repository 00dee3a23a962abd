//! The store: all partitions of a query's operators, and their versions on storage.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::ArrayRef;
use bytes::Bytes;
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::backend::Backend;
use super::convert::Conversion;
use super::file::{self, Content, DeltaId, Header, Kind, Outcome, Section};
use super::loader::Loader;
use super::manifest::{SnapshotRef, StateRef, delta_path};
use super::partitions::{Format, Operators, Partition, blocking, lock, peek};
use super::row::Layout;
use super::snapshot::Snapshot;
use super::{StatePartition, StateSpec};
use crate::crash::CrashPoint;
use crate::env::Env;
use crate::error::{Error, ErrorKind, Result, class};
use crate::memory::MemoryBudget;
use crate::plan::BatchState;

/// To which of so many partitions each key of an operator belongs. The operator is its place in the list of specs. Not asked for
/// operators without key columns: their row is in partition 0.
pub type PartitionOf = Arc<dyn Fn(usize, &[ArrayRef], usize) -> Result<Vec<u32>> + Send + Sync>;

/// How state is kept, and when snapshots are written.
#[derive(Debug, Clone)]
pub struct StateOptions {
    /// Where rows are while the query runs.
    pub backend: Backend,
    /// No snapshot before there are this many deltas since the last one.
    pub snapshot_after: usize,
    /// No snapshot before the deltas since the last one have this many bytes (each file counts 16 KiB more than it has, because opening it
    /// costs as much), nor before they have as many as that snapshot.
    pub snapshot_bytes: u64,
    /// But in any case when there are this many deltas.
    pub max_deltas: usize,
    /// Size of a snapshot's files in bytes, roughly.
    pub part_bytes: usize,
    /// The memory that the rows count against.
    pub memory: Arc<MemoryBudget>,
    /// How the version that is opened becomes one of the query, where an earlier form of it wrote it.
    pub conversion: Option<Arc<Conversion>>,
}

impl Default for StateOptions {
    fn default() -> Self {
        Self {
            backend: Backend::Memory,
            snapshot_after: 10,
            snapshot_bytes: 1 << 20,
            max_deltas: 500,
            part_bytes: 8 << 20,
            memory: Arc::default(),
            conversion: None,
        }
    }
}

/// What opening a file costs, in bytes read.
const FILE_COST: u64 = 16 << 10;

impl StateOptions {
    /// Whether it is time for a snapshot, given the deltas since the last one and its size (0 where there is none).
    pub(super) fn is_due(&self, deltas: usize, delta_bytes: u64, snapshot_bytes: u64) -> bool {
        let cost = delta_bytes + deltas as u64 * FILE_COST;
        deltas >= self.max_deltas || (deltas >= self.snapshot_after && cost >= snapshot_bytes.max(self.snapshot_bytes))
    }
}

/// What became of opening a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestoreReport {
    /// The version that was loaded.
    pub version: u64,
    /// Version of the snapshot that it was loaded from, if any.
    pub snapshot: Option<u64>,
    /// Number of deltas that were applied.
    pub deltas: u64,
    /// Rows of all operators.
    pub rows: u64,
    /// Bytes read.
    pub bytes: u64,
    /// How long it took.
    pub duration: Duration,
    /// Snapshots that could not be used, and why; the state is exact all the same.
    pub repairs: Vec<String>,
}

/// What staging the last version took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StageStats {
    /// Bytes written.
    pub bytes: u64,
    /// Rows written.
    pub rows: u64,
    /// Keys written as removed.
    pub removed: u64,
    /// How long it took.
    pub duration: Duration,
}

/// What became of the snapshots since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnapshotStats {
    /// Snapshots written.
    pub written: u64,
    /// Snapshots that failed.
    pub failed: u64,
    /// Snapshots given up because a batch was taken back.
    pub discarded: u64,
    /// Size of the last one in bytes.
    pub bytes: u64,
    /// How long the last one took.
    pub duration: Duration,
}

/// The state of a query: the partitions of all its operators, and their versions on storage.
///
/// A batch goes: [`partitions`](Self::partitions) to the plan, [`stage`](Self::stage), the commit log, [`commit`](Self::commit); or
/// [`abort`](Self::abort) at any point before the commit log.
pub struct StateStore {
    env: Env,
    dir: Path,
    options: StateOptions,
    formats: Vec<Format>,
    /// In how many partitions each operator is.
    partitions: usize,
    partition_of: PartitionOf,
    operators: Operators,
    /// How many times `operators` was made.
    made: u64,
    /// The committed version could not be brought into the partitions.
    broken: bool,
    /// The version that is committed.
    current: StateRef,
    /// Versions and sizes of the deltas since the newest snapshot.
    chain: Vec<(u64, u64)>,
    staged: Option<Staged>,
    /// Name of the last delta that this store began to write.
    attempted: Option<(u64, u64)>,
    running: Option<Running>,
    /// A snapshot that no committed version refers to yet.
    finished: Option<SnapshotRef>,
    /// No snapshot before this version, since the last one failed.
    not_before: u64,
    last_stage: StageStats,
    snapshots: SnapshotStats,
}

impl std::fmt::Debug for StateStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StateStore({}, version {})", self.dir, self.current.version)
    }
}

#[derive(Debug)]
struct Staged {
    state: StateRef,
    delta_bytes: Option<u64>,
}

#[derive(Debug)]
struct Running {
    task: AbortOnDropHandle<Result<SnapshotRef>>,
    version: u64,
    started: Duration,
}

impl StateStore {
    /// Opens the state at a version (`None`: empty, before the first batch). Must be called within a tokio runtime.
    ///
    /// The number of partitions may differ from the one that the state was written with. Fails with `CheckpointCorrupt` when the version
    /// cannot be rebuilt exactly, `CheckpointMismatch` when it belongs to other operators, `CheckpointNewer` when a newer version of the
    /// program wrote it, `StateUnsupported` when a column has a type that state cannot hold.
    pub async fn open(
        env: &Env,
        dir: Path,
        specs: &[StateSpec],
        partitions: usize,
        partition_of: PartitionOf,
        at: Option<&StateRef>,
        options: StateOptions,
    ) -> Result<(Self, RestoreReport)> {
        let format = |spec: &StateSpec| Ok((spec.clone(), Arc::new(Layout::new(spec, env.entropy.next_u64())?)));
        let formats = specs.iter().map(format).collect::<Result<Vec<_>>>()?;
        let mut store = Self {
            env: env.clone(),
            dir,
            options,
            current: StateRef { rows: vec![0; formats.len()], ..Default::default() },
            formats,
            partitions: partitions.max(1),
            partition_of,
            operators: Operators::default(),
            made: 0,
            broken: false,
            chain: Vec::new(),
            staged: None,
            attempted: None,
            running: None,
            finished: None,
            not_before: 0,
            last_stage: StageStats::default(),
            snapshots: SnapshotStats::default(),
        };
        let report = store.load(at).await?;
        if let Some(conversion) = store.options.conversion.take() {
            store.begin_anew(conversion.epoch).await?;
        }
        Ok((store, report))
    }

    /// Writes what was loaded as a snapshot on which all that follows is built: the files before it are those of another form of the query.
    async fn begin_anew(&mut self, epoch: u64) -> Result<()> {
        if self.current.version == 0 {
            return Ok(());
        }
        self.current.epoch = epoch;
        let snapshot = Snapshot::of(&self.env, &self.dir, &self.current, self.options.part_bytes, &self.operators.list);
        let snapshot = snapshot.write().await?;
        info!(dir = %self.dir, version = snapshot.version, rows = snapshot.rows, bytes = snapshot.bytes, "the converted state was written");
        self.current.snapshots = vec![snapshot];
        self.current.deltas_after = snapshot.version;
        (self.current.deltas, self.current.newest) = (Vec::new(), None);
        self.chain.clear();
        Ok(())
    }

    /// Whether the partitions are no longer what is committed, because a local disk failed: [`reload`](Self::reload) before the next batch.
    pub fn is_broken(&self) -> bool {
        self.broken || self.operators.are_broken()
    }

    /// Makes the partitions anew from the committed version.
    pub async fn reload(&mut self) -> Result<RestoreReport> {
        (self.running, self.finished, self.staged) = (None, None, None);
        let current = (self.current.version > 0).then(|| self.current.clone());
        let report = self.load(current.as_ref()).await?;
        self.broken = false;
        Ok(report)
    }

    async fn load(&mut self, at: Option<&StateRef>) -> Result<RestoreReport> {
        match at {
            Some(at) => self.restore(at).await,
            None => {
                self.operators = self.empty_operators(&[])?;
                Ok(RestoreReport::default())
            }
        }
    }

    fn empty_operators(&mut self, rows: &[u64]) -> Result<Operators> {
        let name = self.dir.clone().join(self.made.to_string());
        self.made += 1;
        Operators::empty(&self.options, &name, &self.formats, self.partitions, rows)
    }

    /// The partitions of all operators, for a batch.
    pub fn partitions(&self) -> BatchState {
        let share = |partition: &Partition| Arc::clone(partition) as Arc<Mutex<dyn StatePartition>>;
        self.operators.list.iter().map(|operator| operator.partitions.iter().map(share).collect()).collect()
    }

    /// The version that is committed.
    pub fn current(&self) -> &StateRef {
        &self.current
    }

    /// Rows held now, of all operators.
    pub fn rows(&self) -> u64 {
        self.operators.partitions().map(|partition| peek(partition).rows()).sum()
    }

    /// Bytes of memory held now, of all operators.
    pub fn bytes(&self) -> u64 {
        self.operators.partitions().map(|partition| peek(partition).bytes()).sum()
    }

    /// What staging the last version took.
    pub fn last_stage(&self) -> StageStats {
        self.last_stage
    }

    /// What became of the snapshots.
    pub fn snapshots(&self) -> SnapshotStats {
        self.snapshots
    }

    /// Makes the changes of the batch durable as `version`, which must be newer than the committed one; the result belongs into the commit
    /// log. The batch can still be taken back.
    ///
    /// Fails with `Fenced` when another process has written this version under the same epoch.
    pub async fn stage(&mut self, version: u64, epoch: u64) -> Result<StateRef> {
        let started = self.env.clock.monotonic();
        if version <= self.current.version {
            return Err(Error::bug(format!(
                "state version {version} staged after version {} was committed",
                self.current.version
            )));
        }
        if self.running.as_ref().is_some_and(|running| running.task.is_finished()) {
            self.finish_snapshot().await;
        }
        let mut state = self.current.clone();
        (state.version, state.epoch) = (version, epoch);
        if let Some(snapshot) = self.finished {
            state.add_snapshot(snapshot);
        }
        for (rows, operator) in state.rows.iter_mut().zip(&self.operators.list) {
            *rows = 0;
            for partition in &operator.partitions {
                *rows += lock(partition)?.rows();
            }
        }

        let (sections, payload): (Vec<_>, Vec<_>) = self.encode_changes().await?.into_iter().unzip();
        let mut stats = StageStats::default();
        let mut delta_bytes = None;
        if !sections.is_empty() {
            let count = |content| sections.iter().filter(|s: &&Section| s.content == content).map(|s| s.rows).sum();
            (stats.rows, stats.removed) = (count(Content::Rows), count(Content::Removed));
            let header = Header {
                kind: Kind::Delta,
                version,
                epoch,
                part: 0,
                previous: self.current.newest,
                partitions: self.partitions,
                sections,
            };
            let file = file::encode(&header, payload)?;
            self.env.crash.pass(CrashPoint::BeforeDelta).await;
            self.write_delta(&delta_path(&self.dir, version, epoch), (version, epoch), &file).await?;
            self.env.crash.pass(CrashPoint::AfterDelta).await;
            state.add_delta(DeltaId { version, epoch, crc32c: file.crc32c, bytes: file.bytes });
            stats.bytes = file.bytes;
            delta_bytes = Some(file.bytes);
        }
        stats.duration = self.env.clock.monotonic().saturating_sub(started);
        self.last_stage = stats;
        self.staged = Some(Staged { state: state.clone(), delta_bytes });
        Ok(state)
    }

    /// What the batch changed, encoded. Large changes are encoded on all cores.
    async fn encode_changes(&self) -> Result<Vec<(Section, Bytes)>> {
        let mut jobs = Vec::new();
        let mut changes = 0;
        for operator in &self.operators.list {
            for (number, partition) in operator.partitions.iter().enumerate() {
                let count = lock(partition)?.changed_records();
                if count > 0 {
                    changes += count;
                    let (operator, partition) = (operator.clone(), Arc::clone(partition));
                    jobs.push(move || operator.encode_changes(number, &partition));
                }
            }
        }
        let encoded = if changes < 4_096 {
            jobs.into_iter().map(|job| job()).collect::<Result<Vec<_>>>()?
        } else {
            try_join_all(jobs.into_iter().map(blocking)).await?
        };
        Ok(encoded.into_iter().flatten().collect())
    }

    async fn write_delta(&mut self, path: &Path, name: (u64, u64), file: &file::Encoded) -> Result<()> {
        let own = self.attempted.replace(name) == Some(name);
        let mut outcome = file::create(&self.env, path, file).await?;
        if own && outcome == Outcome::Occupied {
            // What an earlier attempt of this process at the same batch wrote; no commit refers to it.
            self.env.storage.delete(path).await?;
            outcome = file::create(&self.env, path, file).await?;
        }
        match outcome {
            Outcome::Written => Ok(()),
            Outcome::Occupied => Err(Error::new(
                class::FENCED,
                format!("{path} was written by another process: two processes use this checkpoint; stop one of them"),
            )),
        }
    }

    /// The commit log has the staged version: it is the committed one from now on. Without a staged version nothing happens.
    ///
    /// May start a snapshot in the background; call it within a tokio runtime.
    pub fn commit(&mut self) {
        let Some(staged) = self.staged.take() else { return };
        for partition in self.operators.partitions() {
            if let Err(error) = peek(partition).commit() {
                warn!(dir = %self.dir, %error, "the batch is committed, but its state could not be written to the local disk");
                self.broken = true;
            }
        }
        if let Some(bytes) = staged.delta_bytes {
            self.chain.push((staged.state.version, bytes));
        }
        if staged.state.snapshots.first() == self.finished.as_ref()
            && let Some(snapshot) = self.finished.take()
        {
            self.chain.retain(|(version, _)| *version > snapshot.version);
        }
        self.current = staged.state;
        let delta_bytes = self.chain.iter().map(|(_, bytes)| bytes).sum();
        let snapshot_bytes = self.current.snapshots.first().map_or(0, |snapshot| snapshot.bytes);
        if self.running.is_none()
            && self.finished.is_none()
            && self.current.version >= self.not_before
            && self.options.is_due(self.chain.len(), delta_bytes, snapshot_bytes)
        {
            self.start_snapshot();
        }
    }

    /// Takes the batch back: the state is that of the committed version again.
    pub fn abort(&mut self) {
        let mut changed = false;
        for partition in self.operators.partitions() {
            let mut partition = peek(partition);
            changed |= partition.changed_records() > 0;
            partition.abort();
        }
        self.staged = None;
        // It lacks the rows of this batch, which no delta brings now. Its files are left to `retain`.
        if changed && (self.running.take().is_some() | self.finished.take().is_some()) {
            self.snapshots.discarded += 1;
        }
    }

    fn start_snapshot(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let job = Snapshot::of(&self.env, &self.dir, &self.current, self.options.part_bytes, &self.operators.list);
        let task = AbortOnDropHandle::new(runtime.spawn(job.write()));
        self.running = Some(Running { task, version: self.current.version, started: self.env.clock.monotonic() });
    }

    /// The version of the snapshot that is being written.
    pub fn running_snapshot(&self) -> Option<u64> {
        self.running.as_ref().map(|running| running.version)
    }

    /// Waits for the snapshot in the background, if there is one. The version that is staged next refers to it.
    pub async fn finish_snapshot(&mut self) {
        let Some(running) = self.running.take() else { return };
        let written = match running.task.await {
            Ok(result) => result,
            Err(error) => Err(Error::bug("the snapshot of the state panicked").caused_by(error)),
        };
        match written {
            Ok(snapshot) => {
                self.snapshots.written += 1;
                self.snapshots.bytes = snapshot.bytes;
                self.snapshots.duration = self.env.clock.monotonic().saturating_sub(running.started);
                info!(dir = %self.dir, version = snapshot.version, rows = snapshot.rows, bytes = snapshot.bytes, "state snapshot written");
                self.finished = Some(snapshot);
            }
            Err(error) => {
                self.snapshots.failed += 1;
                self.not_before = self.current.version + self.options.snapshot_after as u64;
                warn!(dir = %self.dir, %error, "the snapshot of the state failed; the deltas are complete, it is tried again later");
            }
        }
    }

    /// Removes the files that neither `oldest` nor any later version needs. `oldest` is the oldest version that must stay loadable.
    pub async fn retain(&self, oldest: &StateRef) -> Result<()> {
        let listed = self.env.storage.list_with_delimiter(Some(&self.dir)).await?;
        let unneeded = listed
            .objects
            .into_iter()
            .map(|object| object.location)
            .filter(|path| path.filename().and_then(|name| oldest.may_need(name)) == Some(false));
        stream::iter(unneeded)
            .map(|path| async move {
                match self.env.storage.delete(&path).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                    Err(error) => Err(Error::from(error)),
                }
            })
            .buffer_unordered(8)
            .try_collect()
            .await
    }

    async fn restore(&mut self, at: &StateRef) -> Result<RestoreReport> {
        let started = self.env.clock.monotonic();
        let conversion = self.options.conversion.clone();
        let origin = |number: usize| match &conversion {
            Some(conversion) => Some(conversion.origins.get(number)?.as_ref()?.state),
            None => Some(number),
        };
        let expected: Vec<u64> = (0..self.formats.len())
            .map(|number| origin(number).and_then(|old| at.rows.get(old).copied()).unwrap_or(0))
            .collect();
        if conversion.is_none() && at.rows.len() != self.formats.len() {
            return Err(Error::new(
                class::CHECKPOINT_MISMATCH,
                format!(
                    "{} has the state of {} operators, the query has {}: use another checkpoint, or the query it was written by",
                    self.dir,
                    at.rows.len(),
                    self.formats.len()
                ),
            ));
        }
        let mut report = RestoreReport { version: at.version, ..Default::default() };

        // The newest snapshot that can be read; else the beginning, if its deltas are still there.
        let beginning = (at.deltas_after == 0).then_some(None);
        let mut base = None;
        for snapshot in at.snapshots.iter().map(Some).chain(beginning) {
            // Each attempt has partitions of its own: what a failed one left running cannot reach those of the next.
            let operators = self.empty_operators(&expected)?;
            let loader = Loader {
                env: self.env.clone(),
                dir: self.dir.clone(),
                operators: operators.list.as_slice().into(),
                partition_of: Arc::clone(&self.partition_of),
                conversion: conversion.clone(),
            };
            match loader.load_snapshot(snapshot).await {
                Ok(bytes) => {
                    report.bytes += bytes;
                    base = Some((snapshot, loader, operators));
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    warn!(dir = %self.dir, %error, "a snapshot of the state cannot be used; an older one is tried");
                    report.repairs.push(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        let (base, loader, operators) = base.ok_or_else(|| {
            Error::new(
                class::CHECKPOINT_CORRUPT,
                format!(
                    "{}: no snapshot of version {} of the state can be used ({}): restore these files from a backup",
                    self.dir,
                    at.version,
                    report.repairs.join("; ")
                ),
            )
        })?;
        report.snapshot = base.map(|snapshot| snapshot.version);
        let base_version = base.map_or(0, |snapshot| snapshot.version);

        self.chain = loader.apply_deltas(at, base_version).await?;
        report.deltas = self.chain.len() as u64;
        report.bytes += self.chain.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let rows = loader.finish().await?;
        for ((operator, rows), expected) in operators.list.iter().zip(&rows).zip(&expected) {
            if rows != expected {
                return Err(Error::new(
                    class::CHECKPOINT_CORRUPT,
                    format!(
                        "{}: operator {} ({}) has {rows} rows in version {} instead of {expected}: files are not those that were \
                         written; restore them from a backup",
                        self.dir, operator.spec.operator, operator.spec.name, at.version
                    ),
                ));
            }
        }
        report.rows = rows.iter().sum();
        self.operators = operators;
        self.current = StateRef { rows: expected, ..at.clone() };
        self.current.snapshots.drain(..report.repairs.len().min(at.snapshots.len()));
        report.duration = self.env.clock.monotonic().saturating_sub(started);
        Ok(report)
    }
}
