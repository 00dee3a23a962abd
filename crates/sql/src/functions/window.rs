//! `window` and `window_time`, and the function that makes a window out of its start.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, StructArray, TimestampMicrosecondArray};
use datafusion::arrow::datatypes::{DataType, Field, Fields, IntervalMonthDayNano, TimeUnit};
use datafusion::common::cast::{as_struct_array, as_timestamp_microsecond_array};
use datafusion::common::{DataFusionError, Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility, lit,
};

use super::types::{mismatch, sql_name};
use crate::error::refused;

/// Name of the function that a person writes.
pub(crate) const WINDOW: &str = "window";
/// Name of [`WindowTime`].
pub(crate) const WINDOW_TIME: &str = "window_time";
/// Name of [`WindowOf`].
pub(crate) const WINDOW_OF: &str = "window_of";

/// The type of a window: `struct<start: timestamp, end: timestamp>`.
pub(crate) fn window_type(time: &DataType) -> DataType {
    let field = |name| Field::new(name, time.clone(), true);
    DataType::Struct(Fields::from(vec![field("start"), field("end")]))
}

/// The type of the time inside a timestamp or a window.
pub(crate) fn time_type(of: &DataType) -> Result<DataType> {
    match of {
        DataType::Timestamp(TimeUnit::Microsecond, _) => Ok(of.clone()),
        DataType::Timestamp(_, zone) => Ok(DataType::Timestamp(TimeUnit::Microsecond, zone.clone())),
        DataType::Struct(fields) => match fields.find("end") {
            Some((_, field)) => time_type(field.data_type()),
            None => plan_err!("type mismatch: window() needs a TIMESTAMP or a window, not {of}"),
        },
        _ => plan_err!("type mismatch: window() needs a TIMESTAMP or a window, not {of}"),
    }
}

/// The type of the time that the argument of a window function is taken as: text and dates are cast to TIMESTAMP.
pub(crate) fn time_of_argument(argument: &DataType, zone: &Arc<str>) -> Result<DataType> {
    match argument {
        DataType::Utf8 | DataType::Date32 => Ok(DataType::Timestamp(TimeUnit::Microsecond, Some(zone.clone()))),
        other => time_type(other),
    }
}

/// `window(time, size [, slide [, start]])`. It stands for an operator: the planner replaces it before anything is run.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Window {
    signature: Signature,
    zone: Arc<str>,
}

impl Window {
    pub(crate) fn udf(zone: &Arc<str>) -> ScalarUDF {
        let arguments = vec![TypeSignature::Any(2), TypeSignature::Any(3), TypeSignature::Any(4)];
        let signature = Signature::one_of(arguments, Volatility::Immutable);
        ScalarUDF::from(Self { signature, zone: zone.clone() })
    }
}

impl ScalarUDFImpl for Window {
    fn name(&self) -> &str {
        WINDOW
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(window_type(&time_of_argument(&arg_types[0], &self.zone)?))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(refused(
            "UNSUPPORTED_EXPR_FOR_OPERATOR",
            "window() is only supported in SELECT, WHERE and GROUP BY: compute it in a subquery and use its columns",
        ))
    }
}

/// `window_time(window)`: the last moment of a window, its end less one microsecond.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct WindowTime {
    signature: Signature,
}

impl WindowTime {
    pub(crate) fn udf() -> ScalarUDF {
        ScalarUDF::from(Self { signature: Signature::any(1, Volatility::Immutable) })
    }
}

impl ScalarUDFImpl for WindowTime {
    fn name(&self) -> &str {
        WINDOW_TIME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match &arg_types[0] {
            window @ DataType::Struct(_) => time_type(window),
            other => {
                Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("window_time() needs a window, not {}", sql_name(other))))
            }
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let windows = args.args[0].to_array(args.number_rows)?;
        let windows = as_struct_array(&windows)?;
        let Some(end) = windows.column_by_name("end") else {
            return exec_err!("window_time() needs a window, not {}", windows.data_type());
        };
        let end = as_timestamp_microsecond_array(end)?;
        let times = TimestampMicrosecondArray::from_iter(
            (0..windows.len()).map(|row| (windows.is_valid(row) && end.is_valid(row)).then(|| end.value(row) - 1)),
        );
        Ok(ColumnarValue::Array(Arc::new(times.with_data_type(args.return_field.data_type().clone()))))
    }
}

/// `window_of(start, size)`: the window that begins at `start` and is `size` microseconds long.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct WindowOf {
    signature: Signature,
}

