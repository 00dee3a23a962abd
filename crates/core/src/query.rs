//! A running query: the way of a batch, top to bottom.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::filter_record_batch;
use futures::channel::oneshot;
use futures::future::{self, try_join_all};
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use serde_json::{Map, json};

use crate::breaker::Part;
use crate::checkpoint::{
    BatchCounts, CheckpointLog, CommitDetails, CommitEntry, Damage, Found, Metadata, OffsetEntry,
    Part as CheckpointPart, Recovery, oldest_to_keep, recover,
};
use crate::crash::CrashPoint;
use crate::dead_letter::{DeadLetter, DeadLetters, LetterBatch, Mark, Outcome, RESULT_OF, Stage, timestamp_text};
use crate::env::Env;
use crate::error::{Error, ErrorClass, ErrorKind, Result, ResultExt, class};
use crate::guarantee::{self, Computed};
use crate::intake::{Gate, Intake, Reading, Take, row_as_json};
use crate::isolate::{Guilty, PrefixSearch, RowNumber, RowSet, Search, StreamId};
use crate::job::{JobSpec, QuerySpec, Trigger};
use crate::memory::MemoryBudget;
use crate::meter::Meter;
use crate::offset::{Offset, OffsetRange};
use crate::on_error::Reaction;
use crate::pace::{Pace, Took};
use crate::plan::{BatchInfo, Execution, PlanInput, PlanOutcome};
use crate::progress::{BatchReport, Observer, Phases, QueryState, SourceProgress};
use crate::records::{RawRecord, RecordPosition};
use crate::replay::{ReplayRequest, Replayed};
use crate::shape::{self, Changes};
use crate::sink::{BatchId, RowStream, Sink, SinkBatch, SinkContext, Written};
use crate::source::{InputStream, Lag, ReadLimit, Source, SourceContext};
use crate::state::{Conversion, StateOptions, StateRef, StateStore};
use crate::table::OpenTable;
use crate::watermark::{WatermarkAfterRestart, Watermarks};

/// How often a query asks its sources for their lag, which may cost a round trip.
const LAG_INTERVAL: Duration = Duration::from_secs(5);

/// A batch that takes longer than this looks at the fence again between two blocks of rows.
const FENCE_INTERVAL: Duration = Duration::from_secs(1);

/// How often a query looks whether somebody asked to replay dead letters.
const REPLAY_INTERVAL: Duration = Duration::from_secs(1);

/// How often a query looks for dead letters that are too old.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(3600);

/// What a call of [`Query::run_batch`] did.
#[derive(Debug)]
pub enum Step {
    /// A batch was committed.
    Committed(Box<BatchReport>),
    /// There is nothing to do.
    Idle,
}

/// A query that recovered and runs batches.
pub struct Query {
    spec: QuerySpec,
    env: Env,
    job_version: String,
    dead_letters: Arc<dyn DeadLetters>,
    log: CheckpointLog,
    sources: Vec<OpenSource>,
    tables: Vec<OpenTable>,
    sink: Box<dyn Sink>,
    state: StateStore,
    watermarks: Watermarks,
    plan_digest: String,
    batches_to_retain: u64,

    /// Number of the next batch.
    next: BatchId,
    /// Where the last batch ended, per source.
    ends: Vec<Option<Offset>>,
    /// The watermark of the last batch, in milliseconds since the epoch.
    last_watermark_ms: i64,
    /// The timestamp of the last batch, in milliseconds since the epoch.
    last_timestamp_ms: i64,
    /// Whether the last batch moved the watermark, so that a batch without data may have something to emit.
    watermark_moved: bool,
    /// The batch that was begun and is not committed.
    pending: Option<Pending>,
    /// Batches after it that were logged before and run again, too.
    logged: VecDeque<(BatchId, OffsetEntry)>,
    /// How many requests to replay dead letters the last batch and those before it have taken.
    replays: u64,
    replays_at: Option<Duration>,
    /// Where an `available_now` run ends, per source.
    targets: Option<Vec<Option<Offset>>>,
    /// Batches whose logs are there, ascending.
    kept: Vec<BatchId>,
    memory: Arc<MemoryBudget>,
    /// How large the next batch is, where something limits it.
    pace: Option<Pace>,
    /// Where a batch ended that did not fit into the memory.
    did_not_fit: Option<Vec<Option<Offset>>>,
    /// Records that the last attempt at a batch read.
    attempted: u64,
    lag: Vec<(String, Lag)>,
    lag_at: Option<Duration>,
    expired_at: Option<Duration>,
    blame: Arc<Blame>,
    observer: Arc<dyn Observer>,
    query_id: Arc<str>,
    meters: Meters,
}

/// Where the time between source and sink goes.
struct Meters {
    read: Arc<Meter>,
    decode: Arc<Meter>,
    /// The sink waits for rows.
    rows: Arc<Meter>,
    /// The sink's own time in the last attempt.
    sink: Duration,
    /// How much longer than the sink the state took in the last attempt.
    state: Duration,
}

struct OpenSource {
    name: String,
    source: Box<dyn Source>,
    gate: Arc<Gate>,
}

impl OpenSource {
    fn failed(&self, error: Error) -> Error {
        error.at(format!("source {}", self.name)).of(Part::source(&self.name))
    }
}

/// A batch that was begun.
enum Pending {
    /// Its ranges are decided (and perhaps logged); it has to run.
    Planned(Box<Planned>),
    /// All is durable but the commit, whose answer is not known.
    Executed(Box<Executed>),
}

#[derive(Clone)]
struct Planned {
    id: BatchId,
    entry: OffsetEntry,
    starts: Vec<Option<Offset>>,
    /// The request to replay that it runs.
    replay: Option<Arc<ReplayRequest>>,
    late_watermark_ms: i64,
    /// An earlier attempt may have left traces.
    again: bool,
    /// Nobody has seen it yet, and there may be a smaller one in its place.
    divisible: bool,
}

/// A batch whose rows are written and whose state is not staged yet.
struct Processed {
    intake: Arc<Intake>,
    outcome: PlanOutcome,
    written: Written,
    /// The state after the batch, durable.
    state: Option<StateRef>,
    /// Letters beside those of the intake: records that were late.
    late: Vec<DeadLetter>,
    /// Rows of the result that the sink refused. They are no records: the records that they came from are in the state.
    refused: Vec<DeadLetter>,
}

struct Executed {
    planned: Planned,
    commit: CommitEntry,
    report: Box<BatchReport>,
}

