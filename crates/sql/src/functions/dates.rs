//! Functions of dates and moments. Clocks and calendars are those of the session's time zone.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{Datelike, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Timelike};
use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int32Array, Int64Array, PrimitiveArray, StringArray,
    TimestampMicrosecondArray, new_null_array,
};
use datafusion::arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Float64Type, Int32Type, Int64Type, TimeUnit,
    TimestampMicrosecondType,
};
use datafusion::common::{DataFusionError, Result, ScalarValue, exec_err};

use super::cast::cast_array;
use super::cast::read::parse_zone;
use super::cast::time::{self, DAY, SECOND};
use super::function::{Arg, Args, Call, Spec, returns};
use super::patterns::{DAYS, MONTHS, Pattern, Zone};
use super::rows;
use super::types::{self, is_float, is_integral, is_number, is_string, mismatch, sql_name};
use crate::error::{failed, refused_analysis};

const DATE: Args = Args::Fixed(1, &[Arg::Date]);

const MOMENT: Args = Args::Fixed(1, &[Arg::Moment]);
const TIME: Args = Args::Fixed(1, &[Arg::Timestamp]);

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &Spec::new("date_add", Args::Custom(days_args), returns::date, |call| shifted(call, 1)).or(&["dateadd"]),
    &Spec::new("date_sub", Args::Custom(days_args), returns::date, |call| shifted(call, -1)),
    &Spec::new("add_months", Args::Fixed(2, &[Arg::Date, Arg::Int]), returns::date, |call| {
        let (date, months) = (call.numbers::<Date32Type>(0)?, call.numbers::<Int32Type>(1)?);
        let found = rows::numbers::<Date32Type>(&[&date, &months], |row| {
            let moved = time::day(date.value(row)).and_then(|day| time::add_months(day, months.value(row)));
            moved.map(time::days_of).map(Some).ok_or_else(overflow)
        });
        Ok(Arc::new(found?))
    }),
    &Spec::new("datediff", Args::Fixed(2, &[Arg::Date, Arg::Date]), returns::int, |call| {
        let (end, start) = (call.numbers::<Date32Type>(0)?, call.numbers::<Date32Type>(1)?);
        let days = rows::numbers::<Int32Type>(&[&end, &start], |row| {
            end.value(row).checked_sub(start.value(row)).map(Some).ok_or_else(overflow)
        });
        Ok(Arc::new(days?))
    })
    .or(&["date_diff"]),
    &Spec::new(
        "months_between",
        Args::Fixed(2, &[Arg::Moment, Arg::Moment, Arg::Bool]),
        returns::double,
        months_between,
    ),
    &Spec::new(
        "timestampdiff",
        Args::Fixed(3, &[Arg::Text, Arg::Timestamp, Arg::Timestamp]),
        returns::long,
        timestampdiff,
    ),
    &Spec::new("timestampadd", Args::Custom(timestampadd_args), |types, _, _| Ok(types[2].clone()), timestampadd),
    &Spec::new("date_trunc", Args::Fixed(2, &[Arg::Text, Arg::Moment]), returns::timestamp, date_trunc),
    &Spec::new("trunc", Args::Fixed(2, &[Arg::Date, Arg::Text]), returns::date, |call| {
        let (date, unit) = (call.numbers::<Date32Type>(0)?, call.text(1)?);
        let found = rows::numbers::<Date32Type>(&[&date, &unit], |row| {
            let Some(unit) = Unit::of(unit.value(row)).filter(|unit| *unit <= Unit::Week) else { return Ok(None) };
            Ok(time::day(date.value(row)).map(|day| time::days_of(unit.start_of(day.and_time(NaiveTime::MIN)).date())))
        });
        Ok(Arc::new(found?))
    }),
    &Spec::new("year", DATE, returns::int, |call| of_days(call, |day| day.year())),
    &Spec::new("quarter", DATE, returns::int, |call| of_days(call, |day| day.month0() as i32 / 3 + 1)),
    &Spec::new("month", DATE, returns::int, |call| of_days(call, |day| day.month() as i32)),
    &Spec::new("weekofyear", DATE, returns::int, |call| of_days(call, |day| day.iso_week().week() as i32)),
    &Spec::new("day", DATE, returns::int, |call| of_days(call, |day| day.day() as i32)).or(&["dayofmonth"]),
    &Spec::new("dayofweek", DATE, returns::int, |call| {
        of_days(call, |day| day.weekday().num_days_from_sunday() as i32 + 1)
    }),
    &Spec::new("dayofyear", DATE, returns::int, |call| of_days(call, |day| day.ordinal() as i32)),
    &Spec::new("weekday", DATE, returns::int, |call| of_days(call, |day| day.weekday().num_days_from_monday() as i32)),
    &Spec::new("hour", TIME, returns::int, |call| of_clocks(call, |time| time.hour() as i32)),
    &Spec::new("minute", TIME, returns::int, |call| of_clocks(call, |time| time.minute() as i32)),
    &Spec::new("second", TIME, returns::int, |call| of_clocks(call, |time| time.second() as i32)),
    &Spec::new("date_part", Args::Custom(part_args), part_type, date_part).or(&["datepart"]),
    &Spec::new("date_format", Args::Fixed(2, &[Arg::Moment, Arg::Text]), returns::text, |call| {
        formatted(&call.array(0)?, &call.text(1)?)
    }),
    &Spec::new("to_date", Args::Custom(read_args), returns::date, |call| to_date(call, false)),
    &Spec::new("try_to_date", Args::Custom(read_args), returns::date, |call| to_date(call, true)),
    &Spec::new("to_timestamp", Args::Custom(read_args), returns::timestamp, |call| to_timestamp(call, false))
        .or(&["to_timestamp_ltz"]),
    &Spec::new("try_to_timestamp", Args::Custom(read_args), returns::timestamp, |call| to_timestamp(call, true)),
    &Spec::new("to_timestamp_ntz", Args::Custom(read_args), local_time, |call| to_timestamp(call, false)),
    &Spec::new("unix_timestamp", Args::Custom(read_args), returns::long, unix_timestamp).or(&["to_unix_timestamp"]),
    &Spec::new("from_unixtime", Args::Fixed(1, &[Arg::Long, Arg::Text]), returns::text, |call| {
        let seconds = call.numbers::<Int64Type>(0)?;
        let micros: TimestampMicrosecondArray =
            seconds.iter().map(|seconds| seconds.and_then(|seconds| seconds.checked_mul(SECOND))).collect();
        let micros: ArrayRef = Arc::new(micros.with_data_type(types::timestamp(call.zone)));
        formatted(&micros, &call.text_or(1, "yyyy-MM-dd HH:mm:ss")?)
    }),
    &Spec::new("make_date", Args::Fixed(3, &[Arg::Int, Arg::Int, Arg::Int]), returns::date, |call| {
        let [year, month, day] = [call.numbers::<Int32Type>(0)?, call.numbers(1)?, call.numbers(2)?];
        let found = rows::numbers::<Date32Type>(&[&year, &month, &day], |row| {
            Ok(Some(time::days_of(date_of(year.value(row), month.value(row), day.value(row))?)))
        });
        Ok(Arc::new(found?))
    }),
    &Spec::new("make_timestamp", Args::Custom(make_timestamp_args), returns::timestamp, |call| {
        make_timestamp(call, false)
    })
    .or(&["make_timestamp_ltz"]),
    &Spec::new("make_timestamp_ntz", Args::Custom(make_timestamp_args), local_time, |call| make_timestamp(call, false)),
    &Spec::new("try_make_timestamp", Args::Custom(make_timestamp_args), returns::timestamp, |call| {
        make_timestamp(call, true)
    })
    .or(&["try_make_timestamp_ltz"]),
    &Spec::new("try_make_timestamp_ntz", Args::Custom(make_timestamp_args), local_time, |call| {
        make_timestamp(call, true)
    }),
    &Spec::new("last_day", DATE, returns::date, |call| {
        let date = call.numbers::<Date32Type>(0)?;
        let found = rows::numbers::<Date32Type>(&[&date], |row| {
            Ok(time::day(date.value(row)).and_then(time::last_day).map(time::days_of))
        });
        Ok(Arc::new(found?))
    }),
    &Spec::new("next_day", Args::Fixed(2, &[Arg::Date, Arg::Text]), returns::date, next_day),
    &Spec::new("timestamp_seconds", Args::Fixed(1, &[Arg::Number]), returns::timestamp, timestamp_seconds),
    &Spec::new("timestamp_millis", Args::Custom(whole_args), returns::timestamp, |call| moments(call, 1_000)),
    &Spec::new("timestamp_micros", Args::Custom(whole_args), returns::timestamp, |call| moments(call, 1)),
    &Spec::new("unix_seconds", MOMENT, returns::long, |call| units(call, SECOND)),
    &Spec::new("unix_millis", MOMENT, returns::long, |call| units(call, 1_000)),
    &Spec::new("unix_micros", MOMENT, returns::long, |call| units(call, 1)),
    &Spec::new("unix_date", DATE, returns::int, |call| {
        Ok(Arc::new(call.numbers::<Date32Type>(0)?.reinterpret_cast::<Int32Type>()))
    }),
    &Spec::new("date_from_unix_date", Args::Fixed(1, &[Arg::Int]), returns::date, |call| {
        Ok(Arc::new(call.numbers::<Int32Type>(0)?.reinterpret_cast::<Date32Type>()))
    }),
    &Spec::new("from_utc_timestamp", Args::Fixed(2, &[Arg::Moment, Arg::Text]), returns::timestamp, |call| {
        between_zones(call, |micros, utc, zone| Some(time::moment(time::local(micros, Some(zone))?, Some(utc))))
    }),
    &Spec::new("to_utc_timestamp", Args::Fixed(2, &[Arg::Moment, Arg::Text]), returns::timestamp, |call| {
        between_zones(call, |micros, utc, zone| Some(time::moment(time::local(micros, Some(utc))?, Some(zone))))
    }),
    &Spec::new("convert_timezone", Args::Custom(convert_args), local_time, convert_timezone),
    &Spec::new("dayname", DATE, returns::text, |call| {
        let date = call.numbers::<Date32Type>(0)?;
        rows::texts(&[&date], |row| {
            Ok(time::day(date.value(row)).map(|day| &DAYS[day.weekday().num_days_from_monday() as usize][..3]))
        })
    }),
    &Spec::new("monthname", DATE, returns::text, |call| {
        let date = call.numbers::<Date32Type>(0)?;
        rows::texts(&[&date], |row| Ok(time::day(date.value(row)).map(|day| &MONTHS[day.month0() as usize][..3])))
    }),
    &Spec::new("current_timezone", Args::Fixed(0, &[]), returns::text, |call| {
        Ok(Arc::new(StringArray::from(vec![call.zone.as_ref(); call.rows])))
    }),
];

