//! Formats: decoders from raw records to rows.
//!
//! A decoder knows the schema of the job file and which of its columns a query uses; it decodes those only. What Spark's readers do
//! with odd input is what these do, with one more mode: by default a malformed record is rejected, and goes to the dead letters whole.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use perennial_core::decode::{Decoded, Decoder, Origin, Rejected};
use perennial_core::error::{Error, Result, class};
use perennial_core::records::{RecordBlock, RecordIndex, RecordPosition};
use schemars::{JsonSchema, SchemaGenerator, json_schema};
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

mod columns;
mod csv;
mod json;
mod pattern;
#[cfg(test)]
mod recorded;
mod rows;
mod temporal;
mod text;
mod time;

pub use csv::CsvFormat;
pub use json::JsonFormat;

use columns::{Column, Value};

/// How the records of a source are written: `format: json`, or with settings `format: { json: { mode: permissive } }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "a handful per job")]
pub enum Format {
    /// One JSON object (or an array of them) per record.
    Json(JsonFormat),
    /// One line of comma-separated values per record.
    Csv(CsvFormat),
    /// Parquet files, or any other source that gives rows by itself.
    Parquet,
}

impl Default for Format {
    fn default() -> Self {
        Self::Json(JsonFormat::default())
    }
}

/// What becomes of a malformed record: one that cannot be read, or with a value that does not fit a column that the query uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It goes to the dead letters, whole, with the reason. The other records are not touched.
    #[default]
    DeadLetter,
    /// As Spark's `PERMISSIVE`: what does not fit is NULL, and the corrupt-record column, if the schema has it, holds the record.
    Permissive,
    /// As Spark's `DROPMALFORMED`: it is left out, and only counted.
    Dropmalformed,
    /// As Spark's `FAILFAST`: it stops the query.
    Failfast,
}

/// The column that holds a malformed record in Spark's mode `PERMISSIVE`, when the settings name no other.
const CORRUPT_RECORD: &str = "_corrupt_record";

/// Makes the decoder of a source for a query.
///
/// `declared` is the whole schema of the source, `columns` are the indexes of the columns that the query uses. The rows have exactly
/// these columns, in ascending order, all nullable (also inside nested types).
///
/// # Errors
/// `ConfigInvalid` for settings that make no sense, and for column types that the format cannot hold; `UnsupportedOperation` where
/// Spark refuses the query for its columns.
pub fn decoder(format: &Format, declared: &Schema, columns: &[usize]) -> Result<Arc<dyn Decoder>> {
    let mut columns = columns.to_vec();
    columns.sort_unstable();
    columns.dedup();
    if let Some(missing) = columns.iter().find(|index| **index >= declared.fields().len()) {
        return Err(Error::bug(format!("column {missing} of a schema of {} columns", declared.fields().len())));
    }
    Ok(match format {
        Format::Json(settings) => Arc::new(json::JsonDecoder::new(settings, declared, &columns)?),
        Format::Csv(settings) => Arc::new(csv::CsvDecoder::new(settings, declared, &columns)?),
        Format::Parquet => {
            let fields: Vec<_> = columns.iter().map(|index| nullable_field(declared.field(*index))).collect();
            Arc::new(rows::RowsDecoder::new(Arc::new(Schema::new(fields))))
        }
    })
}

/// The same field with NULL allowed in it and inside it.
fn nullable_field(field: &Field) -> Field {
    let data_type = nullable_type(field.data_type());
    field.clone().with_data_type(data_type).with_nullable(true)
}

fn nullable_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|field| nullable_field(field)).collect()),
        DataType::List(element) => DataType::List(Arc::new(nullable_field(element))),
        DataType::Map(entries, sorted) => match entries.data_type() {
            // Arrow wants the entries and their keys to be there.
            DataType::Struct(pair) if pair.len() == 2 => {
                let pair = vec![pair[0].clone(), Arc::new(nullable_field(&pair[1]))];
                let entries = entries.as_ref().clone().with_data_type(DataType::Struct(Fields::from(pair)));
                DataType::Map(Arc::new(entries), *sorted)
            }
            _ => data_type.clone(),
        },
        other => other.clone(),
    }
}

