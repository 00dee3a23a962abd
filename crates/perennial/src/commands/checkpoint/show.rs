use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema};
use arrow::json::ArrayWriter;
use arrow::util::pretty::pretty_format_batches;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use perennial_core::checkpoint::{CommitEntry, Look, OffsetEntry};
use perennial_core::error::{Error, Result, class};
use perennial_core::offset::Offset;
use perennial_core::state::StateRef;
use perennial_core::state::inspect::{OperatorRows, read_rows};
use serde_json::{Value, json};

use super::output::{Format, size, table, time, watermark};
use super::place::Place;
use crate::terminal::Failure;

/// Show a batch, or the state after it.
///
/// A batch: what it read, its watermark, its accounts, its state and sizes. The state: its rows as a table, keys first, aggregates as they
/// are stored; with `--sql` any query over it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial checkpoint show job.yaml per_minute\n  \
                        perennial checkpoint show job.yaml per_minute --batch 41 --state\n  \
                        perennial checkpoint show job.yaml per_minute --sql 'SELECT count(*) FROM state'\n\n\
                        With several operators, their tables are state_0, state_1, …")]
pub struct Show {
    /// Job file, directory or URL.
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: String,

    /// The query; not needed where there is one.
    #[arg(value_name = "QUERY")]
    query: Option<String>,

    /// The batch. By default the last one that is committed.
    #[arg(long, value_name = "N")]
    batch: Option<u64>,

    /// Show the state after the batch, of one operator (by its number) or of all.
    #[arg(long, value_name = "OPERATOR", num_args = 0..=1)]
    state: Option<Option<usize>>,

    /// Run a query over the state: SQL of DataFusion.
    #[arg(long, value_name = "SQL")]
    sql: Option<String>,

    /// Show at most so many rows; 0 shows all.
    #[arg(long, value_name = "ROWS", default_value_t = 50)]
    limit: usize,

    #[command(flatten)]
    format: Format,
}

impl Show {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let place = Place::open(&self.checkpoint).await?;
        let query = place.query(self.query.as_deref()).await?;
        let look = place.look(&query).await?;
        let batch = which(&look, self.batch)?;
        if self.state.is_none() && self.sql.is_none() {
            let (text, json) = describe(&look, batch)?;
            self.format.print(&text, &json)?;
            return Ok(ExitCode::SUCCESS);
        }
        let operators = state_of(&place, &look, batch).await?;
        if let Some(sql) = &self.sql {
            let rows = select(sql, operators, self.state.flatten()).await?;
            self.print_rows(&[(String::new(), rows)])?;
            return Ok(ExitCode::SUCCESS);
        }
        let wanted = self.state.flatten();
        if let Some(number) = wanted.filter(|number| *number >= operators.len()) {
            return Err(no_operator(number, operators.len()).into());
        }
        let shown: Vec<_> = operators
            .into_iter()
            .filter(|operator| wanted.is_none_or(|number| operator.spec.operator == number))
            .map(|operator| (title(&operator), operator.rows))
            .collect();
        self.print_rows(&shown)?;
        Ok(ExitCode::SUCCESS)
    }

    fn print_rows(&self, tables: &[(String, Vec<RecordBatch>)]) -> Result<(), Failure> {
        let (mut text, mut all) = (String::new(), Vec::new());
        for (title, rows) in tables {
            let total: usize = rows.iter().map(RecordBatch::num_rows).sum();
            let shown = limited(rows, self.limit);
            if !title.is_empty() {
                let _ = writeln!(text, "{title}");
            }
            let _ = writeln!(text, "{}", pretty_format_batches(&shown).map_err(Error::from)?);
            if self.limit > 0 && total > self.limit {
                let _ = writeln!(text, "{} of {total} rows: --limit shows more", self.limit);
            }
            all.push(rows_json(&shown)?);
        }
        let json = if let [only] = &mut all[..] { only.take() } else { Value::Array(all) };
        self.format.print(&text, &json)
    }
}

fn no_operator(number: usize, count: usize) -> Error {
    Error::new(class::CONFIG_INVALID, format!("there is no operator {number}: the state has {count}, from 0 on"))
}

