//! What the records of each profile look like.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::generator::{Random, mix};

/// What simulated records look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Sensors of a greenhouse: temperature (°C), pH, battery (%) and signal strength (dBm).
    #[default]
    Greenhouse,
    /// Fitness trackers: steps, heart rate (1/min), calories (kcal) and hours slept.
    Health,
    /// Telemetry of mobile devices: battery (%), signal strength (dBm), coordinates (degrees) and duration (ms).
    Device,
    /// Card payments; the amount is decimal text.
    Transactions,
}

impl Profile {
    /// All profiles.
    pub const ALL: [Self; 4] = [Self::Greenhouse, Self::Health, Self::Device, Self::Transactions];

    /// The name in job files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Greenhouse => "greenhouse",
            Self::Health => "health",
            Self::Device => "device",
            Self::Transactions => "transactions",
        }
    }

    /// The schema of the records, as Spark DDL.
    pub fn ddl(self) -> &'static str {
        match self {
            Self::Greenhouse => {
                "sensor_id STRING NOT NULL, event_time TIMESTAMP NOT NULL, temperature DOUBLE, ph DOUBLE, battery INT, signal INT"
            }
            Self::Health => {
                "userId STRING NOT NULL, event_time TIMESTAMP NOT NULL, date DATE, steps INT, heart_rate INT, calories DOUBLE, \
                 sleep_hours DOUBLE"
            }
            Self::Device => {
                "device_id STRING NOT NULL, event_time TIMESTAMP NOT NULL, battery INT, signal_strength INT, latitude DOUBLE, \
                 longitude DOUBLE, duration INT"
            }
            Self::Transactions => {
                "transaction_id STRING, account STRING NOT NULL, event_time TIMESTAMP NOT NULL, amount DECIMAL(12,2), \
                 currency STRING, merchant STRING, category STRING"
            }
        }
    }

    /// The column that names who sent a record.
    pub fn key_column(self) -> &'static str {
        match self {
            Self::Greenhouse => "sensor_id",
            Self::Health => "userId",
            Self::Device => "device_id",
            Self::Transactions => "account",
        }
    }

    /// Appends the value of the key column.
    pub(super) fn write_key(self, key: u32, out: &mut Vec<u8>) {
        match self {
            Self::Greenhouse => out.extend_from_slice(b"sensor-"),
            Self::Health => out.extend_from_slice(b"user-"),
            Self::Device => out.extend_from_slice(b"device-"),
            Self::Transactions => {
                // A fixed number of digits, as account numbers have.
                out.extend_from_slice(b"DE");
                return padded(
                    1_000_000_000 + mix(u64::from(key)) % 1_000 * 1_000_000 + u64::from(key) % 1_000_000,
                    10,
                    out,
                );
            }
        }
        integer(key, out);
    }
}

impl std::str::FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<_> = Self::ALL.iter().map(|p| p.name()).collect();
        Self::ALL
            .into_iter()
            .find(|profile| profile.name() == text)
            .ok_or_else(|| format!("`{text}` is not a profile: there are {}", names.join(", ")))
    }
}

/// The parts of a record that its number and the recipe decide.
pub(super) struct Record {
    pub key: u32,
    pub event_time_ms: i64,
    /// How the event time is shown.
    pub event_time: EventTime,
    /// Whether the key column is there.
    pub with_key: bool,
}

pub(super) enum EventTime {
    Valid,
    /// Something else than a time, in one of three ways.
    Wrong(u8),
    Missing,
}

/// Opens the object with the key and the event time, each followed by a comma.
fn head(profile: Profile, record: &Record, out: &mut Vec<u8>) {
    out.push(b'{');
    if record.with_key {
        out.push(b'"');
        out.extend_from_slice(profile.key_column().as_bytes());
        out.extend_from_slice(b"\":\"");
        profile.write_key(record.key, out);
        out.extend_from_slice(b"\",");
    }
    match record.event_time {
        EventTime::Valid => {
            out.extend_from_slice(b"\"event_time\":\"");
            timestamp(record.event_time_ms, out);
            out.extend_from_slice(b"\",");
        }
        EventTime::Wrong(0) => out.extend_from_slice(b"\"event_time\":\"yesterday\","),
        EventTime::Wrong(1) => out.extend_from_slice(b"\"event_time\":{\"at\":true},"),
        EventTime::Wrong(_) => out.extend_from_slice(b"\"event_time\":[1,2],"),
        EventTime::Missing => {}
    }
}