/// The wanted columns of a source, apart from the one for malformed records.
#[derive(Debug)]
struct Wanted {
    /// The schema of the rows.
    schema: SchemaRef,
    /// The columns that are read from the record.
    fields: Fields,
    /// For each of `fields` its index in the declared schema.
    declared: Vec<usize>,
    /// Where among the columns of `schema` the one for malformed records is.
    corrupt: Option<usize>,
}

impl Wanted {
    fn new(declared: &Schema, columns: &[usize], corrupt_name: &str) -> Result<Self> {
        let is_corrupt = |index: &usize| declared.field(*index).name() == corrupt_name;
        let schema = Schema::new(columns.iter().map(|i| nullable_field(declared.field(*i))).collect::<Vec<_>>());
        let corrupt = columns.iter().position(is_corrupt);
        if let Some(index) = corrupt {
            if schema.field(index).data_type() != &DataType::Utf8 {
                let what = format!("the column `{corrupt_name}` holds malformed records and must be a STRING");
                return Err(Error::new(class::CONFIG_INVALID, what));
            }
            if columns.len() == 1 {
                return Err(Error::new(
                    class::UNSUPPORTED_OPERATION,
                    format!(
                        "the query uses no other column than `{corrupt_name}`, and a record is only malformed with regard to the \
                         columns that are used: use another column, too"
                    ),
                ));
            }
        }
        let declared: Vec<usize> = columns.iter().copied().filter(|index| !is_corrupt(index)).collect();
        let fields = schema.fields().iter().filter(|field| field.name() != corrupt_name).cloned().collect();
        Ok(Self { schema: Arc::new(schema), fields, declared, corrupt })
    }

    fn columns(&self, rows: usize) -> Result<Vec<Column>> {
        self.fields.iter().map(|field| Column::new(field.data_type(), rows)).collect()
    }
}

/// The rows of a block while they are decoded, and what becomes of the records that do not make it.
#[derive(Debug)]
struct Batch<'a> {
    wanted: &'a Wanted,
    mode: Mode,
    block: &'a RecordBlock,
    columns: Vec<Column>,
    corrupt: Option<Column>,
    /// Per row its record.
    records: Vec<RecordIndex>,
    rejected: Vec<Rejected>,
    dropped: u64,
}

impl<'a> Batch<'a> {
    fn new(wanted: &'a Wanted, mode: Mode, block: &'a RecordBlock, rows: usize) -> Result<Self> {
        if u32::try_from(block.byte_len()).is_err() {
            return Err(Error::bug(format!("a block of {} bytes is too large", block.byte_len())));
        }
        let corrupt = wanted.corrupt.map(|_| Column::new(&DataType::Utf8, 0)).transpose()?;
        let columns = wanted.columns(rows)?;
        let records = Vec::with_capacity(rows);
        Ok(Self { wanted, mode, block, columns, corrupt, records, rejected: Vec::new(), dropped: 0 })
    }

    /// Number of the next row.
    #[inline]
    fn next_row(&self) -> usize {
        self.records.len()
    }

    /// All columns have one more row.
    #[inline]
    fn row_done(&mut self, record: usize) {
        self.records.push(record as RecordIndex);
        if let Some(corrupt) = &mut self.corrupt {
            corrupt.push_null();
        }
    }

    /// Takes back what the columns have of the next row.
    fn row_undone(&mut self) {
        let rows = self.next_row();
        self.columns.iter_mut().for_each(|column| column.truncate(rows));
    }

    /// Adds the rows of a record, with its text where it is malformed.
    fn add_rows(&mut self, record: usize, rows: Vec<Vec<Value>>, malformed: Option<&[u8]>) -> Result<()> {
        for row in rows {
            for (column, value) in self.columns.iter_mut().zip(row) {
                column.push(value)?;
            }
            self.records.push(record as RecordIndex);
            if let Some(corrupt) = &mut self.corrupt {
                let text = malformed.map(|text| Value::Text(String::from_utf8_lossy(text).into_owned()));
                corrupt.push(text.unwrap_or(Value::Null))?;
            }
        }
        Ok(())
    }

