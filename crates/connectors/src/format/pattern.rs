//! Patterns for dates and timestamps: `yyyy-MM-dd HH:mm:ss[.SSS][XXX]`, with the letters of Spark (Java's `DateTimeFormatter`).

use super::time::{Local, Zone, days_of};

/// A pattern, ready for use.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pattern(Vec<Item>);

#[derive(Debug, Clone, PartialEq)]
enum Item {
    Literal(char),
    Number {
        field: Field,
        min: usize,
        max: usize,
        reserved: usize,
    },
    /// Two digits of a year of this century.
    ShortYear,
    /// The name of a month, or its first three letters.
    MonthName {
        full: bool,
    },
    /// The name of a day of the week, or its first three letters; it must be the date's.
    DayName {
        full: bool,
    },
    AmPm,
    /// Digits behind the point of the second, up to this many.
    Fraction(usize),
    Offset(OffsetForm),
    /// `GMT+8`, `GMT+08:00`.
    GmtOffset,
    ZoneName,
    /// `[…]`.
    Optional(Vec<Item>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Field {
    Year,
    Month,
    Day,
    DayOfYear,
    Hour,
    /// 1 to 24.
    ClockHour,
    /// 0 to 11.
    HourOfHalf,
    /// 1 to 12.
    ClockHourOfHalf,
    Minute,
    Second,
}

impl Field {
    fn range(self) -> std::ops::RangeInclusive<i64> {
        match self {
            Self::Year => 1..=999_999,
            Self::Month => 1..=12,
            Self::Day => 1..=31,
            Self::DayOfYear => 1..=366,
            Self::Hour => 0..=23,
            Self::ClockHour => 1..=24,
            Self::HourOfHalf => 0..=11,
            Self::ClockHourOfHalf => 1..=12,
            Self::Minute | Self::Second => 0..=59,
        }
    }
}

/// `+02`, `+0200`, `+02:00` and so on.
#[derive(Debug, Clone, Copy, PartialEq)]
struct OffsetForm {
    colon: bool,
    minutes: Presence,
    seconds: Presence,
    /// `Z` stands for no offset.
    zulu: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Presence {
    Never,
    Maybe,
    Always,
}

const MONTHS: [&str; 12] = [
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
/// From Thursday, as the epoch began on one.
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

impl Pattern {
    /// Reads a pattern; the error says which part of it is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut chars = text.chars().peekable();
        let mut open: Vec<Vec<Item>> = vec![Vec::new()];
        while let Some(c) = chars.next() {
            let item = match c {
                'a'..='z' | 'A'..='Z' => {
                    let mut count = 1;
                    while chars.next_if_eq(&c).is_some() {
                        count += 1;
                    }
                    letters(c, count)?
                }
                '\'' => {
                    let mut quoted = String::new();
                    loop {
                        match chars.next() {
                            Some('\'') if chars.next_if_eq(&'\'').is_some() => quoted.push('\''),
                            Some('\'') => break,
                            Some(c) => quoted.push(c),
                            None => return Err("the closing quote is missing".to_owned()),
                        }
                    }
                    let quoted = if quoted.is_empty() { "'".to_owned() } else { quoted };
                    if let Some(items) = open.last_mut() {
                        items.extend(quoted.chars().map(Item::Literal));
                    }
                    continue;
                }
                '[' => {
                    open.push(Vec::new());
                    continue;
                }
                ']' => match open.pop() {
                    Some(items) if !open.is_empty() => Item::Optional(items),
                    _ => return Err("`]` without `[`".to_owned()),
                },
                '{' | '}' | '#' => return Err(format!("`{c}` is reserved; write it in single quotes")),
                c => Item::Literal(c),
            };
            if let Some(items) = open.last_mut() {
                items.push(item);
            }
        }
        match (open.pop(), open.is_empty()) {
            (Some(mut items), true) => {
                reserve(&mut items);
                Ok(Self(items))
            }
            _ => Err("`[` without `]`".to_owned()),
        }
    }

    /// Reads a text that has this form from its first to its last character. What the pattern leaves out is 1970-01-01T00:00:00.
    pub(crate) fn read(&self, text: &str) -> Option<Local> {
        let mut reader = Reader { rest: text, found: Found::default() };
        reader.items(&self.0)?;
        if reader.rest.is_empty() { reader.found.resolve() } else { None }
    }
}

fn letters(letter: char, count: usize) -> Result<Item, String> {
    let number = |field| {
        let (min, max) = if count == 1 { (1, 19) } else { (2, 2) };
        Ok(Item::Number { field, min, max, reserved: 0 })
    };
    let maybe = |present: bool| if present { Presence::Maybe } else { Presence::Never };
    match (letter, count) {
        ('y', 2) => Ok(Item::ShortYear),
        ('y', 1 | 3..=6) => Ok(Item::Number { field: Field::Year, min: count, max: 19, reserved: 0 }),
        ('M' | 'L', 1 | 2) => number(Field::Month),
        ('M' | 'L', 3 | 4) => Ok(Item::MonthName { full: count == 4 }),
        ('d', 1 | 2) => number(Field::Day),
        ('D', 1..=3) => {
            Ok(Item::Number { field: Field::DayOfYear, min: count, max: if count == 3 { 3 } else { 19 }, reserved: 0 })
        }
        ('E', 1..=4) => Ok(Item::DayName { full: count == 4 }),
        ('a', 1) => Ok(Item::AmPm),
        ('H', 1 | 2) => number(Field::Hour),
        ('k', 1 | 2) => number(Field::ClockHour),
        ('K', 1 | 2) => number(Field::HourOfHalf),
        ('h', 1 | 2) => number(Field::ClockHourOfHalf),
        ('m', 1 | 2) => number(Field::Minute),
        ('s', 1 | 2) => number(Field::Second),
        ('S', 1..=9) => Ok(Item::Fraction(count)),
        ('X' | 'x', 1..=5) => Ok(Item::Offset(OffsetForm {
            colon: count == 3 || count == 5,
            minutes: if count == 1 { Presence::Maybe } else { Presence::Always },
            seconds: maybe(count >= 4),
            zulu: letter == 'X',
        })),
        ('Z', 1..=3) => Ok(Item::Offset(OffsetForm {
            colon: false,
            minutes: Presence::Always,
            seconds: Presence::Never,
            zulu: false,
        })),
        ('Z', 5) => Ok(Item::Offset(OffsetForm {
            colon: true,
            minutes: Presence::Always,
            seconds: Presence::Maybe,
            zulu: true,
        })),
        ('O', 1 | 4) | ('Z', 4) => Ok(Item::GmtOffset),
        ('V', 2) | ('z', 1..=4) => Ok(Item::ZoneName),
        _ => {
            let letters = String::from(letter).repeat(count);
            Err(format!("`{letters}` is not supported; text belongs in single quotes"))
        }
    }
}

/// Lets a number of any length leave enough digits for the ones of fixed length right behind it (`yyyyMMdd`).
fn reserve(items: &mut [Item]) {
    let mut behind = 0;
    for item in items.iter_mut().rev() {
        match item {
            Item::Number { min, max, reserved, .. } => {
                *reserved = behind;
                behind = if min == max { behind + *max } else { 0 };
            }
            Item::ShortYear => behind += 2,
            Item::Optional(inner) => {
                reserve(inner);
                behind = 0;
            }
            _ => behind = 0,
        }
    }
}

/// The parts that were found in a text.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    year: Option<i64>,
    month: Option<i64>,
    day: Option<i64>,
    day_of_year: Option<i64>,
    day_of_week: Option<i64>,
    hour: Option<i64>,
    hour_of_half: Option<i64>,
    afternoon: bool,
    minute: i64,
    second: i64,
    micros: i64,
    zone: Option<Zone>,
}

impl Found {
    fn resolve(self) -> Option<Local> {
        let year = self.year.unwrap_or(1970);
        let days = match self.day_of_year {
            Some(day) => days_of(year, 1, 1)? + day - 1,
            None => days_of(year, self.month.unwrap_or(1), self.day.unwrap_or(1))?,
        };
        if self.day_of_year.is_some() && days > days_of(year, 12, 31)? {
            return None;
        }
        if self.day_of_week.is_some_and(|day| day != days.rem_euclid(7)) {
            return None;
        }
        let half = if self.afternoon { 12 } else { 0 };
        let hour = self.hour.unwrap_or(self.hour_of_half.unwrap_or(0) + half);
        Some(Local { days, second: hour * 3600 + self.minute * 60 + self.second, micros: self.micros, zone: self.zone })
    }
}

struct Reader<'a> {
    rest: &'a str,
    found: Found,
}

impl Reader<'_> {
    fn items(&mut self, items: &[Item]) -> Option<()> {
        items.iter().try_for_each(|item| self.item(item))
    }

