//! The outside of a case: streams, tables and a target that outlive the query.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use perennial_core::error::{Error, Result, class};
use perennial_core::offset::{Offset, OffsetRange};
use perennial_core::records::{Input, Payload, Position, RecordBlock};
use perennial_core::sink::{BatchId, Delivery, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
use perennial_core::source::{InputStream, ReadLimit, Replay, Source, SourceContext, SourceFactory};
use perennial_core::table::{StaticTable, TableContext, TableFactory};

/// A stream of units of input; a unit is text lines, perhaps none. The offset is the number of units, and a batch reads all there are.
#[derive(Debug, Clone, Default)]
pub struct Units(Arc<Mutex<Vec<Bytes>>>);

impl Units {
    /// One more unit.
    pub fn push(&self, lines: String) {
        self.0.lock().push(lines.into());
    }
}

impl SourceFactory for Units {
    fn open(&self, context: SourceContext) -> Result<Box<dyn Source>> {
        Ok(Box::new(Stream { name: context.source.into(), units: self.clone() }))
    }
}

struct Stream {
    name: Arc<str>,
    units: Units,
}

#[async_trait]
impl Source for Stream {
    fn replay(&self) -> Replay {
        Replay::Exact
    }

    async fn latest(&self, _: Option<&Offset>, _: &ReadLimit) -> Result<Option<Offset>> {
        match self.units.0.lock().len() {
            0 => Ok(None),
            units => Offset::encode(&units).map(Some),
        }
    }

    async fn read(&self, range: &OffsetRange, _: usize) -> Result<Vec<InputStream>> {
        let start: usize = range.start.as_ref().map_or(Ok(0), Offset::decode)?;
        let end: usize = range.end.decode()?;
        let units = self.units.0.lock().get(start..end).map(<[Bytes]>::to_vec);
        let units = units.ok_or_else(|| Error::bug(format!("{} has no units {start} to {end}", self.name)))?;
        let read = |(number, lines): (usize, Bytes)| {
            let position = Position::Sequence { name: self.name.clone(), first: (start + number) as u64 };
            stream::iter([Ok(Input::Records(RecordBlock { payload: Payload::Lines(lines), position }))]).boxed()
        };
        Ok(units.into_iter().enumerate().map(read).collect())
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// A bounded table of text lines.
#[derive(Debug, Clone)]
pub struct Lines(pub Bytes);

impl TableFactory for Lines {
    fn open(&self, context: TableContext) -> Result<Box<dyn StaticTable>> {
        Ok(Box::new(LinesTable { lines: self.0.clone(), context }))
    }
}

struct LinesTable {
    lines: Bytes,
    context: TableContext,
}

#[async_trait]
impl StaticTable for LinesTable {
    async fn rows(&self) -> Result<Vec<RecordBatch>> {
        let position = Position::Sequence { name: self.context.table.as_str().into(), first: 0 };
        let block = RecordBlock { payload: Payload::Lines(self.lines.clone()), position };
        Ok(vec![self.context.decoder.decode(Input::Records(block))?.rows])
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// Where the result goes.
#[derive(Debug, Clone, Default)]
pub struct Target(Arc<Mutex<Received>>);

#[derive(Debug, Default)]
struct Received {
    /// Rows per batch; those of a batch that came again replace the first ones.
    batches: BTreeMap<BatchId, Vec<RecordBatch>>,
    fail_next: bool,
}

impl Target {
    /// The next batch fails when its rows have arrived.
    pub fn fail_next(&self) {
        self.0.lock().fail_next = true;
    }

    /// The rows of a batch.
    pub fn take(&self, batch: BatchId) -> Vec<RecordBatch> {
        self.0.lock().batches.remove(&batch).unwrap_or_default()
    }
}

impl SinkFactory for Target {
    fn open(&self, _: SinkContext) -> Result<Box<dyn Sink>> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl Sink for Target {
    fn delivery(&self) -> Delivery {
        Delivery::IdempotentByBatch
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }

    async fn write(&self, batch: &SinkBatch, rows: RowStream) -> Result<Written> {
        let rows: Vec<RecordBatch> = rows.try_collect().await?;
        let written = Written { rows: rows.iter().map(|rows| rows.num_rows() as u64).sum(), ..Written::default() };
        let mut received = self.0.lock();
        if std::mem::take(&mut received.fail_next) {
            return Err(Error::new(class::CONNECTION_LOST, "the sink fails in this step"));
        }
        received.batches.insert(batch.id, rows);
        Ok(written)
    }
}
