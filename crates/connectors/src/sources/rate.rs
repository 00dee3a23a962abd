//! Counting: Spark's sources `rate` and `rate-micro-batch`, with their offsets, so that queries over them can move.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::BinaryArray;
use async_trait::async_trait;
use chrono::{DateTime, SecondsFormat};
use futures::StreamExt;
use perennial_core::config::HumanDuration;
use perennial_core::error::{Error, Result, class};
use perennial_core::offset::{Offset, OffsetRange};
use perennial_core::records::{Input, Payload, Position, RecordBlock};
use perennial_core::source::{InputStream, Lag, ReadLimit, Replay, Source, SourceContext, SourceFactory};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::Timestamp;

/// Numbers that count up, each with a time: records `{"timestamp": …, "value": …}` (`format: json`, schema
/// `timestamp TIMESTAMP, value BIGINT`). With `rows_per_second` as Spark's source `rate`, with `rows_per_batch` as its `rate-micro-batch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateSource {
    /// So many each second, from the query's first start on. Default: 1.
    pub rows_per_second: u64,
    /// So many in each batch instead, whatever the clock says. Default: none.
    pub rows_per_batch: Option<u64>,
    /// With `rows_per_batch`: the time of the first batch's records. Default: 1970-01-01.
    pub start: Option<Timestamp>,
    /// With `rows_per_batch`: how far the time goes on from batch to batch. Default: 1 second.
    pub advance: HumanDuration,
}

impl Default for RateSource {
    fn default() -> Self {
        let advance = HumanDuration(Duration::from_secs(1));
        Self { rows_per_second: 1, rows_per_batch: None, start: None, advance }
    }
}

impl SourceFactory for RateSource {
    fn open(&self, context: SourceContext) -> Result<Box<dyn Source>> {
        if self.rows_per_second == 0 || self.rows_per_batch == Some(0) {
            return Err(Error::new(class::CONFIG_INVALID, "a rate of 0 gives no records: give at least 1"));
        }
        Ok(Box::new(Rate { settings: self.clone(), context, began: OnceCell::new() }))
    }
}

const LOG_FILE: &str = "0";
const LOG_VERSION: &str = "v1\n";
/// Records of a block.
const BLOCK_RECORDS: u64 = 16_384;

/// The offset of a source that counts by batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct BatchOffset {
    /// The next number.
    offset: u64,
    /// The time of the next batch's records, in milliseconds since the epoch.
    timestamp: i64,
}

struct Rate {
    settings: RateSource,
    context: SourceContext,
    /// When the query first began, in milliseconds since the epoch.
    began: OnceCell<i64>,
}

impl Rate {
    /// The durable beginning: that of the log, or now.
    async fn began_ms(&self) -> Result<i64> {
        let began = self.began.get_or_try_init(|| async {
            if let Some(content) = self.context.log.read(LOG_FILE).await? {
                let text = std::str::from_utf8(&content).unwrap_or_default();
                return text.strip_prefix(LOG_VERSION).and_then(|ms| ms.trim().parse().ok()).ok_or_else(|| {
                    Error::new(
                        class::CHECKPOINT_MISMATCH,
                        format!("the log of source {} is not of a rate source", self.context.source),
                    )
                });
            }
            let now = self.context.env.now_ms();
            self.context.log.write(LOG_FILE, format!("{LOG_VERSION}{now}").into()).await?;
            Ok(now)
        });
        began.await.copied()
    }

    /// Whole seconds since the beginning.
    async fn seconds(&self) -> Result<u64> {
        let elapsed = self.context.env.now_ms() - self.began_ms().await?;
        Ok(u64::try_from(elapsed / 1000).unwrap_or(0))
    }

    fn batch(&self, offset: Option<&Offset>) -> Result<BatchOffset> {
        offset
            .map_or(Ok(BatchOffset { offset: 0, timestamp: self.settings.start.map_or(0, |at| at.0) }), Offset::decode)
    }

    /// Where the batch behind an offset ends.
    fn next_batch(&self, start: Option<&Offset>, rows: u64) -> Result<Offset> {
        let BatchOffset { offset, timestamp } = self.batch(start)?;
        let advance = i64::try_from(self.settings.advance.0.as_millis()).unwrap_or(i64::MAX);
        Offset::encode(&BatchOffset { offset: offset + rows, timestamp: timestamp.saturating_add(advance) })
    }

    /// The numbers of a range, and the time of each.
    async fn records(&self, range: &OffsetRange) -> Result<(u64, u64, impl Fn(u64) -> i64 + Send + Clone + 'static)> {
        let (first, end, from_ms, span_ms) = match self.settings.rows_per_batch {
            Some(_) => {
                let (start, end) = (self.batch(range.start.as_ref())?, self.batch(Some(&range.end))?);
                (start.offset, end.offset, start.timestamp, 0)
            }
            None => {
                let start: u64 = range.start.as_ref().map_or(Ok(0), Offset::decode)?;
                let end: u64 = range.end.decode()?;
                let rate = self.settings.rows_per_second;
                let began = self.began_ms().await?;
                (start * rate, end * rate, began + 1000 * start as i64, 1000 * end.saturating_sub(start))
            }
        };
        let count = end.saturating_sub(first).max(1);
        // Spread evenly, rounded half up.
        let at = move |number: u64| {
            let past =
                (u128::from(number - first) * u128::from(span_ms) * 2 + u128::from(count)) / (2 * u128::from(count));
            from_ms + past as i64
        };
        Ok((first, end, at))
    }
}

#[async_trait]
impl Source for Rate {
    fn replay(&self) -> Replay {
        Replay::Exact
    }

