//! Dates and moments: their text, and casts among them.

use std::fmt::Write;
use std::sync::Arc;

use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeDelta, TimeZone, Timelike};
use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, Date32Array, PrimitiveArray, TimestampMicrosecondArray};
use datafusion::arrow::compute;
use datafusion::arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType,
};
use datafusion::common::{Result, exec_err};

use super::super::types::is_float;
use super::{cast_array, too_large};

/// Microseconds of a second.
pub(crate) const SECOND: i64 = 1_000_000;
/// Microseconds of a day.
pub(crate) const DAY: i64 = 86_400 * SECOND;
/// Days from the first day of the Common Era to 1970-01-01.
const EPOCH_DAY: i32 = 719_163;

/// The day so many days after 1970-01-01.
pub(crate) fn day(days: i32) -> Option<NaiveDate> {
    NaiveDate::from_num_days_from_ce_opt(days.checked_add(EPOCH_DAY)?)
}

/// Days since 1970-01-01.
pub(crate) fn days_of(day: NaiveDate) -> i32 {
    day.num_days_from_ce() - EPOCH_DAY
}

/// Date and time so many microseconds after 1970-01-01 00:00.
pub(crate) fn naive(micros: i64) -> Option<NaiveDateTime> {
    DateTime::from_timestamp_micros(micros).map(|time| time.naive_utc())
}

/// Microseconds since 1970-01-01 00:00 of a date and time.
pub(crate) fn micros_of(time: NaiveDateTime) -> i64 {
    time.and_utc().timestamp_micros()
}

/// What clocks in the zone show at a moment.
pub(crate) fn local(micros: i64, zone: Option<Tz>) -> Option<NaiveDateTime> {
    let utc = naive(micros)?;
    match zone {
        Some(zone) => utc.checked_add_offset(zone.offset_from_utc_datetime(&utc).fix()),
        None => Some(utc),
    }
}

/// The moment at which clocks in the zone show a time: the earlier one of two, and where clocks skip the time, as much later.
pub(crate) fn moment(time: NaiveDateTime, zone: Option<Tz>) -> i64 {
    let Some(zone) = zone else { return micros_of(time) };
    let offset = match zone.offset_from_local_datetime(&time) {
        chrono::LocalResult::Single(offset) => offset.fix(),
        chrono::LocalResult::Ambiguous(first, second) => {
            let (first, second) = (first.fix(), second.fix());
            if first.local_minus_utc() >= second.local_minus_utc() { first } else { second }
        }
        chrono::LocalResult::None => {
            let before = time.checked_sub_signed(TimeDelta::days(1)).unwrap_or(time);
            zone.offset_from_utc_datetime(&before).fix()
        }
    };
    micros_of(time) - i64::from(offset.local_minus_utc()) * SECOND
}

fn write_year(year: i32, out: &mut String) {
    // Writing to a String cannot fail.
    let _ = match year {
        0..=9999 => write!(out, "{year:04}"),
        10_000.. => write!(out, "+{year}"),
        _ => write!(out, "-{:04}", year.unsigned_abs()),
    };
}

/// `2024-02-29`
pub(crate) fn show_date(days: i32, out: &mut String) {
    match day(days) {
        Some(day) => {
            write_year(day.year(), out);
            let _ = write!(out, "-{:02}-{:02}", day.month(), day.day());
        }
        None => out.push_str("a date out of range"),
    }
}

