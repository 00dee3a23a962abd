use std::collections::HashMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::row::{OwnedRow, RowConverter, SortField};
use arrow::util::pretty::pretty_format_batches;
use perennial_core::checkpoint::{CommitEntry, Look, OffsetEntry};
use perennial_core::error::{Error, Result, class};
use perennial_core::state::inspect::OperatorRows;
use serde_json::{Value, json};

use super::output::{Format, watermark};
use super::place::Place;
use super::show::{offset_json, state_of, which};
use crate::terminal::Failure;

/// Compare two batches of a query, or of two checkpoints.
///
/// Offsets, watermark, and the state by key: which keys came, went and changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  perennial checkpoint diff job.yaml per_minute --batch 40 --with-batch 41\n  \
                        perennial checkpoint diff job.yaml per_minute --with ./checkpoints/trial\n\n\
                        Exit codes: 0 they are alike, 1 they differ or it failed.")]
pub struct Diff {
    /// Job file, directory or URL.
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: String,

    /// The query; not needed where there is one.
    #[arg(value_name = "QUERY")]
    query: Option<String>,

    /// The batch. By default the last one that is committed.
    #[arg(long, value_name = "N")]
    batch: Option<u64>,

    /// The other checkpoint. By default the same.
    #[arg(long, value_name = "CHECKPOINT", required_unless_present = "with_batch")]
    with: Option<String>,

    /// The query of the other checkpoint. By default the one of the same name.
    #[arg(long, value_name = "QUERY")]
    with_query: Option<String>,

    /// The batch of the other checkpoint. By default its last one.
    #[arg(long, value_name = "N")]
    with_batch: Option<u64>,

    /// Show at most so many rows of the state.
    #[arg(long, value_name = "ROWS", default_value_t = 20)]
    limit: usize,

    #[command(flatten)]
    format: Format,
}

/// One of the two.
struct Side {
    name: String,
    offsets: OffsetEntry,
    commit: Option<CommitEntry>,
    state: Vec<OperatorRows>,
}

impl Side {
    async fn read(place: &Place, look: &Look, batch: u64) -> Result<Self> {
        let name = format!("{}/{} batch {batch}", place.location, look.query);
        let entry = look.offsets.get(&batch).and_then(|entry| entry.good());
        let offsets =
            entry.ok_or_else(|| Error::new(class::CHECKPOINT_CORRUPT, format!("{name}: its offsets are damaged")))?;
        let commit = look.commits.get(&batch).and_then(|entry| entry.good());
        let has_state =
            commit.and_then(|commit| commit.perennial.as_ref()).is_some_and(|details| details.state.is_some());
        let state = if has_state { state_of(place, look, batch).await? } else { Vec::new() };
        Ok(Self { name, offsets: offsets.clone(), commit: commit.cloned(), state })
    }
}