pub(super) fn greenhouse(record: &Record, random: &mut Random, out: &mut Vec<u8>) {
    let numbers = random.next();
    head(Profile::Greenhouse, record, out);
    // Warmer by day than by night, each sensor at its own place, and some noise; in hundredths.
    let place = i64::from(record.key) * 7919 % 400;
    out.extend_from_slice(b"\"temperature\":");
    hundredths(1800 + place + day_wave(record.event_time_ms, 600) + (numbers % 100) as i64 - 50, out);
    out.extend_from_slice(b",\"ph\":");
    hundredths(550 + place / 5 + (numbers >> 8) as i64 % 40, out);
    out.extend_from_slice(b",\"battery\":");
    integer(battery(record), out);
    out.extend_from_slice(b",\"signal\":-");
    integer(40 + (numbers >> 32) as u32 % 60, out);
    out.push(b'}');
}

pub(super) fn health(record: &Record, random: &mut Random, out: &mut Vec<u8>) {
    let numbers = random.next();
    head(Profile::Health, record, out);
    out.extend_from_slice(b"\"date\":\"");
    date(record.event_time_ms.div_euclid(DAY_MS), out);
    let steps = numbers as u32 % 200;
    out.extend_from_slice(b"\",\"steps\":");
    integer(steps, out);
    out.extend_from_slice(b",\"heart_rate\":");
    integer(55 + record.key % 20 + steps / 2 + (numbers >> 32) as u32 % 10, out);
    out.extend_from_slice(b",\"calories\":");
    hundredths(i64::from(steps) * 4 + 100, out);
    out.extend_from_slice(b",\"sleep_hours\":");
    hundredths(500 + (numbers >> 40) as i64 % 400, out);
    out.push(b'}');
}

pub(super) fn device(record: &Record, random: &mut Random, out: &mut Vec<u8>) {
    let (numbers, place) = (random.next(), mix(u64::from(record.key)));
    head(Profile::Device, record, out);
    out.extend_from_slice(b"\"battery\":");
    integer(battery(record), out);
    out.extend_from_slice(b",\"signal_strength\":-");
    integer(40 + numbers as u32 % 60, out);
    // Each device moves within about a kilometre around its home, in millionths of a degree.
    out.extend_from_slice(b",\"latitude\":");
    millionths((place % 120_000_000) as i64 - 60_000_000 + (numbers >> 16) as i64 % 10_000, out);
    out.extend_from_slice(b",\"longitude\":");
    millionths(((place >> 32) % 340_000_000) as i64 - 170_000_000 + (numbers >> 32) as i64 % 10_000, out);
    out.extend_from_slice(b",\"duration\":");
    integer((numbers >> 40) as u32 % 120_000, out);
    out.push(b'}');
}

pub(super) fn transactions(record: &Record, random: &mut Random, out: &mut Vec<u8>) {
    const MERCHANTS: [(&str, &str); 8] = [
        ("Green Grocer", "groceries"),
        ("City Books", "books"),
        ("North Rail", "travel"),
        ("Harbour Fuel", "fuel"),
        ("Corner Bakery", "groceries"),
        ("Film House", "leisure"),
        ("Blue Pharmacy", "health"),
        ("Old Mill Hotel", "travel"),
    ];
    const CURRENCIES: [&str; 4] = ["EUR", "USD", "GBP", "CHF"];
    let (numbers, id) = (random.next(), random.next());
    head(Profile::Transactions, record, out);
    let (merchant, category) = MERCHANTS[(numbers >> 60) as usize & 7];
    out.extend_from_slice(b"\"transaction_id\":\"tx-");
    out.extend((0..16).rev().map(|digit| b"0123456789abcdef"[(id >> (digit * 4)) as usize & 15]));
    out.extend_from_slice(b"\",\"amount\":\"");
    // Many small amounts and a few large ones.
    hundredths(1 + (((numbers & 0xFFFF) * ((numbers >> 16) & 0xFFFF)) >> 12) as i64, out);
    out.extend_from_slice(b"\",\"currency\":\"");
    out.extend_from_slice(CURRENCIES[record.key as usize & 3].as_bytes());
    out.extend_from_slice(b"\",\"merchant\":\"");
    out.extend_from_slice(merchant.as_bytes());
    out.extend_from_slice(b"\",\"category\":\"");
    out.extend_from_slice(category.as_bytes());
    out.extend_from_slice(b"\"}");
}

