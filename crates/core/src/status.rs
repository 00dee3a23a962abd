//! How the job is: what the batch loop tells, and what health, metrics and people read.
//!
//! The board is an [`Observer`] that keeps what it hears. An update costs a lock and a few additions per batch; a reader copies the whole
//! state out and works on its copy. Everything that is derived (healthy or not, stale or not, what to do) is a pure function of such a
//! copy and of the time at which one asks.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use crate::breaker::{Breaker, BreakerState, Part};
use crate::checkpoint::BatchCounts;
use crate::dead_letter::timestamp_text;
use crate::env::Clock;
use crate::error::{Error, ErrorClass};
use crate::memory::MemoryBudget;
use crate::plan::OperatorProgress;
use crate::policy::Action;
use crate::progress::{BatchReport, Observer, QueryState};
use crate::sink::BatchId;
use crate::source::Lag;

/// What a process does for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It runs the job.
    Active,
    /// It waits beside the process that does.
    Standby,
}

/// The names of the states of a query, for metrics.
pub const STATE_NAMES: [&str; 9] =
    ["initializing", "started", "waiting", "running", "backing_off", "breaker_open", "paused", "stopped", "failed"];

/// The name of a state that people and metrics see: one of [`STATE_NAMES`].
pub fn state_name(state: &QueryState) -> &'static str {
    match state {
        QueryState::Starting => "initializing",
        QueryState::Started { .. } => "started",
        QueryState::Idle => "waiting",
        QueryState::Running => "running",
        QueryState::BackingOff { .. } => "backing_off",
        QueryState::BreakerOpen { .. } => "breaker_open",
        QueryState::Paused => "paused",
        QueryState::Stopped => "stopped",
        QueryState::Failed => "failed",
    }
}

/// Adds the accounts of a batch.
fn add(total: &mut BatchCounts, batch: &BatchCounts) {
    total.read += batch.read;
    total.written += batch.written;
    total.held += batch.held;
    total.filtered += batch.filtered;
    total.late += batch.late;
    total.dead_lettered += batch.dead_lettered;
    total.dropped += batch.dropped;
    total.multiplied += batch.multiplied;
}

/// Counts of durations by upper bound, as Prometheus wants them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// Observations up to and including each bound of [`Histogram::BOUNDS`], not cumulated; the last is for all above.
    pub counts: [u64; Self::BOUNDS.len() + 1],
    /// Sum of all observations, in seconds.
    pub sum_seconds: f64,
}

impl Histogram {
    /// Upper bounds in seconds.
    pub const BOUNDS: [f64; 15] =
        [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

    /// Counts one duration.
    pub fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = Self::BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(Self::BOUNDS.len());
        self.counts[bucket] += 1;
        self.sum_seconds += seconds;
    }

    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Whether the lag of a source grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LagTrend {
    last: Option<u64>,
    /// How often in a row it was more than before.
    pub rises: u32,
    /// Since when, in microseconds since the epoch.
    pub since_micros: i64,
    /// The last top: how many records waited, and when, in microseconds since the epoch.
    top: (u64, i64),
    last_micros: i64,
}

impl LagTrend {
    /// After so many rises in a row ...
    const RISES: u32 = 6;
    /// ... over so long, it is not chance.
    const LONG: Duration = Duration::from_secs(60);

    fn see(&mut self, records: u64, at_micros: i64) {
        self.last_micros = at_micros;
        if self.last.is_none_or(|last| records > last) {
            self.top = (records, at_micros);
        }
        match self.last.replace(records) {
            Some(last) if records > last => {
                self.rises += 1;
            }
            Some(last) if records == last => return,
            _ => self.rises = 0,
        }
        if self.rises <= 1 {
            self.since_micros = at_micros;
        }
    }

    /// In how many seconds nothing waits any more, at the pace since the last top.
    fn seconds_to_zero(&self, waiting: u64) -> Option<f64> {
        let (records, at) = self.top;
        let (done, seconds) = (records.checked_sub(waiting)?, (self.last_micros - at) as f64 / 1e6);
        (done > 0 && seconds > 0.0).then(|| waiting as f64 * seconds / done as f64)
    }

    /// Whether the query falls behind.
    pub fn grows(&self, now_micros: i64) -> bool {
        self.rises >= Self::RISES && now_micros.saturating_sub(self.since_micros) >= Self::LONG.as_micros() as i64
    }
}

/// The last error of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastError {
    /// Its class.
    pub class: &'static ErrorClass,
    /// What happened.
    pub message: String,
    /// When, in microseconds since the epoch.
    pub at_micros: i64,
}

