//! Sinks, one file each.
//!
//! | module | writes to | a repeated batch |
//! |---|---|---|
//! | [`sqlite`], [`postgres`] | tables | is found in the ledger and left out |
//! | `kafka` | topics | is found in the ledger and left out |
//! | `delta` | tables of Delta Lake | is found in the table's log and left out |
//! | [`files`] | Parquet, JSON lines, CSV | replaces its own files with the same rows |
//! | [`influxdb`] | points | overwrites its own points with the same values |
//! | [`console`] | the terminal | is printed again |
//!
//! `columns` turns Arrow arrays into the few kinds of values that targets know, `json` rows into text, `table` is what the SQL sinks share, `fault`
//! classifies what goes wrong on the way to a server.

pub(crate) mod columns;
pub mod console;
#[cfg(feature = "delta")]
pub mod delta;
pub(crate) mod fault;
pub mod files;
pub mod influxdb;
mod json;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod postgres;
pub mod sqlite;
pub(crate) mod table;

/// Key in the metadata of a result's schema: the comma-separated columns in which two rows of a batch always differ (an
/// aggregation's grouping columns). Absent when nothing is known.
pub const UNIQUE_KEY: &str = "perennial.unique_key";

#[cfg(test)]
pub(crate) mod testing;
