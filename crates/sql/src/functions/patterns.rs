//! Patterns of dates and moments, as Spark takes them: those of Java's `DateTimeFormatter` without week-based years.

use std::fmt::Write;

use chrono::{Datelike, NaiveDate, NaiveDateTime, NaiveTime, Offset, TimeZone, Timelike};
use chrono_tz::OffsetName;
use datafusion::arrow::array::timezone::Tz;
use datafusion::common::{DataFusionError, Result};

use super::cast::read::parse_zone;
use super::cast::time;
use crate::error::failed;

pub(crate) const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
pub(crate) const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// A zone with its name.
pub(crate) struct Zone<'a> {
    pub(crate) name: &'a str,
    pub(crate) tz: Tz,
}

impl<'a> Zone<'a> {
    pub(crate) fn new(name: &'a str) -> Result<Self> {
        Ok(Self { name, tz: name.parse::<Tz>()? })
    }

    fn offset_seconds(&self, utc: NaiveDateTime) -> i32 {
        self.tz.offset_from_utc_datetime(&utc).fix().local_minus_utc()
    }

    /// `CET`, or the offset where the zone has no names.
    fn abbreviation(&self, utc: NaiveDateTime) -> String {
        match self.name.parse::<chrono_tz::Tz>() {
            Ok(zone) => zone.offset_from_utc_datetime(&utc).abbreviation().unwrap_or(self.name).to_owned(),
            Err(_) => self.name.to_owned(),
        }
    }
}

/// Full names of zones, by their abbreviation.
const ZONE_NAMES: &[(&str, &str)] = &[
    ("UTC", "Coordinated Universal Time"),
    ("GMT", "Greenwich Mean Time"),
    ("BST", "British Summer Time"),
    ("WET", "Western European Standard Time"),
    ("WEST", "Western European Summer Time"),
    ("CET", "Central European Standard Time"),
    ("CEST", "Central European Summer Time"),
    ("EET", "Eastern European Standard Time"),
    ("EEST", "Eastern European Summer Time"),
    ("MSK", "Moscow Standard Time"),
    ("EST", "Eastern Standard Time"),
    ("EDT", "Eastern Daylight Time"),
    ("CST", "Central Standard Time"),
    ("CDT", "Central Daylight Time"),
    ("MST", "Mountain Standard Time"),
    ("MDT", "Mountain Daylight Time"),
    ("PST", "Pacific Standard Time"),
    ("PDT", "Pacific Daylight Time"),
    ("IST", "India Standard Time"),
    ("JST", "Japan Standard Time"),
    ("KST", "Korean Standard Time"),
];

#[derive(Debug, Clone, PartialEq)]
enum Item {
    Literal(String),
    /// A letter, so many times.
    Field(char, usize),
    Optional(Vec<Item>),
}

/// A compiled pattern.
#[derive(Debug)]
pub(crate) struct Pattern(Vec<Item>);

fn refused(pattern: &str, condition: &str, what: &str) -> DataFusionError {
    failed(condition, format!("the datetime pattern '{pattern}' {what}"))
}

impl Pattern {
    /// Compiles a pattern, for reading or for writing.
    ///
    /// # Errors
    /// With Spark's condition, where the pattern is none.
    pub(crate) fn compile(pattern: &str, reading: bool) -> Result<Self> {
        let mut stack: Vec<Vec<Item>> = vec![Vec::new()];
        let mut rest = pattern.chars().peekable();
        while let Some(c) = rest.next() {
            let item = match c {
                '\'' => {
                    let mut literal = String::new();
                    loop {
                        match rest.next() {
                            Some('\'') if rest.next_if_eq(&'\'').is_some() => literal.push('\''),
                            Some('\'') => break,
                            Some(c) => literal.push(c),
                            None => {
                                let condition = "INVALID_DATETIME_PATTERN.WITH_SUGGESTION";
                                return Err(refused(pattern, condition, "has a quote that does not end"));
                            }
                        }
                    }
                    Item::Literal(if literal.is_empty() { "'".to_owned() } else { literal })
                }
                '[' => {
                    stack.push(Vec::new());
                    continue;
                }
                ']' => match stack.pop() {
                    Some(items) if !stack.is_empty() => Item::Optional(items),
                    _ => {
                        let condition = "INVALID_DATETIME_PATTERN.WITH_SUGGESTION";
                        return Err(refused(pattern, condition, "has a ] without its ["));
                    }
                },
                '#' | '{' | '}' => {
                    let condition = "INCONSISTENT_BEHAVIOR_CROSS_VERSION.DATETIME_PATTERN_RECOGNITION";
                    return Err(refused(pattern, condition, &format!("has '{c}', which is reserved")));
                }
                c if c.is_ascii_alphabetic() => {
                    let mut count = 1;
                    while rest.next_if_eq(&c).is_some() {
                        count += 1;
                    }
                    Self::check(pattern, c, count, reading)?;
                    Item::Field(c, count)
                }
                c => Item::Literal(c.to_string()),
            };
            if let Some(items) = stack.last_mut() {
                items.push(item);
            }
        }
        // An optional part may end with the pattern.
        while stack.len() > 1 {
            let items = stack.pop().unwrap_or_default();
            if let Some(outer) = stack.last_mut() {
                outer.push(Item::Optional(items));
            }
        }
        Ok(Self(stack.pop().unwrap_or_default()))
    }

