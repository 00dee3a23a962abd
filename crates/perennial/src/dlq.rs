//! Dead letters of a job: where they are, how they would fare if they were run again, and mending them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::json::LineDelimitedWriter;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use perennial_core::checkpoint::request_replay;
use perennial_core::dead_letter::{
    DeadLetters, Entry, FileDeadLetters, Mark, Outcome, RESULT_OF, decode_record, set_value, timestamp_text,
};
use perennial_core::error::{Error, Result, ResultExt, class};
use perennial_core::job::{JobSpec, QuerySpec};
use perennial_core::offset::{Offset, OffsetRange};
use perennial_core::on_error::OnError;
use perennial_core::plan::BatchInfo;
use perennial_core::progress::Observers;
use perennial_core::query::{Query, Step};
use perennial_core::replay::{ReplayRequest, ReplayedEntry, input_of};
use perennial_core::sink::{Delivery, RowStream, Sink, SinkBatch, SinkContext, SinkFactory, Written};
use perennial_core::source::{InputStream, ReadLimit, Replay, Source, SourceContext, SourceFactory};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Job;
use crate::world;

/// An entry that failed so often is not replayed again without being told so.
pub const MOST_REPLAYS: u64 = 3;

/// Which entries are meant. All conditions must hold.
#[derive(Debug, Default, clap::Args, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Entries by their ids.
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Of this query.
    #[arg(long)]
    pub query: Option<String>,
    /// Of this class of errors.
    #[arg(long)]
    pub class: Option<String>,
    /// Of this batch.
    #[arg(long)]
    pub batch: Option<u64>,
    /// From this time on (UTC): `2026-11-21` or `2026-11-21T09:45`.
    #[arg(long)]
    pub since: Option<String>,
    /// Before this time (UTC).
    #[arg(long)]
    pub until: Option<String>,
    /// With this text in the message or a sample record.
    #[arg(long)]
    pub text: Option<String>,
    /// That stand like this: open, replaying, recovered, failed_again or resolved.
    #[arg(long)]
    pub status: Option<String>,
}

impl Filter {
    /// Whether it takes all.
    pub fn is_empty(&self) -> bool {
        let Self { ids, query, class, batch, since, until, text, status } = self;
        let words = [query, class, since, until, text, status];
        ids.is_empty() && batch.is_none() && words.iter().all(|word| word.is_none())
    }

    fn takes(&self, found: &Found) -> bool {
        let entry = &found.entry;
        // Timestamps are text in an order that is that of time.
        (self.ids.is_empty() || self.ids.contains(&entry.id))
            && self.query.as_ref().is_none_or(|query| *query == entry.query)
            && self.class.as_ref().is_none_or(|class| class.eq_ignore_ascii_case(&entry.error.class))
            && self.batch.is_none_or(|batch| batch == entry.batch_id)
            && self.since.as_ref().is_none_or(|since| entry.timestamp >= *since)
            && self.until.as_ref().is_none_or(|until| entry.timestamp < *until)
            && self.text.as_ref().is_none_or(|text| {
                entry.error.message.contains(text)
                    || entry.sample_records.iter().any(|record| record.to_string().contains(text))
            })
            && self.status.as_ref().is_none_or(|status| status == found.status())
    }
}

/// An entry and how it stands.
#[derive(Debug)]
pub struct Found {
    /// The entry.
    pub entry: Entry,
    /// What became of it last.
    pub mark: Option<Mark>,
}

impl Found {
    /// How it stands, in a word.
    pub fn status(&self) -> &'static str {
        self.mark.as_ref().map_or("open", |mark| mark.outcome.name())
    }

    /// Whether something is left to do.
    pub fn is_open(&self) -> bool {
        self.mark.as_ref().is_none_or(|mark| mark.outcome == Outcome::FailedAgain)
    }
}

