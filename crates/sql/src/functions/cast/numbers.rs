//! Casts between numbers.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, PrimitiveArray};
use datafusion::arrow::compute;
use datafusion::arrow::datatypes::{
    ArrowPrimitiveType, DataType, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    i256,
};
use datafusion::common::{Result, exec_err};

use super::super::decimal::{divide_half_up, fit, power_of_ten, rescale};
use super::{too_large, too_many_digits};

/// Whether numbers are not zero.
pub(super) fn not_zero(array: &ArrayRef) -> Result<ArrayRef> {
    let double = match array.data_type() {
        DataType::Decimal128(..) => {
            let values = array.as_primitive::<Decimal128Type>();
            return Ok(Arc::new(BooleanArray::from_iter(values.iter().map(|value| value.map(|value| value != 0)))));
        }
        _ => compute::cast(array, &DataType::Float64)?,
    };
    let values = double.as_primitive::<Float64Type>();
    Ok(Arc::new(BooleanArray::from_iter(values.iter().map(|value| value.map(|value| value != 0.0)))))
}

/// Makes integers out of BIGINTs that may not fit. `show` prints the value of a row for the error.
fn narrow(
    values: impl Iterator<Item = Option<Option<i64>>>,
    from: &DataType,
    to: &DataType,
    lenient: bool,
    show: impl Fn(usize) -> String,
) -> Result<ArrayRef> {
    fn collect<T: ArrowPrimitiveType<Native: TryFrom<i64>>>(
        values: impl Iterator<Item = Option<Option<i64>>>,
        fails: impl Fn(usize) -> datafusion::common::DataFusionError,
        lenient: bool,
    ) -> Result<ArrayRef> {
        let values: Result<PrimitiveArray<T>> = values
            .enumerate()
            .map(|(row, value)| match value {
                None => Ok(None),
                Some(value) => match value.and_then(|value| T::Native::try_from(value).ok()) {
                    Some(value) => Ok(Some(value)),
                    None if lenient => Ok(None),
                    None => Err(fails(row)),
                },
            })
            .collect();
        Ok(Arc::new(values?))
    }
    let fails = |row| too_large(show(row), from, to);
    match to {
        DataType::Int8 => collect::<Int8Type>(values, fails, lenient),
        DataType::Int16 => collect::<Int16Type>(values, fails, lenient),
        DataType::Int32 => collect::<Int32Type>(values, fails, lenient),
        DataType::Int64 => collect::<Int64Type>(values, fails, lenient),
        other => exec_err!("{other} is no integer"),
    }
}

/// Integers of one width as integers of another.
pub(super) fn integers(array: &ArrayRef, to: &DataType, lenient: bool) -> Result<ArrayRef> {
    let wide = compute::cast(array, &DataType::Int64)?;
    let wide = wide.as_primitive::<Int64Type>();
    narrow(wide.iter().map(|value| value.map(Some)), array.data_type(), to, lenient, |row| wide.value(row).to_string())
}

/// Floating-point numbers cut to integers.
pub(super) fn floats_to_integers(array: &ArrayRef, to: &DataType, lenient: bool) -> Result<ArrayRef> {
    let double = compute::cast(array, &DataType::Float64)?;
    let double = double.as_primitive::<Float64Type>();
    let values = double.iter().map(|value| {
        value.map(|value| {
            let whole = value.trunc();
            (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&whole).then_some(whole as i64)
        })
    });
    narrow(values, array.data_type(), to, lenient, |row| double.value(row).to_string())
}

fn scale_of(data_type: &DataType) -> i32 {
    match data_type {
        DataType::Decimal128(_, scale) => i32::from(*scale),
        _ => 0,
    }
}

/// Decimals cut to integers.
pub(super) fn decimals_to_integers(array: &ArrayRef, to: &DataType, lenient: bool) -> Result<ArrayRef> {
    let decimals = array.as_primitive::<Decimal128Type>();
    let unit = power_of_ten(scale_of(array.data_type()).max(0) as u32).to_i128().unwrap_or(i128::MAX);
    let values = decimals.iter().map(|value| value.map(|value| i64::try_from(value / unit).ok()));
    narrow(values, array.data_type(), to, lenient, |row| decimals.value_as_string(row))
}

/// Decimals as the nearest floating-point numbers.
pub(super) fn decimals_to_floats(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    let decimals = array.as_primitive::<Decimal128Type>();
    let scale = scale_of(array.data_type());
    let unit = 10f64.powi(scale);
    let doubles: PrimitiveArray<Float64Type> = decimals
        .iter()
        .enumerate()
        .map(|(row, value)| {
            value.map(|value| {
                // Both are exact: so is their quotient, to the last bit.
                if value.unsigned_abs() < 1 << 53 && scale <= 22 {
                    value as f64 / unit
                } else {
                    decimals.value_as_string(row).parse().unwrap_or(f64::NAN)
                }
            })
        })
        .collect();
    let doubles: ArrayRef = Arc::new(doubles);
    match to {
        DataType::Float32 => {
            let floats: PrimitiveArray<Float32Type> = decimals
                .iter()
                .enumerate()
                .map(|(row, value)| value.map(|_| decimals.value_as_string(row).parse().unwrap_or(f32::NAN)))
                .collect();
            Ok(Arc::new(floats))
        }
        _ => Ok(doubles),
    }
}