    /// Does with a malformed record as the mode says. `rows` is what could be read of it all the same.
    fn malformed(
        &mut self,
        record: usize,
        text: &[u8],
        rows: Vec<Vec<Value>>,
        reason: impl Into<String>,
    ) -> Result<()> {
        match self.mode {
            Mode::DeadLetter => self.rejected.push(Rejected {
                record: record as RecordIndex,
                class: class::MALFORMED_RECORD,
                reason: reason.into(),
            }),
            Mode::Permissive => {
                let rows = if rows.is_empty() { vec![vec![Value::Null; self.columns.len()]] } else { rows };
                self.add_rows(record, rows, Some(text))?;
            }
            Mode::Dropmalformed => self.dropped += 1,
            Mode::Failfast => {
                let position = self.block.record(record as RecordIndex).map(|record| describe(&record.position));
                let position = position.unwrap_or_else(|| "the source".to_owned());
                return Err(Error::new(
                    class::MALFORMED_RECORD,
                    format!("{position}: {}; `mode: failfast` stops the query here", reason.into()),
                ));
            }
        }
        Ok(())
    }

    /// Does with a malformed record as the mode says when the columns have its row already, NULL where it does not fit.
    fn row_malformed(&mut self, record: usize, text: &[u8], reason: String) -> Result<()> {
        if self.mode != Mode::Permissive {
            self.row_undone();
            return self.malformed(record, text, Vec::new(), reason);
        }
        self.records.push(record as RecordIndex);
        match &mut self.corrupt {
            Some(corrupt) => corrupt.push(Value::Text(String::from_utf8_lossy(text).into_owned())),
            None => Ok(()),
        }
    }

    /// A record of a source of single values that has nothing in it. Unlike a blank line it counts.
    fn empty(&mut self, record: usize, reason: &str) -> Result<()> {
        if self.mode == Mode::Permissive {
            let row = vec![Value::Null; self.columns.len()];
            return self.add_rows(record, vec![row], None);
        }
        self.malformed(record, b"", Vec::new(), reason)
    }

