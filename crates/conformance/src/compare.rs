//! Comparing what ran with what Spark recorded.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use perennial_core::ddl::simple_type;
use perennial_core::error::{Error, ErrorKind};
use perennial_core::plan::OperatorProgress;
use serde_json::{Value, json};

use crate::case::{Case, Column, Step};
use crate::run::{BatchRan, StepRan, show};
use crate::values::{self, difference, timestamp};

/// Spark's catch-all condition, which says as little as none.
const LEGACY: &str = "_LEGACY_ERROR_TEMP_3102";

/// The condition of an error of the running query whose cause has none.
const STREAM_FAILED: &str = "STREAM_FAILED";

/// Compares the result's columns.
pub fn schema(case: &Case, schema: &Schema) -> Result<(), String> {
    let fields = schema.fields().iter();
    let ours: Vec<Column> =
        fields.map(|field| Column { name: field.name().clone(), data_type: simple_type(field.data_type()) }).collect();
    if ours == case.output_schema {
        return Ok(());
    }
    let shown = |columns: &[Column]| {
        columns.iter().map(|column| format!("{} {}", column.name, column.data_type)).collect::<Vec<_>>().join(", ")
    };
    Err(format!("columns {}, Spark {}", shown(&ours), shown(&case.output_schema)))
}

/// Compares what ran in a step.
pub fn step(case: &Case, step: &Step, ran: &StepRan, details: bool) -> Result<(), String> {
    match (&ran.error, &step.error_class) {
        (Some(error), Some(condition)) => refusal(condition.as_deref(), &step.error_causes, error, details)?,
        (Some(error), None) => return Err(show(error)),
        (None, Some(condition)) => {
            return Err(format!("it does not stop; Spark stops with {}", condition.as_deref().unwrap_or("an error")));
        }
        (None, None) => {}
    }
    for (number, (batch, theirs)) in ran.batches.iter().zip(&step.output_batches).enumerate() {
        let rows: Vec<Value> = batch.rows.iter().flat_map(values::rows).collect();
        let schema = batch.rows.first().map_or_else(|| Arc::new(Schema::empty()), RecordBatch::schema);
        if let Some(difference) = difference(&rows, theirs, &schema, case.ordered) {
            return Err(format!("batch {number}: {difference}"));
        }
    }
    same("number of batches", ran.batches.len(), step.output_batches.len())?;
    if step.error_class.is_some() {
        return Ok(());
    }
    if let Some(before) = step.batches_before_input {
        same("number of batches before the input", ran.before_input, before)?;
    }
    if let Some(last) = ran.batches.last() {
        same("watermark", watermark(last.report.watermark_ms), step.watermark.clone())?;
        same("next watermark", watermark(last.report.next_watermark_ms), step.next_watermark.clone())?;
    }
    for (number, (ran, batch)) in ran.batches.iter().zip(&step.batches).enumerate() {
        let at = |what: &str| format!("batch {number}: {what}");
        same(&at("watermark"), watermark(ran.report.watermark_ms), batch.watermark.clone())?;
        same(&at("next watermark"), watermark(ran.report.next_watermark_ms), batch.next_watermark.clone())?;
    }
    if let (Some(rows), Some(last)) = (step.state_rows, ran.batches.last()) {
        same("rows in state", last.report.operators.iter().map(|operator| operator.rows_total).sum::<u64>(), rows)?;
    }
    if let Some(dropped) = step.dropped_by_watermark {
        let operators = ran.batches.iter().flat_map(|batch| &batch.report.operators);
        let ours: u64 = operators.map(|operator| operator.rows_dropped_by_watermark).sum();
        same("rows dropped by the watermark", ours, dropped)?;
    }
    if details { in_detail(step, &ran.batches) } else { Ok(()) }
}

