//! Types that settings are made of.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration as people write it: `10 minutes`, `30s`, `1 hour 30 minutes`, `500 ms`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(pub Duration);

const UNITS: &[(&[&str], u64)] = &[
    (&["us", "microsecond", "microseconds"], 1),
    (&["ms", "millisecond", "milliseconds"], 1_000),
    (&["s", "sec", "secs", "second", "seconds"], 1_000_000),
    (&["m", "min", "mins", "minute", "minutes"], 60_000_000),
    (&["h", "hr", "hrs", "hour", "hours"], 3_600_000_000),
    (&["d", "day", "days"], 86_400_000_000),
    (&["w", "week", "weeks"], 604_800_000_000),
];

/// Spark's month where it has to be a duration, 31 days, in microseconds.
const MONTH: u64 = 31 * 86_400_000_000;

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| {
            format!("`{text}` is not a duration: {what} (write for example `30s`, `10 minutes` or `1 hour 30 minutes`)")
        };
        let mut rest = text.trim();
        // As people write it in `withWatermark`.
        rest = rest.strip_prefix("interval ").map_or(rest, str::trim_start);
        let mut micros: u64 = 0;
        if rest.is_empty() {
            return Err(wrong("it is empty"));
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let count: u64 = rest[..digits].parse().map_err(|_| wrong("a number is missing"))?;
            rest = rest[digits..].trim_start();
            let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let unit = rest[..letters].to_ascii_lowercase();
            let factor = match UNITS.iter().find(|(names, _)| names.contains(&unit.as_str())) {
                Some((_, factor)) => *factor,
                None if matches!(unit.as_str(), "month" | "months") => MONTH,
                None if unit.is_empty() => return Err(wrong("a unit is missing")),
                None => return Err(wrong("the unit is unknown")),
            };
            micros = count
                .checked_mul(factor)
                .and_then(|part| micros.checked_add(part))
                .ok_or_else(|| wrong("it is too long"))?;
            rest = rest[letters..].trim_start();
        }
        Ok(Self(Duration::from_micros(micros)))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        let (names, factor) = UNITS
            .iter()
            .rev()
            .find(|(_, factor)| micros != 0 && micros.is_multiple_of(u128::from(*factor)))
            .unwrap_or(&UNITS[2]);
        let count = micros / u128::from(*factor);
        write!(f, "{count} {}", if count == 1 { names[names.len() - 2] } else { names[names.len() - 1] })
    }
}

impl fmt::Debug for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for HumanDuration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A duration as people write it: `30s`, `10 minutes`, `1 hour 30 minutes`.",
            "examples": ["30s", "10 minutes", "1 hour 30 minutes"],
        })
    }
}

/// A number of bytes as people write it: `64 MB`, `2 GB`, `512 KiB`. Units with an `i` are powers of 1024, those without powers of 1000.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const BYTE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("kB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("TB", 1_000_000_000_000),
    ("TiB", 1 << 40),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |what: &str| format!("`{text}` is not a size: {what} (write for example `64 MB`, `2 GB` or `512 KiB`)");
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let count: u64 = trimmed[..digits].parse().map_err(|_| wrong("it begins with a whole number"))?;
        let unit = trimmed[digits..].trim();
        let (_, factor) = BYTE_UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .ok_or_else(|| wrong(if unit.is_empty() { "a unit is missing" } else { "the unit is unknown" }))?;
        count.checked_mul(*factor).map(Self).ok_or_else(|| wrong("it is too large"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, factor): &&(&str, u64)| self.0 != 0 && self.0.is_multiple_of(*factor);
        let (unit, factor) = BYTE_UNITS.iter().rev().find(fits).unwrap_or(&BYTE_UNITS[0]);
        write!(f, "{} {unit}", self.0 / factor)
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A number of bytes as people write it: `64 MB`, `2 GB`, `512 KiB`.",
            "examples": ["64 MB", "2 GB"],
        })
    }
}

/// A value that never shows: in logs, errors, dead letters and the API it is `***`.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one who needs it to connect.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A secret; write `${VAR}` or `${file:/path}` rather than the secret itself. It is never shown.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, micros, shown) in [
            ("10 minutes", 600_000_000, "10 minutes"),
            ("30s", 30_000_000, "30 seconds"),
            ("1 hour 30 minutes", 5_400_000_000, "90 minutes"),
            ("500ms", 500_000, "500 milliseconds"),
            ("0 seconds", 0, "0 seconds"),
            ("1 day", 86_400_000_000, "1 day"),
        ] {
            let parsed: HumanDuration = text.parse().unwrap();
            assert_eq!(parsed.0, Duration::from_micros(micros), "{text}");
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(parsed.to_string().parse::<HumanDuration>().unwrap(), parsed);
        }
        for wrong in ["", "10", "minutes", "10 parsecs", "-5 s", "99999999999999999999 s", "9999999999999 weeks"] {
            let error = wrong.parse::<HumanDuration>().unwrap_err();
            assert!(error.contains("is not a duration"), "{wrong}: {error}");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes, shown) in [
            ("64 MB", 64_000_000, "64 MB"),
            ("2GB", 2_000_000_000, "2 GB"),
            ("512 kib", 512 << 10, "512 KiB"),
            ("2048 MiB", 2 << 30, "2 GiB"),
            ("0 B", 0, "0 B"),
        ] {
            let parsed: ByteSize = text.parse().unwrap();
            assert_eq!((parsed.0, parsed.to_string().as_str()), (bytes, shown), "{text}");
            assert_eq!(shown.parse::<ByteSize>().unwrap(), parsed);
        }
        for wrong in ["", "64", "MB", "64 parsecs", "-1 MB", "1.5 GB", "99999999999 TB"] {
            let error = wrong.parse::<ByteSize>().unwrap_err();
            assert!(error.contains("is not a size"), "{wrong}: {error}");
        }
    }

    #[test]
    fn secrets_do_not_show() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
    }
}
