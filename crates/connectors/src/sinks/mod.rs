//! Sinks, one file each.

pub mod console;
pub mod files;
pub mod influxdb;
pub mod postgres;
pub mod sqlite;
