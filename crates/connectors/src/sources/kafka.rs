//! Apache Kafka: exact offset ranges of topics, read without a consumer group's rebalancing.
//!
//! Partitions are assigned explicitly; what is read is decided by the offset log alone. After a batch its end is also committed to a
//! consumer group, only so that ordinary tools see the lag.

mod client;
mod offsets;
mod producer;
mod reader;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use perennial_core::error::{Error, ErrorKind, Result, ResultExt, class};
use perennial_core::offset::{Offset, OffsetRange};
use perennial_core::source::{InputStream, Lag, ReadLimit, Replay, Source, SourceContext, SourceFactory};
use tokio::sync::OnceCell;

use self::client::{Bounds, Client};
use self::offsets::Offsets;
use self::reader::{PartitionRange, Reader, Task};
use super::stream::read_ahead;

pub use self::producer::KafkaTarget;
pub use self::settings::{Isolation, KafkaSource, StartingOffsets};
pub use crate::kafka::{Properties, classify};

/// Name of the source's own log: where the query first began, as Spark keeps it.
const LOG_FILE: &str = "0";
/// Spark 2.1 could only read a log that begins with a zero byte, and so it is kept to this day.
const LOG_HEAD: &[u8] = b"\0v1\n";

impl SourceFactory for KafkaSource {
    fn open(&self, context: SourceContext) -> Result<Box<dyn Source>> {
        let group = match &self.group_id {
            Some(group) => group.clone(),
            None => format!("perennial-{}-{}-{}", context.job, context.query, context.source),
        };
        let link = Link {
            topics: self.subscription()?,
            settings: self.clone(),
            group,
            client: Mutex::new(None),
            reader: Mutex::new(None),
            committing: AtomicBool::new(false),
        };
        link.settings.client_config(&link.group)?;
        Ok(Box::new(Kafka { link: Arc::new(link), context, first: OnceCell::new() }))
    }
}

struct Kafka {
    link: Arc<Link>,
    context: SourceContext,
    /// Where the query first began.
    first: OnceCell<Offsets>,
}

impl Kafka {
    /// Runs calls of the client library, all of which block, on a thread that may.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Link>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let link = self.link.clone();
        match tokio::task::spawn_blocking(move || work(&link)).await {
            Ok(result) => result,
            Err(panic) => Err(Error::bug(format!("a call of the Kafka client broke down: {panic}"))),
        }
    }

    /// Where the query first began: from the log, or from the settings and then logged, because `latest` is another place tomorrow.
    async fn first(&self) -> Result<&Offsets> {
        self.first
            .get_or_try_init(|| async {
                if let Some(content) = self.context.log.read(LOG_FILE).await? {
                    return parse_log(&content).at(|| format!("the log of source {}", self.context.source));
                }
                let first = self.blocking(|link| link.resolve_start()).await?;
                let mut content = LOG_HEAD.to_vec();
                content.extend_from_slice(first.encode()?.as_str().as_bytes());
                self.context.log.write(LOG_FILE, content.into()).await?;
                Ok(first)
            })
            .await
    }

    async fn start(&self, offset: Option<&Offset>) -> Result<Offsets> {
        match offset {
            Some(offset) => offset.decode(),
            None => Ok(self.first().await?.clone()),
        }
    }
}

fn parse_log(content: &Bytes) -> Result<Offsets> {
    let json = content.strip_prefix(LOG_HEAD).and_then(|json| std::str::from_utf8(json).ok()).ok_or_else(|| {
        Error::new(
            class::CHECKPOINT_MISMATCH,
            "it is not of a kafka source: it does not begin with a zero byte and `v1`",
        )
    })?;
    Offset::from_json(json.trim_end()).decode()
}

#[async_trait]
impl Source for Kafka {
    fn replay(&self) -> Replay {
        Replay::Exact
    }