/// TIMESTAMP_NTZ.
fn local_time(_: &[DataType], _: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    Ok(DataType::Timestamp(TimeUnit::Microsecond, None))
}

pub(super) fn overflow() -> DataFusionError {
    failed("DATETIME_OVERFLOW", "a date or a moment is out of range")
}

fn days_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    let [date, days] = types else {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "a date and a number of days are needed"));
    };
    let of_date = is_string(date) || matches!(date, DataType::Date32 | DataType::Timestamp(..) | DataType::Null);
    let of_days =
        is_string(days) || matches!(days, DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Null);
    // A first plan still has literals that are wider than Spark's.
    if !of_date || !(of_days || matches!(days, DataType::Int64)) {
        return Err(mismatch(
            "UNEXPECTED_INPUT_TYPE",
            format!("days are added to a DATE and are INT, not {} and {}", sql_name(date), sql_name(days)),
        ));
    }
    Ok(vec![DataType::Date32, DataType::Int32])
}

fn shifted(call: &Call<'_>, sign: i32) -> Result<ArrayRef> {
    let (date, days) = (call.numbers::<Date32Type>(0)?, call.numbers::<Int32Type>(1)?);
    let found = rows::numbers::<Date32Type>(&[&date, &days], |row| {
        let days = days.value(row).wrapping_mul(sign);
        Ok(Some(date.value(row).wrapping_add(days)))
    });
    Ok(Arc::new(found?))
}

