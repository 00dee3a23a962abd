//! Rows that a source gives by itself (Parquet), brought to the schema of the job file.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, ListArray, MapArray, RecordBatch, RecordBatchOptions, StructArray, new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Fields, SchemaRef, TimeUnit};
use perennial_core::ddl;
use perennial_core::decode::{Decoded, Decoder, Origin};
use perennial_core::error::{Error, Result, class};
use perennial_core::records::Input;

/// Passes rows through. Columns are found by name (also in another case, as in Spark); one that the rows lack is NULL. Types are
/// widened where nothing can be lost.
#[derive(Debug)]
pub(super) struct RowsDecoder {
    schema: SchemaRef,
}

impl RowsDecoder {
    pub(super) fn new(schema: SchemaRef) -> Self {
        Self { schema }
    }
}

impl Decoder for RowsDecoder {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn decode(&self, input: Input) -> Result<Decoded> {
        match input {
            Input::Rows(rows, _) => conform(&rows, &self.schema),
            Input::Records(_) => Err(Error::new(
                class::CONFIG_INVALID,
                "`format: parquet` is for files; this source gives single records: use `format: json` or `format: csv`",
            )),
        }
    }
}

/// The rows with the columns of the schema, in its order.
pub(super) fn conform(rows: &RecordBatch, schema: &SchemaRef) -> Result<Decoded> {
    let mut arrays = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        arrays.push(match find(rows.schema_ref().fields(), field.name()) {
            Some(index) => conform_array(rows.column(index), field.data_type(), field.name())?,
            None => new_null_array(field.data_type(), rows.num_rows()),
        });
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    let rows = RecordBatch::try_new_with_options(schema.clone(), arrays, &options)?;
    Ok(Decoded { rows, origin: Origin { block: None, records: None }, rejected: Vec::new(), dropped: 0 })
}

/// The field of that name, or else the only one that differs in case alone.
fn find(fields: &Fields, name: &str) -> Option<usize> {
    if let Some((index, _)) = fields.find(name) {
        return Some(index);
    }
    let lower = name.to_lowercase();
    let mut similar = fields.iter().enumerate().filter(|(_, field)| field.name().to_lowercase() == lower);
    match (similar.next(), similar.next()) {
        (Some((index, _)), None) => Some(index),
        _ => None,
    }
}

fn conform_array(array: &ArrayRef, target: &DataType, path: &str) -> Result<ArrayRef> {
    if array.data_type() == target {
        return Ok(array.clone());
    }
    match (array.data_type(), target) {
        (DataType::Struct(found), DataType::Struct(fields)) => {
            let rows = array.as_struct();
            let mut columns = Vec::with_capacity(fields.len());
            for field in fields {
                columns.push(match find(found, field.name()) {
                    Some(index) => {
                        conform_array(rows.column(index), field.data_type(), &format!("{path}.{}", field.name()))?
                    }
                    None => new_null_array(field.data_type(), rows.len()),
                });
            }
            let nulls = rows.nulls().cloned();
            Ok(Arc::new(StructArray::try_new_with_length(fields.clone(), columns, nulls, rows.len())?))
        }
        (DataType::List(_), DataType::List(element)) => {
            let lists = array.as_list::<i32>();
            let values = conform_array(lists.values(), element.data_type(), &format!("{path}[]"))?;
            Ok(Arc::new(ListArray::try_new(element.clone(), lists.offsets().clone(), values, lists.nulls().cloned())?))
        }
        (DataType::Map(_, _), DataType::Map(entries, sorted)) => {
            let maps = array.as_map();
            let DataType::Struct(pair) = entries.data_type() else {
                return Err(refuse(array.data_type(), target, path));
            };
            let [key, value] = &pair[..] else { return Err(refuse(array.data_type(), target, path)) };
            let keys = conform_array(maps.keys(), key.data_type(), &format!("{path}.key"))?;
            let values = conform_array(maps.values(), value.data_type(), &format!("{path}.value"))?;
            let pairs = StructArray::try_new(pair.clone(), vec![keys, values], None)?;
            let (offsets, nulls) = (maps.offsets().clone(), maps.nulls().cloned());
            Ok(Arc::new(MapArray::try_new(entries.clone(), offsets, pairs, nulls, *sorted)?))
        }
        (found, target) if widens(found, target) => {
            let options = CastOptions { safe: false, ..CastOptions::default() };
            cast_with_options(array, target, &options).map_err(|error| refuse(found, target, path).caused_by(error))
        }
        (found, target) => Err(refuse(found, target, path)),
    }
}

fn refuse(found: &DataType, target: &DataType, path: &str) -> Error {
    let (found, target) = (ddl::simple_type(found).to_uppercase(), ddl::simple_type(target).to_uppercase());
    let what =
        format!("column `{path}` is {found} in the data and {target} in the schema: change the schema of the source");
    Error::new(class::SCHEMA, what)
}