impl Query {
    /// Recovers the query from its checkpoint, or begins it.
    ///
    /// # Errors
    /// `CheckpointMismatch` when the checkpoint is another query's, `CheckpointCorrupt` when it cannot be continued exactly,
    /// `GuaranteeNotMet`, and what sources, sink and storage give.
    pub async fn open(job: &JobSpec, spec: &QuerySpec) -> Result<Self> {
        if let Some(adopt) = &job.adopt {
            adopt.adopt(job, spec).await?;
        }
        let log = CheckpointLog::open(job.env.clone(), &spec.name).await?;
        match Self::recover(job, spec, log.clone()).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                // Who was taken over while it looked has seen what the other one did in parts.
                log.check_fence().await?;
                Err(log.advise(error).await)
            }
            opened => opened,
        }
    }

    async fn recover(job: &JobSpec, spec: &QuerySpec, log: CheckpointLog) -> Result<Self> {
        let env = job.env.clone();
        let mut found = log.find().await?;
        recover(&found)?;
        let query_id: Arc<str> = identity(job, spec, &log).await?.into();

        let gates = spec.gates()?;
        let sources = open_sources(job, spec, &log, &gates)?;
        let tables = spec.open_tables(&env, &job.name)?;
        let sink = spec
            .sink
            .open(SinkContext {
                env: env.clone(),
                job: job.name.clone(),
                query: spec.name.clone(),
                query_id: query_id.to_string(),
                schema: spec.plan.schema(),
                output_mode: spec.output_mode,
            })
            .at(|| "sink".into())?;
        let guarantee = demand(job, spec, &sources, sink.as_ref())?;
        let mut watermarks =
            Watermarks::new(spec.watermark_policy, spec.plan.inputs().iter().map(|input| input.watermark_delay));
        for (number, input) in spec.plan.inputs().iter().enumerate() {
            let source = spec.sources.iter().find(|source| !input.is_static && source.name == input.source);
            if let Some(per_partition) = source.and_then(|source| source.per_partition) {
                watermarks.follow_partitions(number, per_partition.idle_after_ms);
            }
        }
        let plan_digest = plan_digest(spec.plan.as_ref());
        // The newest batch of which everything is sound, its state included.
        let (recovery, base, state, restored, changes) = loop {
            let recovery = recover(&found)?;
            // An older batch than those that were looked at may be damaged, too.
            let base = match recovery.base() {
                Some(last) => match log.read_batch(last).await? {
                    Ok((offsets, commit)) => Some((last, offsets, commit)),
                    Err(damage) => {
                        found.damage.push(damage);
                        continue;
                    }
                },
                None => None,
            };
            let version = base.as_ref().and_then(|(_, _, commit)| commit.perennial.as_ref()?.state.as_ref());
            let last = base.as_ref().map(|(_, offsets, _)| offsets);
            let changes = compare(job, spec, &log, (last, version), recovery, &plan_digest).await?;
            let conversion = match &changes {
                Some(changes) => {
                    let (epoch, origins) = (log.epoch(), changes.origins.clone());
                    Some(Arc::new(Conversion { epoch, origins, empty: spec.plan.empty_state()? }))
                }
                None => None,
            };
            if let Some((batch, _, commit)) = &base
                && commit.perennial.is_none()
                && !spec.plan.state().is_empty()
            {
                return Err(Error::new(
                    class::SPARK_CHECKPOINT,
                    format!(
                        "commits/{batch} says nothing of the state after the batch, so another engine wrote it, and its state was not taken over: see `perennial checkpoint import`"
                    ),
                ));
            }
            let plan = spec.plan.clone();
            let partition_of = move |state: usize, keys: &[arrow::array::ArrayRef], partitions: usize| {
                plan.partition_of(state, keys, partitions)
            };
            let opened = StateStore::open(
                &env,
                log.state_dir(),
                spec.plan.state(),
                spec.plan.parallelism(),
                Arc::new(partition_of),
                version,
                StateOptions { conversion, ..job.state.clone() },
            );
            match (opened.await, &base) {
                (Ok((state, restored)), _) => break (recovery, base, state, restored, changes),
                (Err(error), Some((batch, ..))) if error.kind() == ErrorKind::Corrupt => {
                    found.damage.push(Damage { part: CheckpointPart::State, batch: *batch, why: error.to_string() });
                }
                (Err(error), _) => return Err(error.at("state")),
            }
        };
        let around = |repair: &String| format!("the state was restored exactly, around a damaged file: {repair}");
        let mut repairs: Vec<String> =
            found.repairs.iter().cloned().chain(restored.repairs.iter().map(around)).collect();
        let mut logged = VecDeque::new();
        if let Recovery::RunAgain { from, last } = recovery {
            for batch in from..=last {
                let entry = log.read_offsets(batch).await?;
                same_sources(spec, &entry)?;
                logged.push_back((batch, entry));
            }
            if found.repeats_commits(recovery) {
                repairs.push(may_repeat(&found, from, last, &guarantee)?);
                log.set_commits_aside(found.commits.iter().copied().filter(|commit| *commit >= from)).await?;
            }
        }
        for repair in repairs {
            tracing::warn!(query = %spec.name, "the checkpoint was mended: {repair}");
            job.observer.repaired(&spec.name, &repair);
        }
        for change in changes.iter().flat_map(|changes| &changes.kept) {
            tracing::info!(query = %spec.name, "the query changed: {change}");
        }
        for loss in changes.iter().flat_map(|changes| &changes.lost) {
            tracing::warn!(query = %spec.name, "the query changed, as was agreed: {loss}");
        }
        log.write_shape(&plan_digest, &spec.plan.shape()).await?;
        let committed = recovery.base();
        let (mut ends, mut last_watermark_ms, mut last_timestamp_ms) = (vec![None; sources.len()], 0, 0);
        let mut watermark_moved = false;
        let mut replays = 0;
        if let Some((_, offsets, commit)) = base {
            replays = offsets.replays;
            // The process may have died between the commit and the marks.
            let replayed = commit.perennial.as_ref().map_or(&[][..], |details| &details.replayed);
            mark_replayed(&env, job.dead_letters.as_ref(), replayed).await;
            watermark_moved = commit.next_watermark_ms > offsets.watermark_ms;
            let (inputs, partitions) = match (&commit.perennial, spec.watermark_after_restart) {
                (Some(details), WatermarkAfterRestart::Keep) => {
                    (&details.input_watermarks[..], &details.partitions[..])
                }
                _ => Default::default(),
            };
            watermarks.restore(commit.next_watermark_ms.max(offsets.watermark_ms), inputs);
            watermarks.restore_partitions(partitions);
            (last_watermark_ms, last_timestamp_ms) = (offsets.watermark_ms, offsets.timestamp_ms);
            ends = offsets.offsets;
        }
        let pace = Pace::new(job.pace, job.memory.limit().is_some());
        let mut targets = None;
        if job.trigger == Trigger::AvailableNow {
            let limit = ReadLimit { max_records: pace.as_ref().map(Pace::limit), until: None };
            let newest = sources.iter().zip(&ends).map(|(open, start)| async {
                open.source.newest(start.as_ref(), &limit).await.map_err(|error| open.failed(error))
            });
            targets = Some(try_join_all(newest).await?);
        }
        Ok(Self {
            env,
            job_version: job.version.clone(),
            dead_letters: job.dead_letters.clone(),
            log,
            sources,
            tables,
            sink,
            state,
            watermarks,
            plan_digest,
            batches_to_retain: job.batches_to_retain,
            next: committed.map_or(0, |last| last + 1),
            ends,
            last_watermark_ms,
            last_timestamp_ms,
            watermark_moved,
            pending: None,
            logged,
            replays,
            replays_at: None,
            targets,
            kept: found.offsets,
            memory: job.memory.clone(),
            pace,
            did_not_fit: None,
            attempted: 0,
            lag: Vec::new(),
            lag_at: None,
            expired_at: None,
            blame: Arc::default(),
            observer: job.observer.clone(),
            query_id,
            meters: Meters {
                read: Meter::new(job.env.clock.clone()),
                decode: Meter::new(job.env.clock.clone()),
                rows: Meter::new(job.env.clock.clone()),
                sink: Duration::ZERO,
                state: Duration::ZERO,
            },
            spec: spec.clone(),
        })
    }

    /// The next batch that was logged in an earlier life: it runs again as it was.
    async fn next_logged(&mut self) -> Result<Option<Planned>> {
        let Some((_, entry)) = self.logged.front() else { return Ok(None) };
        let replay = match entry.replays > self.replays {
            true => Some(self.read_replay(self.replays).await?),
            false => None,
        };
        Ok(self.logged.pop_front().map(|(id, entry)| Planned {
            id,
            entry,
            starts: self.ends.clone(),
            replay,
            late_watermark_ms: self.last_watermark_ms,
            again: true,
            divisible: false,
        }))
    }

    /// A request that a batch of the log has taken, and that is therefore there.
    async fn read_replay(&self, number: u64) -> Result<Arc<ReplayRequest>> {
        let missing = || {
            let what = format!(
                "the request {number} to replay dead letters, which a batch has taken, is gone from _perennial/replays"
            );
            Error::new(class::CHECKPOINT_CORRUPT, what)
        };
        Ok(Arc::new(self.log.read_replay(number).await?.ok_or_else(missing)?))
    }

    /// Number of the next batch.
    pub fn next_batch(&self) -> BatchId {
        self.next
    }

    /// Rows in state.
    pub fn state_rows(&self) -> u64 {
        self.state.rows()
    }

    /// Runs the next batch, or the one that was begun and is not committed. After an error the same batch is run again by the next
    /// call, with the same ranges, watermark and timestamp.
    pub async fn run_batch(&mut self) -> Result<Step> {
        loop {
            if let Some(step) = self.try_batch().await? {
                return Ok(step);
            }
        }
    }

    /// `None`: the batch did not fit into the memory; a smaller one takes its place.
    async fn try_batch(&mut self) -> Result<Option<Step>> {
        let mut watch = Stopwatch::start(&self.env);
        self.memory.take_peak();
        let held = self.memory.used();
        if self.state.is_broken() && !matches!(self.pending, Some(Pending::Executed(_))) {
            let loaded = self.state.reload().await.at(|| "state".into())?;
            tracing::warn!(query = %self.spec.name, rows = loaded.rows, "the state was loaded anew after its local disk failed");
        }
        let executed = match self.pending.take() {
            Some(Pending::Executed(executed)) => *executed,
            begun => {
                let planned = match begun {
                    Some(Pending::Planned(planned)) => *planned,
                    _ => match self.next_batch_to_run().await? {
                        Some(planned) => planned,
                        None => return Ok(Some(Step::Idle)),
                    },
                };
                let trigger = watch.lap();
                self.observer.state(&self.spec.name, QueryState::Running);
                match self.execute(&planned, trigger, watch).await {
                    Ok(executed) => executed,
                    Err(error) => {
                        self.state.abort();
                        if error.class() == class::MEMORY_LIMIT && planned.divisible && self.take_back(&planned).await?
                        {
                            return Ok(None);
                        }
                        let again = Planned { again: true, divisible: false, ..planned };
                        self.pending = Some(Pending::Planned(Box::new(again)));
                        return Err(error);
                    }
                }
            }
        };
        let step = self.commit(executed).await?;
        if let (Step::Committed(report), Some(pace)) = (&step, &mut self.pace) {
            let memory = self.memory.take_peak().saturating_sub(held);
            let free = self.memory.limit().map(|limit| limit.saturating_sub(self.memory.used()));
            pace.committed(Took { records: report.counts.read, time: report.phases.total(), memory }, free);
        }
        Ok(Some(step))
    }

    /// Makes room for a smaller batch in the place of one that did not fit into the memory, if there can be one.
    async fn take_back(&mut self, batch: &Planned) -> Result<bool> {
        let Some(pace) = &mut self.pace else { return Ok(false) };
        if !pace.did_not_fit(self.attempted) {
            return Ok(false);
        }
        let next = pace.limit();
        self.log.withdraw_offsets(batch.id).await?;
        tracing::warn!(query = %self.spec.name, batch = batch.id, read = self.attempted, next, "the batch did not fit into the memory; a smaller one takes its place");
        self.did_not_fit = Some(batch.entry.offsets.clone());
        Ok(true)
    }

    /// The stages of a batch up to the point where all but the commit is durable.
    async fn execute(&mut self, batch: &Planned, trigger: Duration, mut watch: Stopwatch) -> Result<Executed> {
        let mut phases = Phases { trigger, ..Default::default() };
        self.log.check_fence().await?;
        self.log.write_offsets(batch.id, &batch.entry).await?;
        // Who slept between the two, for so long that another process removed its own `offsets/N`, does not get to the sink.
        self.log.check_fence().await?;
        phases.log_offsets = watch.lap();

        self.refresh_tables(batch.id).await?;
        let Processed { intake, outcome, written, state, late, refused } = self.process(batch).await?;
        phases.state = self.meters.state;
        phases.execute = watch.lap().saturating_sub(phases.state);
        phases.read = self.meters.read.total();
        phases.decode = self.meters.decode.total();
        phases.sink = self.meters.sink;

        let mut letters = intake.take_letters();
        letters.extend(late);
        let counts = self.account(batch, &intake, &outcome, written, [letters.len(), refused.len()]);
        letters.extend(refused);
        let mut by_class = BTreeMap::new();
        letters.iter().for_each(|letter| *by_class.entry(letter.class.code).or_insert(0) += 1);
        let replayed = batch.replay.as_ref().map(|replay| replay.outcomes(&letters)).transpose()?.unwrap_or_default();
        let letter_batch = LetterBatch {
            query: self.spec.name.clone(),
            batch: batch.id,
            timestamp_ms: batch.entry.timestamp_ms,
            last_timestamp_ms: self.last_timestamp_ms,
            records_read: counts.read,
            job_version: self.job_version.clone(),
            again: batch.again,
        };
        self.env.crash.pass(CrashPoint::BeforeLetters).await;
        if !letters.is_empty() {
            // The day's file has no ledger of epochs that would keep a process out that was taken over in the meantime.
            self.log.check_fence().await?;
        }
        self.dead_letters.write(&letter_batch, letters).await.at(|| "dead letters".into())?;
        self.env.crash.pass(CrashPoint::AfterLetters).await;
        phases.dead_letters = watch.lap();

        for (number, input) in self.spec.plan.inputs().iter().enumerate() {
            let seen = intake.partition_times(&input.source);
            self.watermarks.observe_partitions(number, batch.entry.timestamp_ms, &seen);
        }
        self.watermarks.observe(&newest_by_source(self.spec.plan.inputs(), &outcome.max_event_times));
        let next_watermark_ms = self.watermarks.global_ms();
        let tracks = self.watermarks.tracks_event_time();
        let state_bytes_written = state.as_ref().map_or(0, |_| self.state.last_stage().bytes);
        let details = CommitDetails {
            epoch: self.log.epoch(),
            counts,
            input_watermarks: self.watermarks.inputs().to_vec(),
            partitions: self.watermarks.partitions(),
            state,
            replayed,
        };
        let report = BatchReport {
            query_id: self.query_id.clone(),
            batch: batch.id,
            timestamp_ms: batch.entry.timestamp_ms,
            finished_at_micros: 0,
            again: batch.again,
            duplicate: written.duplicate,
            counts,
            bytes_read: intake.bytes(),
            warned: intake.warned(),
            dead_letters: by_class.into_iter().collect(),
            dead_letters_expired: 0,
            phases,
            watermark_ms: tracks.then_some(batch.entry.watermark_ms),
            next_watermark_ms: tracks.then_some(next_watermark_ms),
            operators: outcome.operators,
            state_bytes_written,
            checkpoint_bytes_written: 0,
            sources: self
                .sources
                .iter()
                .enumerate()
                .map(|(index, open)| source_progress(batch, index, open, &intake))
                .collect(),
            max_event_time_micros: outcome.max_event_times.iter().flatten().max().copied(),
            lag: Vec::new(),
        };
        let commit = CommitEntry { next_watermark_ms, perennial: Some(details) };
        Ok(Executed { planned: batch.clone(), commit, report: Box::new(report) })
    }

    /// From the sources to the sink. Rows that are at fault for an error are left aside where the job file says so.
    async fn process(&mut self, batch: &Planned) -> Result<Processed> {
        let error = match self.attempt(batch, &Take::All, batch.again).await {
            Ok(processed) => return self.with_late(batch, &Take::All, processed).await,
            Err(error) => error,
        };
        let class = error.class().code;
        let take = match self.spec.on_error.reaction(error.class()) {
            Reaction::Isolate if error.class() == class::EXPRESSION_FAILED || self.can_probe() => {
                let guilty = self.isolate(batch, None, error).await?;
                tracing::warn!(query = %self.spec.name, batch = batch.id, error_class = class, rows = guilty.len(), "rows that fail go to the dead letters");
                Take::Without(Arc::new(guilty))
            }
            Reaction::Isolate if self.sink.can_probe() => {
                self.state.abort();
                let processed = self.attempt_without_refused(batch, error).await?;
                return self.with_late(batch, &Take::All, processed).await;
            }
            Reaction::DeadLetterBatch => {
                tracing::warn!(query = %self.spec.name, batch = batch.id, error_class = class, "all rows of the batch go to the dead letters: {error}");
                Take::Nothing(Arc::new(error))
            }
            _ => return Err(error),
        };
        self.state.abort();
        let processed = self.attempt(batch, &take, true).await?;
        self.with_late(batch, &take, processed).await
    }

    /// Makes dead letters of the records that were late, where the job file says so. They were in nothing that the batch did, so it is only
    /// read again, not done again.
    async fn with_late(&self, batch: &Planned, take: &Take, mut processed: Processed) -> Result<Processed> {
        let Some(finder) = self.spec.late.as_ref().filter(|_| processed.outcome.late > 0) else { return Ok(processed) };
        let mut streams = Vec::new();
        let inputs = self.read_numbered(batch, take, &mut streams).await?;
        let late = finder.find(self.info(batch), inputs).await?;
        let mut errors: BTreeMap<i64, Arc<Error>> = BTreeMap::new();
        let mut guilty = Vec::with_capacity(late.len());
        for late in &late {
            let (place, row) = RowNumber(late.number).parts();
            let stream = *streams.get(place).ok_or_else(|| Error::bug("a late row is of no stream of the batch"))?;
            let error = errors.entry(late.watermark_ms).or_insert_with(|| Arc::new(missed(late.watermark_ms)));
            guilty.push(Guilty { stream, row, error: error.clone() });
            processed.outcome.set_aside(late.rows);
        }
        guilty.sort_by_key(|guilty| (guilty.stream, guilty.row));
        processed.late = self.letters_of(batch, guilty).await?;
        Ok(processed)
    }

    /// Opens the streams of rows as [`Query::read`] does, with the numbers of the rows in a further column; `streams` gets the list that they
    /// refer to.
    async fn read_numbered(
        &self,
        batch: &Planned,
        take: &Take,
        streams: &mut Vec<StreamId>,
    ) -> Result<Vec<Vec<RowStream>>> {
        let intake = Arc::new(Intake::default());
        let mut inputs = Vec::new();
        for input in self.spec.plan.inputs() {
            if input.is_static {
                inputs.push(self.read_table(input)?);
                continue;
            }
            let (index, open) = self.source_of(input)?;
            let mut rows = Vec::new();
            for (stream, blocks) in self.streams(batch, index).await?.into_iter().enumerate() {
                let id = (index, stream);
                let place = streams.iter().position(|known| *known == id).unwrap_or_else(|| {
                    streams.push(id);
                    streams.len() - 1
                });
                rows.push(open.gate.rows((id, blocks), &input.columns, &intake, Reading::Numbered(place), take)?);
            }
            inputs.push(rows);
        }
        Ok(inputs)
    }

    /// The letters for rows that were found, in their order.
    async fn letters_of(&self, batch: &Planned, guilty: Vec<Guilty>) -> Result<Vec<DeadLetter>> {
        let mut found = HashMap::new();
        guilty.iter().for_each(|guilty| *found.entry(guilty.stream).or_insert(0) += 1);
        let (wanted, take) = (guilty.len(), Take::Without(Arc::new(guilty)));
        let mut letters = Vec::with_capacity(wanted);
        for (index, open) in self.sources.iter().enumerate() {
            for (stream, blocks) in self.streams(batch, index).await?.into_iter().enumerate() {
                let id = (index, stream);
                if !found.contains_key(&id) {
                    continue;
                }
                let intake = Arc::new(Intake::default());
                let rows = open.gate.rows((id, blocks), &[], &intake, Reading::Accounted, &take)?;
                rows.try_for_each(|_| future::ready(Ok(()))).await?;
                letters.extend(intake.take_letters().into_iter().filter(|letter| letter.class == class::LATE_RECORD));
            }
        }
        if letters.len() != wanted {
            return Err(Error::bug(format!("{wanted} rows were late, and {} of them were found again", letters.len())));
        }
        Ok(letters)
    }

    /// Whether rows that the sink refuses can be told by the records that they come from: only where each row comes from one record.
    fn can_probe(&self) -> bool {
        self.spec.plan.state().is_empty() && self.sink.can_probe()
    }

    /// From the sources to the sink, once.
    async fn attempt(&mut self, batch: &Planned, take: &Take, again: bool) -> Result<Processed> {
        let (intake, execution) = self.begin(batch, take).await?;
        self.deliver(batch, again, intake, execution).await
    }

    /// The same without the rows of the result that the sink refuses.
    async fn attempt_without_refused(&mut self, batch: &Planned, error: Error) -> Result<Processed> {
        let class = error.class();
        let (intake, Execution { rows, outcome }) = self.begin(batch, &Take::All).await?;
        // One result is tried in parts and written in the end: another run of the plan may give its rows in another order.
        let result = ResultRows(rows.try_collect().await.map_err(|error| self.blame.on(error))?);
        let guilty = self.isolate(batch, Some(&result), error).await?;
        tracing::warn!(query = %self.spec.name, batch = batch.id, error_class = class.code, rows = guilty.len(), "rows of the result that the sink refuses go to the dead letters");
        let refused = result.letters(&self.spec.name, &guilty)?;
        let left = result.all().without(guilty.iter().map(|guilty| (guilty.stream, guilty.row)));
        let rows = stream::iter(result.only(&left)?.into_iter().map(Ok)).boxed();
        let processed = self.deliver(batch, true, intake, Execution { rows, outcome }).await?;
        Ok(Processed { refused, ..processed })
    }

    /// The rows go to the sink. When it has seen all of them, the state is what it will be: then what the batch changed of it is made durable
    /// while the sink finishes its work.
    async fn deliver(
        &mut self,
        batch: &Planned,
        again: bool,
        intake: Arc<Intake>,
        execution: Execution,
    ) -> Result<Processed> {
        let sink_batch = self.sink_batch(batch, again);
        self.env.crash.pass(CrashPoint::BeforeSink).await;
        let (clock, crash, epoch) = (self.env.clock.clone(), self.env.crash.clone(), self.log.epoch());
        let (ended, end) = oneshot::channel();
        let rows = tell_end(self.fenced(execution.rows), ended);
        let (sink, state, keeps) = (&self.sink, &mut self.state, !self.spec.plan.state().is_empty());
        let began = clock.monotonic();
        let write = async {
            let written = sink.write(&sink_batch, rows).await;
            let at = clock.monotonic();
            if written.is_ok() {
                crash.pass(CrashPoint::AfterSink).await;
            }
            (written, at)
        };
        let stage = async {
            // Rows that did not all come leave no state.
            match end.await.is_ok() && keeps {
                true => state.stage(batch.id + 1, epoch).await.at(|| "state".into()).map(Some),
                false => Ok(None),
            }
        };
        let ((written, wrote), state) = future::join(write, stage).await;
        self.meters.sink = wrote.saturating_sub(began).saturating_sub(self.meters.rows.total());
        self.meters.state = clock.monotonic().saturating_sub(wrote);
        self.attempted = intake.read();
        let written = written.map_err(|error| self.blame.on(error))?;
        let state = state?;
        if keeps && state.is_none() {
            return Err(Error::bug("the sink took a batch without having seen all of its rows"));
        }
        Ok(Processed { intake, outcome: (execution.outcome)()?, written, state, late: Vec::new(), refused: Vec::new() })
    }

    /// Rows on their way to the sink. Who stood still for a while, and may have been taken over, looks at the fence before the sink gets more
    /// of them, or learns that these were all.
    fn fenced(&self, rows: RowStream) -> RowStream {
        let (clock, log) = (self.env.clock.clone(), self.log.clone());
        let looked = clock.monotonic();
        let look = move |(mut rows, mut looked): (RowStream, Duration)| {
            let (clock, log) = (clock.clone(), log.clone());
            async move {
                let next = rows.next().await;
                let now = clock.monotonic();
                if now.saturating_sub(looked) >= FENCE_INTERVAL {
                    if let Err(error) = log.check_fence().await {
                        return Some((Err(error), (stream::empty().boxed(), now)));
                    }
                    looked = now;
                }
                next.map(|next| (next, (rows, looked)))
            }
        };
        stream::unfold((rows, looked), look).boxed()
    }

    /// The rows of a batch, running.
    async fn begin(&self, batch: &Planned, take: &Take) -> Result<(Arc<Intake>, Execution)> {
        self.blame.forget();
        for meter in [&self.meters.read, &self.meters.decode, &self.meters.rows] {
            meter.reset();
        }
        let intake = Arc::new(Intake::timed(self.meters.decode.clone()));
        let inputs = self.read(batch, &intake, take).await?;
        let execution = self.spec.plan.execute(self.info(batch), inputs, self.state.partitions()).await?;
        let rows = self.meters.rows.waits(self.blame.watch(execution.rows, Culprit::Plan));
        Ok((intake, Execution { rows, ..execution }))
    }

    fn info(&self, batch: &Planned) -> BatchInfo {
        BatchInfo {
            id: batch.id,
            timestamp_ms: batch.entry.timestamp_ms,
            watermark_ms: batch.entry.watermark_ms,
            late_watermark_ms: batch.late_watermark_ms,
        }
    }

    /// Finds the rows that are at fault for an error: of the result where one is given, else of the input. Gives the error back where it is not
    /// the fault of single rows.
    async fn isolate(&mut self, batch: &Planned, result: Option<&ResultRows>, error: Error) -> Result<Vec<Guilty>> {
        let rows = match result {
            Some(result) => result.all(),
            None => self.count_rows(batch).await?,
        };
        let (class, message) = (error.class(), error.to_string());
        let mut search = Search::new(rows.clone(), error);
        while let Some(rows) = search.next() {
            search.tell(self.try_rows(batch, rows, result, class).await?);
        }
        let mut guilty = search.guilty();
        if class == class::CONSTRAINT_VIOLATION {
            // What is left may still fail together: a key that comes twice.
            let found = guilty.unwrap_or_default();
            let rest = rows.without(found.iter().map(|guilty| (guilty.stream, guilty.row)));
            guilty = self
                .isolate_repeated(batch, rest, result, class)
                .await?
                .map(|more| found.into_iter().chain(more).collect());
        }
        let mut guilty = guilty.ok_or_else(|| Error::new(class, message))?;
        guilty.sort_by_key(|guilty| (guilty.stream, guilty.row));
        Ok(guilty)
    }

    /// Finds the rows that fail together with rows before them.
    async fn isolate_repeated(
        &mut self,
        batch: &Planned,
        rows: RowSet,
        result: Option<&ResultRows>,
        class: &'static ErrorClass,
    ) -> Result<Option<Vec<Guilty>>> {
        let Err(error) = self.try_rows(batch, rows.clone(), result, class).await? else { return Ok(Some(Vec::new())) };
        let mut search = PrefixSearch::new(rows, error);
        while let Some(rows) = search.next() {
            search.tell(self.try_rows(batch, rows, result, class).await?);
        }
        Ok(search.guilty())
    }

    /// All rows of the input of a batch.
    async fn count_rows(&self, batch: &Planned) -> Result<RowSet> {
        let mut rows = RowSet::default();
        for (number, open) in self.sources.iter().enumerate() {
            for (stream, blocks) in self.streams(batch, number).await?.into_iter().enumerate() {
                rows.push((number, stream), 0..open.gate.count(blocks).await?);
            }
        }
        Ok(rows)
    }

    /// Tries some rows, for nothing but whether they fail with an error of this class: against the plan, or against the sink.
    async fn try_rows(
        &mut self,
        batch: &Planned,
        rows: RowSet,
        result: Option<&ResultRows>,
        class: &'static ErrorClass,
    ) -> Result<Result<()>> {
        if let Some(result) = result {
            let rows = stream::iter(result.only(&rows)?.into_iter().map(Ok)).boxed();
            let tried = self.sink.probe(&self.sink_batch(batch, true), rows).await;
            return match tried.map_err(|error| self.blame.on(error)) {
                Err(error) if error.class() != class => Err(error),
                tried => Ok(tried),
            };
        }
        self.state.abort();
        let (_, execution) = self.begin(batch, &Take::Only(Arc::new(rows))).await?;
        let tried = match class == class::EXPRESSION_FAILED {
            true => execution.rows.try_for_each(|_| future::ready(Ok(()))).await,
            false => self.sink.probe(&self.sink_batch(batch, true), execution.rows).await,
        };
        let tried = tried.map_err(|error| self.blame.on(error));
        self.state.abort();
        match tried {
            Err(error) if error.class() != class => Err(error),
            tried => Ok(tried),
        }
    }

    fn sink_batch(&self, batch: &Planned, again: bool) -> SinkBatch {
        SinkBatch { id: batch.id, epoch: self.log.epoch(), timestamp_ms: batch.entry.timestamp_ms, again }
    }

    /// Commits a batch of which all else is durable, and moves on. A commit whose answer got lost is written again, not the batch.
    async fn commit(&mut self, executed: Executed) -> Result<Step> {
        let mut watch = Stopwatch::start(&self.env);
        if let Err(error) = self.log.write_commit(executed.planned.id, &executed.commit).await {
            self.pending = Some(Pending::Executed(Box::new(executed)));
            return Err(error);
        }
        let Executed { planned, commit, mut report } = executed;
        self.state.commit();
        self.next = planned.id + 1;
        self.watermark_moved = commit.next_watermark_ms > planned.entry.watermark_ms;
        self.last_watermark_ms = planned.entry.watermark_ms;
        self.last_timestamp_ms = planned.entry.timestamp_ms;
        self.ends = planned.entry.offsets;
        self.replays = planned.entry.replays;
        if self.kept.last().is_none_or(|last| *last < planned.id) {
            self.kept.push(planned.id);
        }
        report.phases.commit = watch.lap();
        report.finished_at_micros = self.env.clock.now_micros();
        report.checkpoint_bytes_written = report.state_bytes_written + self.log.take_written();

        // The batch is done. What follows is for others and for later, and does no harm to it when it fails.
        self.env.crash.pass(CrashPoint::BeforeAcknowledge).await;
        for (open, end) in self.sources.iter().zip(&self.ends) {
            if let Some(end) = end
                && let Err(error) = open.source.acknowledge(end).await
            {
                tracing::warn!(source = %open.name, %error, "the source was not told of the committed batch");
            }
        }
        self.env.crash.pass(CrashPoint::AfterAcknowledge).await;
        if let Some(details) = &commit.perennial {
            mark_replayed(&self.env, self.dead_letters.as_ref(), &details.replayed).await;
        }
        if let Err(error) = self.retain(commit.perennial.and_then(|p| p.state)).await {
            tracing::warn!(query = %self.spec.name, %error, "old versions were not removed; it is tried again later");
        }
        report.dead_letters_expired = self.expire_dead_letters().await;
        report.lag = self.lag().await;
        Ok(Step::Committed(report))
    }

    /// The next batch of the log that is not committed, or a new one.
    async fn next_batch_to_run(&mut self) -> Result<Option<Planned>> {
        match self.next_logged().await? {
            None => self.plan_batch().await,
            logged => Ok(logged),
        }
    }

    /// Asks the sources what is new and decides what the next batch reads. `None`: there is no reason for a batch.
    async fn plan_batch(&mut self) -> Result<Option<Planned>> {
        let max_records = self.pace.as_ref().map(Pace::limit);
        let latest = self.sources.iter().zip(&self.ends).enumerate().map(|(index, (open, start))| {
            let target = self.targets.as_ref().map(|targets| targets[index].clone());
            async move {
                let end = match target {
                    // There was nothing to read when the run began.
                    Some(None) => None,
                    until => {
                        let limit = ReadLimit { max_records, until: until.flatten() };
                        open.source.latest(start.as_ref(), &limit).await.map_err(|error| open.failed(error))?
                    }
                };
                Ok::<_, Error>(end.or_else(|| start.clone()))
            }
        });
        let offsets = try_join_all(latest).await?;
        let no_data = self.watermark_moved && self.spec.no_data_batches && self.spec.plan.wants_no_data_batch();
        let replay = self.requested_replay().await?;
        if offsets == self.ends && replay.is_none() && !no_data {
            return Ok(None);
        }
        let conf = Map::from_iter([(
            "spark.sql.shuffle.partitions".to_owned(),
            json!(self.spec.plan.parallelism().to_string()),
        )]);
        let entry = OffsetEntry {
            watermark_ms: self.watermarks.global_ms(),
            // now() never goes back, whatever the clock does.
            timestamp_ms: self.env.now_ms().max(self.last_timestamp_ms),
            conf,
            offsets,
            epoch: self.log.epoch(),
            sources: self.sources.iter().map(|open| open.name.clone()).collect(),
            plan: self.plan_digest.clone(),
            replays: self.replays + u64::from(replay.is_some()),
        };
        let divisible = self.did_not_fit.take().is_none_or(|ends| ends != entry.offsets);
        Ok(Some(Planned {
            id: self.next,
            entry,
            starts: self.ends.clone(),
            replay,
            late_watermark_ms: self.last_watermark_ms,
            again: false,
            divisible,
        }))
    }

    /// The next request to replay dead letters, looked for now and then.
    async fn requested_replay(&mut self) -> Result<Option<Arc<ReplayRequest>>> {
        let now = self.env.clock.monotonic();
        if self.replays_at.is_some_and(|at| now < at + REPLAY_INTERVAL) {
            return Ok(None);
        }
        let found = self.log.read_replay(self.replays).await?;
        // Where there was one, another may follow at once.
        self.replays_at = found.is_none().then_some(now);
        if let Some(request) = &found {
            let (entries, records) =
                (request.entries.len(), request.entries.iter().map(|entry| entry.records.len()).sum::<usize>());
            tracing::info!(query = %self.spec.name, request = self.replays, entries, records, "dead letters are run again");
        }
        Ok(found.map(Arc::new))
    }

    /// Reads those static tables again whose rows are no longer good.
    async fn refresh_tables(&mut self, batch: BatchId) -> Result<()> {
        let now = self.env.clock.monotonic();
        let refresh = self.tables.iter_mut().map(|table| async {
            let part = Part::source(table.name());
            table.refresh(batch, now).await.map_err(|error| error.of(part))
        });
        try_join_all(refresh).await?;
        Ok(())
    }

    /// Opens the streams of rows, one list per input of the plan. Nothing is read before the plan asks for it.
    async fn read(&self, batch: &Planned, intake: &Arc<Intake>, take: &Take) -> Result<Vec<Vec<RowStream>>> {
        let mut inputs = Vec::new();
        let mut accounted = vec![false; self.sources.len()];
        for input in self.spec.plan.inputs() {
            if input.is_static {
                inputs.push(self.read_table(input)?);
                continue;
            }
            let (index, open) = self.source_of(input)?;
            let again = std::mem::replace(&mut accounted[index], true);
            let reading = if again { Reading::Repeated } else { Reading::Accounted };
            let streams = self.streams(batch, index).await?.into_iter().enumerate();
            let rows = streams.map(|(stream, blocks)| {
                open.gate.rows(((index, stream), blocks), &input.columns, intake, reading, take)
            });
            inputs.push(rows.collect::<Result<_>>()?);
        }
        Ok(inputs)
    }

    /// The rows of a static table.
    fn read_table(&self, input: &PlanInput) -> Result<Vec<RowStream>> {
        let table = self.tables.iter().find(|table| table.name() == input.source);
        let table = table.ok_or_else(|| Error::bug(format!("the plan reads {}, which is not open", input.source)))?;
        Ok(vec![table.rows(&input.columns)?])
    }

    /// The source that an input of the plan is, and its number.
    fn source_of(&self, input: &PlanInput) -> Result<(usize, &OpenSource)> {
        let source = self.sources.iter().enumerate().find(|(_, open)| open.name == input.source);
        source.ok_or_else(|| Error::bug(format!("the plan reads {}, which is not open", input.source)))
    }

    /// Opens the streams of blocks of one source: what the batch reads of it.
    async fn streams(&self, batch: &Planned, source: usize) -> Result<Vec<InputStream>> {
        let open = &self.sources[source];
        let mut streams = Vec::new();
        if let Some(end) = batch.entry.offsets.get(source).cloned().flatten() {
            let range = OffsetRange { start: batch.starts.get(source).cloned().flatten(), end };
            if !range.is_empty() {
                let read = open.source.read(&range, self.spec.plan.parallelism()).await;
                let part = Part::source(&open.name);
                streams = read.map_err(|error| open.failed(error))?;
                // What goes wrong later comes out at the other end, through the plan and the sink.
                let watch = |blocks| self.blame.watch(blocks, Culprit::Part(part.clone()));
                streams = streams.into_iter().map(|blocks| self.meters.read.waits(watch(blocks))).collect();
            }
        }
        if let Some(replay) = &batch.replay {
            streams.extend(replay.stream(&open.name, &open.gate)?);
        }
        Ok(streams)
    }

    /// Closes the accounts of a batch. A sum that does not close is a bug worth an alarm, not worth a stop: the rows are right where
    /// they are.
    fn account(
        &self,
        batch: &Planned,
        intake: &Intake,
        outcome: &PlanOutcome,
        written: Written,
        [letters, refused]: [usize; 2],
    ) -> BatchCounts {
        let counts = BatchCounts {
            read: intake.read(),
            written: written.rows,
            held: outcome.held,
            filtered: outcome.filtered,
            late: outcome.late,
            dead_lettered: letters as u64,
            refused: refused as u64,
            dropped: intake.dropped(),
            multiplied: outcome.multiplied + intake.repeated(),
        };
        let missing = counts.missing(!self.spec.plan.state().is_empty());
        if missing != 0 {
            tracing::error!(query = %self.spec.name, batch = batch.id, missing, ?counts, "the accounts of the batch do not close");
        }
        counts
    }

    /// Removes what no batch that is kept needs.
    async fn retain(&mut self, newest: Option<StateRef>) -> Result<()> {
        if let Some(oldest) = oldest_to_keep(&self.kept, self.next, self.batches_to_retain) {
            self.env.crash.pass(CrashPoint::BeforeCleanup).await;
            self.log.retain(oldest, &mut self.kept).await?;
            self.env.crash.pass(CrashPoint::CleanedLogs).await;
            if newest.is_some()
                && let Some(state) = self.log.read_commit(oldest).await?.perennial.and_then(|p| p.state)
            {
                self.state.retain(&state).await?;
            }
            self.env.crash.pass(CrashPoint::AfterCleanup).await;
        }
        Ok(())
    }

    /// Removes dead letters that are too old, now and then; returns how many entries.
    async fn expire_dead_letters(&mut self) -> u64 {
        let now = self.env.clock.monotonic();
        if self.expired_at.is_some_and(|at| now < at + EXPIRE_INTERVAL) {
            return 0;
        }
        self.expired_at = Some(now);
        self.dead_letters.expire(self.env.now_ms()).await.unwrap_or_else(|error| {
            tracing::warn!(query = %self.spec.name, %error, "old dead letters were not removed; it is tried again later");
            0
        })
    }

    /// What waits now, asked for while the query itself waits.
    pub async fn ask_for_lag(&mut self) -> Vec<(String, Lag)> {
        self.lag().await
    }

    /// After a time in which nothing was written the next batch is small, and those after it grow, where anything sets their size.
    pub fn start_small(&mut self) {
        if let Some(pace) = &mut self.pace {
            pace.start_again();
        }
    }

    /// What waits, per source; asked for now and then. A source that does not answer has no lag to show.
    async fn lag(&mut self) -> Vec<(String, Lag)> {
        let now = self.env.clock.monotonic();
        if self.lag_at.is_none_or(|at| now >= at + LAG_INTERVAL) {
            self.lag_at = Some(now);
            self.lag.clear();
            for (open, end) in self.sources.iter().zip(&self.ends) {
                match open.source.lag(end.as_ref()).await {
                    Ok(Some(lag)) => self.lag.push((open.name.clone(), lag)),
                    Ok(None) => {}
                    Err(error) => tracing::debug!(source = %open.name, %error, "the lag is not known"),
                }
            }
        }
        self.lag.clone()
    }
}

