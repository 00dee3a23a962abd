//! Named places around every durable step, at which a process can be made to die.
//!
//! A point costs one look at an `Option` as long as nobody listens. Who listens is handed in with [`Env`](crate::env::Env): the simulator,
//! or the program when it is told to die in a test. There is no registry: two queries, or two tests, do not know of each other's points.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};

macro_rules! points {
    ($($name:ident = $code:literal, $meaning:literal;)*) => {
        /// A place around a durable step.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum CrashPoint {
            $(#[doc = $meaning] $name,)*
        }

        impl CrashPoint {
            /// All points, in the order in which a query's life passes them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name: stable, because tests and people use it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }

            /// What has happened when it is passed.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning),* }
            }
        }
    };
}

points! {
    BeforeTakeover = "takeover.before", "The newest epoch is known; the next one is not taken";
    AfterTakeover = "takeover.after", "The epoch is taken: the process before is fenced";
    BeforeIdentity = "identity.before", "A new query has no identity yet";
    HalfIdentity = "identity.half", "One of the two copies of the identity is written";
    AfterIdentity = "identity.after", "The query has its identity";
    BeforeAside = "aside.before", "Commits whose state is lost are still in the log";
    HalfAside = "aside.half", "A file is copied to `_perennial/aside` and still in its place";
    AfterAside = "aside.after", "The commits whose batches run again are out of the log";
    BeforeOffsets = "offsets.before", "The batch is planned, nothing is logged";
    AfterOffsets = "offsets.after", "`offsets/N` is durable, no row was read";
    BeforeSourceLog = "source_log.before", "The source decided what the batch reads, its log does not have it";
    HalfSourceLog = "source_log.half", "A file of the source's log is written, its checksum is not";
    AfterSourceLog = "source_log.after", "The source's log is durable";
    BeforeSink = "sink.before", "The sink has nothing of the batch";
    SinkStaged = "sink.staged", "The rows are in the sink's transaction or out of sight; no reader sees one";
    SinkHalf = "sink.half", "Some of the batch's files are in place, others are not";
    SinkPublished = "sink.published", "The sink's commit took effect, its ledger included; the query does not know it";
    AfterSink = "sink.after", "The query knows that the sink has the batch";
    BeforeDelta = "state.before", "The batch's changes of the state are in memory only";
    AfterDelta = "state.after", "The delta is durable; no commit refers to it";
    BeforeSnapshot = "snapshot.before", "A part of a snapshot is about to be written";
    AfterSnapshot = "snapshot.after", "A part of a snapshot is durable; no commit refers to it";
    BeforeLetters = "letters.before", "State and sink are durable, dead letters are not";
    LetterRecords = "letters.records", "The records of the dead letters are durable, the day's file has no entry of them";
    AfterLetters = "letters.after", "Everything of the batch is durable but the commit";
    BeforeCommit = "commit.before", "The fence was looked at, `commits/N` is not written";
    AfterCommit = "commit.after", "`commits/N` is durable; the process does not know it";
    BeforeAcknowledge = "acknowledge.before", "The batch is done; the source was not told";
    AfterAcknowledge = "acknowledge.after", "The source was told";
    BeforeCleanup = "cleanup.before", "Old versions are still there";
    HalfCleanup = "cleanup.half", "The commit of an old batch is removed, its offsets are not";
    CleanedLogs = "cleanup.logs", "Old logs are removed, the state's old files are not";
    AfterCleanup = "cleanup.after", "Old versions are removed";
}

impl fmt::Display for CrashPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for CrashPoint {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|point| point.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|point| point.name()).collect();
            Error::new(
                crate::error::class::CONFIG_INVALID,
                format!("there is no crash point `{name}`; there are {}", names.join(", ")),
            )
        })
    }
}

/// Who decides that a process dies.
pub trait Crash: Send + Sync + fmt::Debug {
    /// The process passes a point. `true`: it dies here, unless this call ended it already.
    fn dies_at(&self, point: CrashPoint) -> bool;
}

/// The crash points of one process; off unless somebody listens.
#[derive(Debug, Clone, Default)]
pub struct CrashPoints(Option<Arc<dyn Crash>>);

impl CrashPoints {
    /// Points that somebody listens to.
    pub fn new(crash: Arc<dyn Crash>) -> Self {
        Self(Some(crash))
    }

    fn dies_at(&self, point: CrashPoint) -> bool {
        self.0.as_ref().is_some_and(|crash| crash.dies_at(point))
    }

    /// Passes a point. What died here does not go on: the future never ends, and its owner drops it.
    pub async fn pass(&self, point: CrashPoint) {
        if self.dies_at(point) {
            std::future::pending().await
        }
    }

    /// Passes a point on a thread that may be blocked.
    ///
    /// # Errors
    /// When the process died here, so that nothing more is done.
    pub fn pass_blocking(&self, point: CrashPoint) -> Result<()> {
        match self.dies_at(point) {
            true => Err(Error::bug(format!("the process died at {point}"))),
            false => Ok(()),
        }
    }
}