    fn check(pattern: &str, letter: char, count: usize, reading: bool) -> Result<()> {
        let (condition, what) = match letter {
            'e' | 'c' => (
                "INCONSISTENT_BEHAVIOR_CROSS_VERSION.DATETIME_WEEK_BASED_PATTERN",
                "has a week-based field, which Spark does not have",
            ),
            'Y' | 'W' | 'w' | 'u' => (
                "INCONSISTENT_BEHAVIOR_CROSS_VERSION.DATETIME_PATTERN_RECOGNITION",
                "has a week-based field, which Spark does not have",
            ),
            'A' | 'B' | 'n' | 'N' | 'p' => ("INVALID_DATETIME_PATTERN.ILLEGAL_CHARACTER", "has an illegal letter"),
            'E' if reading => (
                "INCONSISTENT_BEHAVIOR_CROSS_VERSION.DATETIME_PATTERN_RECOGNITION",
                "has a letter that is only for writing",
            ),
            'F' | 'Q' | 'q' if reading => {
                ("INVALID_DATETIME_PATTERN.ILLEGAL_CHARACTER", "has a letter that is only for writing")
            }
            _ => {
                let longest = match letter {
                    'y' => 6,
                    'M' | 'L' | 'E' | 'Q' | 'q' | 'z' | 'G' => 4,
                    'd' | 'H' | 'h' | 'K' | 'k' | 'm' | 's' => 2,
                    'D' => 3,
                    'S' => 9,
                    'a' | 'F' => 1,
                    'X' | 'x' | 'Z' => 5,
                    'V' if count == 2 => 2,
                    'O' if count == 1 || count == 4 => 4,
                    _ => 0,
                };
                match longest {
                    longest if count <= longest => return Ok(()),
                    0 => ("INVALID_DATETIME_PATTERN.WITH_SUGGESTION", "has a letter without a meaning"),
                    _ => (
                        "INCONSISTENT_BEHAVIOR_CROSS_VERSION.DATETIME_PATTERN_RECOGNITION",
                        "repeats a letter too often",
                    ),
                }
            }
        };
        Err(refused(pattern, condition, &format!("{what}: {}", letter.to_string().repeat(count))))
    }

    /// Writes a local time; `utc` is the same moment.
    pub(crate) fn write(&self, local: NaiveDateTime, utc: NaiveDateTime, zone: &Zone<'_>, out: &mut String) {
        Self::write_items(&self.0, local, utc, zone, out);
    }

    fn write_items(items: &[Item], local: NaiveDateTime, utc: NaiveDateTime, zone: &Zone<'_>, out: &mut String) {
        for item in items {
            match item {
                Item::Literal(text) => out.push_str(text),
                Item::Optional(items) => Self::write_items(items, local, utc, zone, out),
                Item::Field(letter, count) => write_field(*letter, *count, local, utc, zone, out),
            }
        }
    }

    /// Reads a text, all of it. What the pattern does not have is that of 1970-01-01 00:00.
    pub(crate) fn read(&self, text: &str) -> Option<Read> {
        let mut fields = Fields::default();
        let rest = read_items(&self.0, text, &mut fields)?;
        if !rest.is_empty() {
            return None;
        }
        fields.resolve()
    }
}

/// A text that was read: what clocks show, and the zone if the text has one.
pub(crate) struct Read {
    pub(crate) local: NaiveDateTime,
    pub(crate) zone: Option<Tz>,
}

impl Read {
    /// Microseconds since the epoch.
    pub(crate) fn micros(&self, zone: Option<Tz>) -> i64 {
        time::moment(self.local, zone.map(|zone| self.zone.unwrap_or(zone)))
    }
}

