//! From a source's raw blocks to the rows that a query sees: decode, then expectations, with what is refused aside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arrow::array::{AsArray, RecordBatch, RecordBatchOptions, UInt64Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampMicrosecondType};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future};
use parking_lot::Mutex;

use crate::dead_letter::{DeadLetter, Stage};
use crate::decode::{Decoded, Decoder};
use crate::error::{Error, Result, ResultExt, class};
use crate::expectation::{Expectations, Violation};
use crate::isolate::{Guilty, RowNumber, RowSet, StreamId};
use crate::job::SourceSpec;
use crate::meter::Meter;
use crate::records::{Input, Position, RawRecord, RecordPosition};
use crate::sink::RowStream;
use crate::source::InputStream;
use crate::watermark::PartitionTimes;

/// The counts of a batch's input, and the records that were refused. Shared by all cores that work on the batch.
#[derive(Debug, Default)]
pub struct Intake {
    read: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
    warned: AtomicU64,
    repeated: AtomicU64,
    /// Records read, per source.
    by_source: Mutex<BTreeMap<String, u64>>,
    /// Counts the time of decoding, where anybody wants to know.
    decoding: Option<Arc<Meter>>,
    letters: Mutex<Vec<DeadLetter>>,
    /// Per source whose watermark follows from its partitions.
    event_times: Mutex<BTreeMap<String, PartitionTimes>>,
}

impl Intake {
    /// One whose decoding is timed.
    pub fn timed(decoding: Arc<Meter>) -> Self {
        Self { decoding: Some(decoding), ..Self::default() }
    }

    /// Records read from a source.
    pub fn read_from(&self, source: &str) -> u64 {
        self.by_source.lock().get(source).copied().unwrap_or_default()
    }

    /// Records read.
    pub fn read(&self) -> u64 {
        self.read.load(Relaxed)
    }

    /// Bytes of records read.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Records dropped because the job file says so.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Rows that broke a rule which only warns.
    pub fn warned(&self) -> u64 {
        self.warned.load(Relaxed)
    }

    /// Rows that a query which reads a source several times was given beyond the first time.
    pub fn repeated(&self) -> u64 {
        self.repeated.load(Relaxed)
    }

    /// The greatest event times in the partitions of a source whose watermark follows from them.
    pub fn partition_times(&self, source: &str) -> PartitionTimes {
        self.event_times.lock().get(source).cloned().unwrap_or_default()
    }

    /// Takes the records that were refused.
    pub fn take_letters(&self) -> Vec<DeadLetter> {
        std::mem::take(&mut self.letters.lock())
    }
}

/// Which rows of a batch an attempt takes.
#[derive(Debug, Clone, Default)]
pub enum Take {
    /// All of them.
    #[default]
    All,
    /// Only these, to see whether they fail. Nothing is accounted for.
    Only(Arc<RowSet>),
    /// All but these, which go to the dead letters.
    Without(Arc<Vec<Guilty>>),
    /// None: all go to the dead letters, with this error.
    Nothing(Arc<Error>),
}

/// What a reading of a source is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// The query's first of the batch: its records are counted and dead-lettered.
    Accounted,
    /// A further one, by a query that reads the source several times.
    Repeated,
    /// To find rows, each of which gets its [`RowNumber`] in a last column; the stream is at this place of the list. Nothing is accounted for.
    Numbered(usize),
}

/// How the records of one source become the rows of one query.
#[derive(Debug)]
pub struct Gate {
    source: String,
    decoder: Arc<dyn Decoder>,
    expectations: Expectations,
    /// What is decoded: indexes of the source's columns, ascending.
    columns: Vec<usize>,
    /// Where among the decoded columns the event time is, when it is told apart by partition.
    event_time: Option<usize>,
}

impl Gate {
    /// The gate of a source for a query that uses `columns` of it (indexes, ascending). What the expectations read is decoded too.
    pub fn new(spec: &SourceSpec, columns: impl IntoIterator<Item = usize>) -> Result<Self> {
        let event_time = spec.per_partition.map(|partitions| partitions.column);
        let mut columns: Vec<usize> =
            columns.into_iter().chain(spec.expectations.columns()).chain(event_time).collect();
        columns.sort_unstable();
        columns.dedup();
        let decoder = (spec.decoder)(&columns).at(|| format!("source {}", spec.name))?;
        let event_time = event_time.and_then(|column| columns.binary_search(&column).ok());
        Ok(Self { source: spec.name.clone(), decoder, expectations: spec.expectations.clone(), columns, event_time })
    }

    /// What decodes the records.
    pub fn decoder(&self) -> &dyn Decoder {
        self.decoder.as_ref()
    }

