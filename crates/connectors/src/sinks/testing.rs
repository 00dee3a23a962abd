//! What the tests of the sinks share.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use object_store::memory::InMemory;
use perennial_core::env::{Clock, Entropy, Env};
use perennial_core::error::{Error, Result, class};
use perennial_core::sink::{OutputMode, RowStream, SinkBatch, SinkContext};

#[derive(Debug)]
struct StoppedClock;

#[async_trait]
impl Clock for StoppedClock {
    fn now_micros(&self) -> i64 {
        1_795_254_263_000_000
    }
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
    async fn sleep(&self, _: Duration) {}
}

#[derive(Debug)]
struct Zeros;

impl Entropy for Zeros {
    fn next_u64(&self) -> u64 {
        0
    }
}

pub(super) fn context(schema: SchemaRef, output_mode: OutputMode) -> SinkContext {
    let env = Env { clock: Arc::new(StoppedClock), entropy: Arc::new(Zeros), storage: Arc::new(InMemory::new()) };
    let (job, query, query_id) = ("greenhouse".into(), "per_minute".into(), "0123456789abcdef".into());
    SinkContext { env, job, query, query_id, schema, output_mode }
}

pub(super) fn batch(id: u64) -> SinkBatch {
    SinkBatch { id, epoch: 1, timestamp_ms: 0, again: false }
}

pub(super) fn rows_of<I: IntoIterator<Item = (&'static str, ArrayRef)>>(columns: I) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

pub(super) fn stream_of(batches: Vec<RecordBatch>) -> RowStream {
    stream::iter(batches.into_iter().map(Ok)).boxed()
}

/// Rows, and then an error instead of an end.
pub(super) fn failing_stream(batches: Vec<RecordBatch>) -> RowStream {
    let error: Result<RecordBatch> = Err(Error::new(class::CONNECTION_LOST, "the source went away"));
    stream::iter(batches.into_iter().map(Ok).chain([error])).boxed()
}

/// Rows, and then nothing for ever.
pub(super) fn hanging_stream(batches: Vec<RecordBatch>) -> RowStream {
    stream::iter(batches.into_iter().map(Ok)).chain(stream::pending()).boxed()
}

/// The schema with a unique key in its metadata, as the SQL side gives it.
pub(super) fn keyed(schema: &Schema, key: &str) -> SchemaRef {
    let metadata = [(super::UNIQUE_KEY.to_owned(), key.to_owned())].into();
    Arc::new(schema.clone().with_metadata(metadata))
}
