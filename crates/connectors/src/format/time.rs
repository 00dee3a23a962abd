//! Dates, times and time zones from text, by the rules of Spark's `SparkDateTimeUtils` and Java's `ZoneId`.

use std::str::FromStr;

use chrono::{LocalResult, Offset, TimeDelta, TimeZone};

const SECONDS_PER_DAY: i64 = 86_400;
const MICROS_PER_SECOND: i64 = 1_000_000;

/// A time zone as Java's `ZoneId` knows it: a fixed offset or a region with rules.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Zone {
    /// Seconds east of UTC.
    Fixed(i32),
    /// A region of the IANA database.
    Region(chrono_tz::Tz),
}

impl Zone {
    /// UTC.
    pub(crate) const UTC: Self = Self::Fixed(0);

    /// Reads `Z`, `+2`, `-08:00`, `UTC+3`, `Europe/Paris`, `PST` and the like; `None` for what Spark does not know.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let padded = pad_offset(text);
        let id = padded.as_deref().unwrap_or(text);
        let id = SHORT_IDS.iter().find(|(short, _)| *short == id).map_or(id, |(_, long)| *long);
        if id.len() <= 1 || id.starts_with(['+', '-']) {
            return parse_offset(id);
        }
        for prefix in ["UTC", "GMT", "UT"] {
            match id.strip_prefix(prefix) {
                Some("") => return Some(Self::UTC),
                Some(offset) if offset.starts_with(['+', '-']) => return parse_offset(offset),
                _ => {}
            }
        }
        chrono_tz::Tz::from_str(id).ok().map(Self::Region)
    }

    /// Microseconds since the epoch of a local date and time. A local time that a change of the clocks leaves out is moved on by
    /// the gap; of one that comes twice the first is meant.
    fn to_micros(self, days: i64, second_of_day: i64, micros: i64) -> Option<i64> {
        let local = days.checked_mul(SECONDS_PER_DAY)?.checked_add(second_of_day)?;
        let offset = match self {
            Self::Fixed(offset) => i64::from(offset),
            Self::Region(tz) => {
                let local = chrono::DateTime::from_timestamp(local, 0)?.naive_utc();
                match tz.offset_from_local_datetime(&local) {
                    LocalResult::Single(offset) | LocalResult::Ambiguous(offset, _) => offset.fix().local_minus_utc(),
                    LocalResult::None => {
                        let before = local.checked_sub_signed(TimeDelta::days(1))?;
                        tz.offset_from_utc_datetime(&before).fix().local_minus_utc()
                    }
                }
                .into()
            }
        };
        // In parts, so that the least instant there is does not overflow on the way.
        let seconds = local - offset;
        if seconds < 0 && micros > 0 {
            (seconds + 1).checked_mul(MICROS_PER_SECOND)?.checked_add(micros - MICROS_PER_SECOND)
        } else {
            seconds.checked_mul(MICROS_PER_SECOND)?.checked_add(micros)
        }
    }
}

/// Spark takes `+h:mm` and `+hh:m`, which Java does not.
fn pad_offset(text: &str) -> Option<String> {
    let sign = text.find(['+', '-'])?;
    let digits = text[sign + 1..].bytes().take_while(u8::is_ascii_digit).count();
    let (head, tail) = (&text[..=sign], &text[sign + 1..]);
    let mut padded = match (digits, tail.as_bytes().get(digits)) {
        (1, Some(b':')) => format!("{head}0{tail}"),
        _ => text.to_owned(),
    };
    let rest = &padded.as_bytes()[sign + 1..];
    if matches!(rest, [h1, h2, b':', m] if [h1, h2, m].iter().all(|b| b.is_ascii_digit())) {
        padded.insert(sign + 4, '0');
    }
    (padded != text).then_some(padded)
}