    fn finish(self) -> Result<Decoded> {
        let rows = self.records.len();
        let mut arrays = self.columns.into_iter().map(Column::finish).collect::<Result<Vec<_>>>()?;
        if let (Some(index), Some(corrupt)) = (self.wanted.corrupt, self.corrupt) {
            arrays.insert(index, corrupt.finish()?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let rows = RecordBatch::try_new_with_options(self.wanted.schema.clone(), arrays, &options)?;
        let in_step = self.records.iter().enumerate().all(|(row, record)| row == *record as usize);
        let records = if in_step { None } else { Some(self.records) };
        let origin = Origin { block: Some(Arc::new(self.block.clone())), records };
        Ok(Decoded { rows, origin, rejected: self.rejected, dropped: self.dropped })
    }
}

/// A position for people.
fn describe(position: &RecordPosition) -> String {
    match position {
        RecordPosition::File { path, offset } => format!("{path}, byte {offset}"),
        RecordPosition::Kafka { topic, partition, offset, .. } => {
            format!("{topic}, partition {partition}, offset {offset}")
        }
        RecordPosition::Sequence { name, number } => format!("{name}, record {number}"),
    }
}

const NAMES: &[&str] = &["json", "csv", "parquet"];

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FormatVisitor;

        impl<'de> Visitor<'de> for FormatVisitor {
            type Value = Format;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a format (json, csv, parquet), or a name with settings such as `json: { mode: permissive }`")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Format, E> {
                match name {
                    "json" => Ok(Format::Json(JsonFormat::default())),
                    "csv" => Ok(Format::Csv(CsvFormat::default())),
                    "parquet" => Ok(Format::Parquet),
                    other => Err(E::unknown_variant(other, NAMES)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Format, A::Error> {
                let name = map.next_key::<Cow<'de, str>>()?;
                let name = name.ok_or_else(|| de::Error::custom("a format needs a name: json, csv or parquet"))?;
                let format = match &*name {
                    "json" => Format::Json(map.next_value::<Option<_>>()?.unwrap_or_default()),
                    "csv" => Format::Csv(map.next_value::<Option<_>>()?.unwrap_or_default()),
                    "parquet" => {
                        map.next_value::<Option<NoSettings>>()?;
                        Format::Parquet
                    }
                    other => return Err(de::Error::unknown_variant(other, NAMES)),
                };
                match map.next_key::<Cow<'de, str>>()? {
                    None => Ok(format),
                    Some(second) => Err(de::Error::custom(format!(
                        "a source has one format, but `{name}` and `{second}` are there; settings of `{name}` are indented below it"
                    ))),
                }
            }
        }

        deserializer.deserialize_any(FormatVisitor)
    }
}

/// A format without settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

impl JsonSchema for Format {
    fn schema_name() -> Cow<'static, str> {
        "Format".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> schemars::Schema {
        let json = generator.subschema_for::<JsonFormat>();
        let csv = generator.subschema_for::<CsvFormat>();
        json_schema!({
            "description": "How the records of a source are written: `json`, or with settings `{ json: { mode: permissive } }`.",
            "oneOf": [
                { "type": "string", "enum": NAMES },
                {
                    "type": "object",
                    "properties": { "json": json, "csv": csv, "parquet": { "type": "object", "description": "Rows of Parquet files; it has no settings.", "maxProperties": 0 } },
                    "minProperties": 1,
                    "maxProperties": 1,
                    "additionalProperties": false,
                },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Source {
        format: Format,
    }

    #[test]
    fn a_format_is_a_name_or_a_name_with_settings() {
        let permissive = JsonFormat { mode: Mode::Permissive, ..JsonFormat::default() };
        for (text, expected) in [
            (r#"{"format":"json"}"#, Format::default()),
            (r#"{"format":{"json":null}}"#, Format::default()),
            (r#"{"format":{"json":{}}}"#, Format::default()),
            (r#"{"format":{"json":{"mode":"permissive"}}}"#, Format::Json(permissive)),
            (r#"{"format":"csv"}"#, Format::Csv(CsvFormat::default())),
            (r#"{"format":{"csv":{"header":true}}}"#, Format::Csv(CsvFormat { header: true, ..CsvFormat::default() })),
            (r#"{"format":"parquet"}"#, Format::Parquet),
            (r#"{"format":{"parquet":{}}}"#, Format::Parquet),
        ] {
            assert_eq!(serde_json::from_str::<Source>(text).unwrap().format, expected, "{text}");
        }
        for (text, message) in [
            (r#"{"format":"xml"}"#, "unknown variant `xml`, expected one of `json`, `csv`, `parquet`"),
            (r#"{"format":{"avro":{}}}"#, "unknown variant `avro`, expected one of `json`, `csv`, `parquet`"),
            (r#"{"format":{"json":{"mod":"x"}}}"#, "unknown field `mod`, expected one of `mode`"),
            (r#"{"format":{"json":{"mode":"strict"}}}"#, "unknown variant `strict`, expected one of `dead_letter`"),
            (r#"{"format":{"json":{"multi_line":true}}}"#, "unknown field `multi_line`"),
            (r#"{"format":{"parquet":{"x":1}}}"#, "unknown field `x`"),
            (r#"{"format":{"json":{},"mode":"permissive"}}"#, "settings of `json` are indented below it"),
            (r#"{"format":{}}"#, "a format needs a name: json, csv or parquet"),
            (r#"{"format":5}"#, "expected the name of a format (json, csv, parquet)"),
        ] {
            let error = serde_json::from_str::<Source>(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn the_json_schema_describes_both_forms_and_every_setting() {
        let schema = serde_json::to_value(schemars::schema_for!(Format)).unwrap();
        let forms = schema["oneOf"].as_array().unwrap();
        assert_eq!(forms[0]["enum"], serde_json::json!(["json", "csv", "parquet"]));
        assert_eq!(forms[1]["properties"]["json"]["$ref"], "#/$defs/JsonFormat");
        for settings in ["JsonFormat", "CsvFormat"] {
            let settings = &schema["$defs"][settings];
            assert_eq!(settings["additionalProperties"], false);
            for (name, property) in settings["properties"].as_object().unwrap() {
                assert!(property["description"].is_string(), "{name} is not described");
            }
        }
    }
}
