//! A small job whose outside is in memory: a source that replays, a plan that passes rows on, a sink that counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, BinaryArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use perennial_core::decode::{Decoded, Decoder, Origin, Rejected};
use perennial_core::error::{Error, Result, class};
use perennial_core::offset::{Offset, OffsetRange};
use perennial_core::plan::{BatchInfo, BatchState, Execution, PlanInput, PlanOutcome, QueryPlan};
use perennial_core::records::{Input, Payload, Position, RecordBlock};
use perennial_core::sink::{Delivery, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
use perennial_core::source::{InputStream, ReadLimit, Replay, Source, SourceContext, SourceFactory};
use perennial_core::state::StateSpec;

/// Records `0..records`; every tenth is malformed. Each record is its own number as text.
#[derive(Debug, Clone)]
pub struct Numbers {
    /// How many there are.
    pub records: u64,
    /// How many a batch takes.
    pub per_batch: u64,
}

/// Whether record `n` of [`Numbers`] is malformed.
pub fn is_malformed(n: u64) -> bool {
    n % 10 == 3
}

#[async_trait]
impl Source for Numbers {
    fn replay(&self) -> Replay {
        Replay::Exact
    }

    async fn latest(&self, start: Option<&Offset>, limit: &ReadLimit) -> Result<Option<Offset>> {
        let start: u64 = start.map_or(Ok(0), Offset::decode)?;
        let until = limit.until.as_ref().map_or(Ok(self.records), Offset::decode)?;
        Ok(Some(Offset::encode(&(start + self.per_batch).min(until))?))
    }

    async fn newest(&self, _: Option<&Offset>, _: &ReadLimit) -> Result<Option<Offset>> {
        Ok(Some(Offset::encode(&self.records)?))
    }

    async fn read(&self, range: &OffsetRange, parallelism: usize) -> Result<Vec<InputStream>> {
        let start: u64 = range.start.as_ref().map_or(Ok(0), Offset::decode)?;
        let end: u64 = range.end.decode()?;
        let share = (end - start).div_ceil(parallelism as u64).max(1);
        let parts = (start..end).step_by(share as usize).map(|first| {
            let numbers = first..(first + share).min(end);
            let values = numbers.map(|n| if is_malformed(n) { format!("\u{0}bad {n}") } else { n.to_string() });
            let values = BinaryArray::from_iter_values(values);
            let position = Position::Sequence { name: "numbers".into(), first };
            let block = RecordBlock { payload: Payload::Values(values), position };
            stream::once(async { Ok(Input::Records(block)) }).boxed()
        });
        Ok(parts.collect())
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }
}

impl SourceFactory for Numbers {
    fn open(&self, _: SourceContext) -> Result<Box<dyn Source>> {
        Ok(Box::new(self.clone()))
    }
}

/// The schema of [`Numbers`].
pub fn numbers_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]))
}

/// Decodes [`Numbers`].
#[derive(Debug)]
pub struct NumberDecoder;

impl Decoder for NumberDecoder {
    fn schema(&self) -> SchemaRef {
        numbers_schema()
    }

    fn decode(&self, input: Input) -> Result<Decoded> {
        let Input::Records(block) = input else { return Err(Error::bug("numbers are records")) };
        let Payload::Values(values) = &block.payload else { return Err(Error::bug("numbers are values")) };
        let (mut numbers, mut records, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
        for (index, value) in values.iter().enumerate() {
            match std::str::from_utf8(value.unwrap_or_default()).ok().and_then(|text| text.parse::<i64>().ok()) {
                Some(number) => {
                    numbers.push(number);
                    records.push(index as u32);
                }
                None => rejected.push(Rejected {
                    record: index as u32,
                    class: class::MALFORMED_RECORD,
                    reason: "it is not a number".into(),
                }),
            }
        }
        let rows = RecordBatch::try_new(numbers_schema(), vec![Arc::new(Int64Array::from(numbers))])?;
        Ok(Decoded {
            rows,
            origin: Origin { block: Some(Arc::new(block)), records: Some(records) },
            rejected,
            dropped: 0,
        })
    }
}

/// `SELECT n FROM numbers`.
pub struct PassThrough {
    inputs: Vec<PlanInput>,
}

impl Default for PassThrough {
    fn default() -> Self {
        Self {
            inputs: vec![PlanInput {
                source: "numbers".into(),
                columns: vec![0],
                watermark_delay: None,
                is_static: false,
            }],
        }
    }
}

#[async_trait]
impl QueryPlan for PassThrough {
    fn inputs(&self) -> &[PlanInput] {
        &self.inputs
    }