/// Compares what the single operators did, and closes the accounts of each batch.
fn in_detail(step: &Step, ran: &[BatchRan]) -> Result<(), String> {
    for (number, (ran, batch)) in ran.iter().zip(&step.batches).enumerate() {
        let report = &ran.report;
        let open = report.counts.missing(!report.operators.is_empty());
        same(&format!("batch {number}: rows not accounted for"), open, 0)?;
        // Where the input of a sort is run twice, Spark counts twice.
        if step.state_rows.is_some() {
            let ours = report.operators.iter().map(shown).collect();
            same(&format!("batch {number}: operators"), Value::Array(ours), Value::Array(batch.operators.clone()))?;
        }
    }
    Ok(())
}

/// An operator as the cases write it.
fn shown(operator: &OperatorProgress) -> Value {
    let mut shown = json!({
        "name": operator.name,
        "rows_total": operator.rows_total,
        "rows_updated": operator.rows_updated,
        "rows_removed": operator.rows_removed,
        "rows_dropped_by_watermark": operator.rows_dropped_by_watermark,
    });
    if operator.name.starts_with("dedupe") {
        shown["rows_dropped_as_duplicates"] = json!(operator.rows_dropped_duplicate);
    }
    shown
}

/// Compares an error that both sides stop with: with Spark's `condition`, or one of its causes, where both name one.
pub fn refusal(condition: Option<&str>, causes: &[String], error: &Error, details: bool) -> Result<(), String> {
    if !matches!(error.kind(), ErrorKind::Data | ErrorKind::Schema | ErrorKind::Config) {
        return Err(format!("it fails, but not of itself: {}", show(error)));
    }
    let message = error.to_string();
    let (Some(ours), Some(theirs)) = (condition_of(&message), condition) else { return Ok(()) };
    let vague = |condition: &str| [LEGACY, STREAM_FAILED].contains(&condition);
    let known = ours == theirs || causes.iter().any(|cause| cause == ours);
    if details && !known && !vague(theirs) && !vague(ours) {
        return Err(format!("{ours}, Spark {theirs}: {message}"));
    }
    Ok(())
}

/// The name of a condition in a message: `SOME_CONDITION.WITH_PART: …`.
fn condition_of(message: &str) -> Option<&str> {
    message.split(|c: char| c.is_whitespace() || c == '[' || c == ']').find_map(|word| {
        let word = word.strip_suffix(':').unwrap_or(word);
        let fits = word.contains('_')
            && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || "_.".contains(c));
        fits.then_some(word)
    })
}

fn watermark(millis: Option<i64>) -> Option<String> {
    millis.map(|millis| timestamp(millis * 1_000))
}

fn same<T: PartialEq + Shown>(what: &str, ours: T, theirs: T) -> Result<(), String> {
    if ours == theirs { Ok(()) } else { Err(format!("{what} {}, Spark {}", ours.shown(), theirs.shown())) }
}

/// A value for a line of the report.
trait Shown {
    fn shown(&self) -> String;
}

impl Shown for Option<String> {
    fn shown(&self) -> String {
        self.clone().unwrap_or_else(|| "none".into())
    }
}

macro_rules! shown_as_text {
    ($($type:ty),*) => {
        $(impl Shown for $type {
            fn shown(&self) -> String {
                self.to_string()
            }
        })*
    };
}

shown_as_text!(usize, u64, i64, Value);

#[cfg(test)]
mod tests {
    use super::condition_of;

    #[test]
    fn conditions_are_found_in_messages() {
        for (message, condition) in [
            ("UNRESOLVED_COLUMN.WITH_SUGGESTION: there is no column `x`", Some("UNRESOLVED_COLUMN.WITH_SUGGESTION")),
            ("queries.query.sql: AMBIGUOUS_REFERENCE: `a`", Some("AMBIGUOUS_REFERENCE")),
            ("[DIVIDE_BY_ZERO] Division by zero", Some("DIVIDE_BY_ZERO")),
            ("the column is a TIMESTAMP, not SQL", None),
        ] {
            assert_eq!(condition_of(message), condition);
        }
    }
}
