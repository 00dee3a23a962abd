//! How the job is: what the batch loop reports, and what health, metrics and people read.
//!
//! The board is pure data. Writers hand in the time of what they report, readers hand in the time at which they ask, and everything that
//! is derived (healthy or not, ready or not, what to do) is a pure function of the two. An update costs a lock and a few additions
//! per batch; a reader copies the whole state out and works on its copy.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::error::ErrorClass;
use crate::plan::OperatorProgress;
use crate::sink::BatchId;
use crate::source::Lag;

/// Where a query is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryState {
    /// Opens its checkpoint, its sources and its sink.
    Initializing,
    /// Works on a batch.
    Running,
    /// Has read everything there is, or waits for its trigger.
    Waiting,
    /// Failed, and waits for the next attempt.
    BackingOff,
    /// Ended as it was asked to.
    Stopped,
    /// Ended because of an error.
    Failed,
}

impl QueryState {
    /// All states, for metrics.
    pub const ALL: [Self; 6] =
        [Self::Initializing, Self::Running, Self::Waiting, Self::BackingOff, Self::Stopped, Self::Failed];

    /// The name that people and metrics see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Initializing => "initializing",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::BackingOff => "backing_off",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// A part of a batch whose time is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Asking the sources what is new, and writing `offsets/N`.
    Trigger,
    /// Reading the ranges.
    Read,
    /// Decoding records and checking expectations.
    Decode,
    /// Running the plan.
    Execute,
    /// Writing to the sink.
    Sink,
    /// Making state, dead letters and `commits/N` durable.
    Checkpoint,
}

impl Phase {
    /// All phases, in the order of a batch.
    pub const ALL: [Self; 6] = [Self::Trigger, Self::Read, Self::Decode, Self::Execute, Self::Sink, Self::Checkpoint];

    /// The name that metrics carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trigger => "trigger",
            Self::Read => "read",
            Self::Decode => "decode",
            Self::Execute => "execute",
            Self::Sink => "sink",
            Self::Checkpoint => "checkpoint",
        }
    }
}

/// What became of the records of a batch.
///
/// `read + multiplied` equals the sum of all others but `rows_written`: see [`RecordCounts::closes`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RecordCounts {
    /// Records read from the sources.
    pub read: u64,
    /// Rows that the query made out of one record, beyond the first.
    pub multiplied: u64,
    /// Rows that went straight through to the sink.
    pub passed: u64,
    /// Rows that went into state.
    pub held: u64,
    /// Rows that the query's conditions left out.
    pub filtered: u64,
    /// Rows dropped because they came after the watermark.
    pub late: u64,
    /// Records dropped because the job file says so (`on_violation: drop`, `mode: dropmalformed`).
    pub dropped: u64,
    /// Records in the dead letters.
    pub dead_lettered: u64,
    /// Rows written to the sink: those that passed, and those that came out of state.
    pub rows_written: u64,
}

impl RecordCounts {
    /// Whether every record is accounted for exactly once.
    pub fn closes(&self) -> bool {
        self.read + self.multiplied
            == self.passed + self.held + self.filtered + self.late + self.dropped + self.dead_lettered
    }

    fn add(&mut self, other: &Self) {
        self.read += other.read;
        self.multiplied += other.multiplied;
        self.passed += other.passed;
        self.held += other.held;
        self.filtered += other.filtered;
        self.late += other.late;
        self.dropped += other.dropped;
        self.dead_lettered += other.dead_lettered;
        self.rows_written += other.rows_written;
    }
}

/// A committed batch.
#[derive(Debug, Clone)]
pub struct BatchReport {
    /// Name of the query.
    pub query: String,
    /// Number of the batch.
    pub batch_id: BatchId,
    /// When it was committed, in microseconds since the epoch.
    pub finished_at_micros: i64,
    /// From trigger to commit.
    pub duration: Duration,
    /// How long each measured phase took. Phases that run at the same time overlap, so that they may add up to more than `duration`.
    pub phases: Vec<(Phase, Duration)>,
    /// What became of its records.
    pub records: RecordCounts,
    /// The query's watermark after the batch, in milliseconds since the epoch; `None` without one.
    pub watermark_ms: Option<i64>,
    /// Per source what waits behind the batch, where the source can tell.
    pub lag: Vec<(String, Lag)>,
    /// Stateful operators.
    pub operators: Vec<OperatorProgress>,
    /// Bytes written to the checkpoint.
    pub checkpoint_bytes: u64,
}