    async fn latest(&self, start: Option<&Offset>, limit: &ReadLimit) -> Result<Option<Offset>> {
        let from = self.start(start).await?;
        let until: Option<Offsets> = limit.until.as_ref().map(Offset::decode).transpose()?;
        let own = self.link.settings.max_records_per_batch.unwrap_or(u64::MAX);
        let most = own.min(limit.max_records.unwrap_or(u64::MAX));
        let known = from.clone();
        let ready = self.blocking(move |link| link.ready(&known)).await?;
        let end = offsets::plan_end(&from, &ready, until.as_ref(), most);
        Ok(match start {
            Some(start) if end == from => Some(start.clone()),
            None if end == from => None,
            _ => Some(end.encode()?),
        })
    }

    async fn newest(&self, start: Option<&Offset>, _: &ReadLimit) -> Result<Option<Offset>> {
        let from = self.start(start).await?;
        let known = from.clone();
        let ready = self.blocking(move |link| link.ready(&known)).await?;
        let end = offsets::plan_end(&from, &ready, None, u64::MAX);
        Ok(match start {
            None if end == from => None,
            _ => Some(end.encode()?),
        })
    }

    async fn read(&self, range: &OffsetRange, parallelism: usize) -> Result<Vec<InputStream>> {
        let (from, to) = (self.start(range.start.as_ref()).await?, range.end.decode::<Offsets>()?);
        let shares = self
            .blocking(move |link| {
                let ranges = link.ranges(&from, &to)?;
                if ranges.is_empty() {
                    return Ok(Vec::new());
                }
                let (reader, tasks) = link.prepare(&ranges)?;
                Ok(reader::share_out(tasks, parallelism.max(1))
                    .into_iter()
                    .map(|share| (link.clone(), reader.clone(), share))
                    .collect())
            })
            .await?;
        Ok(shares
            .into_iter()
            .map(|(link, reader, share)| {
                read_ahead(move |output| {
                    let result = reader.read(share, &link, output);
                    if result.is_err() {
                        link.discard_reader(&reader);
                    }
                    result
                })
            })
            .collect())
    }

    async fn acknowledge(&self, end: &Offset) -> Result<()> {
        if !self.link.settings.commit_to_group {
            return Ok(());
        }
        let end: Offsets = end.decode()?;
        // A commit that still hangs from the last batch (the group's coordinator is away) is not joined by another one.
        if self.link.committing.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let link = self.link.clone();
        let commit = tokio::task::spawn_blocking(move || {
            if let Err(error) = link.client().and_then(|client| client.commit(&end)) {
                tracing::warn!(
                    group = link.group,
                    %error,
                    "the offsets of the batch could not be committed to the consumer group; only tools that show the group's lag miss them"
                );
            }
            link.committing.store(false, Ordering::SeqCst);
        });
        // The batch is committed in the checkpoint; its commit to the group only gets the time that it usually takes.
        let _ = tokio::time::timeout(Duration::from_secs(2), commit).await;
        Ok(())
    }

    async fn lag(&self, end: Option<&Offset>) -> Result<Option<Lag>> {
        let end = self.start(end).await?;
        let bounds =
            self.blocking(|link| link.with_client(|client| client.bounds(&client.topics(&link.topics)?))).await?;
        let partitions: Vec<_> = bounds
            .iter()
            .map(|((topic, partition), Bounds { low, high })| {
                let at = end.get(topic, *partition).unwrap_or(0).max(*low);
                (format!("{topic}-{partition}"), (high - at).max(0) as u64)
            })
            .collect();
        Ok(Some(Lag { records: Some(partitions.iter().map(|(_, waiting)| waiting).sum()), partitions }))
    }

    async fn check(&self) -> Result<()> {
        self.blocking(|link| link.resolve_start()).await.map(|_| ())
    }
}

/// The connection to Kafka; all its methods block.
struct Link {
    settings: KafkaSource,
    topics: client::Subscription,
    group: String,
    client: Mutex<Option<Arc<Client>>>,
    reader: Mutex<Option<Arc<Reader>>>,
    committing: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    fn client(&self) -> Result<Arc<Client>> {
        let mut client = locked(&self.client);
        match &*client {
            Some(client) => Ok(client.clone()),
            None => {
                let config = self.settings.client_config(&self.group)?;
                Ok(client.insert(Arc::new(Client::new(&config, &self.settings)?)).clone())
            }
        }
    }