/// Java's `ZoneOffset.of`: `Z`, `+h`, `+hh`, `+hhmm`, `+hh:mm`, `+hhmmss`, `+hh:mm:ss`; at most 18 hours.
fn parse_offset(text: &str) -> Option<Zone> {
    if text == "Z" {
        return Some(Zone::UTC);
    }
    let two = |digits: &[u8]| match digits {
        [a @ b'0'..=b'9', b @ b'0'..=b'9'] => Some(i32::from(a - b'0') * 10 + i32::from(b - b'0')),
        _ => None,
    };
    let (sign, rest) = text.as_bytes().split_first()?;
    let (hours, minutes, seconds) = match rest {
        [hour @ b'0'..=b'9'] => (i32::from(hour - b'0'), 0, 0),
        [h @ .., b':', m1, m2, b':', s1, s2] if h.len() == 2 => (two(h)?, two(&[*m1, *m2])?, two(&[*s1, *s2])?),
        [h @ .., b':', m1, m2] if h.len() == 2 => (two(h)?, two(&[*m1, *m2])?, 0),
        digits => match digits.len() {
            2 => (two(digits)?, 0, 0),
            4 => (two(&digits[..2])?, two(&digits[2..])?, 0),
            6 => (two(&digits[..2])?, two(&digits[2..4])?, two(&digits[4..])?),
            _ => return None,
        },
    };
    let total = hours * 3600 + minutes * 60 + seconds;
    if minutes > 59 || seconds > 59 || total > 18 * 3600 {
        return None;
    }
    match sign {
        b'+' => Some(Zone::Fixed(total)),
        b'-' => Some(Zone::Fixed(-total)),
        _ => None,
    }
}

/// Java's `ZoneId.SHORT_IDS`.
const SHORT_IDS: &[(&str, &str)] = &[
    ("EST", "-05:00"),
    ("MST", "-07:00"),
    ("HST", "-10:00"),
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

/// A local date and time, not yet in a zone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Local {
    /// Days since 1970-01-01.
    pub(crate) days: i64,
    /// Second of the day.
    pub(crate) second: i64,
    /// Microsecond of the second.
    pub(crate) micros: i64,
    /// The zone in the text, if there was one.
    pub(crate) zone: Option<Zone>,
}

impl Local {
    /// Microseconds since the epoch, in the text's own zone or else in `zone`.
    pub(crate) fn timestamp(&self, zone: Zone) -> Option<i64> {
        self.zone.unwrap_or(zone).to_micros(self.days, self.second, self.micros)
    }