/// Something went wrong.
#[derive(Debug, Clone)]
pub struct ErrorReport {
    /// Name of the query.
    pub query: String,
    /// The class: its code, what to do.
    pub class: &'static ErrorClass,
    /// What happened.
    pub message: String,
    /// When, in microseconds since the epoch.
    pub at_micros: i64,
}

/// An entry of the dead letters: records of one batch with one class of error.
#[derive(Debug, Clone)]
pub struct DeadLetterReport {
    /// Name of the query.
    pub query: String,
    /// Number of the batch.
    pub batch_id: BatchId,
    /// Why.
    pub class: &'static ErrorClass,
    /// How many records.
    pub records: u64,
    /// When, in microseconds since the epoch.
    pub at_micros: i64,
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
    /// What became of its records.
    pub records: RecordCounts,
}

/// One query.
#[derive(Debug, Clone)]
pub struct QueryStatus {
    /// Where it is in its life.
    pub state: QueryState,
    /// Why it is there, where there is something to say.
    pub reason: Option<String>,
    /// Since when, in microseconds since the epoch.
    pub since_micros: i64,
    /// The last committed batch of this run of the process.
    pub last_batch: Option<LastBatch>,
    /// Batches committed since the start.
    pub batches: u64,
    /// Time spent in them.
    pub batch_time: Duration,
    /// What became of the records since the start.
    pub records: RecordCounts,
    /// Batches whose counts did not close. Anything but 0 is a bug.
    pub unaccounted_batches: u64,
    /// Whole batches, from trigger to commit.
    pub batch_seconds: Histogram,
    /// Phases, in the order of [`Phase::ALL`].
    pub phase_seconds: [Histogram; Phase::ALL.len()],
    /// Watermark in milliseconds since the epoch.
    pub watermark_ms: Option<i64>,
    /// What waits, by source.
    pub lag: BTreeMap<String, Lag>,
    /// Stateful operators after the last batch.
    pub operators: Vec<OperatorProgress>,
    /// Bytes written to the checkpoint since the start.
    pub checkpoint_bytes: u64,
    /// Errors since the start, by class.
    pub errors: BTreeMap<&'static str, u64>,
    /// The last error, also when it is over.
    pub last_error: Option<LastError>,
    /// Dead-lettered records since the start, by class.
    pub dead_letters: BTreeMap<&'static str, u64>,
}

impl QueryStatus {
    fn new(at_micros: i64) -> Self {
        Self {
            state: QueryState::Initializing,
            reason: None,
            since_micros: at_micros,
            last_batch: None,
            batches: 0,
            batch_time: Duration::ZERO,
            records: RecordCounts::default(),
            unaccounted_batches: 0,
            batch_seconds: Histogram::default(),
            phase_seconds: Default::default(),
            watermark_ms: None,
            lag: BTreeMap::new(),
            operators: Vec::new(),
            checkpoint_bytes: 0,
            errors: BTreeMap::new(),
            last_error: None,
            dead_letters: BTreeMap::new(),
        }
    }

    /// Records per second of the last batch (Spark's `processedRowsPerSecond`).
    pub fn records_per_second(&self) -> f64 {
        match &self.last_batch {
            Some(batch) if !batch.duration.is_zero() => batch.records.read as f64 / batch.duration.as_secs_f64(),
            _ => 0.0,
        }
    }
}

/// First or last entry of the dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterEntry {
    /// Number of the batch.
    pub batch_id: BatchId,
    /// When, in microseconds since the epoch.
    pub at_micros: i64,
    /// Its class.
    pub class: &'static ErrorClass,
}

/// The dead letters since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterStatus {
    /// Entries: one for each batch and class.
    pub entries: u64,
    /// Entries by class.
    pub by_class: BTreeMap<&'static str, u64>,
    /// The first entry.
    pub first: Option<DeadLetterEntry>,
    /// The last entry.
    pub last: Option<DeadLetterEntry>,
}

/// A copy of the board.
#[derive(Debug, Clone)]
pub struct Status {
    /// Name of the job.
    pub job: String,
    /// Version of the job.
    pub version: String,
    /// When the process started, in microseconds since the epoch.
    pub start_micros: i64,
    /// Errors count towards health for this long.
    pub error_window: Duration,
    /// When the most recent errors happened, in microseconds since the epoch, oldest first.
    pub recent_errors_micros: VecDeque<i64>,
    /// Queries by name.
    pub queries: BTreeMap<String, QueryStatus>,
    /// Dead letters.
    pub dead_letters: DeadLetterStatus,
}

/// So many errors within the window make a job unhealthy.
pub const UNHEALTHY_ERRORS: usize = 5;

