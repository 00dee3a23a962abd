//! What the simulated sources have: records that are never late, some of them malformed.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use perennial_core::decode::{Decoded, Decoder, Origin, Rejected};
use perennial_core::error::{Error, Result, class};
use perennial_core::offset::{Offset, OffsetRange};
use perennial_core::records::{Input, Payload, Position, RecordBlock};
use perennial_core::source::{InputStream, ReadLimit, Replay, Source, SourceContext, SourceFactory};

use super::life::Life;
use crate::world::{START_MICROS, SimEntropy};

/// How far records are out of order, at most.
const DISORDER_MICROS: u64 = 3_000_000;

/// The delay of the watermark: more than the disorder, so that what is late does not depend on where batches end.
pub const DELAY_MICROS: i64 = 4_000_000;

/// A record that can be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub id: i64,
    pub key: String,
    pub at: i64,
    pub value: i64,
}

/// All that a source will ever have.
#[derive(Debug)]
pub struct Records {
    texts: Vec<String>,
    /// What can be decoded of them.
    pub rows: Vec<Row>,
}

impl Records {
    /// So many records. The last one is an hour after all others: it closes their windows.
    pub fn new(count: u64, random: &SimEntropy) -> Self {
        let (mut texts, mut rows) = (Vec::new(), Vec::new());
        for id in 0..count {
            let last = id + 1 == count;
            if random.once_in(12) && !last {
                texts.push(format!("malformed {id}"));
                continue;
            }
            let offset = id * 700_000 + random.below(DISORDER_MICROS) + if last { 3_600_000_000 } else { 0 };
            let key = if last { "last".to_owned() } else { format!("k{}", random.below(4)) };
            let row = Row { id: id as i64, key, at: START_MICROS + offset as i64, value: random.below(12) as i64 };
            texts.push(format!("{},{},{},{}", row.id, row.key, row.at, row.value));
            rows.push(row);
        }
        Self { texts, rows }
    }

    pub fn len(&self) -> u64 {
        self.texts.len() as u64
    }

    /// The records that cannot be decoded.
    pub fn malformed(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(String::as_str).filter(|text| parse(text).is_none())
    }
}

fn parse(text: &str) -> Option<Row> {
    let mut parts = text.split(',');
    let id = parts.next()?.parse().ok()?;
    let key = parts.next()?.to_owned();
    Some(Row { id, key, at: parts.next()?.parse().ok()?, value: parts.next()?.parse().ok()? })
}

/// The columns of every source.
pub fn schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("key", DataType::Utf8, true),
        Field::new("at", time, true),
        Field::new("v", DataType::Int64, true),
    ]))
}

/// Decodes the columns that a query uses.
#[derive(Debug)]
pub struct TextDecoder {
    columns: Vec<usize>,
    schema: SchemaRef,
}

impl TextDecoder {
    pub fn new(columns: &[usize]) -> Result<Self> {
        Ok(Self { columns: columns.to_vec(), schema: Arc::new(schema().project(columns)?) })
    }
}

impl Decoder for TextDecoder {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn decode(&self, input: Input) -> Result<Decoded> {
        let Input::Records(block) = input else { return Err(Error::bug("simulated sources give records")) };
        let Payload::Values(values) = &block.payload else { return Err(Error::bug("the records are values")) };
        let (mut rows, mut records, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
        for (record, value) in (0_u32..).zip(values.iter()) {
            match std::str::from_utf8(value.unwrap_or_default()).ok().and_then(parse) {
                Some(row) => {
                    rows.push(row);
                    records.push(record);
                }
                None => rejected.push(Rejected {
                    record,
                    class: class::MALFORMED_RECORD,
                    reason: "it has not four fields".into(),
                }),
            }
        }
        let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.at)).with_timezone("UTC");
        let all: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.id))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.key))),
            Arc::new(times),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.value))),
        ];
        let rows = RecordBatch::try_new(schema(), all)?.project(&self.columns)?;
        let origin = Origin { block: Some(Arc::new(block)), records: Some(records) };
        Ok(Decoded { rows, origin, rejected, dropped: 0 })
    }
}

/// A source as one life of the process sees it.
#[derive(Debug, Clone)]
pub struct SimSource {
    pub name: String,
    pub records: Arc<Records>,
    /// So many of them are there.
    pub available: u64,
    /// At most so many are in a batch.
    pub per_batch: u64,
    pub life: Arc<Life>,
}

#[async_trait]
impl Source for SimSource {
    fn replay(&self) -> Replay {
        Replay::Exact
    }

    async fn latest(&self, start: Option<&Offset>, limit: &ReadLimit) -> Result<Option<Offset>> {
        self.life.call("latest", &self.name).await?;
        let start: u64 = start.map_or(Ok(0), Offset::decode)?;
        let until: u64 = limit.until.as_ref().map_or(Ok(self.available), Offset::decode)?;
        // Another life would end the same batch elsewhere: only the log says where it ended.
        let size = 1 + self.life.random.below(self.per_batch);
        Ok(Some(Offset::encode(&(start + size).min(until).max(start))?))
    }

    async fn newest(&self, start: Option<&Offset>, _: &ReadLimit) -> Result<Option<Offset>> {
        self.life.call("newest", &self.name).await?;
        let start: u64 = start.map_or(Ok(0), Offset::decode)?;
        Ok(Some(Offset::encode(&self.available.max(start))?))
    }

    async fn read(&self, range: &OffsetRange, parallelism: usize) -> Result<Vec<InputStream>> {
        self.life.call("read", &format!("{} {:?}..{}", self.name, range.start, range.end)).await?;
        let start: u64 = range.start.as_ref().map_or(Ok(0), Offset::decode)?;
        let end: u64 = range.end.decode()?;
        if start > end || end > self.records.len() {
            return Err(Error::bug(format!("{} has no records {start}..{end}", self.name)));
        }
        let share = (end - start).div_ceil(parallelism as u64).max(1);
        let parts = (start..end).step_by(share as usize).map(|first| {
            let range = first as usize..(first + share).min(end) as usize;
            let values = BinaryArray::from_iter_values(&self.records.texts[range]);
            let position = Position::Sequence { name: self.name.as_str().into(), first };
            let (life, name) = (self.life.clone(), self.name.clone());
            stream::once(async move {
                life.call("block", &name).await?;
                Ok(Input::Records(RecordBlock { payload: Payload::Values(values), position }))
            })
            .boxed()
        });
        Ok(parts.collect())
    }

    async fn acknowledge(&self, end: &Offset) -> Result<()> {
        self.life.call("acknowledge", end.as_str()).await
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }
}

impl SourceFactory for SimSource {
    fn open(&self, _: SourceContext) -> Result<Box<dyn Source>> {
        Ok(Box::new(self.clone()))
    }
}