    /// Microseconds since 1970-01-01T00:00:00 on the wall; `None` where the text names a zone.
    pub(crate) fn timestamp_ntz(&self) -> Option<i64> {
        if self.zone.is_some() { None } else { Zone::UTC.to_micros(self.days, self.second, self.micros) }
    }
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar; `None` where there is no such day.
pub(crate) fn days_of(year: i64, month: i64, day: i64) -> Option<i64> {
    const LENGTHS: [i64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    if !(1..=12).contains(&month) {
        return None;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = if month == 2 && leap { 29 } else { LENGTHS[month as usize - 1] };
    (1..=length).contains(&day).then(|| days_from_civil(year, month, day))
}

/// Days since 1970-01-01, with the year starting in March so that the leap day comes last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn trim(text: &[u8]) -> &[u8] {
    let blank = |b: &u8| *b <= b' ' || *b == 0x7f;
    let start = text.iter().position(|b| !blank(b)).unwrap_or(text.len());
    let end = text.iter().rposition(|b| !blank(b)).map_or(start, |last| last + 1);
    &text[start..end]
}

/// Reads a date as Spark's `stringToDate`: `2024`, `2024-3`, `2024-03-01`, also with anything behind a blank or a `T`. Days since
/// 1970-01-01.
pub(crate) fn parse_date(text: &[u8]) -> Option<i32> {
    // By far the most common form, without the detour.
    if let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = text {
        let digits = [y1, y2, y3, y4, m1, m2, d1, d2];
        if digits.iter().all(|d| d.is_ascii_digit()) {
            let [y1, y2, y3, y4, m1, m2, d1, d2] = digits.map(|d| i64::from(d - b'0'));
            let days = days_of(y1 * 1000 + y2 * 100 + y3 * 10 + y4, m1 * 10 + m2, d1 * 10 + d2)?;
            return i32::try_from(days).ok();
        }
    }
    let mut text = trim(text);
    let mut sign = 1;
    if let [first @ (b'+' | b'-'), rest @ ..] = text {
        sign = if *first == b'-' { -1 } else { 1 };
        text = rest;
    } else if text.is_empty() {
        return None;
    }
    let mut segments = [1i64; 3];
    let (mut segment, mut digits, mut value) = (0, 0, 0i64);
    let valid = |segment: usize, digits: usize| {
        if segment == 0 { (4..=7).contains(&digits) } else { (1..=2).contains(&digits) }
    };
    let mut at = 0;
    while at < text.len() && !matches!(text[at], b' ' | b'T') {
        match text[at] {
            b'-' if segment < 2 => {
                if !valid(segment, digits) {
                    return None;
                }
                segments[segment] = value;
                (segment, digits, value) = (segment + 1, 0, 0);
            }
            digit @ b'0'..=b'9' if digits < 8 => {
                value = value * 10 + i64::from(digit - b'0');
                digits += 1;
            }
            _ => return None,
        }
        at += 1;
    }
    if !valid(segment, digits) || (segment < 2 && at < text.len()) {
        return None;
    }
    segments[segment] = value;
    i32::try_from(days_of(sign * segments[0], segments[1], segments[2])?).ok()
}

/// Reads a date as Spark's JSON reader does without a format: also with `GMT` in it, and a bare number as days since the epoch.
pub(crate) fn parse_date_leniently(text: &str) -> Option<i32> {
    parse_date(text.as_bytes())
        .or_else(|| text.contains("GMT").then(|| parse_date(text.replace("GMT", "").as_bytes())).flatten())
        .or_else(|| text.parse().ok().and_then(julian_to_gregorian))
}

/// Keeps year, month and day of a date before 1582-10-15 when its number of days was counted in the Julian calendar.
fn julian_to_gregorian(days: i32) -> Option<i32> {
    const GREGORIAN_START: i32 = -141_427;
    if days >= GREGORIAN_START {
        return Some(days);
    }
    // Days since 0000-03-01 in the Julian calendar.
    let since = i64::from(days) + 719_470;
    let era = since.div_euclid(1461);
    let day_of_era = since.rem_euclid(1461);
    let year_of_era = (day_of_era - day_of_era / 1460) / 365;
    let day_of_year = day_of_era - 365 * year_of_era;
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 4 + year_of_era + i64::from(month <= 2);
    // A leap day that the Gregorian calendar lacks becomes the first of March.
    i32::try_from(days_from_civil(year, month, 1) + day - 1).ok()
}

/// Reads a date with a time as Spark's `parseTimestampString`: `2024`, `2024-03-01`, `2024-03-01 12:00`, `2024-03-01T12:00:00.123Z`,
/// `2024-03-01T12:00:00 Europe/Paris`.
///
/// A time without a date, which Spark puts on the current day, is refused: a batch that is read again on another day must give the
/// same rows.
pub(crate) fn parse_local(text: &[u8]) -> Option<Local> {
    let mut text = trim(text);
    let mut sign = 1;
    if let [first @ (b'+' | b'-'), rest @ ..] = text {
        sign = if *first == b'-' { -1 } else { 1 };
        text = rest;
    } else if text.is_empty() {
        return None;
    }
    const YEAR: usize = 0;
    const DAY: usize = 2;
    const HOUR: usize = 3;
    const SECOND: usize = 5;
    const FRACTION: usize = 6;
    const ZONE: usize = 7;
    let valid = |segment: usize, digits: usize| match segment {
        YEAR => (4..=6).contains(&digits),
        FRACTION => true,
        ZONE => digits == 0,
        _ => (1..=2).contains(&digits),
    };
    let mut segments = [1, 1, 1, 0, 0, 0, 0, 0i64];
    let (mut segment, mut digits, mut value) = (YEAR, 0, 0i64);
    let mut zone = None;
    let mut fraction_digits = 0;
    for (at, byte) in text.iter().enumerate() {
        if let b'0'..=b'9' = byte {
            // Digits past the microseconds are cut off.
            if segment != FRACTION || digits < 6 {
                value = value * 10 + i64::from(byte - b'0');
            }
            digits += 1;
            if segment == FRACTION {
                fraction_digits = digits.min(6);
            } else if digits > 6 {
                return None;
            }
            continue;
        }
        let fits = match segment {
            YEAR | 1 => *byte == b'-',
            DAY => matches!(byte, b' ' | b'T'),
            HOUR | 4 => *byte == b':',
            _ => true,
        };
        if !fits || !valid(segment, digits) {
            return None;
        }
        segments[segment] = value;
        (digits, value) = (0, 0);
        if segment < SECOND || (segment == SECOND && *byte == b'.') {
            segment += 1;
        } else {
            segment = ZONE;
            zone = Some(Zone::parse(std::str::from_utf8(&text[at..]).ok()?.trim())?);
            break;
        }
    }
    if !valid(segment, digits) {
        return None;
    }
    segments[segment] = value;
    let [year, month, day, hour, minute, second, fraction, _] = segments;
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    Some(Local {
        days: days_of(sign * year, month, day)?,
        second: hour * 3600 + minute * 60 + second,
        micros: fraction * 10i64.pow(6 - fraction_digits as u32),
        zone,
    })
}

/// Reads a timestamp as Spark's readers do without a format: also with `GMT` in it. Microseconds since the epoch.
pub(crate) fn parse_timestamp(text: &[u8], zone: Zone) -> Option<i64> {
    if let Some(timestamp) = parse_local(text).and_then(|local| local.timestamp(zone)) {
        return Some(timestamp);
    }
    let text = std::str::from_utf8(text).ok()?;
    let without = text.contains("GMT").then(|| text.replace("GMT", ""))?;
    parse_local(without.as_bytes())?.timestamp(zone)
}

/// Reads a timestamp without a time zone. Microseconds since 1970-01-01T00:00:00 on the wall.
pub(crate) fn parse_timestamp_ntz(text: &[u8]) -> Option<i64> {
    parse_local(text)?.timestamp_ntz()
}

/// Reads the one form that machines write, `2024-03-01T12:00:00[.fraction]Z`, fast; remembers the last date, because the next record
/// mostly has the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct TimestampReader {
    date: [u8; 10],
    /// Microseconds since the epoch at the start of `date`.
    midnight: i64,
    known: bool,
}

impl TimestampReader {
    /// `None` where the text has another form; then [`parse_timestamp`] decides.
    #[inline]
    pub(crate) fn read(&mut self, text: &[u8]) -> Option<i64> {
        let date = text.first_chunk::<10>()?;
        let time = text.get(11..)?.first_chunk::<8>()?;
        if !matches!(text[10], b'T' | b' ') {
            return None;
        }
        let seconds = time_of_day(*time)?;
        let micros = match &text[19..] {
            [b'Z'] => 0,
            [b'.', a, b, c, b'Z'] => {
                let (a, b, c) = (a.wrapping_sub(b'0'), b.wrapping_sub(b'0'), c.wrapping_sub(b'0'));
                if a > 9 || b > 9 || c > 9 {
                    return None;
                }
                i64::from(a) * 100_000 + i64::from(b) * 10_000 + i64::from(c) * 1000
            }
            [b'.', fraction @ .., b'Z'] => {
                let mut micros = 0;
                let mut unit = 100_000;
                for digit in fraction {
                    let digit = digit.wrapping_sub(b'0');
                    if digit > 9 {
                        return None;
                    }
                    micros += i64::from(digit) * unit;
                    unit /= 10;
                }
                micros
            }
            _ => return None,
        };
        if *date != self.date || !self.known {
            self.remember(date)?;
        }
        Some(self.midnight + seconds * MICROS_PER_SECOND + micros)
    }