/// Numbers as decimals, rounded half up.
pub(super) fn to_decimals(array: &ArrayRef, to: &DataType, lenient: bool) -> Result<ArrayRef> {
    let DataType::Decimal128(precision, scale) = to else { return exec_err!("{to} is no DECIMAL") };
    let scale = i32::from(*scale);
    let from = array.data_type();
    let rows = array.len();
    let value_of: Box<dyn Fn(usize) -> Option<i128>> = match from {
        DataType::Decimal128(_, from_scale) => {
            let from_scale = i32::from(*from_scale);
            let values = array.as_primitive::<Decimal128Type>().clone();
            Box::new(move |row| fit(rescale(i256::from_i128(values.value(row)), from_scale, scale)?, *precision))
        }
        DataType::Float32 => {
            let values = array.as_primitive::<Float32Type>().clone();
            Box::new(move |row| exact(&format!("{:e}", values.value(row)), *precision, scale))
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>().clone();
            Box::new(move |row| exact(&format!("{:e}", values.value(row)), *precision, scale))
        }
        _ => {
            let wide = compute::cast(array, &DataType::Int64)?;
            let values = wide.as_primitive::<Int64Type>().clone();
            Box::new(move |row| fit(rescale(i256::from_i128(values.value(row).into()), 0, scale)?, *precision))
        }
    };
    // What is no number, or is infinite, is NULL: not an error, not even here.
    let finite = |row: usize| match from {
        DataType::Float32 => array.as_primitive::<Float32Type>().value(row).is_finite(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).is_finite(),
        _ => true,
    };
    let values: Result<PrimitiveArray<Decimal128Type>> = (0..rows)
        .map(|row| {
            if array.is_null(row) || !finite(row) {
                return Ok(None);
            }
            match value_of(row) {
                Some(value) => Ok(Some(value)),
                None if lenient => Ok(None),
                None => {
                    let shown = super::show::text(&array.slice(row, 1))?;
                    Err(too_many_digits(shown.value(0), to))
                }
            }
        })
        .collect();
    Ok(Arc::new(values?.with_data_type(to.clone())))
}

/// A number whose digits are those of any script, as Java's BigDecimal reads it; nothing where there is something else in it.
fn with_plain_digits(text: &str) -> Option<String> {
    text.chars().map(|c| if c.is_ascii() { Some(c) } else { plain_digit(c) }).collect()
}

/// The digit that a character is, in the scripts of Unicode's Basic Multilingual Plane, where each has its ten in a row.
fn plain_digit(c: char) -> Option<char> {
    const ZEROS: [u32; 36] = [
        0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0, 0xf20,
        0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0,
        0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10,
    ];
    let zero = ZEROS.iter().rev().find(|zero| **zero <= u32::from(c))?;
    char::from_digit(u32::from(c) - zero, 10)
}

/// The decimal that a text such as `-12.5e3` is, rounded half up to the scale; nothing where it is none or does not fit.
pub(crate) fn exact(text: &str, precision: u8, scale: i32) -> Option<i128> {
    if !text.is_ascii() {
        return exact(&with_plain_digits(text)?, precision, scale);
    }
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (negative, digits) = match mantissa.as_bytes().first()? {
        b'-' => (true, &mantissa[1..]),
        b'+' => (false, &mantissa[1..]),
        _ => (false, mantissa),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    // The digits are worth 10 to this power.
    let mut unit = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let mut value = i256::ZERO;
    let ten = i256::from_i128(10);
    let limit = power_of_ten(74);
    let mut cut = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        if value >= limit {
            // Beyond what any DECIMAL can keep.
            cut += 1;
            continue;
        }
        value = value.wrapping_mul(ten).wrapping_add(i256::from_i128(i128::from(digit - b'0')));
    }
    unit = unit.checked_add(cut)?;
    if value == i256::ZERO {
        return Some(0);
    }
    let shift = unit.checked_add(scale)?;
    let scaled = if shift >= 0 {
        if shift > 76 {
            return None;
        }
        value.checked_mul(power_of_ten(shift as u32))?
    } else if shift < -76 {
        i256::ZERO
    } else {
        divide_half_up(value, power_of_ten(shift.unsigned_abs()))?
    };
    fit(if negative { scaled.wrapping_neg() } else { scaled }, precision)
}

#[cfg(test)]
mod tests {
    use super::exact;

    #[test]
    fn texts_are_exact_decimals() {
        assert_eq!(exact("12.345", 10, 2), Some(1235));
        assert_eq!(exact("-12.345", 10, 2), Some(-1235));
        assert_eq!(exact("1e3", 10, 2), Some(100_000));
        assert_eq!(exact(".5", 10, 0), Some(1));
        assert_eq!(exact("5.", 10, 0), Some(5));
        assert_eq!(exact("1e-100", 10, 2), Some(0));
        assert_eq!(exact("1e100", 38, 2), None);
        assert_eq!(exact("12345", 4, 2), None);
        for wrong in ["", "x", ".", "1.2.3", "NaN", "1e", "--1"] {
            assert_eq!(exact(wrong, 10, 2), None, "{wrong}");
        }
    }
}
