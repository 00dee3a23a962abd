//! The contract of sinks.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::stream::BoxStream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::env::Env;
use crate::error::{Error, Result};

/// Number of a batch of a query: 0, 1, 2, … without gaps.
pub type BatchId = u64;

/// Rows on their way.
pub type RowStream = BoxStream<'static, Result<RecordBatch>>;

/// Which rows of the result a batch hands to the sink (Spark's output modes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutputMode {
    /// Only rows that will never change again.
    #[default]
    Append,
    /// Rows that changed in this batch.
    Update,
    /// The whole result, each time.
    Complete,
}

/// What happens when a batch is written twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Delivery {
    /// Its rows are there twice.
    Append,
    /// Rows are keyed: the second write overwrites the first with the same rows.
    IdempotentByKey,
    /// The sink knows which batches it has and leaves the second write out.
    IdempotentByBatch,
}

/// The batch that is being written.
#[derive(Debug, Clone)]
pub struct SinkBatch {
    /// Number of the batch.
    pub id: BatchId,
    /// The writer's epoch.
    pub epoch: u64,
    /// The batch timestamp of the offset log, in milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// Whether an earlier attempt at this batch may have written something: the offset log already had it when the process started,
    /// or this process tried before.
    pub again: bool,
}

/// What a write came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Rows of the batch.
    pub rows: u64,
    /// Bytes sent or stored, where the sink knows.
    pub bytes: u64,
    /// The sink already had the batch and left it out.
    pub duplicate: bool,
}

/// Where rows go.
///
/// `write` returns when the rows are durable in the target. No call retries or sleeps: errors go up to the supervisor.
#[async_trait]
pub trait Sink: Send + Sync {
    /// What happens when a batch is written twice.
    fn delivery(&self) -> Delivery;

    /// Whether the target can be written with these settings and this schema: connects, authenticates, compares columns. Writes nothing
    /// that stays. For `check`.
    async fn check(&self) -> Result<()>;

    /// Whether [`probe`](Self::probe) can tell which rows the target refuses.
    fn can_probe(&self) -> bool {
        false
    }

    /// Writes rows as [`write`](Self::write) would, as one batch, and takes them back; an error is the one that a write would give. It is how
    /// rows that the target refuses are found.
    async fn probe(&self, _batch: &SinkBatch, _rows: RowStream) -> Result<()> {
        Err(Error::bug("the sink cannot try rows"))
    }

    /// Writes all rows of a batch. A stream that ends with an error leaves nothing of the batch that counts. Sinks drain `rows` even
    /// when they find that they have the batch already, because the query's state depends on it.
    async fn write(&self, batch: &SinkBatch, rows: RowStream) -> Result<Written>;
}

/// What a sink gets to live in.
#[derive(Clone)]
pub struct SinkContext {
    /// The world.
    pub env: Env,
    /// Name of the job.
    pub job: String,
    /// Name of the query.
    pub query: String,
    /// The identity of the query's checkpoint: with it a ledger can tell a new query of the same name from this one.
    pub query_id: String,
    /// Columns of the result.
    pub schema: SchemaRef,
    /// Which rows come.
    pub output_mode: OutputMode,
}

/// Makes one [`Sink`] per query. Refuses settings that do not fit the schema or the output mode; connecting is left to the sink's
/// first use.
pub trait SinkFactory: Send + Sync + std::fmt::Debug {
    /// Makes the sink of one query.
    fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>>;
}
