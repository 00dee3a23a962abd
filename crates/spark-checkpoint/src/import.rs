//! Taking a query over from Spark: its logs, the logs of its sources and its state.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use async_trait::async_trait;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use perennial_core::checkpoint::{CheckpointLog, CommitDetails, CommitEntry, Metadata, OffsetEntry};
use perennial_core::env::Env;
use perennial_core::error::{Error, Result, ResultExt, class};
use perennial_core::job::{Adopt, JobSpec, QuerySpec};
use perennial_core::query::plan_digest;
use perennial_core::state::{StateOptions, StateStore};
use serde_json::Value;

use crate::files::Directory;
use crate::operators::{Operator, Taken};
use crate::settings::Settings;
use crate::state::StateReader;
use crate::{damaged, refused, sources};

pub use crate::sources::PathMap;

/// A checkpoint of Spark that a query is to go on from.
pub struct Import<'a> {
    /// Spark's checkpoint.
    pub from: &'a Directory,
    /// The world; its storage has the checkpoints of the job.
    pub env: &'a Env,
    /// Name of the job.
    pub job: &'a str,
    /// The query.
    pub query: &'a QuerySpec,
    /// Where the files are that the sources' logs name.
    pub paths: PathMap,
    /// Whether `from` is where the query has its checkpoint.
    pub in_place: bool,
}

/// What was taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The last batch that Spark committed; `None` where it was stopped in the first one.
    pub last: Option<u64>,
    /// The batch that Spark began and did not commit: it runs again.
    pub again: Option<u64>,
    /// The watermark that the query goes on with, in milliseconds since the epoch.
    pub watermark_ms: i64,
    /// Rows of state by operator.
    pub rows: Vec<(String, u64)>,
    /// Files that the logs of the sources name, by source.
    pub files: Vec<(String, u64)>,
    /// What people should know.
    pub notes: Vec<String>,
}

/// The logs of Spark as far as they are needed.
struct Logs {
    id: String,
    base: Option<(u64, OffsetEntry, CommitEntry)>,
    /// The batch that is not committed.
    begun: Option<(u64, OffsetEntry)>,
    /// The rest of the names of the state's files, where they have one.
    names: Option<Value>,
}

