//! A batch loop in memory: watermarks, batches without data, and state, as Spark runs them.

use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use futures::{StreamExt, TryStreamExt, stream};
use perennial_core::Result;
use perennial_core::plan::{BatchInfo, BatchState, PlanOutcome, QueryPlan};
use perennial_core::sink::RowStream;
use perennial_core::state::StatePartition;

use super::state::MemoryState;

/// A running query.
pub(crate) struct Loop {
    pub(crate) plan: Arc<dyn QueryPlan>,
    state: BatchState,
    next_batch: u64,
    /// Per input its own watermark, once it gave an event time.
    watermarks: Vec<Option<i64>>,
    /// Watermark of the batch before, and of the next one.
    late_ms: i64,
    pub(crate) watermark_ms: i64,
}

/// One batch that ran.
pub(crate) struct Ran {
    pub(crate) rows: Vec<RecordBatch>,
    pub(crate) outcome: PlanOutcome,
}

impl Loop {
    pub(crate) fn new(plan: Arc<dyn QueryPlan>) -> Self {
        let state = new_state(&*plan);
        let watermarks = vec![None; plan.inputs().len()];
        Self { plan, state, next_batch: 0, watermarks, late_ms: 0, watermark_ms: 0 }
    }

    /// Runs one batch. `inputs[i]` are the streams of input `i`, each a list of batches with the columns of the plan's input.
    pub(crate) async fn batch(&mut self, inputs: Vec<Vec<Vec<RecordBatch>>>) -> Result<Ran> {
        let of_streams = self.plan.inputs().iter().zip(&inputs).filter(|(input, _)| !input.is_static);
        let read: usize = of_streams.flat_map(|(_, rows)| rows.iter().flatten()).map(RecordBatch::num_rows).sum();
        let streams = inputs
            .into_iter()
            .map(|streams| {
                streams
                    .into_iter()
                    .map(|rows| -> RowStream { stream::iter(rows.into_iter().map(Ok)).boxed() })
                    .collect()
            })
            .collect();
        let info = BatchInfo {
            id: self.next_batch,
            timestamp_ms: 1_700_000_000_000 + self.next_batch as i64,
            watermark_ms: self.watermark_ms,
            late_watermark_ms: self.late_ms,
        };
        let execution = self.plan.execute(info, streams, self.state.clone()).await?;
        let rows: Vec<RecordBatch> = execution.rows.try_collect().await?;
        let outcome = (execution.outcome)()?;

        let written: usize = rows.iter().map(RecordBatch::num_rows).sum();
        let kept = if self.plan.state().is_empty() { written as u64 } else { outcome.held };
        assert_eq!(
            read as u64 + outcome.multiplied,
            kept + outcome.filtered + outcome.late,
            "the rows of a batch add up: {outcome:?}"
        );
        for partition in self.state.iter().flatten() {
            assert_eq!(Arc::strong_count(partition), 1, "the plan gives the state back");
        }

        for ((watermark, input), max) in
            self.watermarks.iter_mut().zip(self.plan.inputs()).zip(&outcome.max_event_times)
        {
            if let (Some(delay), Some(max)) = (input.watermark_delay, max) {
                let reached = (max.div_euclid(1_000) - delay / 1_000).max(0);
                *watermark = Some(watermark.map_or(reached, |before| before.max(reached)));
            }
        }
        let of_inputs = self.plan.inputs().iter().zip(&self.watermarks);
        let tracked = of_inputs.filter(|(input, _)| input.watermark_delay.is_some()).map(|(_, w)| w.unwrap_or(0));
        let global = tracked.min().unwrap_or(0);
        self.next_batch += 1;
        self.late_ms = self.watermark_ms;
        self.watermark_ms = self.watermark_ms.max(global);
        Ok(Ran { rows, outcome })
    }

    /// The state, for a batch that the test runs by itself.
    pub(crate) fn state(&self) -> BatchState {
        self.state.clone()
    }

    /// A batch without rows.
    pub(crate) async fn empty_batch(&mut self) -> Result<Ran> {
        self.batch(self.plan.inputs().iter().map(|_| vec![]).collect()).await
    }

    /// Stops and starts again: the state is written out and spread anew.
    pub(crate) fn restart(&mut self) {
        let fresh = new_state(&*self.plan);
        for (operator, spec) in self.plan.state().iter().enumerate() {
            for partition in &self.state[operator] {
                for rows in partition.lock().unwrap().scan().unwrap() {
                    let keys = &rows.columns()[..spec.keys];
                    for (row, to) in
                        self.plan.partition_of(operator, keys, fresh[operator].len()).unwrap().iter().enumerate()
                    {
                        fresh[operator][*to as usize].lock().unwrap().put(&rows.slice(row, 1)).unwrap();
                    }
                }
            }
        }
        self.state = fresh;
    }
}

fn new_state(plan: &dyn QueryPlan) -> BatchState {
    plan.state()
        .iter()
        .map(|spec| {
            (0..plan.parallelism())
                .map(|_| Arc::new(Mutex::new(MemoryState::new(spec))) as Arc<Mutex<dyn StatePartition>>)
                .collect()
        })
        .collect()
}