/// The entries that a filter takes, oldest first.
///
/// # Errors
/// Where an id is not there, or they cannot be read.
pub async fn find(letters: &dyn DeadLetters, filter: &Filter) -> Result<Vec<Found>> {
    let mut standings = letters.standings().await?;
    let entries = letters.entries().await?;
    if let Some(missing) = filter.ids.iter().find(|id| !entries.iter().any(|entry| entry.id == **id)) {
        return Err(Error::new(
            class::CONFIG_INVALID,
            format!("there is no entry {missing} in {}: `perennial dlq list` shows all", letters.place()),
        ));
    }
    let found = entries
        .into_iter()
        .map(|entry| Found { mark: standings.remove(&entry.id).map(|standing| standing.mark), entry });
    Ok(found.filter(|found| filter.takes(found)).collect())
}

/// The entries that a filter takes and that can be run again, and those that were too often already.
///
/// # Errors
/// As [`find`].
pub async fn to_replay(letters: &dyn DeadLetters, filter: &Filter, force: bool) -> Result<(Vec<Found>, Vec<Found>)> {
    let standings = letters.standings().await?;
    let often =
        |one: &Found| standings.get(&one.entry.id).is_some_and(|standing| standing.replays >= MOST_REPLAYS) && !force;
    let found = find(letters, filter).await?.into_iter();
    Ok(found.filter(|one| one.is_open() || !filter.ids.is_empty()).partition(|one| !often(one)))
}

/// Reads the records of entries, mended, as a request for each query. `progress` hears how many entries are read. Entries of rows of a result
/// ([`RESULT_OF`]) are left out.
///
/// # Errors
/// Where records cannot be read or mended.
pub async fn requests(
    job: &Job,
    letters: &dyn DeadLetters,
    found: &[Found],
    sets: &[Set],
    progress: impl Fn(u64, u64),
) -> Result<BTreeMap<String, ReplayRequest>> {
    let mut by_query: BTreeMap<String, ReplayRequest> = BTreeMap::new();
    for (number, one) in found.iter().enumerate() {
        let mut records = letters.records(&one.entry).await?;
        if records.first().map(decode_record).transpose()?.is_some_and(|(source, ..)| source.starts_with(RESULT_OF)) {
            continue;
        }
        if !sets.is_empty() {
            records = mend(job, &one.entry.query, sets, records).await?;
        }
        let request = by_query.entry(one.entry.query.clone()).or_default();
        request.entries.push(ReplayedEntry { id: one.entry.id.clone(), records });
        progress(number as u64 + 1, found.len() as u64);
    }
    Ok(by_query)
}

/// What was handed to the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Handed {
    /// The query.
    pub query: String,
    /// The number of the request.
    pub request: u64,
    /// So many entries.
    pub entries: usize,
    /// So many records.
    pub records: usize,
}

/// Leaves the requests in the checkpoint, where the job finds them.
///
/// # Errors
/// Where that cannot be written.
pub async fn hand_over(
    job: &Job,
    letters: &dyn DeadLetters,
    requests: &BTreeMap<String, ReplayRequest>,
) -> Result<Vec<Handed>> {
    let env = job.checkpoint_env()?;
    let mut handed = Vec::new();
    for (query, request) in requests {
        // Marked first: a request that is not there yet can be made again, one that is there must not be.
        letters.mark(&marks(request.entries.iter().map(|e| &e.id), Outcome::Replaying, None)).await?;
        let number = request_replay(&env, query, request).await?;
        let records = request.entries.iter().map(|entry| entry.records.len()).sum();
        handed.push(Handed { query: query.clone(), request: number, entries: request.entries.len(), records });
    }
    Ok(handed)
}

/// Notes for entries, from now.
pub fn marks<'a>(entries: impl Iterator<Item = &'a String>, outcome: Outcome, note: Option<&String>) -> Vec<Mark> {
    let timestamp = timestamp_text(chrono::Utc::now().timestamp_micros());
    let mark = |entry: &String| Mark {
        entry: entry.clone(),
        outcome,
        timestamp: timestamp.clone(),
        failed: 0,
        note: note.cloned(),
    };
    entries.map(mark).collect()
}

/// How records would fare.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rehearsal {
    /// So many would go through, up to the sink.
    pub passed: u64,
    /// So many would not, by class and message.
    pub failed: BTreeMap<(String, String), u64>,
}

