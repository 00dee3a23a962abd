//! Spark's mathematical functions.

use std::f64::consts;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Float64Array, Int8Array, Int64Array, StringArray,
};
use datafusion::arrow::compute;
use datafusion::arrow::datatypes::{DataType, Float32Type, Float64Type, Int32Type, Int64Type};
use datafusion::common::{Result, ScalarValue, exec_err};

use super::function::{Arg, Args, Call, Spec, returns};
use super::types::{is_integral, is_number, is_string, mismatch, sql_name};
use crate::error::failed;
use crate::functions::mask;

const DOUBLE: Args = Args::Fixed(1, &[Arg::Double]);
const DOUBLES: Args = Args::Fixed(2, &[Arg::Double, Arg::Double]);

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec::new("pi", Args::Fixed(0, &[]), returns::double, |call| constant(call, consts::PI)),
    &Spec::new("e", Args::Fixed(0, &[]), returns::double, |call| constant(call, consts::E)),
    &Spec::new("sqrt", DOUBLE, returns::double, |call| map(call, f64::sqrt)),
    &Spec::new("cbrt", DOUBLE, returns::double, |call| map(call, f64::cbrt)),
    &Spec::new("exp", DOUBLE, returns::double, |call| map(call, f64::exp)),
    &Spec::new("expm1", DOUBLE, returns::double, |call| map(call, f64::exp_m1)),
    &Spec::new("ln", DOUBLE, returns::double, |call| logarithm(call, 0.0, f64::ln)),
    &Spec::new("log2", DOUBLE, returns::double, |call| logarithm(call, 0.0, f64::log2)),
    &Spec::new("log10", DOUBLE, returns::double, |call| logarithm(call, 0.0, f64::log10)),
    &Spec::new("log1p", DOUBLE, returns::double, |call| logarithm(call, -1.0, f64::ln_1p)),
    &Spec::new("log", Args::Fixed(1, &[Arg::Double, Arg::Double]), returns::double, log),
    &Spec::new("sin", DOUBLE, returns::double, |call| map(call, f64::sin)),
    &Spec::new("cos", DOUBLE, returns::double, |call| map(call, f64::cos)),
    &Spec::new("tan", DOUBLE, returns::double, |call| map(call, f64::tan)),
    &Spec::new("cot", DOUBLE, returns::double, |call| map(call, |x| 1.0 / x.tan())),
    &Spec::new("sec", DOUBLE, returns::double, |call| map(call, |x| 1.0 / x.cos())),
    &Spec::new("csc", DOUBLE, returns::double, |call| map(call, |x| 1.0 / x.sin())),
    &Spec::new("asin", DOUBLE, returns::double, |call| map(call, f64::asin)),
    &Spec::new("acos", DOUBLE, returns::double, |call| map(call, f64::acos)),
    &Spec::new("atan", DOUBLE, returns::double, |call| map(call, f64::atan)),
    &Spec::new("sinh", DOUBLE, returns::double, |call| map(call, f64::sinh)),
    &Spec::new("cosh", DOUBLE, returns::double, |call| map(call, f64::cosh)),
    &Spec::new("tanh", DOUBLE, returns::double, |call| map(call, f64::tanh)),
    &Spec::new("asinh", DOUBLE, returns::double, |call| map(call, f64::asinh)),
    &Spec::new("acosh", DOUBLE, returns::double, |call| map(call, f64::acosh)),
    &Spec::new("atanh", DOUBLE, returns::double, |call| map(call, f64::atanh)),
    &Spec::new("atan2", DOUBLES, returns::double, |call| zip(call, |y, x| (y + 0.0).atan2(x + 0.0))),
    &Spec::new("hypot", DOUBLES, returns::double, |call| zip(call, f64::hypot)),
    &Spec::new("power", DOUBLES, returns::double, |call| zip(call, power)).or(&["pow"]),
    &Spec::new("degrees", DOUBLE, returns::double, |call| map(call, f64::to_degrees)),
    &Spec::new("radians", DOUBLE, returns::double, |call| map(call, f64::to_radians)),
    &Spec::new("rint", DOUBLE, returns::double, |call| map(call, f64::round_ties_even)),
    &Spec::new("signum", DOUBLE, returns::double, |call| map(call, sign)).or(&["sign"]),
    &Spec::new("isnan", Args::Fixed(1, &[Arg::Double]), returns::bool, is_nan),
    &Spec::new("nanvl", Args::Custom(nanvl_args), returns::first, nanvl),
    &Spec::new("factorial", Args::Fixed(1, &[Arg::Int]), returns::long, factorial),
    &Spec::new("hex", Args::Custom(hex_args), returns::text, hex),
    &Spec::new("unhex", Args::Fixed(1, &[Arg::Text]), returns::bytes, unhex),
    &Spec::new("conv", Args::Fixed(3, &[Arg::Text, Arg::Int, Arg::Int]), returns::text, conv),
    &Spec::new("bin", Args::Fixed(1, &[Arg::Long]), returns::text, bin),
    &Spec::new("shiftleft", Args::Custom(shift_args), returns::first, |call| {
        shift(call, i32::wrapping_shl, i64::wrapping_shl)
    }),
    &Spec::new("shiftright", Args::Custom(shift_args), returns::first, |call| {
        shift(call, i32::wrapping_shr, i64::wrapping_shr)
    }),
    &Spec::new("shiftrightunsigned", Args::Custom(shift_args), returns::first, |call| {
        let (int, long) = (
            |value: i32, by| value.cast_unsigned().wrapping_shr(by).cast_signed(),
            |value: i64, by| value.cast_unsigned().wrapping_shr(by).cast_signed(),
        );
        shift(call, int, long)
    }),
    &Spec::new("bit_count", Args::Custom(bit_count_args), returns::int, bit_count),
    &Spec::new("bit_get", Args::Custom(bit_get_args), bit, bit_get).or(&["getbit"]),
    &Spec::new(
        "width_bucket",
        Args::Fixed(4, &[Arg::Double, Arg::Double, Arg::Double, Arg::Long]),
        returns::long,
        width_bucket,
    ),
    &Spec::new("rand", Args::Fixed(0, &[Arg::Long]), returns::double, |call| random(call, rand::random::<f64>))
        .or(&["random"])
        .volatile(),
    &Spec::new("randn", Args::Fixed(0, &[Arg::Long]), returns::double, |call| random(call, normal)).volatile(),
];