/// The last batch of a query.
#[derive(Debug, Clone, PartialEq)]
pub struct LastBatch {
    /// Its number.
    pub id: BatchId,
    /// When it was committed, in microseconds since the epoch.
    pub finished_at_micros: i64,
    /// From trigger to commit.
    pub duration: Duration,
    /// Its accounts.
    pub counts: BatchCounts,
    /// Records of it that are unaccounted for; 0, or there is a bug.
    pub missing: i64,
}

/// One query.
#[derive(Debug, Clone)]
pub struct QueryStatus {
    /// Where it is in its life.
    pub state: QueryState,
    /// Since when, in microseconds since the epoch.
    pub since_micros: i64,
    /// Since when it has had something to do, in microseconds since the epoch.
    pub busy_since_micros: i64,
    /// Whether it has ever got through its start.
    pub started: bool,
    /// The last batch that this process committed.
    pub last_batch: Option<LastBatch>,
    /// Batches committed since the start.
    pub batches: u64,
    /// Time spent in them.
    pub batch_time: Duration,
    /// Their accounts.
    pub counts: BatchCounts,
    /// Bytes of records read.
    pub bytes_read: u64,
    /// Rows that broke an expectation which only warns.
    pub warned: u64,
    /// Batches whose accounts did not add up. Anything but 0 is a bug.
    pub unaccounted_batches: u64,
    /// Damage in the checkpoint that was mended without loss.
    pub repairs: u64,
    /// Whole batches, from trigger to commit.
    pub batch_seconds: Histogram,
    /// The phases of batches, by name, in their order.
    pub phase_seconds: Vec<(&'static str, Histogram)>,
    /// Watermark in milliseconds since the epoch.
    pub watermark_ms: Option<i64>,
    /// What waits, by source.
    pub lag: BTreeMap<String, Lag>,
    /// Whether that grows, by source.
    pub lag_trend: BTreeMap<String, LagTrend>,
    /// The breakers of its parts.
    pub breakers: BTreeMap<Part, Breaker>,
    /// Stateful operators after the last batch.
    pub operators: Vec<OperatorProgress>,
    /// Bytes that the state wrote.
    pub state_bytes_written: u64,
    /// Bytes that were written to the checkpoint, those of the state among them.
    pub checkpoint_bytes_written: u64,
    /// Attempts that failed since the last commit.
    pub failures_in_a_row: u32,
    /// Bytes that the last batch wrote to the checkpoint.
    pub last_checkpoint_bytes: u64,
    /// Errors since the start, by class.
    pub errors: BTreeMap<&'static str, u64>,
    /// Times that a batch was tried again.
    pub retries: u64,
    /// The last error, also when it is over.
    pub last_error: Option<LastError>,
    /// Dead-lettered records since the start, by class.
    pub dead_letters: BTreeMap<&'static str, u64>,
    /// Entries of dead letters that were removed because of their age.
    pub dead_letters_expired: u64,
}

impl QueryStatus {
    fn new(at_micros: i64) -> Self {
        Self {
            state: QueryState::Starting,
            since_micros: at_micros,
            busy_since_micros: at_micros,
            started: false,
            last_batch: None,
            batches: 0,
            batch_time: Duration::ZERO,
            counts: BatchCounts::default(),
            bytes_read: 0,
            warned: 0,
            unaccounted_batches: 0,
            repairs: 0,
            batch_seconds: Histogram::default(),
            phase_seconds: Vec::new(),
            watermark_ms: None,
            lag: BTreeMap::new(),
            lag_trend: BTreeMap::new(),
            breakers: BTreeMap::new(),
            operators: Vec::new(),
            state_bytes_written: 0,
            checkpoint_bytes_written: 0,
            failures_in_a_row: 0,
            last_checkpoint_bytes: 0,
            errors: BTreeMap::new(),
            retries: 0,
            last_error: None,
            dead_letters: BTreeMap::new(),
            dead_letters_expired: 0,
        }
    }

    /// Records per second of the last batch (Spark's `processedRowsPerSecond`).
    pub fn records_per_second(&self) -> f64 {
        match &self.last_batch {
            Some(batch) if !batch.duration.is_zero() => batch.counts.read as f64 / batch.duration.as_secs_f64(),
            _ => 0.0,
        }
    }

