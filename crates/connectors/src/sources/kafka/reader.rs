//! Reading offset ranges.
//!
//! One consumer has all partitions assigned, each with a queue of its own, and keeps fetching ahead between batches. A batch takes from
//! each queue the records of its range and leaves the rest for the next.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::BinaryBuilder;
use perennial_core::error::{Error, Result};
use perennial_core::records::{Input, Payload, Position, RecordBlock};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedMessage;
use rdkafka::{ClientConfig, Message, Offset as At, TopicPartitionList};

use super::settings::KafkaSource;
use super::{Link, locked};
use crate::kafka::{Events, classify, config_error};
use crate::sources::stream::Output;

/// A block is sent when it has this many bytes of values and keys, or records.
const BLOCK_BYTES: usize = 2 << 20;
const BLOCK_RECORDS: usize = 1 << 17;
/// How long a thread waits for records when none of its partitions has any.
const IDLE_WAIT: Duration = Duration::from_millis(2);
/// How long after the end of a partition was reported its missing records may still be on their way.
const EOF_GRACE: Duration = Duration::from_millis(20);

/// What to read of one partition: offsets `start..end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PartitionRange {
    pub topic: Arc<str>,
    pub partition: i32,
    pub start: i64,
    pub end: i64,
}

type Key = (Arc<str>, i32);

/// A partition's queue, and where in the partition it is.
struct Partition {
    queue: PartitionQueue<Events>,
    /// The next record of the queue has this offset, or a higher one where there are gaps.
    position: i64,
    /// A record that was taken from the queue and belongs to a later batch.
    held: Option<OwnedMessage>,
}

/// The consumer that reads.
pub(super) struct Reader {
    consumer: Arc<BaseConsumer<Events>>,
    brokers: String,
    timeout: Duration,
    /// All assigned partitions; `None` for one that a batch is reading.
    partitions: Mutex<HashMap<Key, Option<Partition>>>,
    /// A thread went away with partitions: the queues are not where they were thought to be.
    broken: AtomicBool,
}

impl Reader {
    pub(super) fn new(config: &ClientConfig, settings: &KafkaSource) -> Result<Self> {
        let consumer = config.create_with_context(Events::default()).map_err(|error| config_error(&error))?;
        Ok(Self {
            consumer: Arc::new(consumer),
            brokers: settings.brokers.clone(),
            timeout: settings.timeout.0,
            partitions: Mutex::default(),
            broken: AtomicBool::new(false),
        })
    }

    pub(super) fn is_usable(&self) -> bool {
        !self.broken.load(Ordering::SeqCst)
    }

    /// Makes sure that the partitions are assigned and that their queues are at the start of their ranges. What is assigned but not
    /// read any more keeps its place: a partition without new records in this batch has some in the next.
    ///
    /// `None` where an earlier batch, whose streams were dropped, has not given its partitions back: then it takes another reader.
    pub(super) fn prepare(self: &Arc<Self>, ranges: &[PartitionRange]) -> Result<Option<Vec<Task>>> {
        let mut partitions = locked(&self.partitions);
        let key = |range: &PartitionRange| (range.topic.clone(), range.partition);
        if !self.is_usable() || ranges.iter().any(|range| matches!(partitions.get(&key(range)), Some(None))) {
            return Ok(None);
        }
        let mut tasks = Vec::with_capacity(ranges.len());
        let mut assigned = TopicPartitionList::new();
        for range in ranges {
            let (partition, is_fresh) = match partitions.insert(key(range), None).flatten() {
                Some(partition) if partition.position == range.start => (partition, false),
                Some(mut partition) => {
                    self.seek(&mut partition, range, range.start)?;
                    (partition, true)
                }
                None => {
                    // The queue first, so that no record takes the way of the consumer's common queue.
                    let queue =
                        self.consumer.split_partition_queue(&range.topic, range.partition).ok_or_else(|| {
                            Error::bug(format!("partition {} of topic {} has no queue", range.partition, range.topic))
                        })?;
                    assigned
                        .add_partition_offset(&range.topic, range.partition, At::Offset(range.start))
                        .map_err(|error| self.explain(error, range))?;
                    (Partition { queue, position: range.start, held: None }, true)
                }
            };
            tasks.push(Task::new(self.clone(), range.clone(), partition, is_fresh));
        }
        drop(partitions);
        if assigned.count() > 0 {
            self.consumer
                .incremental_assign(&assigned)
                .map_err(|error| self.consumer.context().explain(error, &self.brokers, "assigning partitions"))?;
        }
        Ok(Some(tasks))
    }

