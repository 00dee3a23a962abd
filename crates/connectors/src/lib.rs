//! Sources, tables, sinks and formats: one file each, and the registry that names them.

pub mod dead_letters;
pub mod format;
pub mod journal;
#[cfg(feature = "kafka")]
pub mod kafka;
mod postgres;
pub mod registry;
pub mod simulate;
pub mod sinks;
pub mod sources;
pub mod storage;
pub mod tables;
