//! Values as the cases write them, and when two of them are the same.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Fields, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    Schema, TimeUnit, TimestampMicrosecondType,
};
use base64::Engine;
use serde_json::{Value, json};

/// The rows of a batch as JSON objects.
pub fn rows(batch: &RecordBatch) -> Vec<Value> {
    let schema = batch.schema();
    let row = |row| object(schema.fields(), batch.columns(), row);
    (0..batch.num_rows()).map(row).collect()
}

fn object(fields: &Fields, columns: &[arrow::array::ArrayRef], row: usize) -> Value {
    let fields = fields.iter().zip(columns);
    Value::Object(fields.map(|(field, column)| (field.name().clone(), value(column, row))).collect())
}

fn value(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Utf8 => json!(array.as_string::<i32>().value(row)),
        DataType::Boolean => json!(array.as_boolean().value(row)),
        DataType::Int8 => json!(array.as_primitive::<Int8Type>().value(row)),
        DataType::Int16 => json!(array.as_primitive::<Int16Type>().value(row)),
        DataType::Int32 => json!(array.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => json!(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => float(array.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(_, _) => json!(array.as_primitive::<Decimal128Type>().value_as_string(row)),
        DataType::Binary => {
            json!(base64::engine::general_purpose::STANDARD.encode(array.as_binary::<i32>().value(row)))
        }
        DataType::Date32 => {
            let date = array.as_primitive::<Date32Type>().value_as_date(row);
            json!(date.map(|date| date.to_string()))
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let text = timestamp(array.as_primitive::<TimestampMicrosecondType>().value(row));
            json!(if zone.is_some() { &text[..] } else { text.trim_end_matches('Z') })
        }
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            Value::Array((0..items.len()).map(|item| value(&items, item)).collect())
        }
        DataType::Struct(fields) => object(fields, array.as_struct().columns(), row),
        DataType::Map(_, _) => {
            let entries = array.as_map().value(row);
            let entry = |at| json!({"key": value(entries.column(0), at), "value": value(entries.column(1), at)});
            Value::Array((0..entries.len()).map(entry).collect())
        }
        other => match plain(other).map(|plain| cast(&array.slice(row, 1), &plain)) {
            Some(Ok(plain)) => value(&plain, 0),
            _ => json!(format!("a value of type {other}")),
        },
    }
}

/// Another way to keep the same values.
fn plain(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => DataType::Binary,
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => DataType::Int64,
        DataType::UInt64 => DataType::Decimal128(20, 0),
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        DataType::LargeList(item) | DataType::ListView(item) | DataType::FixedSizeList(item, _) => {
            DataType::List(item.clone())
        }
        DataType::Dictionary(_, value) => value.as_ref().clone(),
        _ => return None,
    })
}

fn float(value: f64) -> Value {
    match value {
        value if value.is_nan() => json!("NaN"),
        f64::INFINITY => json!("Infinity"),
        f64::NEG_INFINITY => json!("-Infinity"),
        value => json!(value),
    }
}