    fn schema(&self) -> SchemaRef {
        numbers_schema()
    }

    fn state(&self) -> &[StateSpec] {
        &[]
    }

    fn deterministic(&self) -> bool {
        true
    }

    fn fingerprint(&self) -> String {
        String::new()
    }

    fn explain(&self) -> String {
        "numbers".into()
    }

    fn wants_no_data_batch(&self) -> bool {
        false
    }

    fn parallelism(&self) -> usize {
        2
    }

    fn partition_of(&self, _: usize, _: &[arrow::array::ArrayRef], _: usize) -> Result<Vec<u32>> {
        Err(Error::bug("there is no state"))
    }

    async fn execute(&self, _: BatchInfo, inputs: Vec<Vec<RowStream>>, _: BatchState) -> Result<Execution> {
        let rows = stream::select_all(inputs.into_iter().flatten()).boxed();
        Ok(Execution {
            rows,
            outcome: Box::new(|| Ok(PlanOutcome { max_event_times: vec![None], ..Default::default() })),
        })
    }
}

/// What a sink's target holds: it outlives the process.
#[derive(Debug, Default)]
pub struct Target {
    /// Rows by batch, as a database with a ledger has them: all of a batch or nothing.
    pub batches: BTreeMap<u64, Vec<i64>>,
    /// How often a batch was offered that was there already.
    pub offered_again: u64,
}

/// A sink with a ledger that fails on request.
#[derive(Debug, Clone, Default)]
pub struct LedgerSink {
    /// The target.
    pub target: Arc<Mutex<Target>>,
    /// The write (counted down from here, 0 is the next) that fails, and whether its transaction was committed all the same.
    pub fail: Arc<Mutex<Option<(u64, bool)>>>,
}

#[async_trait]
impl Sink for LedgerSink {
    fn delivery(&self) -> Delivery {
        Delivery::IdempotentByBatch
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }

    async fn write(&self, batch: &SinkBatch, rows: RowStream) -> Result<Written> {
        let rows: Vec<RecordBatch> = rows.try_collect().await?;
        let mut values: Vec<i64> =
            rows.iter().flat_map(|rows| rows.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
        values.sort_unstable();
        let fault = {
            let mut fail = self.fail.lock();
            match fail.as_mut() {
                Some((0, after)) => {
                    let after = *after;
                    *fail = None;
                    Some(after)
                }
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
        };
        let lost = || Error::new(class::CONNECTION_LOST, "the simulated sink went away");
        if fault == Some(false) {
            return Err(lost());
        }
        let written = Written { rows: values.len() as u64, bytes: 0, duplicate: false };
        let mut target = self.target.lock();
        if let Some(there) = target.batches.get(&batch.id) {
            assert_eq!(*there, values, "batch {} came again with other rows", batch.id);
            target.offered_again += 1;
            return Ok(Written { duplicate: true, ..written });
        }
        target.batches.insert(batch.id, values);
        if fault == Some(true) { Err(lost()) } else { Ok(written) }
    }
}

impl SinkFactory for LedgerSink {
    fn open(&self, _: SinkContext) -> Result<Box<dyn Sink>> {
        Ok(Box::new(self.clone()))
    }
}

/// The bytes of record `n`.
pub fn record_bytes(n: u64) -> Bytes {
    if is_malformed(n) { format!("\u{0}bad {n}").into() } else { n.to_string().into() }
}