impl Import<'_> {
    /// Reads everything, and says what would be taken over. Writes nothing.
    ///
    /// # Errors
    /// `CheckpointCorrupt` for damage, `SparkCheckpoint` for what cannot be taken over.
    pub async fn look(&self) -> Result<Imported> {
        let logs = self.read_logs().await?;
        let sources = self.read_sources(&logs).await?;
        let mut rows = self.empty_counts();
        self.read_state(&logs, |taken| {
            rows[taken.state] += taken.rows.num_rows() as u64;
            Ok(())
        })
        .await?;
        Ok(self.report(&logs, &sources, &rows))
    }

    /// Takes the query over.
    ///
    /// # Errors
    /// As [`Import::look`], and `ConfigInvalid` where the query has a checkpoint.
    pub async fn run(&self) -> Result<Imported> {
        let logs = self.read_logs().await?;
        let sources = self.read_sources(&logs).await?;
        if !self.in_place {
            self.expect_nothing().await?;
        }
        // All is read, and all that is refused was refused, before the first write.
        let (store, rows) = self.import_state(&logs).await?;
        let log = CheckpointLog::open(self.env.clone(), &self.query.name).await?;
        let state = match (store, &logs.base) {
            (Some(mut store), Some((batch, ..))) => Some(store.stage(batch + 1, log.epoch()).await?),
            _ => None,
        };
        for (index, source) in sources.iter().enumerate() {
            for (name, content) in &source.files {
                if !(self.in_place && source.dir == format!("sources/{index}")) {
                    log.source_log(index).write(name, content.clone()).await?;
                }
            }
        }
        let ours = |entry: &OffsetEntry| OffsetEntry {
            epoch: log.epoch(),
            sources: self.query.sources.iter().map(|source| source.name.clone()).collect(),
            plan: plan_digest(self.query.plan.as_ref()),
            ..entry.clone()
        };
        if let Some((batch, entry)) = &logs.begun {
            log.adopt_offsets(*batch, &ours(entry)).await?;
        }
        if let Some((batch, offsets, commit)) = &logs.base {
            log.adopt_offsets(*batch, &ours(offsets)).await?;
            let details = CommitDetails {
                epoch: log.epoch(),
                counts: Default::default(),
                // Spark forgets those of single sources.
                input_watermarks: Vec::new(),
                partitions: Vec::new(),
                state,
                replayed: Vec::new(),
            };
            let commit = CommitEntry { perennial: Some(details), ..commit.clone() };
            log.adopt_commit(*batch, &commit).await?;
        }
        // Last: without an identity, what an interrupted import left is no checkpoint.
        if !self.in_place {
            let owner = Some((self.job.to_owned(), self.query.name.clone()));
            log.write_metadata(&Metadata { id: logs.id.clone(), owner }).await?;
        }
        Ok(self.report(&logs, &sources, &rows))
    }

    /// Refuses to write into a checkpoint that is there.
    async fn expect_nothing(&self) -> Result<()> {
        let root = Path::from(self.query.name.as_str());
        if Directory::new(self.env.storage.clone(), root, "").is_empty().await? {
            return Ok(());
        }
        let name = &self.query.name;
        Err(Error::new(
            class::CONFIG_INVALID,
            format!(
                "there is a checkpoint of {name} already: move it away, or set another `checkpoint` in the job file"
            ),
        ))
    }

    fn empty_counts(&self) -> Vec<u64> {
        vec![0; self.query.plan.state().len()]
    }

    fn report(&self, logs: &Logs, sources: &[sources::SourceFiles], rows: &[u64]) -> Imported {
        let watermark =
            |(_, offsets, commit): &(u64, OffsetEntry, CommitEntry)| offsets.watermark_ms.max(commit.next_watermark_ms);
        let of_state = |layout: &perennial_core::layout::OperatorLayout| {
            let states = if matches!(layout.content, perennial_core::layout::Content::Join(_)) { 2 } else { 1 };
            (layout.name.clone(), rows[layout.state..layout.state + states].iter().sum())
        };
        let names = self.query.sources.iter().map(|source| source.name.clone());
        Imported {
            last: logs.base.as_ref().map(|(batch, ..)| *batch),
            again: logs.begun.as_ref().map(|(batch, _)| *batch),
            watermark_ms: logs.base.as_ref().map_or(0, watermark),
            rows: self.query.plan.layout().iter().map(of_state).collect(),
            files: names.zip(sources).map(|(name, source)| (name, source.count)).filter(|(_, n)| *n > 0).collect(),
            notes: sources.iter().flat_map(|source| source.notes.clone()).collect(),
        }
    }

    async fn read_logs(&self) -> Result<Logs> {
        let from = self.from;
        let offsets = from.numbers("offsets").await?;
        let commits = from.numbers("commits").await?;
        let Some(&last) = offsets.last() else {
            return Err(refused(format!("{} has no batch, so there is nothing to go on from", from.shown("offsets"))));
        };
        let committed = commits.last().copied();
        let base = match committed {
            Some(commit) if commit == last || commit + 1 == last => Some(commit),
            None if last == 0 => None,
            Some(commit) if commit > last => {
                return Err(damaged(
                    &from.shown(&format!("offsets/{commit}")),
                    "it is missing, but its commit is there",
                ));
            }
            _ => return Err(from.missing(&format!("commits/{}", last.saturating_sub(1)))),
        };
        let metadata = from.text("metadata").await?;
        let metadata = Metadata::decode(&metadata).at(|| from.shown("metadata"))?;
        let mut logs = Logs { id: metadata.id, base: None, begun: None, names: None };
        if let Some(base) = base {
            let entry = self.read_offsets(base).await?;
            let name = format!("commits/{base}");
            let text = from.text(&name).await?;
            let commit = CommitEntry::decode(&text).at(|| from.shown(&name))?;
            if commit.perennial.is_some() {
                return Err(refused(format!("{}: Perennial wrote it, not Spark", from.shown(&name))));
            }
            let json: Value = text.lines().nth(1).and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
            logs.names = json.get("stateUniqueIds").cloned();
            logs.base = Some((base, entry, commit));
        }
        if base != Some(last) {
            logs.begun = Some((last, self.read_offsets(last).await?));
        }
        self.expect_policy(&logs)?;
        Ok(logs)
    }

    /// `offsets/N`, with its sources in the order of the job's.
    async fn read_offsets(&self, batch: u64) -> Result<OffsetEntry> {
        let name = format!("offsets/{batch}");
        let shown = || self.from.shown(&name);
        let mut entry = OffsetEntry::decode(&self.from.text(&name).await?).at(shown)?;
        let names: Vec<&str> = self.query.sources.iter().map(|source| source.name.as_str()).collect();
        if entry.offsets.len() != names.len() {
            return Err(refused(format!(
                "{}: Spark's query reads {} sources, the job's reads {} ({})",
                shown(),
                entry.offsets.len(),
                names.len(),
                names.join(", ")
            )));
        }
        if !entry.sources.is_empty() {
            let find = |name: &&str| entry.sources.iter().position(|source| source == name);
            let places: Option<Vec<usize>> = names.iter().map(find).collect();
            let places = places.ok_or_else(|| {
                refused(format!(
                    "{}: Spark's query reads the sources {}, the job's reads {}: give them the same names",
                    shown(),
                    entry.sources.join(", "),
                    names.join(", ")
                ))
            })?;
            entry.offsets = places.iter().map(|place| entry.offsets[*place].clone()).collect();
            entry.sources = names.into_iter().map(str::to_owned).collect();
        }
        for (source, offset) in self.query.sources.iter().zip(&entry.offsets) {
            if let Some(offset) = offset
                && serde_json::from_str::<Value>(offset.as_str()).is_err()
            {
                return Err(damaged(&shown(), format!("the offset of {} is not JSON", source.name)));
            }
        }
        Ok(entry)
    }

    fn expect_policy(&self, logs: &Logs) -> Result<()> {
        let marked = self.query.plan.inputs().iter().filter(|input| input.watermark_delay.is_some()).count();
        let entry = logs.base.as_ref().map(|(_, entry, _)| entry).or(logs.begun.as_ref().map(|(_, entry)| entry));
        let policy = entry.and_then(|entry| Settings(&entry.conf).watermark_policy());
        match policy {
            Some(policy) if marked > 1 && policy != self.query.watermark_policy => Err(refused(format!(
                "Spark's query has the watermark policy {policy:?}, the job's {:?}: set `watermark_policy` of the query",
                self.query.watermark_policy
            ))),
            _ => Ok(()),
        }
    }

    async fn read_sources(&self, logs: &Logs) -> Result<Vec<sources::SourceFiles>> {
        // The names in the log, where Spark's sources have some.
        let entry = logs.base.as_ref().map(|(_, entry, _)| entry).or(logs.begun.as_ref().map(|(_, entry)| entry));
        let named = entry.is_some_and(|entry| !entry.sources.is_empty() && !entry.is_ours());
        let mut read = Vec::new();
        for (index, source) in self.query.sources.iter().enumerate() {
            let dir = match named {
                true => format!("sources/{}", source.name),
                false => format!("sources/{index}"),
            };
            let files = sources::SourceFiles::read(self.from, dir, &self.paths, self.in_place).await;
            read.push(files.at(|| format!("source {}", source.name))?);
        }
        Ok(read)
    }

    /// Reads Spark's state, operator by operator and partition by partition.
    async fn read_state(&self, logs: &Logs, mut each: impl FnMut(Taken) -> Result<()>) -> Result<()> {
        let Some((batch, entry, _)) = &logs.base else { return Ok(()) };
        let settings = Settings(&entry.conf);
        let reader = StateReader { dir: self.from, settings, version: batch + 1, names: logs.names.clone() };
        let layouts = self.query.plan.layout();
        let found = reader.operators().await?;
        if found.iter().copied().ne(0..layouts.len() as u64) {
            let ours: Vec<&str> = layouts.iter().map(|layout| layout.name.as_str()).collect();
            let mut there = Vec::new();
            for operator in &found {
                there.push(reader.info(*operator).await?.map_or_else(|| operator.to_string(), |info| info.name));
            }
            return Err(refused(format!(
                "Spark's query keeps the state of [{}], the job's that of [{}] (from the sink towards the sources)",
                there.join(", "),
                ours.join(", ")
            )));
        }
        if layouts.is_empty() {
            return Ok(());
        }
        settings.expect_rows()?;
        let partitions = settings.partitions()?;
        for (number, layout) in (0..).zip(&layouts) {
            let info = reader.info(number).await?;
            let operator = Operator { number, layout, specs: self.query.plan.state(), info };
            for partition in 0..if operator.is_single() { 1 } else { partitions } {
                operator.take(&reader, partition).await?.into_iter().try_for_each(&mut each)?;
            }
        }
        Ok(())
    }

    /// Reads Spark's state into ours, which is not written yet.
    async fn import_state(&self, logs: &Logs) -> Result<(Option<StateStore>, Vec<u64>)> {
        let plan = self.query.plan.clone();
        let mut rows = self.empty_counts();
        let (Some(_), false) = (&logs.base, plan.state().is_empty()) else {
            // There may be a state all the same, which then is one too many.
            self.read_state(logs, |_| Ok(())).await?;
            return Ok((None, rows));
        };
        let spread = plan.clone();
        let partition_of =
            move |state: usize, keys: &[ArrayRef], partitions: usize| spread.partition_of(state, keys, partitions);
        let (store, _) = StateStore::open(
            self.env,
            Path::from(self.query.name.as_str()).join("state"),
            plan.state(),
            plan.parallelism(),
            Arc::new(partition_of),
            None,
            StateOptions::default(),
        )
        .await?;
        let partitions = store.partitions();
        self.read_state(logs, |Taken { state, rows: taken }| {
            rows[state] += taken.num_rows() as u64;
            let keys = &taken.columns()[..plan.state()[state].keys];
            let places = match keys {
                [] => vec![0; taken.num_rows()],
                keys => plan.partition_of(state, keys, partitions[state].len())?,
            };
            for (partition, rows) in split(&taken, &places)? {
                let place = partitions[state].get(partition).ok_or_else(|| Error::bug("a key has no partition"))?;
                place.lock().map_err(|_| Error::bug("a partition of the state was left by a panic"))?.put(&rows)?;
            }
            Ok(())
        })
        .await?;
        drop(partitions);
        let held = store.rows();
        let expected: u64 = rows.iter().sum();
        if held != expected {
            return Err(refused(format!(
                "of {expected} rows of Spark's state {held} have a key of their own in the job's"
            )));
        }
        Ok((Some(store), rows))
    }
}

