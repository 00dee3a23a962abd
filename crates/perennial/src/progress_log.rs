//! What happens in a job, in the log: a line a batch, failures with what to do about them.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use perennial_core::breaker::{Breaker, BreakerState, Part};
use perennial_core::dead_letter::timestamp_text;
use perennial_core::error::Error;
use perennial_core::policy::Action;
use perennial_core::progress::{BatchReport, Observer, QueryState};
use perennial_core::sink::BatchId;

/// A query, and why it refused records.
type Refused = (String, &'static str);

/// Writes the log of a job.
#[derive(Debug, Default)]
pub struct ProgressLog {
    /// The last state of each query, so that a state is told once.
    states: Mutex<BTreeMap<String, QueryState>>,
    /// The last state of each breaker.
    breakers: Mutex<BTreeMap<(String, Part), BreakerState>>,
    /// When records were last warned of, in microseconds since the epoch, and how many came since.
    refused: Mutex<BTreeMap<Refused, (i64, u64)>>,
}

/// Records that are refused are warned of once in this time, with their number; each batch tells its own in the line that commits it.
const WARN_INTERVAL_MICROS: i64 = 60_000_000;

impl ProgressLog {
    fn warn_of_records(&self, query: &str, report: &BatchReport) {
        let mut refused = self.refused.lock();
        let warned = [("broke an expectation that only warns", report.warned)];
        for (class, records) in report.dead_letters.iter().copied().chain(warned).filter(|(_, records)| *records > 0) {
            let (last, since) = refused.entry((query.to_owned(), class)).or_insert((i64::MIN, 0));
            *since += records;
            if report.finished_at_micros.saturating_sub(*last) >= WARN_INTERVAL_MICROS {
                tracing::warn!(
                    query,
                    batch = report.batch,
                    error_class = class,
                    records = *since,
                    "records were refused"
                );
                (*last, *since) = (report.finished_at_micros, 0);
            }
        }
    }
}

impl Observer for ProgressLog {
    fn committed(&self, query: &str, report: &BatchReport) {
        let counts = &report.counts;
        // A batch without data that emits nothing is only there for the watermark.
        if counts.read == 0 && counts.written == 0 {
            tracing::debug!(query, batch = report.batch, "batch without rows");
            return;
        }
        let millis = report.phases.total().as_millis() as u64;
        let checkpoint_millis = report.phases.checkpoint().as_millis() as u64;
        let watermark = report.next_watermark_ms.map(|ms| timestamp_text(ms * 1000)[..19].to_owned());
        tracing::info!(
            query,
            batch = report.batch,
            read = counts.read,
            written = counts.written,
            held = counts.held,
            filtered = counts.filtered,
            late = counts.late,
            dead_lettered = counts.dead_lettered,
            dropped = counts.dropped,
            watermark,
            millis,
            checkpoint_millis,
            "batch committed"
        );
        self.warn_of_records(query, report);
    }

    fn failed(&self, query: &str, batch: Option<BatchId>, error: &Error, action: Action) {
        let (class, recommendation) = (error.class().code, error.class().recommendation);
        let wait = match action {
            Action::Retry { after: wait } | Action::OpenBreaker { wait } => Some(wait.as_secs_f64()),
            Action::Pause | Action::Stop => None,
        };
        let action = action.describe();
        match wait {
            Some(seconds) => {
                tracing::warn!(query, batch, error_class = class, action, seconds, recommendation, "{error}");
            }
            None => tracing::error!(query, batch, error_class = class, action, recommendation, "{error}"),
        }
    }

    fn breaker(&self, query: &str, part: &Part, breaker: &Breaker) {
        let before = self.breakers.lock().insert((query.to_owned(), part.clone()), breaker.state).unwrap_or_default();
        let Breaker { failures, probes, state, .. } = *breaker;
        if state == before {
            return;
        }
        let part = part.to_string();
        match state {
            BreakerState::Closed => {
                tracing::info!(query, part, probes, "the circuit breaker is closed again: the query goes on")
            }
            BreakerState::HalfOpen => {
                tracing::info!(query, part, probes, "the circuit breaker is half open: one attempt probes")
            }
            BreakerState::Open { until_micros } => {
                let next_probe = timestamp_text(until_micros);
                tracing::warn!(
                    query,
                    part,
                    failures,
                    next_probe,
                    "the circuit breaker is open: nothing is read until the next probe"
                );
            }
        }
    }

    fn state(&self, query: &str, state: QueryState) {
        let before = self.states.lock().insert(query.to_owned(), state.clone());
        if before.as_ref() == Some(&state) {
            return;
        }
        match state {
            QueryState::Started { next_batch, state_rows, took } => {
                let millis = took.as_millis() as u64;
                let how = if next_batch == 0 { "begins" } else { "resumes from its checkpoint" };
                tracing::info!(query, next_batch, state_rows, millis, "{how}");
            }
            QueryState::Paused => tracing::warn!(query, "paused: nothing is read until it is resumed"),
            QueryState::Stopped => tracing::info!(query, "ended"),
            QueryState::Starting
            | QueryState::Idle
            | QueryState::Running
            | QueryState::BackingOff { .. }
            | QueryState::BreakerOpen { .. }
            | QueryState::Failed => {}
        }
    }
}
