//! The event-time watermark: pure bookkeeping.
//!
//! Rules (Spark's): per input it is the greatest event time seen, cut to milliseconds, minus the delay; over several inputs the policy
//! decides; it starts at the epoch, is never negative and never goes back. What a batch sees counts for the next batch.

use std::collections::BTreeMap;

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

/// What happens to rows that come when the watermark has passed their event time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnLate {
    /// They are dropped and counted.
    #[default]
    Drop,
    /// Their records go to the dead letters, whole, with the watermark that they missed.
    DeadLetter,
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

/// How a source's watermark follows from those of its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerPartition {
    /// The column with the event time: an index of the source's schema.
    pub column: usize,
    /// After how long without a record a partition no longer holds the others back, in milliseconds. `None`: never.
    pub idle_after_ms: Option<i64>,
}

/// What is known of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionMark {
    /// The greatest event time seen, in milliseconds since the epoch; `None` where no record had one.
    pub max_ms: Option<i64>,
    /// The timestamp of the last batch that had records of it, in milliseconds since the epoch.
    pub active_ms: i64,
}

/// The partitions of one input, by name.
pub type PartitionMarks = BTreeMap<String, PartitionMark>;

/// The greatest event time that a batch saw in each partition of a source, in microseconds since the epoch; `None` where no record had one.
pub type PartitionTimes = BTreeMap<String, Option<i64>>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Partitions {
    idle_after_ms: Option<i64>,
    marks: PartitionMarks,
}

impl Partitions {
    /// Takes in what a batch saw. The timestamp is that of the batch, which is the same when the batch is run again.
    fn observe(&mut self, timestamp_ms: i64, seen: &PartitionTimes) {
        for (partition, micros) in seen {
            let seen_ms = micros.map(|micros| micros.div_euclid(1000));
            let mark = self.marks.entry(partition.clone()).or_insert(PartitionMark { max_ms: None, active_ms: 0 });
            *mark = PartitionMark { max_ms: mark.max_ms.max(seen_ms), active_ms: timestamp_ms };
        }
    }

    /// The greatest event time that all partitions have reached that are not idle.
    fn reached_ms(&self, timestamp_ms: i64) -> Option<i64> {
        let is_idle =
            |mark: &PartitionMark| self.idle_after_ms.is_some_and(|after| timestamp_ms - mark.active_ms > after);
        self.marks.values().filter(|mark| !is_idle(mark)).filter_map(|mark| mark.max_ms).min()
    }
}

/// The watermarks of a query's inputs and the one that follows from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermarks {
    policy: WatermarkPolicy,
    delays_ms: Vec<Option<i64>>,
    /// Per input, in milliseconds since the epoch; `None` where it has no watermark or has never seen an event time.
    inputs: Vec<Option<i64>>,
    /// Per input, where its watermark follows from those of its partitions.
    partitions: Vec<Option<Partitions>>,
    global_ms: i64,
}

impl Watermarks {
    /// The watermarks at the start of a query. `delays` are per input, in microseconds; `None` for inputs without a watermark.
    pub fn new(policy: WatermarkPolicy, delays: impl IntoIterator<Item = Option<i64>>) -> Self {
        let delays_ms: Vec<_> = delays.into_iter().map(|d| d.map(|micros| micros.div_euclid(1000))).collect();
        let inputs = delays_ms.len();
        Self { policy, inputs: vec![None; inputs], partitions: vec![None; inputs], delays_ms, global_ms: 0 }
    }

    /// The watermark of an input follows from those of its partitions.
    pub fn follow_partitions(&mut self, input: usize, idle_after_ms: Option<i64>) {
        if let Some(partitions) = self.partitions.get_mut(input) {
            *partitions = Some(Partitions { idle_after_ms, marks: PartitionMarks::new() });
        }
    }

    /// Goes on where a commit left off. `inputs` may be shorter than the inputs of the query (a checkpoint that Spark wrote has none).
    pub fn restore(&mut self, global_ms: i64, inputs: &[Option<i64>]) {
        self.global_ms = global_ms;
        for (mine, stored) in self.inputs.iter_mut().zip(inputs) {
            *mine = *stored;
        }
    }

    /// Goes on where a commit left off, per input that follows its partitions.
    pub fn restore_partitions(&mut self, stored: &[PartitionMarks]) {
        for (mine, stored) in self.partitions.iter_mut().zip(stored) {
            if let Some(partitions) = mine {
                partitions.marks.clone_from(stored);
            }
        }
    }