/// A batch is missed after this time when there is something to do.
pub const STALE_AFTER: Duration = Duration::from_secs(300);

/// Errors beyond this number within the window are not told apart by anything that reads the board.
const KEPT_ERRORS: usize = 1000;

/// How the job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// A query is still starting.
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
    /// Errors within the window that ends at `now_micros`.
    pub fn errors_in_window(&self, now_micros: i64) -> usize {
        let window = i64::try_from(self.error_window.as_micros()).unwrap_or(i64::MAX);
        let from = now_micros.saturating_sub(window);
        self.recent_errors_micros.iter().filter(|at| **at > from).count()
    }

    /// How the job is at `now_micros`.
    pub fn health(&self, now_micros: i64) -> Health {
        let states = || self.queries.values().map(|query| query.state);
        let failed = states().filter(|state| *state == QueryState::Failed).count();
        let errors = self.errors_in_window(now_micros);
        if errors >= UNHEALTHY_ERRORS || (failed > 0 && failed == self.queries.len()) {
            Health::Unhealthy
        } else if self.queries.is_empty() || states().any(|state| state == QueryState::Initializing) {
            Health::Initializing
        } else if errors > 0 || failed > 0 {
            Health::Degraded
        } else {
            Health::Healthy
        }
    }

    /// Whether a batch is overdue: nothing was committed for [`STALE_AFTER`] although a query has something to do. A job without new
    /// input is idle, not stale.
    pub fn is_stale(&self, now_micros: i64) -> bool {
        let busy = |query: &QueryStatus| matches!(query.state, QueryState::Running | QueryState::BackingOff);
        self.queries.values().any(|query| {
            let last = query.last_batch.as_ref().map_or(self.start_micros, |b| b.finished_at_micros);
            busy(query) && seconds_between(last, now_micros) > STALE_AFTER.as_secs_f64()
        })
    }

    /// What a person should do, in the words that people's scripts look for.
    pub fn recommendations(&self, now_micros: i64) -> Vec<&'static str> {
        let mut found = Vec::new();
        match self.errors_in_window(now_micros) {
            0..5 => {}
            5..=10 => found.push("Moderate error rate - Monitor for patterns"),
            _ => found.push("High error count detected - Review DLQ and error logs"),
        }
        if self.batches() == 0 {
            found.push("No batches processed yet - Job may be initializing");
        }
        if self.is_stale(now_micros) {
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
        self.queries.values().map(|query| query.records.read).sum()
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
}

/// Seconds from one point in time to another, both in microseconds since the epoch; 0 when the clock was set back in between.
pub fn seconds_between(from_micros: i64, to_micros: i64) -> f64 {
    to_micros.saturating_sub(from_micros).max(0) as f64 / 1e6
}

/// Where the batch loop reports to. Shared by all queries of a job and by everything that tells how they are.
#[derive(Debug)]
pub struct StatusBoard(Mutex<Status>);

