//! What one batch hands to the operators of its plan, and what they report back.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use futures::StreamExt;
use futures::stream::Fuse;
use perennial_core::error::Error;
use perennial_core::plan::{BatchInfo, BatchState, OperatorProgress, PlanOutcome};
use perennial_core::sink::RowStream;
use perennial_core::state::StatePartition;

use crate::error::external;

/// The running batch. Operators find it in their task context; the plan itself knows nothing of batches.
pub(crate) struct Batch {
    pub(crate) info: BatchInfo,
    inputs: Vec<Mutex<Vec<Option<RowStream>>>>,
    state: BatchState,
    pub(crate) counters: Counters,
    /// Streams of rows that are read to their end in any case.
    to_drain: Mutex<Vec<ToDrain>>,
}

/// Rows that an operator may not want all of.
pub(crate) type ToDrain = Arc<tokio::sync::Mutex<Fuse<SendableRecordBatchStream>>>;

/// What became of the rows, counted by the operators as they pass.
pub(crate) struct Counters {
    /// Rows read, all inputs together.
    read: AtomicU64,
    /// Rows that reached the sink without having been in state.
    written: AtomicU64,
    /// Rows that reached a first stateful operator and were not late.
    held: AtomicU64,
    /// Rows that reached a first stateful operator late.
    late: AtomicU64,
    /// Rows made out of one, beyond the first.
    multiplied: AtomicU64,
    /// Greatest event time per input; `i64::MIN` where none was seen.
    max_event_times: Vec<AtomicI64>,
    operators: Mutex<Vec<OperatorProgress>>,
}

impl Batch {
    /// The batch with its input streams and state.
    pub(crate) fn new(
        info: BatchInfo,
        inputs: Vec<Vec<RowStream>>,
        state: BatchState,
        operators: Vec<OperatorProgress>,
    ) -> Self {
        let counters = Counters {
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            held: AtomicU64::new(0),
            late: AtomicU64::new(0),
            multiplied: AtomicU64::new(0),
            max_event_times: inputs.iter().map(|_| AtomicI64::new(i64::MIN)).collect(),
            operators: Mutex::new(operators),
        };
        let inputs = inputs.into_iter().map(|streams| Mutex::new(streams.into_iter().map(Some).collect())).collect();
        Self { info, inputs, state, counters, to_drain: Mutex::default() }
    }

    /// The batch that a task works for.
    pub(crate) fn of(context: &TaskContext) -> Result<Arc<Self>> {
        match context.session_config().get_extension::<Self>() {
            Some(batch) => Ok(batch),
            None => internal_err!("a stream's plan is run outside of a batch"),
        }
    }

    /// The batch as an operator sees it whose input's watermark is `shift_ms` ahead of the query's. It is never before the epoch.
    pub(crate) fn info_at(&self, shift_ms: i64) -> BatchInfo {
        BatchInfo {
            watermark_ms: self.info.watermark_ms.saturating_add(shift_ms).max(0),
            late_watermark_ms: self.info.late_watermark_ms.saturating_add(shift_ms).max(0),
            ..self.info
        }
    }

    /// The streams of an input that a partition of its scan reads. Which ones is fixed by their order, so that a batch that is run
    /// again adds up floating-point numbers in the same order.
    pub(crate) fn take_streams(&self, input: usize, partition: usize, partitions: usize) -> Vec<RowStream> {
        let Some(streams) = self.inputs.get(input) else { return Vec::new() };
        lock(streams).iter_mut().skip(partition).step_by(partitions).filter_map(Option::take).collect()
    }

    /// Rows that are read at the end of the batch, as far as they are not read before.
    pub(crate) fn to_be_drained(&self, rows: SendableRecordBatchStream) -> ToDrain {
        let rows: ToDrain = Arc::new(tokio::sync::Mutex::new(rows.fuse()));
        lock(&self.to_drain).push(rows.clone());
        rows
    }

