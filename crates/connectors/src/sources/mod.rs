//! Sources, one file each.

pub mod files;
#[cfg(feature = "kafka")]
pub mod kafka;
