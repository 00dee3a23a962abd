//! Deduplication: of the rows with equal keys the first one passes, over all batches.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use datafusion::arrow::compute::{concat_batches, filter_record_batch, not, take_record_batch};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use datafusion::common::cast::as_timestamp_microsecond_array;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::aggregates::group_values::new_group_values;
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions};
use futures::stream;
use perennial_core::layout::{Content, OperatorLayout};
use perennial_core::plan::{BatchInfo, OperatorProgress};
use perennial_core::state::{StatePartition, StateSpec};

use super::exchange::Exchange;
use super::merge::{expired, expiry_at};
use super::one_input;
use super::stateful::Stateful;
use crate::batch::Batch;
use crate::error::external;
use crate::logical::nodes::Place;

/// Deduplication, apart from any batch. Columns are indexes of the input.
#[derive(Debug, Clone)]
pub(crate) struct Deduplication {
    pub(crate) place: Place,
    /// What tells duplicates.
    pub(crate) keys: Vec<usize>,
    /// The event time, where one reaches the operator: rows behind the watermark are late.
    pub(crate) event: Option<usize>,
    /// For deduplication within the watermark: how long after its event time a row is remembered, in microseconds.
    pub(crate) within: Option<i64>,
}

/// Runs a [`Deduplication`] with one partition per partition of the state.
#[derive(Debug)]
pub(crate) struct DeduplicateExec {
    input: Arc<dyn ExecutionPlan>,
    deduplication: Deduplication,
    state_schema: SchemaRef,
    exchange: Exchange,
    properties: Arc<PlanProperties>,
}

impl DeduplicateExec {
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>, deduplication: Deduplication, partitions: usize) -> Self {
        let properties = super::properties(input.schema(), partitions);
        let expires = || Arc::new(Field::new("expires_at", DataType::Timestamp(TimeUnit::Microsecond, None), false));
        let fields: Vec<FieldRef> = deduplication
            .keys
            .iter()
            .map(|key| input.schema().fields()[*key].clone())
            .chain(deduplication.within.map(|_| expires()))
            .collect();
        let state_schema = Arc::new(Schema::new(fields));
        Self { input, deduplication, state_schema, exchange: Exchange::default(), properties }
    }
}

impl Stateful for DeduplicateExec {
    fn operator(&self) -> usize {
        self.deduplication.place.operator
    }

    fn name(&self) -> &'static str {
        if self.deduplication.within.is_some() { "dedupeWithinWatermark" } else { "dedupe" }
    }

    fn state(&self) -> Vec<StateSpec> {
        vec![StateSpec {
            operator: self.deduplication.place.state,
            name: Stateful::name(self).to_owned(),
            schema: self.state_schema.clone(),
            keys: self.deduplication.keys.len(),
            expiry: self.deduplication.expiry(),
        }]
    }

    fn layout(&self) -> OperatorLayout {
        let state = self.deduplication.place.state;
        OperatorLayout { name: Stateful::name(self).to_owned(), state, content: Content::Deduplication }
    }

    fn describe(&self) -> Vec<String> {
        vec![]
    }

    fn wants_no_data_batch(&self) -> bool {
        // As in Spark also where no row can be late or leave.
        self.deduplication.place.shift_ms.is_some()
    }
}

impl DisplayAs for DeduplicateExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "DeduplicateExec: operator {}", self.deduplication.place.operator)
    }
}

impl ExecutionPlan for DeduplicateExec {
    fn name(&self) -> &str {
        "DeduplicateExec"
    }

    one_input!(input);

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.len() != 1 {
            return internal_err!("DeduplicateExec has one input");
        }
        let partitions = self.properties.partitioning.partition_count();
        Ok(Arc::new(Self::new(children.swap_remove(0), self.deduplication.clone(), partitions)))
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch = Batch::of(&context)?;
        let partitions = self.properties.partitioning.partition_count();
        let (input, deduplication, exchange) = (self.input.clone(), self.deduplication.clone(), self.exchange.clone());
        let (schema, state_schema) = (self.schema(), self.state_schema.clone());
        let rows = async move {
            let rows = exchange.take(&input, &deduplication.keys, (partition, partitions), &context).await?;
            let rows = concat_batches(&schema, &rows)?;
            let mut progress = OperatorProgress::default();
            let place = &deduplication.place;
            let passed = {
                let mut state = batch.state(place.state, partition)?;
                let info = batch.info_at(place.shift_ms.unwrap_or_default());
                deduplication.run(rows, &mut *state, &state_schema, &info, &mut progress)?
            };
            if place.first {
                batch.counters.late(progress.rows_dropped_by_watermark as usize);
                batch.counters.held(passed.num_rows());
            }
            batch.counters.progress(place.operator, &progress);
            Ok(passed)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream::once(rows))))
    }
}