impl WindowOf {
    fn udf() -> ScalarUDF {
        ScalarUDF::from(Self { signature: Signature::any(2, Volatility::Immutable) })
    }

    /// The call.
    pub(crate) fn call(start: Expr, size: i64) -> Expr {
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(Self::udf()), vec![start, lit(size)]))
    }
}

impl ScalarUDFImpl for WindowOf {
    fn name(&self) -> &str {
        WINDOW_OF
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(window_type(&time_type(&arg_types[0])?))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let ColumnarValue::Scalar(ScalarValue::Int64(Some(size))) = args.args[1] else {
            return exec_err!("window_of() needs a constant size");
        };
        let start = args.args[0].to_array(args.number_rows)?;
        let end: TimestampMicrosecondArray =
            as_timestamp_microsecond_array(&start)?.unary(|start| start.saturating_add(size));
        let end: ArrayRef = Arc::new(end.with_data_type(start.data_type().clone()));
        let DataType::Struct(fields) = args.return_field.data_type() else {
            return exec_err!("window_of() gives a window");
        };
        // A window that is not there (a total row of ROLLUP) is NULL, not a window of NULLs.
        let nulls = start.nulls().cloned();
        Ok(ColumnarValue::Array(Arc::new(StructArray::try_new(fields.clone(), vec![start, end], nulls)?)))
    }
}

/// Size, slide and start of a window, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WindowSpec {
    pub(crate) size: i64,
    pub(crate) slide: i64,
    pub(crate) start: i64,
}

impl WindowSpec {
    /// Reads the arguments of `window()` behind the time, and checks them as Spark does.
    pub(crate) fn from_arguments(args: &[Expr]) -> Result<Self> {
        let size = duration(&args[0])?;
        let slide = args.get(1).map(duration).transpose()?.unwrap_or(size);
        let start = args.get(2).map(duration).transpose()?.unwrap_or(0);
        let violated = |message: String| {
            Err(refused("DATATYPE_MISMATCH.PARAMETER_CONSTRAINT_VIOLATION", format!("window(): {message}")))
        };
        for (what, micros) in [("size", size), ("slide", slide)] {
            if micros <= 0 {
                return Err(refused(
                    "DATATYPE_MISMATCH.VALUE_OUT_OF_RANGE",
                    format!("window(): the {what} must be longer than 0, not {micros} microseconds"),
                ));
            }
        }
        if slide > size {
            return violated(format!("the slide ({slide} microseconds) must not be longer than the size ({size})"));
        }
        if start.saturating_abs() >= slide {
            return violated(format!("the start ({start} microseconds) must be shorter than the slide ({slide})"));
        }
        Ok(Self { size, slide, start })
    }

    /// How many windows a moment can be in.
    pub(crate) fn windows_per_row(&self) -> i64 {
        (self.size + self.slide - 1) / self.slide
    }

    /// The start of the last window that begins at or before `time`.
    #[inline]
    pub(crate) fn last_start(&self, time: i64) -> i64 {
        // The start and the slide are far from the limits of i64; a time near them stays where it is.
        time.saturating_sub((time.wrapping_sub(self.start)).rem_euclid(self.slide))
    }
}

/// A constant duration in microseconds: an interval as text (`10 minutes`), or a number of microseconds.
fn duration(expr: &Expr) -> Result<i64> {
    match expr {
        Expr::Literal(ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)), _) => parse_interval(text),
        Expr::Literal(ScalarValue::Int64(Some(micros)), _) => Ok(*micros),
        Expr::Literal(ScalarValue::Int32(Some(micros)), _) => Ok(i64::from(*micros)),
        Expr::Negative(inner) => Ok(-duration(inner)?),
        other => Err(refused(
            "_LEGACY_ERROR_TEMP_1207",
            format!(
                "size, slide and start of window() must be text such as '10 minutes' or a number of microseconds, not {other}"
            ),
        )),
    }
}

/// Spark's interval text in microseconds, without months and years.
pub(crate) fn parse_interval(text: &str) -> Result<i64, DataFusionError> {
    let cannot_parse =
        || refused("CANNOT_PARSE_INTERVAL", format!("`{text}` is not an interval: write for example '10 minutes'"));
    let interval = calendar_interval(text)?.ok_or_else(cannot_parse)?;
    if interval.months != 0 {
        return Err(refused(
            "_LEGACY_ERROR_TEMP_3231",
            format!("intervals of months or years are not supported (`{text}`): their lengths differ"),
        ));
    }
    Ok(i64::from(interval.days) * 86_400_000_000 + interval.nanoseconds / 1_000)
}