fn constant(call: &Call<'_>, value: f64) -> Result<ArrayRef> {
    Ok(Arc::new(Float64Array::from_value(value, call.rows)))
}

fn map(call: &Call<'_>, of: fn(f64) -> f64) -> Result<ArrayRef> {
    Ok(Arc::new(call.numbers::<Float64Type>(0)?.unary::<_, Float64Type>(of)))
}

fn zip(call: &Call<'_>, of: fn(f64, f64) -> f64) -> Result<ArrayRef> {
    let (left, right) = (call.numbers::<Float64Type>(0)?, call.numbers::<Float64Type>(1)?);
    Ok(Arc::new(compute::binary::<_, _, _, Float64Type>(&left, &right, of)?))
}

/// NULL where the argument is not above the limit.
fn logarithm(call: &Call<'_>, limit: f64, of: fn(f64) -> f64) -> Result<ArrayRef> {
    let values = call.numbers::<Float64Type>(0)?;
    Ok(Arc::new(values.unary_opt::<_, Float64Type>(|x| if x <= limit { None } else { Some(of(x)) })))
}

/// `log(x)`, `log(base, x)`
fn log(call: &Call<'_>) -> Result<ArrayRef> {
    if call.len() == 1 {
        return logarithm(call, 0.0, f64::ln);
    }
    let (base, values) = (call.numbers::<Float64Type>(0)?, call.numbers::<Float64Type>(1)?);
    let logs = base.iter().zip(values.iter()).map(|pair| match pair {
        (Some(base), Some(x)) if !(base <= 0.0 || x <= 0.0) => Some(x.ln() / base.ln()),
        _ => None,
    });
    Ok(Arc::new(Float64Array::from_iter(logs)))
}