fn write_field(
    letter: char,
    count: usize,
    local: NaiveDateTime,
    utc: NaiveDateTime,
    zone: &Zone<'_>,
    out: &mut String,
) {
    let number = |out: &mut String, value: u32| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{value:0count$}");
    };
    let name = |out: &mut String, name: &str| out.push_str(if count < 4 { &name[..3] } else { name });
    let offset = zone.offset_seconds(utc);
    match letter {
        'y' => {
            // Of the era: the year before 1 is 1 BC.
            let year = if local.year() > 0 { local.year() } else { 1 - local.year() };
            if count == 2 {
                let _ = write!(out, "{:02}", year % 100);
            } else {
                if count >= 4 && year >= 10i32.pow(count as u32) {
                    out.push('+');
                }
                let _ = write!(out, "{year:0count$}");
            }
        }
        'M' | 'L' if count > 2 => name(out, MONTHS[local.month0() as usize]),
        'M' | 'L' => number(out, local.month()),
        'd' => number(out, local.day()),
        'D' => number(out, local.ordinal()),
        'E' => name(out, DAYS[local.weekday().num_days_from_monday() as usize]),
        'F' => number(out, (local.day() - 1) % 7 + 1),
        'a' => out.push_str(if local.hour() < 12 { "AM" } else { "PM" }),
        'H' => number(out, local.hour()),
        'h' => number(out, (local.hour() + 11) % 12 + 1),
        'K' => number(out, local.hour() % 12),
        'k' => number(out, (local.hour() + 23) % 24 + 1),
        'm' => number(out, local.minute()),
        's' => number(out, local.second()),
        'S' => {
            let nanos = format!("{:09}", local.nanosecond());
            out.push_str(&nanos[..count.min(9)]);
        }
        'Q' | 'q' => {
            let quarter = local.month0() / 3 + 1;
            match count {
                1 | 2 => number(out, quarter),
                3 => {
                    let _ = write!(out, "Q{quarter}");
                }
                _ => {
                    out.push_str(["1st quarter", "2nd quarter", "3rd quarter", "4th quarter"][quarter as usize - 1]);
                }
            }
        }
        'G' => out.push_str(match (count, local.year() > 0) {
            (4, true) => "Anno Domini",
            (4, false) => "Before Christ",
            (_, true) => "AD",
            (_, false) => "BC",
        }),
        'V' => out.push_str(zone.name),
        'z' => {
            let short = zone.abbreviation(utc);
            let full = ZONE_NAMES.iter().find(|(name, _)| *name == short).map(|(_, full)| *full);
            out.push_str(full.filter(|_| count == 4).unwrap_or(&short));
        }
        'O' => write_gmt(offset, count == 4, out),
        'Z' if count == 4 => write_gmt(offset, true, out),
        'Z' if count < 4 => write_offset(offset, 2, false, out),
        'X' | 'x' | 'Z' => write_offset(offset, count, letter != 'x', out),
        _ => {}
    }
}

/// `GMT+1`, `GMT+01:00`
fn write_gmt(offset: i32, long: bool, out: &mut String) {
    out.push_str("GMT");
    if offset == 0 {
        return;
    }
    let (hours, minutes) = (offset.unsigned_abs() / 3600, offset.unsigned_abs() / 60 % 60);
    let sign = if offset < 0 { '-' } else { '+' };
    let _ = match (long, minutes) {
        (true, minutes) => write!(out, "{sign}{hours:02}:{minutes:02}"),
        (false, 0) => write!(out, "{sign}{hours}"),
        (false, minutes) => write!(out, "{sign}{hours}:{minutes:02}"),
    };
}

/// `+01`, `+0100`, `+01:00`, the latter two with seconds where there are some.
fn write_offset(offset: i32, count: usize, zulu: bool, out: &mut String) {
    if offset == 0 && zulu {
        out.push('Z');
        return;
    }
    let magnitude = offset.unsigned_abs();
    let (hours, minutes, seconds) = (magnitude / 3600, magnitude / 60 % 60, magnitude % 60);
    let sign = if offset < 0 { '-' } else { '+' };
    let colon = if matches!(count, 3 | 5) { ":" } else { "" };
    let _ = write!(out, "{sign}{hours:02}");
    if count > 1 || minutes > 0 {
        let _ = write!(out, "{colon}{minutes:02}");
    }
    if count > 3 && seconds > 0 {
        let _ = write!(out, "{colon}{seconds:02}");
    }
}

