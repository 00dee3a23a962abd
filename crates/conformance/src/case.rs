//! A case file: streams, one query, and what Spark gave for it, step by step.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// A case.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// The streams, by name.
    pub sources: BTreeMap<String, Source>,
    /// The bounded tables, by name.
    #[serde(default)]
    pub static_tables: BTreeMap<String, Table>,
    /// Spark settings that differ from the default.
    #[serde(default)]
    pub conf: BTreeMap<String, String>,
    /// The query.
    pub sql: String,
    /// `append`, `update` or `complete`.
    pub output_mode: String,
    /// Whether the order of rows inside a batch is part of the result.
    #[serde(default)]
    pub ordered: bool,
    /// The result's columns; absent in refused cases.
    #[serde(default)]
    pub output_schema: Vec<Column>,
    /// Inputs and outputs, in order.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// Before these steps the query is stopped and started again.
    #[serde(default)]
    pub restart_before_step: BTreeSet<usize>,
    /// In these steps the sink fails once.
    #[serde(default)]
    pub fail_sink_in_step: BTreeSet<usize>,
    /// Spark refuses the query with this condition (NULL where the error has none).
    #[serde(default, deserialize_with = "some")]
    pub error_class: Option<Option<String>>,
    /// What Spark says then.
    #[serde(default)]
    pub error_message_first_line: Option<String>,
}

/// A stream.
#[derive(Debug, Deserialize)]
pub struct Source {
    /// Columns as Spark DDL.
    pub schema: String,
    /// Event time.
    pub watermark: Option<Watermark>,
    /// Dropping duplicates.
    #[serde(default)]
    pub deduplicate: Option<Deduplicate>,
    /// Options of Spark's JSON reader.
    #[serde(default)]
    pub reader_options: BTreeMap<String, String>,
}

/// The watermark of a stream.
#[derive(Debug, Deserialize)]
pub struct Watermark {
    /// The event time.
    pub column: String,
    /// An interval as text.
    pub delay: String,
}

/// `dropDuplicates` of a stream.
#[derive(Debug, Deserialize)]
pub struct Deduplicate {
    /// What tells duplicates.
    pub columns: Vec<String>,
    /// `dropDuplicatesWithinWatermark`.
    #[serde(default)]
    pub within_watermark: bool,
}

/// A bounded table.
#[derive(Debug, Deserialize)]
pub struct Table {
    /// Columns as Spark DDL.
    pub schema: String,
    /// Its rows as they stand in the file.
    pub rows: Vec<Box<RawValue>>,
}

/// A column of the result.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Spark's simple name of its type.
    #[serde(rename = "type")]
    pub data_type: String,
}

/// New input, and what came of it.
#[derive(Debug, Deserialize)]
pub struct Step {
    /// Rows per stream, as they stand in the file.
    #[serde(default)]
    pub input: BTreeMap<String, Vec<Box<RawValue>>>,
    /// Text lines per stream.
    #[serde(default)]
    pub raw_input: BTreeMap<String, Vec<String>>,
    /// Rows per micro-batch.
    #[serde(default)]
    pub output_batches: Vec<Vec<Value>>,
    /// The watermark of the last batch.
    #[serde(default)]
    pub watermark: Option<String>,
    /// The watermark after it.
    #[serde(default)]
    pub next_watermark: Option<String>,
    /// Rows in state after the step.
    #[serde(default)]
    pub state_rows: Option<u64>,
    /// Rows dropped as late in the step.
    #[serde(default)]
    pub dropped_by_watermark: Option<u64>,
    /// Details per micro-batch.
    #[serde(default)]
    pub batches: Vec<Batch>,
    /// How many of the batches ran before the input arrived.
    #[serde(default)]
    pub batches_before_input: Option<usize>,
    /// The query stops in this step with this condition.
    #[serde(default, deserialize_with = "some")]
    pub error_class: Option<Option<String>>,
    /// The conditions of the causes.
    #[serde(default)]
    pub error_causes: Vec<String>,
}

/// Details of a micro-batch.
#[derive(Debug, Deserialize)]
pub struct Batch {
    /// Its watermark.
    pub watermark: Option<String>,
    /// The watermark of the next one.
    pub next_watermark: Option<String>,
    /// Per stateful operator what it did.
    #[serde(default)]
    pub operators: Vec<Value>,
}

impl Case {
    /// Reads a case file.
    pub fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| format!("the file is not a case: {error}"))
    }

    /// The condition with which the query stops in its first batch, before anything came out.
    pub fn stops_at_once(&self) -> Option<&str> {
        let first = self.steps.first().filter(|step| step.output_batches.is_empty())?;
        first.error_class.as_ref()?.as_deref()
    }

    /// Whether Spark refuses the query.
    pub fn is_refused(&self) -> bool {
        self.error_class.is_some()
    }
}

impl Step {
    /// The lines that each stream gets, each ended by a line feed.
    pub fn units(&self) -> impl Iterator<Item = (&str, String)> {
        let rows = self.input.iter().map(|(source, rows)| (source.as_str(), lines(rows)));
        let raw = self.raw_input.iter().map(|(source, lines)| {
            let text = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
            (source.as_str(), text)
        });
        rows.chain(raw)
    }
}

/// Rows as JSON lines, with their values as they are written in the file: `1.10` and `1.1` are different texts.
pub fn lines(rows: &[Box<RawValue>]) -> String {
    rows.iter().map(|row| one_line(row.get()) + "\n").collect()
}

/// A JSON value without line feeds, which can only stand between its tokens.
fn one_line(json: &str) -> String {
    json.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Tells a field that is NULL from one that is not there.
fn some<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}