    async fn latest(&self, start: Option<&Offset>, limit: &ReadLimit) -> Result<Option<Offset>> {
        if let Some(rows) = self.settings.rows_per_batch {
            return match &limit.until {
                Some(until) if self.batch(start)?.offset >= self.batch(Some(until))?.offset => Ok(start.cloned()),
                _ => self.next_batch(start, rows).map(Some),
            };
        }
        let from: u64 = start.map_or(Ok(0), Offset::decode)?;
        let until = limit.until.as_ref().map_or(Ok(u64::MAX), Offset::decode)?;
        let most = limit.max_records.map_or(u64::MAX, |records| (records / self.settings.rows_per_second).max(1));
        let end = self.seconds().await?.min(until).min(from.saturating_add(most));
        if end > from { Offset::encode(&end).map(Some) } else { Ok(start.cloned()) }
    }

    async fn read(&self, range: &OffsetRange, parallelism: usize) -> Result<Vec<InputStream>> {
        let (first, end, at) = self.records(range).await?;
        let name: Arc<str> = self.context.source.as_str().into();
        let blocks = end.saturating_sub(first).div_ceil(BLOCK_RECORDS);
        let share = blocks.div_ceil(parallelism.max(1) as u64).max(1) * BLOCK_RECORDS;
        let mut streams = Vec::new();
        let mut from = first;
        while from < end {
            let to = from.saturating_add(share).min(end);
            let (name, at) = (name.clone(), at.clone());
            let firsts = (from..to).step_by(BLOCK_RECORDS as usize);
            let blocks = firsts.map(move |first| Ok(block(&name, first, (first + BLOCK_RECORDS).min(to), &at)));
            streams.push(futures::stream::iter(blocks).boxed());
            from = to;
        }
        Ok(streams)
    }

    async fn lag(&self, end: Option<&Offset>) -> Result<Option<Lag>> {
        if self.settings.rows_per_batch.is_some() {
            return Ok(None);
        }
        let read: u64 = end.map_or(Ok(0), Offset::decode)?;
        let waiting = self.seconds().await?.saturating_sub(read) * self.settings.rows_per_second;
        Ok(Some(Lag { records: Some(waiting), partitions: Vec::new() }))
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// Records `first..end`.
fn block(name: &Arc<str>, first: u64, end: u64, at: &impl Fn(u64) -> i64) -> Input {
    let record = |number: u64| {
        let time = DateTime::from_timestamp_millis(at(number)).unwrap_or_default();
        let time = time.to_rfc3339_opts(SecondsFormat::Millis, true);
        format!("{{\"timestamp\":\"{time}\",\"value\":{number}}}")
    };
    let values = BinaryArray::from_iter_values((first..end).map(record));
    Input::Records(RecordBlock {
        payload: Payload::Values(values),
        position: Position::Sequence { name: name.clone(), first },
    })
}

#[cfg(test)]
mod tests {
    use arrow::array::Array;

    use super::*;
    use crate::sources::testing::{World, collect};

    async fn texts(source: &dyn Source, start: Option<&Offset>, end: &Offset) -> Vec<String> {
        let mut texts = Vec::new();
        for input in collect(source, start, end, 1).await {
            let Input::Records(RecordBlock { payload: Payload::Values(values), .. }) = input else { panic!("rows") };
            texts.extend((0..values.len()).map(|at| String::from_utf8(values.value(at).to_vec()).unwrap()));
        }
        texts
    }

    #[tokio::test]
    async fn seconds_give_their_numbers_also_after_a_restart() {
        let world = World::new();
        let settings = RateSource { rows_per_second: 2, ..Default::default() };
        let source = settings.open(world.context()).unwrap();
        assert_eq!(source.latest(None, &ReadLimit::default()).await.unwrap(), None);
        world.clock.advance_ms(2_500);
        let two = source.latest(None, &ReadLimit::default()).await.unwrap().unwrap();
        assert_eq!(two.as_str(), "2");
        let all = texts(source.as_ref(), None, &two).await;
        assert_eq!(all[0], r#"{"timestamp":"2026-01-01T00:00:00.000Z","value":0}"#);
        assert_eq!((all.len(), all[3].as_str()), (4, r#"{"timestamp":"2026-01-01T00:00:01.500Z","value":3}"#));
        world.clock.advance_ms(1_000);
        let again = settings.open(world.context()).unwrap();
        let three = again.latest(Some(&two), &ReadLimit::default()).await.unwrap().unwrap();
        assert_eq!(texts(again.as_ref(), Some(&two), &three).await.len(), 2);
    }

    #[tokio::test]
    async fn batches_give_their_numbers_whatever_the_clock_says() {
        let world = World::new();
        let settings: RateSource =
            serde_json::from_str(r#"{"rows_per_batch": 4, "start": 1000, "advance": "500 ms"}"#).unwrap();
        let source = settings.open(world.context()).unwrap();
        let start = Offset::from_json(r#"{"offset":12,"timestamp":2500}"#);
        let end = source.latest(Some(&start), &ReadLimit::default()).await.unwrap().unwrap();
        assert_eq!(end.as_str(), r#"{"offset":16,"timestamp":3000}"#);
        let all = texts(source.as_ref(), Some(&start), &end).await;
        assert_eq!(all[3], r#"{"timestamp":"1970-01-01T00:00:02.500Z","value":15}"#);
        let until = ReadLimit { until: Some(end.clone()), ..Default::default() };
        assert_eq!(source.latest(Some(&end), &until).await.unwrap(), Some(end));
    }
}
