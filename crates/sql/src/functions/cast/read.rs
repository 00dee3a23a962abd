//! Text as values.

use std::str::FromStr;
use std::sync::Arc;

use chrono::{NaiveDate, NaiveDateTime, NaiveTime};
use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, PrimitiveArray, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::compute;
use datafusion::arrow::datatypes::{
    ArrowPrimitiveType, DataType, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
};
use datafusion::common::Result;

use super::numbers::exact;
use super::{malformed, time, too_many_digits};
use crate::error::failed;

/// Reads texts as values of a type.
pub(super) fn read(texts: &StringArray, to: &DataType, lenient: bool) -> Result<ArrayRef> {
    Ok(match to {
        DataType::Boolean => {
            let values: Result<BooleanArray> = each(texts, to, lenient, boolean).collect();
            Arc::new(values?)
        }
        DataType::Int8 => primitive::<Int8Type>(texts, to, lenient, integer)?,
        DataType::Int16 => primitive::<Int16Type>(texts, to, lenient, integer)?,
        DataType::Int32 => primitive::<Int32Type>(texts, to, lenient, integer)?,
        DataType::Int64 => primitive::<Int64Type>(texts, to, lenient, integer)?,
        DataType::Float32 => primitive::<Float32Type>(texts, to, lenient, |text| {
            float(text).map(|float| match float {
                Float::Special(value) => value as f32,
                Float::Digits(digits) => digits.parse().unwrap_or(f32::NAN),
            })
        })?,
        DataType::Float64 => primitive::<Float64Type>(texts, to, lenient, |text| {
            float(text).map(|float| match float {
                Float::Special(value) => value,
                Float::Digits(digits) => digits.parse().unwrap_or(f64::NAN),
            })
        })?,
        DataType::Decimal128(precision, scale) => {
            let scale = i32::from(*scale);
            let values: Result<PrimitiveArray<Decimal128Type>> = texts
                .iter()
                .map(|text| {
                    let Some(text) = text else { return Ok(None) };
                    match exact(trimmed(text), *precision, scale) {
                        Some(value) => Ok(Some(value)),
                        None if lenient => Ok(None),
                        // It is a number, but does not fit into any DECIMAL, or not into this one.
                        None if trimmed(text)
                            .parse::<f64>()
                            .is_ok_and(|value| value.is_finite() && value.abs() >= 1e38) =>
                        {
                            Err(failed(
                                "NUMERIC_OUT_OF_SUPPORTED_RANGE",
                                format!("the number {text} has more than 38 digits: use try_cast() to get NULL"),
                            ))
                        }
                        None if trimmed(text).parse::<f64>().is_ok_and(f64::is_finite) => {
                            Err(too_many_digits(text, to))
                        }
                        None => Err(malformed(text, to)),
                    }
                })
                .collect();
            Arc::new(values?.with_data_type(to.clone()))
        }
        DataType::Date32 => {
            let values: Result<Date32Array> = each(texts, to, lenient, |text| date(text).map(time::days_of)).collect();
            Arc::new(values?)
        }
        DataType::Timestamp(_, zone) => {
            let zone = zone.as_deref().map(str::parse::<Tz>).transpose()?;
            let values: Result<TimestampMicrosecondArray> =
                each(texts, to, lenient, |text| timestamp(text, zone)).collect();
            Arc::new(values?.with_data_type(to.clone()))
        }
        DataType::Binary => Arc::new(BinaryArray::from_iter(texts.iter().map(|text| text.map(str::as_bytes)))),
        other => compute::cast(texts as &dyn Array, other)?,
    })
}

fn each<'a, T>(
    texts: &'a StringArray,
    to: &'a DataType,
    lenient: bool,
    read: impl Fn(&str) -> Option<T> + 'a,
) -> impl Iterator<Item = Result<Option<T>>> + 'a {
    texts.iter().map(move |text| match text {
        None => Ok(None),
        Some(text) => match read(text) {
            Some(value) => Ok(Some(value)),
            None if lenient => Ok(None),
            None => Err(malformed(text, to)),
        },
    })
}

fn primitive<T: ArrowPrimitiveType>(
    texts: &StringArray,
    to: &DataType,
    lenient: bool,
    read: impl Fn(&str) -> Option<T::Native>,
) -> Result<ArrayRef> {
    let values: Result<PrimitiveArray<T>> = each(texts, to, lenient, read).collect();
    Ok(Arc::new(values?))
}

