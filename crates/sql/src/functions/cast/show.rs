//! Values as text.

use std::fmt::Write;
use std::sync::Arc;

use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, StringArray};
use datafusion::arrow::compute;
use datafusion::arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, IntervalMonthDayNano, IntervalMonthDayNanoType,
    IntervalUnit, IntervalYearMonthType, TimeUnit, TimestampMicrosecondType,
};
use datafusion::common::Result;

use super::super::types::{is_integral, is_string};
use super::java::Digits;
use super::{texts, time};

/// All values as Spark's CAST shows them.
pub(crate) fn text(array: &ArrayRef) -> Result<StringArray> {
    let nulls = array.logical_nulls();
    let nulls = nulls.as_ref();
    Ok(match array.data_type() {
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>();
            texts(array.len(), nulls, |row, text| double(values.value(row), text))
        }
        DataType::Float32 => {
            let values = array.as_primitive::<Float32Type>();
            texts(array.len(), nulls, |row, text| float(values.value(row), text))
        }
        DataType::Decimal128(..) => {
            let values = array.as_primitive::<Decimal128Type>();
            let scale = match array.data_type() {
                DataType::Decimal128(_, scale) => i32::from(*scale),
                _ => 0,
            };
            texts(array.len(), nulls, |row, text| decimal(values.value(row), scale, text))
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let values = array.as_primitive::<TimestampMicrosecondType>();
            let zone = zone.as_deref().map(str::parse::<Tz>).transpose()?;
            texts(array.len(), nulls, |row, text| time::show_timestamp(values.value(row), zone, text))
        }
        DataType::Date32 => {
            let values = array.as_primitive::<Date32Type>();
            texts(array.len(), nulls, |row, text| time::show_date(values.value(row), text))
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let values = array.as_primitive::<IntervalMonthDayNanoType>();
            texts(array.len(), nulls, |row, text| super::super::intervals::show(values.value(row), text))
        }
        DataType::Interval(IntervalUnit::YearMonth) => {
            let values = array.as_primitive::<IntervalYearMonthType>();
            texts(array.len(), nulls, |row, text| {
                super::super::intervals::show(IntervalMonthDayNano::new(values.value(row), 0, 0), text);
            })
        }
        DataType::Binary => {
            let values = array.as_binary::<i32>();
            texts(array.len(), nulls, |row, text| text.push_str(&String::from_utf8_lossy(values.value(row))))
        }
        DataType::List(_) | DataType::Struct(_) | DataType::Map(..) => {
            let shown = Nested::of(array)?;
            texts(array.len(), nulls, |row, text| shown.write(row, text))
        }
        other if is_string(other) || is_integral(other) || *other == DataType::Boolean => {
            compute::cast(array, &DataType::Utf8)?.as_string::<i32>().clone()
        }
        _ => compute::cast(array, &DataType::Utf8)?.as_string::<i32>().clone(),
    })
}

/// A value of several parts, whose parts are text already.
enum Nested {
    Leaf(StringArray),
    List(Arc<dyn Array>, Box<Nested>),
    Struct(Arc<dyn Array>, Vec<Nested>),
    Map(Arc<dyn Array>, Box<(Nested, Nested)>),
}

impl Nested {
    fn of(array: &ArrayRef) -> Result<Self> {
        Ok(match array.data_type() {
            DataType::List(_) => Self::List(array.clone(), Box::new(Self::of(array.as_list::<i32>().values())?)),
            DataType::Struct(_) => {
                Self::Struct(array.clone(), array.as_struct().columns().iter().map(Self::of).collect::<Result<_>>()?)
            }
            DataType::Map(..) => {
                let map = array.as_map();
                Self::Map(array.clone(), Box::new((Self::of(map.keys())?, Self::of(map.values())?)))
            }
            _ => Self::Leaf(text(array)?),
        })
    }

