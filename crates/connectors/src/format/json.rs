//! JSON, as Spark 4.3's reader decodes it.
//!
//! Ordinary records take the fast path ([`fast`]): from bytes into columns in one pass. Whatever is odd about a record, the fast path
//! gives up on it, its traces are removed, and the exact path ([`exact`], on the tokens of [`tokens`]) decides what becomes of it. The
//! tests hold the two against each other.

use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::Array;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use perennial_core::ddl;
use perennial_core::decode::{Decoded, Decoder};
use perennial_core::error::{Error, Result, class};
use perennial_core::records::{Input, Payload, RecordBlock};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::temporal::Temporal;
use super::{Batch, CORRUPT_RECORD, Mode, Wanted, rows};
use exact::Exact;
use fast::{Fast, Shape};

mod exact;
mod fast;
mod tokens;

/// Settings of `format: json`. The defaults are those of Spark's JSON reader, except for `mode`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JsonFormat {
    /// What becomes of a malformed record: `dead_letter` (the default), or as in Spark `permissive`, `dropmalformed`, `failfast`.
    pub mode: Mode,
    /// Name of the STRING column that holds malformed records in the mode `permissive`. It works when the schema has such a column.
    pub corrupt_record_column: String,
    /// Time zone of timestamps that name none: `Europe/Paris`, `+02:00`. UTC when not set.
    pub time_zone: Option<String>,
    /// Pattern of TIMESTAMP columns, such as `dd/MM/yyyy HH:mm:ss`. When not set, the ISO forms that Spark knows are read.
    pub timestamp_format: Option<String>,
    /// Pattern of TIMESTAMP_NTZ columns. When not set, the ISO forms without a time zone are read.
    pub timestamp_ntz_format: Option<String>,
    /// Pattern of DATE columns, such as `dd/MM/yyyy`. When not set, `yyyy-MM-dd` and its shorter forms are read.
    pub date_format: Option<String>,
    /// Comments (`// …`, `/* … */`) are white space.
    pub allow_comments: bool,
    /// Field names may stand without quotes.
    pub allow_unquoted_field_names: bool,
    /// Names and strings may stand in single quotes.
    pub allow_single_quotes: bool,
    /// Numbers may have zeros in front.
    pub allow_numeric_leading_zeros: bool,
    /// `NaN`, `Infinity`, `-Infinity`, `+INF`, `-INF` are numbers, also in quotes.
    pub allow_non_numeric_numbers: bool,
    /// Any character may stand behind a backslash.
    pub allow_backslash_escaping_any_character: bool,
    /// Strings may hold control characters as they are.
    pub allow_unquoted_control_chars: bool,
}

impl Default for JsonFormat {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            corrupt_record_column: CORRUPT_RECORD.to_owned(),
            time_zone: None,
            timestamp_format: None,
            timestamp_ntz_format: None,
            date_format: None,
            allow_comments: false,
            allow_unquoted_field_names: false,
            allow_single_quotes: true,
            allow_numeric_leading_zeros: false,
            allow_non_numeric_numbers: true,
            allow_backslash_escaping_any_character: false,
            allow_unquoted_control_chars: false,
        }
    }
}

/// Decodes JSON records.
#[derive(Debug)]
pub(super) struct JsonDecoder {
    settings: JsonFormat,
    wanted: Wanted,
    temporal: Temporal,
    /// Bytes per row of the last block, to make the columns large enough at once.
    bytes_per_row: AtomicUsize,
}

impl JsonDecoder {
    pub(super) fn new(settings: &JsonFormat, declared: &Schema, columns: &[usize]) -> Result<Self> {
        let wanted = Wanted::new(declared, columns, &settings.corrupt_record_column)?;
        for field in &wanted.fields {
            check_maps(field.data_type(), field.name())?;
        }
        let temporal = Temporal::new(
            settings.time_zone.as_deref(),
            settings.timestamp_format.as_deref(),
            settings.timestamp_ntz_format.as_deref(),
            settings.date_format.as_deref(),
            true,
        )?;
        Ok(Self { settings: settings.clone(), wanted, temporal, bytes_per_row: AtomicUsize::new(100) })
    }

