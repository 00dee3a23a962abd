//! The checkpoint of a query: its logs, their formats and their paths.
//!
//! ```text
//! <query>/metadata          the identity of the query
//! <query>/offsets/N         what batch N reads: written before it reads a row
//! <query>/commits/N         batch N is done: written after sink, state and dead letters are durable
//! <query>/sources/<i>/…     logs of sources that need one
//! <query>/state/…           versions of the state
//! <query>/_perennial/epochs/E   one file per process that ever owned the checkpoint
//! <query>/_perennial/metadata   a copy of metadata
//! <query>/_perennial/sources/…  checksums of the files in sources/
//! <query>/_perennial/plans/…    what a form of the query keeps, by the digest of its plan
//! <query>/_perennial/aside/…    what a repair or a rewind took away
//! ```
//!
//! The first four are Spark's own formats. What Perennial adds stands in a field `perennial` of the JSON, which Spark passes over, or
//! in `_perennial`, where Spark does not look. A running query creates files that must not exist yet, and changes none.
//!
//! [`recover`] decides how a query goes on, [`Survey`] what a checkpoint is worth and how it can be mended. Both are pure; [`CheckpointLog`] writes,
//! [`Inspector`] reads without owning.

mod format;
mod inspect;
mod log;
mod mend;
mod recovery;
mod retention;
mod source_log;
mod survey;
#[cfg(test)]
mod tests;

pub use format::{BatchCounts, CommitDetails, CommitEntry, Metadata, OffsetEntry};
pub use inspect::{Checked, FileMeta, Inspector, Look};
pub use log::{CheckpointLog, request_replay};
pub use mend::{Plan, Step};
pub use recovery::{Damage, Found, Part, Recovery, recover};
pub use retention::oldest_to_keep;
pub use source_log::SourceLog;
pub use survey::{BatchSurvey, Finding, Survey};
