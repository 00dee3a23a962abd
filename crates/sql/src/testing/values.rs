//! Schemas and values as the conformance cases write them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Fields, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType,
};
use base64::Engine;
use serde_json::{Map, Value, json};

/// A Spark DDL schema, as far as the cases need it.
pub(crate) fn schema(ddl: &str) -> SchemaRef {
    let fields: Vec<Field> = split(ddl)
        .into_iter()
        .map(|column| {
            let (name, data_type) = column.trim().split_once(' ').unwrap();
            Field::new(name, data_type_of(data_type), true)
        })
        .collect();
    Arc::new(Schema::new(fields))
}

/// Splits at the commas that are not inside of brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '<' | '(' => depth += 1,
            '>' | ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn data_type_of(text: &str) -> DataType {
    let text = text.trim();
    let upper = text.to_uppercase();
    let inside = || &text[text.find(['<', '(']).unwrap() + 1..text.len() - 1];
    match upper.as_str() {
        "STRING" => DataType::Utf8,
        "TINYINT" => DataType::Int8,
        "SMALLINT" => DataType::Int16,
        "INT" => DataType::Int32,
        "BIGINT" => DataType::Int64,
        "FLOAT" => DataType::Float32,
        "DOUBLE" => DataType::Float64,
        "BOOLEAN" => DataType::Boolean,
        "BINARY" => DataType::Binary,
        "DATE" => DataType::Date32,
        "TIMESTAMP" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        _ if upper.starts_with("DECIMAL") => {
            let parts = split(inside());
            DataType::Decimal128(parts[0].trim().parse().unwrap(), parts[1].trim().parse().unwrap())
        }
        _ if upper.starts_with("ARRAY") => DataType::new_list(data_type_of(inside()), true),
        _ if upper.starts_with("MAP") => {
            let parts = split(inside());
            let entries = Fields::from(vec![
                Field::new("keys", data_type_of(parts[0]), false),
                Field::new("values", data_type_of(parts[1]), true),
            ]);
            DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries), false)), false)
        }
        _ if upper.starts_with("STRUCT") => DataType::Struct(
            split(inside())
                .into_iter()
                .map(|field| {
                    let (name, data_type) = field.split_once(':').unwrap();
                    Field::new(name.trim(), data_type_of(data_type), true)
                })
                .collect(),
        ),
        _ => panic!("unknown type {text}"),
    }
}

/// Spark's simple name of a type.
pub(crate) fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 => "string".into(),
        DataType::Int8 => "tinyint".into(),
        DataType::Int16 => "smallint".into(),
        DataType::Int32 => "int".into(),
        DataType::Int64 => "bigint".into(),
        DataType::Float32 => "float".into(),
        DataType::Float64 => "double".into(),
        DataType::Boolean => "boolean".into(),
        DataType::Null => "void".into(),
        DataType::Timestamp(TimeUnit::Microsecond, None) => "timestamp_ntz".into(),
        DataType::Binary => "binary".into(),
        DataType::Date32 => "date".into(),
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => "timestamp".into(),
        DataType::Decimal128(precision, scale) => format!("decimal({precision},{scale})"),
        DataType::List(field) => format!("array<{}>", type_name(field.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|field| format!("{}:{}", field.name(), type_name(field.data_type()))).collect();
            format!("struct<{}>", fields.join(","))
        }
        DataType::Map(field, _) => match field.data_type() {
            DataType::Struct(entry) => {
                format!("map<{},{}>", type_name(entry[0].data_type()), type_name(entry[1].data_type()))
            }
            _ => unreachable!(),
        },
        other => format!("{other}"),
    }
}

/// JSON rows as a batch.
pub(crate) fn rows_from_json(rows: &[Value], schema: &SchemaRef) -> RecordBatch {
    if schema.fields().is_empty() {
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows.len()));
        return RecordBatch::try_new_with_options(schema.clone(), vec![], &options).unwrap();
    }
    let mut decoder =
        arrow::json::ReaderBuilder::new(schema.clone()).with_batch_size(rows.len().max(1)).build_decoder().unwrap();
    decoder.serialize(rows).unwrap();
    decoder.flush().unwrap().unwrap_or_else(|| RecordBatch::new_empty(schema.clone()))
}