/// Without the blanks and control characters around it, as Spark has it.
fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c <= ' ' || c.is_control())
}

fn boolean(text: &str) -> Option<bool> {
    match trimmed(text).to_ascii_lowercase().as_str() {
        "t" | "true" | "y" | "yes" | "1" => Some(true),
        "f" | "false" | "n" | "no" | "0" => Some(false),
        _ => None,
    }
}

fn integer<T: FromStr>(text: &str) -> Option<T> {
    trimmed(text).parse().ok()
}

enum Float<'a> {
    Special(f64),
    Digits(&'a str),
}

fn float(text: &str) -> Option<Float<'_>> {
    let text = trimmed(text);
    match text.to_ascii_lowercase().as_str() {
        "inf" | "+inf" | "infinity" | "+infinity" => return Some(Float::Special(f64::INFINITY)),
        "-inf" | "-infinity" => return Some(Float::Special(f64::NEG_INFINITY)),
        "nan" => return Some(Float::Special(f64::NAN)),
        _ => {}
    }
    // Java's suffixes of floating-point literals.
    let digits = text.strip_suffix(['d', 'D', 'f', 'F']).unwrap_or(text);
    let plain = digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+' | b'e' | b'E'));
    (plain && digits.parse::<f64>().is_ok()).then_some(Float::Digits(digits))
}

/// `2024`, `2024-2`, `2024-02-29`, and the latter with anything behind a blank or a T.
pub(crate) fn date(text: &str) -> Option<NaiveDate> {
    let text = trimmed(text);
    let (date, _) = split_date(text)?;
    let rest = &text[date.1..];
    (rest.is_empty() || date.2 == 3 && rest.starts_with([' ', 'T'])).then_some(date.0)
}

/// The date at the start of a text: the date, how long its text is, how many parts it has; and the rest of the text.
fn split_date(text: &str) -> Option<((NaiveDate, usize, usize), &str)> {
    let bytes = text.as_bytes();
    let mut at = usize::from(matches!(bytes.first(), Some(b'+' | b'-')));
    let negative = bytes.first() == Some(&b'-');
    let mut parts = [0i32, 1, 1];
    let mut count = 0;
    while count < 3 {
        let start = at;
        while at < bytes.len() && bytes[at].is_ascii_digit() {
            at += 1;
        }
        let digits = &text[start..at];
        let wanted = if count == 0 { 4..=7 } else { 1..=2 };
        if !wanted.contains(&digits.len()) {
            return None;
        }
        parts[count] = digits.parse().ok()?;
        count += 1;
        if count < 3 && bytes.get(at) == Some(&b'-') {
            at += 1;
        } else {
            break;
        }
    }
    let year = if negative { -parts[0] } else { parts[0] };
    let date = NaiveDate::from_ymd_opt(year, u32::try_from(parts[1]).ok()?, u32::try_from(parts[2]).ok()?)?;
    Some(((date, at, count), &text[at..]))
}

/// A date with an optional time and an optional zone, in microseconds since the epoch. Without a zone in the type, one in the text is
/// passed over.
pub(crate) fn timestamp(text: &str, zone: Option<Tz>) -> Option<i64> {
    let text = trimmed(text);
    let ((date, _, parts), rest) = split_date(text)?;
    if rest.is_empty() {
        return Some(time::moment(date.and_time(NaiveTime::MIN), zone));
    }
    if parts != 3 || !rest.starts_with([' ', 'T']) {
        return None;
    }
    let (clock, rest) = clock(&rest[1..])?;
    let local: NaiveDateTime = date.and_time(clock);
    let of_text = rest.trim();
    if of_text.is_empty() {
        return Some(time::moment(local, zone));
    }
    let named = parse_zone(of_text)?;
    Some(time::moment(local, zone.map(|_| named)))
}