    #[cold]
    fn remember(&mut self, date: &[u8; 10]) -> Option<()> {
        let days = parse_date(date).filter(|_| date[4] == b'-' && date[7] == b'-')?;
        (self.date, self.midnight, self.known) = (*date, i64::from(days) * SECONDS_PER_DAY * MICROS_PER_SECOND, true);
        Some(())
    }
}

/// The second of the day that `12:34:56` is, all eight bytes at once.
#[inline]
fn time_of_day(text: [u8; 8]) -> Option<i64> {
    // What is left of a digit is its value, of a colon zero.
    let values = u64::from_le_bytes(text) ^ u64::from_le_bytes(*b"00:00:00");
    // Sets the highest bit of each byte that is more than it may be: 9 for a digit, 0 for a colon.
    let excess = values.wrapping_add(0x7676_7F76_767F_7676) | values;
    if excess & 0x8080_8080_8080_8080 != 0 {
        return None;
    }
    let [h1, h2, _, m1, m2, _, s1, s2] = values.to_le_bytes();
    let (hour, minute, second) = (h1 * 10 + h2, m1 * 10 + m2, s1 * 10 + s2);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    Some(i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second))
}

#[cfg(test)]
mod tests {
    use chrono::NaiveDate;

    use super::*;

    fn micros(text: &str) -> i64 {
        let time = chrono::DateTime::parse_from_rfc3339(text).unwrap();
        time.timestamp_micros()
    }