    /// The columns that are decoded.
    pub fn schema(&self) -> SchemaRef {
        self.decoder.schema()
    }

    /// Whether the source has to give rows ([`Input::Rows`]) rather than raw records.
    pub fn takes_rows(&self) -> bool {
        self.decoder.takes_rows()
    }

    /// The rows of one stream of blocks, with just `columns` of the source.
    pub fn rows(
        self: &Arc<Self>,
        (stream, blocks): (StreamId, InputStream),
        columns: &[usize],
        intake: &Arc<Intake>,
        reading: Reading,
        take: &Take,
    ) -> Result<RowStream> {
        let projection = columns.iter().map(|column| self.columns.binary_search(column)).collect::<Result<Vec<_>, _>>();
        let mut projection = projection.map_err(|_| Error::bug("the plan asks for a column that is not decoded"))?;
        if let Reading::Numbered(_) = reading {
            projection.push(self.columns.len());
        }
        let account = reading == Reading::Accounted;
        let (gate, intake, take) = (self.clone(), intake.clone(), take.clone());
        let mut first = 0;
        let rows = blocks.map(move |block| {
            let block = block?;
            let partition = (account && gate.event_time.is_some()).then(|| block.position().partition());
            let decoded = gate.decode(block, account.then_some(&*intake));
            let (mut decoded, position) = decoded.at(|| format!("source {}", gate.source))?;
            let at = (stream, first);
            if let Reading::Numbered(place) = reading {
                decoded.rows = numbered(&decoded.rows, RowNumber::new(place, first))?;
            }
            first += decoded.rows.num_rows() as u64;
            let rows = gate.pass(decoded, position.as_ref(), account.then_some(&*intake), at, &take);
            let rows = rows.at(|| format!("source {}", gate.source))?;
            if let Some(partition) = partition {
                gate.note_event_time(&rows, partition, &intake)?;
            }
            if reading == Reading::Repeated {
                intake.repeated.fetch_add(rows.num_rows() as u64, Relaxed);
            }
            Ok(rows.project(&projection)?)
        });
        Ok(rows.try_filter(|rows: &RecordBatch| future::ready(rows.num_rows() > 0)).boxed())
    }

    /// Notes the greatest event time of rows of a partition, and that it had records.
    fn note_event_time(&self, rows: &RecordBatch, partition: String, intake: &Intake) -> Result<()> {
        let Some(column) = self.event_time else { return Ok(()) };
        let times = rows.column(column).as_primitive_opt::<TimestampMicrosecondType>();
        let times = times.ok_or_else(|| Error::bug("an event time is not a timestamp in microseconds"))?;
        let newest = arrow::compute::max(times);
        let mut sources = intake.event_times.lock();
        let seen = sources.entry(self.source.clone()).or_default().entry(partition).or_default();
        *seen = (*seen).max(newest);
        Ok(())
    }

    /// How many rows a stream of blocks has.
    pub async fn count(&self, mut blocks: InputStream) -> Result<u64> {
        let mut rows = 0;
        while let Some(block) = blocks.try_next().await? {
            rows += self.decode(block, None)?.0.rows.num_rows() as u64;
        }
        Ok(rows)
    }

    /// Decodes a block; also gives where it came from, where it was rows already.
    fn decode(&self, block: Input, intake: Option<&Intake>) -> Result<(Decoded, Option<Position>)> {
        let (bytes, position) = match &block {
            Input::Records(records) => (records.byte_len(), None),
            Input::Rows(rows, position) => (rows.get_array_memory_size(), Some(position.clone())),
        };
        let decoded = match intake.and_then(|intake| intake.decoding.as_ref()) {
            Some(meter) => meter.time(|| self.decoder.decode(block))?,
            None => self.decoder.decode(block)?,
        };
        if let Some(intake) = intake {
            let rows = decoded.rows.num_rows() as u64;
            let records = rows + decoded.rejected.len() as u64 + decoded.dropped;
            intake.read.fetch_add(records, Relaxed);
            *intake.by_source.lock().entry(self.source.clone()).or_default() += records;
            intake.bytes.fetch_add(bytes as u64, Relaxed);
            intake.dropped.fetch_add(decoded.dropped, Relaxed);
        }
        Ok((decoded, position))
    }

