//! JSON as Spark's `to_json` writes it.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BinaryArray, PrimitiveArray};
use arrow::compute::cast;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, FieldRef, Float32Type, Float64Type, TimeUnit, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use arrow::json::writer::{Encoder, EncoderFactory, EncoderOptions, NullableEncoder};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::sinks::columns::write_timestamp;

/// The options with which rows are written as by Spark's `to_json`: timestamps with milliseconds, in UTC and marked by `Z`; BINARY in
/// base 64; numbers that are none as text.
pub(super) fn options() -> EncoderOptions {
    EncoderOptions::default().with_encoder_factory(Arc::new(Spark))
}

#[derive(Debug)]
struct Spark;

impl EncoderFactory for Spark {
    fn make_default_encoder<'a>(
        &self,
        _: &'a FieldRef,
        array: &'a dyn Array,
        _: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::Timestamp(_, zone) => {
                let zoned = zone.is_some();
                let micros = cast(array, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?;
                Box::new(Timestamps { micros: micros.as_primitive::<TimestampMicrosecondType>().clone(), zoned })
            }
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                Box::new(Base64(cast(array, &DataType::Binary)?.as_binary::<i32>().clone()))
            }
            DataType::Float32 => Box::new(Floats(array.as_primitive::<Float32Type>().clone())),
            DataType::Float64 => Box::new(Floats(array.as_primitive::<Float64Type>().clone())),
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

struct Timestamps {
    micros: PrimitiveArray<TimestampMicrosecondType>,
    zoned: bool,
}

impl Encoder for Timestamps {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        out.push(b'"');
        write_timestamp(self.micros.value(row), b'T', true, out);
        // Milliseconds of microseconds, cut as Spark does it.
        out.truncate(out.len() - 3);
        out.extend_from_slice(if self.zoned { b"Z\"" } else { b"\"" });
    }
}

struct Base64(BinaryArray);

impl Encoder for Base64 {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        let value = self.0.value(row);
        out.push(b'"');
        let start = out.len();
        out.resize(start + value.len().div_ceil(3) * 4, 0);
        // The room is exactly what is needed.
        let length = BASE64_STANDARD.encode_slice(value, &mut out[start..]).unwrap_or_default();
        out.truncate(start + length);
        out.push(b'"');
    }
}

struct Floats<T: ArrowPrimitiveType>(PrimitiveArray<T>);

impl<T: ArrowPrimitiveType> Encoder for Floats<T>
where
    T::Native: Into<f64> + std::fmt::Debug,
{
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        let value = self.0.value(row);
        let wide: f64 = value.into();
        // Writing to a Vec cannot fail.
        let _ = if wide.is_finite() {
            write!(out, "{value:?}")
        } else if wide.is_nan() {
            write!(out, "\"NaN\"")
        } else {
            write!(out, "\"{}Infinity\"", if wide < 0.0 { "-" } else { "" })
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::json::json_values;
    use arrow::array::{
        ArrayRef, Decimal128Array, Float32Array, Float64Array, Int32Array, StringArray, StructArray,
        TimestampMicrosecondArray, TimestampNanosecondArray,
    };
    use arrow::datatypes::Field;

    #[test]
    fn rows_are_written_as_to_json_of_spark_writes_them() {
        let nested = StructArray::from(vec![
            (
                Arc::new(Field::new("a", DataType::Int32, true)),
                Arc::new(Int32Array::from(vec![Some(1), None, None])) as ArrayRef,
            ),
            (
                Arc::new(Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true)),
                Arc::new(TimestampMicrosecondArray::from(vec![Some(0), Some(-1), None]).with_timezone("UTC"))
                    as ArrayRef,
            ),
        ]);
        let decimals = Decimal128Array::from(vec![Some(1230), Some(-5), None]).with_precision_and_scale(10, 2);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("s", Arc::new(StringArray::from(vec![Some("a \"b\"\n\u{fc}"), Some(""), None]))),
            ("d", Arc::new(decimals.unwrap())),
            ("f", Arc::new(Float64Array::from(vec![Some(1.5), Some(f64::NAN), Some(1e300)]))),
            ("g", Arc::new(Float32Array::from(vec![Some(0.1), Some(f32::NEG_INFINITY), None]))),
            ("b", Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), Some(b""), None]))),
            ("local", Arc::new(TimestampNanosecondArray::from(vec![Some(1_795_254_263_120_001_999), None, None]))),
            ("n", Arc::new(nested)),
        ];
        let rows: ArrayRef = Arc::new(StructArray::from(
            arrow::array::RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))
                .unwrap(),
        ));
        let lines = json_values(&rows, &options()).unwrap();
        let lines: Vec<_> = lines.iter().map(|line| std::str::from_utf8(line.unwrap()).unwrap()).collect();
        assert_eq!(
            lines,
            [
                "{\"s\":\"a \\\"b\\\"\\n\u{fc}\",\"d\":12.30,\"f\":1.5,\"g\":0.1,\"b\":\"AP8=\",\
                 \"local\":\"2026-11-21T09:44:23.120\",\"n\":{\"a\":1,\"at\":\"1970-01-01T00:00:00.000Z\"}}",
                "{\"s\":\"\",\"d\":-0.05,\"f\":\"NaN\",\"g\":\"-Infinity\",\"b\":\"\",\
                 \"n\":{\"at\":\"1969-12-31T23:59:59.999Z\"}}",
                "{\"f\":1e300,\"n\":{}}",
            ]
        );
    }
}
