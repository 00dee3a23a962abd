//! The contract of the engine: a planned query that runs one batch at a time.

use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;

use crate::error::{Error, Result, class};
use crate::layout::OperatorLayout;
use crate::shape::PlanShape;
use crate::sink::{BatchId, RowStream};
use crate::state::{StatePartition, StateSpec};

/// One appearance of a source in a query. A source that is read twice (a self join) appears twice.
#[derive(Debug, Clone)]
pub struct PlanInput {
    /// Name of the source in the job file.
    pub source: String,
    /// Indexes of the columns of the source's schema that the query uses, ascending: only these are decoded.
    pub columns: Vec<usize>,
    /// Delay of the watermark in microseconds, where the source has one.
    pub watermark_delay: Option<i64>,
    /// Whether it is a bounded table: each batch is given all of its rows, and they count neither as read nor as new.
    pub is_static: bool,
}

/// What the plan is told about the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchInfo {
    /// Number of the batch.
    pub id: BatchId,
    /// `now()` of this batch: the timestamp in the offset log, in milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// The watermark for emission and eviction, in milliseconds since the epoch.
    pub watermark_ms: i64,
    /// The watermark for lateness: the one of the batch before, in milliseconds since the epoch.
    pub late_watermark_ms: i64,
}

/// What a stateful operator did in a batch (Spark's state operator progress).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OperatorProgress {
    /// Name of the operator.
    pub name: String,
    /// Rows in state after the batch.
    pub rows_total: u64,
    /// Rows put in the batch.
    pub rows_updated: u64,
    /// Rows removed in the batch.
    pub rows_removed: u64,
    /// Rows (for an aggregation: groups) dropped as late.
    pub rows_dropped_by_watermark: u64,
    /// Rows dropped as duplicates.
    pub rows_dropped_duplicate: u64,
    /// Bytes of memory of the state after the batch.
    pub memory_bytes: u64,
}

/// What became of the rows that went into the plan; complete once the output is drained.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlanOutcome {
    /// Rows that the query's conditions left out (WHERE, a join's key that is NULL, a NULL event time of a window, a duplicate).
    pub filtered: u64,
    /// Rows that were dropped as late by the first stateful operator they met.
    pub late: u64,
    /// Rows that went into state: an aggregate's group, a join's buffer. With them those that a union lets past all state to the sink.
    pub held: u64,
    /// Rows that the query made out of one, beyond the first (explode, a join with several matches).
    pub multiplied: u64,
    /// Per input of the plan the greatest event time seen, in microseconds since the epoch.
    pub max_event_times: Vec<Option<i64>>,
    /// Stateful operators, from the sink towards the sources.
    pub operators: Vec<OperatorProgress>,
}

impl PlanOutcome {
    /// A record of which the query had made this many late rows, and nothing else, counts no more: it goes to the dead letters.
    pub fn set_aside(&mut self, rows: u64) {
        self.late = self.late.saturating_sub(rows);
        // Of the rows beyond the first only those are counted that the query did not lose elsewhere.
        let further = rows.saturating_sub(1);
        let multiplied = self.multiplied.min(further);
        self.multiplied -= multiplied;
        self.filtered += further - multiplied;
    }
}

/// The running batch: rows to write, and afterwards the outcome.
pub struct Execution {
    /// The result of the batch.
    pub rows: RowStream,
    /// Gives the outcome; call it when `rows` is drained.
    pub outcome: Box<dyn FnOnce() -> Result<PlanOutcome> + Send>,
}

/// State partitions of a batch: per state (in the order of [`QueryPlan::state`]) its partitions. The plan gives them back by
/// dropping its clones.
pub type BatchState = Vec<Vec<Arc<std::sync::Mutex<dyn StatePartition>>>>;

/// A row of a batch that no operator with state took, because it was late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LateRow {
    /// Its [`RowNumber`](crate::isolate::RowNumber).
    pub number: u64,
    /// How many rows the query had made of it, each of which counts as late: one per window.
    pub rows: u64,
    /// The watermark that it missed, in milliseconds since the epoch.
    pub watermark_ms: i64,
}

/// Tells which rows of a batch are late.
#[async_trait]
pub trait FindLate: Send + Sync {
    /// The rows of which nothing was taken but late ones, by their numbers. `inputs[i]` are the streams of rows of input `i`, with the columns of
    /// [`PlanInput::columns`] and, where it is a stream, the numbers of the rows in a last one.
    async fn find(&self, batch: BatchInfo, inputs: Vec<Vec<RowStream>>) -> Result<Vec<LateRow>>;
}

/// A planned query.
#[async_trait]
pub trait QueryPlan: Send + Sync {
    /// What it reads, in the order of Spark's logical plan (left to right): the order of the lines in the offset log.
    fn inputs(&self) -> &[PlanInput];

    /// Columns of the result.
    fn schema(&self) -> SchemaRef;

    /// What it keeps: one entry per state, numbered in this order. A stateful operator with several inputs has several. Empty for a
    /// stateless query.
    fn state(&self) -> &[StateSpec];

    /// What the states mean, operator by operator from the sink towards the sources: for moving them from and to other engines. Empty where
    /// the engine does not say.
    fn layout(&self) -> Vec<OperatorLayout> {
        Vec::new()
    }

    /// Whether the same input gives the same rows: no `rand()`, no `uuid()`, no order-sensitive aggregate on unordered input.
    fn deterministic(&self) -> bool;

    /// A canonical text of the plan as far as the state depends on it: a checkpoint is only continued by a plan with the same text.
    fn fingerprint(&self) -> String;

    /// What it keeps, for comparing it with another form of the query. Empty where the engine does not say: then no state goes on when the
    /// fingerprint has changed.
    fn shape(&self) -> PlanShape {
        PlanShape::default()
    }

    /// Per state a row with the columns that aggregates have which have seen nothing, where it has such columns.
    fn empty_state(&self) -> Result<Vec<Option<RecordBatch>>> {
        Ok(vec![None; self.state().len()])
    }

    /// The plan for people.
    fn explain(&self) -> String;

    /// Whether a batch without new rows makes sense after the watermark moved (Spark's no-data batch).
    fn wants_no_data_batch(&self) -> bool;

    /// In how many partitions the state is kept and the work is done.
    fn parallelism(&self) -> usize;

    /// To which of `partitions` each key of a state belongs; used to spread restored state. `keys` are the key columns of state number
    /// `state`.
    fn partition_of(&self, state: usize, keys: &[arrow::array::ArrayRef], partitions: usize) -> Result<Vec<u32>>;

    /// What tells which rows of a batch were late.
    ///
    /// # Errors
    /// `StateUnsupported` where that cannot be told.
    async fn late_rows(&self) -> Result<Arc<dyn FindLate>> {
        Err(Error::new(class::STATE_UNSUPPORTED, "it cannot be told which rows of this query are late"))
    }

    /// Runs one batch. `inputs[i]` are the streams of rows of input `i`, with the columns of [`PlanInput::columns`].
    async fn execute(&self, batch: BatchInfo, inputs: Vec<Vec<RowStream>>, state: BatchState) -> Result<Execution>;
}

/// A predicate over rows of a source: an expectation's check.
pub trait Predicate: Send + Sync + std::fmt::Debug {
    /// Indexes of the columns of the source's schema that it reads.
    fn columns(&self) -> &[usize];

    /// True, false or NULL per row. `rows` has all columns that [`Predicate::columns`] names, by the source's names.
    fn evaluate(&self, rows: &RecordBatch) -> Result<BooleanArray>;
}