fn of_days(call: &Call<'_>, part: impl Fn(NaiveDate) -> i32) -> Result<ArrayRef> {
    let date = call.numbers::<Date32Type>(0)?;
    let parts: Int32Array = date.iter().map(|days| days.and_then(time::day).map(&part)).collect();
    Ok(Arc::new(parts))
}

/// What clocks show, per row.
struct Locals {
    micros: TimestampMicrosecondArray,
    zone: Option<Tz>,
}

impl Locals {
    fn of(array: &ArrayRef) -> Result<Self> {
        let zone = time::zone_of(array.data_type())?;
        match array.as_primitive_opt::<TimestampMicrosecondType>() {
            Some(micros) => Ok(Self { micros: micros.clone(), zone }),
            None => exec_err!("{} is no TIMESTAMP", array.data_type()),
        }
    }

    fn at(&self, row: usize) -> Result<NaiveDateTime> {
        time::local(self.micros.value(row), self.zone).ok_or_else(overflow)
    }
}

fn of_clocks(call: &Call<'_>, part: impl Fn(NaiveDateTime) -> i32) -> Result<ArrayRef> {
    let locals = Locals::of(&call.array(0)?)?;
    let parts = rows::numbers::<Int32Type>(&[&locals.micros], |row| Ok(Some(part(locals.at(row)?))));
    Ok(Arc::new(parts?))
}

fn months_between(call: &Call<'_>) -> Result<ArrayRef> {
    let (first, second) = (Locals::of(&call.array(0)?)?, Locals::of(&call.array(1)?)?);
    let round = match call.len() {
        3 => call.array(2)?.as_boolean().clone(),
        _ => datafusion::arrow::array::BooleanArray::from(vec![true; call.rows]),
    };
    let months: Float64Array = rows::numbers::<Float64Type>(&[&first.micros, &second.micros, &round], |row| {
        let (first, second) = (first.at(row)?, second.at(row)?);
        let whole = f64::from((first.year() - second.year()) * 12 + first.month() as i32 - second.month() as i32);
        let is_last = |time: NaiveDateTime| time::last_day(time.date()) == Some(time.date());
        if first.day() == second.day() || is_last(first) && is_last(second) {
            return Ok(Some(whole));
        }
        let seconds =
            |time: NaiveDateTime| i64::from(time.day()) * 86_400 + i64::from(time.num_seconds_from_midnight());
        let months = whole + (seconds(first) - seconds(second)) as f64 / (31.0 * 86_400.0);
        Ok(Some(if round.value(row) { (months * 1e8 + 0.5).floor() / 1e8 } else { months }))
    })?;
    Ok(Arc::new(months))
}

/// Units of calendars and clocks, the longest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Unit {
    Year,
    Quarter,
    Month,
    Week,
    Day,
    Hour,
    Minute,
    Second,
    Millisecond,
    Microsecond,
}

