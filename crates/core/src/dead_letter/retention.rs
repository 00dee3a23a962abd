//! Which daily files of dead letters are old enough to go.

use std::time::Duration;

use chrono::{Days, NaiveDate, NaiveTime};

/// The daily file of a time in milliseconds since the epoch.
pub(super) fn file_of(time_ms: i64) -> String {
    let day = chrono::DateTime::from_timestamp_millis(time_ms).unwrap_or_default();
    day.format("failed_batches_%Y%m%d.json").to_string()
}

/// Whether this is the name of a daily file.
pub(super) fn is_daily_file(name: &str) -> bool {
    day_of(name).is_some()
}

/// Whether all that a daily file can have is older than `retention` at `now_ms`, in milliseconds since the epoch. A file goes as a whole:
/// entries are kept for `retention`, and up to a day longer.
pub(super) fn is_expired(name: &str, now_ms: i64, retention: Duration) -> bool {
    let end = day_of(name).and_then(|day| day.checked_add_days(Days::new(1)));
    let retention = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
    end.is_some_and(|end| end.and_time(NaiveTime::MIN).and_utc().timestamp_millis() <= now_ms.saturating_sub(retention))
}

fn day_of(name: &str) -> Option<NaiveDate> {
    let day = name.strip_prefix("failed_batches_")?.strip_suffix(".json")?;
    (day.len() == 8).then(|| NaiveDate::parse_from_str(day, "%Y%m%d").ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_goes_when_its_last_moment_is_old_enough() {
        const DAY_MS: i64 = 86_400_000;
        // 2025-11-21T09:45:30.123
        let written = 1_763_718_330_123;
        let (name, midnight) = (file_of(written), written - written % DAY_MS);
        assert_eq!(name, "failed_batches_20251121.json");
        let month = Duration::from_secs(30 * 86_400);
        for (now, expired) in [
            (written, false),
            (written + 30 * DAY_MS, false),
            (midnight + 31 * DAY_MS - 1, false),
            (midnight + 31 * DAY_MS, true),
            (written + 400 * DAY_MS, true),
        ] {
            assert_eq!(is_expired(&name, now, month), expired, "at {now}");
        }
        assert!(!is_expired(&name, i64::MAX, Duration::MAX), "for ever");
        for other in
            ["failed_batches_2025112.json", "failed_batches_20251321.json", "failed_batches_20251121.json.gz", "x"]
        {
            assert!(!is_daily_file(other) && !is_expired(other, i64::MAX, Duration::ZERO), "{other}");
        }
    }
}