    fn item(&mut self, item: &Item) -> Option<()> {
        match item {
            Item::Literal(expected) => {
                let c = self.rest.chars().next().filter(|c| c.to_lowercase().eq(expected.to_lowercase()))?;
                self.rest = &self.rest[c.len_utf8()..];
            }
            Item::Number { field, min, max, reserved } => {
                // A year may be longer than its pattern when it has a sign.
                let plus = *field == Field::Year && *min > 1 && self.rest.starts_with('+');
                if plus {
                    self.rest = &self.rest[1..];
                }
                let available = self.count_digits();
                let length = available.min(max + reserved).saturating_sub(*reserved).max(*min);
                if available < length || (*field == Field::Year && *min > 1 && plus != (length > *min)) {
                    return None;
                }
                let value: i64 = self.digits(length)?;
                if !field.range().contains(&value) {
                    return None;
                }
                let found = &mut self.found;
                match field {
                    Field::Year => found.year = Some(value),
                    Field::Month => found.month = Some(value),
                    Field::Day => found.day = Some(value),
                    Field::DayOfYear => found.day_of_year = Some(value),
                    Field::Hour => found.hour = Some(value),
                    Field::ClockHour => found.hour = Some(value % 24),
                    Field::HourOfHalf => found.hour_of_half = Some(value),
                    Field::ClockHourOfHalf => found.hour_of_half = Some(value % 12),
                    Field::Minute => found.minute = value,
                    Field::Second => found.second = value,
                }
            }
            Item::ShortYear => self.found.year = Some(2000 + self.digits(2)?),
            Item::MonthName { full } => self.found.month = Some(self.name(&MONTHS, *full)? + 1),
            Item::DayName { full } => self.found.day_of_week = Some(self.name(&DAYS, *full)?),
            Item::AmPm => self.found.afternoon = self.name(&["AM", "PM"], true)? == 1,
            Item::Fraction(max) => {
                let length = self.count_digits().min(*max);
                if length == 0 {
                    return None;
                }
                let value = self.digits(length)?;
                self.found.micros = value * 10i64.pow(9 - length as u32) / 1000;
            }
            Item::Offset(form) => self.found.zone = Some(self.offset(*form)?),
            Item::GmtOffset => {
                self.rest = self.rest.strip_prefix("GMT")?;
                let length =
                    self.rest.find(|c: char| !c.is_ascii_digit() && !"+-:".contains(c)).unwrap_or(self.rest.len());
                self.zone_of(length, |text| if text.is_empty() { Some(Zone::UTC) } else { Zone::parse(text) })?;
            }
            Item::ZoneName => {
                let part = |c: char| c.is_ascii_alphanumeric() || "/_+-:".contains(c);
                let length = self.rest.find(|c| !part(c)).unwrap_or(self.rest.len());
                self.zone_of(length, Zone::parse)?;
            }
            Item::Optional(items) => {
                let before = (self.rest, self.found);
                if self.items(items).is_none() {
                    (self.rest, self.found) = before;
                }
            }
        }
        Some(())
    }