    /// Moves a partition to another offset; what was fetched ahead is dropped.
    fn seek(&self, partition: &mut Partition, range: &PartitionRange, offset: i64) -> Result<()> {
        let mut list = TopicPartitionList::new();
        let moved = list.add_partition_offset(&range.topic, range.partition, At::Offset(offset)).and_then(|()| {
            self.consumer.incremental_unassign(&list)?;
            self.consumer.incremental_assign(&list)
        });
        partition.held = None;
        partition.position = offset;
        moved.map_err(|error| self.explain(error, range))
    }

    fn explain(&self, error: KafkaError, range: &PartitionRange) -> Error {
        let what = format!("reading partition {} of topic {}", range.partition, range.topic);
        self.consumer.context().explain(error, &self.brokers, &what)
    }

    /// Lets librdkafka tell what happened; errors reach the context.
    fn serve(&self) -> Result<()> {
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            // Each partition has its own queue. A record that took another way would be lost.
            if let Ok(message) = event {
                return Err(Error::bug(format!(
                    "offset {} of partition {} came outside of its partition's queue",
                    message.offset(),
                    message.partition()
                )));
            }
        }
        Ok(())
    }

    /// Reads the ranges of one stream to their ends. Partitions take turns, so that waiting for one is not waiting for all.
    pub(super) fn read(&self, tasks: Vec<Task>, link: &Link, output: &Output) -> Result<()> {
        let mut tasks: VecDeque<Task> = tasks.into();
        let mut idle_turns = 0;
        let mut last_record = Instant::now();
        while let Some(mut task) = tasks.pop_front() {
            // Once all had a turn without a record, wait a little.
            let wait = if idle_turns > tasks.len() { IDLE_WAIT } else { Duration::ZERO };
            let (state, records) = task.take_turn(wait, link, output)?;
            if records > 0 {
                (idle_turns, last_record) = (0, Instant::now());
            } else {
                idle_turns += 1;
            }
            match state {
                Turn::Finished => {
                    task.finish();
                    last_record = Instant::now();
                    continue;
                }
                Turn::Abandoned => return Ok(()),
                Turn::Unfinished => {}
            }
            if wait > Duration::ZERO {
                self.serve()?;
                if output.is_abandoned() {
                    return Ok(());
                }
                if last_record.elapsed() >= self.timeout {
                    let silence = KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut);
                    let error = self.explain(silence, &task.range);
                    return Err(error.at(format!("no record for {} seconds", self.timeout.as_secs())));
                }
            }
            tasks.push_back(task);
        }
        self.consumer.context().forget();
        Ok(())
    }
}

/// Spreads tasks over at most `parallelism` streams: the longest first, each to the stream with the least records.
pub(super) fn share_out(mut tasks: Vec<Task>, parallelism: usize) -> Vec<Vec<Task>> {
    tasks.sort_by_key(|task| (std::cmp::Reverse(task.range.end - task.range.start), task.range.partition));
    let mut shares: Vec<(i64, Vec<Task>)> = (0..parallelism.min(tasks.len())).map(|_| (0, Vec::new())).collect();
    for task in tasks {
        if let Some((load, share)) = shares.iter_mut().min_by_key(|(load, _)| *load) {
            *load += task.range.end - task.range.start;
            share.push(task);
        }
    }
    shares.into_iter().map(|(_, share)| share).collect()
}

/// How a turn ended.
enum Turn {
    /// All of the range has been sent.
    Finished,
    /// More is to come.
    Unfinished,
    /// Nobody listens any more.
    Abandoned,
}

/// A range that is being read.
pub(super) struct Task {
    reader: Arc<Reader>,
    range: PartitionRange,
    /// Taken out when the task is finished; a task that is dropped with it leaves the reader broken.
    partition: Option<Partition>,
    /// Whether the queue was moved here for this batch.
    ///
    /// librdkafka reports once that it has fetched all that a partition has, but not up to which offset. From a queue that was filled
    /// before the batch was planned, such a report may be old and say nothing about the end of the range; from one that was moved
    /// since, it says that there is nothing more in the range.
    is_fresh: bool,
    /// Since when an end was reported and no record came.
    end_reported: Option<Instant>,
    block: Block,
}

impl Drop for Task {
    fn drop(&mut self) {
        if self.partition.is_some() {
            self.reader.broken.store(true, Ordering::SeqCst);
        }
    }
}

impl Task {
    fn new(reader: Arc<Reader>, range: PartitionRange, partition: Partition, is_fresh: bool) -> Self {
        Self { reader, range, partition: Some(partition), is_fresh, end_reported: None, block: Block::default() }
    }

    /// Gives the partition, which is at the end of the range now, back to the reader.
    fn finish(mut self) {
        if let Some(partition) = self.partition.take() {
            let partition = Partition { position: self.range.end, ..partition };
            locked(&self.reader.partitions).insert((self.range.topic.clone(), self.range.partition), Some(partition));
        }
    }