impl Unit {
    fn of(name: &str) -> Option<Self> {
        Some(match name.to_ascii_uppercase().as_str() {
            "YEAR" | "YYYY" | "YY" => Self::Year,
            "QUARTER" => Self::Quarter,
            "MONTH" | "MM" | "MON" => Self::Month,
            "WEEK" => Self::Week,
            "DAY" | "DD" => Self::Day,
            "HOUR" => Self::Hour,
            "MINUTE" => Self::Minute,
            "SECOND" => Self::Second,
            "MILLISECOND" => Self::Millisecond,
            "MICROSECOND" => Self::Microsecond,
            _ => return None,
        })
    }

    /// The unit of `timestampadd(unit, …)`.
    fn counted(name: &str) -> Result<Self> {
        let unit = match name.to_ascii_uppercase().as_str() {
            "DAYOFYEAR" => Some(Self::Day),
            "YYYY" | "YY" | "MM" | "MON" | "DD" => None,
            name => Self::of(name),
        };
        unit.ok_or_else(|| {
            refused_analysis("UNRESOLVED_ROUTINE", format!("{name} is no unit of time: use YEAR, MONTH, DAY, HOUR, …"))
        })
    }

    /// Months or microseconds of one unit.
    fn length(self) -> (i64, i64) {
        match self {
            Self::Year => (12, 0),
            Self::Quarter => (3, 0),
            Self::Month => (1, 0),
            Self::Week => (0, 7 * DAY),
            Self::Day => (0, DAY),
            Self::Hour => (0, 3_600 * SECOND),
            Self::Minute => (0, 60 * SECOND),
            Self::Second => (0, SECOND),
            Self::Millisecond => (0, 1_000),
            Self::Microsecond => (0, 1),
        }
    }

    /// The time at which the unit begins that a time is in.
    fn start_of(self, at: NaiveDateTime) -> NaiveDateTime {
        let date = at.date();
        let first = |month: u32| NaiveDate::from_ymd_opt(at.year(), month, 1).unwrap_or(date);
        let start = match self {
            Self::Year => first(1),
            Self::Quarter => first(at.month0() / 3 * 3 + 1),
            Self::Month => first(at.month()),
            Self::Week => date - TimeDelta::days(i64::from(at.weekday().num_days_from_monday())),
            Self::Day => date,
            clock => {
                let micros = time::micros_of(at);
                let (_, length) = clock.length();
                return time::naive(micros - micros.rem_euclid(length)).unwrap_or(at);
            }
        };
        start.and_time(NaiveTime::MIN)
    }
}

fn timestampdiff(call: &Call<'_>) -> Result<ArrayRef> {
    let unit = call.text(0)?;
    let (start, end) = (Locals::of(&call.array(1)?)?, Locals::of(&call.array(2)?)?);
    let found = rows::numbers::<Int64Type>(&[&unit, &start.micros, &end.micros], |row| {
        let (start, end) = (start.at(row)?, end.at(row)?);
        Ok(Some(match Unit::counted(unit.value(row))?.length() {
            (0, micros) => (time::micros_of(end) - time::micros_of(start)) / micros,
            (months, _) => {
                let whole =
                    i64::from(end.year() - start.year()) * 12 + i64::from(end.month()) - i64::from(start.month());
                let rest = |time: NaiveDateTime| (time.day(), time.time());
                let whole = match whole {
                    whole if whole > 0 && rest(end) < rest(start) => whole - 1,
                    whole if whole < 0 && rest(end) > rest(start) => whole + 1,
                    whole => whole,
                };
                whole / months
            }
        }))
    });
    Ok(Arc::new(found?))
}

fn timestampadd_args(types: &[DataType], zone: &Arc<str>) -> Result<Vec<DataType>> {
    let [_, count, of] = types else {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "a unit, a number and a time are needed"));
    };
    if !(is_integral(count) || is_string(count) || count.is_null()) {
        return Err(mismatch(
            "UNEXPECTED_INPUT_TYPE",
            format!("the number of units is BIGINT, not {}", sql_name(count)),
        ));
    }
    let of = match of {
        DataType::Timestamp(_, None) => of.clone(),
        _ => types::timestamp(zone),
    };
    Ok(vec![DataType::Utf8, DataType::Int64, of])
}

fn timestampadd(call: &Call<'_>) -> Result<ArrayRef> {
    let (unit, count) = (call.text(0)?, call.numbers::<Int64Type>(1)?);
    let times = Locals::of(&call.array(2)?)?;
    let found = rows::numbers::<TimestampMicrosecondType>(&[&unit, &count, &times.micros], |row| {
        let (months, micros) = Unit::counted(unit.value(row))?.length();
        let count = count.value(row);
        let (Some(months), Some(micros)) = (months.checked_mul(count), micros.checked_mul(count)) else {
            return Err(overflow());
        };
        moved(times.micros.value(row), months, micros, times.zone).map(Some)
    });
    Ok(Arc::new(found?.with_data_type(call.returns.clone())))
}

/// A moment so many months, and then so many microseconds, later. Whole days are those of the calendar.
pub(super) fn moved(micros: i64, months: i64, by: i64, zone: Option<Tz>) -> Result<i64> {
    let (days, rest) = (by / DAY, by % DAY);
    let mut at = micros;
    if months != 0 || days != 0 {
        let local = time::local(at, zone).ok_or_else(overflow)?;
        let months = i32::try_from(months).map_err(|_| overflow())?;
        let date = time::add_months(local.date(), months)
            .and_then(|date| date.checked_add_signed(TimeDelta::try_days(days)?))
            .ok_or_else(overflow)?;
        at = time::moment(date.and_time(local.time()), zone);
    }
    at.checked_add(rest).ok_or_else(overflow)
}

