//! Columns under construction.
//!
//! Unlike Arrow's builders these can be cut back: a record that turns out to be malformed in its last field leaves no trace. A decoder
//! may push into the vectors directly as long as [`Column::nulls`] is kept in step.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, Date32Array, Decimal128Array, Float32Array,
    Float64Array, Int8Array, Int16Array, Int32Array, Int64Array, ListArray, MapArray, NullBufferBuilder, StringArray,
    StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, FieldRef, Fields, TimeUnit};
use perennial_core::error::{Error, Result, class};

/// A column under construction.
#[derive(Debug)]
pub(crate) struct Column {
    /// Its values; where a row is NULL there is a filler.
    pub(crate) data: Data,
    /// Which rows are not NULL; its length is the number of rows.
    pub(crate) nulls: NullBufferBuilder,
}

/// The values of a column.
#[derive(Debug)]
pub(crate) enum Data {
    Boolean(BooleanBufferBuilder),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Decimal { values: Vec<i128>, precision: u8, scale: i8 },
    Date(Vec<i32>),
    Timestamp { values: Vec<i64>, zone: Arc<str> },
    TimestampNtz(Vec<i64>),
    Text(Bytes),
    Binary(Bytes),
    List { ends: Vec<i32>, element: Box<Column>, field: FieldRef },
    Map { ends: Vec<i32>, keys: Box<Column>, values: Box<Column>, entries: FieldRef, pair: Fields },
    Struct { columns: Vec<Column>, fields: Fields },
}

/// Values of variable length, one after the other.
#[derive(Debug)]
pub(crate) struct Bytes {
    /// All values.
    pub(crate) bytes: Vec<u8>,
    /// Where each value ends; the first entry is 0.
    pub(crate) ends: Vec<i32>,
}

impl Bytes {
    /// Ends the value that was written to `bytes`.
    #[inline]
    pub(crate) fn end(&mut self) {
        // A column of more than 2 GiB is refused by `finish`, so what the cast cuts off does not matter.
        self.ends.push(self.bytes.len() as i32);
    }
}

/// A value of any type, for the paths where speed does not count.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Boolean(bool),
    /// Integers of all widths; days of dates; microseconds of timestamps.
    Int(i64),
    Float(f32),
    Double(f64),
    Decimal(i128),
    Text(String),
    Binary(Vec<u8>),
    List(Vec<Value>),
    Map(Vec<(String, Value)>),
    Struct(Vec<Value>),
}

