//! The contract of sources.

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::env::Env;
use crate::error::Result;
use crate::offset::{Offset, OffsetRange};
use crate::records::Input;

/// What a source gives when the same range is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Replay {
    /// Records may be gone.
    Lost,
    /// All records come again, but others may come with them or they may have changed.
    AtLeastOnce,
    /// The same records in the same order, for ever (or until the source's retention, which is then an error).
    Exact,
}

/// How far a batch may go.
#[derive(Debug, Clone, Default)]
pub struct ReadLimit {
    /// At most this many records, beside the limit in the source's own settings; the smaller one counts. A source that cannot count
    /// before it reads (files) takes the nearest unit that is not more, but always at least one.
    pub max_records: Option<u64>,
    /// Do not go past this offset: the end that an `available_now` run fixed at its start with [`Source::newest`].
    pub until: Option<Offset>,
}

/// Part of a batch's input that one core works through: blocks in order.
pub type InputStream = BoxStream<'static, Result<Input>>;

/// How much lies between an offset and the newest record.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lag {
    /// Records that wait, where the source can count them.
    pub records: Option<u64>,
    /// Per partition (Kafka: `topic-partition`), records that wait.
    pub partitions: Vec<(String, u64)>,
}

/// A stream of records that can be read again by offset ranges.
///
/// One instance serves one query. No call retries or sleeps: errors go up to the supervisor.
#[async_trait]
pub trait Source: Send + Sync {
    /// How the source replays.
    fn replay(&self) -> Replay;

    /// The end of the next batch that starts at `start` (`None`: the query's first batch, which starts where the settings say).
    /// Returns `start` itself when nothing is new, and `None` when there has never been anything to read. Durable side effects (a log
    /// of files seen) are complete when it returns.
    async fn latest(&self, start: Option<&Offset>, limit: &ReadLimit) -> Result<Option<Offset>>;

    /// The end of all that there is now, however many batches that takes: where an `available_now` run that goes on from `start` stops
    /// ([`ReadLimit::until`]). `None` when there has never been anything to read. Durable side effects are complete when it returns. `limit` is
    /// that of the first batch, for sources that decide here what makes a batch.
    async fn newest(&self, start: Option<&Offset>, _limit: &ReadLimit) -> Result<Option<Offset>> {
        self.latest(start, &ReadLimit::default()).await
    }

    /// Reads a range that `latest` gave, now or in an earlier life of the query, as at most `parallelism` streams (0 for an empty range).
    async fn read(&self, range: &OffsetRange, parallelism: usize) -> Result<Vec<InputStream>>;

    /// The batch that ended at `end` is committed for good.
    async fn acknowledge(&self, _end: &Offset) -> Result<()> {
        Ok(())
    }

    /// What waits behind `end`, for people; `None` where the source cannot tell.
    async fn lag(&self, _end: Option<&Offset>) -> Result<Option<Lag>> {
        Ok(None)
    }

    /// Whether the source can be read with these settings: connects, authenticates, looks for what is to be read. For `check`.
    async fn check(&self) -> Result<()>;
}

/// What a source gets to live in.
#[derive(Clone)]
pub struct SourceContext {
    /// The world.
    pub env: Env,
    /// Job, query and source, for names that others see (consumer groups) and for messages.
    pub job: String,
    /// Name of the query.
    pub query: String,
    /// Name of the source in the job file.
    pub source: String,
    /// The columns that the query uses, with the types of the job file's schema. Sources that give rows give these.
    pub schema: SchemaRef,
    /// Whether the source's format is columnar, so that the source gives rows ([`Input::Rows`]) rather than raw records.
    pub rows: bool,
    /// The source's own log in the checkpoint, `sources/<i>/`.
    pub log: crate::checkpoint::SourceLog,
}

/// Makes one [`Source`] per query. Settings are already checked; connecting is left to the source's first use.
pub trait SourceFactory: Send + Sync + std::fmt::Debug {
    /// Makes the source of one query.
    fn open(&self, context: SourceContext) -> Result<Box<dyn Source>>;
}