    #[test]
    fn timestamps_are_read_as_spark_reads_them() {
        // Recorded with Spark 4.3, session time zone UTC.
        for (text, expected) in [
            ("2024", "2024-01-01T00:00:00Z"),
            ("2024-03", "2024-03-01T00:00:00Z"),
            ("+2024-03-01", "2024-03-01T00:00:00Z"),
            ("0024-03-01", "0024-03-01T00:00:00Z"),
            ("2024-03-01T12", "2024-03-01T12:00:00Z"),
            ("2024-3-1 1:2:3", "2024-03-01T01:02:03Z"),
            ("2024-03-01T12:00:00.", "2024-03-01T12:00:00Z"),
            ("2024-03-01T12:00:00.Z", "2024-03-01T12:00:00Z"),
            ("2024-03-01T12:00:00.1234567891234Z", "2024-03-01T12:00:00.123456Z"),
            ("2024-03-01T12:00:00.5-0800", "2024-03-01T20:00:00.5Z"),
            ("2024-03-01T12:00:00+02", "2024-03-01T10:00:00Z"),
            ("2024-03-01T12:00:00+2", "2024-03-01T10:00:00Z"),
            ("2024-03-01T12:00:00+2:3", "2024-03-01T09:57:00Z"),
            ("2024-03-01T12:00:00+0230", "2024-03-01T09:30:00Z"),
            ("2024-03-01T12:00:00+18:00", "2024-02-29T18:00:00Z"),
            ("2024-03-01T12:00:00+02:30:15", "2024-03-01T09:29:45Z"),
            ("2024-03-01T12:00:00+023015", "2024-03-01T09:29:45Z"),
            ("2024-03-01T12:00:00-00:30", "2024-03-01T12:30:00Z"),
            ("2024-03-01T12:00:00UTC", "2024-03-01T12:00:00Z"),
            ("2024-03-01T12:00:00 UTC+3", "2024-03-01T09:00:00Z"),
            ("2024-03-01T12:00:00GMT-03:30", "2024-03-01T15:30:00Z"),
            ("2024-03-01T12:00:00 GMT+2", "2024-03-01T10:00:00Z"),
            ("GMT2024-03-01", "2024-03-01T00:00:00Z"),
            ("2024-03-01T12:00:00UT", "2024-03-01T12:00:00Z"),
            ("2024-03-01T12:00:00 PST", "2024-03-01T20:00:00Z"),
            ("2024-03-01T12:00:00 EST", "2024-03-01T17:00:00Z"),
            ("2024-03-01T12:00:00 IST", "2024-03-01T06:30:00Z"),
            ("2024-03-01T12:00:00 CET", "2024-03-01T11:00:00Z"),
            ("2024-03-01T12:00:00Europe/Paris", "2024-03-01T11:00:00Z"),
            ("2024-03-10T02:30:00 America/New_York", "2024-03-10T07:30:00Z"),
            ("2024-11-03T01:30:00 America/New_York", "2024-11-03T05:30:00Z"),
            ("2024-03-01T12:00:00 Etc/GMT+5", "2024-03-01T17:00:00Z"),
            ("2024-03-01T12:00:00  +01:00 ", "2024-03-01T11:00:00Z"),
            ("\t2024-03-01\n", "2024-03-01T00:00:00Z"),
            ("2000-02-29", "2000-02-29T00:00:00Z"),
            ("1969-12-31T23:59:59.5Z", "1969-12-31T23:59:59.5Z"),
        ] {
            assert_eq!(parse_timestamp(text.as_bytes(), Zone::UTC), Some(micros(expected)), "{text}");
        }
        assert_eq!(parse_timestamp(b"294247-01-10T04:00:54.775807Z", Zone::UTC), Some(i64::MAX));
        assert_eq!(parse_timestamp(b"-290308-12-21T19:59:05.224192Z", Zone::UTC), Some(i64::MIN));
        for text in [
            "",
            " ",
            "24-03-01",
            "2024-003-01",
            "2024/03/01",
            "2024-03-01t12:00:00",
            "2024-03-01  12:00:00",
            "2024-03-01T",
            "2024-03-01T12:",
            "2024-03-01T12:00:",
            "2024-03-01T12:00Z",
            "2024-03-01T12:00:00+023",
            "2024-03-01T12:00:00+18:01",
            "2024-03-01T12:00:00z",
            "2024-03-01T12:00:00 X/Y",
            "2024-03-01T12:00:00 america/new_york",
            "2024-03-01T23:59:60Z",
            "2024-03-01T23:60:00Z",
            "2024-03-01T24:00:00Z",
            "2024-13-01",
            "2024-00-01",
            "2024-01-00",
            "2023-02-29",
            "1900-02-29",
            "1709294400",
            "294247-01-10T04:00:54.775808Z",
            "-290308-12-21T19:59:05.224191Z",
            "2024-03-01T12:00:00−01:00",
            "12:00:00",
            "T12:00:00",
        ] {
            assert_eq!(parse_timestamp(text.as_bytes(), Zone::UTC), None, "{text}");
        }
    }