/// `2024-02-29 10:11:12.5`
pub(crate) fn show_timestamp(micros: i64, zone: Option<Tz>, out: &mut String) {
    let Some(time) = local(micros, zone) else {
        out.push_str("a timestamp out of range");
        return;
    };
    write_year(time.year(), out);
    let _ = write!(
        out,
        "-{:02}-{:02} {:02}:{:02}:{:02}",
        time.month(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    );
    let fraction = time.nanosecond() / 1_000;
    if fraction > 0 {
        let digits = format!("{fraction:06}");
        out.push('.');
        out.push_str(digits.trim_end_matches('0'));
    }
}

/// The zone of a TIMESTAMP type; none for TIMESTAMP_NTZ and DATE.
pub(crate) fn zone_of(data_type: &DataType) -> Result<Option<Tz>> {
    match data_type {
        DataType::Timestamp(_, Some(zone)) => Ok(Some(zone.parse::<Tz>()?)),
        _ => Ok(None),
    }
}

/// Between DATE, TIMESTAMP and TIMESTAMP_NTZ.
pub(super) fn convert(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    let from_zone = zone_of(array.data_type())?;
    let to_zone = zone_of(to)?;
    let local_times: Vec<Option<NaiveDateTime>> = match array.data_type() {
        DataType::Date32 => array
            .as_primitive::<Date32Type>()
            .iter()
            .map(|days| days.and_then(day).map(|day| day.and_time(NaiveTime::MIN)))
            .collect(),
        DataType::Timestamp(..) => {
            let micros = compute::cast(
                array,
                &DataType::Timestamp(datafusion::arrow::datatypes::TimeUnit::Microsecond, zone_name(array.data_type())),
            )?;
            if matches!((array.data_type(), to), (DataType::Timestamp(_, Some(_)), DataType::Timestamp(_, Some(_)))) {
                let same = micros.as_primitive::<TimestampMicrosecondType>().clone();
                return Ok(Arc::new(same.with_data_type(to.clone())));
            }
            let micros = micros.as_primitive::<TimestampMicrosecondType>();
            micros.iter().map(|micros| micros.and_then(|micros| local(micros, from_zone))).collect()
        }
        other => return exec_err!("{other} is no date"),
    };
    Ok(match to {
        DataType::Date32 => {
            Arc::new(Date32Array::from_iter(local_times.into_iter().map(|time| time.map(|time| days_of(time.date())))))
        }
        _ => {
            let moments = local_times.into_iter().map(|time| time.map(|time| moment(time, to_zone)));
            Arc::new(TimestampMicrosecondArray::from_iter(moments).with_data_type(to.clone()))
        }
    })
}

fn zone_name(data_type: &DataType) -> Option<Arc<str>> {
    match data_type {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    }
}

/// Seconds since the epoch as moments.
pub(super) fn from_number(array: &ArrayRef, to: &DataType, lenient: bool) -> Result<ArrayRef> {
    let from = array.data_type().clone();
    let micros: Vec<Option<Option<i64>>> = match &from {
        DataType::Decimal128(_, scale) => {
            let scale = i32::from(*scale);
            array
                .as_primitive::<Decimal128Type>()
                .iter()
                .map(|value| {
                    value.map(|value| {
                        let scaled = if scale <= 6 {
                            value.checked_mul(10i128.pow((6 - scale).unsigned_abs()))
                        } else {
                            Some(value.div_euclid(10i128.pow((scale - 6).unsigned_abs())))
                        };
                        scaled.and_then(|scaled| i64::try_from(scaled).ok())
                    })
                })
                .collect()
        }
        DataType::Float32 | DataType::Float64 => {
            let doubles = compute::cast(array, &DataType::Float64)?;
            doubles
                .as_primitive::<Float64Type>()
                .iter()
                .map(|value| {
                    // Beyond the first and the last moment is the first or the last one.
                    value.map(|value| value.is_finite().then_some((value * SECOND as f64) as i64))
                })
                .collect()
        }
        _ => {
            let seconds = compute::cast(array, &DataType::Int64)?;
            seconds
                .as_primitive::<Int64Type>()
                .iter()
                .map(|value| value.map(|value| Some(value.saturating_mul(SECOND))))
                .collect()
        }
    };
    let micros: Result<TimestampMicrosecondArray> = micros
        .into_iter()
        .map(|value| match value {
            None => Ok(None),
            Some(Some(value)) => Ok(Some(value)),
            Some(None) if lenient => Ok(None),
            Some(None) if is_float(&from) => Err(super::malformed("NaN or Infinity", to)),
            Some(None) => Err(too_large("number of seconds", &from, to)),
        })
        .collect();
    Ok(Arc::new(micros?.with_data_type(to.clone())))
}

/// Moments as seconds since the epoch.
pub(super) fn to_number(array: &ArrayRef, to: &DataType, lenient: bool) -> Result<ArrayRef> {
    let micros = array.as_primitive::<TimestampMicrosecondType>();
    match to {
        DataType::Float32 | DataType::Float64 => {
            let seconds: PrimitiveArray<Float64Type> = micros.unary(|micros| micros as f64 / SECOND as f64);
            cast_array(&(Arc::new(seconds) as ArrayRef), to, lenient)
        }
        DataType::Decimal128(..) => {
            let exact: PrimitiveArray<Decimal128Type> = micros.unary(i128::from);
            let exact: ArrayRef = Arc::new(exact.with_data_type(DataType::Decimal128(38, 6)));
            cast_array(&exact, to, lenient)
        }
        _ => {
            let seconds: PrimitiveArray<Int64Type> = micros.unary(|micros| micros.div_euclid(SECOND));
            cast_array(&(Arc::new(seconds) as ArrayRef), to, lenient)
        }
    }
}

/// A date so many months later; the last day of a month is the last one where the target month is shorter.
pub(crate) fn add_months(date: NaiveDate, months: i32) -> Option<NaiveDate> {
    if months >= 0 {
        date.checked_add_months(chrono::Months::new(months.unsigned_abs()))
    } else {
        date.checked_sub_months(chrono::Months::new(months.unsigned_abs()))
    }
}

/// The last day of the month.
pub(crate) fn last_day(date: NaiveDate) -> Option<NaiveDate> {
    date.with_day(1)?.checked_add_months(chrono::Months::new(1))?.checked_sub_days(Days::new(1))
}
