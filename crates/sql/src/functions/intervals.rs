//! Intervals and their arithmetic. An interval has months, or days and clock time; days are 24 hours of the latter and are calendar days
//! when they are added to a moment, as in Spark.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, IntervalMonthDayNanoArray};
use datafusion::arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, DurationMicrosecondType, Float64Type, Int32Type, Int64Type,
    IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, IntervalYearMonthType, TimeUnit,
    TimestampMicrosecondType,
};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr::ScalarFunction;

use super::cast::time::{self, DAY, SECOND};
use super::cast::{cast_array, show};
use super::dates::{moved, overflow};
use super::function::{Arg, Args, Call, Function, Spec, returns};
use super::rows;
use super::types::{self, is_string, mismatch, sql_name};
use crate::error::failed;

const INTERVAL: DataType = DataType::Interval(IntervalUnit::MonthDayNano);
const MONTHS: DataType = DataType::Interval(IntervalUnit::YearMonth);

/// What intervals are compared by; a month counts as 30 days beside days.
static ORDER: Spec = Spec::new("interval_order", Args::Fixed(1, &[Arg::Any]), returns::long, |call| {
    let of = call.array(0)?;
    let intervals = Intervals::of(&of)?;
    let order = rows::numbers::<Int64Type>(&[&of], |row| {
        let (months, micros) = intervals.at(row);
        Ok(Some(months * 30 * DAY + micros))
    });
    Ok(Arc::new(order?))
});

/// An interval as a number that stands in the same order.
pub(crate) fn order(expr: Expr) -> Expr {
    let function = Function::udf(&ORDER, &Arc::from("UTC"));
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(function), vec![expr]))
}

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec::new("time_add", Args::Custom(shift_args), shift_type, |call| shift(call, 1)),
    &Spec::new("time_subtract", Args::Custom(shift_args), shift_type, |call| shift(call, -1)),
    &Spec::new("time_between", Args::Fixed(2, &[Arg::Any, Arg::Any]), |_, _, _| Ok(INTERVAL), between),
    &Spec::new("interval_add", Args::Custom(both_args), |_, _, _| Ok(INTERVAL), |call| combined(call, 1)),
    &Spec::new("interval_subtract", Args::Custom(both_args), |_, _, _| Ok(INTERVAL), |call| combined(call, -1)),
    &Spec::new("interval_multiply", Args::Custom(scale_args), |_, _, _| Ok(INTERVAL), |call| scaled(call, false)),
    &Spec::new("interval_divide", Args::Custom(scale_args), |_, _, _| Ok(INTERVAL), |call| scaled(call, true)),
    &ORDER,
    &Spec::new(
        "make_interval",
        Args::Custom(|types, _| parts_args(types, 7)),
        |_, _, _| Ok(INTERVAL),
        |call| {
            let units = [(12, 0), (1, 0), (0, 7 * DAY), (0, DAY), (0, 3_600 * SECOND), (0, 60 * SECOND)];
            made(call, &units)
        },
    )
    .or(&["try_make_interval"]),
    &Spec::new(
        "make_dt_interval",
        Args::Custom(|types, _| parts_args(types, 4)),
        |_, _, _| Ok(INTERVAL),
        |call| made(call, &[(0, DAY), (0, 3_600 * SECOND), (0, 60 * SECOND)]),
    ),
    &Spec::new(
        "make_ym_interval",
        Args::Fixed(0, &[Arg::Int, Arg::Int]),
        |_, _, _| Ok(MONTHS),
        |call| {
            let columns = (0..call.len()).map(|at| call.numbers::<Int32Type>(at)).collect::<Result<Vec<_>>>()?;
            let months: datafusion::arrow::array::PrimitiveArray<IntervalYearMonthType> = (0..call.rows)
                .map(|row| {
                    if columns.iter().any(|column| column.is_null(row)) {
                        return Ok(None);
                    }
                    let part = |at: usize| columns.get(at).map_or(0, |column| column.value(row));
                    part(0)
                        .checked_mul(12)
                        .and_then(|months| months.checked_add(part(1)))
                        .map(Some)
                        .ok_or_else(too_long)
                })
                .collect::<Result<_>>()?;
            Ok(Arc::new(months))
        },
    ),
];