    #[test]
    fn the_fast_reader_agrees_with_the_general_one() {
        let mut reader = TimestampReader::default();
        for text in [
            "2024-03-01T12:00:00Z",
            "2024-03-01T23:59:59.999Z",
            "2024-03-02 00:00:00.000001Z",
            "1969-12-31T23:59:59.5Z",
            "2000-02-29T00:00:00.123456789Z",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59.999999Z",
            "2024-03-01T12:00:00.Z",
        ] {
            assert_eq!(reader.read(text.as_bytes()), parse_timestamp(text.as_bytes(), Zone::UTC), "{text}");
            assert!(reader.read(text.as_bytes()).is_some(), "{text}");
        }
        for text in [
            "2024-03-01T12:00:00",
            "2024-03-01T12:00:00+01:00",
            "2024-03-01T12:00:60Z",
            "2024-02-30T12:00:00Z",
            "2024-3-01 12:00:00Z",
            "2024-03-01T12:00:00.1a3Z",
            "2024-03-01T12:00:00.123456aZ",
            "2024-03-01T1a:00:00Z",
            "+2024-03-1T12:00:00Z",
            "2024-03-01T12:00:00.ZZ",
        ] {
            assert_eq!(reader.read(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_time_zone_applies_where_the_text_has_none() {
        let zone = Zone::parse("America/Los_Angeles").unwrap();
        assert_eq!(parse_timestamp(b"2024-03-01 12:00:00", zone), Some(micros("2024-03-01T20:00:00Z")));
        assert_eq!(parse_timestamp(b"2024-03-01 12:00:00Z", zone), Some(micros("2024-03-01T12:00:00Z")));
        assert_eq!(parse_timestamp_ntz(b"2024-03-01 12:00:00.5"), Some(micros("2024-03-01T12:00:00.5Z")));
        assert_eq!(parse_timestamp_ntz(b"2024-03-01T12:00:00Z"), None);
    }

    #[test]
    fn dates_are_read_as_spark_reads_them() {
        let day = |y: i32, m, d| {
            (NaiveDate::from_ymd_opt(y, m, d).unwrap() - NaiveDate::from_ymd_opt(1970, 1, 1).unwrap()).num_days() as i32
        };
        for (text, expected) in [
            ("2024-03-01", day(2024, 3, 1)),
            ("2024-3-1", day(2024, 3, 1)),
            ("2024-03", day(2024, 3, 1)),
            ("2024-03 ", day(2024, 3, 1)),
            ("2024", day(2024, 1, 1)),
            ("+2024-03-01", day(2024, 3, 1)),
            ("-2024-01-01", day(-2024, 1, 1)),
            ("2024-03-01T00:00:00Z", day(2024, 3, 1)),
            ("2024-03-01 abc", day(2024, 3, 1)),
            ("2024-03-01Tabc", day(2024, 3, 1)),
            (" 2024-03-01 ", day(2024, 3, 1)),
            ("GMT2024-01-01", day(2024, 1, 1)),
            ("19783", day(19783, 1, 1)),
            ("-000010", day(-10, 1, 1)),
            ("5881580-07-11", i32::MAX),
            // Bare numbers that are no year are days since the epoch, in the calendar of Java's old classes.
            ("5", 5),
            ("+5", 5),
            ("-15", -15),
            ("99999999", 99_999_999),
            ("2147483647", i32::MAX),
            ("-12345678", day(-31831, 5, 5)),
        ] {
            assert_eq!(parse_date_leniently(text), Some(expected), "{text}");
        }
        for text in [
            "",
            " ",
            "2024-02-30",
            "2024-03-01abc",
            "2024-03 x",
            "03/01/2024",
            "epoch",
            "2024-1-1-1",
            "2024--1",
            "2147483648",
            "5881580-07-12",
            "24-03-01",
        ] {
            assert_eq!(parse_date_leniently(text), None, "{text}");
        }
    }
}