    /// In how many seconds all that waits is worked off, at the mean pace since it began to shrink; `None` where that is not known, or never.
    pub fn seconds_to_caught_up(&self) -> Option<f64> {
        let estimate = |(source, lag): (&String, &Lag)| match lag.records? {
            0 => Some(0.0),
            waiting => self.lag_trend.get(source)?.seconds_to_zero(waiting),
        };
        let each: Option<Vec<f64>> = self.lag.iter().filter(|(_, lag)| lag.records.is_some()).map(estimate).collect();
        each?.into_iter().reduce(f64::max)
    }

    /// The breaker that matters most: an open one, then one that probes.
    pub fn breaker(&self) -> Option<(&Part, &Breaker)> {
        let rank = |breaker: &Breaker| match breaker.state {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open { .. } => 2,
        };
        self.breakers.iter().rev().max_by_key(|(_, breaker)| rank(breaker))
    }

    fn saw_lag(&mut self, lag: &[(String, Lag)], at_micros: i64) {
        for (source, lag) in lag {
            if let Some(records) = lag.records {
                self.lag_trend.entry(source.clone()).or_default().see(records, at_micros);
            }
            self.lag.insert(source.clone(), lag.clone());
        }
    }

    fn enter(&mut self, state: QueryState, now_micros: i64) {
        if state_name(&self.state) != state_name(&state) {
            self.since_micros = now_micros;
        }
        let rests = |state: &QueryState| matches!(state, QueryState::Idle | QueryState::Paused);
        if rests(&self.state) && !rests(&state) {
            self.busy_since_micros = now_micros;
        }
        self.started |= !matches!(
            state,
            QueryState::Starting
                | QueryState::BackingOff { .. }
                | QueryState::BreakerOpen { .. }
                | QueryState::Paused
                | QueryState::Failed
        );
        self.state = state;
    }

    fn committed(&mut self, report: &BatchReport) {
        let duration = report.phases.total();
        let missing = report.counts.missing(!report.operators.is_empty());
        self.batches += 1;
        self.batch_time += duration;
        add(&mut self.counts, &report.counts);
        self.bytes_read += report.bytes_read;
        self.warned += report.warned;
        self.unaccounted_batches += u64::from(missing != 0);
        self.batch_seconds.observe(duration);
        let phases = report.phases.named();
        if self.phase_seconds.is_empty() {
            self.phase_seconds = phases.iter().map(|(name, _)| (*name, Histogram::default())).collect();
        }
        for ((_, histogram), (_, time)) in self.phase_seconds.iter_mut().zip(phases) {
            histogram.observe(time);
        }
        self.watermark_ms = report.next_watermark_ms;
        self.saw_lag(&report.lag, report.finished_at_micros);
        self.operators.clone_from(&report.operators);
        self.state_bytes_written += report.state_bytes_written;
        self.checkpoint_bytes_written += report.checkpoint_bytes_written;
        self.last_checkpoint_bytes = report.checkpoint_bytes_written;
        self.failures_in_a_row = 0;
        for (class, records) in &report.dead_letters {
            *self.dead_letters.entry(class).or_insert(0) += records;
        }
        self.dead_letters_expired += report.dead_letters_expired;
        self.last_batch = Some(LastBatch {
            id: report.batch,
            finished_at_micros: report.finished_at_micros,
            duration,
            counts: report.counts,
            missing,
        });
    }
}

/// A copy of the board.
#[derive(Debug, Clone)]
pub struct Status {
    /// Name of the job.
    pub job: String,
    /// Version of the job.
    pub version: String,
    /// What the process does for it.
    pub role: Role,
    /// When the process started, in microseconds since the epoch.
    pub start_micros: i64,
    /// The time of this copy, in microseconds since the epoch.
    pub now_micros: i64,
    /// Errors count towards health for this long.
    pub error_window: Duration,
    /// How far triggers are apart; zero for as fast as possible.
    pub trigger: Duration,
    /// Bytes that state and batches hold.
    pub memory_bytes: u64,
    /// How many they may hold.
    pub memory_limit: Option<u64>,
    /// Disks that the job writes to, and the share of each that is free.
    pub disks: Vec<(String, f64)>,
    /// When the most recent errors happened, in microseconds since the epoch, oldest first.
    pub recent_errors_micros: VecDeque<i64>,
    /// Queries by name.
    pub queries: BTreeMap<String, QueryStatus>,
}

/// So many errors within the window make a job unhealthy.
pub const UNHEALTHY_ERRORS: usize = 5;

/// A batch is missed after this time when there is something to do.
pub const STALE_AFTER: Duration = Duration::from_secs(300);

/// A query that has something to do misses no more triggers than this.
pub const MISSED_TRIGGERS: u32 = 10;

/// Errors beyond this number within the window are not told apart by anything that reads the board.
const KEPT_ERRORS: usize = 1000;

/// What keeps a query from its work.
#[derive(Debug, Clone, PartialEq)]
pub struct Obstacle {
    /// The query.
    pub query: String,
    /// What it is, in a word.
    pub kind: ObstacleKind,
    /// What it is, for people.
    pub what: String,
    /// Since when, in microseconds since the epoch.
    pub since_micros: i64,
}

/// Kinds of [`Obstacle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ObstacleKind {
    /// The query has not got through its start.
    Initializing,
    /// A batch failed and is tried again.
    BackingOff,
    /// A circuit breaker is open, or its probe is under way.
    BreakerOpen,
    /// More comes in than goes out.
    LagGrowing,
    /// No commit for [`MISSED_TRIGGERS`] triggers.
    NoCommit,
    /// It waits for a person.
    Paused,
    /// It ended with an error.
    Failed,
}