/// Reads Spark's interval text: `[interval] [-]1 hour [[-]30.5 seconds …]`. `None` where it is none.
///
/// # Errors
/// Where the interval is longer than the type can hold.
pub(crate) fn calendar_interval(text: &str) -> Result<Option<IntervalMonthDayNano>, DataFusionError> {
    let lower = text.trim().to_lowercase();
    let rest = match lower.strip_prefix("interval") {
        Some(rest) if rest.starts_with(char::is_whitespace) => rest,
        _ => &lower,
    };
    let mut words = rest.split_whitespace().peekable();
    if words.peek().is_none() {
        return Ok(None);
    }
    let too_long = || refused("INTERVAL_ARITHMETIC_OVERFLOW", format!("`{text}` is too long for an interval"));
    let (mut months, mut days, mut nanos): (i64, i64, i64) = (0, 0, 0);
    while let Some(word) = words.next() {
        // The sign may stand apart.
        let (sign, digits) = match word.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, word.strip_prefix('+').unwrap_or(word)),
        };
        let digits = if digits.is_empty() { words.next() } else { Some(digits) };
        let (Some(digits), Some(unit)) = (digits, words.next()) else { return Ok(None) };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(whole) || !is_number(fraction) || digits.len() == usize::from(digits.contains('.')) {
            return Ok(None);
        }
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_long())? };
        let (sum, factor) = match unit {
            "year" | "years" => (&mut months, 12),
            "month" | "months" => (&mut months, 1),
            "week" | "weeks" => (&mut days, 7),
            "day" | "days" => (&mut days, 1),
            "hour" | "hours" => (&mut nanos, 3_600_000_000_000),
            "minute" | "minutes" => (&mut nanos, 60_000_000_000),
            "second" | "seconds" => (&mut nanos, 1_000_000_000),
            "millisecond" | "milliseconds" => (&mut nanos, 1_000_000),
            "microsecond" | "microseconds" => (&mut nanos, 1_000),
            _ => return Ok(None),
        };
        let mut part = whole.checked_mul(factor).ok_or_else(too_long)?;
        if digits.contains('.') {
            // Only seconds can have a fraction, of which microseconds are kept.
            if factor != 1_000_000_000 || fraction.len() > 9 {
                return Ok(None);
            }
            let nanos: i64 = format!("{fraction:0<9}").parse().map_err(|_| too_long())?;
            part += nanos / 1_000 * 1_000;
        }
        *sum = sum.checked_add(sign * part).ok_or_else(too_long)?;
    }
    let small = |count: i64| i32::try_from(count).map_err(|_| too_long());
    Ok(Some(IntervalMonthDayNano::new(small(months)?, small(days)?, nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_as_spark_does() {
        for (text, micros) in [
            ("5 minutes", 300_000_000),
            ("1 hour 30 minutes", 5_400_000_000),
            ("interval 2 days", 172_800_000_000),
            ("1.5 seconds", 1_500_000),
            ("-15 minutes", -900_000_000),
            ("1 MILLISECOND", 1_000),
            ("7 microseconds", 7),
            ("- 1 day +2 hours", -79_200_000_000),
            (".5 second", 500_000),
            ("1 week", 604_800_000_000),
        ] {
            assert_eq!(parse_interval(text).unwrap(), micros, "{text}");
        }
        for wrong in [
            "",
            "5",
            "minutes",
            "5 parsecs",
            "1 month",
            "x minutes",
            "1.5 hours",
            "5minutes",
            ". seconds",
            "interval5 days",
        ] {
            assert!(parse_interval(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn windows_floor_towards_minus_infinity() {
        let spec = WindowSpec { size: 10, slide: 10, start: 0 };
        assert_eq!(spec.last_start(0), 0);
        assert_eq!(spec.last_start(9), 0);
        assert_eq!(spec.last_start(-1), -10);
        assert_eq!(spec.last_start(-10), -10);
        let shifted = WindowSpec { size: 10, slide: 10, start: 3 };
        assert_eq!(shifted.last_start(2), -7);
        assert_eq!(shifted.last_start(3), 3);
        let shifted = WindowSpec { size: 10, slide: 10, start: -3 };
        assert_eq!(shifted.last_start(6), -3);
        assert_eq!(shifted.last_start(7), 7);
        assert_eq!(WindowSpec { size: 7, slide: 3, start: 0 }.windows_per_row(), 3);
    }
}
