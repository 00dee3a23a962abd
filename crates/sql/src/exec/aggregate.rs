//! The stateful aggregate: partial aggregates of the batch, spread by key, merged with the state, and what the output mode emits.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions};
use futures::{StreamExt, TryStreamExt, stream};
use perennial_core::plan::OperatorProgress;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use super::merge::{Aggregation, split};
use super::one_input;
use crate::batch::Batch;

/// Rows per batch of the output, at most: the state gives its rows in chunks of any size.
const ROWS_PER_BATCH: usize = 32_768;

/// Per partition of the state the partial aggregates for it, input partition by input partition.
type Exchanged = Vec<Mutex<Vec<RecordBatch>>>;

/// Runs an [`Aggregation`] with one partition per partition of the state.
#[derive(Debug)]
pub(crate) struct StatefulAggregateExec {
    /// The partial aggregation.
    partial: Arc<dyn ExecutionPlan>,
    aggregation: Arc<Aggregation>,
    /// Filled by the partition that is polled first. An error belongs to all partitions.
    exchange: Arc<OnceCell<Result<Exchanged, Arc<DataFusionError>>>>,
    properties: Arc<PlanProperties>,
}

impl StatefulAggregateExec {
    pub(crate) fn new(partial: Arc<dyn ExecutionPlan>, aggregation: Arc<Aggregation>, partitions: usize) -> Self {
        let properties = super::properties(aggregation.result_schema.clone(), partitions);
        Self { partial, aggregation, exchange: Arc::default(), properties }
    }

    pub(crate) fn aggregation(&self) -> &Aggregation {
        &self.aggregation
    }
}

impl DisplayAs for StatefulAggregateExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "StatefulAggregateExec: operator {}", self.aggregation.operator)
    }
}

impl ExecutionPlan for StatefulAggregateExec {
    fn name(&self) -> &str {
        "StatefulAggregateExec"
    }

    one_input!(partial);

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.len() != 1 {
            return internal_err!("StatefulAggregateExec has one input");
        }
        let partitions = self.properties.partitioning.partition_count();
        Ok(Arc::new(Self::new(children.swap_remove(0), self.aggregation.clone(), partitions)))
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
        let (partial, aggregation, exchange) = (self.partial.clone(), self.aggregation.clone(), self.exchange.clone());
        let rows = async move {
            let exchanged = exchange
                .get_or_init(|| async {
                    exchange_partials(partial, aggregation.keys, partitions, context).await.map_err(Arc::new)
                })
                .await;
            let partials = match exchanged {
                Ok(exchanged) => {
                    std::mem::take(&mut *exchanged[partition].lock().unwrap_or_else(PoisonError::into_inner))
                }
                Err(error) => return Err(DataFusionError::Shared(error.clone())),
            };
            let mut progress = OperatorProgress::default();
            let emitted = {
                let mut state = batch.state(aggregation.operator, partition)?;
                aggregation.run(partials, &mut *state, &batch.info, &mut progress)?
            };
            batch.counters.progress(aggregation.operator, |total| {
                total.rows_total += progress.rows_total;
                total.rows_updated += progress.rows_updated;
                total.rows_removed += progress.rows_removed;
                total.rows_dropped_by_watermark += progress.rows_dropped_by_watermark;
                total.memory_bytes += progress.memory_bytes;
            });
            Ok(stream::iter(emitted.into_iter().flat_map(slices)).map(move |rows| aggregation.results(&rows)))
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream::once(rows).try_flatten())))
    }
}

/// The rows in pieces that a sink can take in.
fn slices(rows: RecordBatch) -> impl Iterator<Item = RecordBatch> {
    let count = rows.num_rows();
    (0..count).step_by(ROWS_PER_BATCH).map(move |first| rows.slice(first, ROWS_PER_BATCH.min(count - first)))
}

/// Runs the partial aggregation, each partition on its own task, and spreads what it gives by key. The order of the result does not
/// depend on which task was faster: floating-point sums come out the same when the batch is run again.
async fn exchange_partials(
    partial: Arc<dyn ExecutionPlan>,
    keys: usize,
    partitions: usize,
    context: Arc<TaskContext>,
) -> Result<Exchanged> {
    let inputs = super::partitions(&partial);
    let mut tasks = JoinSet::new();
    for input in 0..inputs {
        let (partial, context) = (partial.clone(), context.clone());
        tasks.spawn(async move {
            let mut parts: Vec<(usize, RecordBatch)> = Vec::new();
            let mut rows = partial.execute(input, context)?;
            while let Some(rows) = rows.next().await {
                parts.extend(split(&rows?, keys, partitions)?);
            }
            Ok::<_, DataFusionError>((input, parts))
        });
    }
    let mut by_input: Vec<Vec<(usize, RecordBatch)>> = vec![Vec::new(); inputs];
    while let Some(done) = tasks.join_next().await {
        let (input, parts) = done.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))??;
        by_input[input] = parts;
    }
    let mut exchanged: Vec<Vec<RecordBatch>> = vec![Vec::new(); partitions];
    for (partition, rows) in by_input.into_iter().flatten() {
        exchanged[partition].push(rows);
    }
    Ok(exchanged.into_iter().map(Mutex::new).collect())
}