fn date_trunc(call: &Call<'_>) -> Result<ArrayRef> {
    let unit = call.text(0)?;
    let times = Locals::of(&call.array(1)?)?;
    let found = rows::numbers::<TimestampMicrosecondType>(&[&unit, &times.micros], |row| {
        let Some(unit) = Unit::of(unit.value(row)) else { return Ok(None) };
        let local = times.at(row)?;
        let start = unit.start_of(local);
        Ok(Some(if unit >= Unit::Hour {
            times.micros.value(row) - (time::micros_of(local) - time::micros_of(start))
        } else {
            time::moment(start, times.zone)
        }))
    });
    Ok(Arc::new(found?.with_data_type(call.returns.clone())))
}

/// Fields of `extract` and `date_part`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    Year,
    YearOfWeek,
    Quarter,
    Month,
    Week,
    Day,
    DayOfWeek,
    DayOfWeekIso,
    DayOfYear,
    Hour,
    Minute,
    Second,
}

impl Part {
    fn of(name: &str) -> Result<Self> {
        Ok(match name.to_ascii_uppercase().as_str() {
            "YEAR" | "Y" | "YEARS" | "YR" | "YRS" => Self::Year,
            "YEAROFWEEK" => Self::YearOfWeek,
            "QUARTER" | "QTR" => Self::Quarter,
            "MONTH" | "MON" | "MONS" | "MONTHS" => Self::Month,
            "WEEK" | "W" | "WEEKS" => Self::Week,
            "DAY" | "D" | "DAYS" => Self::Day,
            "DAYOFWEEK" | "DOW" => Self::DayOfWeek,
            "DAYOFWEEK_ISO" | "DOW_ISO" => Self::DayOfWeekIso,
            "DOY" => Self::DayOfYear,
            "HOUR" | "H" | "HOURS" | "HR" | "HRS" => Self::Hour,
            "MINUTE" | "M" | "MIN" | "MINS" | "MINUTES" => Self::Minute,
            "SECOND" | "S" | "SEC" | "SECONDS" | "SECS" => Self::Second,
            _ => {
                return Err(refused_analysis(
                    "INVALID_EXTRACT_FIELD",
                    format!("`{name}` is no field of a time: use YEAR, MONTH, DAY, HOUR, …"),
                ));
            }
        })
    }
}

fn part_args(types: &[DataType], zone: &Arc<str>) -> Result<Vec<DataType>> {
    let [_, of] = types else {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "date_part() needs a field and a time"));
    };
    let of = match of {
        DataType::Date32 | DataType::Timestamp(..) | DataType::Interval(_) => of.clone(),
        of if is_string(of) || of.is_null() => types::timestamp(zone),
        other => {
            return Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("{} has no parts of time", sql_name(other))));
        }
    };
    Ok(vec![DataType::Utf8, of])
}

const SECONDS: DataType = DataType::Decimal128(8, 6);

fn part_type(types: &[DataType], constants: &[Option<&ScalarValue>], _: &Arc<str>) -> Result<DataType> {
    match constants.first() {
        Some(Some(ScalarValue::Utf8(Some(field)))) => Ok(match Part::of(field)? {
            Part::Second => SECONDS,
            Part::Month | Part::Hour | Part::Minute if matches!(types[1], DataType::Interval(_)) => DataType::Int8,
            _ => DataType::Int32,
        }),
        Some(Some(value)) if value.is_null() => Ok(DataType::Float64),
        Some(None) => Err(mismatch("NON_FOLDABLE_INPUT", "the field of date_part() must be a constant text")),
        _ => Ok(DataType::Int32),
    }
}

fn date_part(call: &Call<'_>) -> Result<ArrayRef> {
    let Some(field) = call.constant_text(0) else { return Ok(new_null_array(call.returns, call.rows)) };
    let part = Part::of(field)?;
    let of = call.array(1)?;
    if matches!(of.data_type(), DataType::Interval(_)) {
        return part_of_intervals(part, &of, call.returns);
    }
    let times = match of.data_type() {
        DataType::Date32 => cast_array(&of, &DataType::Timestamp(TimeUnit::Microsecond, None), false)?,
        _ => of,
    };
    let locals = Locals::of(&times)?;
    if part == Part::Second {
        let seconds = rows::numbers::<Decimal128Type>(&[&locals.micros], |row| {
            let local = locals.at(row)?;
            Ok(Some(i128::from(local.second()) * 1_000_000 + i128::from(local.nanosecond() / 1_000)))
        })?;
        return Ok(Arc::new(seconds.with_data_type(SECONDS)));
    }
    let parts = rows::numbers::<Int32Type>(&[&locals.micros], |row| {
        let local = locals.at(row)?;
        Ok(Some(match part {
            Part::Year => local.year(),
            Part::YearOfWeek => local.iso_week().year(),
            Part::Quarter => local.month0() as i32 / 3 + 1,
            Part::Month => local.month() as i32,
            Part::Week => local.iso_week().week() as i32,
            Part::Day => local.day() as i32,
            Part::DayOfWeek => local.weekday().num_days_from_sunday() as i32 + 1,
            Part::DayOfWeekIso => local.weekday().num_days_from_monday() as i32 + 1,
            Part::DayOfYear => local.ordinal() as i32,
            Part::Hour => local.hour() as i32,
            Part::Minute => local.minute() as i32,
            Part::Second => local.second() as i32,
        }))
    });
    Ok(Arc::new(parts?))
}