#[derive(Default, Clone)]
struct Fields {
    year: Option<i32>,
    before_christ: bool,
    month: Option<u32>,
    day: Option<u32>,
    day_of_year: Option<u32>,
    hour: Option<u32>,
    /// The hour of a half day, from 0 on.
    half_hour: Option<u32>,
    afternoon: Option<bool>,
    minute: u32,
    second: u32,
    nanos: u32,
    zone: Option<Tz>,
}

impl Fields {
    fn resolve(self) -> Option<Read> {
        let year = self.year.unwrap_or(1970);
        let year = if self.before_christ { 1 - year } else { year };
        let date = match self.day_of_year {
            Some(day) => NaiveDate::from_yo_opt(year, day)?,
            None => NaiveDate::from_ymd_opt(year, self.month.unwrap_or(1), self.day.unwrap_or(1))?,
        };
        let hour = match (self.hour, self.half_hour) {
            (Some(hour), _) => hour,
            (None, Some(hour)) => hour + if self.afternoon == Some(true) { 12 } else { 0 },
            (None, None) if self.afternoon == Some(true) => 12,
            (None, None) => 0,
        };
        let clock = NaiveTime::from_hms_nano_opt(hour, self.minute, self.second, self.nanos)?;
        Some(Read { local: date.and_time(clock), zone: self.zone })
    }

    fn set(&mut self, letter: char, count: usize, value: u32) -> Option<()> {
        let within = |range: std::ops::RangeInclusive<u32>| range.contains(&value).then_some(value);
        match letter {
            'y' if count == 2 => self.year = Some(2000 + within(0..=99)? as i32),
            'y' => self.year = Some(value as i32),
            'M' | 'L' => self.month = Some(within(1..=12)?),
            'd' => self.day = Some(within(1..=31)?),
            'D' => self.day_of_year = Some(within(1..=366)?),
            'H' => self.hour = Some(within(0..=23)?),
            'k' => self.hour = Some(within(1..=24)? % 24),
            'h' => self.half_hour = Some(within(1..=12)? % 12),
            'K' => self.half_hour = Some(within(0..=11)?),
            'm' => self.minute = within(0..=59)?,
            's' => self.second = within(0..=59)?,
            _ => return None,
        }
        Some(())
    }
}

fn is_numeric(letter: char, count: usize) -> bool {
    match letter {
        'M' | 'L' => count < 3,
        _ => matches!(letter, 'y' | 'd' | 'D' | 'H' | 'h' | 'K' | 'k' | 'm' | 's' | 'S'),
    }
}

/// The number of digits of a numeric field: at least, at most.
fn digits_of(letter: char, count: usize) -> (usize, usize) {
    match (letter, count) {
        ('S', count) => (1, count),
        ('y', 2) => (2, 2),
        ('y', count) if count >= 4 => (count, count),
        ('y' | 'D', count) => (count, 9),
        (_, 1) => (1, 9),
        (_, count) => (count, count),
    }
}

fn read_items<'t>(items: &[Item], mut text: &'t str, fields: &mut Fields) -> Option<&'t str> {
    for (at, item) in items.iter().enumerate() {
        text = match item {
            Item::Literal(literal) => {
                let start = text.get(..literal.len())?;
                if !start.eq_ignore_ascii_case(literal) {
                    return None;
                }
                &text[literal.len()..]
            }
            Item::Optional(items) => {
                let mut tried = fields.clone();
                match read_items(items, text, &mut tried) {
                    Some(rest) => {
                        *fields = tried;
                        rest
                    }
                    None => text,
                }
            }
            Item::Field(letter, count) if is_numeric(*letter, *count) => {
                let run = text.bytes().take_while(u8::is_ascii_digit).count();
                let (least, most) = digits_of(*letter, *count);
                // Fields that follow at once take their digits first.
                let reserved: usize = items[at + 1..]
                    .iter()
                    .map_while(|item| match item {
                        Item::Field(letter, count) if is_numeric(*letter, *count) => Some(digits_of(*letter, *count).0),
                        _ => None,
                    })
                    .sum();
                let length = run.saturating_sub(reserved).clamp(least, most).min(run);
                if length < least {
                    return None;
                }
                let (digits, rest) = text.split_at(length);
                if *letter == 'S' {
                    fields.nanos = format!("{digits:0<9}").parse().ok()?;
                } else {
                    fields.set(*letter, *count, digits.parse().ok()?)?;
                }
                rest
            }
            Item::Field(letter, count) => read_text(*letter, *count, text, fields)?,
        };
    }
    Some(text)
}

