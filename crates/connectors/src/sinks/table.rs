//! What the SQL sinks share: the columns they write, the ledger of batches, and the comparison with an existing table.

use std::fmt;

use arrow::array::RecordBatch;
use perennial_core::error::{Error, Result, class};
use perennial_core::sink::{OutputMode, SinkBatch, SinkContext};

use super::columns::{Column, Kind};

/// Columns of the ledger, which both sinks create alike: which batches of which query are in the tables.
pub(super) const LEDGER_COLUMNS: &str = "job, query, query_id, batch, rows, digest, epoch, committed_at";

/// How the transaction of a batch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It counts.
    Commit,
    /// It was only to see whether the rows are taken.
    TakeBack,
}

/// One column that the query writes.
#[derive(Debug, Clone)]
pub(super) struct ColumnPlan {
    pub name: String,
    pub kind: Kind,
    pub nullable: bool,
}

/// What is written to a table, and how.
#[derive(Debug, Clone)]
pub(super) struct TablePlan {
    pub columns: Vec<ColumnPlan>,
    pub kinds: Vec<Kind>,
    /// Indexes of the key's columns.
    pub key: Vec<usize>,
    pub mode: OutputMode,
}

impl TablePlan {
    /// Fits the query's columns, its output mode and the `key` of the settings together. `sink` is for the messages.
    pub fn new(sink: &str, context: &SinkContext, key: &[String]) -> Result<Self> {
        let wrong = |what: String| Error::new(class::CONFIG_INVALID, format!("{sink} sink: {what}"));
        let mut columns: Vec<ColumnPlan> = Vec::new();
        for field in context.schema.fields() {
            let kind = Kind::of(field.data_type()).ok_or_else(|| {
                wrong(format!(
                    "column `{}` has the type {}, which no table column takes; cast it in the query, for example to STRING",
                    field.name(),
                    field.data_type()
                ))
            })?;
            if columns.iter().any(|c| c.name.eq_ignore_ascii_case(field.name())) {
                return Err(wrong(format!("the query has two columns `{}`; name one otherwise (AS)", field.name())));
            }
            columns.push(ColumnPlan { name: field.name().clone(), kind, nullable: field.is_nullable() });
        }
        if columns.is_empty() {
            return Err(wrong("the query has no columns".to_owned()));
        }
        let key = key
            .iter()
            .map(|name| {
                columns.iter().position(|c| c.name == *name).ok_or_else(|| {
                    let names: Vec<_> = columns.iter().map(|c| c.name.as_str()).collect();
                    wrong(format!(
                        "the key names `{name}`, which the query does not give; it gives {}",
                        names.join(", ")
                    ))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        if let Some(twice) = key.iter().enumerate().find_map(|(i, k)| key[..i].contains(k).then_some(*k)) {
            return Err(wrong(format!("the key names `{}` twice", columns[twice].name)));
        }
        if context.output_mode == OutputMode::Update && key.is_empty() {
            return Err(wrong(
                "output_mode: update changes rows that are there already, and needs `key`: the columns that tell rows apart \
                 (usually those of GROUP BY)"
                    .to_owned(),
            ));
        }
        let kinds = columns.iter().map(|c| c.kind).collect();
        Ok(Self { columns, kinds, key, mode: context.output_mode })
    }

    /// The columns of a batch. A NULL in the key is refused: a database keeps NULLs apart, so the row would be doubled by its next
    /// update.
    pub fn convert(&self, batch: &RecordBatch, first_row: u64) -> Result<Vec<Column>> {
        let columns = Column::all(batch, &self.kinds)?;
        for key in &self.key {
            if let Some(row) = columns[*key].first_null() {
                let name = &self.columns[*key].name;
                return Err(Error::new(
                    class::CONSTRAINT_VIOLATION,
                    format!(
                        "row {} of the batch has NULL in `{name}`, which is part of the key; leave such rows out in the query \
                         (WHERE {name} IS NOT NULL) or give them a value (coalesce)",
                        first_row + row as u64
                    ),
                ));
            }
        }
        Ok(columns)
    }

    /// The quoted names of the key, comma separated.
    pub fn key_names(&self) -> String {
        list(self.key.iter().map(|i| quoted(&self.columns[*i].name)))
    }

    /// `ON CONFLICT (key) DO …` of an upsert: the later row wins.
    pub fn on_conflict(&self) -> String {
        let changes: Vec<_> = (0..self.columns.len())
            .filter(|i| !self.key.contains(i))
            .map(|i| quoted(&self.columns[i].name))
            .map(|name| format!("{name} = excluded.{name}"))
            .collect();
        let action =
            if changes.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", changes.join(", ")) };
        format!("ON CONFLICT ({}) DO {action}", self.key_names())
    }
}

/// An SQL identifier in quotes.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Items with commas between.
pub(crate) fn list(items: impl IntoIterator<Item = impl fmt::Display>) -> String {
    let mut text = String::new();
    for item in items {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&item.to_string());
    }
    text
}

/// One column of an existing table.
#[derive(Debug, Clone)]
pub(super) struct TargetColumn {
    pub name: String,
    /// The type as its database shows it.
    pub type_name: String,
    /// A value must be given: NOT NULL and no default.
    pub required: bool,
    /// The database computes the value and takes none.
    pub generated: bool,
}

/// Compares the query's columns with those of a table. `TargetSchema`, naming every difference.
pub(super) fn compare(
    table: &str,
    plan: &TablePlan,
    target: &[TargetColumn],
    same_name: impl Fn(&str, &str) -> bool,
    fits: impl Fn(Kind, &TargetColumn) -> bool,
) -> Result<()> {
    let mut differences = Vec::new();
    for column in &plan.columns {
        match target.iter().find(|t| same_name(&t.name, &column.name)) {
            None => differences.push(format!("it has no column `{}` ({})", column.name, column.kind)),
            Some(found) if found.generated => {
                differences
                    .push(format!("its column `{}` is computed by the database and takes no values", found.name));
            }
            Some(found) if !fits(column.kind, found) => differences
                .push(format!("its column `{}` is {}, the query gives {}", found.name, found.type_name, column.kind)),
            Some(_) => {}
        }
    }
    for missing in target.iter().filter(|t| t.required && !plan.columns.iter().any(|c| same_name(&t.name, &c.name))) {
        differences.push(format!("its column `{}` is NOT NULL and the query does not give it", missing.name));
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        class::TARGET_SCHEMA,
        format!(
            "table {table} does not fit the query: {}; change the query (cast, AS) or the table",
            differences.join("; ")
        ),
    ))
}

/// The newest entry of a query in the ledger.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Newest {
    pub batch: Option<i64>,
    pub epoch: Option<i64>,
}

/// Whether a batch that has no entry of its own may be written, by what the ledger has of its query.
pub(super) fn may_write(table: &str, batch: &SinkBatch, newest: Newest) -> Result<()> {
    if newest.epoch.is_some_and(|epoch| epoch > batch.epoch as i64) {
        return Err(Error::new(
            class::FENCED,
            format!(
                "a later run of this query (epoch {}) has written to {table}, this one has epoch {}: stop one of the two processes",
                newest.epoch.unwrap_or_default(),
                batch.epoch
            ),
        ));
    }
    if newest.batch.is_some_and(|newest| newest >= batch.id as i64) {
        return Err(Error::new(
            class::CHECKPOINT_MISMATCH,
            format!(
                "batch {} is older than what the ledger of {table} still remembers (its newest is batch {}): the checkpoint was \
                 set back too far to tell which rows are there; restore a newer checkpoint",
                batch.id,
                newest.batch.unwrap_or_default()
            ),
        ));
    }
    Ok(())
}

/// Warns when a repeated batch is not what it was.
pub(super) fn compare_digests(table: &str, batch: &SinkBatch, before: (i64, &str), now: (u64, &str)) {
    if before != (now.0 as i64, now.1) {
        tracing::warn!(
            batch = batch.id,
            rows_before = before.0,
            digest_before = before.1,
            rows_now = now.0,
            digest_now = now.1,
            "the repeated batch differs from the one in {table}, which stays as it was written first: the query or its \
             sources are not deterministic"
        );
    } else {
        tracing::info!(batch = batch.id, "the batch is in {table} already; it is left out");
    }
}

/// The settings of how long the ledger remembers are at least this: a supervisor may repeat the last batches.
pub(super) const LEDGER_BATCHES: u64 = 10_000;

/// Default of `ledger_table`.
pub(super) fn ledger_table() -> String {
    "_perennial_batches".to_owned()
}

/// Default of settings that are on.
pub(super) fn yes() -> bool {
    true
}