/// A source that the query reads several times has one watermark: the newest event time of all of them counts.
fn newest_by_source(inputs: &[PlanInput], seen: &[Option<i64>]) -> Vec<Option<i64>> {
    let newest = |source: &str| {
        let readings = inputs.iter().zip(seen).filter(|(input, _)| input.source == source);
        readings.filter_map(|(_, micros)| *micros).max()
    };
    inputs.iter().map(|input| newest(&input.source)).collect()
}

/// Why a record is late.
fn missed(watermark_ms: i64) -> Error {
    let watermark = timestamp_text(watermark_ms.saturating_mul(1_000));
    Error::new(class::LATE_RECORD, format!("the record is late: the watermark was at {watermark} when it came"))
}

/// What the batch read of a source.
fn source_progress(batch: &Planned, index: usize, open: &OpenSource, intake: &Intake) -> SourceProgress {
    SourceProgress {
        source: open.name.clone(),
        start: batch.starts.get(index).cloned().flatten(),
        end: batch.entry.offsets.get(index).cloned().flatten(),
        records: intake.read_from(&open.name),
    }
}

/// Who is to blame for an error of a batch. All errors come out at the sink, which pulls the rows: what went by on the way says whose they are.
#[derive(Debug, Default)]
struct Blame(Mutex<Option<Culprit>>);