/// As Java has it, for which 1 to an unknown or infinite power is not a number.
fn power(base: f64, exponent: f64) -> f64 {
    if exponent.is_nan() || exponent.is_infinite() && base.abs() == 1.0 { f64::NAN } else { base.powf(exponent) }
}

fn sign(x: f64) -> f64 {
    if x == 0.0 { x } else { x.signum() }
}

fn is_nan(call: &Call<'_>) -> Result<ArrayRef> {
    let values = call.numbers::<Float64Type>(0)?;
    Ok(Arc::new(BooleanArray::from_iter(values.iter().map(|x| Some(x.is_some_and(f64::is_nan))))))
}

fn wrong_argument(number: usize, function: &str, needs: &str, got: &DataType) -> datafusion::common::DataFusionError {
    mismatch(
        "UNEXPECTED_INPUT_TYPE",
        format!("argument {number} of {function}() must be {needs}, not {}", sql_name(got)),
    )
}

fn wrong_count(function: &str, needs: &str) -> datafusion::common::DataFusionError {
    crate::error::refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", format!("{function}() needs {needs}"))
}

fn nanvl_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    match types {
        [DataType::Float32, DataType::Float32] => Ok(types.to_vec()),
        [left, right] => {
            let wrong = [left, right].into_iter().find(|t| !(is_number(t) || is_string(t) || t.is_null()));
            match wrong {
                Some(wrong) => Err(wrong_argument(1, "nanvl", "DOUBLE", wrong)),
                None => Ok(vec![DataType::Float64; 2]),
            }
        }
        _ => Err(wrong_count("nanvl", "2 arguments")),
    }
}

fn nanvl(call: &Call<'_>) -> Result<ArrayRef> {
    let (value, otherwise) = (call.array(0)?, call.array(1)?);
    let is_nan = match value.data_type() {
        DataType::Float32 => BooleanArray::from_unary(value.as_primitive::<Float32Type>(), f32::is_nan),
        _ => BooleanArray::from_unary(value.as_primitive::<Float64Type>(), f64::is_nan),
    };
    Ok(compute::kernels::zip::zip(&mask(&is_nan), &otherwise, &value)?)
}

fn factorial(call: &Call<'_>) -> Result<ArrayRef> {
    let values = call.numbers::<Int32Type>(0)?;
    // 20! is the last one that a BIGINT can hold.
    Ok(Arc::new(values.unary_opt::<_, Int64Type>(|n| (0..=20).contains(&n).then(|| (1..=i64::from(n)).product()))))
}

fn hex_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    match types {
        [DataType::Binary] => Ok(vec![DataType::Binary]),
        [of] if is_number(of) => Ok(vec![DataType::Int64]),
        [of] if !of.is_nested() => Ok(vec![DataType::Utf8]),
        [of] => Err(wrong_argument(1, "hex", "BIGINT, BINARY or STRING", of)),
        _ => Err(wrong_count("hex", "1 argument")),
    }
}

fn hex(call: &Call<'_>) -> Result<ArrayRef> {
    let of = call.array(0)?;
    let texts: StringArray = match of.data_type() {
        DataType::Int64 => of.as_primitive::<Int64Type>().iter().map(|n| n.map(|n| format!("{n:X}"))).collect(),
        DataType::Utf8 => of.as_string::<i32>().iter().map(|text| text.map(|text| digits(text.as_bytes()))).collect(),
        _ => of.as_binary::<i32>().iter().map(|bytes| bytes.map(digits)).collect(),
    };
    Ok(Arc::new(texts))
}

