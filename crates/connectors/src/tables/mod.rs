//! Static tables, one file each.
//!
//! A table is read whole each time, as it is at that moment. Databases give their rows as JSON objects, so that one decoder says for all
//! of them what fits a column of the job's schema and what does not.

pub mod files;
pub mod postgres;
mod rows;
pub mod sqlite;
#[cfg(test)]
mod tests;
