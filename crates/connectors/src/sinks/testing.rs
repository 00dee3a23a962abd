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

pub(crate) fn context(schema: SchemaRef, output_mode: OutputMode) -> SinkContext {
    let env = Env {
        clock: Arc::new(StoppedClock),
        entropy: Arc::new(Zeros),
        storage: Arc::new(InMemory::new()),
        crash: Default::default(),
    };
    let (job, query, query_id) = ("greenhouse".into(), "per_minute".into(), "0123456789abcdef".into());
    SinkContext { env, job, query, query_id, schema, output_mode }
}

pub(crate) fn batch(id: u64) -> SinkBatch {
    SinkBatch { id, epoch: 1, timestamp_ms: 0, again: false }
}

pub(super) fn rows_of<I: IntoIterator<Item = (&'static str, ArrayRef)>>(columns: I) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

pub(crate) fn stream_of(batches: Vec<RecordBatch>) -> RowStream {
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

/// One column of each kind, with a NULL in the last row.
pub(crate) fn all_kinds() -> RecordBatch {
    use arrow::array::*;
    use arrow::datatypes::{DataType, Field, Int32Type};
    let decimal = Decimal128Array::from(vec![Some(-123_456_789_012_345_678_901_234), Some(5), None]);
    let nested = StructArray::from(vec![
        (
            Arc::new(Field::new("n", DataType::Int64, true)),
            Arc::new(Int64Array::from(vec![Some(1), None, None])) as ArrayRef,
        ),
        (
            Arc::new(Field::new("s", DataType::Utf8, true)),
            Arc::new(StringArray::from(vec!["a \"quoted\" text", "x", "y"])) as ArrayRef,
        ),
    ]);
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), Some(vec![]), None]);
    rows_of([
        ("id", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef),
        ("b", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))),
        ("i8", Arc::new(Int8Array::from(vec![Some(-128), Some(127), None]))),
        ("i16", Arc::new(Int16Array::from(vec![Some(i16::MIN), Some(7), None]))),
        ("i32", Arc::new(Int32Array::from(vec![Some(i32::MAX), Some(-7), None]))),
        ("i64", Arc::new(Int64Array::from(vec![Some(i64::MIN), Some(0), None]))),
        ("f32", Arc::new(Float32Array::from(vec![Some(1.5), Some(-0.25), None]))),
        ("f64", Arc::new(Float64Array::from(vec![Some(1e300), Some(0.1), None]))),
        ("d", Arc::new(decimal.with_precision_and_scale(30, 6).unwrap())),
        (
            "small",
            Arc::new(Decimal128Array::from(vec![Some(1230), Some(-5), None]).with_precision_and_scale(10, 2).unwrap()),
        ),
        ("s", Arc::new(StringViewArray::from(vec![Some("it's \"ünï\" \\ , = text"), Some(""), None]))),
        ("bin", Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), Some(b""), None]))),
        ("day", Arc::new(Date32Array::from(vec![Some(20_778), Some(-1), None]))),
        (
            "at",
            Arc::new(
                TimestampMicrosecondArray::from(vec![Some(1_795_254_263_120_001), Some(-1), None]).with_timezone("UTC"),
            ),
        ),
        ("local", Arc::new(TimestampNanosecondArray::from(vec![Some(1_795_254_263_120_001_999), Some(0), None]))),
        ("time", Arc::new(Time64MicrosecondArray::from(vec![Some(35_063_000_001), Some(0), None]))),
        ("nested", Arc::new(nested)),
        ("list", Arc::new(list)),
    ])
}

/// `id` from `from` on, and a value made from it.
pub(super) fn numbered(from: i64, count: usize) -> RecordBatch {
    use arrow::array::{Float64Array, Int64Array};
    let ids: Vec<i64> = (from..from + count as i64).collect();
    let values: Vec<f64> = ids.iter().map(|id| *id as f64 / 2.0).collect();
    rows_of([
        ("id", Arc::new(Int64Array::from(ids)) as ArrayRef),
        ("value", Arc::new(Float64Array::from(values)) as ArrayRef),
    ])
}

/// An address from the environment of `make test`.
pub(crate) fn server(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run make test, or eval \"$(scripts/services env)\""))
}