fn part_of_intervals(part: Part, of: &ArrayRef, returns: &DataType) -> Result<ArrayRef> {
    let intervals = super::intervals::Intervals::of(of)?;
    let clock = |micros: i64, unit: i64, of: i64| i128::from(micros / unit % of);
    let parts = rows::numbers::<Decimal128Type>(&[of], |row| {
        let (months, micros) = intervals.at(row);
        Ok(Some(match part {
            Part::Year => i128::from(months / 12),
            Part::Month => i128::from(months % 12),
            Part::Day => i128::from(micros / DAY),
            Part::Hour => clock(micros, 3_600 * SECOND, 24),
            Part::Minute => clock(micros, 60 * SECOND, 60),
            Part::Second => i128::from(micros % (60 * SECOND)),
            _ => return Err(refused_analysis("INVALID_EXTRACT_FIELD", "an INTERVAL has no such field")),
        }))
    })?;
    let scale = if part == Part::Second { 6 } else { 0 };
    let parts: ArrayRef = Arc::new(parts.with_data_type(DataType::Decimal128(38, scale)));
    cast_array(&parts, returns, false)
}

/// Patterns of one call; each is compiled once.
struct Patterns {
    reading: bool,
    compiled: HashMap<String, Pattern>,
}

impl Patterns {
    fn new(reading: bool) -> Self {
        Self { reading, compiled: HashMap::new() }
    }

    fn of(&mut self, pattern: &str) -> Result<&Pattern> {
        if !self.compiled.contains_key(pattern) {
            self.compiled.insert(pattern.to_owned(), Pattern::compile(pattern, self.reading)?);
        }
        Ok(&self.compiled[pattern])
    }
}

/// Moments as text by patterns.
pub(super) fn formatted(times: &ArrayRef, formats: &StringArray) -> Result<ArrayRef> {
    let locals = Locals::of(times)?;
    let name = match times.data_type() {
        DataType::Timestamp(_, Some(zone)) => zone.clone(),
        _ => Arc::from("UTC"),
    };
    let zone = Zone::new(&name)?;
    let mut patterns = Patterns::new(false);
    rows::texts(&[&locals.micros, formats], |row| {
        let pattern = patterns.of(formats.value(row))?;
        let utc = time::naive(locals.micros.value(row)).ok_or_else(overflow)?;
        let mut out = String::new();
        pattern.write(locals.at(row)?, utc, &zone, &mut out);
        Ok(Some(out))
    })
}

/// A text or a time, and a format.
fn read_args(types: &[DataType], zone: &Arc<str>) -> Result<Vec<DataType>> {
    let [of, format @ ..] = types else {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "a text or a time is needed"));
    };
    if format.len() > 1 {
        return Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "1 or 2 arguments are needed"));
    }
    let of = match of {
        DataType::Date32 | DataType::Timestamp(..) => of.clone(),
        of if is_string(of) || of.is_null() => DataType::Utf8,
        of if is_number(of) => types::timestamp(zone),
        other => {
            return Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("{} is no text and no time", sql_name(other))));
        }
    };
    Ok(std::iter::once(of).chain(format.iter().map(|_| DataType::Utf8)).collect())
}

/// Reads texts by patterns.
fn read<T: ArrowPrimitiveType>(
    texts: &StringArray,
    formats: &StringArray,
    lenient: bool,
    hint: &str,
    value: impl Fn(super::patterns::Read) -> T::Native,
) -> Result<PrimitiveArray<T>> {
    let mut patterns = Patterns::new(true);
    rows::numbers(&[texts, formats], |row| {
        let (text, format) = (texts.value(row), formats.value(row));
        match patterns.of(format)?.read(text) {
            Some(read) => Ok(Some(value(read))),
            None if lenient => Ok(None),
            None => Err(failed(
                "CANNOT_PARSE_TIMESTAMP",
                format!("the text '{text}' does not have the format '{format}': use {hint}() to get NULL"),
            )),
        }
    })
}

fn to_date(call: &Call<'_>, lenient: bool) -> Result<ArrayRef> {
    let of = call.array(0)?;
    match of.as_string_opt::<i32>() {
        Some(texts) if call.len() > 1 => {
            let dates = read::<Date32Type>(texts, &call.text(1)?, lenient, "try_to_date", |read| {
                time::days_of(read.local.date())
            });
            Ok(Arc::new(dates?))
        }
        _ => cast_array(&of, call.returns, lenient),
    }
}