    /// Takes what the queue has, up to the end of the range or one block. Waits for the first record as long as `wait`. Returns how many
    /// records there were.
    fn take_turn(&mut self, mut wait: Duration, link: &Link, output: &Output) -> Result<(Turn, usize)> {
        let Self { reader, range, partition: Some(partition), is_fresh, end_reported, block } = self else {
            return Err(Error::bug("a finished task has no turn"));
        };
        let mut records = 0;
        if let Some(held) = partition.held.take() {
            if held.offset() >= range.end {
                // The whole range is a gap.
                partition.held = Some(held);
                partition.position = range.end;
            } else {
                partition.position = held.offset() + 1;
                block.push(&held);
                records += 1;
            }
        }
        while partition.position < range.end {
            let polled = partition.queue.poll(wait);
            wait = Duration::ZERO;
            match polled {
                Some(Ok(message)) => {
                    let offset = message.offset();
                    if offset < partition.position {
                        continue;
                    }
                    records += 1;
                    *end_reported = None;
                    if offset >= range.end {
                        partition.held = Some(message.detach());
                        partition.position = range.end;
                        break;
                    }
                    block.push(&message);
                    partition.position = offset + 1;
                    if block.is_full() {
                        break;
                    }
                    continue;
                }
                Some(Err(KafkaError::PartitionEOF(_))) if *is_fresh => {
                    link.check_end(&range.topic, range.partition, range.end)?;
                    partition.position = range.end;
                }
                Some(Err(KafkaError::PartitionEOF(_))) => *end_reported = Some(Instant::now()),
                Some(Err(error)) => {
                    let code = error.rdkafka_error_code();
                    let lost = code.is_some_and(|code| classify(code, "").code == "OffsetOutOfRange");
                    if !lost {
                        if code.is_some_and(is_passing) {
                            continue;
                        }
                        return Err(reader.explain(error, range));
                    }
                    let next = link.lost_while_reading(&range.topic, range.partition, partition.position)?;
                    reader.seek(partition, range, next)?;
                    *is_fresh = true;
                }
                None => {
                    // An old report, with the records of the range still on their way? Or are the rest of them gaps? Ask again.
                    if end_reported.take_if(|at| at.elapsed() >= EOF_GRACE).is_some() {
                        let position = partition.position;
                        reader.seek(partition, range, position)?;
                        *is_fresh = true;
                    }
                    break;
                }
            }
        }
        let finished = partition.position >= range.end;
        if (finished || block.is_full())
            && let Some(input) = block.take(range)?
            && !output.send(input)
        {
            return Ok((Turn::Abandoned, records));
        }
        Ok((if finished { Turn::Finished } else { Turn::Unfinished }, records))
    }
}

/// Errors that librdkafka gets over by itself: a leader that moves, a connection that is made again. If it does not in time, the timeout
/// tells.
fn is_passing(code: RDKafkaErrorCode) -> bool {
    // A missing right to the consumer group does not hinder reading.
    code == RDKafkaErrorCode::GroupAuthorizationFailed
        || matches!(classify(code, "").code, "ServerUnavailable" | "ConnectionLost" | "Timeout")
}

/// Records on their way into a block.
#[derive(Default)]
struct Block {
    values: BinaryBuilder,
    keys: BinaryBuilder,
    offsets: Vec<i64>,
    timestamps: Vec<i64>,
    bytes: usize,
}

impl Block {
    fn push(&mut self, message: &impl Message) {
        let (key, value) = (message.key(), message.payload());
        self.bytes += value.map_or(0, <[u8]>::len) + key.map_or(0, <[u8]>::len);
        self.values.append_option(value);
        self.keys.append_option(key);
        self.offsets.push(message.offset());
        self.timestamps.push(message.timestamp().to_millis().unwrap_or(-1));
    }

    fn is_full(&self) -> bool {
        self.bytes >= BLOCK_BYTES || self.offsets.len() >= BLOCK_RECORDS
    }

    /// The block, if there is anything in it.
    fn take(&mut self, range: &PartitionRange) -> Result<Option<Input>> {
        if self.offsets.is_empty() {
            return Ok(None);
        }
        let full = std::mem::take(self);
        let Self { mut values, mut keys, offsets, timestamps, .. } = full;
        // The next block will be like this one.
        let (records, bytes) = (offsets.len(), full.bytes);
        *self = Self {
            values: BinaryBuilder::with_capacity(records, bytes + bytes / 16),
            keys: BinaryBuilder::with_capacity(records, 0),
            offsets: Vec::with_capacity(records),
            timestamps: Vec::with_capacity(records),
            bytes: 0,
        };
        let position = Position::Kafka {
            topic: range.topic.clone(),
            partition: range.partition,
            offsets: offsets.into(),
            timestamps: timestamps.into(),
            keys: keys.finish(),
        };
        Ok(Some(Input::Records(RecordBlock { payload: Payload::Values(values.finish()), position })))
    }
}
