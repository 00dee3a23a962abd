//! A point in time in settings.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in time: ISO text (`2026-11-03`, `2026-11-03T12:00:00`, `2026-11-03 12:00:00.5+01:00`; UTC where no offset is given) or
/// milliseconds since the Unix epoch. Holds the milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl FromStr for Timestamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let spaced = text.replacen('T', " ", 1);
        if let Ok(at) = chrono::DateTime::parse_from_rfc3339(text) {
            return Ok(Self(at.timestamp_millis()));
        }
        if let Ok(at) = chrono::DateTime::parse_from_str(&spaced, "%Y-%m-%d %H:%M:%S%.f%#z") {
            return Ok(Self(at.timestamp_millis()));
        }
        for format in ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M"] {
            if let Ok(at) = chrono::NaiveDateTime::parse_from_str(spaced.trim_end_matches('Z'), format) {
                return Ok(Self(at.and_utc().timestamp_millis()));
            }
        }
        if let Ok(day) = text.parse::<chrono::NaiveDate>() {
            return Ok(Self(day.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis()));
        }
        Err(format!("`{text}` is not a point in time: write for example `2026-11-03T12:00:00Z` or `2026-11-03`"))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match chrono::DateTime::from_timestamp_millis(self.0) {
            Some(at) => f.write_str(&at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)),
            None => write!(f, "{} ms", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Timestamp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a point in time (`2026-11-03T12:00:00Z`) or milliseconds since the epoch")
            }

            fn visit_i64<E: de::Error>(self, ms: i64) -> Result<Timestamp, E> {
                Ok(Timestamp(ms))
            }

            fn visit_u64<E: de::Error>(self, ms: u64) -> Result<Timestamp, E> {
                i64::try_from(ms).map(Timestamp).map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "description": "A point in time: ISO text, UTC where no offset is given, or milliseconds since the Unix epoch.",
            "examples": ["2026-11-03T12:00:00Z", "2026-11-03", 1793707200000_i64],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_time_are_read_as_people_write_them() {
        for (text, ms) in [
            ("1970-01-01", 0),
            ("1970-01-02T00:00:00", 86_400_000),
            ("1970-01-01 00:01", 60_000),
            ("1970-01-01T00:00:01.5Z", 1_500),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1970-01-01 01:00:00.25+0100", 250),
        ] {
            assert_eq!(text.parse(), Ok(Timestamp(ms)), "{text}");
            assert_eq!(Timestamp(ms).to_string().parse(), Ok(Timestamp(ms)));
        }
        for wrong in ["", "soon", "1970-13-01", "1970-01-01T25:00:00Z"] {
            assert!(wrong.parse::<Timestamp>().unwrap_err().contains("is not a point in time"), "{wrong}");
        }
        assert_eq!(serde_json::from_str::<Timestamp>("1500").unwrap(), Timestamp(1_500));
        assert!(serde_json::from_str::<Timestamp>("[]").is_err());
    }
}