impl StatusBoard {
    /// A board without queries. Errors count towards health for `error_window`.
    pub fn new(
        job: impl Into<String>,
        version: impl Into<String>,
        start_micros: i64,
        error_window: Duration,
    ) -> Self {
        Self(Mutex::new(Status {
            job: job.into(),
            version: version.into(),
            start_micros,
            error_window,
            recent_errors_micros: VecDeque::new(),
            queries: BTreeMap::new(),
            dead_letters: DeadLetterStatus::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        // No update can leave the numbers half done in a way that matters, so a panic elsewhere does not take health down.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of everything.
    pub fn snapshot(&self) -> Status {
        self.lock().clone()
    }

    /// A query went over to another state. The first report of a query adds it.
    pub fn state(&self, query: &str, state: QueryState, reason: Option<String>, at_micros: i64) {
        let mut status = self.lock();
        let entry = status.query(query, at_micros);
        if entry.state != state {
            entry.since_micros = at_micros;
        }
        entry.state = state;
        entry.reason = reason;
    }

    /// A batch was committed.
    pub fn batch_done(&self, report: BatchReport) {
        let mut status = self.lock();
        let query = status.query(&report.query, report.finished_at_micros);
        query.batches += 1;
        query.batch_time += report.duration;
        query.records.add(&report.records);
        query.unaccounted_batches += u64::from(!report.records.closes());
        query.batch_seconds.observe(report.duration);
        for (phase, duration) in report.phases {
            query.phase_seconds[phase as usize].observe(duration);
        }
        query.watermark_ms = report.watermark_ms.or(query.watermark_ms);
        query.lag.extend(report.lag);
        query.operators = report.operators;
        query.checkpoint_bytes += report.checkpoint_bytes;
        query.last_batch = Some(LastBatch {
            id: report.batch_id,
            finished_at_micros: report.finished_at_micros,
            duration: report.duration,
            records: report.records,
        });
    }

    /// An error reached the supervisor.
    pub fn error(&self, report: ErrorReport) {
        let mut status = self.lock();
        if status.recent_errors_micros.len() == KEPT_ERRORS {
            status.recent_errors_micros.pop_front();
        }
        status.recent_errors_micros.push_back(report.at_micros);
        let query = status.query(&report.query, report.at_micros);
        *query.errors.entry(report.class.code).or_insert(0) += 1;
        query.last_error =
            Some(LastError { class: report.class, message: report.message, at_micros: report.at_micros });
    }

    /// Records went to the dead letters, and their batch is committed.
    pub fn dead_letter(&self, report: DeadLetterReport) {
        let mut status = self.lock();
        let query = status.query(&report.query, report.at_micros);
        *query.dead_letters.entry(report.class.code).or_insert(0) += report.records;
        let letters = &mut status.dead_letters;
        letters.entries += 1;
        *letters.by_class.entry(report.class.code).or_insert(0) += 1;
        let entry = DeadLetterEntry { batch_id: report.batch_id, at_micros: report.at_micros, class: report.class };
        letters.first.get_or_insert_with(|| entry.clone());
        letters.last = Some(entry);
    }
}

impl Status {
    fn query(&mut self, name: &str, at_micros: i64) -> &mut QueryStatus {
        self.queries.entry(name.to_owned()).or_insert_with(|| QueryStatus::new(at_micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::class;

    const SECOND: i64 = 1_000_000;

    fn board() -> StatusBoard {
        StatusBoard::new("job", "1.0", 0, Duration::from_secs(3600))
    }

    fn batch(query: &str, id: BatchId, at_micros: i64, records: RecordCounts) -> BatchReport {
        BatchReport {
            query: query.into(),
            batch_id: id,
            finished_at_micros: at_micros,
            duration: Duration::from_millis(500),
            phases: vec![(Phase::Execute, Duration::from_millis(20)), (Phase::Sink, Duration::from_secs(100))],
            records,
            watermark_ms: Some(7),
            lag: vec![("readings".into(), Lag { records: Some(3), partitions: vec![] })],
            operators: vec![],
            checkpoint_bytes: 10,
        }
    }

    fn error(at_micros: i64) -> ErrorReport {
        ErrorReport { query: "q".into(), class: class::TIMEOUT, message: "slow".into(), at_micros }
    }

    #[test]
    fn health_goes_by_the_number_of_errors_within_the_window() {
        let board = board();
        assert_eq!(board.snapshot().health(0), Health::Initializing, "no query yet");
        board.state("q", QueryState::Initializing, None, 0);
        assert_eq!(board.snapshot().health(0), Health::Initializing);
        board.state("q", QueryState::Running, None, SECOND);
        for (errors, expected) in [
            (0, Health::Healthy),
            (1, Health::Degraded),
            (2, Health::Degraded),
            (3, Health::Degraded),
            (4, Health::Degraded),
            (5, Health::Unhealthy),
            (6, Health::Unhealthy),
        ] {
            let status = board.snapshot();
            assert_eq!(status.health(10 * SECOND), expected, "{errors} errors");
            assert_eq!(status.health(10 * SECOND).is_ready(), errors < 5);
            board.error(error(10 * SECOND));
        }
        // Seven errors at second 10: an hour later they count no longer, but they are still told.
        let status = board.snapshot();
        assert_eq!(status.health(3609 * SECOND), Health::Unhealthy);
        assert_eq!(status.health(3610 * SECOND), Health::Healthy);
        assert_eq!(status.errors_by_type(), [("Timeout", 7)].into());
    }

    #[test]
    fn a_failed_query_degrades_the_job_and_the_last_one_makes_it_unhealthy() {
        let board = board();
        board.state("a", QueryState::Running, None, 0);
        board.state("b", QueryState::Failed, Some("no table".into()), 0);
        assert_eq!(board.snapshot().health(SECOND), Health::Degraded);
        board.state("a", QueryState::Failed, None, 0);
        assert_eq!(board.snapshot().health(SECOND), Health::Unhealthy);
    }

    #[test]
    fn a_state_is_dated_from_when_it_began() {
        let board = board();
        board.state("q", QueryState::BackingOff, Some("attempt 1".into()), SECOND);
        board.state("q", QueryState::BackingOff, Some("attempt 2".into()), 2 * SECOND);
        let status = board.snapshot();
        assert_eq!((status.queries["q"].since_micros, status.queries["q"].reason.as_deref()), (SECOND, Some("attempt 2")));
        board.state("q", QueryState::Running, None, 3 * SECOND);
        assert_eq!(board.snapshot().queries["q"].since_micros, 3 * SECOND);
    }

    #[test]
    fn batches_add_up() {
        let board = board();
        let closed = RecordCounts { read: 10, passed: 4, filtered: 3, late: 1, dead_lettered: 2, rows_written: 4, ..Default::default() };
        assert!(closed.closes());
        let open = RecordCounts { read: 10, held: 9, ..Default::default() };
        assert!(!open.closes());
        board.batch_done(batch("a", 41, SECOND, closed));
        board.batch_done(batch("a", 42, 3 * SECOND, closed));
        board.batch_done(batch("b", 7, 2 * SECOND, open));
        let status = board.snapshot();
        assert_eq!((status.batches(), status.records()), (3, 30));
        assert_eq!(status.last_batch().unwrap().id, 42);
        assert_eq!(status.average_batch_seconds(), 0.5);
        assert_eq!(status.records_per_second(), 40.0);
        assert_eq!(status.queries["a"].records.filtered, 6);
        assert_eq!(status.queries["a"].checkpoint_bytes, 20);
        assert_eq!((status.queries["a"].unaccounted_batches, status.queries["b"].unaccounted_batches), (0, 1));
        let execute = &status.queries["a"].phase_seconds[Phase::Execute as usize];
        assert_eq!((execute.count(), execute.counts[4]), (2, 2), "20 ms is in the bucket up to 25 ms");
        let sink = &status.queries["a"].phase_seconds[Phase::Sink as usize];
        assert_eq!(sink.counts[Histogram::BOUNDS.len()], 2, "100 s is above all bounds");
    }

    #[test]
    fn idle_is_not_stale() {
        let board = board();
        board.batch_done(batch("q", 0, 0, RecordCounts::default()));
        let late = 301 * SECOND;
        board.state("q", QueryState::Waiting, None, 0);
        assert!(!board.snapshot().is_stale(late));
        board.state("q", QueryState::Running, None, 0);
        assert!(!board.snapshot().is_stale(300 * SECOND));
        let status = board.snapshot();
        assert!(status.is_stale(late));
        assert_eq!(
            status.recommendations(late),
            ["Job appears stale (>5 min since last batch) - Check batch processing"]
        );
    }

    #[test]
    fn recommendations_are_those_that_scripts_look_for() {
        let board = board();
        assert_eq!(board.snapshot().recommendations(0), ["No batches processed yet - Job may be initializing"]);
        board.batch_done(batch("q", 0, 0, RecordCounts::default()));
        for (errors, expected) in [
            (4, None),
            (5, Some("Moderate error rate - Monitor for patterns")),
            (10, Some("Moderate error rate - Monitor for patterns")),
            (11, Some("High error count detected - Review DLQ and error logs")),
        ] {
            while board.snapshot().errors_in_window(SECOND) < errors {
                board.error(error(SECOND));
            }
            assert_eq!(board.snapshot().recommendations(SECOND).first().copied(), expected, "{errors} errors");
        }
    }

    #[test]
    fn dead_letters_keep_their_first_and_last_entry() {
        let board = board();
        for (batch_id, class, records) in
            [(1, class::MALFORMED_RECORD, 5), (2, class::EXPECTATION_FAILED, 1), (3, class::MALFORMED_RECORD, 2)]
        {
            board.dead_letter(DeadLetterReport { query: "q".into(), batch_id, class, records, at_micros: 9 });
        }
        let status = board.snapshot();
        assert_eq!(status.dead_letters.entries, 3);
        assert_eq!(status.dead_letters.by_class, [("ExpectationFailed", 1), ("MalformedRecord", 2)].into());
        assert_eq!(status.queries["q"].dead_letters["MalformedRecord"], 7);
        assert_eq!(status.dead_letters.first.unwrap().batch_id, 1);
        assert_eq!(status.dead_letters.last.unwrap().batch_id, 3);
    }

    #[test]
    fn errors_are_kept_in_bounded_memory() {
        let board = board();
        for at in 0..5_000 {
            board.error(error(at));
        }
        let status = board.snapshot();
        assert_eq!(status.recent_errors_micros.len(), KEPT_ERRORS);
        assert_eq!(status.errors_by_type()["Timeout"], 5_000);
    }
}