fn to_timestamp(call: &Call<'_>, lenient: bool) -> Result<ArrayRef> {
    let of = call.array(0)?;
    match of.as_string_opt::<i32>() {
        Some(texts) if call.len() > 1 => {
            let zone = time::zone_of(call.returns)?;
            let times = read::<TimestampMicrosecondType>(texts, &call.text(1)?, lenient, "try_to_timestamp", |read| {
                read.micros(zone)
            });
            Ok(Arc::new(times?.with_data_type(call.returns.clone())))
        }
        _ => cast_array(&of, call.returns, lenient),
    }
}

fn unix_timestamp(call: &Call<'_>) -> Result<ArrayRef> {
    let of = call.array(0)?;
    if let Some(texts) = of.as_string_opt::<i32>() {
        let zone = call.tz()?;
        let formats = call.text_or(1, "yyyy-MM-dd HH:mm:ss")?;
        let seconds = read::<Int64Type>(texts, &formats, false, "try_to_timestamp", |read| {
            read.micros(Some(zone)).div_euclid(SECOND)
        });
        return Ok(Arc::new(seconds?));
    }
    let moments = cast_array(&of, &types::timestamp(call.zone), false)?;
    // Towards the epoch, other than unix_seconds() and a cast.
    let seconds: Int64Array = moments.as_primitive::<TimestampMicrosecondType>().unary(|micros: i64| micros / SECOND);
    Ok(Arc::new(seconds))
}

fn out_of_bounds(what: impl std::fmt::Display) -> DataFusionError {
    failed("DATETIME_FIELD_OUT_OF_BOUNDS.WITHOUT_SUGGESTION", format!("{what}: use a try_ function to get NULL"))
}

fn date_of(year: i32, month: i32, day: i32) -> Result<NaiveDate> {
    let unsigned = |value: i32| u32::try_from(value).unwrap_or(0);
    NaiveDate::from_ymd_opt(year, unsigned(month), unsigned(day))
        .ok_or_else(|| out_of_bounds(format!("there is no day {year}-{month}-{day}")))
}

fn make_timestamp_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    if !(6..=7).contains(&types.len()) {
        return Err(refused_analysis(
            "WRONG_NUM_ARGS.WITHOUT_SUGGESTION",
            "a timestamp is made of year, month, day, hour, minute, second and a time zone",
        ));
    }
    let mut coerced = vec![DataType::Int32; 5];
    coerced.push(DataType::Decimal128(16, 6));
    coerced.extend(types[6..].iter().map(|_| DataType::Utf8));
    Ok(coerced)
}

fn make_timestamp(call: &Call<'_>, lenient: bool) -> Result<ArrayRef> {
    let parts = (0..5).map(|at| call.numbers::<Int32Type>(at)).collect::<Result<Vec<_>>>()?;
    let seconds = call.numbers::<Decimal128Type>(5)?;
    let zones = if call.len() > 6 { Some(call.text(6)?) } else { None };
    let own_zone = time::zone_of(call.returns)?;
    let mut arrays: Vec<&dyn Array> = parts.iter().map(|part| part as &dyn Array).collect();
    arrays.push(&seconds);
    arrays.extend(zones.iter().map(|zones| zones as &dyn Array));
    let found = rows::numbers::<TimestampMicrosecondType>(&arrays, |row| {
        let made = || -> Result<i64> {
            let [year, month, day, hour, minute] = [0, 1, 2, 3, 4].map(|at: usize| parts[at].value(row));
            let date = date_of(year, month, day)?;
            let micros = seconds.value(row);
            let minute_later = micros == 60_000_000;
            if micros > 60_000_000 {
                return Err(failed("INVALID_FRACTION_OF_SECOND", "the seconds of a timestamp are 0 to 60"));
            }
            let micros = if minute_later { 0 } else { u32::try_from(micros).unwrap_or(u32::MAX) };
            let unsigned = |value: i32| u32::try_from(value).unwrap_or(u32::MAX);
            let clock =
                NaiveTime::from_hms_micro_opt(unsigned(hour), unsigned(minute), micros / 1_000_000, micros % 1_000_000);
            let clock = clock.ok_or_else(|| out_of_bounds(format!("there is no time {hour}:{minute}")))?;
            let later = TimeDelta::minutes(i64::from(minute_later));
            let local = date.and_time(clock).checked_add_signed(later).ok_or_else(overflow)?;
            let zone = match &zones {
                Some(zones) => Some(zone_named(zones.value(row))?),
                None => own_zone,
            };
            Ok(time::moment(local, zone))
        };
        match made() {
            Ok(micros) => Ok(Some(micros)),
            Err(_) if lenient => Ok(None),
            Err(error) => Err(error),
        }
    });
    Ok(Arc::new(found?.with_data_type(call.returns.clone())))
}

fn next_day(call: &Call<'_>) -> Result<ArrayRef> {
    let (date, name) = (call.numbers::<Date32Type>(0)?, call.text(1)?);
    let found = rows::numbers::<Date32Type>(&[&date, &name], |row| {
        let name = name.value(row).trim().to_ascii_lowercase();
        let wanted = DAYS.iter().position(|day| {
            let day = day.to_ascii_lowercase();
            name == day || name == day[..3] || name == day[..2]
        });
        let Some(wanted) = wanted else {
            return Err(failed("ILLEGAL_DAY_OF_WEEK", format!("'{name}' is no day of the week: use MON, TUE, …")));
        };
        // 1970-01-01 was a Thursday.
        let days = date.value(row);
        Ok(Some(days + 1 + (wanted as i32 - 4 - days).rem_euclid(7)))
    });
    Ok(Arc::new(found?))
}