fn digits(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |of: u8| char::from(DIGITS[usize::from(of & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

fn unhex(call: &Call<'_>) -> Result<ArrayRef> {
    let texts = call.text(0)?;
    Ok(Arc::new(BinaryArray::from_iter(texts.iter().map(|text| text.and_then(bytes_of)))))
}

/// The bytes of hexadecimal digits. A first digit without a second one counts for the lower half of its byte.
pub(super) fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let digits = digits?;
    let (first, rest) = digits.split_at(digits.len() % 2);
    Some(first.iter().copied().chain(rest.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1])).collect())
}

fn conv(call: &Call<'_>) -> Result<ArrayRef> {
    let (texts, from, to) = (call.text(0)?, call.numbers::<Int32Type>(1)?, call.numbers::<Int32Type>(2)?);
    let converted: Result<StringArray> = texts
        .iter()
        .zip(from.iter().zip(to.iter()))
        .map(|row| match row {
            (Some(text), (Some(from), Some(to))) => converted(text.trim(), from, to),
            _ => Ok(None),
        })
        .collect();
    Ok(Arc::new(converted?))
}

/// A number in another base. Digits count up to the first one that is none; a negative base shows the sign.
fn converted(text: &str, from: i32, to: i32) -> Result<Option<String>> {
    let bases = 2..=36;
    if text.is_empty() || !bases.contains(&from.unsigned_abs()) || from < 0 || !bases.contains(&to.unsigned_abs()) {
        return Ok(None);
    }
    let (mut negative, number) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut value = 0u64;
    for digit in number.chars().map_while(|c| c.to_digit(from.unsigned_abs())) {
        let next = value.checked_mul(u64::from(from.unsigned_abs())).and_then(|v| v.checked_add(u64::from(digit)));
        let Some(next) = next else {
            return Err(failed("ARITHMETIC_OVERFLOW", format!("the number '{text}' of conv() has more than 64 bits")));
        };
        value = next;
    }
    if negative && to > 0 {
        value = if value.cast_signed() < 0 { u64::MAX } else { value.wrapping_neg() };
    }
    if to < 0 && value.cast_signed() < 0 {
        value = value.wrapping_neg();
        negative = true;
    }
    let base = to.unsigned_abs();
    let mut digits = Vec::new();
    loop {
        let digit = u32::try_from(value % u64::from(base)).ok().and_then(|d| char::from_digit(d, base));
        digits.extend(digit.map(|digit| digit.to_ascii_uppercase()));
        value /= u64::from(base);
        if value == 0 {
            break;
        }
    }
    if negative && to < 0 {
        digits.push('-');
    }
    Ok(Some(digits.into_iter().rev().collect()))
}

fn bin(call: &Call<'_>) -> Result<ArrayRef> {
    let values = call.numbers::<Int64Type>(0)?;
    Ok(Arc::new(StringArray::from_iter(values.iter().map(|n| n.map(|n| format!("{n:b}"))))))
}

fn shift_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    match types {
        [DataType::Int64, _] => Ok(vec![DataType::Int64, DataType::Int32]),
        [of, _] if is_number(of) || is_string(of) || of.is_null() => Ok(vec![DataType::Int32, DataType::Int32]),
        [of, _] => Err(wrong_argument(1, "a shift", "INT or BIGINT", of)),
        _ => Err(wrong_count("a shift", "2 arguments")),
    }
}

fn shift(call: &Call<'_>, int: fn(i32, u32) -> i32, long: fn(i64, u32) -> i64) -> Result<ArrayRef> {
    let (of, by) = (call.array(0)?, call.numbers::<Int32Type>(1)?);
    Ok(match of.data_type() {
        DataType::Int64 => {
            let shift = |value, by: i32| long(value, by.cast_unsigned());
            Arc::new(compute::binary::<_, _, _, Int64Type>(of.as_primitive::<Int64Type>(), &by, shift)?)
        }
        _ => {
            let shift = |value, by: i32| int(value, by.cast_unsigned());
            Arc::new(compute::binary::<_, _, _, Int32Type>(of.as_primitive::<Int32Type>(), &by, shift)?)
        }
    })
}

fn bit_count_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    match types {
        [of] if is_integral(of) || matches!(of, DataType::Boolean | DataType::Null) => Ok(vec![DataType::Int64]),
        [of] => Err(wrong_argument(1, "bit_count", "an integer or BOOLEAN", of)),
        _ => Err(wrong_count("bit_count", "1 argument")),
    }
}