#[derive(Debug, Clone)]
enum Culprit {
    Part(Part),
    Plan,
}

impl Blame {
    fn forget(&self) {
        *self.0.lock() = None;
    }

    /// The stream, whose first error is noted: the one that was first is the cause of the others.
    fn watch<T: Send + 'static>(
        self: &Arc<Self>,
        stream: futures::stream::BoxStream<'static, Result<T>>,
        culprit: Culprit,
    ) -> futures::stream::BoxStream<'static, Result<T>> {
        let blame = self.clone();
        let note = move |_: &Error| {
            blame.0.lock().get_or_insert_with(|| culprit.clone());
        };
        stream.inspect_err(note).boxed()
    }

    /// The error of a sink, as that of the part that it came from.
    fn on(&self, error: Error) -> Error {
        match self.0.lock().take() {
            Some(Culprit::Part(part)) => error.of(part),
            Some(Culprit::Plan) => error,
            None => error.of(Part::Sink),
        }
    }
}

/// Notes what became of dead letters that were run again. What fails is noted at the next start.
async fn mark_replayed(env: &Env, dead_letters: &dyn DeadLetters, replayed: &[Replayed]) {
    let timestamp = timestamp_text(env.clock.now_micros());
    let mark = |entry: &Replayed| Mark {
        entry: entry.id.clone(),
        outcome: if entry.failed == 0 { Outcome::Recovered } else { Outcome::FailedAgain },
        timestamp: timestamp.clone(),
        failed: entry.failed,
        note: None,
    };
    let marks: Vec<Mark> = replayed.iter().map(mark).collect();
    if let Err(error) = dead_letters.mark(&marks).await {
        tracing::warn!(%error, "what became of replayed dead letters was not noted; it is done at the next start");
    }
}