    fn zone_of(&mut self, length: usize, parse: impl Fn(&str) -> Option<Zone>) -> Option<()> {
        self.found.zone = Some(parse(&self.rest[..length])?);
        self.rest = &self.rest[length..];
        Some(())
    }

    fn offset(&mut self, form: OffsetForm) -> Option<Zone> {
        if form.zulu && self.rest.starts_with(['Z', 'z']) {
            self.rest = &self.rest[1..];
            return Some(Zone::UTC);
        }
        let sign = match self.rest.as_bytes().first()? {
            b'+' => 1,
            b'-' => -1,
            _ => return None,
        };
        self.rest = &self.rest[1..];
        let hours = self.digits(2)?;
        let mut part = |presence: Presence| -> Option<Option<i64>> {
            let digits = if form.colon { self.rest.strip_prefix(':') } else { Some(self.rest) };
            let there = digits.is_some_and(|d| d.bytes().take_while(u8::is_ascii_digit).count() >= 2);
            match presence {
                Presence::Never => Some(None),
                Presence::Maybe if !there => Some(None),
                _ => {
                    self.rest = digits?;
                    self.digits(2).map(Some)
                }
            }
        };
        let minutes = part(form.minutes)?;
        let seconds = if minutes.is_some() { part(form.seconds)?.unwrap_or(0) } else { 0 };
        let minutes = minutes.unwrap_or(0);
        let total = hours * 3600 + minutes * 60 + seconds;
        if minutes > 59 || seconds > 59 || total > 18 * 3600 {
            return None;
        }
        i32::try_from(sign * total).ok().map(Zone::Fixed)
    }