fn too_long() -> datafusion::common::DataFusionError {
    failed("INTERVAL_ARITHMETIC_OVERFLOW.WITHOUT_SUGGESTION", "an interval is out of range")
}

/// The intervals of a column as months and microseconds.
pub(super) struct Intervals(IntervalMonthDayNanoArray);

impl Intervals {
    pub(super) fn of(array: &ArrayRef) -> Result<Self> {
        let wide = match array.data_type() {
            DataType::Interval(IntervalUnit::YearMonth) => {
                let months = array.as_primitive::<IntervalYearMonthType>();
                months.iter().map(|months| months.map(|months| IntervalMonthDayNano::new(months, 0, 0))).collect()
            }
            DataType::Duration(TimeUnit::Microsecond) => {
                let micros = array.as_primitive::<DurationMicrosecondType>();
                micros.iter().map(|micros| micros.and_then(|micros| from_parts(0, micros).ok())).collect()
            }
            DataType::Interval(IntervalUnit::MonthDayNano) => array.as_primitive::<IntervalMonthDayNanoType>().clone(),
            other => match datafusion::arrow::compute::cast(array, &INTERVAL) {
                Ok(cast) => cast.as_primitive::<IntervalMonthDayNanoType>().clone(),
                Err(_) => return exec_err!("{other} is no interval"),
            },
        };
        Ok(Self(wide))
    }

    pub(super) fn at(&self, row: usize) -> (i64, i64) {
        let value = self.0.value(row);
        (i64::from(value.months), i64::from(value.days) * DAY + value.nanoseconds / 1_000)
    }
}

/// An interval: whole days apart, so that they are those of the calendar.
fn from_parts(months: i64, micros: i64) -> Result<IntervalMonthDayNano> {
    let (days, rest) = (micros / DAY, micros % DAY);
    match (i32::try_from(months), i32::try_from(days)) {
        (Ok(months), Ok(days)) => Ok(IntervalMonthDayNano::new(months, days, rest * 1_000)),
        _ => Err(too_long()),
    }
}

