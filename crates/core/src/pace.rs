//! How many records the next batch reads: as many as the time and the memory for a batch allow.
//!
//! Pure: what a batch took goes in, the next limit comes out. It starts small, so that a backlog after a downtime neither fills the memory nor
//! knocks over the sink, at most doubles from batch to batch, and goes halfway to where it should be once it is near, so that it does not swing.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::HumanDuration;

/// Batches that follow a target time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PaceSettings {
    /// How long a batch should take: its size follows.
    pub target_batch_time: HumanDuration,
    /// A batch has at least this many records, where they are there; the first batch after a start has no more.
    pub min_records: u64,
    /// A batch has at most this many records.
    pub max_records: u64,
}

impl Default for PaceSettings {
    fn default() -> Self {
        Self { target_batch_time: HumanDuration(Duration::from_secs(5)), min_records: 10_000, max_records: 10_000_000 }
    }
}

/// A share of the free memory that a batch may plan with: what it needs per record is only known from those before.
const MEMORY_SHARE: f64 = 0.6;

/// What a batch took.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    /// Records read.
    pub records: u64,
    /// From trigger to commit.
    pub time: Duration,
    /// Bytes of memory that were held at most, above what was held before.
    pub memory: u64,
}

/// The size of the next batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    settings: PaceSettings,
    /// Whether time counts, or memory alone.
    timed: bool,
    limit: u64,
}

impl Pace {
    /// The pace of a query at its start. `None` where nothing asks for one: batches are then as large as the sources' settings let them be.
    pub fn new(settings: Option<PaceSettings>, memory_limited: bool) -> Option<Self> {
        if settings.is_none() && !memory_limited {
            return None;
        }
        let timed = settings.is_some();
        let settings = settings.unwrap_or(PaceSettings { max_records: u64::MAX, ..PaceSettings::default() });
        Some(Self { timed, limit: settings.min_records.max(1), settings })
    }

    /// As at the start: after a time in which nothing was written, what waits is worked off from small batches on.
    pub fn start_again(&mut self) {
        self.limit = self.limit.min(self.settings.min_records.max(1));
    }

    /// At most so many records in the next batch.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// A batch was committed. `free_memory` are the bytes between what is held now and the limit, where there is one.
    pub fn committed(&mut self, took: Took, free_memory: Option<u64>) {
        // Too small a batch says little: its time is that of the start and the end.
        let full = took.records >= self.limit / 2;
        let mut next = self.limit;
        if full {
            let seconds = took.time.as_secs_f64().max(1e-6);
            let wanted = match self.timed {
                true => took.records as f64 * self.settings.target_batch_time.0.as_secs_f64() / seconds,
                false => f64::MAX,
            };
            let limit = self.limit as f64;
            // Halfway when near, at most double or half when far.
            next = ((limit + wanted) / 2.0).clamp(limit / 2.0, limit * 2.0) as u64;
        }
        next = next.clamp(self.settings.min_records.max(1), self.settings.max_records.max(1));
        if let (Some(free), Some(per_record)) = (free_memory, took.memory.checked_div(took.records))
            && per_record > 0
        {
            next = next.min((free as f64 * MEMORY_SHARE) as u64 / per_record);
        }
        self.limit = next.max(1);
    }

    /// A batch did not fit into the memory after so many of its records; whether a smaller one may.
    pub fn did_not_fit(&mut self, read: u64) -> bool {
        let next = (read.min(self.limit) / 2).max(1);
        std::mem::replace(&mut self.limit, next) > next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(records: u64, millis: u64, memory: u64) -> Took {
        Took { records, time: Duration::from_millis(millis), memory }
    }

    /// Limits over so many batches of a query that takes `fixed_ms` and `per_second` records.
    fn run(pace: &mut Pace, batches: usize, fixed_ms: u64, per_second: u64) -> Vec<u64> {
        let batch = |_| {
            let records = pace.limit();
            pace.committed(took(records, fixed_ms + records * 1_000 / per_second, 0), None);
            pace.limit()
        };
        (0..batches).map(batch).collect()
    }

    #[test]
    fn it_ramps_up_to_the_target_and_stays_there() {
        let mut pace = Pace::new(Some(PaceSettings::default()), false).unwrap();
        let limits = run(&mut pace, 40, 100, 100_000);
        assert!(limits[0] <= 20_000, "at most double: {limits:?}");
        let end = &limits[30..];
        assert!(
            end.iter().all(|limit| (480_000..=500_000).contains(limit)),
            "5 seconds at 100,000 a second: {limits:?}"
        );
        // The sink gets four times as slow: no batch after the first few is longer than the target by more than a tenth.
        let limits = run(&mut pace, 20, 100, 25_000);
        assert!(limits[5..].iter().all(|limit| (110_000..=137_500).contains(limit)), "{limits:?}");
    }

    #[test]
    fn floor_and_ceiling_hold() {
        let settings = PaceSettings { min_records: 100, max_records: 1_000, ..PaceSettings::default() };
        let mut pace = Pace::new(Some(settings), false).unwrap();
        assert_eq!(run(&mut pace, 10, 0, 1_000_000).last(), Some(&1_000));
        assert_eq!(run(&mut pace, 10, 60_000, 1_000_000).last(), Some(&100));
    }

    #[test]
    fn batches_that_are_not_full_change_nothing() {
        let mut pace = Pace::new(Some(PaceSettings::default()), false).unwrap();
        pace.committed(took(3, 200, 0), None);
        assert_eq!(pace.limit(), 10_000);
    }

    #[test]
    fn memory_bounds_the_batch() {
        let mut pace = Pace::new(None, true).unwrap();
        for _ in 0..20 {
            let records = pace.limit();
            pace.committed(took(records, 1, records * 1_000), Some(100_000_000));
        }
        assert_eq!(pace.limit(), 60_000);
        assert!(pace.did_not_fit(50_000));
        assert_eq!(pace.limit(), 25_000);
        assert!(pace.did_not_fit(1));
        assert!(!pace.did_not_fit(1), "there is nothing smaller than one record");
    }

    #[test]
    fn without_settings_there_is_no_limit() {
        assert_eq!(Pace::new(None, false), None);
    }
}
