//! Perennial as a library: the same jobs as with the program, from a file or built in Rust.
//!
//! # A job from a file
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let job = perennial::Job::from_file("job.yaml")?;
//! let summary = job.run(Default::default()).await?;
//! println!("{summary}");
//! # Ok(())
//! # }
//! ```
//!
//! # A job built in Rust
//!
//! With one's own sink, which is any type that implements [`Sink`](sink::Sink) and a factory for it; a source is made alike, with
//! [`Source`](source::Source).
//!
//! ```
//! use std::time::Duration;
//!
//! use async_trait::async_trait;
//! use futures::TryStreamExt;
//! use perennial::connectors::simulate::SimulateSource;
//! use perennial::sink::{Delivery, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
//! use perennial::{Job, JobQuery, JobSource, Result, schema};
//!
//! /// Prints how many rows come.
//! #[derive(Debug)]
//! struct Counter;
//!
//! impl SinkFactory for Counter {
//!     fn open(&self, _: SinkContext) -> Result<Box<dyn Sink>> {
//!         Ok(Box::new(Counter))
//!     }
//! }
//!
//! #[async_trait]
//! impl Sink for Counter {
//!     fn delivery(&self) -> Delivery {
//!         Delivery::Append
//!     }
//!
//!     async fn check(&self) -> Result<()> {
//!         Ok(())
//!     }
//!
//!     async fn write(&self, batch: &SinkBatch, rows: RowStream) -> Result<Written> {
//!         let rows: Vec<_> = rows.try_collect().await?;
//!         let count = rows.iter().map(|r| r.num_rows() as u64).sum();
//!         println!("batch {}: {count} rows", batch.id);
//!         Ok(Written { rows: count, ..Default::default() })
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let sensors: SimulateSource = serde_json::from_str(r#"{"profile": "greenhouse"}"#)?;
//! let columns = schema("sensor_id STRING, event_time TIMESTAMP, temperature DOUBLE")?;
//! let job = Job::builder("greenhouse")
//!     .source("readings", JobSource::new(sensors, columns).watermark("event_time", Duration::from_secs(600)))
//!     .query("warm", JobQuery::new("SELECT * FROM readings WHERE temperature > 30", Counter))
//!     .build()?;
//! assert_eq!(job.name, "greenhouse");
//! # Ok(())
//! # }
//! ```
//!
//! A scalar function of one's own is added with [`JobBuilder::function`] and called by its name in the SQL.

use std::sync::Arc;

pub mod alerts;
pub mod catalogue;
mod crash;
pub mod dlq;
pub mod history;
pub mod http;
pub mod job;
pub mod job_file;
pub mod progress;
mod progress_log;
pub mod run;
mod scratch;
mod standby;
mod telemetry;
mod wire;
mod world;

pub use job::{Job, JobBuilder, JobQuery, JobSource, JobTable};
pub use job_file::JobFileError;
pub use perennial_connectors as connectors;
pub use perennial_core::error::{Error, ErrorClass, ErrorKind, Result};
pub use perennial_core::on_error::{OnError, Reaction};
pub use perennial_core::{decode, error, offset, records, sink, source, status, table};
pub use world::env;

/// DataFusion, for scalar functions of one's own in the version that the engine has.
pub use datafusion;

/// Columns from Spark DDL: `id BIGINT NOT NULL, event_time TIMESTAMP`.
pub fn schema(ddl: &str) -> Result<arrow::datatypes::SchemaRef> {
    perennial_core::ddl::parse(ddl).map(Arc::new)
}