    /// Runs a request. A client whose connection failed is thrown away: the next attempt asks for names and connects afresh, and it
    /// learns at once when that fails, too.
    fn with_client<T>(&self, request: impl FnOnce(&Client) -> Result<T>) -> Result<T> {
        let client = self.client()?;
        let result = request(&client);
        if let Err(error) = &result
            && matches!(error.kind(), ErrorKind::Transient | ErrorKind::Config)
        {
            locked(&self.client).take();
        }
        result
    }

    /// A reader whose queues are at the starts of the ranges, and what it has to read.
    fn prepare(&self, ranges: &[PartitionRange]) -> Result<(Arc<Reader>, Vec<Task>)> {
        let mut current = locked(&self.reader);
        if let Some(reader) = &*current {
            match reader.prepare(ranges) {
                Ok(Some(tasks)) => return Ok((reader.clone(), tasks)),
                Ok(None) => {}
                Err(error) => {
                    current.take();
                    return Err(error);
                }
            }
        }
        let config = self.settings.reader_config(&self.group, ranges.len())?;
        let reader = Arc::new(Reader::new(&config, &self.settings)?);
        let tasks = reader.prepare(ranges)?.ok_or_else(|| Error::bug("a new reader is already in use"))?;
        *current = Some(reader.clone());
        Ok((reader, tasks))
    }