impl ObstacleKind {
    /// Whether a job that has it is not ready. The others are told where it is not ready for another reason.
    fn blocks(self) -> bool {
        matches!(self, Self::BreakerOpen | Self::LagGrowing | Self::NoCommit)
    }
}

/// How the job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// A query has not got through its start yet.
    Initializing,
    /// No errors within the window.
    Healthy,
    /// 1 to 4 errors within the window, or a query that failed for good.
    Degraded,
    /// 5 errors or more within the window, or no query left that runs.
    Unhealthy,
}

impl Health {
    /// The name that people and monitors see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Initializing => "initializing",
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }

    /// Whether the job can do its work, perhaps with difficulty.
    pub fn is_ready(self) -> bool {
        matches!(self, Self::Healthy | Self::Degraded)
    }
}

impl Status {
    /// Seconds since a point in time (microseconds since the epoch); 0 when the clock was set back in between.
    pub fn seconds_since(&self, micros: i64) -> f64 {
        self.now_micros.saturating_sub(micros).max(0) as f64 / 1e6
    }

    /// Errors within the window.
    pub fn errors_in_window(&self) -> usize {
        let window = i64::try_from(self.error_window.as_micros()).unwrap_or(i64::MAX);
        let from = self.now_micros.saturating_sub(window);
        self.recent_errors_micros.iter().filter(|at| **at > from).count()
    }

    /// How the job is. A process that stands by does its work by waiting.
    pub fn health(&self) -> Health {
        let failed = self.queries.values().filter(|query| query.state == QueryState::Failed).count();
        let errors = self.errors_in_window();
        if self.role == Role::Standby {
            Health::Healthy
        } else if errors >= UNHEALTHY_ERRORS || (failed > 0 && failed == self.queries.len()) {
            Health::Unhealthy
        } else if self.queries.is_empty() || self.queries.values().any(|q| !q.started && q.state != QueryState::Failed)
        {
            Health::Initializing
        } else if errors > 0 || failed > 0 {
            Health::Degraded
        } else {
            Health::Healthy
        }
    }

    /// What keeps the queries from their work.
    pub fn obstacles(&self) -> Vec<Obstacle> {
        let at_work = self.queries.iter().filter(|_| self.role == Role::Active);
        at_work.flat_map(|(name, query)| self.obstacles_of(name, query)).collect()
    }