    /// Applies the expectations and lets those rows through that are wanted. `position`: where rows came from that were no records;
    /// `at`: the stream and the number in it of the first row.
    fn pass(
        &self,
        mut decoded: Decoded,
        position: Option<&Position>,
        intake: Option<&Intake>,
        at: (StreamId, u64),
        take: &Take,
    ) -> Result<RecordBatch> {
        if let Take::Only(wanted) = take {
            let Some(wanted) = wanted.among(at.0, at.1, decoded.rows.num_rows()) else {
                return Ok(decoded.rows.slice(0, 0));
            };
            decoded.rows = filter_record_batch(&decoded.rows, &wanted)?;
        }
        let mut checked = self.expectations.check(&decoded.rows)?;
        let rows = decoded.rows.num_rows();
        let blamed: Vec<(usize, &Error)> = match take {
            Take::Without(guilty) => checked.blame(guilty, at, rows)?,
            Take::Nothing(error) => checked.blame_all(error, rows),
            Take::All | Take::Only(_) => Vec::new(),
        };
        if let Some(intake) = intake {
            intake.dropped.fetch_add(checked.dropped, Relaxed);
            intake.warned.fetch_add(checked.warned, Relaxed);
            if !decoded.rejected.is_empty() || !checked.violations.is_empty() || !blamed.is_empty() {
                let letters = self.letters(&decoded, &checked.violations, &blamed, position)?;
                intake.letters.lock().extend(letters);
            }
        }
        checked.apply(decoded.rows)
    }

    fn letters(
        &self,
        decoded: &Decoded,
        violations: &[Violation],
        blamed: &[(usize, &Error)],
        rows_position: Option<&Position>,
    ) -> Result<Vec<DeadLetter>> {
        let block = decoded.origin.block.as_deref();
        let raw = |record| {
            let found = block.and_then(|block| block.record(record));
            found.ok_or_else(|| Error::bug(format!("record {record} is not in its block")))
        };
        let of_row = |row| match rows_position {
            Some(position) => row_as_record(&decoded.rows, row, position),
            None => raw(decoded.origin.record_of(row)),
        };
        let mut letters = Vec::with_capacity(decoded.rejected.len() + violations.len() + blamed.len());
        for rejected in &decoded.rejected {
            letters.push(DeadLetter {
                source: self.source.clone(),
                record: raw(rejected.record)?,
                stage: Stage::Decode,
                class: rejected.class,
                message: rejected.reason.clone(),
                rules: Vec::new(),
            });
        }
        for violation in violations {
            letters.push(DeadLetter {
                source: self.source.clone(),
                record: of_row(violation.row)?,
                stage: Stage::Expectation,
                class: class::EXPECTATION_FAILED,
                message: format!("the record breaks: {}", violation.rules.join(", ")),
                rules: violation.rules.clone(),
            });
        }
        for (row, error) in blamed {
            letters.push(DeadLetter {
                source: self.source.clone(),
                record: of_row(*row)?,
                stage: match error.class() {
                    class if class == class::EXPRESSION_FAILED => Stage::Execute,
                    class if class == class::LATE_RECORD => Stage::Watermark,
                    _ => Stage::Sink,
                },
                class: error.class(),
                // Without the places, which are those of a trial of some of the rows.
                message: error.message().to_owned(),
                rules: Vec::new(),
            });
        }
        Ok(letters)
    }
}

/// The rows with their numbers in a further column, from `first` on.
fn numbered(rows: &RecordBatch, first: RowNumber) -> Result<RecordBatch> {
    let mut fields = rows.schema().fields().to_vec();
    fields.push(Arc::new(Field::new("row", DataType::UInt64, true)));
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(UInt64Array::from_iter_values(first.0..first.0 + rows.num_rows() as u64)));
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
}

/// A row as JSON.
pub fn row_as_json(rows: &RecordBatch, row: usize) -> Result<Bytes> {
    let mut json = arrow::json::LineDelimitedWriter::new(Vec::new());
    json.write(&rows.slice(row, 1))?;
    json.finish()?;
    let mut value = json.into_inner();
    value.truncate(value.trim_ascii_end().len());
    Ok(Bytes::from(value))
}

/// A row of a source that has no raw bytes, as JSON.
fn row_as_record(rows: &RecordBatch, row: usize, position: &Position) -> Result<RawRecord> {
    let position = match position {
        Position::File { path, offset } => RecordPosition::File { path: path.clone(), offset: offset + row as u64 },
        Position::Sequence { name, first } => {
            RecordPosition::Sequence { name: name.clone(), number: first + row as u64 }
        }
        Position::Kafka { topic, partition, offsets, timestamps, .. } => RecordPosition::Kafka {
            topic: topic.clone(),
            partition: *partition,
            offset: offsets.get(row).copied().unwrap_or(-1),
            timestamp: timestamps.get(row).copied().unwrap_or(-1),
        },
    };
    Ok(RawRecord { key: None, value: Some(row_as_json(rows, row)?), position })
}

/// The declared columns at `columns`, nullable as decoders give them.
pub fn projected(schema: &Schema, columns: &[usize]) -> SchemaRef {
    let fields = columns.iter().map(|&c| schema.field(c).clone().with_nullable(true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}
