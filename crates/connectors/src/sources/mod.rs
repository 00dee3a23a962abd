//! Sources, one file each.

pub mod files;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod rate;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
mod timestamp;

pub use timestamp::Timestamp;
