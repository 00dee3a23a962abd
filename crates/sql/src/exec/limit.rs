//! LIMIT over a stream: of all rows of all batches the first ones pass.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions};
use futures::{TryStreamExt, stream};
use perennial_core::layout::{Content, OperatorLayout};
use perennial_core::plan::OperatorProgress;
use perennial_core::state::{StatePartition, StateSpec};

use super::exchange::Exchange;
use super::one_input;
use super::stateful::Stateful;
use crate::batch::Batch;
use crate::error::external;
use crate::logical::nodes::Place;

/// Lets `limit` rows pass and remembers how many did. Its state is one row, so it has one partition.
#[derive(Debug)]
pub(crate) struct StatefulLimitExec {
    input: Arc<dyn ExecutionPlan>,
    place: Place,
    limit: u64,
    exchange: Exchange,
    properties: Arc<PlanProperties>,
}

impl StatefulLimitExec {
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>, place: Place, limit: u64) -> Self {
        let properties = super::properties(input.schema(), 1);
        Self { input, place, limit, exchange: Exchange::default(), properties }
    }
}

/// How many rows passed.
fn state_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("rows", DataType::Int64, false)]))
}

impl Stateful for StatefulLimitExec {
    fn operator(&self) -> usize {
        self.place.operator
    }

    fn name(&self) -> &'static str {
        "globalLimit"
    }

    fn state(&self) -> Vec<StateSpec> {
        vec![StateSpec {
            operator: self.place.state,
            name: Stateful::name(self).to_owned(),
            schema: state_schema(),
            keys: 0,
            expiry: None,
        }]
    }

    fn layout(&self) -> OperatorLayout {
        OperatorLayout { name: Stateful::name(self).to_owned(), state: self.place.state, content: Content::Own }
    }

    fn describe(&self) -> Vec<String> {
        vec![]
    }

    fn wants_no_data_batch(&self) -> bool {
        false
    }
}

impl DisplayAs for StatefulLimitExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "StatefulLimitExec: operator {}, {} rows", self.place.operator, self.limit)
    }
}

impl ExecutionPlan for StatefulLimitExec {
    fn name(&self) -> &str {
        "StatefulLimitExec"
    }

    one_input!(input);

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.len() != 1 {
            return internal_err!("StatefulLimitExec has one input");
        }
        Ok(Arc::new(Self::new(children.swap_remove(0), self.place, self.limit)))
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch = Batch::of(&context)?;
        let (input, exchange, place, limit) = (self.input.clone(), self.exchange.clone(), self.place, self.limit);
        let rows = async move {
            // All rows are read, also those that do not pass: each of them has to be accounted for. They are in the order of the input's
            // partitions, so that the same ones pass when the batch is run again.
            let rows = exchange.take(&input, &[], (0, 1), &context).await?;
            let mut progress = OperatorProgress::default();
            let passed = {
                let mut state = batch.state(place.state, 0)?;
                pass(rows, limit, &mut *state, &mut progress)?
            };
            if place.first {
                batch.counters.held(passed.iter().map(RecordBatch::num_rows).sum());
            }
            batch.counters.progress(place.operator, &progress);
            Ok::<_, DataFusionError>(stream::iter(passed.into_iter().map(Ok)))
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream::once(rows).try_flatten())))
    }
}

/// The first of the rows, as many as may still pass.
fn pass(
    rows: Vec<RecordBatch>,
    limit: u64,
    state: &mut dyn StatePartition,
    progress: &mut OperatorProgress,
) -> Result<Vec<RecordBatch>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let (_, stored) = state.get(&[]).map_err(external)?;
    let before = if stored.num_rows() == 0 { 0 } else { stored.column(0).as_primitive::<Int64Type>().value(0) };
    let mut after = before;
    let mut passed = Vec::new();
    for rows in rows {
        let count = usize::try_from(limit - after).unwrap_or(0).min(rows.num_rows());
        if count > 0 {
            after += count as i64;
            passed.push(rows.slice(0, count));
        }
    }
    if after > before {
        let count: ArrayRef = Arc::new(Int64Array::from(vec![after]));
        state.put(&RecordBatch::try_new(state_schema(), vec![count])?).map_err(external)?;
        progress.rows_updated += 1;
    }
    progress.rows_total += state.rows();
    progress.memory_bytes += state.bytes();
    Ok(passed)
}