/// Runs the records of a request through a query as it is now, in a world of its own: state is empty, and nothing is written anywhere.
///
/// # Errors
/// Where the job does not plan, or the query does not exist any more.
pub async fn rehearse(job: &Job, query: &str, request: &ReplayRequest) -> Result<Rehearsal> {
    let (mut spec, letters) = in_memory(job).await?;
    let at = index_of(&spec, query)?;
    let alone = &mut spec.queries[at];
    alone.sources.iter_mut().for_each(|source| source.factory = Arc::new(Nothing));
    alone.sink = Arc::new(Nothing);
    alone.on_error = OnError::dead_letter();
    spec.guarantee = None;
    request_replay(&spec.env, query, request).await?;
    let mut running = Query::open(&spec, &spec.queries[at]).await?;
    let Step::Committed(report) = running.run_batch().await? else {
        return Err(Error::bug("a request to replay was not taken"));
    };
    let mut rehearsal = Rehearsal { passed: report.counts.read - report.counts.dead_lettered, ..Rehearsal::default() };
    for entry in letters.entries().await? {
        *rehearsal.failed.entry((entry.error.class, entry.error.message)).or_default() += entry.records;
    }
    Ok(rehearsal)
}

/// The job in a world of its own.
async fn in_memory(job: &Job) -> Result<(JobSpec, Arc<FileDeadLetters>)> {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let letters = Arc::new(FileDeadLetters::new(store.clone(), Arc::new(store), "memory"));
    let env = world::env(Arc::new(InMemory::new()));
    let spec = job.plan(env, letters.clone(), Arc::new(Observers(Vec::new()))).await?;
    Ok((spec, letters))
}

fn index_of(spec: &JobSpec, query: &str) -> Result<usize> {
    spec.queries.iter().position(|other| other.name == query).ok_or_else(|| {
        Error::new(
            class::CONFIG_INVALID,
            format!("the job has no query {query} any more, so its dead letters cannot be run again"),
        )
    })
}

/// `column = expression`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    column: String,
    expression: String,
}

impl Set {
    /// Reads what stands on the command line.
    ///
    /// # Errors
    /// `ConfigInvalid` without an equals sign.
    pub fn parse(text: &str) -> Result<Self> {
        match text.split_once('=') {
            Some((column, expression)) if !column.trim().is_empty() && !expression.trim().is_empty() => {
                Ok(Self { column: column.trim().to_owned(), expression: expression.trim().to_owned() })
            }
            _ => Err(Error::new(class::CONFIG_INVALID, format!("`{text}` is not of the form `column = expression`"))),
        }
    }
}

/// Mends JSON records of dead letters of a query: sets fields to the values of expressions over the columns of the records' source. Fields that the
/// source does not declare stay.
///
/// # Errors
/// Where an expression does not plan or fails, or a record does not decode or is not JSON.
pub async fn mend(
    job: &Job,
    query: &str,
    sets: &[Set],
    records: Vec<Map<String, Value>>,
) -> Result<Vec<Map<String, Value>>> {
    let (spec, _) = in_memory(job).await?;
    let spec = &spec.queries[index_of(&spec, query)?];
    let mut by_source: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (number, record) in records.iter().enumerate() {
        by_source.entry(decode_record(record)?.0).or_default().push(number);
    }
    let mut mended = records;
    for (source, numbers) in by_source {
        let old: Vec<&Map<String, Value>> = numbers.iter().map(|number| &mended[*number]).collect();
        let values = new_values(job, spec, &source, sets, &old).await?;
        for (number, value) in numbers.into_iter().zip(values) {
            set_value(&mut mended[number], &value);
        }
    }
    Ok(mended)
}