    /// The index of the name that comes next; of its first three letters when not `full`.
    fn name(&mut self, names: &[&str], full: bool) -> Option<i64> {
        for (index, name) in names.iter().enumerate() {
            let name = if full { name } else { &name[..3] };
            if self.rest.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)) {
                self.rest = &self.rest[name.len()..];
                return i64::try_from(index).ok();
            }
        }
        None
    }

    fn count_digits(&self) -> usize {
        self.rest.bytes().take_while(u8::is_ascii_digit).count()
    }

    fn digits(&mut self, length: usize) -> Option<i64> {
        if self.count_digits() < length {
            return None;
        }
        let (digits, rest) = self.rest.split_at(length);
        self.rest = rest;
        digits.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pattern: &str, text: &str) -> Option<String> {
        let micros = Pattern::parse(pattern).unwrap().read(text)?.timestamp(Zone::UTC)?;
        let time = chrono::DateTime::from_timestamp_micros(micros).unwrap();
        Some(time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
    }

    #[test]
    fn patterns_are_read_as_java_reads_them() {
        for (pattern, text, expected) in [
            ("yyyy-MM-dd HH:mm:ss", "2024-03-01 12:30:05", "2024-03-01T12:30:05Z"),
            ("yyyy-MM-dd HH:mm:ss.SSS", "2024-03-01 12:30:05.5", "2024-03-01T12:30:05.500Z"),
            ("yyyyMMddHHmmss", "20240301123005", "2024-03-01T12:30:05Z"),
            ("dd/MM/yyyy", "01/03/2024", "2024-03-01T00:00:00Z"),
            ("d.M.yyyy H:m", "1.3.2024 9:05", "2024-03-01T09:05:00Z"),
            ("M/d/yy h:mm a", "3/1/24 9:05 pm", "2024-03-01T21:05:00Z"),
            ("h a", "12 AM", "1970-01-01T00:00:00Z"),
            ("yyyy-MM-dd'T'HH:mm:ss[.SSS][XXX]", "2024-03-01T12:30:05", "2024-03-01T12:30:05Z"),
            ("yyyy-MM-dd'T'HH:mm:ss[.SSS][XXX]", "2024-03-01T12:30:05.25+02:00", "2024-03-01T10:30:05.250Z"),
            ("yyyy-MM-dd'T'HH:mm:ss[.SSS][XXX]", "2024-03-01T12:30:05Z", "2024-03-01T12:30:05Z"),
            ("yyyy-MM-dd HH:mm:ssX", "2024-03-01 12:30:05+02", "2024-03-01T10:30:05Z"),
            ("yyyy-MM-dd HH:mm:ssZ", "2024-03-01 12:30:05-0230", "2024-03-01T15:00:05Z"),
            ("yyyy-MM-dd HH:mm VV", "2024-07-01 12:30 Europe/Paris", "2024-07-01T10:30:00Z"),
            ("yyyy-MM-dd HH:mm O", "2024-07-01 12:30 GMT+2", "2024-07-01T10:30:00Z"),
            ("EEE, dd MMM yyyy HH:mm:ss z", "Fri, 01 Mar 2024 12:30:05 GMT", "2024-03-01T12:30:05Z"),
            ("EEEE d MMMM yyyy", "friday 1 MARCH 2024", "2024-03-01T00:00:00Z"),
            ("yyyy-DDD", "2024-061", "2024-03-01T00:00:00Z"),
            ("yyyy-MM", "2024-03", "2024-03-01T00:00:00Z"),
            ("HH 'o''clock'", "09 o'clock", "1970-01-01T09:00:00Z"),
            ("yyyy-MM-dd HH:mm:ss.SSSSSSSSS", "2024-03-01 12:30:05.123456789", "2024-03-01T12:30:05.123456Z"),
        ] {
            assert_eq!(read(pattern, text).as_deref(), Some(expected), "{pattern}: {text}");
        }
        for (pattern, text) in [
            ("yyyy-MM-dd", "2024-3-01"),
            ("yyyy-MM-dd", "2024-03-01 "),
            ("yyyy-MM-dd", "2024-02-30"),
            ("yyyy-MM-dd", "12024-02-01"),
            ("yyyy-MM-dd", "0000-02-01"),
            ("HH:mm", "24:00"),
            ("yyyy-MM-dd HH:mm:ss.SSS", "2024-03-01 12:30:05.1234"),
            ("yyyy-MM-dd HH:mm:ss.SSS", "2024-03-01 12:30:05."),
            ("EEE dd MMM yyyy", "Mon 01 Mar 2024"),
            ("yyyy-DDD", "2023-366"),
            ("XXX", "+0200"),
            ("VV", "Mars/Base"),
        ] {
            assert_eq!(read(pattern, text), None, "{pattern}: {text}");
        }
    }

    #[test]
    fn bad_patterns_say_why() {
        for (pattern, message) in [
            ("yyyy-MM-dd T", "`T` is not supported; text belongs in single quotes"),
            ("YYYY", "`YYYY` is not supported"),
            ("yyyy[", "`[` without `]`"),
            ("yyyy]", "`]` without `[`"),
            ("yyyy'T", "the closing quote is missing"),
            ("{", "`{` is reserved"),
        ] {
            let error = Pattern::parse(pattern).unwrap_err();
            assert!(error.contains(message), "{pattern}: {error}");
        }
    }
}
