//! How a format reads dates and timestamps: by Spark's own rules, or by patterns of the job file.

use perennial_core::error::{Error, Result, class};

use super::pattern::Pattern;
use super::time::{Zone, parse_date, parse_date_leniently, parse_timestamp, parse_timestamp_ntz};

/// The settings of a format for dates and timestamps, ready for use.
#[derive(Debug)]
pub(crate) struct Temporal {
    zone: Zone,
    timestamp: Option<Pattern>,
    timestamp_ntz: Option<Pattern>,
    date: Option<Pattern>,
    /// A bare number is a date, too: days since the epoch (Spark's JSON reader).
    date_from_days: bool,
}

impl Temporal {
    /// Checks the settings: the time zone (UTC when not said) and the patterns.
    pub(crate) fn new(
        zone: Option<&str>,
        timestamp: Option<&str>,
        timestamp_ntz: Option<&str>,
        date: Option<&str>,
        date_from_days: bool,
    ) -> Result<Self> {
        let zone = match zone {
            None => Zone::UTC,
            Some(name) => Zone::parse(name).ok_or_else(|| {
                let what = format!("`time_zone: {name}` is not known; write for example `Europe/Paris` or `+02:00`");
                Error::new(class::CONFIG_INVALID, what)
            })?,
        };
        let pattern = |key: &str, text: Option<&str>| {
            text.map(|text| {
                Pattern::parse(text)
                    .map_err(|what| Error::new(class::CONFIG_INVALID, format!("`{key}: {text}` is no pattern: {what}")))
            })
            .transpose()
        };
        Ok(Self {
            zone,
            timestamp: pattern("timestamp_format", timestamp)?,
            timestamp_ntz: pattern("timestamp_ntz_format", timestamp_ntz)?,
            date: pattern("date_format", date)?,
            date_from_days,
        })
    }

    /// Whether timestamps in ISO form need no pattern.
    #[inline]
    pub(crate) fn timestamp_is_plain(&self) -> bool {
        self.timestamp.is_none()
    }

    /// Microseconds since the epoch.
    pub(crate) fn timestamp(&self, text: &str) -> Option<i64> {
        match &self.timestamp {
            None => parse_timestamp(text.as_bytes(), self.zone),
            Some(pattern) => pattern.read(text)?.timestamp(self.zone),
        }
    }

    /// Microseconds since 1970-01-01T00:00:00 on the wall.
    pub(crate) fn timestamp_ntz(&self, text: &str) -> Option<i64> {
        match &self.timestamp_ntz {
            None => parse_timestamp_ntz(text.as_bytes()),
            Some(pattern) => pattern.read(text)?.timestamp_ntz(),
        }
    }

    /// Days since 1970-01-01.
    pub(crate) fn date(&self, text: &str) -> Option<i32> {
        match &self.date {
            Some(pattern) => i32::try_from(pattern.read(text)?.days).ok(),
            None if self.date_from_days => parse_date_leniently(text),
            None => parse_date(text.as_bytes())
                .or_else(|| text.contains("GMT").then(|| parse_date(text.replace("GMT", "").as_bytes())).flatten()),
        }
    }
}
