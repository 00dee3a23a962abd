//! `round`, `bround`, `ceil` and `floor`.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array, PrimitiveArray, new_null_array};
use datafusion::arrow::compute;
use datafusion::arrow::datatypes::{
    DataType, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, i256,
};
use datafusion::common::{DataFusionError, Result, ScalarValue, exec_err};

use super::decimal::{fit, power_of_ten};
use super::function::{Args, Call, Spec};
use super::types::{bounded, is_decimal, is_integral, is_number, is_string, mismatch, sql_name};
use crate::error::{failed, refused_analysis};

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec::new("round", Args::Custom(round_args), round_type, |call| round(call, Mode::HalfUp)),
    &Spec::new("bround", Args::Custom(round_args), round_type, |call| round(call, Mode::HalfEven)),
    &Spec::new("ceil", Args::Custom(whole_args), whole_type, |call| whole(call, Mode::Ceiling)).or(&["ceiling"]),
    &Spec::new("floor", Args::Custom(whole_args), whole_type, |call| whole(call, Mode::Floor)),
];

/// What becomes of digits that go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    HalfUp,
    HalfEven,
    Ceiling,
    Floor,
}

/// `value / 10^digits`, rounded.
fn shorten(value: i256, digits: u32, mode: Mode) -> i256 {
    if digits > 76 {
        let away = value != i256::ZERO && (mode == Mode::Ceiling) == (value > i256::ZERO);
        return match mode {
            Mode::Ceiling | Mode::Floor if away => {
                if value > i256::ZERO {
                    i256::ONE
                } else {
                    i256::MINUS_ONE
                }
            }
            _ => i256::ZERO,
        };
    }
    let unit = power_of_ten(digits);
    let (quotient, rest) = (value.wrapping_div(unit), value.wrapping_rem(unit));
    let up = if value < i256::ZERO { i256::MINUS_ONE } else { i256::ONE };
    // Half of 10^76 can be doubled, all of it cannot.
    let half = unit.wrapping_sub(rest.wrapping_abs());
    let away = match mode {
        Mode::HalfUp => rest != i256::ZERO && rest.wrapping_abs() >= half,
        Mode::HalfEven => {
            let odd = quotient.wrapping_rem(i256::from_i128(2)) != i256::ZERO;
            rest != i256::ZERO && (rest.wrapping_abs() > half || rest.wrapping_abs() == half && odd)
        }
        Mode::Ceiling => rest > i256::ZERO,
        Mode::Floor => rest < i256::ZERO,
    };
    if away { quotient.wrapping_add(up) } else { quotient }
}

fn checked_count(types: &[DataType]) -> Result<()> {
    match types.len() {
        1 | 2 => Ok(()),
        count => Err(refused_analysis(
            "WRONG_NUM_ARGS.WITHOUT_SUGGESTION",
            format!("a rounding has {count} arguments, and needs a number and, if wanted, how many digits it keeps"),
        )),
    }
}

fn wrong_type(of: &DataType) -> DataFusionError {
    mismatch("UNEXPECTED_INPUT_TYPE", format!("a rounding needs a number, not {}", sql_name(of)))
}

fn round_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    checked_count(types)?;
    let of = match &types[0] {
        of if is_number(of) => of.clone(),
        of if is_string(of) || of.is_null() => DataType::Float64,
        of => return Err(wrong_type(of)),
    };
    Ok(std::iter::once(of).chain(types.get(1).map(digits_type)).collect())
}

/// Without digits whole numbers come out, with them decimals.
fn whole_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    checked_count(types)?;
    let of = &types[0];
    if !(is_number(of) || is_string(of) || of.is_null()) {
        return Err(wrong_type(of));
    }
    if types.len() == 1 {
        return Ok(vec![match of {
            of if is_decimal(of) => of.clone(),
            of if is_integral(of) => DataType::Int64,
            _ => DataType::Float64,
        }]);
    }
    let decimal = match of {
        DataType::Decimal128(..) => of.clone(),
        DataType::Int8 => bounded(3, 0),
        DataType::Int16 => bounded(5, 0),
        DataType::Int32 => bounded(10, 0),
        DataType::Int64 => bounded(20, 0),
        DataType::Float32 => bounded(14, 7),
        DataType::Float64 => bounded(30, 15),
        _ => bounded(38, 18),
    };
    Ok(vec![decimal, digits_type(&types[1])])
}