fn whole_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    match types {
        [of] if is_integral(of) || is_string(of) || of.is_null() => Ok(vec![DataType::Int64]),
        [other] => Err(mismatch("UNEXPECTED_INPUT_TYPE", format!("a whole number is needed, not {}", sql_name(other)))),
        _ => Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "1 argument is needed")),
    }
}

fn moments(call: &Call<'_>, micros: i64) -> Result<ArrayRef> {
    let count = call.numbers::<Int64Type>(0)?;
    let found = rows::numbers::<TimestampMicrosecondType>(&[&count], |row| {
        count.value(row).checked_mul(micros).map(Some).ok_or_else(overflow)
    });
    Ok(Arc::new(found?.with_data_type(call.returns.clone())))
}

fn timestamp_seconds(call: &Call<'_>) -> Result<ArrayRef> {
    let of = call.array(0)?;
    let moments: TimestampMicrosecondArray = match of.data_type() {
        data_type if is_float(data_type) => {
            let seconds = datafusion::arrow::compute::cast(&of, &DataType::Float64)?;
            let seconds = seconds.as_primitive::<Float64Type>().clone();
            rows::numbers(&[&seconds], |row| {
                let seconds = seconds.value(row);
                Ok(seconds.is_finite().then_some((seconds * SECOND as f64) as i64))
            })?
        }
        DataType::Decimal128(_, scale) => {
            let scale = i32::from(*scale);
            let seconds = of.as_primitive::<Decimal128Type>();
            rows::numbers(&[seconds], |row| {
                let value = seconds.value(row);
                let micros = if scale <= 6 {
                    value.checked_mul(10i128.pow((6 - scale).unsigned_abs()))
                } else {
                    let unit = 10i128.pow((scale - 6).unsigned_abs());
                    if value % unit != 0 {
                        let text = seconds.value_as_string(row);
                        return Err(failed("ArithmeticException", format!("{text} is finer than a microsecond")));
                    }
                    Some(value / unit)
                };
                micros.and_then(|micros| i64::try_from(micros).ok()).map(Some).ok_or_else(overflow)
            })?
        }
        _ => {
            let seconds = datafusion::arrow::compute::cast(&of, &DataType::Int64)?;
            let seconds = seconds.as_primitive::<Int64Type>().clone();
            rows::numbers(&[&seconds], |row| seconds.value(row).checked_mul(SECOND).map(Some).ok_or_else(overflow))?
        }
    };
    Ok(Arc::new(moments.with_data_type(call.returns.clone())))
}

fn units(call: &Call<'_>, micros: i64) -> Result<ArrayRef> {
    let of = call.array(0)?;
    let counts: Int64Array = of.as_primitive::<TimestampMicrosecondType>().unary(|at: i64| at.div_euclid(micros));
    Ok(Arc::new(counts))
}

fn zone_named(name: &str) -> Result<Tz> {
    parse_zone(name).ok_or_else(|| {
        failed(
            "INVALID_TIMEZONE",
            format!("'{name}' is no time zone: write Europe/Berlin, or an offset such as +02:00"),
        )
    })
}

fn between_zones(call: &Call<'_>, convert: impl Fn(i64, Tz, Tz) -> Option<i64>) -> Result<ArrayRef> {
    let (times, zone) = (call.array(0)?, call.text(1)?);
    let times = times.as_primitive::<TimestampMicrosecondType>();
    let utc = zone_named("UTC")?;
    let found = rows::numbers::<TimestampMicrosecondType>(&[times, &zone], |row| {
        convert(times.value(row), utc, zone_named(zone.value(row))?).map(Some).ok_or_else(overflow)
    });
    Ok(Arc::new(found?.with_data_type(call.returns.clone())))
}

fn convert_args(types: &[DataType], _: &Arc<str>) -> Result<Vec<DataType>> {
    let local = DataType::Timestamp(TimeUnit::Microsecond, None);
    match types.len() {
        2 => Ok(vec![DataType::Utf8, local]),
        3 => Ok(vec![DataType::Utf8, DataType::Utf8, local]),
        _ => Err(refused_analysis("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", "convert_timezone() needs 2 or 3 arguments")),
    }
}

fn convert_timezone(call: &Call<'_>) -> Result<ArrayRef> {
    let source = if call.len() == 3 { call.text(0)? } else { StringArray::from(vec![call.zone.as_ref(); call.rows]) };
    let target = call.text(call.len() - 2)?;
    let times = call.array(call.len() - 1)?;
    let times = times.as_primitive::<TimestampMicrosecondType>();
    let found = rows::numbers::<TimestampMicrosecondType>(&[&source, &target, times], |row| {
        let (source, target) = (zone_named(source.value(row))?, zone_named(target.value(row))?);
        let local = time::naive(times.value(row)).ok_or_else(overflow)?;
        let there = time::local(time::moment(local, Some(source)), Some(target)).ok_or_else(overflow)?;
        Ok(Some(time::micros_of(there)))
    });
    Ok(Arc::new(found?))
}