impl Diff {
    pub async fn execute(&self) -> Result<ExitCode, Failure> {
        let place = Place::open(&self.checkpoint).await?;
        let query = place.query(self.query.as_deref()).await?;
        let look = place.look(&query).await?;
        let one = Side::read(&place, &look, which(&look, self.batch)?).await?;
        let other = match &self.with {
            Some(with) => Place::open(with).await?,
            None => place,
        };
        let named = self.with_query.clone().or_else(|| self.with.is_none().then(|| query.clone()));
        let all = other.queries(None).await?;
        let other_query = match named {
            Some(named) => other.query(Some(&named)).await?,
            None if all.contains(&query) => query,
            None => other.query(None).await?,
        };
        let look = other.look(&other_query).await?;
        let two = Side::read(&other, &look, which(&look, self.with_batch)?).await?;

        let mut text = format!("- {}\n+ {}\n", one.name, two.name);
        let mut same = true;
        let mut sources = Vec::new();
        let names = one.offsets.sources.len().max(one.offsets.offsets.len()).max(two.offsets.offsets.len());
        for index in 0..names {
            let name = one.offsets.sources.get(index).cloned().unwrap_or_else(|| index.to_string());
            let of = |side: &Side| offset_json(side.offsets.offsets.get(index).and_then(Option::as_ref));
            let (before, after) = (of(&one), of(&two));
            if before != after {
                same = false;
                let _ = writeln!(text, "source {name}:\n  - {before}\n  + {after}");
            }
            sources.push(json!({ "source": name, "one": before, "two": after }));
        }
        let mark = |side: &Side| side.commit.as_ref().map(|commit| commit.next_watermark_ms);
        let (before, after) = (mark(&one), mark(&two));
        if before != after {
            same = false;
            let show = |mark: Option<i64>| mark.map_or_else(|| "not committed".to_owned(), watermark);
            let _ = writeln!(text, "watermark:\n  - {}\n  + {}", show(before), show(after));
        }
        let mut operators = Vec::new();
        for index in 0..one.state.len().max(two.state.len()) {
            let changes = match (one.state.get(index), two.state.get(index)) {
                (Some(one), Some(two)) => Changes::between(one, two)?,
                (Some(one), None) => Changes { removed: one.rows.clone(), ..Changes::default() },
                (None, Some(two)) => Changes { added: two.rows.clone(), ..Changes::default() },
                (None, None) => continue,
            };
            same &= changes.is_empty();
            changes.describe(index, self.limit, &mut text)?;
            operators.push(changes.json(index));
        }
        if same {
            text += "they are alike\n";
        }
        let json = json!({
            "one": one.name, "two": two.name, "alike": same, "sources": sources,
            "watermark_ms": { "one": before, "two": after }, "state": operators,
        });
        self.format.print(&text, &json)?;
        Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// How the rows of an operator differ.
#[derive(Default)]
struct Changes {
    added: Vec<RecordBatch>,
    removed: Vec<RecordBatch>,
    /// Rows of changed keys before and after, in the same order.
    before: Vec<RecordBatch>,
    after: Vec<RecordBatch>,
    alike: usize,
}

fn count(rows: &[RecordBatch]) -> usize {
    rows.iter().map(RecordBatch::num_rows).sum()
}

impl Changes {
    fn between(one: &OperatorRows, two: &OperatorRows) -> Result<Self> {
        let schema = |rows: &OperatorRows| rows.rows.first().map(RecordBatch::schema);
        let (Some(schema_one), Some(schema_two)) = (schema(one), schema(two)) else {
            return Ok(Self { removed: one.rows.clone(), added: two.rows.clone(), ..Self::default() });
        };
        if schema_one.fields().iter().map(|f| f.data_type()).ne(schema_two.fields().iter().map(|f| f.data_type())) {
            return Err(Error::new(
                class::CHECKPOINT_MISMATCH,
                format!("operator {} has other columns in both: their states cannot be compared", one.spec.operator),
            ));
        }
        let (rows_one, rows_two) = (concat_batches(&schema_one, &one.rows)?, concat_batches(&schema_two, &two.rows)?);
        let fields = |from: usize, to: usize| -> Vec<SortField> {
            schema_one.fields()[from..to].iter().map(|field| SortField::new(field.data_type().clone())).collect()
        };
        let (keys, columns) = (one.spec.keys, schema_one.fields().len());
        let (of_keys, of_values) = (RowConverter::new(fields(0, keys))?, RowConverter::new(fields(keys, columns))?);
        let index = key_index(&of_keys, &rows_one, keys)?;
        let values = |rows: &RecordBatch| -> Result<Vec<OwnedRow>> {
            owned(&of_values, &rows.columns()[keys..], rows.num_rows())
        };
        let (values_one, values_two) = (values(&rows_one)?, values(&rows_two)?);
        let mut seen = vec![false; rows_one.num_rows()];
        let (mut added, mut before, mut after, mut alike) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (at, key) in owned(&of_keys, &rows_two.columns()[..keys], rows_two.num_rows())?.iter().enumerate() {
            match index.get(key) {
                Some(was) => {
                    seen[*was] = true;
                    if values_one.get(*was) == values_two.get(at) {
                        alike += 1;
                    } else {
                        before.push(*was as u32);
                        after.push(at as u32);
                    }
                }
                None => added.push(at as u32),
            }
        }
        let removed: Vec<u32> = seen.iter().enumerate().filter(|(_, seen)| !**seen).map(|(at, _)| at as u32).collect();
        let pick = |rows: &RecordBatch, at: Vec<u32>| -> Result<Vec<RecordBatch>> {
            Ok(vec![take_record_batch(rows, &UInt32Array::from(at))?])
        };
        Ok(Self {
            added: pick(&rows_two, added)?,
            removed: pick(&rows_one, removed)?,
            before: pick(&rows_one, before)?,
            after: pick(&rows_two, after)?,
            alike,
        })
    }

    fn is_empty(&self) -> bool {
        [&self.added, &self.removed, &self.before].iter().all(|rows| count(rows) == 0)
    }

    fn describe(&self, operator: usize, limit: usize, text: &mut String) -> Result<()> {
        let _ = writeln!(
            text,
            "state of operator {operator}: {} keys came, {} went, {} changed, {} are alike",
            count(&self.added),
            count(&self.removed),
            count(&self.after),
            self.alike
        );
        for (title, rows) in [
            ("came", &self.added),
            ("went", &self.removed),
            ("changed, before", &self.before),
            ("changed, after", &self.after),
        ] {
            let all = count(rows);
            if all == 0 || limit == 0 {
                continue;
            }
            let mut left = limit;
            let mut shown = Vec::new();
            for batch in rows {
                shown.push(batch.slice(0, batch.num_rows().min(left)));
                left -= batch.num_rows().min(left);
            }
            let more = if all > limit { format!(" ({limit} of {all})") } else { String::new() };
            let _ = writeln!(text, "{title}{more}:\n{}", pretty_format_batches(&shown)?);
        }
        Ok(())
    }

    fn json(&self, operator: usize) -> Value {
        json!({
            "operator": operator, "came": count(&self.added), "went": count(&self.removed),
            "changed": count(&self.after), "alike": self.alike,
        })
    }
}

/// The place of each key.
fn key_index(converter: &RowConverter, rows: &RecordBatch, keys: usize) -> Result<HashMap<OwnedRow, usize>> {
    let owned = owned(converter, &rows.columns()[..keys], rows.num_rows())?;
    Ok(owned.into_iter().enumerate().map(|(at, key)| (key, at)).collect())
}

/// Rows in a form that can be compared. Without columns all rows are the same.
fn owned(converter: &RowConverter, columns: &[ArrayRef], rows: usize) -> Result<Vec<OwnedRow>> {
    if columns.is_empty() {
        let parser = converter.parser();
        return Ok((0..rows).map(|_| parser.parse(&[]).owned()).collect());
    }
    Ok(converter.convert_columns(columns)?.iter().map(|row| row.owned()).collect())
}