    /// Takes in what a batch of this timestamp saw in the partitions of an input, before [`Watermarks::observe`]. Also a batch without records
    /// of the input counts: its partitions may have become idle.
    pub fn observe_partitions(&mut self, input: usize, timestamp_ms: i64, seen: &PartitionTimes) {
        let Some(Some(partitions)) = self.partitions.get_mut(input) else { return };
        partitions.observe(timestamp_ms, seen);
        if let Some(reached) = partitions.reached_ms(timestamp_ms) {
            self.raise(input, reached);
        }
    }

    fn raise(&mut self, input: usize, reached_ms: i64) {
        if let (Some(mine), Some(Some(delay))) = (self.inputs.get_mut(input), self.delays_ms.get(input)) {
            *mine = (*mine).max(Some(reached_ms - delay));
        }
    }

    /// Takes in the greatest event times of a batch, in microseconds since the epoch. Those of inputs that follow their partitions are passed
    /// over.
    pub fn observe(&mut self, max_event_times: &[Option<i64>]) {
        for (input, seen) in max_event_times.iter().enumerate() {
            if let (Some(micros), Some(None)) = (seen, self.partitions.get(input)) {
                self.raise(input, micros.div_euclid(1000));
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

    /// Per input its partitions, as [`Watermarks::restore_partitions`] takes them. Empty where no input follows its partitions.
    pub fn partitions(&self) -> Vec<PartitionMarks> {
        if self.partitions.iter().all(Option::is_none) {
            return Vec::new();
        }
        let marks = |partitions: &Option<Partitions>| partitions.as_ref().map(|p| p.marks.clone()).unwrap_or_default();
        self.partitions.iter().map(marks).collect()
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

    /// Minutes of each partition, in a batch at a minute.
    fn see(marks: &mut Watermarks, at: i64, seen: &[(&str, i64)]) -> i64 {
        let newest = seen.iter().map(|(_, minute)| minute * MINUTE).max();
        let seen = seen.iter().map(|(partition, minute)| ((*partition).to_owned(), Some(minute * MINUTE))).collect();
        marks.observe_partitions(0, at * 60_000, &seen);
        marks.observe(&[newest]);
        marks.global_ms() / 60_000
    }

    #[test]
    fn the_slowest_partition_that_is_not_idle_decides() {
        let mut marks = Watermarks::new(WatermarkPolicy::Min, [Some(0)]);
        marks.follow_partitions(0, Some(2 * 60_000));
        assert_eq!(see(&mut marks, 100, &[("t-0", 50), ("t-1", 10)]), 10);
        assert_eq!(see(&mut marks, 101, &[("t-0", 60)]), 10);
        assert_eq!(see(&mut marks, 102, &[("t-0", 70)]), 10, "two minutes are not more than two minutes");
        assert_eq!(see(&mut marks, 103, &[("t-0", 71)]), 71, "t-1 is idle");
        assert_eq!(see(&mut marks, 104, &[("t-1", 12), ("t-0", 80)]), 71, "it speaks again, and nothing goes back");
        assert_eq!(see(&mut marks, 105, &[("t-1", 75)]), 75);
        assert_eq!(see(&mut marks, 200, &[]), 75, "all are idle");
        marks.follow_partitions(0, None);
        see(&mut marks, 300, &[("t-0", 90), ("t-1", 80)]);
        assert_eq!(see(&mut marks, 9_000, &[("t-0", 200)]), 80, "without a limit no partition is ever idle");
    }

    #[test]
    fn a_partition_without_event_times_holds_nothing_back() {
        let mut marks = Watermarks::new(WatermarkPolicy::Min, [Some(0)]);
        marks.follow_partitions(0, None);
        marks.observe_partitions(0, 1, &[("a".to_owned(), None), ("b".to_owned(), Some(5 * MINUTE))].into());
        marks.observe(&[Some(5 * MINUTE)]);
        assert_eq!(marks.global_ms(), 5 * 60_000);
    }

    #[test]
    fn a_restart_changes_nothing_about_partitions() {
        let new = || {
            let mut marks = Watermarks::new(WatermarkPolicy::Min, [Some(0)]);
            marks.follow_partitions(0, Some(60_000));
            marks
        };
        let mut marks = new();
        see(&mut marks, 100, &[("t-0", 50), ("t-1", 10)]);
        let mut again = new();
        again.restore(marks.global_ms(), marks.inputs());
        again.restore_partitions(&marks.partitions());
        assert_eq!(again, marks);
        assert_eq!(see(&mut again, 101, &[("t-0", 60)]), 10);
        assert!(Watermarks::new(WatermarkPolicy::Min, [Some(0)]).partitions().is_empty());
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