/// Measures the phases of a batch one after the other.
struct Stopwatch {
    env: Env,
    last: Duration,
}

impl Stopwatch {
    fn start(env: &Env) -> Self {
        Self { last: env.clock.monotonic(), env: env.clone() }
    }

    fn lap(&mut self) -> Duration {
        let now = self.env.clock.monotonic();
        now - std::mem::replace(&mut self.last, now)
    }
}

/// The identity of the query: from the checkpoint, where it must be the same query's, or new.
/// A digest of a plan as far as the state depends on it.
pub fn plan_digest(plan: &dyn crate::plan::QueryPlan) -> String {
    format!("{:08x}", crc32c::crc32c(plan.fingerprint().as_bytes()))
}

async fn identity(job: &JobSpec, spec: &QuerySpec, log: &CheckpointLog) -> Result<String> {
    let owner = (job.name.clone(), spec.name.clone());
    match log.read_metadata().await? {
        Some(Metadata { id, owner: None }) => Ok(id),
        Some(Metadata { id, owner: Some(found) }) if found == owner => Ok(id),
        Some(Metadata { owner: Some((job, query)), .. }) => Err(Error::new(
            class::CHECKPOINT_MISMATCH,
            format!(
                "the checkpoint belongs to job {job}, query {query}, not to job {}, query {}: use another checkpoint directory",
                owner.0, owner.1
            ),
        )),
        None => {
            let metadata = Metadata { id: job.env.uuid(), owner: Some(owner) };
            log.write_metadata(&metadata).await?;
            Ok(metadata.id)
        }
    }
}