    fn write(&self, row: usize, out: &mut String) {
        let separate = |at: usize, out: &mut String| {
            if at > 0 {
                out.push_str(", ");
            }
        };
        match self {
            Self::Leaf(texts) if texts.is_null(row) => out.push_str("null"),
            Self::Leaf(texts) => out.push_str(texts.value(row)),
            Self::List(array, _) | Self::Struct(array, _) | Self::Map(array, _) if array.is_null(row) => {
                out.push_str("null");
            }
            Self::List(array, items) => {
                let offsets = array.as_list::<i32>().value_offsets();
                out.push('[');
                for (at, item) in (offsets[row]..offsets[row + 1]).enumerate() {
                    separate(at, out);
                    items.write(item as usize, out);
                }
                out.push(']');
            }
            Self::Struct(_, fields) => {
                out.push('{');
                for (at, field) in fields.iter().enumerate() {
                    separate(at, out);
                    field.write(row, out);
                }
                out.push('}');
            }
            Self::Map(array, entries) => {
                let offsets = array.as_map().value_offsets();
                out.push('{');
                for (at, entry) in (offsets[row]..offsets[row + 1]).enumerate() {
                    separate(at, out);
                    entries.0.write(entry as usize, out);
                    out.push_str(" -> ");
                    entries.1.write(entry as usize, out);
                }
                out.push('}');
            }
        }
    }
}

/// A DOUBLE as Java prints it.
pub(crate) fn double(value: f64, out: &mut String) {
    if value == 0.0 || !value.is_finite() {
        return special(value, out);
    }
    // Few digits are the shortest ones in Java 17, too, but for subnormal numbers and greater whole ones. That is quick to find out.
    if value.is_normal() && value.abs() < EXACT && short(&value, 15, out) {
        return;
    }
    if value < 0.0 {
        out.push('-');
    }
    Digits::of_double(value).write(out);
}

/// A FLOAT as Java prints it.
pub(crate) fn float(value: f32, out: &mut String) {
    if value == 0.0 || !value.is_finite() {
        return special(f64::from(value), out);
    }
    if value < 0.0 {
        out.push('-');
    }
    Digits::of_float(value).write(out);
}

/// All whole numbers below are exact.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Zero, and what is no number.
fn special(value: f64, out: &mut String) {
    out.push_str(match value {
        0.0 if value.is_sign_negative() => "-0.0",
        0.0 => "0.0",
        value if value.is_nan() => "NaN",
        value if value > 0.0 => "Infinity",
        _ => "-Infinity",
    });
}

/// Writes a number whose shortest digits are at most so many, and that is not a power of two; tells whether it is one.
fn short(value: &f64, most: usize, out: &mut String) -> bool {
    if value.to_bits().trailing_zeros() >= 52 {
        return false;
    }
    let start = out.len();
    let plain = (1e-3..1e7).contains(&value.abs());
    // Writing to a String cannot fail.
    let _ = if plain { write!(out, "{value}") } else { write!(out, "{value:e}") };
    let shown = &out[start..];
    let (mantissa, exponent) = shown.split_once('e').map_or((shown, None), |(mantissa, e)| (mantissa, Some(e)));
    if mantissa.bytes().filter(u8::is_ascii_digit).count() > most {
        out.truncate(start);
        return false;
    }
    let exponent = exponent.map(|exponent| format!("E{exponent}"));
    let (end, has_point) = (start + mantissa.len(), mantissa.contains('.'));
    out.truncate(end);
    if !has_point {
        out.push_str(".0");
    }
    out.push_str(exponent.as_deref().unwrap_or_default());
    true
}

/// A DECIMAL as Java's `BigDecimal` prints it without an exponent.
pub(crate) fn decimal(value: i128, scale: i32, out: &mut String) {
    let digits = value.unsigned_abs().to_string();
    if value < 0 {
        out.push('-');
    }
    let scale = usize::try_from(scale).unwrap_or(0);
    if scale == 0 {
        out.push_str(&digits);
        return;
    }
    let padded = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = padded.split_at(padded.len() - scale);
    out.push_str(whole);
    out.push('.');
    out.push_str(fraction);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_as_java_does() {
        let shown = |value: f64| {
            let mut out = String::new();
            double(value, &mut out);
            out
        };
        assert_eq!(shown(1.0), "1.0");
        assert_eq!(shown(-0.0), "-0.0");
        assert_eq!(shown(1e7), "1.0E7");
        assert_eq!(shown(1234567.5), "1234567.5");
        assert_eq!(shown(12345678.9), "1.23456789E7");
        assert_eq!(shown(0.001), "0.001");
        assert_eq!(shown(0.0001), "1.0E-4");
        assert_eq!(shown(f64::NAN), "NaN");
        let mut out = String::new();
        decimal(-5, 2, &mut out);
        assert_eq!(out, "-0.05");
    }
}