impl Column {
    /// An empty column of one of the types of [`perennial_core::ddl`], with room for `rows` rows.
    pub(crate) fn new(data_type: &DataType, rows: usize) -> Result<Self> {
        fn ends(rows: usize) -> Vec<i32> {
            let mut ends = Vec::with_capacity(rows + 1);
            ends.push(0);
            ends
        }
        let data = match data_type {
            DataType::Boolean => Data::Boolean(BooleanBufferBuilder::new(rows)),
            DataType::Int8 => Data::Int8(Vec::with_capacity(rows)),
            DataType::Int16 => Data::Int16(Vec::with_capacity(rows)),
            DataType::Int32 => Data::Int32(Vec::with_capacity(rows)),
            DataType::Int64 => Data::Int64(Vec::with_capacity(rows)),
            DataType::Float32 => Data::Float32(Vec::with_capacity(rows)),
            DataType::Float64 => Data::Float64(Vec::with_capacity(rows)),
            DataType::Decimal128(precision, scale) => {
                Data::Decimal { values: Vec::with_capacity(rows), precision: *precision, scale: *scale }
            }
            DataType::Date32 => Data::Date(Vec::with_capacity(rows)),
            DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) => {
                Data::Timestamp { values: Vec::with_capacity(rows), zone: zone.clone() }
            }
            DataType::Timestamp(TimeUnit::Microsecond, None) => Data::TimestampNtz(Vec::with_capacity(rows)),
            DataType::Utf8 => Data::Text(Bytes { bytes: Vec::with_capacity(16 * rows), ends: ends(rows) }),
            DataType::Binary => Data::Binary(Bytes { bytes: Vec::with_capacity(16 * rows), ends: ends(rows) }),
            DataType::List(field) => {
                let element = Box::new(Self::new(field.data_type(), rows)?);
                Data::List { ends: ends(rows), element, field: field.clone() }
            }
            DataType::Map(entries, false) => {
                let DataType::Struct(pair) = entries.data_type() else { return Err(unsupported(data_type)) };
                let [key, value] = &pair[..] else { return Err(unsupported(data_type)) };
                let keys = Box::new(Self::new(key.data_type(), rows)?);
                let values = Box::new(Self::new(value.data_type(), rows)?);
                Data::Map { ends: ends(rows), keys, values, entries: entries.clone(), pair: pair.clone() }
            }
            DataType::Struct(fields) => {
                let columns: Result<_> = fields.iter().map(|field| Self::new(field.data_type(), rows)).collect();
                Data::Struct { columns: columns?, fields: fields.clone() }
            }
            other => return Err(unsupported(other)),
        };
        Ok(Self { data, nulls: NullBufferBuilder::new(rows) })
    }

    /// Rows so far.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.nulls.len()
    }

    /// Appends a NULL.
    pub(crate) fn push_null(&mut self) {
        self.nulls.append_null();
        match &mut self.data {
            Data::Boolean(values) => values.append(false),
            Data::Int8(values) => values.push(0),
            Data::Int16(values) => values.push(0),
            Data::Int32(values) | Data::Date(values) => values.push(0),
            Data::Int64(values) | Data::Timestamp { values, .. } | Data::TimestampNtz(values) => values.push(0),
            Data::Float32(values) => values.push(0.0),
            Data::Float64(values) => values.push(0.0),
            Data::Decimal { values, .. } => values.push(0),
            Data::Text(values) | Data::Binary(values) => values.end(),
            Data::List { ends, .. } | Data::Map { ends, .. } => ends.push(ends[ends.len() - 1]),
            Data::Struct { columns, .. } => columns.iter_mut().for_each(Self::push_null),
        }
    }

    /// Appends a value of the column's type; a value of another type is an assertion that failed.
    pub(crate) fn push(&mut self, value: Value) -> Result<()> {
        match (&mut self.data, value) {
            (_, Value::Null) => {
                self.push_null();
                return Ok(());
            }
            (Data::Boolean(values), Value::Boolean(value)) => values.append(value),
            (Data::Int8(values), Value::Int(value)) => values.push(value as i8),
            (Data::Int16(values), Value::Int(value)) => values.push(value as i16),
            (Data::Int32(values) | Data::Date(values), Value::Int(value)) => values.push(value as i32),
            (Data::Int64(values) | Data::Timestamp { values, .. } | Data::TimestampNtz(values), Value::Int(value)) => {
                values.push(value);
            }
            (Data::Float32(values), Value::Float(value)) => values.push(value),
            (Data::Float64(values), Value::Double(value)) => values.push(value),
            (Data::Decimal { values, .. }, Value::Decimal(value)) => values.push(value),
            (Data::Text(values), Value::Text(value)) => {
                values.bytes.extend_from_slice(value.as_bytes());
                values.end();
            }
            (Data::Binary(values), Value::Binary(value)) => {
                values.bytes.extend_from_slice(&value);
                values.end();
            }
            (Data::List { ends, element, .. }, Value::List(elements)) => {
                elements.into_iter().try_for_each(|value| element.push(value))?;
                ends.push(element.len() as i32);
            }
            (Data::Map { ends, keys, values, .. }, Value::Map(entries)) => {
                for (key, value) in entries {
                    keys.push(Value::Text(key))?;
                    values.push(value)?;
                }
                ends.push(keys.len() as i32);
            }
            (Data::Struct { columns, .. }, Value::Struct(fields)) => {
                columns.iter_mut().zip(fields).try_for_each(|(column, value)| column.push(value))?;
            }
            (data, value) => return Err(Error::bug(format!("{value:?} does not go into {data:?}"))),
        }
        self.nulls.append_non_null();
        Ok(())
    }

    /// Cuts the column back to its first `rows` rows, with all that a value which was broken off has left behind them.
    pub(crate) fn truncate(&mut self, rows: usize) {
        self.nulls.truncate(rows);
        match &mut self.data {
            Data::Boolean(values) => values.truncate(rows),
            Data::Int8(values) => values.truncate(rows),
            Data::Int16(values) => values.truncate(rows),
            Data::Int32(values) | Data::Date(values) => values.truncate(rows),
            Data::Int64(values) | Data::Timestamp { values, .. } | Data::TimestampNtz(values) => values.truncate(rows),
            Data::Float32(values) => values.truncate(rows),
            Data::Float64(values) => values.truncate(rows),
            Data::Decimal { values, .. } => values.truncate(rows),
            Data::Text(values) | Data::Binary(values) => {
                values.ends.truncate(rows + 1);
                values.bytes.truncate(values.ends[rows] as usize);
            }
            Data::List { ends, element, .. } => {
                ends.truncate(rows + 1);
                element.truncate(ends[rows] as usize);
            }
            Data::Map { ends, keys, values, .. } => {
                ends.truncate(rows + 1);
                keys.truncate(ends[rows] as usize);
                values.truncate(ends[rows] as usize);
            }
            Data::Struct { columns, .. } => columns.iter_mut().for_each(|column| column.truncate(rows)),
        }
    }

    /// The finished array.
    pub(crate) fn finish(mut self) -> Result<ArrayRef> {
        let rows = self.len();
        let nulls = self.nulls.finish();
        Ok(match self.data {
            Data::Boolean(mut values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Data::Int8(values) => Arc::new(Int8Array::try_new(values.into(), nulls)?),
            Data::Int16(values) => Arc::new(Int16Array::try_new(values.into(), nulls)?),
            Data::Int32(values) => Arc::new(Int32Array::try_new(values.into(), nulls)?),
            Data::Int64(values) => Arc::new(Int64Array::try_new(values.into(), nulls)?),
            Data::Float32(values) => Arc::new(Float32Array::try_new(values.into(), nulls)?),
            Data::Float64(values) => Arc::new(Float64Array::try_new(values.into(), nulls)?),
            Data::Decimal { values, precision, scale } => {
                Arc::new(Decimal128Array::try_new(values.into(), nulls)?.with_precision_and_scale(precision, scale)?)
            }
            Data::Date(values) => Arc::new(Date32Array::try_new(values.into(), nulls)?),
            Data::Timestamp { values, zone } => {
                Arc::new(TimestampMicrosecondArray::try_new(values.into(), nulls)?.with_timezone(zone))
            }
            Data::TimestampNtz(values) => Arc::new(TimestampMicrosecondArray::try_new(values.into(), nulls)?),
            Data::Text(Bytes { bytes, ends }) => {
                let offsets = offsets(ends, bytes.len())?;
                Arc::new(StringArray::try_new(offsets, bytes.into(), nulls)?)
            }
            Data::Binary(Bytes { bytes, ends }) => {
                let offsets = offsets(ends, bytes.len())?;
                Arc::new(BinaryArray::try_new(offsets, bytes.into(), nulls)?)
            }
            Data::List { ends, element, field } => {
                let offsets = offsets(ends, element.len())?;
                Arc::new(ListArray::try_new(field, offsets, element.finish()?, nulls)?)
            }
            Data::Map { ends, keys, values, entries, pair } => {
                let offsets = offsets(ends, keys.len())?;
                let pairs = StructArray::try_new(pair, vec![keys.finish()?, values.finish()?], None)?;
                Arc::new(MapArray::try_new(entries, offsets, pairs, nulls, false)?)
            }
            Data::Struct { columns, fields } => {
                let arrays: Result<Vec<_>> = columns.into_iter().map(Self::finish).collect();
                Arc::new(StructArray::try_new_with_length(fields, arrays?, nulls, rows)?)
            }
        })
    }
}

fn offsets(ends: Vec<i32>, length: usize) -> Result<OffsetBuffer<i32>> {
    if i32::try_from(length).is_err() {
        return Err(Error::new(
            class::MEMORY_LIMIT,
            format!("a column of one block holds {length} bytes or elements, more than 2 GiB: make the blocks smaller"),
        ));
    }
    Ok(OffsetBuffer::new(ScalarBuffer::from(ends)))
}

fn unsupported(data_type: &DataType) -> Error {
    Error::bug(format!("no decoder for columns of type {data_type}"))
}