fn open_sources(job: &JobSpec, spec: &QuerySpec, log: &CheckpointLog, gates: &[Arc<Gate>]) -> Result<Vec<OpenSource>> {
    let mut open = Vec::new();
    for (index, (source, gate)) in spec.sources.iter().zip(gates).enumerate() {
        let context = SourceContext {
            env: job.env.clone(),
            job: job.name.clone(),
            query: spec.name.clone(),
            source: source.name.clone(),
            schema: gate.schema(),
            rows: gate.takes_rows(),
            log: log.source_log(index),
        };
        let opened = source.factory.open(context).at(|| format!("source {}", source.name))?;
        open.push(OpenSource { name: source.name.clone(), source: opened, gate: gate.clone() });
    }
    Ok(open)
}

/// The guarantee of the query; an error where it promises less than the job demands.
fn demand(job: &JobSpec, spec: &QuerySpec, sources: &[OpenSource], sink: &dyn Sink) -> Result<Computed> {
    let replays = sources.iter().map(|open| (open.name.as_str(), open.source.replay()));
    let sink = (spec.name.as_str(), sink.delivery());
    let computed =
        guarantee::compute(replays, spec.plan.deterministic(), spec.changing_tables(), sink, spec.output_mode);
    computed.demand(job.guarantee)?;
    Ok(computed)
}