fn title(operator: &OperatorRows) -> String {
    let rows: usize = operator.rows.iter().map(RecordBatch::num_rows).sum();
    let keys: Vec<&str> =
        operator.spec.schema.fields().iter().take(operator.spec.keys).map(|field| field.name().as_str()).collect();
    let keys = if keys.is_empty() { "no key".to_owned() } else { format!("key: {}", keys.join(", ")) };
    format!("operator {} ({}), {rows} rows, {keys}", operator.spec.operator, operator.spec.name)
}

/// The first rows; 0: all.
fn limited(rows: &[RecordBatch], limit: usize) -> Vec<RecordBatch> {
    let mut left = if limit == 0 { usize::MAX } else { limit };
    let mut shown = Vec::new();
    for batch in rows {
        let take = batch.num_rows().min(left);
        left -= take;
        // One that is empty still has the columns.
        if take > 0 || shown.is_empty() {
            shown.push(batch.slice(0, take));
        }
    }
    shown
}

fn rows_json(rows: &[RecordBatch]) -> Result<Value> {
    let mut writer = ArrayWriter::new(Vec::new());
    for batch in rows {
        writer.write(batch)?;
    }
    writer.finish()?;
    let text = writer.into_inner();
    if text.is_empty() {
        return Ok(json!([]));
    }
    serde_json::from_slice(&text).map_err(|error| Error::bug(format!("rows do not read as JSON: {error}")))
}

/// Runs a query over the state.
async fn select(sql: &str, operators: Vec<OperatorRows>, wanted: Option<usize>) -> Result<Vec<RecordBatch>> {
    let context = SessionContext::new();
    let count = operators.len();
    let failed = |error: datafusion::error::DataFusionError| Error::new(class::ANALYSIS, format!("{sql}: {error}"));
    let main = wanted.or((count == 1).then_some(0));
    if let Some(number) = main.filter(|number| *number >= count) {
        return Err(no_operator(number, count));
    }
    for operator in operators {
        let number = operator.spec.operator;
        let schema = operator.rows.first().map_or_else(|| operator.spec.schema.clone(), RecordBatch::schema);
        let table = Arc::new(MemTable::try_new(schema, vec![operator.rows]).map_err(failed)?);
        context.register_table(format!("state_{number}"), table.clone()).map_err(failed)?;
        if main == Some(number) {
            context.register_table("state", table).map_err(failed)?;
        }
    }
    let frame = context.sql(sql).await.map_err(failed)?;
    let schema = Arc::new(Schema::clone(frame.schema().as_arrow()));
    let mut rows = frame.collect().await.map_err(failed)?;
    if rows.is_empty() {
        rows.push(RecordBatch::new_empty(schema));
    }
    Ok(rows)
}

/// The batch that is meant.
pub fn which(look: &Look, batch: Option<u64>) -> Result<u64> {
    let missing = |what: String| Error::new(class::STORAGE_NOT_FOUND, what);
    let kept = || match (look.offsets.keys().next(), look.offsets.keys().next_back()) {
        (Some(first), Some(last)) => format!("batches {first} to {last} are kept"),
        _ => "it has no batches".to_owned(),
    };
    match batch {
        Some(batch) if look.offsets.contains_key(&batch) => Ok(batch),
        Some(batch) => Err(missing(format!("{} has no batch {batch}: {}", look.query, kept()))),
        None => look
            .last_commit()
            .map(|(batch, _)| batch)
            .or(look.offsets.keys().next_back().copied())
            .ok_or_else(|| missing(format!("{}: {}", look.query, kept()))),
    }
}