/// Whole numbers stay what they are: a constant that is cast is none any more before it is computed.
fn digits_type(of: &DataType) -> DataType {
    if is_integral(of) { of.clone() } else { DataType::Int32 }
}

/// How many digits behind the point are kept; nothing where that is NULL.
fn kept(constants: &[Option<&ScalarValue>]) -> Result<Option<i32>> {
    match constants.get(1) {
        None => Ok(Some(0)),
        Some(Some(value)) if value.is_null() => Ok(None),
        Some(Some(value)) if is_integral(&value.data_type()) => match value.cast_to(&DataType::Int32)? {
            ScalarValue::Int32(digits) => Ok(digits),
            other => exec_err!("{other} is no number of digits"),
        },
        Some(_) => Err(mismatch("NON_FOLDABLE_INPUT", "the digits that a rounding keeps must be a constant integer")),
    }
}

/// The DECIMAL that keeps these digits.
fn decimal_type(precision: u8, scale: i8, kept: i32) -> DataType {
    let (precision, scale) = (i32::from(precision), i32::from(scale));
    let whole = precision - scale + 1;
    if kept < 0 { bounded(whole.max(1 - kept), 0) } else { bounded(whole + kept.min(scale), kept.min(scale)) }
}

fn round_type(types: &[DataType], constants: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    let kept = kept(constants)?;
    Ok(match types {
        [DataType::Decimal128(precision, scale), ..] => decimal_type(*precision, *scale, kept.unwrap_or(0)),
        [of, ..] => of.clone(),
        [] => DataType::Null,
    })
}

fn whole_type(types: &[DataType], constants: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    match types {
        [DataType::Decimal128(precision, scale)] => Ok(decimal_type(*precision, *scale, 0)),
        [DataType::Decimal128(precision, scale), _] => match kept(constants) {
            Ok(Some(kept)) => Ok(decimal_type(*precision, *scale, kept)),
            _ => Err(refused_analysis("NON_FOLDABLE_ARGUMENT", "the digits that a rounding keeps must be constant")),
        },
        _ => Ok(DataType::Int64),
    }
}

fn overflow(data_type: &DataType) -> DataFusionError {
    failed("ARITHMETIC_OVERFLOW", format!("the rounded number is too large for {}", sql_name(data_type)))
}

/// The constant number of digits of a call.
fn digits(call: &Call<'_>) -> Result<Option<i32>> {
    if call.len() < 2 {
        return Ok(Some(0));
    }
    let digits = compute::cast(&call.array(1)?, &DataType::Int32)?;
    let digits = digits.as_primitive::<Int32Type>();
    Ok((!digits.is_empty() && digits.is_valid(0)).then(|| digits.value(0)))
}

fn decimals(array: &ArrayRef, kept: i32, mode: Mode, returns: &DataType) -> Result<ArrayRef> {
    let (DataType::Decimal128(_, scale), DataType::Decimal128(precision, to)) = (array.data_type(), returns) else {
        return exec_err!("a rounding makes a DECIMAL of a DECIMAL");
    };
    let (scale, to, precision) = (i32::from(*scale), i32::from(*to), *precision);
    let drop = (scale - kept).max(0).unsigned_abs();
    // What is rounded before the point gets its zeros back.
    let zeros = power_of_ten((to - kept).max(0).unsigned_abs());
    let rounded = array.as_primitive::<Decimal128Type>().try_unary::<_, Decimal128Type, DataFusionError>(|value| {
        let value = shorten(i256::from_i128(value), drop, mode);
        value.checked_mul(zeros).and_then(|value| fit(value, precision)).ok_or_else(|| {
            failed(
                "NUMERIC_VALUE_OUT_OF_RANGE.WITH_SUGGESTION",
                format!("the rounded number has too many digits for {}", sql_name(returns)),
            )
        })
    })?;
    Ok(Arc::new(rounded.with_data_type(returns.clone())))
}

