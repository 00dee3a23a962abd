//! The store: all partitions of a query's operators, and their versions on storage.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::Schema;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::file::{self, Content, Decoded, DeltaId, Header, Kind, Outcome, SCHEMA_VERSION, Section};
use super::manifest::{SnapshotRef, StateRef, delta_path, snapshot_path};
use super::memory::{MemoryPartition, committed_rows};
use super::row::Layout;
use super::{StatePartition, StateSpec};
use crate::env::Env;
use crate::error::{Error, ErrorKind, Result, class};
use crate::plan::BatchState;

/// To which of so many partitions each key of an operator belongs. The operator is its place in the list of specs. Not asked for
/// operators without key columns: their row is in partition 0.
pub type PartitionOf = Arc<dyn Fn(usize, &[ArrayRef], usize) -> Result<Vec<u32>> + Send + Sync>;

/// When snapshots are written, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateOptions {
    /// No snapshot before there are this many deltas since the last one.
    pub snapshot_after: usize,
    /// No snapshot before the deltas since the last one have this many bytes (each file counts 16 KiB more than it has, because opening it
    /// costs as much), nor before they have as many as that snapshot.
    pub snapshot_bytes: u64,
    /// But in any case when there are this many deltas.
    pub max_deltas: usize,
    /// Size of a snapshot's files in bytes, roughly.
    pub part_bytes: usize,
}

