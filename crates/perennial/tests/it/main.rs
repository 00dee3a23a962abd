//! The program as people use it: one test binary, a module per subject.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod alerts;
mod bad_input;
#[cfg(feature = "kafka")]
mod bad_kafka;
mod changed;
mod checkpoint;
mod cli;
mod crashes;
mod dlq;
mod faulty;
mod late;
mod memory;
mod on_error;
#[cfg(feature = "kafka")]
mod outage;
mod partitions;
#[cfg(feature = "kafka")]
mod recovery;
mod refused_rows;
mod s3;
mod spark;
mod standby;
mod support;
mod tables;
mod telemetry;