/// `10`, `10:11`, `10:11:12`, `10:11:12.5`, and the rest of the text.
fn clock(text: &str) -> Option<(NaiveTime, &str)> {
    let bytes = text.as_bytes();
    let mut parts = [0u32; 3];
    let mut at = 0;
    let mut nanos = 0;
    for (index, part) in parts.iter_mut().enumerate() {
        let start = at;
        while at < bytes.len() && at - start < 2 && bytes[at].is_ascii_digit() {
            at += 1;
        }
        if at == start {
            return None;
        }
        *part = text[start..at].parse().ok()?;
        if index == 2 {
            if bytes.get(at) == Some(&b'.') {
                let start = at + 1;
                at = start;
                while at < bytes.len() && bytes[at].is_ascii_digit() {
                    at += 1;
                }
                // Microseconds; what is finer is cut off.
                let digits = &text[start..at.min(start + 6)];
                nanos = if digits.is_empty() { 0 } else { format!("{digits:0<9}").parse().ok()? };
            }
        } else if bytes.get(at) == Some(&b':') {
            at += 1;
        } else {
            break;
        }
    }
    Some((NaiveTime::from_hms_nano_opt(parts[0], parts[1], parts[2], nanos)?, &text[at..]))
}

/// A zone as Java reads it: `Z`, `UTC`, `+02:00`, `+2`, `GMT+2`, `Europe/Berlin`.
pub(crate) fn parse_zone(text: &str) -> Option<Tz> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("z") {
        return "UTC".parse().ok();
    }
    let offset = ["UTC", "GMT", "UT"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix).filter(|rest| rest.starts_with(['+', '-'])))
        .unwrap_or(text);
    if offset.starts_with(['+', '-']) {
        let (sign, digits) = offset.split_at(1);
        let mut parts = digits.split(':');
        let (hours, minutes): (u32, u32) = match (parts.next()?, parts.next()) {
            (compact, None) if compact.len() == 4 => (compact[..2].parse().ok()?, compact[2..].parse().ok()?),
            (hours, minutes) => (hours.parse().ok()?, minutes.map_or(Ok(0), str::parse).ok()?),
        };
        return (hours <= 18 && minutes < 60).then(|| format!("{sign}{hours:02}:{minutes:02}").parse().ok())?;
    }
    let named = SHORT_ZONES.iter().find(|(short, _)| *short == text).map_or(text, |(_, zone)| *zone);
    named.parse().ok()
}

/// Java's short names of zones, other than those that are zones by themselves.
const SHORT_ZONES: &[(&str, &str)] = &[
    ("ACT", "Australia/Darwin"),
    ("AET", "Australia/Sydney"),
    ("AGT", "America/Argentina/Buenos_Aires"),
    ("ART", "Africa/Cairo"),
    ("AST", "America/Anchorage"),
    ("BET", "America/Sao_Paulo"),
    ("BST", "Asia/Dhaka"),
    ("CAT", "Africa/Harare"),
    ("CNT", "America/St_Johns"),
    ("CST", "America/Chicago"),
    ("CTT", "Asia/Shanghai"),
    ("EAT", "Africa/Addis_Ababa"),
    ("ECT", "Europe/Paris"),
    ("IET", "America/Indiana/Indianapolis"),
    ("IST", "Asia/Kolkata"),
    ("JST", "Asia/Tokyo"),
    ("MIT", "Pacific/Apia"),
    ("NET", "Asia/Yerevan"),
    ("NST", "Pacific/Auckland"),
    ("PLT", "Asia/Karachi"),
    ("PNT", "America/Phoenix"),
    ("PRT", "America/Puerto_Rico"),
    ("PST", "America/Los_Angeles"),
    ("SST", "Pacific/Guadalcanal"),
    ("VST", "Asia/Ho_Chi_Minh"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_moments_are_read_as_spark_does() {
        let utc = Some("UTC".parse::<Tz>().unwrap());
        let berlin = Some("Europe/Berlin".parse::<Tz>().unwrap());
        assert_eq!(date("2024-2-9"), NaiveDate::from_ymd_opt(2024, 2, 9));
        assert_eq!(date("2024"), NaiveDate::from_ymd_opt(2024, 1, 1));
        assert_eq!(date("2024-02-29T10"), NaiveDate::from_ymd_opt(2024, 2, 29));
        assert_eq!(date("2024-02 x"), None);
        assert_eq!(timestamp("1970-01-01 00:00:01.5", utc), Some(1_500_000));
        assert_eq!(timestamp("1970-01-01T01:00:00", berlin), Some(0));
        assert_eq!(timestamp("1970-01-01T01:00:00+01:00", utc), Some(0));
        assert_eq!(timestamp("1970-01-01 01:00:00 Europe/Berlin", utc), Some(0));
        assert_eq!(timestamp("1970-01-01x", utc), None);
        // Clocks skip from 02:00 to 03:00.
        assert_eq!(timestamp("2024-03-31 02:30:00", berlin), timestamp("2024-03-31 03:30:00", berlin));
    }
}