impl Default for StateOptions {
    fn default() -> Self {
        Self { snapshot_after: 10, snapshot_bytes: 1 << 20, max_deltas: 500, part_bytes: 8 << 20 }
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

type Partition = Arc<Mutex<MemoryPartition>>;

/// The state of one operator.
#[derive(Debug, Clone)]
struct Operator {
    spec: StateSpec,
    layout: Arc<Layout>,
    partitions: Vec<Partition>,
}

/// The state of a query: the partitions of all its operators, and their versions on storage.
///
/// A batch goes: [`partitions`](Self::partitions) to the plan, [`stage`](Self::stage), the commit log, [`commit`](Self::commit); or
/// [`abort`](Self::abort) at any point before the commit log.
#[derive(Debug)]
pub struct StateStore {
    env: Env,
    dir: Path,
    options: StateOptions,
    operators: Vec<Operator>,
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
        let operators = specs
            .iter()
            .map(|spec| {
                let layout = Arc::new(Layout::new(spec, env.entropy.next_u64())?);
                Ok(Operator::empty(spec.clone(), layout, partitions.max(1), 0))
            })
            .collect::<Result<Vec<_>>>()?;
        let mut store = Self {
            env: env.clone(),
            dir,
            options,
            current: StateRef { rows: vec![0; operators.len()], ..Default::default() },
            operators,
            chain: Vec::new(),
            staged: None,
            attempted: None,
            running: None,
            finished: None,
            not_before: 0,
            last_stage: StageStats::default(),
            snapshots: SnapshotStats::default(),
        };
        let report = match at {
            Some(at) => store.restore(at, partition_of).await?,
            None => RestoreReport::default(),
        };
        Ok((store, report))
    }

    /// The partitions of all operators, for a batch.
    pub fn partitions(&self) -> BatchState {
        let share = |partition: &Partition| Arc::clone(partition) as Arc<Mutex<dyn StatePartition>>;
        self.operators.iter().map(|operator| operator.partitions.iter().map(share).collect()).collect()
    }

    /// The version that is committed.
    pub fn current(&self) -> &StateRef {
        &self.current
    }

    /// Rows held now, of all operators.
    pub fn rows(&self) -> u64 {
        self.each_partition().map(|partition| peek(partition).rows()).sum()
    }

    /// Bytes of memory held now, of all operators.
    pub fn bytes(&self) -> u64 {
        self.each_partition().map(|partition| peek(partition).bytes()).sum()
    }

    /// What staging the last version took.
    pub fn last_stage(&self) -> StageStats {
        self.last_stage
    }

    /// What became of the snapshots.
    pub fn snapshots(&self) -> SnapshotStats {
        self.snapshots
    }

    fn each_partition(&self) -> impl Iterator<Item = &Partition> {
        self.operators.iter().flat_map(|operator| &operator.partitions)
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
        for (rows, operator) in state.rows.iter_mut().zip(&self.operators) {
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
                partitions: self.operators.first().map_or(0, |operator| operator.partitions.len()),
                sections,
            };
            let file = file::encode(&header, payload)?;
            self.write_delta(&delta_path(&self.dir, version, epoch), (version, epoch), &file).await?;
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
        for operator in &self.operators {
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
        for partition in self.each_partition() {
            peek(partition).commit();
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
        for partition in self.each_partition() {
            let mut partition = peek(partition);
            changed |= partition.is_changed();
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
        let pin = Arc::new(());
        let sources = self.operators.iter().flat_map(|operator| {
            let pin = &pin;
            operator.partitions.iter().enumerate().map(move |(number, partition)| Source {
                operator: operator.clone(),
                number,
                chunks: 0..peek(partition).pin_chunks(pin),
            })
        });
        let job = Snapshot {
            env: self.env.clone(),
            dir: self.dir.clone(),
            version: self.current.version,
            epoch: self.current.epoch,
            part_bytes: self.options.part_bytes,
            sources: sources.collect(),
            _pin: pin,
        };
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

    async fn restore(&mut self, at: &StateRef, partition_of: PartitionOf) -> Result<RestoreReport> {
        let started = self.env.clock.monotonic();
        if at.rows.len() != self.operators.len() {
            return Err(Error::new(
                class::CHECKPOINT_MISMATCH,
                format!(
                    "{} has the state of {} operators, the query has {}: use another checkpoint, or the query it was written by",
                    self.dir,
                    at.rows.len(),
                    self.operators.len()
                ),
            ));
        }
        let mut report = RestoreReport { version: at.version, ..Default::default() };

        // The newest snapshot that can be read; else the beginning, if its deltas are still there.
        let beginning = (at.deltas_after == 0).then_some(None);
        let mut base = None;
        for snapshot in at.snapshots.iter().map(Some).chain(beginning) {
            // Each attempt has partitions of its own: what a failed one left running cannot reach those of the next.
            let room = self.operators.iter().zip(&at.rows);
            let loader = Loader {
                env: self.env.clone(),
                dir: self.dir.clone(),
                operators: room.map(|(operator, rows)| operator.emptied(*rows)).collect(),
                partition_of: Arc::clone(&partition_of),
            };
            match loader.load_snapshot(snapshot).await {
                Ok(bytes) => {
                    report.bytes += bytes;
                    base = Some((snapshot, loader));
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    warn!(dir = %self.dir, %error, "a snapshot of the state cannot be used; an older one is tried");
                    report.repairs.push(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        let (base, loader) = base.ok_or_else(|| {
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
        self.operators = loader.operators.to_vec();
        for (operator, expected) in self.operators.iter().zip(&at.rows) {
            let mut rows = 0;
            for partition in &operator.partitions {
                rows += lock(partition)?.rows();
            }
            if rows != *expected {
                return Err(Error::new(
                    class::CHECKPOINT_CORRUPT,
                    format!(
                        "{}: operator {} ({}) has {rows} rows in version {} instead of {expected}: files are not those that were \
                         written; restore them from a backup",
                        self.dir, operator.spec.operator, operator.spec.name, at.version
                    ),
                ));
            }
            report.rows += rows;
        }
        self.current = at.clone();
        self.current.snapshots.drain(..report.repairs.len().min(at.snapshots.len()));
        report.duration = self.env.clock.monotonic().saturating_sub(started);
        Ok(report)
    }
}

impl Operator {
    /// An operator without rows, with room for so many; the number is a hint that may be wrong.
    fn empty(spec: StateSpec, layout: Arc<Layout>, partitions: usize, rows: u64) -> Self {
        let share = rows.min(1 << 26) as usize / partitions;
        let partition = |_| {
            let mut partition = MemoryPartition::with_layout(Arc::clone(&layout));
            partition.reserve(share + share / 16);
            Arc::new(Mutex::new(partition))
        };
        let partitions = (0..partitions).map(partition).collect();
        Self { spec, layout, partitions }
    }

    /// The same operator with partitions of its own, without rows.
    fn emptied(&self, room: u64) -> Self {
        Self::empty(self.spec.clone(), Arc::clone(&self.layout), self.partitions.len(), room)
    }

    fn section(&self, partition: usize, content: Content, rows: u64, bytes: &Bytes) -> Section {
        Section {
            operator: self.spec.operator,
            name: self.spec.name.clone(),
            partition,
            content,
            keys: self.spec.keys,
            schema_version: SCHEMA_VERSION,
            rows,
            bytes: bytes.len() as u64,
        }
    }

    fn encode_changes(&self, number: usize, partition: &Partition) -> Result<Vec<(Section, Bytes)>> {
        let changes = lock(partition)?.changes()?;
        let mut sections = Vec::new();
        for (content, schema, batches) in [
            (Content::Rows, self.layout.schema(), changes.rows),
            (Content::Removed, self.layout.key_schema(), changes.removed),
        ] {
            if !batches.is_empty() {
                let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
                let bytes = file::encode_section(schema, &batches)?;
                sections.push((self.section(number, content, rows, &bytes), bytes));
            }
        }
        Ok(sections)
    }
}

/// A snapshot that is being written.
struct Snapshot {
    env: Env,
    dir: Path,
    version: u64,
    epoch: u64,
    part_bytes: usize,
    /// What is still to be written.
    sources: VecDeque<Source>,
    /// Keeps the rows in their chunks.
    _pin: Arc<()>,
}

/// Chunks of a partition.
struct Source {
    operator: Operator,
    number: usize,
    chunks: std::ops::Range<usize>,
}

/// So many chunks are decoded together.
const CHUNK_GROUP: usize = 4;

impl Snapshot {
    async fn write(mut self) -> Result<SnapshotRef> {
        let mut written = SnapshotRef { version: self.version, epoch: self.epoch, parts: 0, rows: 0, bytes: 0 };
        while !self.sources.is_empty() {
            let (rest, encoded) = blocking(move || {
                let encoded = self.encode_part()?;
                Ok((self, encoded))
            })
            .await?;
            self = rest;
            let (sections, payload): (Vec<_>, Vec<_>) = encoded.into_iter().unzip();
            if sections.is_empty() {
                break;
            }
            written.rows += sections.iter().map(|section: &Section| section.rows).sum::<u64>();
            let header = Header {
                kind: Kind::Snapshot,
                version: self.version,
                epoch: self.epoch,
                part: written.parts,
                previous: None,
                partitions: sections.iter().map(|section| section.partition + 1).max().unwrap_or(0),
                sections,
            };
            let file = file::encode(&header, payload)?;
            let path = snapshot_path(&self.dir, self.version, self.epoch, written.parts);
            if file::create(&self.env, &path, &file).await? == Outcome::Occupied {
                return Err(Error::new(class::FENCED, format!("{path} was written by another process")));
            }
            written.parts += 1;
            written.bytes += file.bytes;
        }
        Ok(written)
    }

    /// The sections of the next file. Partitions take turns, so that a reader can fill several at a time.
    fn encode_part(&mut self) -> Result<Vec<(Section, Bytes)>> {
        let mut sections = Vec::new();
        let mut bytes = 0;
        while bytes < self.part_bytes
            && let Some(mut source) = self.sources.pop_front()
        {
            if let Some((section, payload)) = source.encode_section(self.part_bytes)? {
                bytes += payload.len();
                sections.push((section, payload));
            }
            if !source.chunks.is_empty() {
                self.sources.push_back(source);
            }
        }
        Ok(sections)
    }
}

impl Source {
    /// The next chunks as a section of about this size.
    fn encode_section(&mut self, max_bytes: usize) -> Result<Option<(Section, Bytes)>> {
        let layout = &self.operator.layout;
        let partition = &self.operator.partitions[self.number];
        let mut writer = StreamWriter::try_new_with_options(Vec::new(), layout.schema(), file::ipc_options()?)?;
        let mut rows = 0;
        loop {
            // The partition is held only while one chunk is copied.
            let group: Vec<Vec<u8>> = self
                .chunks
                .by_ref()
                .take(CHUNK_GROUP)
                .map(|chunk| Ok(lock(partition)?.copy_chunk(chunk)))
                .collect::<Result<_>>()?;
            for batch in committed_rows(layout, &group)? {
                rows += batch.num_rows() as u64;
                writer.write(&batch)?;
            }
            if self.chunks.is_empty() || writer.get_ref().len() >= max_bytes {
                break;
            }
        }
        if rows == 0 {
            return Ok(None);
        }
        let bytes = Bytes::from(writer.into_inner()?);
        Ok(Some((self.operator.section(self.number, Content::Rows, rows, &bytes), bytes)))
    }
}

/// Reads versions back.
#[derive(Clone)]
struct Loader {
    env: Env,
    dir: Path,
    operators: Arc<[Operator]>,
    partition_of: PartitionOf,
}

impl Loader {
    /// How many files are read or worked on at a time.
    fn concurrency(&self) -> usize {
        self.operators.first().map_or(1, |operator| operator.partitions.len()) + 1
    }

    /// Loads a snapshot, or nothing for the beginning; returns the bytes read. Its rows may come in any order.
    async fn load_snapshot(&self, snapshot: Option<&SnapshotRef>) -> Result<u64> {
        let Some(snapshot) = snapshot else { return Ok(0) };
        let (rows, bytes) = stream::iter(0..snapshot.parts)
            .map(|part| async move {
                let path = snapshot_path(&self.dir, snapshot.version, snapshot.epoch, part);
                let file = self.read(&path, (Kind::Snapshot, snapshot.version, snapshot.epoch, part)).await?;
                let rows: u64 = file.header.sections.iter().map(|section| section.rows).sum();
                let bytes = file.bytes;
                self.apply(&path, file).await?;
                Ok::<_, Error>((rows, bytes))
            })
            .buffer_unordered(self.concurrency())
            .try_fold((0, 0), |sum, part| async move { Ok((sum.0 + part.0, sum.1 + part.1)) })
            .await?;
        if rows != snapshot.rows {
            let path = snapshot_path(&self.dir, snapshot.version, snapshot.epoch, 0);
            return Err(file::damaged(&path, &format!("the snapshot has {rows} rows instead of {}", snapshot.rows)));
        }
        Ok(bytes)
    }

    /// Applies the deltas after a version, in order; returns their versions and sizes.
    async fn apply_deltas(&self, at: &StateRef, base: u64) -> Result<Vec<(u64, u64)>> {
        let mut files = stream::iter(at.deltas_behind(base))
            .map(|(version, epoch)| async move {
                let path = delta_path(&self.dir, version, epoch);
                let file = self.read(&path, (Kind::Delta, version, epoch, 0)).await;
                (path, file)
            })
            .buffered(self.concurrency());
        let mut chain = Vec::new();
        let mut known = base;
        let mut previous: Option<DeltaId> = None;
        let incomplete = |known: u64, error: Error| {
            if error.kind() != ErrorKind::Corrupt {
                return error;
            }
            Error::new(
                class::CHECKPOINT_CORRUPT,
                format!(
                    "{}; version {} of the state cannot be rebuilt without it, version {known} can: restore the file from a backup, \
                     or go back to the commit of that version",
                    error.message(),
                    at.version
                ),
            )
            .caused_by(error)
        };
        while let Some((path, file)) = files.next().await {
            let file = file.map_err(|error| incomplete(known, error))?;
            let id = DeltaId {
                version: file.header.version,
                epoch: file.header.epoch,
                crc32c: file.crc32c,
                bytes: file.bytes,
            };
            let follows = previous.is_none() || file.header.previous == previous;
            let is_newest = at.newest.is_none_or(|newest| newest.version != id.version || newest == id);
            if !follows || !is_newest {
                return Err(incomplete(known, file::damaged(&path, "it is not the file that the commit log means")));
            }
            self.apply(&path, file).await.map_err(|error| incomplete(known, error))?;
            chain.push((id.version, id.bytes));
            known = id.version;
            previous = Some(id);
        }
        Ok(chain)
    }

    async fn read(&self, path: &Path, expected: (Kind, u64, u64, u64)) -> Result<Decoded> {
        let bytes = file::read(&self.env, path).await?;
        let file = {
            let path = path.clone();
            blocking(move || file::decode(&path, bytes)).await?
        };
        let header = &file.header;
        if (header.kind, header.version, header.epoch, header.part) != expected {
            return Err(file::damaged(path, "it is another file under this name"));
        }
        Ok(file)
    }

    /// Applies a file, its sections side by side.
    async fn apply(&self, path: &Path, file: Decoded) -> Result<()> {
        let sections = file.header.sections.into_iter().zip(file.sections).map(|(section, bytes)| {
            let (loader, path) = (self.clone(), path.clone());
            blocking(move || loader.apply_section(&path, &section, &bytes))
        });
        try_join_all(sections).await?;
        Ok(())
    }

    fn apply_section(&self, path: &Path, section: &Section, bytes: &[u8]) -> Result<()> {
        let mismatch = |what: String| {
            Error::new(
                class::CHECKPOINT_MISMATCH,
                format!("{path}: {what}: use another checkpoint, or the query it was written by"),
            )
        };
        let found = self.operators.iter().position(|operator| operator.spec.operator == section.operator);
        let (number, operator) = found
            .map(|number| (number, &self.operators[number]))
            .filter(|(_, operator)| operator.spec.name == section.name && operator.spec.keys == section.keys)
            .ok_or_else(|| {
                mismatch(format!(
                    "it has state of operator {} ({}, {} key columns), which the query does not have",
                    section.operator, section.name, section.keys
                ))
            })?;
        if section.schema_version > SCHEMA_VERSION {
            return Err(Error::new(
                class::CHECKPOINT_NEWER,
                format!(
                    "{path} has schema version {}, this version reads up to {SCHEMA_VERSION}: use the version that wrote it",
                    section.schema_version
                ),
            ));
        }
        let layout = &operator.layout;
        let expected = match section.content {
            Content::Rows => layout.schema(),
            Content::Removed => layout.key_schema(),
        };
        let check = |schema: &Schema| {
            if types(schema).eq(types(expected)) {
                return Ok(());
            }
            Err(mismatch(format!(
                "operator {} ({}) has the columns {}, the query keeps {}",
                section.operator,
                section.name,
                types(schema).collect::<Vec<_>>().join(", "),
                types(expected).collect::<Vec<_>>().join(", ")
            )))
        };
        file::decode_section(path, section, bytes, check, |batch| {
            for (partition, rows) in self.spread(number, batch)? {
                let partition = &operator.partitions[partition];
                match section.content {
                    // Only the last step holds the partition.
                    Content::Rows => {
                        let rows = layout.encode(&rows)?;
                        lock(partition)?.put_encoded(&rows, false)?;
                    }
                    Content::Removed => {
                        let keys = layout.encode_keys(rows.columns())?;
                        lock(partition)?.remove_encoded(&keys, false);
                    }
                }
            }
            Ok(())
        })
    }

    /// Divides rows by the partition that they belong to.
    fn spread(&self, operator: usize, batch: RecordBatch) -> Result<Vec<(usize, RecordBatch)>> {
        let (keys, partitions) = (self.operators[operator].spec.keys, self.operators[operator].partitions.len());
        if keys == 0 || partitions == 1 || batch.num_rows() == 0 {
            return Ok(vec![(0, batch)]);
        }
        let targets = (self.partition_of)(operator, &batch.columns()[..keys], partitions)?;
        if targets.len() != batch.num_rows() {
            return Err(Error::bug(format!("{} partitions for {} rows", targets.len(), batch.num_rows())));
        }
        let mut rows = vec![Vec::new(); partitions];
        for (row, target) in (0u32..).zip(&targets) {
            rows.get_mut(*target as usize)
                .ok_or_else(|| Error::bug(format!("partition {target} of {partitions}")))?
                .push(row);
        }
        if let Some(only) = rows.iter().position(|rows| rows.len() == batch.num_rows()) {
            return Ok(vec![(only, batch)]);
        }
        rows.into_iter()
            .enumerate()
            .filter(|(_, rows)| !rows.is_empty())
            .map(|(partition, rows)| Ok((partition, take_record_batch(&batch, &UInt32Array::from(rows))?)))
            .collect()
    }
}

/// The types of all columns, for comparison and for people.
fn types(schema: &Schema) -> impl Iterator<Item = String> {
    schema.fields().iter().map(|field| field.data_type().to_string())
}

/// A partition, for changing or writing it. A thread that panicked may have left it half changed.
fn lock(partition: &Partition) -> Result<MutexGuard<'_, MemoryPartition>> {
    partition.lock().map_err(|_| {
        Error::bug("a partition of the state was left behind by a panic: the query must be loaded from its checkpoint")
    })
}

/// A partition, where it does not matter whether a thread panicked with it: the next [`lock`] fails.
fn peek(partition: &Partition) -> MutexGuard<'_, MemoryPartition> {
    partition.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs work that takes the processor for long on a thread that may be blocked.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::bug("work on the state did not end").caused_by(error)),
    }
}