    /// Reads what no operator wanted.
    pub(crate) async fn drain(&self) -> Result<()> {
        // Streams of operators further down were given out later: an operator that is drained asks for their rows itself.
        let to_drain = std::mem::take(&mut *lock(&self.to_drain));
        for rows in to_drain {
            let mut rows = rows.lock().await;
            while rows.next().await.transpose()?.is_some() {}
        }
        Ok(())
    }

    /// Lets go of what has not been read: streams hold the batch, and the batch must not hold them for ever.
    pub(crate) fn forget(&self) {
        lock(&self.to_drain).clear();
    }

    /// One partition of a state.
    pub(crate) fn state(
        &self,
        number: usize,
        partition: usize,
    ) -> Result<MutexGuard<'_, dyn StatePartition + 'static>> {
        let partition_of = self.state.get(number).and_then(|partitions| partitions.get(partition));
        match partition_of {
            // A panic while the state was changed makes it worthless; the batch must not go on with it.
            Some(state) => {
                state.lock().map_err(|_| external(Error::bug(format!("state {number} broke in partition {partition}"))))
            }
            None => internal_err!("state {number} has no partition {partition}"),
        }
    }
}

impl Counters {
    pub(crate) fn read(&self, rows: usize) {
        self.read.fetch_add(rows as u64, Ordering::Relaxed);
    }

    pub(crate) fn written(&self, rows: usize) {
        self.written.fetch_add(rows as u64, Ordering::Relaxed);
    }

    pub(crate) fn held(&self, rows: usize) {
        self.held.fetch_add(rows as u64, Ordering::Relaxed);
    }

    pub(crate) fn late(&self, rows: usize) {
        self.late.fetch_add(rows as u64, Ordering::Relaxed);
    }

    pub(crate) fn multiplied(&self, rows: usize) {
        self.multiplied.fetch_add(rows as u64, Ordering::Relaxed);
    }

    pub(crate) fn saw_event_time(&self, input: usize, micros: i64) {
        if let Some(max) = self.max_event_times.get(input) {
            max.fetch_max(micros, Ordering::Relaxed);
        }
    }

    /// Adds what an operator did in one partition.
    pub(crate) fn progress(&self, operator: usize, of_partition: &OperatorProgress) {
        if let Some(total) = lock(&self.operators).get_mut(operator) {
            total.rows_total += of_partition.rows_total;
            total.rows_updated += of_partition.rows_updated;
            total.rows_removed += of_partition.rows_removed;
            total.rows_dropped_by_watermark += of_partition.rows_dropped_by_watermark;
            total.rows_dropped_duplicate += of_partition.rows_dropped_duplicate;
            total.memory_bytes += of_partition.memory_bytes;
        }
    }

    /// The outcome of a batch whose output is drained. Rows that were neither written nor held nor late were filtered: every row has
    /// exactly one of these ends, and rows that the query made count as read. `expands` says that the plan has an operator (explode)
    /// whose further rows only show in the sum; `stateful`, that rows which reached the sink went past all state.
    pub(crate) fn outcome(&self, expands: bool, stateful: bool) -> Result<PlanOutcome> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        let (held, late, mut multiplied) = (count(&self.held), count(&self.late), count(&self.multiplied));
        let written = count(&self.written);
        if expands {
            multiplied = multiplied.max((written + held + late).saturating_sub(count(&self.read)));
        }
        let Some(filtered) = (count(&self.read) + multiplied).checked_sub(written + held + late) else {
            return internal_err!(
                "rows do not add up: {} read, {multiplied} multiplied, but {written} written, {held} held and {late} late",
                count(&self.read)
            );
        };
        let max_event_times = self
            .max_event_times
            .iter()
            .map(|max| Some(max.load(Ordering::Acquire)).filter(|micros| *micros != i64::MIN))
            .collect();
        let held = if stateful { held + written } else { held };
        Ok(PlanOutcome { filtered, late, held, multiplied, max_event_times, operators: lock(&self.operators).clone() })
    }
}

/// Locks what is always whole, also after a panic of another holder.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Turns an error of an input stream into DataFusion's, to come out again as it was.
pub(crate) fn input_error(error: Error) -> DataFusionError {
    external(error)
}