impl Deduplication {
    /// The column of the state by which rows expire.
    fn expiry(&self) -> Option<usize> {
        match self.within {
            Some(_) => Some(self.keys.len()),
            None => self.event.and_then(|event| self.keys.iter().position(|key| *key == event)),
        }
    }

    /// Runs one partition of the state through one batch. `rows` are those of the batch in a fixed order.
    fn run(
        &self,
        rows: RecordBatch,
        state: &mut dyn StatePartition,
        state_schema: &SchemaRef,
        info: &BatchInfo,
        progress: &mut OperatorProgress,
    ) -> Result<RecordBatch> {
        let rows = self.drop_late(rows, info, progress)?;
        let passed = self.pass(&rows, state, state_schema)?;
        progress.rows_dropped_duplicate += (rows.num_rows() - passed.num_rows()) as u64;
        progress.rows_updated += passed.num_rows() as u64;
        if self.expiry().is_some() && self.event.is_some() {
            for gone in state.due(expiry_at(0, info.watermark_ms)).map_err(external)? {
                state.remove(&gone.columns()[..self.keys.len()]).map_err(external)?;
                progress.rows_removed += gone.num_rows() as u64;
            }
        }
        progress.rows_total += state.rows();
        progress.memory_bytes += state.bytes();
        Ok(passed)
    }

    fn drop_late(&self, rows: RecordBatch, info: &BatchInfo, progress: &mut OperatorProgress) -> Result<RecordBatch> {
        let Some(event) = self.event else { return Ok(rows) };
        let late = expired(rows.column(event), 0, info.late_watermark_ms)?;
        let dropped = late.true_count();
        if dropped == 0 {
            return Ok(rows);
        }
        progress.rows_dropped_by_watermark += dropped as u64;
        Ok(filter_record_batch(&rows, &not(&late)?)?)
    }

    /// The rows whose keys are new, each key's first one; they are remembered.
    fn pass(
        &self,
        rows: &RecordBatch,
        state: &mut dyn StatePartition,
        state_schema: &SchemaRef,
    ) -> Result<RecordBatch> {
        if rows.num_rows() == 0 {
            return Ok(rows.clone());
        }
        let keys: Vec<ArrayRef> = self.keys.iter().map(|key| rows.column(*key).clone()).collect();
        let columns: Vec<usize> = (0..keys.len()).collect();
        let mut seen = new_group_values(Arc::new(state_schema.project(&columns)?), &GroupOrdering::None)?;
        let mut groups = Vec::new();
        seen.intern(&keys, &mut groups)?;
        // Groups are numbered in the order of their first rows.
        let mut first_rows: Vec<u32> = Vec::with_capacity(seen.len());
        for (row, group) in groups.into_iter().enumerate() {
            if group == first_rows.len() {
                first_rows.push(row as u32);
            }
        }
        let first_rows = take_record_batch(rows, &UInt32Array::from(first_rows))?;
        let keys: Vec<ArrayRef> = self.keys.iter().map(|key| first_rows.column(*key).clone()).collect();
        let (known, _) = state.get(&keys).map_err(external)?;
        let mut new = vec![true; first_rows.num_rows()];
        known.values().iter().for_each(|row| new[*row as usize] = false);
        let passed = filter_record_batch(&first_rows, &new.into())?;

        let mut columns: Vec<ArrayRef> = self.keys.iter().map(|key| passed.column(*key).clone()).collect();
        if let (Some(within), Some(event)) = (self.within, self.event) {
            columns.push(Arc::new(expires_at(passed.column(event), within)?));
        }
        state.put(&RecordBatch::try_new(state_schema.clone(), columns)?).map_err(external)?;
        Ok(passed)
    }
}

/// When rows are forgotten. A row without an event time counts as one of the epoch.
fn expires_at(times: &ArrayRef, within: i64) -> Result<TimestampMicrosecondArray> {
    let times = as_timestamp_microsecond_array(times)?;
    Ok(times.iter().map(|time| Some(time.unwrap_or(0).saturating_add(within))).collect())
}