/// Microseconds since the epoch as ISO text.
pub fn timestamp(micros: i64) -> String {
    let Some(time) = chrono::DateTime::from_timestamp_micros(micros) else { return format!("{micros} µs") };
    let format = if micros.rem_euclid(1_000_000) == 0 { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%.6fZ" };
    time.format(format).to_string()
}

/// What is different between the rows of a batch and those that Spark gave, if anything.
pub fn difference(ours: &[Value], theirs: &[Value], schema: &Schema, ordered: bool) -> Option<String> {
    let same = |ours: &Value, theirs: &Value| same_fields(ours, theirs, schema.fields());
    if ordered {
        let at = (0..ours.len().max(theirs.len())).find(|at| match (ours.get(*at), theirs.get(*at)) {
            (Some(ours), Some(theirs)) => !same(ours, theirs),
            _ => true,
        })?;
        return Some(format!("row {at}: {}, Spark {}", shown(ours.get(at)), shown(theirs.get(at))));
    }
    let mut rest: Vec<&Value> = theirs.iter().collect();
    let mut extra = Vec::new();
    for row in ours {
        match rest.iter().position(|theirs| same(row, theirs)) {
            Some(at) => _ = rest.swap_remove(at),
            None => extra.push(row),
        }
    }
    if extra.is_empty() && rest.is_empty() {
        return None;
    }
    // The first row that Spark has and we do not, beside the first of ours that it may have become.
    rest.sort_by_key(|row| theirs.iter().position(|theirs| std::ptr::eq(*row, theirs)));
    Some(format!(
        "{} rows, Spark {}: here {}, Spark {}",
        ours.len(),
        theirs.len(),
        shown(extra.first().copied()),
        shown(rest.first().copied())
    ))
}

fn shown(row: Option<&Value>) -> String {
    row.map_or_else(|| "no row".to_owned(), Value::to_string)
}

fn same_fields(ours: &Value, theirs: &Value, fields: &Fields) -> bool {
    let (Value::Object(ours), Value::Object(theirs)) = (ours, theirs) else { return ours == theirs };
    ours.len() == theirs.len()
        && fields.iter().all(|field| match (ours.get(field.name()), theirs.get(field.name())) {
            (Some(ours), Some(theirs)) => same(ours, theirs, field.data_type()),
            _ => false,
        })
}

/// Whether two values of a type are the same: floating-point numbers may differ in the last digits, entries of maps have no order.
fn same(ours: &Value, theirs: &Value, data_type: &DataType) -> bool {
    match (data_type, ours, theirs) {
        (DataType::Float32, Value::Number(ours), Value::Number(theirs)) => {
            close(ours.as_f64().map(single), theirs.as_f64().map(single))
        }
        (DataType::Float64, Value::Number(ours), Value::Number(theirs)) => close(ours.as_f64(), theirs.as_f64()),
        (DataType::Struct(fields), ..) => same_fields(ours, theirs, fields),
        (
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::ListView(item)
            | DataType::FixedSizeList(item, _),
            Value::Array(ours),
            Value::Array(theirs),
        ) => {
            let mut pairs = ours.iter().zip(theirs);
            ours.len() == theirs.len() && pairs.all(|(ours, theirs)| same(ours, theirs, item.data_type()))
        }
        (DataType::Map(entries, _), Value::Array(ours), Value::Array(theirs)) => {
            let DataType::Struct(pair) = entries.data_type() else { return false };
            let same_entry = |ours: &Value, theirs: &Value| {
                same(&ours["key"], &theirs["key"], pair[0].data_type())
                    && same(&ours["value"], &theirs["value"], pair[1].data_type())
            };
            let mut rest: Vec<&Value> = theirs.iter().collect();
            ours.len() == theirs.len()
                && ours.iter().all(|entry| {
                    let at = rest.iter().position(|theirs| same_entry(entry, theirs));
                    at.map(|at| rest.swap_remove(at)).is_some()
                })
        }
        _ => ours == theirs,
    }
}

/// Rounded to single precision.
fn single(value: f64) -> f64 {
    f64::from(value as f32)
}

fn close(ours: Option<f64>, theirs: Option<f64>) -> bool {
    let (Some(ours), Some(theirs)) = (ours, theirs) else { return false };
    ours == theirs || (ours - theirs).abs() <= 1e-9 * ours.abs().max(theirs.abs())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float32Array, Float64Array, Int64Array, TimestampMicrosecondArray};
    use arrow::datatypes::Field;

    use super::*;

    fn batch() -> RecordBatch {
        let time = TimestampMicrosecondArray::from(vec![Some(1_500_000), None]).with_timezone("UTC");
        RecordBatch::try_from_iter_with_nullable([
            ("n", Arc::new(Int64Array::from(vec![i64::MAX, 2])) as arrow::array::ArrayRef, true),
            ("d", Arc::new(Float64Array::from(vec![0.1 + 0.2, f64::NAN])), true),
            ("f", Arc::new(Float32Array::from(vec![0.1, -0.0])), true),
            ("t", Arc::new(time), true),
        ])
        .unwrap()
    }

    fn spark() -> Vec<Value> {
        vec![
            json!({"n": 2, "d": "NaN", "f": 0.0, "t": null}),
            json!({"n": i64::MAX, "d": 0.3, "f": 0.1, "t": "1970-01-01T00:00:01.500000Z"}),
        ]
    }

    #[test]
    fn rows_are_compared_by_type_and_in_any_order() {
        let batch = batch();
        assert_eq!(difference(&rows(&batch), &spark(), &batch.schema(), false), None);
        let ordered = difference(&rows(&batch), &spark(), &batch.schema(), true).unwrap();
        assert!(ordered.starts_with("row 0: "), "{ordered}");
    }

    #[test]
    fn every_difference_is_found() {
        let batch = batch();
        for (row, column, value) in [
            (1, "n", json!(i64::MAX - 1)),
            (1, "d", json!(0.300_000_001)),
            (0, "d", Value::Null),
            (1, "f", json!(0.100_000_1)),
            (1, "t", json!("1970-01-01T00:00:01.500001Z")),
            (0, "t", json!("1970-01-01T00:00:00Z")),
        ] {
            let mut theirs = spark();
            theirs[row][column] = value;
            assert!(difference(&rows(&batch), &theirs, &batch.schema(), false).is_some(), "{column}");
        }
        let twice = [spark(), spark()].concat();
        assert!(difference(&rows(&batch), &twice, &batch.schema(), false).unwrap().contains("2 rows, Spark 4"));
        let mut more = spark();
        more[0]["x"] = json!(1);
        assert!(difference(&rows(&batch), &more, &batch.schema(), false).is_some());
        let renamed = Schema::new(vec![Field::new("n", DataType::Int64, true)]);
        assert!(difference(&[json!({"n": 1})], &[json!({"m": 1})], &renamed, false).is_some());
    }
}