/// Whether batches that were committed may run again, because what they left is damaged: only where that changes no result. Says why they do.
fn may_repeat(found: &Found, from: BatchId, last: BatchId, guarantee: &Computed) -> Result<String> {
    let reasons: Vec<String> = match &found.damage[..] {
        [] => vec![format!("the commits of the batches {from} to {last} are missing")],
        damage => damage.iter().map(Damage::to_string).collect(),
    };
    let reasons = reasons.join("; ");
    if let Some(weakest) = &guarantee.weakest {
        return Err(Error::new(
            class::CHECKPOINT_CORRUPT,
            format!(
                "{reasons}. Batches {from} to {last} would have to run again, and the query gives only {}: {weakest}",
                guarantee.guarantee
            ),
        ));
    }
    let batches = if from == last { format!("batch {from} runs") } else { format!("batches {from} to {last} run") };
    Ok(format!("{reasons}; {batches} again from the logged range, which restores exactly what was lost"))
}

/// How the state goes on with which the last batch ended, where the plan is not the one that wrote it. `None`: it is.
///
/// # Errors
/// `CheckpointMismatch` when state would be lost and nobody agreed to that.
async fn compare(
    job: &JobSpec,
    spec: &QuerySpec,
    log: &CheckpointLog,
    (last, state): (Option<&OffsetEntry>, Option<&StateRef>),
    recovery: Recovery,
    plan_digest: &str,
) -> Result<Option<Changes>> {
    // What Spark wrote has no digest: its state was compared when it was taken over.
    let differs = |entry: &OffsetEntry| !entry.plan.is_empty() && entry.plan != plan_digest;
    let (rows, now) = (state.map_or(&[][..], |state| &state.rows), spec.plan.shape());
    let mut changes = None;
    if let Some(last) = last {
        same_sources(spec, last)?;
        if differs(last) {
            changes = Some(match log.read_shape(&last.plan).await? {
                Some(before) => shape::compare(&before, &now, rows),
                None => shape::unknown(&now, rows),
            });
        }
    }
    if let Recovery::RunAgain { from, last } = recovery {
        for batch in from..=last {
            let entry = log.read_offsets(batch).await?;
            if differs(&entry) && !spec.plan.state().is_empty() {
                let begun = format!(
                    "batch {batch} was begun before the change and may have reached the sink; it would run again, as the query is now"
                );
                changes.get_or_insert_with(|| shape::compare(&now, &now, rows)).lost.push(begun);
            }
        }
    }
    match changes {
        Some(changes) if !changes.lost.is_empty() && !job.accept_state_changes => Err(Error::new(
            class::CHECKPOINT_MISMATCH,
            format!(
                "the query changed, and not all of its state can be kept: {}. With --accept-state-changes it goes on without that; else \
                 restore the query, or use another checkpoint directory",
                changes.lost.join("; ")
            ),
        )),
        changes => Ok(changes),
    }
}

