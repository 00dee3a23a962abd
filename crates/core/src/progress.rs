//! What happens in a job, told as it happens.

use std::time::Duration;

use crate::breaker::{Breaker, Part};
use crate::checkpoint::BatchCounts;
use crate::error::Error;
use crate::offset::Offset;
use crate::plan::OperatorProgress;
use crate::policy::Action;
use crate::sink::BatchId;
use crate::source::Lag;

/// Time spent in the phases of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// Asking the sources what is new.
    pub trigger: Duration,
    /// Writing `offsets/N`.
    pub log_offsets: Duration,
    /// Reading, decoding, executing and writing to the sink, which overlap.
    pub execute: Duration,
    /// Of that: waiting for sources, summed over all streams.
    pub read: Duration,
    /// Of that: decoding, summed over all cores.
    pub decode: Duration,
    /// Of that: the sink's own time, in which it did not wait for rows.
    pub sink: Duration,
    /// Making state durable, as far as it took longer than the sink.
    pub state: Duration,
    /// Writing dead letters.
    pub dead_letters: Duration,
    /// Writing `commits/N`.
    pub commit: Duration,
}

impl Phases {
    /// All of them.
    pub fn total(&self) -> Duration {
        self.trigger + self.log_offsets + self.execute + self.state + self.dead_letters + self.commit
    }

    /// Writing to the checkpoint.
    pub fn checkpoint(&self) -> Duration {
        self.log_offsets + self.state + self.commit
    }

    /// With their names. Some are parts of others.
    pub fn named(&self) -> [(&'static str, Duration); 10] {
        [
            ("trigger", self.trigger),
            ("log_offsets", self.log_offsets),
            ("execute", self.execute),
            ("read", self.read),
            ("decode", self.decode),
            ("sink", self.sink),
            ("state", self.state),
            ("dead_letters", self.dead_letters),
            ("commit", self.commit),
            ("checkpoint", self.checkpoint()),
        ]
    }
}

/// What a batch read of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceProgress {
    /// Its name.
    pub source: String,
    /// Where the batch began; `None` for the source's first.
    pub start: Option<Offset>,
    /// Where it ended; `None` where there was never anything.
    pub end: Option<Offset>,
    /// Records.
    pub records: u64,
}

/// A committed batch.
#[derive(Debug, Clone)]
pub struct BatchReport {
    /// The identity of the query, which survives restarts.
    pub query_id: std::sync::Arc<str>,
    /// Number of the batch.
    pub batch: BatchId,
    /// The batch timestamp, in milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// When it was committed, in microseconds since the epoch.
    pub finished_at_micros: i64,
    /// Whether it was an attempt of an earlier process or attempt that did not get to its commit.
    pub again: bool,
    /// The sink already had the rows.
    pub duplicate: bool,
    /// The accounts.
    pub counts: BatchCounts,
    /// Bytes of records read.
    pub bytes_read: u64,
    /// Rows that broke an expectation which only warns.
    pub warned: u64,
    /// Dead letters by error class.
    pub dead_letters: Vec<(&'static str, u64)>,
    /// Entries of dead letters that were removed after the batch because of their age.
    pub dead_letters_expired: u64,
    /// Where the time went.
    pub phases: Phases,
    /// Watermark of the batch, in milliseconds since the epoch; `None` where the query tracks no event time.
    pub watermark_ms: Option<i64>,
    /// Watermark of the next batch.
    pub next_watermark_ms: Option<i64>,
    /// Stateful operators.
    pub operators: Vec<OperatorProgress>,
    /// Bytes that the state wrote for this batch.
    pub state_bytes_written: u64,
    /// Bytes that were written to the checkpoint for this batch, those of the state among them.
    pub checkpoint_bytes_written: u64,
    /// What it read, per source.
    pub sources: Vec<SourceProgress>,
    /// The greatest event time in it, in microseconds since the epoch.
    pub max_event_time_micros: Option<i64>,
    /// What still waits, per source.
    pub lag: Vec<(String, Lag)>,
}

/// Where a query stands.
#[derive(Debug, Clone, PartialEq)]
pub enum QueryState {
    /// It reads its checkpoint.
    Starting,
    /// It has recovered: what it goes on with.
    Started {
        /// The next batch.
        next_batch: BatchId,
        /// Rows of state restored.
        state_rows: u64,
        /// How long that took.
        took: Duration,
    },
    /// It has nothing to read.
    Idle,
    /// A batch runs.
    Running,
    /// It waits to run a failed batch again.
    BackingOff {
        /// For how long.
        wait: Duration,
    },
    /// Its breaker is open.
    BreakerOpen {
        /// For how long.
        wait: Duration,
    },
    /// It waits for a person.
    Paused,
    /// It ended well.
    Stopped,
    /// It ended with an error.
    Failed,
}

/// Is told what happens. Calls are frequent and must be cheap.
pub trait Observer: Send + Sync {
    /// A batch was committed.
    fn committed(&self, query: &str, report: &BatchReport);

    /// A batch or the start of a query failed; `action` is what happens now.
    fn failed(&self, query: &str, batch: Option<BatchId>, error: &Error, action: Action);

    /// A query went into a state.
    fn state(&self, query: &str, state: QueryState);

    /// The breaker of a part of a query is in another state; told of each part at the start.
    fn breaker(&self, _query: &str, _part: &Part, _breaker: &Breaker) {}

    /// What waits for a query that waits itself.
    fn lag(&self, _query: &str, _lag: &[(String, Lag)]) {}

    /// A query found damage in its checkpoint and mended it, or goes on around it, without loss.
    fn repaired(&self, _query: &str, _what: &str) {}
}

/// Tells several.
pub struct Observers(pub Vec<std::sync::Arc<dyn Observer>>);

impl Observer for Observers {
    fn committed(&self, query: &str, report: &BatchReport) {
        self.0.iter().for_each(|o| o.committed(query, report));
    }

    fn failed(&self, query: &str, batch: Option<BatchId>, error: &Error, action: Action) {
        self.0.iter().for_each(|o| o.failed(query, batch, error, action));
    }

    fn state(&self, query: &str, state: QueryState) {
        self.0.iter().for_each(|o| o.state(query, state.clone()));
    }

    fn breaker(&self, query: &str, part: &Part, breaker: &Breaker) {
        self.0.iter().for_each(|o| o.breaker(query, part, breaker));
    }

    fn lag(&self, query: &str, lag: &[(String, Lag)]) {
        self.0.iter().for_each(|o| o.lag(query, lag));
    }

    fn repaired(&self, query: &str, what: &str) {
        self.0.iter().for_each(|o| o.repaired(query, what));
    }
}
