//! The checkpoint of a query: its logs, their formats and their paths.
//!
//! ```text
//! <query>/metadata          the identity of the query
//! <query>/offsets/N         what batch N reads: written before it reads a row
//! <query>/commits/N         batch N is done: written after sink, state and dead letters are durable
//! <query>/sources/<i>/…     logs of sources that need one
//! <query>/state/…           versions of the state
//! <query>/_perennial/epochs/E   one file per process that ever owned the checkpoint
//! ```
//!
//! The first four are Spark's own formats. What Perennial adds stands in a field `perennial` of the JSON, which Spark passes over, or
//! in `_perennial`, where Spark does not look. Every write creates a file that must not exist yet.

mod format;
mod log;
mod recovery;
mod source_log;

pub use format::{BatchCounts, CommitDetails, CommitEntry, Metadata, OffsetEntry};
pub use log::CheckpointLog;
pub use recovery::{Found, Recovery, recover};
pub use source_log::SourceLog;