/// The rows that a batch gave.
struct ResultRows(Vec<RecordBatch>);

impl ResultRows {
    /// The stream that they count as in a [`RowSet`].
    const STREAM: StreamId = (usize::MAX, 0);

    /// All of them.
    fn all(&self) -> RowSet {
        let mut rows = RowSet::default();
        rows.push(Self::STREAM, 0..self.0.iter().map(|rows| rows.num_rows() as u64).sum());
        rows
    }

    /// Those of a set.
    fn only(&self, set: &RowSet) -> Result<Vec<RecordBatch>> {
        let mut first = 0;
        let chosen = self.0.iter().filter_map(|rows| {
            let mask = set.among(Self::STREAM, first, rows.num_rows());
            first += rows.num_rows() as u64;
            mask.map(|mask| Ok(filter_record_batch(rows, &mask)?))
        });
        chosen.collect()
    }

    /// Dead letters of these.
    fn letters(&self, query: &str, guilty: &[Guilty]) -> Result<Vec<DeadLetter>> {
        let letter = |guilty: &Guilty| {
            let mut one = RowSet::default();
            one.push(Self::STREAM, guilty.row..guilty.row + 1);
            let row = self.only(&one)?;
            let row = row.first().ok_or_else(|| Error::bug("a refused row is not in the result"))?;
            Ok(DeadLetter {
                source: format!("{RESULT_OF}{query}"),
                record: RawRecord {
                    key: None,
                    value: Some(row_as_json(row, 0)?),
                    position: RecordPosition::Sequence { name: "result".into(), number: guilty.row },
                },
                stage: Stage::Sink,
                class: guilty.error.class(),
                message: guilty.error.to_string(),
                rules: Vec::new(),
            })
        };
        guilty.iter().map(letter).collect()
    }
}

/// Rows whose end is told, if they come to it without an error.
fn tell_end(rows: RowStream, ended: oneshot::Sender<()>) -> RowStream {
    let step = |(mut rows, mut ended): (RowStream, Option<oneshot::Sender<()>>)| async move {
        let next = rows.next().await;
        match (&next, ended.take()) {
            // Who listened no longer wants to know.
            (None, Some(ended)) => drop(ended.send(())),
            (Some(Ok(_)), kept) => ended = kept,
            _ => {}
        }
        Some((next?, (rows, ended)))
    };
    stream::unfold((rows, Some(ended)), step).boxed()
}

/// Refuses a checkpoint of other sources.
fn same_sources(spec: &QuerySpec, entry: &OffsetEntry) -> Result<()> {
    let names: Vec<&str> = spec.sources.iter().map(|s| s.name.as_str()).collect();
    if !entry.sources.is_empty() && entry.sources != names {
        return Err(Error::new(
            class::CHECKPOINT_MISMATCH,
            format!(
                "the checkpoint was made by a query over [{}]; this one reads [{}]: use another checkpoint directory, or restore the query",
                entry.sources.join(", "),
                names.join(", ")
            ),
        ));
    }
    if entry.offsets.len() != names.len() {
        return Err(Error::new(
            class::CHECKPOINT_MISMATCH,
            format!(
                "the checkpoint has offsets of {} sources; this query reads {}: use another checkpoint directory",
                entry.offsets.len(),
                names.len()
            ),
        ));
    }
    Ok(())
}
