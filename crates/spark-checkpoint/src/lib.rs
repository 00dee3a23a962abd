//! Checkpoints of Spark Structured Streaming: takes queries over from Spark with their state, and gives them back.
//!
//! What a checkpoint of Spark is, was read from directories that Spark 4.3 wrote. [`import`] reads one and writes what a query of ours
//! goes on from; [`export`] does the reverse. Anything that is damaged, unknown or has no exact counterpart is refused: the error names the file,
//! or what does not fit.
//!
//! - `files`, `codec`, `records`, `row`, `types`, `hash`: the formats, from the directory down to the values
//! - `settings`, `logs`, `state`, `rocksdb`: what the logs say, and which files make up a version of the state
//! - `operators`: what the rows of each operator mean, there and here

mod codec;
mod export;
mod files;
mod hash;
mod import;
mod operators;
mod records;
mod rocksdb;
mod row;
mod settings;
mod sources;
mod sst;
mod state;
mod types;

use perennial_core::error::{Error, class};

pub use export::{Export, Exported};
pub use files::Directory;
pub use import::{Adopter, Import, Imported, PathMap};

/// A file that is not as it was written.
fn damaged(path: &str, what: impl std::fmt::Display) -> Error {
    Error::new(class::CHECKPOINT_CORRUPT, format!("{path}: {what}"))
}

/// Something that is whole and cannot be taken over.
fn refused(what: impl Into<String>) -> Error {
    Error::new(class::SPARK_CHECKPOINT, what)
}