fn round(call: &Call<'_>, mode: Mode) -> Result<ArrayRef> {
    let array = call.array(0)?;
    let Some(kept) = digits(call)? else { return Ok(new_null_array(call.returns, call.rows)) };
    macro_rules! integers {
        ($t:ty) => {{
            if kept >= 0 {
                return Ok(array);
            }
            let values = array.as_primitive::<$t>();
            let round = |value| {
                let rounded = shorten(i256::from_i128(i128::from(value)), kept.unsigned_abs(), mode);
                let rounded = rounded.checked_mul(power_of_ten(kept.unsigned_abs())).and_then(i256::to_i128);
                rounded.and_then(|rounded| rounded.try_into().ok()).ok_or_else(|| overflow(array.data_type()))
            };
            Ok(Arc::new(values.try_unary::<_, $t, DataFusionError>(round)?))
        }};
    }
    match array.data_type() {
        DataType::Int8 => integers!(Int8Type),
        DataType::Int16 => integers!(Int16Type),
        DataType::Int32 => integers!(Int32Type),
        DataType::Int64 => integers!(Int64Type),
        DataType::Float32 => {
            let rounded: PrimitiveArray<Float32Type> =
                array.as_primitive::<Float32Type>().unary(|value| double(f64::from(value), kept, mode) as f32);
            Ok(Arc::new(rounded))
        }
        DataType::Float64 => {
            let rounded: PrimitiveArray<Float64Type> =
                array.as_primitive::<Float64Type>().unary(|value| double(value, kept, mode));
            Ok(Arc::new(rounded))
        }
        _ => decimals(&array, kept, mode, call.returns),
    }
}

/// A DOUBLE, rounded as the decimal number that it is shown as.
fn double(value: f64, kept: i32, mode: Mode) -> f64 {
    if !value.is_finite() {
        return value;
    }
    let shown = format!("{value:e}");
    let (mantissa, exponent) = shown.split_once('e').unwrap_or((&shown, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let (Ok(digits), Ok(exponent)) = (format!("{whole}{fraction}").parse::<i128>(), exponent.parse::<i32>()) else {
        return value;
    };
    // The digits are worth 10 to this power.
    let unit = exponent.saturating_sub(fraction.len() as i32);
    let drop = kept.saturating_neg().saturating_sub(unit);
    if drop <= 0 {
        return value + 0.0;
    }
    let rounded = shorten(i256::from_i128(digits), drop.unsigned_abs(), mode);
    if rounded == i256::ZERO { 0.0 } else { format!("{rounded}e{}", kept.saturating_neg()).parse().unwrap_or(value) }
}

fn whole(call: &Call<'_>, mode: Mode) -> Result<ArrayRef> {
    let array = call.array(0)?;
    match array.data_type() {
        DataType::Decimal128(..) => match digits(call)? {
            Some(kept) => decimals(&array, kept, mode, call.returns),
            None => Ok(new_null_array(call.returns, call.rows)),
        },
        DataType::Int64 => Ok(array),
        _ => {
            let values = compute::cast(&array, &DataType::Float64)?;
            let whole = |value: f64| {
                let whole = if mode == Mode::Ceiling { value.ceil() } else { value.floor() };
                let fits = (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&whole);
                if fits { Ok(whole as i64) } else { Err(overflow(&DataType::Int64)) }
            };
            let values: Int64Array =
                values.as_primitive::<Float64Type>().try_unary::<_, Int64Type, DataFusionError>(whole)?;
            Ok(Arc::new(values))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_are_rounded_as_they_are_shown() {
        assert_eq!(double(2.675, 2, Mode::HalfUp), 2.68);
        assert_eq!(double(-2.5, 0, Mode::HalfUp), -3.0);
        assert_eq!(double(2.5, 0, Mode::HalfEven), 2.0);
        assert_eq!(double(12345.678, -2, Mode::HalfUp), 12300.0);
        assert_eq!(double(1e300, 2, Mode::HalfUp), 1e300);
        assert_eq!(double(4.9e-324, 300, Mode::HalfUp), 0.0);
        assert_eq!(double(6.0, -1, Mode::HalfUp), 10.0);
        assert!(double(-0.0, 0, Mode::HalfUp).is_sign_positive());
    }
}