    fn obstacles_of(&self, name: &str, query: &QueryStatus) -> Vec<Obstacle> {
        let mut found = Vec::new();
        let mut add = |kind, what: String, since_micros| {
            found.push(Obstacle { query: name.to_owned(), kind, what, since_micros });
        };
        let error = query.last_error.as_ref().map(|error| format!("{}: {}", error.class.code, error.message));
        let error = || error.clone().unwrap_or_default();
        match query.state {
            QueryState::Starting => add(ObstacleKind::Initializing, "it starts".into(), query.since_micros),
            QueryState::BackingOff { .. } => add(ObstacleKind::BackingOff, error(), query.since_micros),
            QueryState::Paused => {
                add(ObstacleKind::Paused, "paused; it goes on when it is resumed".into(), query.since_micros)
            }
            QueryState::Failed => add(ObstacleKind::Failed, error(), query.since_micros),
            _ => {}
        }
        for (part, breaker) in query.breakers.iter().filter(|(_, breaker)| breaker.state != BreakerState::Closed) {
            let what = match breaker.next_probe_micros() {
                Some(at) => format!(
                    "the circuit breaker of {part} is open, the next probe is due at {}: {}",
                    timestamp_text(at),
                    error()
                ),
                None => format!("the circuit breaker of {part} is half open, its probe is under way"),
            };
            add(ObstacleKind::BreakerOpen, what, breaker.since_micros);
        }
        for (source, trend) in query.lag_trend.iter().filter(|(_, trend)| trend.grows(self.now_micros)) {
            let waiting = query.lag.get(source).and_then(|lag| lag.records).unwrap_or_default();
            let what = format!("the lag of {source} grows: {waiting} records wait");
            add(ObstacleKind::LagGrowing, what, trend.since_micros);
        }
        let allowed =
            (self.trigger * MISSED_TRIGGERS).max(if self.trigger.is_zero() { STALE_AFTER } else { Duration::ZERO });
        if let Some(since) =
            self.waiting_since(query).filter(|since| self.seconds_since(*since) > allowed.as_secs_f64())
        {
            let what = match self.trigger.is_zero() {
                true => format!("no commit for more than {} seconds", allowed.as_secs()),
                false => format!("no commit for more than {MISSED_TRIGGERS} triggers"),
            };
            add(ObstacleKind::NoCommit, what, since);
        }
        found
    }

    /// Whether the job can do its work.
    pub fn is_ready(&self) -> bool {
        self.health().is_ready() && !self.obstacles().iter().any(|obstacle| obstacle.kind.blocks())
    }

    /// Since when a query that has something to do committed nothing, in microseconds since the epoch. A query that waited for input for long
    /// has just begun when it begins.
    pub fn waiting_since(&self, query: &QueryStatus) -> Option<i64> {
        let busy =
            !matches!(query.state, QueryState::Idle | QueryState::Paused | QueryState::Stopped | QueryState::Failed);
        let last = query.last_batch.as_ref().map_or(self.start_micros, |batch| batch.finished_at_micros);
        busy.then_some(last.max(query.busy_since_micros))
    }

    /// Seconds in which a query that has something to do committed nothing; 0 where it has nothing to do.
    pub fn seconds_without_commit(&self, query: &QueryStatus) -> f64 {
        self.waiting_since(query).map_or(0.0, |since| self.seconds_since(since))
    }

    /// Whether a batch is overdue: nothing was committed for [`STALE_AFTER`] although a query has something to do. A job without new
    /// input is idle, not stale.
    pub fn is_stale(&self) -> bool {
        let waits = |query| self.waiting_since(query).map(|since| self.seconds_since(since));
        self.role == Role::Active
            && self.queries.values().filter_map(waits).any(|seconds| seconds > STALE_AFTER.as_secs_f64())
    }

    /// What a person should do, in the words that people's scripts look for.
    pub fn recommendations(&self) -> Vec<&'static str> {
        let mut found = Vec::new();
        match self.errors_in_window() {
            0..5 => {}
            5..=10 => found.push("Moderate error rate - Monitor for patterns"),
            _ => found.push("High error count detected - Review DLQ and error logs"),
        }
        if self.batches() == 0 {
            found.push("No batches processed yet - Job may be initializing");
        }
        if self.is_stale() {
            found.push("Job appears stale (>5 min since last batch) - Check batch processing");
        }
        found
    }

    /// The batch that was committed last, of all queries.
    pub fn last_batch(&self) -> Option<&LastBatch> {
        self.queries.values().filter_map(|query| query.last_batch.as_ref()).max_by_key(|b| b.finished_at_micros)
    }

    /// Batches committed since the start.
    pub fn batches(&self) -> u64 {
        self.queries.values().map(|query| query.batches).sum()
    }

    /// Records read since the start.
    pub fn records(&self) -> u64 {
        self.queries.values().map(|query| query.counts.read).sum()
    }

    /// Mean time of a batch in seconds; 0 before the first.
    pub fn average_batch_seconds(&self) -> f64 {
        let seconds: f64 = self.queries.values().map(|query| query.batch_time.as_secs_f64()).sum();
        if self.batches() == 0 { 0.0 } else { seconds / self.batches() as f64 }
    }

    /// Records per second of the last batches of all queries.
    pub fn records_per_second(&self) -> f64 {
        self.queries.values().map(QueryStatus::records_per_second).sum()
    }

    /// Errors since the start, by class.
    pub fn errors_by_type(&self) -> BTreeMap<&'static str, u64> {
        let mut total = BTreeMap::new();
        for (class, count) in self.queries.values().flat_map(|query| &query.errors) {
            *total.entry(*class).or_insert(0) += count;
        }
        total
    }

    fn query(&mut self, name: &str) -> &mut QueryStatus {
        let now = self.now_micros;
        self.queries.entry(name.to_owned()).or_insert_with(|| QueryStatus::new(now))
    }
}