/// The values of records of one source, with the fields set.
async fn new_values(
    job: &Job,
    query: &QuerySpec,
    source: &str,
    sets: &[Set],
    records: &[&Map<String, Value>],
) -> Result<Vec<Bytes>> {
    let of_source = query.sources.iter().find(|other| other.name == source);
    let of_source = of_source.ok_or_else(|| {
        Error::new(class::CONFIG_INVALID, format!("query {} does not read the source {source} any more", query.name))
    })?;
    let columns: Vec<String> = sets.iter().map(|set| format!("{} AS `{}`", set.expression, set.column)).collect();
    let plan = job.plan_sql(&format!("SELECT {} FROM `{source}`", columns.join(", "))).await.at(|| "--set".into())?;
    let wanted = plan.inputs().first().map(|input| input.columns.clone()).unwrap_or_default();
    let decoder = (of_source.decoder)(&wanted)?;
    let (mut rows, mut objects) = (Vec::new(), Vec::new());
    for record in records {
        let (_, record) = decode_record(record)?;
        let position = record.position.to_string();
        let cannot = |why: &str| {
            Error::new(class::MALFORMED_RECORD, format!("the record {position} cannot be mended with --set: {why}"))
        };
        let value = record.value.clone().unwrap_or_default();
        let object: Map<String, Value> =
            serde_json::from_slice(&value).map_err(|_| cannot("it is not a JSON object"))?;
        let decoded = decoder.decode(input_of(record, decoder.as_ref())?)?;
        if decoded.rows.num_rows() != 1 {
            return Err(cannot(decoded.rejected.first().map_or("it is not one row", |rejected| &rejected.reason)));
        }
        rows.push(decoded.rows);
        objects.push(object);
    }
    let rows = concat_batches(&decoder.schema(), &rows)?;
    let info =
        BatchInfo { id: 0, timestamp_ms: chrono::Utc::now().timestamp_millis(), watermark_ms: 0, late_watermark_ms: 0 };
    let input: RowStream = stream::iter([Ok(rows)]).boxed();
    let execution = plan.execute(info, vec![vec![input]], Vec::new()).await?;
    let results: Vec<RecordBatch> = execution.rows.try_collect().await.at(|| "--set".into())?;
    let mut json = LineDelimitedWriter::new(Vec::new());
    json.write_batches(&results.iter().collect::<Vec<_>>())?;
    json.finish()?;
    let json = json.into_inner();
    let results = json.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let results: Vec<Map<String, Value>> =
        results.map(serde_json::from_slice).collect::<Result<_, _>>().map_err(|error| Error::bug(error.to_string()))?;
    if results.len() != objects.len() {
        return Err(Error::bug("--set gave another number of rows"));
    }
    let set = |(mut object, mut result): (Map<String, Value>, Map<String, Value>)| {
        for set in sets {
            // A field that is NULL is left out of the result.
            object.insert(set.column.clone(), result.remove(&set.column).unwrap_or(Value::Null));
        }
        Ok(Bytes::from(serde_json::to_vec(&object).map_err(|error| Error::bug(error.to_string()))?))
    };
    objects.into_iter().zip(results).map(set).collect()
}

/// A source that has nothing, and a sink that keeps nothing.
#[derive(Debug, Clone, Copy)]
struct Nothing;

impl SourceFactory for Nothing {
    fn open(&self, _: SourceContext) -> Result<Box<dyn Source>> {
        Ok(Box::new(*self))
    }
}

#[async_trait]
impl Source for Nothing {
    fn replay(&self) -> Replay {
        Replay::Exact
    }

    async fn latest(&self, _: Option<&Offset>, _: &ReadLimit) -> Result<Option<Offset>> {
        Ok(None)
    }

    async fn read(&self, _: &OffsetRange, _: usize) -> Result<Vec<InputStream>> {
        Ok(Vec::new())
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }
}

impl SinkFactory for Nothing {
    fn open(&self, _: SinkContext) -> Result<Box<dyn Sink>> {
        Ok(Box::new(*self))
    }
}

#[async_trait]
impl Sink for Nothing {
    fn delivery(&self) -> Delivery {
        Delivery::IdempotentByBatch
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }

    async fn write(&self, _: &SinkBatch, rows: RowStream) -> Result<Written> {
        let rows = rows.try_fold(0, |sum, rows| async move { Ok(sum + rows.num_rows() as u64) }).await?;
        Ok(Written { rows, ..Written::default() })
    }
}