/// Falls by one per cent a minute and is charged again, each device at its own time.
fn battery(record: &Record) -> u32 {
    100 - ((record.event_time_ms / 60_000).unsigned_abs() as u32).wrapping_add(record.key.wrapping_mul(13)) % 101
}

const DAY_MS: i64 = 86_400_000;

/// From 0 at midnight to `height` at noon and back.
fn day_wave(ms: i64, height: i64) -> i64 {
    let half = DAY_MS / 2;
    height - (ms.rem_euclid(DAY_MS) - half).abs() * height / half
}

fn integer<I: itoa::Integer>(number: I, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn hundredths(number: i64, out: &mut Vec<u8>) {
    fraction::<2>(number, out);
}

fn millionths(number: i64, out: &mut Vec<u8>) {
    fraction::<6>(number, out);
}

/// `number / 10^DIGITS` with all digits.
fn fraction<const DIGITS: u32>(number: i64, out: &mut Vec<u8>) {
    if number < 0 {
        out.push(b'-');
    }
    let unit = 10_u64.pow(DIGITS);
    integer(number.unsigned_abs() / unit, out);
    out.push(b'.');
    padded(number.unsigned_abs() % unit, DIGITS as usize, out);
}

/// The last `digits` digits of a number.
fn padded(mut number: u64, digits: usize, out: &mut Vec<u8>) {
    let from = out.len();
    out.resize(from + digits, b'0');
    for place in out[from..].iter_mut().rev() {
        *place = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// `2026-01-31T12:34:56.789Z`.
fn timestamp(ms: i64, out: &mut Vec<u8>) {
    date(ms.div_euclid(DAY_MS), out);
    let of_day = ms.rem_euclid(DAY_MS) as u64;
    for (separator, number) in [(b'T', of_day / 3_600_000), (b':', of_day / 60_000 % 60), (b':', of_day / 1000 % 60)] {
        out.push(separator);
        padded(number, 2, out);
    }
    out.push(b'.');
    padded(of_day % 1000, 3, out);
    out.push(b'Z');
}

/// `2026-01-31` from days since the epoch (Howard Hinnant's `civil_from_days`).
fn date(days: i64, out: &mut Vec<u8>) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    padded(year.unsigned_abs(), 4, out);
    out.push(b'-');
    padded(month.unsigned_abs(), 2, out);
    out.push(b'-');
    padded(day.unsigned_abs(), 2, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for ms in [0, 951_782_400_000, 951_868_799_999, 1_767_225_600_000, 4_102_444_799_999, -1, 1_709_164_800_123] {
            let mut shown = Vec::new();
            timestamp(ms, &mut shown);
            let expected = chrono::DateTime::from_timestamp_millis(ms).unwrap();
            let expected = expected.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
            assert_eq!(String::from_utf8(shown).unwrap(), expected);
        }
    }

    #[test]
    fn fractions_have_all_digits() {
        for (number, expected) in [(0, "0.00"), (5, "0.05"), (-5, "-0.05"), (-1234, "-12.34"), (100, "1.00")] {
            let mut shown = Vec::new();
            hundredths(number, &mut shown);
            assert_eq!(String::from_utf8(shown).unwrap(), expected);
        }
    }

    #[test]
    fn profiles_have_names() {
        for profile in Profile::ALL {
            assert_eq!(profile.name().parse(), Ok(profile));
            assert_eq!(serde_json::to_value(profile).unwrap(), profile.name());
        }
        assert!("rocket".parse::<Profile>().unwrap_err().contains("there are greenhouse, health"));
    }
}