/// Keeps what the queries of a job tell, for everything that tells how they are.
pub struct StatusBoard {
    clock: Arc<dyn Clock>,
    memory: Arc<MemoryBudget>,
    status: Mutex<Status>,
}

impl StatusBoard {
    /// A board of the queries of a job that starts now. Errors count towards health for `error_window`.
    pub fn new<'q>(
        clock: Arc<dyn Clock>,
        job: impl Into<String>,
        version: impl Into<String>,
        queries: impl IntoIterator<Item = &'q str>,
        error_window: Duration,
    ) -> Self {
        let now = clock.now_micros();
        let status = Status {
            job: job.into(),
            version: version.into(),
            role: Role::Active,
            start_micros: now,
            now_micros: now,
            error_window,
            trigger: Duration::ZERO,
            memory_bytes: 0,
            memory_limit: None,
            disks: Vec::new(),
            recent_errors_micros: VecDeque::new(),
            queries: queries.into_iter().map(|name| (name.to_owned(), QueryStatus::new(now))).collect(),
        };
        Self { clock, memory: Arc::default(), status: Mutex::new(status) }
    }

    /// Batches are due this far apart.
    #[must_use]
    pub fn with_trigger(self, interval: Duration) -> Self {
        self.status.lock().trigger = interval;
        self
    }

    /// The queries share this memory.
    #[must_use]
    pub fn with_memory(self, memory: Arc<MemoryBudget>) -> Self {
        Self { memory, ..self }
    }

    /// The disks that the job writes to, and the share of each that is free.
    pub fn set_disks(&self, disks: Vec<(String, f64)>) {
        self.status.lock().disks = disks;
    }

    /// The process does something else from now on.
    pub fn take_role(&self, role: Role) {
        self.update(|status| {
            status.role = role;
            let now = status.now_micros;
            status.queries.values_mut().for_each(|query| query.since_micros = now);
        });
    }

    /// A copy of everything, as it is now.
    pub fn snapshot(&self) -> Status {
        let now_micros = self.clock.now_micros();
        let (memory_bytes, memory_limit) = (self.memory.used(), self.memory.limit());
        Status { now_micros, memory_bytes, memory_limit, ..self.status.lock().clone() }
    }

    /// Changes the status, which holds the time of the change.
    fn update(&self, change: impl FnOnce(&mut Status)) {
        let now = self.clock.now_micros();
        let mut status = self.status.lock();
        status.now_micros = now;
        change(&mut status);
    }
}

impl fmt::Debug for StatusBoard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StatusBoard").field(&self.status.lock().job).finish()
    }
}

impl Observer for StatusBoard {
    fn committed(&self, query: &str, report: &BatchReport) {
        self.update(|status| {
            let now = status.now_micros;
            let query = status.query(query);
            query.committed(report);
            // Whatever the query said last, it works.
            query.enter(QueryState::Running, now);
        });
    }

    fn repaired(&self, query: &str, _: &str) {
        self.update(|status| status.query(query).repairs += 1);
    }

    fn failed(&self, query: &str, _: Option<BatchId>, error: &Error, action: Action) {
        self.update(|status| {
            let at_micros = status.now_micros;
            if status.recent_errors_micros.len() == KEPT_ERRORS {
                status.recent_errors_micros.pop_front();
            }
            status.recent_errors_micros.push_back(at_micros);
            let query = status.query(query);
            query.failures_in_a_row = query.failures_in_a_row.saturating_add(1);
            *query.errors.entry(error.class().code).or_insert(0) += 1;
            query.retries += u64::from(!matches!(action, Action::Pause | Action::Stop));
            query.last_error = Some(LastError { class: error.class(), message: error.to_string(), at_micros });
        });
    }

    fn breaker(&self, query: &str, part: &Part, breaker: &Breaker) {
        self.update(|status| {
            status.query(query).breakers.insert(part.clone(), *breaker);
        });
    }