/// An interval as Spark shows it.
pub(super) fn show(value: IntervalMonthDayNano, out: &mut String) {
    let micros = i64::from(value.days) * DAY + value.nanoseconds / 1_000;
    let clock = |micros: u64| {
        let fraction = micros % 1_000_000;
        let seconds = micros / 1_000_000;
        let mut text = format!("{:02}:{:02}:{:02}", seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
        if fraction > 0 {
            text.push('.');
            text.push_str(format!("{fraction:06}").trim_end_matches('0'));
        }
        text
    };
    if value.months != 0 && micros == 0 {
        let sign = if value.months < 0 { "-" } else { "" };
        let months = value.months.unsigned_abs();
        out.push_str(&format!("INTERVAL '{sign}{}-{}' YEAR TO MONTH", months / 12, months % 12));
    } else if value.months == 0 {
        let sign = if micros < 0 { "-" } else { "" };
        let magnitude = micros.unsigned_abs();
        let days = magnitude / DAY.unsigned_abs();
        out.push_str(&format!("INTERVAL '{sign}{days} {}' DAY TO SECOND", clock(magnitude)));
    } else {
        let seconds = (micros % (60 * SECOND)) as f64 / SECOND as f64;
        let parts = [
            (i64::from(value.months / 12), "years"),
            (i64::from(value.months % 12), "months"),
            (i64::from(value.days), "days"),
            (value.nanoseconds / 3_600_000_000_000, "hours"),
            (value.nanoseconds / 60_000_000_000 % 60, "minutes"),
        ];
        let mut shown: Vec<String> =
            parts.iter().filter(|(count, _)| *count != 0).map(|(count, unit)| format!("{count} {unit}")).collect();
        if seconds != 0.0 {
            shown.push(format!("{seconds} seconds"));
        }
        out.push_str(&shown.join(" "));
    }
}

/// A time, and an interval.
fn shift_args(types: &[DataType], zone: &Arc<str>) -> Result<Vec<DataType>> {
    let [of, by] = types else { return exec_err!("a time and an interval are needed") };
    let of = match of {
        of if is_string(of) => of.clone(),
        DataType::Date32 | DataType::Timestamp(..) => of.clone(),
        DataType::Null => types::timestamp(zone),
        other => {
            return Err(mismatch(
                "BINARY_OP_DIFF_TYPES",
                format!("an interval is added to a DATE or a TIMESTAMP, not to {}", sql_name(other)),
            ));
        }
    };
    Ok(vec![of, by.clone()])
}

/// A date stays one where only whole days or months are added.
fn shift_type(types: &[DataType], constants: &[Option<&ScalarValue>], zone: &Arc<str>) -> Result<DataType> {
    let whole_days = match constants.get(1).copied().flatten() {
        Some(ScalarValue::IntervalMonthDayNano(Some(value))) => value.nanoseconds == 0,
        _ => types[1] == MONTHS,
    };
    Ok(match &types[0] {
        DataType::Date32 if whole_days => DataType::Date32,
        DataType::Date32 => types::timestamp(zone),
        other => other.clone(),
    })
}

fn shift(call: &Call<'_>, sign: i64) -> Result<ArrayRef> {
    let (of, by) = (call.array(0)?, call.array(1)?);
    let intervals = Intervals::of(&by)?;
    if *call.returns == DataType::Date32 {
        let dates = of.as_primitive::<Date32Type>();
        let found = rows::numbers::<Date32Type>(&[dates, &by], |row| {
            let (months, micros) = intervals.at(row);
            let midnight = i64::from(dates.value(row)) * DAY;
            Ok(Some((moved(midnight, sign * months, sign * micros, None)?.div_euclid(DAY)) as i32))
        });
        return Ok(Arc::new(found?));
    }
    let moments = match of.data_type() {
        DataType::Timestamp(..) => of.clone(),
        _ => cast_array(&of, &types::timestamp(call.zone), false)?,
    };
    let zone = time::zone_of(moments.data_type())?;
    let micros_of = moments.as_primitive::<TimestampMicrosecondType>();
    let found = rows::numbers::<TimestampMicrosecondType>(&[micros_of, &by], |row| {
        let (months, micros) = intervals.at(row);
        moved(micros_of.value(row), sign * months, sign * micros, zone).map(Some)
    })?;
    let found: ArrayRef = Arc::new(found.with_data_type(moments.data_type().clone()));
    match call.returns {
        DataType::Utf8 => Ok(Arc::new(show::text(&found)?)),
        returns => cast_array(&found, returns, false),
    }
}

/// What clocks show at the first time less what they show at the second one.
fn between(call: &Call<'_>) -> Result<ArrayRef> {
    let local = DataType::Timestamp(TimeUnit::Microsecond, None);
    let clocks = |index: usize| -> Result<ArrayRef> {
        let of = call.array(index)?;
        match of.data_type() {
            DataType::Timestamp(_, None) => Ok(of),
            DataType::Timestamp(_, Some(_)) | DataType::Date32 => cast_array(&of, &local, false),
            _ => cast_array(&cast_array(&of, &types::timestamp(call.zone), false)?, &local, false),
        }
    };
    let (left, right) = (clocks(0)?, clocks(1)?);
    let (left, right) =
        (left.as_primitive::<TimestampMicrosecondType>(), right.as_primitive::<TimestampMicrosecondType>());
    let found = rows::numbers::<IntervalMonthDayNanoType>(&[left, right], |row| {
        from_parts(0, left.value(row).checked_sub(right.value(row)).ok_or_else(overflow)?).map(Some)
    });
    Ok(Arc::new(found?))
}

fn both_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    Ok(types.to_vec())
}