    /// Lines: the fast path finds the end of a record by itself.
    fn lines(&self, text: &[u8], batch: &mut Batch) -> Result<()> {
        let valid = simdutf8::basic::from_utf8(text).is_ok();
        let exact = Exact { fields: &self.wanted.fields, options: &self.settings, temporal: &self.temporal };
        let mut shape = Shape::new(self.wanted.fields.iter().map(AsRef::as_ref));
        let mut fast = Fast::new(true, &self.temporal);
        let mut start = 0;
        while start < text.len() {
            let row = batch.next_row();
            if valid || std::str::from_utf8(&text[start..end_of_line(text, start)]).is_ok() {
                fast.seek(text, start);
                if fast.record(&mut shape, &mut batch.columns, row).is_some() {
                    batch.row_done(start);
                    // What stands behind the object is ignored.
                    start = end_of_line(text, fast.at) + 1;
                    continue;
                }
                batch.row_undone();
            }
            let end = end_of_line(text, start);
            let line = &text[start..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let outcome = exact.record(line);
            match outcome.problem {
                Some(problem) => batch.malformed(start, line, outcome.rows, problem)?,
                None => batch.add_rows(start, outcome.rows, None)?,
            }
            start = end + 1;
        }
        Ok(())
    }

    fn values(&self, values: &arrow::array::BinaryArray, batch: &mut Batch) -> Result<()> {
        let valid = simdutf8::basic::from_utf8(values.value_data()).is_ok();
        let exact = Exact { fields: &self.wanted.fields, options: &self.settings, temporal: &self.temporal };
        let mut shape = Shape::new(self.wanted.fields.iter().map(AsRef::as_ref));
        let mut fast = Fast::new(false, &self.temporal);
        for record in 0..values.len() {
            if values.is_null(record) {
                batch.empty(record, "the record has no value (a tombstone)")?;
                continue;
            }
            let value = values.value(record);
            let row = batch.next_row();
            // Where all values together are valid, a character that is cut in two can only be outside of the object.
            if valid || std::str::from_utf8(value).is_ok() {
                fast.seek(value, 0);
                if fast.record(&mut shape, &mut batch.columns, row).is_some() {
                    batch.row_done(record);
                    continue;
                }
                batch.row_undone();
            }
            let outcome = exact.record(value);
            match outcome.problem {
                _ if outcome.blank => batch.empty(record, "the record is empty")?,
                Some(problem) => batch.malformed(record, value, outcome.rows, problem)?,
                None => batch.add_rows(record, outcome.rows, None)?,
            }
        }
        Ok(())
    }
}

impl Decoder for JsonDecoder {
    fn schema(&self) -> SchemaRef {
        self.wanted.schema.clone()
    }

    fn decode(&self, input: Input) -> Result<Decoded> {
        let block = match input {
            Input::Records(block) => block,
            Input::Rows(rows, _) => return rows::conform(&rows, &self.wanted.schema),
        };
        let rows = self.expected_rows(&block);
        let mut batch = Batch::new(&self.wanted, self.settings.mode, &block, rows)?;
        match &block.payload {
            Payload::Lines(text) => self.lines(text, &mut batch)?,
            Payload::Values(values) => self.values(values, &mut batch)?,
        }
        if let Some(bytes) = block.byte_len().checked_div(batch.next_row()) {
            self.bytes_per_row.store(bytes.max(1), Ordering::Relaxed);
        }
        batch.finish()
    }
}

impl JsonDecoder {
    fn expected_rows(&self, block: &RecordBlock) -> usize {
        match &block.payload {
            Payload::Values(values) => values.len(),
            Payload::Lines(text) => {
                let rows = text.len() / self.bytes_per_row.load(Ordering::Relaxed);
                rows + rows / 16 + 1
            }
        }
    }
}

/// Where the line that `from` is in ends.
#[inline]
fn end_of_line(text: &[u8], from: usize) -> usize {
    match text.get(from) {
        Some(b'\n') => from,
        Some(_) => memchr::memchr(b'\n', &text[from..]).map_or(text.len(), |length| from + length),
        None => text.len(),
    }
}

/// Keys of JSON objects are text, so keys of maps are, too.
fn check_maps(data_type: &DataType, path: &str) -> Result<()> {
    match data_type {
        DataType::Map(entries, _) => {
            let DataType::Struct(pair) = entries.data_type() else { return Ok(()) };
            if pair[0].data_type() != &DataType::Utf8 {
                let key = ddl::simple_type(pair[0].data_type()).to_uppercase();
                return Err(Error::new(
                    class::CONFIG_INVALID,
                    format!(
                        "column `{path}`: the keys of JSON objects are text: write MAP<STRING, …> instead of MAP<{key}, …>"
                    ),
                ));
            }
            check_maps(pair[1].data_type(), path)
        }
        DataType::List(element) => check_maps(element.data_type(), path),
        DataType::Struct(fields) => {
            fields.iter().try_for_each(|field| check_maps(field.data_type(), &format!("{path}.{}", field.name())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::recorded::Case;

    fn cases() -> Vec<Case> {
        Case::all(include_str!("recorded/json.json"))
    }

    #[test]
    fn records_decode_as_in_spark() {
        cases().iter().for_each(Case::check);
    }

    #[test]
    fn extra() {
        if let Ok(path) = std::env::var("EXTRA") {
            for case in Case::all(&std::fs::read_to_string(path).unwrap()) {
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case.check()));
            }
        }
    }
}