/// The rows of a batch as JSON.
pub(crate) fn rows_to_json(rows: &RecordBatch) -> Vec<Value> {
    let schema = rows.schema();
    (0..rows.num_rows())
        .map(|row| {
            let fields = schema.fields().iter().zip(rows.columns());
            Value::Object(fields.map(|(field, column)| (field.name().clone(), value(column, row))).collect())
        })
        .collect()
}

fn value(array: &ArrayRef, row: usize) -> Value {
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
        DataType::Null => Value::Null,
        DataType::Utf8 => json!(array.as_string::<i32>().value(row)),
        DataType::Boolean => json!(array.as_boolean().value(row)),
        DataType::Binary => {
            json!(base64::engine::general_purpose::STANDARD.encode(array.as_binary::<i32>().value(row)))
        }
        DataType::Int8 => json!(array.as_primitive::<Int8Type>().value(row)),
        DataType::Int16 => json!(array.as_primitive::<Int16Type>().value(row)),
        DataType::Int32 => json!(array.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => json!(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => float(f64::from(array.as_primitive::<Float32Type>().value(row))),
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(_, _) => json!(array.as_primitive::<Decimal128Type>().value_as_string(row)),
        DataType::Date32 => json!(array.as_primitive::<Date32Type>().value_as_date(row).unwrap().to_string()),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            json!(timestamp(array.as_primitive::<TimestampMicrosecondType>().value(row)))
        }
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            Value::Array((0..items.len()).map(|item| value(&items, item)).collect())
        }
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            let fields = fields.iter().zip(columns);
            Value::Object(
                fields.map(|(field, column)| (field.name().clone(), value(column, row))).collect::<Map<_, _>>(),
            )
        }
        DataType::Map(_, _) => {
            let entries = array.as_map().value(row);
            let mut entries: Vec<Value> = (0..entries.len())
                .map(|entry| json!({"key": value(entries.column(0), entry), "value": value(entries.column(1), entry)}))
                .collect();
            entries.sort_by_key(ToString::to_string);
            Value::Array(entries)
        }
        other => json!(format!("a value of type {other}")),
    }
}

/// Microseconds since the epoch as the cases write them.
pub(crate) fn timestamp(micros: i64) -> String {
    let time = chrono::DateTime::from_timestamp_micros(micros).unwrap();
    if micros.rem_euclid(1_000_000) == 0 {
        time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
    } else {
        time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
    }
}

/// Whether two values are the same for the cases: floating-point numbers may differ in the last digits.
pub(crate) fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(l), Value::Number(r)) if l.is_f64() || r.is_f64() => {
            let (l, r) = (l.as_f64().unwrap(), r.as_f64().unwrap());
            l == r
                || (l - r).abs() <= 1e-9 * l.abs().max(r.abs()).max(1e-300)
                || l as f32 == r as f32 && (l - r).abs() <= 1e-6 * l.abs()
        }
        (Value::Array(l), Value::Array(r)) => l.len() == r.len() && l.iter().zip(r).all(|(l, r)| same(l, r)),
        (Value::Object(l), Value::Object(r)) => {
            l.len() == r.len() && l.iter().all(|(key, l)| r.get(key).is_some_and(|r| same(l, r)))
        }
        (left, right) => left == right,
    }
}

/// Whether two lists have the same values in any order.
pub(crate) fn same_rows(left: &[Value], right: &[Value], ordered: bool) -> bool {
    if left.len() != right.len() {
        return false;
    }
    if ordered {
        return left.iter().zip(right).all(|(l, r)| same(l, r));
    }
    let mut rest: Vec<&Value> = right.iter().collect();
    left.iter().all(|l| rest.iter().position(|r| same(l, r)).map(|at| rest.swap_remove(at)).is_some())
}