/// The state after a batch.
pub async fn state_of(place: &Place, look: &Look, batch: u64) -> Result<Vec<OperatorRows>> {
    let refuse = |why: &str| Error::new(class::CONFIG_INVALID, format!("{}, batch {batch}: {why}", look.query));
    let commit = match look.commits.get(&batch) {
        Some(entry) => entry.good().ok_or_else(|| refuse("its commit is damaged, so its state is not known"))?,
        None => return Err(refuse("it is not committed, so it has no state yet")),
    };
    let details = commit.perennial.as_ref().ok_or_else(|| refuse("Spark wrote it, and its state"))?;
    let state = details.state.as_ref().ok_or_else(|| refuse("the query keeps no state"))?;
    let mut operators = read_rows(&place.env, &place.inspector(&look.query).state_dir(), state).await?;
    for operator in &mut operators {
        if operator.rows.is_empty() && operator.spec.schema.fields().iter().all(|f| *f.data_type() != DataType::Null) {
            operator.rows.push(RecordBatch::new_empty(operator.spec.schema.clone()));
        }
    }
    Ok(operators)
}

/// A value of an offset, as JSON.
pub fn offset_json(offset: Option<&Offset>) -> Value {
    offset.map_or(Value::Null, |offset| serde_json::from_str(offset.as_str()).unwrap_or(Value::Null))
}

fn describe(look: &Look, batch: u64) -> Result<(String, Value)> {
    let damaged =
        |what: &str, why: &str| Error::new(class::CHECKPOINT_CORRUPT, format!("{}: {what}/{batch}: {why}", look.query));
    let entry = &look.offsets[&batch];
    let offsets = entry.good().ok_or_else(|| damaged("offsets", entry.problem().unwrap_or_default()))?;
    let before = batch.checked_sub(1).and_then(|before| look.offsets.get(&before)?.good());
    let commit = match look.commits.get(&batch) {
        Some(entry) => Some(entry.good().ok_or_else(|| damaged("commits", entry.problem().unwrap_or_default()))?),
        None => None,
    };
    let mut text = identity(look);
    let _ = writeln!(text, "\nbatch {batch}: {}", if commit.is_some() { "committed" } else { "begun, not committed" });
    let _ = writeln!(text, "  time       {}", time(offsets.timestamp_ms));
    let _ = writeln!(
        text,
        "  watermark  {}{}",
        watermark(offsets.watermark_ms),
        commit.map_or_else(String::new, |commit| format!(", then {}", watermark(commit.next_watermark_ms)))
    );
    let _ = writeln!(text, "  epoch      {}", offsets.epoch);
    let rows = ranges(offsets, before);
    text += "\n";
    text += &table(&["SOURCE", "FROM", "TO"], &rows);
    let mut json = json!({
        "query": look.query,
        "id": look.metadata.good().map(|m| m.id.as_str()),
        "batch": batch,
        "committed": commit.is_some(),
        "timestamp_ms": offsets.timestamp_ms,
        "watermark_ms": offsets.watermark_ms,
        "next_watermark_ms": commit.map(|commit| commit.next_watermark_ms),
        "epoch": offsets.epoch,
        "sources": sources_json(offsets, before),
    });
    if let Some(details) = commit.and_then(|commit| commit.perennial.as_ref()) {
        let counts = serde_json::to_value(details.counts).unwrap_or_default();
        let columns: Vec<(String, String)> =
            counts.as_object().into_iter().flatten().map(|(name, n)| (name.to_uppercase(), n.to_string())).collect();
        let header: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
        text += "\n";
        text += &table(&header, &[columns.iter().map(|(_, n)| n.clone()).collect()]);
        json["counts"] = counts;
        json["input_watermarks_ms"] = json!(details.input_watermarks);
        if !details.partitions.is_empty() {
            json["partitions"] = json!(details.partitions);
        }
        if let Some(state) = &details.state {
            describe_state(state, look, &mut text);
            json["state"] = serde_json::to_value(state).unwrap_or_default();
        }
    }
    let sizes = sizes(look, batch, commit);
    text += "\n";
    text += &table(
        &["FILES", "COUNT", "SIZE"],
        &sizes.iter().map(|(n, c, b)| vec![(*n).to_owned(), c.to_string(), size(*b)]).collect::<Vec<_>>(),
    );
    json["files"] =
        sizes.iter().map(|(name, count, bytes)| json!({ "files": name, "count": count, "bytes": bytes })).collect();
    Ok((text, json))
}