fn read_text<'t>(letter: char, count: usize, text: &'t str, fields: &mut Fields) -> Option<&'t str> {
    let starts = |name: &str| text.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    match letter {
        'M' | 'L' => {
            let (at, length) = MONTHS.iter().enumerate().find_map(|(at, name)| {
                let name = if count == 3 { &name[..3] } else { name };
                starts(name).then_some((at, name.len()))
            })?;
            fields.month = Some(at as u32 + 1);
            Some(&text[length..])
        }
        'a' => {
            let afternoon = starts("PM");
            (afternoon || starts("AM")).then(|| fields.afternoon = Some(afternoon))?;
            Some(&text[2..])
        }
        'G' => {
            let names = if count == 4 { ["Anno Domini", "Before Christ"] } else { ["AD", "BC"] };
            let at = names.iter().position(|name| starts(name))?;
            fields.before_christ = at == 1;
            Some(&text[names[at].len()..])
        }
        'X' | 'x' | 'Z' => {
            if letter != 'x' && (letter == 'X' || count == 5) && starts("Z") {
                fields.zone = parse_zone("Z");
                return Some(&text[1..]);
            }
            let prefix = if letter == 'Z' && count == 4 { 3 } else { 0 };
            let rest = text.get(prefix..)?;
            let sign = rest.starts_with(['+', '-']);
            let digits = |from: usize| {
                rest.get(from..from + 2).filter(|two| sign && two.bytes().all(|byte| byte.is_ascii_digit()))
            };
            let hours = digits(1)?;
            let colon = usize::from(matches!(count, 3 | 5) || letter == 'Z' && count == 4);
            let minutes = match (count, letter) {
                (1, 'X' | 'x') => digits(3),
                _ if colon == 1 && rest.as_bytes().get(3) != Some(&b':') => return None,
                _ => Some(digits(3 + colon)?),
            };
            fields.zone = parse_zone(&format!("{}{hours}:{}", &rest[..1], minutes.unwrap_or("00")));
            fields.zone.as_ref()?;
            Some(&rest[if minutes.is_some() { 5 + colon } else { 3 }..])
        }
        'V' | 'z' | 'O' => {
            let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '+' | '-' | ':');
            let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
            fields.zone = Some(parse_zone(&text[..end])?);
            Some(&text[end..])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_java_does() {
        let read = |pattern: &str, text: &str| {
            Pattern::compile(pattern, true).unwrap().read(text).map(|read| read.local.to_string())
        };
        for (pattern, text, expected) in [
            ("yyyy-MM-dd", "2024-02-29", Some("2024-02-29 00:00:00")),
            ("yyyy-MM-dd", "2024-2-29", None),
            ("yyyy-MM-dd", "2023-02-29", None),
            ("yyyyMMddHHmmss", "20240229101112", Some("2024-02-29 10:11:12")),
            ("yMMdd", "20240229", Some("2024-02-29 00:00:00")),
            ("d/M/yy h:m a", "1/2/24 12:5 am", Some("2024-02-01 00:05:00")),
            ("HH:mm[:ss][.SSS]", "10:11.5", Some("1970-01-01 10:11:00.500")),
            ("yyyy-MM-dd'T'HH", "2024-02-29T25", None),
            ("d MMM yyyy", "3 dec 2020", Some("2020-12-03 00:00:00")),
        ] {
            assert_eq!(read(pattern, text).as_deref(), expected, "{pattern} on {text}");
        }
        assert!(Pattern::compile("YYYY", true).is_err());
        assert!(Pattern::compile("yyyy'", true).is_err());
    }

    #[test]
    fn moments_are_written_as_java_does() {
        let zone = Zone::new("Europe/Berlin").unwrap();
        let utc = NaiveDate::from_ymd_opt(2024, 7, 1).unwrap().and_hms_milli_opt(22, 5, 6, 70).unwrap();
        let local = utc + chrono::TimeDelta::hours(2);
        let written = |pattern: &str| {
            let mut out = String::new();
            Pattern::compile(pattern, false).unwrap().write(local, utc, &zone, &mut out);
            out
        };
        assert_eq!(written("EEE d MMMM yy 'at' h:mm a"), "Tue 2 July 24 at 12:05 AM");
        assert_eq!(written("kk K SSS z VV XXX xx O"), "24 0 070 CEST Europe/Berlin +02:00 +0200 GMT+2");
    }
}