fn combined(call: &Call<'_>, sign: i64) -> Result<ArrayRef> {
    let (left, right) = (call.array(0)?, call.array(1)?);
    let (l, r) = (Intervals::of(&left)?, Intervals::of(&right)?);
    let found = rows::numbers::<IntervalMonthDayNanoType>(&[&left, &right], |row| {
        let ((lm, lu), (rm, ru)) = (l.at(row), r.at(row));
        from_parts(lm + sign * rm, lu.checked_add(sign * ru).ok_or_else(too_long)?).map(Some)
    });
    Ok(Arc::new(found?))
}

/// An interval, and a number.
fn scale_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    Ok(vec![types[0].clone(), DataType::Float64])
}

fn scaled(call: &Call<'_>, divide: bool) -> Result<ArrayRef> {
    let (of, by) = (call.array(0)?, call.numbers::<Float64Type>(1)?);
    let intervals = Intervals::of(&of)?;
    let found = rows::numbers::<IntervalMonthDayNanoType>(&[&of, &by], |row| {
        let (months, micros) = intervals.at(row);
        let by = by.value(row);
        if divide && by == 0.0 {
            return Err(failed("INTERVAL_DIVIDED_BY_ZERO", "an interval is divided by zero: use try_divide()"));
        }
        let scale = |value: i64| -> Result<i64> {
            let scaled = if divide { value as f64 / by } else { value as f64 * by };
            // The middle goes away from zero.
            let rounded = scaled.round();
            if rounded.abs() < 9.2e18 { Ok(rounded as i64) } else { Err(too_long()) }
        };
        from_parts(scale(months)?, scale(micros)?).map(Some)
    });
    Ok(Arc::new(found?))
}

/// Whole numbers, and seconds with a fraction at the end.
fn parts_args(types: &[DataType], most: usize) -> Result<Vec<DataType>> {
    if types.len() > most {
        return Err(crate::error::refused_analysis(
            "WRONG_NUM_ARGS.WITHOUT_SUGGESTION",
            format!("an interval is made of at most {most} numbers"),
        ));
    }
    let seconds = DataType::Decimal128(18, 6);
    Ok((0..types.len()).map(|at| if at + 1 == most { seconds.clone() } else { DataType::Int32 }).collect())
}

fn made(call: &Call<'_>, units: &[(i64, i64)]) -> Result<ArrayRef> {
    let columns = call.arrays()?;
    let found: IntervalMonthDayNanoArray = (0..call.rows)
        .map(|row| {
            if columns.iter().any(|column| column.is_null(row)) {
                return Ok(None);
            }
            let (mut months, mut days, mut micros) = (0i64, 0i64, 0i64);
            for (at, column) in columns.iter().enumerate() {
                match units.get(at) {
                    Some((0, unit)) => {
                        let count = i64::from(column.as_primitive::<Int32Type>().value(row));
                        let part = count.checked_mul(*unit).ok_or_else(too_long)?;
                        days += part / DAY * i64::from(*unit >= DAY);
                        micros += if *unit >= DAY { 0 } else { part };
                    }
                    Some((unit, _)) => {
                        months += i64::from(column.as_primitive::<Int32Type>().value(row)) * unit;
                    }
                    None => {
                        let seconds = column.as_primitive::<Decimal128Type>().value(row);
                        micros += i64::try_from(seconds).map_err(|_| too_long())?;
                    }
                }
            }
            match (i32::try_from(months), i32::try_from(days), micros.checked_mul(1_000)) {
                (Ok(months), Ok(days), Some(nanos)) => Ok(Some(IntervalMonthDayNano::new(months, days, nanos))),
                _ => Err(too_long()),
            }
        })
        .collect::<Result<_>>()?;
    Ok(Arc::new(found))
}