fn bit_count(call: &Call<'_>) -> Result<ArrayRef> {
    let values = call.numbers::<Int64Type>(0)?;
    Ok(Arc::new(values.unary::<_, Int32Type>(|value| value.count_ones().cast_signed())))
}

fn bit_get_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    match types {
        [of, _] if is_integral(of) => Ok(vec![of.clone(), DataType::Int32]),
        [DataType::Null, _] => Ok(vec![DataType::Int32, DataType::Int32]),
        [of, _] => Err(wrong_argument(1, "bit_get", "an integer", of)),
        _ => Err(wrong_count("bit_get", "2 arguments")),
    }
}

fn bit(_: &[DataType], _: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    Ok(DataType::Int8)
}

fn bit_get(call: &Call<'_>) -> Result<ArrayRef> {
    let (of, at) = (call.array(0)?, call.numbers::<Int32Type>(1)?);
    let width = of.data_type().primitive_width().unwrap_or(8) * 8;
    let values = compute::cast(&of, &DataType::Int64)?;
    let values = values.as_primitive::<Int64Type>();
    let bits: Result<Int8Array> = values
        .iter()
        .zip(at.iter())
        .map(|pair| {
            let (Some(value), Some(at)) = pair else { return Ok(None) };
            match u32::try_from(at) {
                Ok(bit) if (bit as usize) < width => Ok(Some(i8::from(value >> bit & 1 == 1))),
                _ => Err(failed(
                    "INVALID_PARAMETER_VALUE.BIT_POSITION_RANGE",
                    format!("the bit of bit_get() is {at}, and must be from 0 to {}", width - 1),
                )),
            }
        })
        .collect();
    Ok(Arc::new(bits?))
}

fn width_bucket(call: &Call<'_>) -> Result<ArrayRef> {
    let (values, buckets) = (call.numbers::<Float64Type>(0)?, call.numbers::<Int64Type>(3)?);
    let (from, to) = (call.numbers::<Float64Type>(1)?, call.numbers::<Float64Type>(2)?);
    let rows = values.iter().zip(from.iter().zip(to.iter())).zip(buckets.iter());
    let bucket = rows.map(|((value, (from, to)), buckets)| {
        let (value, from, to, buckets) = (value?, from?, to?, buckets?);
        let range_is_wrong = !from.is_finite() || !to.is_finite() || from == to;
        if buckets <= 0 || buckets == i64::MAX || value.is_nan() || range_is_wrong {
            return None;
        }
        // The same measured from the upper end, where the range goes down.
        let way = if from < to { value - from } else { from - value };
        let length = (to - from).abs();
        Some(match way {
            way if way < 0.0 => 0,
            way if way >= length => buckets + 1,
            way => (buckets as f64 * way / length) as i64 + 1,
        })
    });
    Ok(Arc::new(Int64Array::from_iter(bucket)))
}

fn random(call: &Call<'_>, next: fn() -> f64) -> Result<ArrayRef> {
    if call.len() > 0 && !is_integral(&call.args[0].data_type()) {
        return exec_err!("the seed of a random number must be an integer");
    }
    Ok(Arc::new(Float64Array::from_iter_values((0..call.rows).map(|_| next()))))
}

/// A number of the standard normal distribution.
fn normal() -> f64 {
    // Box and Muller; 1 - x is not zero.
    let radius = (-2.0 * (1.0 - rand::random::<f64>()).ln()).sqrt();
    radius * (consts::TAU * rand::random::<f64>()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_change_their_base() {
        let convert = |text: &str, from, to| converted(text, from, to).unwrap();
        assert_eq!(convert("ff", 16, 10).as_deref(), Some("255"));
        assert_eq!(convert("-ff", 16, 10).as_deref(), Some("18446744073709551361"));
        assert_eq!(convert("-10", 16, -10).as_deref(), Some("-16"));
        assert_eq!(convert("12x", 10, 16).as_deref(), Some("C"));
        assert_eq!(convert("1", 1, 10), None);
        assert!(converted("18446744073709551616", 10, 16).is_err());
    }
}