/// Whether every value of the one type is one of the other.
fn widens(found: &DataType, target: &DataType) -> bool {
    use DataType::*;
    let digits = |data_type: &DataType| match data_type {
        Int8 => Some(3),
        UInt8 => Some(3),
        Int16 | UInt16 => Some(5),
        Int32 | UInt32 => Some(10),
        Int64 => Some(19),
        UInt64 => Some(20),
        _ => None,
    };
    match (found, target) {
        (Null, _) => true,
        (Dictionary(_, value), target) => **value == *target || widens(value, target),
        (LargeUtf8 | Utf8View | Utf8, Utf8) => true,
        (LargeBinary | BinaryView | FixedSizeBinary(_) | Binary, Binary) => true,
        (LargeList(element) | ListView(element) | FixedSizeList(element, _), List(wanted)) => {
            element.data_type() == wanted.data_type() || widens(element.data_type(), wanted.data_type())
        }
        (Int8 | UInt8, Int16) | (Int8 | Int16 | UInt8 | UInt16, Int32) => true,
        (Int8 | Int16 | Int32 | UInt8 | UInt16 | UInt32, Int64) => true,
        (Int8 | Int16 | UInt8 | UInt16 | Float16, Float32) => true,
        (Int8 | Int16 | Int32 | UInt8 | UInt16 | UInt32 | Float16 | Float32, Float64) => true,
        (Date64, Date32) => true,
        (Date32 | Date64, Timestamp(TimeUnit::Microsecond, None)) => true,
        // A time without a zone is taken for UTC, as the session time zone is.
        (Timestamp(_, _), Timestamp(TimeUnit::Microsecond, Some(_))) => true,
        (Timestamp(_, None), Timestamp(TimeUnit::Microsecond, None)) => true,
        (Decimal32(p, s) | Decimal64(p, s) | Decimal128(p, s) | Decimal256(p, s), Decimal128(precision, scale)) => {
            scale >= s && i16::from(*precision) - i16::from(*scale) >= i16::from(*p) - i16::from(*s)
        }
        (found, Decimal128(precision, scale)) => {
            digits(found).is_some_and(|digits| i16::from(*precision) - i16::from(*scale) >= digits)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        DictionaryArray, Int32Array, Int64Array, StringArray, StringViewArray, TimestampNanosecondArray,
    };
    use arrow::datatypes::{Field, Int32Type, Schema};
    use perennial_core::records::{Payload, Position, RecordBlock};

    use super::super::{Format, decoder};
    use super::*;

    fn position() -> Position {
        Position::File { path: "a.parquet".into(), offset: 0 }
    }

    fn decode(schema: &str, columns: Vec<(&str, ArrayRef)>) -> Result<RecordBatch> {
        let schema = ddl::parse(schema).unwrap();
        let all: Vec<usize> = (0..schema.fields().len()).collect();
        let decoder = decoder(&Format::Parquet, &schema, &all).unwrap();
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        let decoded = decoder.decode(Input::Rows(rows, position()))?;
        assert_eq!(decoded.rows.schema(), decoder.schema());
        assert!(decoded.origin.block.is_none() && decoded.origin.records.is_none());
        Ok(decoded.rows)
    }

    #[test]
    fn rows_are_brought_to_the_schema() {
        let dictionary: DictionaryArray<Int32Type> = vec!["x", "y"].into_iter().collect();
        let element = Arc::new(Field::new("item", DataType::Int32, true));
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), None]);
        let inner = StructArray::try_new(
            vec![Field::new("B", DataType::Int32, false), Field::new("extra", DataType::Int32, true)].into(),
            vec![Arc::new(Int32Array::from(vec![1, 2])), Arc::new(Int32Array::from(vec![5, 6]))],
            None,
        )
        .unwrap();
        assert_eq!(lists.data_type(), &DataType::List(element));
        let rows = decode(
            "s STRING, n BIGINT NOT NULL, t TIMESTAMP, d STRING, l ARRAY<BIGINT>, st STRUCT<a: INT, b: BIGINT>, gone INT",
            vec![
                ("n", Arc::new(Int32Array::from(vec![Some(1), None]))),
                ("S", Arc::new(StringViewArray::from(vec!["a", "b"]))),
                ("t", Arc::new(TimestampNanosecondArray::from(vec![1_500, -1_500]))),
                ("d", Arc::new(dictionary)),
                ("l", Arc::new(lists)),
                ("st", Arc::new(inner)),
                ("more", Arc::new(Int32Array::from(vec![1, 2]))),
            ],
        )
        .unwrap();
        let shown = arrow::util::pretty::pretty_format_batches(&[rows]).unwrap().to_string();
        assert!(shown.contains("| a | 1 | 1970-01-01T00:00:00.000001Z | x | [1, ] | {a: , b: 1} |      |"), "{shown}");
        assert!(shown.contains("| b |   |"), "{shown}");
    }

    #[test]
    fn types_that_do_not_fit_are_refused() {
        for (schema, column, message) in [
            (
                "n INT",
                Arc::new(Int64Array::from(vec![1])) as ArrayRef,
                "column `n` is BIGINT in the data and INT in the schema",
            ),
            ("n DECIMAL(9,0)", Arc::new(Int32Array::from(vec![1])), "is INT in the data and DECIMAL(9,0)"),
            ("n INT", Arc::new(StringArray::from(vec!["1"])), "is STRING in the data and INT"),
            ("n ARRAY<INT>", Arc::new(Int32Array::from(vec![1])), "is INT in the data and ARRAY<INT>"),
        ] {
            let error = decode(schema, vec![("n", column)]).unwrap_err();
            assert_eq!(error.class(), class::SCHEMA);
            assert!(error.message().contains(message), "{error}");
        }
    }

    #[test]
    fn raw_records_are_refused() {
        let decoder = RowsDecoder::new(Arc::new(Schema::empty()));
        let block = RecordBlock { payload: Payload::Lines("{}\n".into()), position: position() };
        let error = decoder.decode(Input::Records(block)).unwrap_err();
        assert!(error.message().contains("this source gives single records"), "{error}");
    }
}