    fn discard_reader(&self, reader: &Arc<Reader>) {
        let mut current = locked(&self.reader);
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, reader)) {
            current.take();
        }
    }

    /// The offsets at which the settings let a new query begin.
    fn resolve_start(&self) -> Result<Offsets> {
        self.with_client(|client| {
            let partitions = client.topics(&self.topics)?;
            client.resolve(&self.settings.starting_offsets, &partitions)
        })
    }

    /// What there is to read behind `from`: per partition from where and to where. Lost records are an error or a warning, as set.
    fn ready(&self, from: &Offsets) -> Result<BTreeMap<(String, i32), (i64, i64)>> {
        let bounds = self.with_client(|client| {
            let partitions = match client.topics(&self.topics) {
                // A topic that has been read before and is gone now is not misspelt: it was deleted.
                Err(error) if error.class() == class::TARGET_MISSING && !from.is_empty() => {
                    client.topics_left(&self.topics)?
                }
                other => other?,
            };
            client.bounds(&partitions)
        })?;
        for (topic, partition, at) in from.iter() {
            if !bounds.contains_key(&(topic.to_owned(), partition)) {
                self.lost(&format!(
                    "partition {partition} of topic {topic}, which the query has read up to offset {at}, is gone: was the topic \
                     deleted?"
                ))?;
            }
        }
        let mut ready = BTreeMap::new();
        for ((topic, partition), Bounds { low, high }) in bounds {
            let start = self.check_start(&topic, partition, from.get(&topic, partition), Bounds { low, high })?;
            ready.insert((topic, partition), (start, high));
        }
        Ok(ready)
    }

    /// The first offset that can be read, where `from` (`None` for a partition that the query does not know yet) should be the first.
    fn check_start(&self, topic: &str, partition: i32, from: Option<i64>, bounds: Bounds) -> Result<i64> {
        let Bounds { low, high } = bounds;
        let from = from.unwrap_or(0);
        if from > high {
            self.lost(&format!(
                "partition {partition} of topic {topic} ends at offset {high}, but the query has read up to {from}: was the topic \
                 deleted and made again?"
            ))?;
            return Ok(low);
        }
        if from < low {
            self.lost(&format!(
                "partition {partition} of topic {topic} begins at offset {low} now, and the query has read up to {from}: the {} \
                 records between are gone",
                low - from
            ))?;
            return Ok(low);
        }
        Ok(from)
    }

    /// The ranges to read for a batch, as far as they still exist.
    fn ranges(&self, from: &Offsets, to: &Offsets) -> Result<Vec<PartitionRange>> {
        let changed: Vec<_> = to
            .iter()
            .filter_map(|(topic, partition, end)| {
                let start = from.get(topic, partition);
                (start != Some(end) && (start.is_some() || end > 0)).then_some((topic, partition, start, end))
            })
            .collect();
        if changed.is_empty() {
            return Ok(Vec::new());
        }
        let topics: BTreeSet<_> = changed.iter().map(|(topic, ..)| (*topic).to_owned()).collect();
        let bounds = self.with_client(|client| {
            let existing = client.topics_left(&client::Subscription::Names(topics.into_iter().collect()))?;
            client.bounds(&existing)
        })?;
        let mut ranges = Vec::new();
        for (topic, partition, start, end) in changed {
            let Some(bounds) = bounds.get(&(topic.to_owned(), partition)) else {
                self.lost(&format!(
                    "partition {partition} of topic {topic}, of which the batch reads offsets {} to {end}, is gone: was the topic \
                     deleted?",
                    start.unwrap_or(0)
                ))?;
                continue;
            };
            let start = match start {
                // A range that ends before it starts was planned over a topic that was made again: all of it up to the end is new.
                Some(start) if start > end => bounds.low,
                start if start.unwrap_or(0) >= bounds.low => start.unwrap_or(0),
                start => self.check_start(topic, partition, start, *bounds)?,
            };
            let mut end = end;
            if end > bounds.high {
                self.lost(&format!(
                    "partition {partition} of topic {topic} ends at offset {} now, but the batch reads up to {end}: was the topic \
                     deleted and made again?",
                    bounds.high
                ))?;
                end = bounds.high;
            }
            if start < end {
                ranges.push(PartitionRange { topic: topic.into(), partition, start, end });
            }
        }
        Ok(ranges)
    }

    /// Records that the query should have read are gone: an error, or a warning where the job goes on with what is left.
    fn lost(&self, what: &str) -> Result<()> {
        if self.settings.fail_on_data_loss {
            return Err(Error::new(
                class::DATA_LOSS,
                format!(
                    "{what} (brokers {}); set fail_on_data_loss: false to go on with what is left",
                    self.settings.brokers
                ),
            ));
        }
        tracing::warn!(brokers = self.settings.brokers, "records are lost: {what}; going on with what is left");
        Ok(())
    }

    /// A partition's first offset is no longer where it was when the batch began. Where to go on.
    fn lost_while_reading(&self, topic: &str, partition: i32, position: i64) -> Result<i64> {
        let bounds = self.with_client(|client| client.bounds(&[(topic.to_owned(), vec![partition])].into()))?;
        match bounds.get(&(topic.to_owned(), partition)) {
            Some(bounds) => self.check_start(topic, partition, Some(position), *bounds),
            None => Err(Error::bug(format!("no answer about partition {partition} of topic {topic}"))),
        }
    }

    /// Refuses that a partition ended before `end`. The reader found no more records, which is fine where the rest are gaps.
    fn check_end(&self, topic: &str, partition: i32, end: i64) -> Result<()> {
        let bounds = self.with_client(|client| client.bounds(&[(topic.to_owned(), vec![partition])].into()))?;
        match bounds.get(&(topic.to_owned(), partition)) {
            Some(bounds) if bounds.high < end => self.lost(&format!(
                "partition {partition} of topic {topic} ends at offset {} now, but the batch reads up to {end}",
                bounds.high
            )),
            _ => Ok(()),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Closing a client waits for its threads: not on a thread that runs the job.
        let (client, reader) = (locked(&self.client).take(), locked(&self.reader).take());
        if client.is_some() || reader.is_some() {
            std::thread::spawn(move || drop((client, reader)));
        }
    }
}

#[cfg(test)]
mod tests;