fn identity(look: &Look) -> String {
    let metadata = look.metadata.good();
    let owner = metadata
        .and_then(|m| m.owner.as_ref())
        .map_or_else(String::new, |(job, query)| format!(" of job {job}, query {query}"));
    let id = metadata.map_or("metadata is damaged or missing", |m| m.id.as_str());
    let kept = match (look.offsets.keys().next(), look.offsets.keys().next_back()) {
        (Some(first), Some(last)) => format!("batches {first} to {last}"),
        _ => "no batches".to_owned(),
    };
    format!("{}: {id}{owner}\n  {kept}, epoch {}\n", look.query, look.epoch)
}

fn source_name(offsets: &OffsetEntry, index: usize) -> String {
    offsets.sources.get(index).cloned().unwrap_or_else(|| index.to_string())
}

fn ranges(offsets: &OffsetEntry, before: Option<&OffsetEntry>) -> Vec<Vec<String>> {
    let show = |offset: Option<&Offset>| offset.map_or_else(|| "start".to_owned(), Offset::to_string);
    let start = |index: usize| before.and_then(|before| before.offsets.get(index)?.as_ref());
    let row = |(index, end): (usize, &Option<Offset>)| {
        vec![source_name(offsets, index), show(start(index)), show(end.as_ref())]
    };
    offsets.offsets.iter().enumerate().map(row).collect()
}

fn sources_json(offsets: &OffsetEntry, before: Option<&OffsetEntry>) -> Value {
    let start = |index: usize| before.and_then(|before| before.offsets.get(index)?.as_ref());
    let source = |(index, end): (usize, &Option<Offset>)| json!({ "source": source_name(offsets, index), "from": offset_json(start(index)), "to": offset_json(end.as_ref()) });
    offsets.offsets.iter().enumerate().map(source).collect()
}

fn describe_state(state: &StateRef, look: &Look, text: &mut String) {
    let rows: Vec<String> =
        state.rows.iter().enumerate().map(|(n, rows)| format!("operator {n}: {rows} rows")).collect();
    let snapshots: Vec<String> =
        state.snapshots.iter().map(|s| format!("{} ({}, {} files)", s.version, size(s.bytes), s.parts)).collect();
    let deltas: u64 = state.deltas.iter().map(|run| run.last - run.first + 1).sum();
    let missing = state.files().iter().filter(|name| !look.files.contains_key(&format!("state/{name}"))).count();
    let _ = writeln!(text, "\nstate version {}: {}", state.version, rows.join(", "));
    let _ = writeln!(
        text,
        "  snapshots of versions: {}; {deltas} deltas after version {}{}",
        if snapshots.is_empty() { "none".to_owned() } else { snapshots.join(", ") },
        state.deltas_after,
        if missing > 0 { format!("; {missing} files are missing") } else { String::new() }
    );
}

/// Files by kind: how many, and their size.
fn sizes(look: &Look, batch: u64, commit: Option<&CommitEntry>) -> Vec<(&'static str, usize, u64)> {
    let sum = |wanted: &dyn Fn(&str) -> bool| {
        let files = look.files.iter().filter(|(name, _)| wanted(name));
        files.fold((0, 0), |(count, bytes), (_, file)| (count + 1, bytes + file.bytes))
    };
    let state: Vec<String> = commit
        .and_then(|commit| commit.perennial.as_ref()?.state.as_ref())
        .map_or_else(Vec::new, |state| state.files().iter().map(|name| format!("state/{name}")).collect());
    let own = [format!("offsets/{batch}"), format!("commits/{batch}")];
    let (of_batch, batch_bytes) = sum(&|name| own.iter().any(|n| n == name));
    let (of_state, state_bytes) = sum(&|name| state.iter().any(|n| n == name));
    let (all_state, all_state_bytes) = sum(&|name| name.starts_with("state/"));
    let (all, all_bytes) = sum(&|_| true);
    vec![
        ("logs of this batch", of_batch, batch_bytes),
        ("state of this batch", of_state, state_bytes),
        ("state, all batches", all_state, all_state_bytes),
        ("checkpoint", all, all_bytes),
    ]
}
