//! Cases recorded with a real Spark 4.3 (`recorded/*.json`): what its readers make of lines of text, in the mode `PERMISSIVE` unless
//! the settings say otherwise. Timestamps are recorded in microseconds, dates in days, decimals as text, binary in base64.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BinaryArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType,
};
use perennial_core::ddl;
use perennial_core::decode::{Decoded, Decoder};
use perennial_core::error::Result;
use perennial_core::records::{Input, Payload, Position, RecordBlock};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Format, decoder};

/// A recorded case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    pub(super) about: String,
    pub(super) format: String,
    pub(super) schema: String,
    /// Names of the used columns; all when not there.
    pub(super) columns: Option<Vec<String>>,
    pub(super) settings: Map<String, Value>,
    /// The lines are bytes, each written as the character of that number.
    #[serde(default)]
    pub(super) latin1: bool,
    pub(super) lines: Vec<String>,
    pub(super) rows: Vec<Value>,
}

impl Case {
    pub(super) fn all(text: &str) -> Vec<Self> {
        serde_json::from_str(text).unwrap()
    }

    pub(super) fn lines(&self) -> Vec<Vec<u8>> {
        let bytes = |line: &String| match self.latin1 {
            true => line.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect(),
            false => line.as_bytes().to_vec(),
        };
        self.lines.iter().map(bytes).collect()
    }

    pub(super) fn decoder(&self, mode: Option<&str>) -> Arc<dyn Decoder> {
        let mut settings = self.settings.clone();
        let mode = mode.or(settings.get("mode").and_then(Value::as_str)).unwrap_or("permissive").to_owned();
        settings.insert("mode".to_owned(), mode.into());
        let format: Format = serde_json::from_value(json!({ &self.format: settings })).unwrap();
        let schema = ddl::parse(&self.schema).unwrap();
        let columns: Vec<usize> = match &self.columns {
            None => (0..schema.fields().len()).collect(),
            Some(names) => names.iter().map(|name| schema.index_of(name).unwrap()).collect(),
        };
        decoder(&format, &schema, &columns).unwrap()
    }

    /// Compares what a decoder gives for the lines with what was recorded.
    pub(super) fn check(&self) {
        let decoded = decode_lines(self.decoder(None).as_ref(), &self.lines()).unwrap();
        let found = rows(&decoded.rows);
        let differences: Vec<_> =
            found.iter().zip(&self.rows).filter(|(found, expected)| !same(found, expected)).collect();
        assert!(
            differences.is_empty() && found.len() == self.rows.len(),
            "{}: {} {:?}: {} rows instead of {}; found and expected: {differences:#?}",
            self.about,
            self.schema,
            self.settings,
            found.len(),
            self.rows.len()
        );
    }
}

/// Equal, but for the last bits that the JSON parser of this test gets wrong.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= 1e-15 * a.abs() && a.is_sign_negative() == b.is_sign_negative()
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

pub(super) fn lines_block(lines: &[Vec<u8>]) -> RecordBlock {
    let mut text = lines.join(&b'\n');
    text.push(b'\n');
    let position = Position::File { path: "in.txt".into(), offset: 0 };
    RecordBlock { payload: Payload::Lines(text.into()), position }
}

pub(super) fn decode_lines(decoder: &dyn Decoder, lines: &[Vec<u8>]) -> Result<Decoded> {
    decoder.decode(Input::Records(lines_block(lines)))
}

pub(super) fn decode_values(decoder: &dyn Decoder, values: &[Option<&[u8]>]) -> Result<Decoded> {
    let position = Position::Sequence { name: "test".into(), first: 0 };
    let payload = Payload::Values(BinaryArray::from_iter(values));
    decoder.decode(Input::Records(RecordBlock { payload, position }))
}

/// The rows as JSON objects, as Spark's `to_json` writes them.
pub(super) fn rows(batch: &RecordBatch) -> Vec<Value> {
    let columns: Vec<_> =
        batch.schema().fields().iter().map(|f| f.name().clone()).zip(batch.columns().to_vec()).collect();
    let row = |row: usize| columns.iter().map(|(name, array)| (name.clone(), cell(array, row))).collect();
    (0..batch.num_rows()).map(|index| Value::Object(row(index))).collect()
}

fn cell(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    let float = |value: f64| match value {
        value if value.is_nan() => json!("NaN"),
        f64::INFINITY => json!("Infinity"),
        f64::NEG_INFINITY => json!("-Infinity"),
        value => json!(value),
    };
    match array.data_type() {
        DataType::Boolean => json!(array.as_boolean().value(row)),
        DataType::Int8 => json!(array.as_primitive::<Int8Type>().value(row)),
        DataType::Int16 => json!(array.as_primitive::<Int16Type>().value(row)),
        DataType::Int32 => json!(array.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => json!(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => {
            // The shortest text that gives the same number.
            let value = array.as_primitive::<Float32Type>().value(row);
            if value.is_finite() { json!(value.to_string().parse::<f64>().unwrap()) } else { float(value.into()) }
        }
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(_, _) => json!(array.as_primitive::<Decimal128Type>().value_as_string(row)),
        DataType::Date32 => json!(array.as_primitive::<Date32Type>().value(row)),
        DataType::Timestamp(_, _) => json!(array.as_primitive::<TimestampMicrosecondType>().value(row)),
        DataType::Utf8 => json!(array.as_string::<i32>().value(row)),
        DataType::Binary => json!(base64(array.as_binary::<i32>().value(row))),
        DataType::List(_) => {
            let values = array.as_list::<i32>().value(row);
            Value::Array((0..values.len()).map(|index| cell(&values, index)).collect())
        }
        DataType::Map(_, _) => {
            let entries = array.as_map().value(row);
            let keys = entries.column(0).as_string::<i32>();
            let entry = |index: usize| (keys.value(index).to_owned(), cell(entries.column(1), index));
            Value::Object((0..entries.len()).map(entry).collect())
        }
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            let field = |index: usize| (fields[index].name().clone(), cell(&columns[index], row));
            Value::Object((0..columns.len()).map(field).collect())
        }
        other => panic!("{other}"),
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place)) as usize & 63] as char;
            text.push(if place <= chunk.len() { digit } else { '=' });
        }
    }
    text
}
