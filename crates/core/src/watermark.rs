//! The event-time watermark: pure bookkeeping.
//!
//! Rules (Spark's): per input it is the greatest event time seen, cut to milliseconds, minus the delay; over several inputs the policy
//! decides; it starts at the epoch, is never negative and never goes back. What a batch sees counts for the next batch.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the watermarks of several sources become one (`spark.sql.streaming.multipleWatermarkPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WatermarkPolicy {
    /// The slowest source decides: nothing is late that one source still holds back.
    #[default]
    Min,
    /// The fastest source decides.
    Max,
}

/// What a restart does to the watermarks of the single inputs. The query's own watermark always survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WatermarkAfterRestart {
    /// They are kept, so that a restart changes no result.
    #[default]
    Keep,
    /// They are forgotten, as Spark does: with several sources the watermark waits until each of them has spoken again.
    Spark,
}

/// The watermarks of a query's inputs and the one that follows from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermarks {
    policy: WatermarkPolicy,
    delays_ms: Vec<Option<i64>>,
    /// Per input, in milliseconds since the epoch; `None` where it has no watermark or has never seen an event time.
    inputs: Vec<Option<i64>>,
    global_ms: i64,
}

impl Watermarks {
    /// The watermarks at the start of a query. `delays` are per input, in microseconds; `None` for inputs without a watermark.
    pub fn new(policy: WatermarkPolicy, delays: impl IntoIterator<Item = Option<i64>>) -> Self {
        let delays_ms: Vec<_> = delays.into_iter().map(|d| d.map(|micros| micros.div_euclid(1000))).collect();
        Self { policy, inputs: vec![None; delays_ms.len()], delays_ms, global_ms: 0 }
    }

    /// Goes on where a commit left off. `inputs` may be shorter than the inputs of the query (a checkpoint that Spark wrote has none).
    pub fn restore(&mut self, global_ms: i64, inputs: &[Option<i64>]) {
        self.global_ms = global_ms;
        for (mine, stored) in self.inputs.iter_mut().zip(inputs) {
            *mine = *stored;
        }
    }

    /// Takes in the greatest event times of a batch, in microseconds since the epoch.
    pub fn observe(&mut self, max_event_times: &[Option<i64>]) {
        for ((mine, delay), seen) in self.inputs.iter_mut().zip(&self.delays_ms).zip(max_event_times) {
            if let (Some(delay), Some(micros)) = (delay, seen) {
                let candidate = micros.div_euclid(1000) - delay;
                *mine = Some(mine.map_or(candidate, |old| old.max(candidate)));
            }
        }
        let tracked = self.delays_ms.iter().zip(&self.inputs).filter(|(d, _)| d.is_some()).map(|(_, i)| i.unwrap_or(0));
        let chosen = match self.policy {
            WatermarkPolicy::Min => tracked.min(),
            WatermarkPolicy::Max => tracked.max(),
        };
        self.global_ms = self.global_ms.max(chosen.unwrap_or(0)).max(0);
    }

    /// The watermark, in milliseconds since the epoch.
    pub fn global_ms(&self) -> i64 {
        self.global_ms
    }

    /// Per input, as [`Watermarks::restore`] takes it.
    pub fn inputs(&self) -> &[Option<i64>] {
        &self.inputs
    }

    /// Whether any input has a watermark.
    pub fn tracks_event_time(&self) -> bool {
        self.delays_ms.iter().any(Option::is_some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000_000;

    #[test]
    fn it_follows_the_maximum_and_never_goes_back() {
        let mut marks = Watermarks::new(WatermarkPolicy::Min, [Some(10 * MINUTE)]);
        marks.observe(&[Some(5 * MINUTE)]);
        assert_eq!(marks.global_ms(), 0, "never negative");
        marks.observe(&[Some(20 * MINUTE + 1_999)]);
        assert_eq!(marks.global_ms(), 600_001, "cut to milliseconds");
        marks.observe(&[Some(15 * MINUTE)]);
        marks.observe(&[None]);
        assert_eq!(marks.global_ms(), 600_001);
    }

    #[test]
    fn several_inputs_follow_the_policy() {
        for (policy, expected) in [(WatermarkPolicy::Min, [0, 60_000]), (WatermarkPolicy::Max, [120_000, 120_000])] {
            let mut marks = Watermarks::new(policy, [Some(0), None, Some(0)]);
            marks.observe(&[Some(2 * MINUTE), Some(9 * MINUTE), None]);
            assert_eq!(marks.global_ms(), expected[0], "an input that never spoke holds it at the epoch");
            marks.observe(&[None, None, Some(MINUTE)]);
            assert_eq!(marks.global_ms(), expected[1]);
        }
    }

    #[test]
    fn a_restart_changes_nothing() {
        let mut marks = Watermarks::new(WatermarkPolicy::Min, [Some(0), Some(0)]);
        marks.observe(&[Some(2 * MINUTE), Some(MINUTE)]);
        let mut again = Watermarks::new(WatermarkPolicy::Min, [Some(0), Some(0)]);
        again.restore(marks.global_ms(), marks.inputs());
        assert_eq!(again, marks);
        again.observe(&[None, Some(3 * MINUTE)]);
        assert_eq!(again.global_ms(), 120_000);
    }
}