fn split(rows: &RecordBatch, places: &[u32]) -> Result<Vec<(usize, RecordBatch)>> {
    let mut indexes: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    for (row, place) in places.iter().enumerate() {
        indexes.entry(*place as usize).or_default().push(row as u32);
    }
    let part = |(place, indexes): (usize, Vec<u32>)| {
        let rows = take_record_batch(rows, &UInt32Array::from(indexes));
        Ok((place, rows.map_err(|error| Error::bug(format!("rows cannot be taken: {error}")))?))
    };
    indexes.into_iter().map(part).collect()
}

/// Takes over checkpoints of Spark that were copied to the place of a query's own.
#[derive(Debug)]
pub struct Adopter;

#[async_trait]
impl Adopt for Adopter {
    async fn adopt(&self, job: &JobSpec, query: &QuerySpec) -> Result<()> {
        let root = Path::from(query.name.as_str());
        match job.env.storage.head(&root.clone().join("_perennial").join("metadata")).await {
            Ok(_) => return Ok(()),
            Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let from = Directory::new(job.env.storage.clone(), root, query.name.clone());
        if !is_sparks(&from).await? {
            return Ok(());
        }
        let import =
            Import { from: &from, env: &job.env, job: &job.name, query, paths: PathMap::default(), in_place: true };
        let imported = import.run().await?;
        for note in &imported.notes {
            tracing::warn!(query = %query.name, "{note}");
        }
        tracing::info!(query = %query.name, last = ?imported.last, rows = ?imported.rows, "the checkpoint was taken over from Spark");
        Ok(())
    }
}

/// Whether Spark wrote the newest files of a checkpoint. Damage is for others to report.
async fn is_sparks(from: &Directory) -> Result<bool> {
    let commits = from.numbers("commits").await?;
    let offsets = from.numbers("offsets").await?;
    let text = match (commits.last(), offsets.last()) {
        (Some(commit), _) => from.read_edited(&format!("commits/{commit}")).await?.0,
        (None, Some(batch)) => from.read_edited(&format!("offsets/{batch}")).await?.0,
        (None, None) => return Ok(false),
    };
    Ok(!text.windows(b"\"perennial\"".len()).any(|part| part == b"\"perennial\""))
}