    fn lag(&self, query: &str, lag: &[(String, Lag)]) {
        self.update(|status| {
            let now = status.now_micros;
            status.query(query).saw_lag(lag, now);
        });
    }

    fn state(&self, query: &str, state: QueryState) {
        self.update(|status| {
            let now = status.now_micros;
            status.query(query).enter(state, now);
        });
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::error::class;
    use crate::progress::Phases;

    const SECOND: i64 = 1_000_000;

    #[derive(Debug, Default)]
    struct SetClock(AtomicI64);

    #[async_trait::async_trait]
    impl Clock for SetClock {
        fn now_micros(&self) -> i64 {
            self.0.load(Ordering::Relaxed)
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }

        async fn sleep(&self, _: Duration) {}
    }

    struct World {
        clock: Arc<SetClock>,
        board: StatusBoard,
    }

    impl World {
        fn new(queries: &[&str]) -> Self {
            let clock = Arc::new(SetClock::default());
            let board =
                StatusBoard::new(clock.clone(), "job", "1.0", queries.iter().copied(), Duration::from_secs(3600));
            Self { clock, board }
        }

        fn at(&self, second: i64) -> &StatusBoard {
            self.clock.0.store(second * SECOND, Ordering::Relaxed);
            &self.board
        }

        fn error(&self, second: i64) {
            self.at(second).failed("q", None, &Error::new(class::TIMEOUT, "slow"), Action::Stop);
        }
    }

    fn batch(id: BatchId, second: i64, counts: BatchCounts) -> BatchReport {
        BatchReport {
            query_id: "id".into(),
            batch: id,
            timestamp_ms: 0,
            finished_at_micros: second * SECOND,
            again: false,
            duplicate: false,
            counts,
            bytes_read: 100,
            warned: 0,
            dead_letters: vec![("MalformedRecord", counts.dead_lettered)],
            dead_letters_expired: 0,
            phases: Phases {
                execute: Duration::from_millis(20),
                commit: Duration::from_millis(480),
                ..Default::default()
            },
            watermark_ms: None,
            next_watermark_ms: Some(7),
            operators: vec![],
            state_bytes_written: 10,
            checkpoint_bytes_written: 15,
            sources: vec![],
            max_event_time_micros: None,
            lag: vec![("readings".into(), Lag { records: Some(3), partitions: vec![] })],
        }
    }

    /// A batch that wrote so many bytes to the checkpoint.
    pub(crate) fn report(counts: BatchCounts, checkpoint_bytes_written: u64) -> BatchReport {
        BatchReport { checkpoint_bytes_written, ..batch(0, 0, counts) }
    }

    #[test]
    fn health_goes_by_the_number_of_errors_within_the_window() {
        let world = World::new(&["q"]);
        assert_eq!(world.at(0).snapshot().health(), Health::Initializing);
        world.board.state("q", QueryState::Idle);
        for (errors, expected) in [
            (0, Health::Healthy),
            (1, Health::Degraded),
            (2, Health::Degraded),
            (3, Health::Degraded),
            (4, Health::Degraded),
            (5, Health::Unhealthy),
            (6, Health::Unhealthy),
        ] {
            let status = world.at(10).snapshot();
            assert_eq!(status.health(), expected, "{errors} errors");
            assert_eq!(status.health().is_ready(), errors < 5);
            world.error(10);
        }
        // Seven errors at second 10: an hour later they count no longer, but they are still told.
        assert_eq!(world.at(3609).snapshot().health(), Health::Unhealthy);
        let status = world.at(3610).snapshot();
        assert_eq!(status.health(), Health::Healthy);
        assert_eq!(status.errors_by_type(), [("Timeout", 7)].into());
    }

    #[test]
    fn a_query_that_cannot_start_is_initializing_until_it_is_unhealthy() {
        let world = World::new(&["q", "other"]);
        world.at(0).state("other", QueryState::Running);
        for errors in 1..=5 {
            world.error(errors);
            world.board.state("q", QueryState::BackingOff { wait: Duration::from_secs(1) });
            world.board.state("q", QueryState::Starting);
            let expected = if errors < 5 { Health::Initializing } else { Health::Unhealthy };
            assert_eq!(world.board.snapshot().health(), expected, "{errors} errors");
        }
        // Once it was started, an attempt to start again is not the beginning.
        world.board.state("q", QueryState::Running);
        world.board.state("q", QueryState::Starting);
        assert_eq!(world.at(4000).snapshot().health(), Health::Healthy);
    }

    #[test]
    fn a_failed_query_degrades_the_job_and_the_last_one_makes_it_unhealthy() {
        let world = World::new(&["a", "b"]);
        world.at(0).state("a", QueryState::Running);
        world.board.state("b", QueryState::Failed);
        assert_eq!(world.board.snapshot().health(), Health::Degraded);
        world.board.state("a", QueryState::Failed);
        assert_eq!(world.board.snapshot().health(), Health::Unhealthy);
    }

    #[test]
    fn a_state_is_dated_from_when_it_began() {
        let world = World::new(&["q"]);
        world.at(1).state("q", QueryState::BackingOff { wait: Duration::from_secs(1) });
        world.at(2).state("q", QueryState::BackingOff { wait: Duration::from_secs(2) });
        assert_eq!(world.board.snapshot().queries["q"].since_micros, SECOND);
        world.at(3).state("q", QueryState::Running);
        assert_eq!(world.board.snapshot().queries["q"].since_micros, 3 * SECOND);
    }

    #[test]
    fn batches_add_up() {
        let world = World::new(&["a", "b"]);
        let closed = BatchCounts { read: 10, written: 4, filtered: 3, late: 1, dead_lettered: 2, ..Default::default() };
        world.at(9).committed("a", &batch(41, 1, closed));
        world.board.committed("a", &batch(42, 3, closed));
        world.board.committed("b", &batch(7, 2, BatchCounts { written: 9, ..closed }));
        let status = world.board.snapshot();
        assert_eq!((status.batches(), status.records()), (3, 30));
        assert_eq!(status.last_batch().map(|b| b.id), Some(42));
        assert_eq!(status.average_batch_seconds(), 0.5);
        assert_eq!(status.records_per_second(), 40.0);
        let (a, b) = (&status.queries["a"], &status.queries["b"]);
        assert_eq!((a.counts.filtered, a.state_bytes_written, a.dead_letters["MalformedRecord"]), (6, 20, 4));
        assert_eq!((a.unaccounted_batches, b.unaccounted_batches), (0, 1));
        let (_, execute) = a.phase_seconds.iter().find(|(name, _)| *name == "execute").unwrap();
        assert_eq!((execute.count(), execute.counts[4]), (2, 2), "20 ms is in the bucket up to 25 ms");
    }

    #[test]
    fn a_histogram_counts_what_is_above_all_bounds() {
        let mut histogram = Histogram::default();
        histogram.observe(Duration::from_secs(100));
        histogram.observe(Duration::from_secs(60));
        assert_eq!(histogram.counts[Histogram::BOUNDS.len() - 1..], [1, 1]);
        assert_eq!((histogram.count(), histogram.sum_seconds), (2, 160.0));
    }

    #[test]
    fn idle_is_not_stale() {
        let world = World::new(&["q"]);
        world.at(0).committed("q", &batch(0, 0, BatchCounts::default()));
        world.board.state("q", QueryState::Idle);
        assert!(!world.at(10_000).snapshot().is_stale());
        world.board.state("q", QueryState::Running);
        assert!(!world.at(10_300).snapshot().is_stale(), "a batch that began after a long wait is not overdue at once");
        let status = world.at(10_301).snapshot();
        assert!(status.is_stale());
        assert_eq!(status.recommendations(), ["Job appears stale (>5 min since last batch) - Check batch processing"]);
    }

    #[test]
    fn recommendations_are_those_that_scripts_look_for() {
        let world = World::new(&["q"]);
        assert_eq!(world.at(0).snapshot().recommendations(), ["No batches processed yet - Job may be initializing"]);
        world.board.committed("q", &batch(0, 0, BatchCounts::default()));
        for (errors, expected) in [
            (4, None),
            (5, Some("Moderate error rate - Monitor for patterns")),
            (10, Some("Moderate error rate - Monitor for patterns")),
            (11, Some("High error count detected - Review DLQ and error logs")),
        ] {
            while world.board.snapshot().errors_in_window() < errors {
                world.error(1);
            }
            assert_eq!(world.board.snapshot().recommendations().first().copied(), expected, "{errors} errors");
        }
    }

    #[test]
    fn errors_are_kept_in_bounded_memory() {
        let world = World::new(&["q"]);
        for second in 0..5_000 {
            world.error(second);
        }
        let status = world.board.snapshot();
        assert_eq!(status.recent_errors_micros.len(), KEPT_ERRORS);
        assert_eq!(status.errors_by_type()["Timeout"], 5_000);
    }
}
