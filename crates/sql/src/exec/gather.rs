//! Joins of streams with tables, and what keeps a plan exact around operators that stop reading early.
//!
//! A batch that is run again must give the same rows in the same order, and each row of a stream must be read: for the account of rows,
//! for the watermark, and because operators below do their work while they are read.

use std::fmt;
use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::joins::{CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PartitionMode};
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions,
};
use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::one_input;
use super::stateful::reads_stream;
use crate::batch::Batch;

/// Makes the table of a join with a stream the side that is read whole, and the stream the one that flows through.
#[derive(Debug)]
pub(crate) struct StreamsFlowThroughJoins;

impl PhysicalOptimizerRule for StreamsFlowThroughJoins {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let [left, right] = node.children()[..] else { return Ok(Transformed::no(node)) };
            if !reads_stream(left) || reads_stream(right) {
                return Ok(Transformed::no(node));
            }
            if let Some(join) = node.downcast_ref::<HashJoinExec>() {
                // NOT IN looks at the NULLs of the right side, which only works this way round.
                if join.null_aware {
                    return Ok(Transformed::no(node));
                }
                return Ok(Transformed::yes(join.swap_inputs(PartitionMode::CollectLeft)?));
            }
            if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() {
                return Ok(Transformed::yes(join.swap_inputs()?));
            }
            if let Some(join) = node.downcast_ref::<CrossJoinExec>() {
                return Ok(Transformed::yes(join.swap_inputs()?));
            }
            Ok(Transformed::no(node))
        })
        .data()
    }

    fn name(&self) -> &str {
        "streams_flow_through_joins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Makes partitions come together in a fixed order, and streams be read to their end.
pub(crate) fn in_order_and_to_the_end(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        if let Some(coalesce) = node.downcast_ref::<CoalescePartitionsExec>()
            && coalesce.fetch().is_none()
        {
            return Ok(Transformed::yes(Arc::new(GatherExec::new(coalesce.input().clone()))));
        }
        let stops_early = node.downcast_ref::<GlobalLimitExec>().is_some()
            || node.downcast_ref::<LocalLimitExec>().is_some()
            || node.downcast_ref::<CoalescePartitionsExec>().is_some()
            || node.downcast_ref::<HashJoinExec>().is_some()
            || node.downcast_ref::<NestedLoopJoinExec>().is_some()
            || node.downcast_ref::<CrossJoinExec>().is_some();
        if !stops_early || !reads_stream(&node) {
            return Ok(Transformed::no(node));
        }
        let children = node
            .children()
            .into_iter()
            .map(|child| match reads_stream(child) {
                true => Arc::new(DrainExec::new(child.clone())) as Arc<dyn ExecutionPlan>,
                false => child.clone(),
            })
            .collect();
        let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        Ok(Transformed::yes(node.replace_children(children, options)?))
    })
    .data()
}

/// Rows that wait per partition: enough that a core does not wait for its neighbour, few enough to stay small.
const BUFFER: usize = 2;

/// Puts partitions one after another into one. They all run at once.
#[derive(Debug)]
pub(crate) struct GatherExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl GatherExec {
    fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = super::properties(input.schema(), 1);
        Self { input, properties }
    }
}

impl DisplayAs for GatherExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "GatherExec")
    }
}

impl ExecutionPlan for GatherExec {
    fn name(&self) -> &str {
        "GatherExec"
    }

    one_input!(input);

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.len() != 1 {
            return internal_err!("GatherExec has one input");
        }
        Ok(Arc::new(Self::new(children.swap_remove(0))))
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let partitions = super::partitions(&self.input);
        if partitions == 1 {
            return self.input.execute(0, context);
        }
        let mut tasks = JoinSet::new();
        let mut receivers = Vec::with_capacity(partitions);
        for partition in 0..partitions {
            let (sender, receiver) = mpsc::channel(BUFFER);
            let mut rows = self.input.execute(partition, context.clone())?;
            tasks.spawn(async move {
                while let Some(rows) = rows.next().await {
                    // A receiver that is gone no longer wants rows.
                    if sender.send(Some(rows)).await.is_err() {
                        return;
                    }
                }
                drop(sender.send(None).await);
            });
            receivers.push(receiver);
        }
        // The tasks end with the stream that holds them.
        let rows = stream::iter(receivers).flat_map(move |receiver| {
            let _ = &tasks;
            stream::unfold(Some(receiver), |receiver| async {
                let mut receiver = receiver?;
                match receiver.recv().await {
                    Some(Some(rows)) => Some((rows, Some(receiver))),
                    Some(None) => None,
                    // The sender is gone and did not say that it was at its end.
                    None => Some((internal_err!("a task of the batch panicked"), None)),
                }
            })
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

/// Lets all rows pass; what is not asked for is read at the end of the batch.
#[derive(Debug)]
pub(crate) struct DrainExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl DrainExec {
    fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = super::properties(input.schema(), super::partitions(&input));
        Self { input, properties }
    }
}

impl DisplayAs for DrainExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "DrainExec")
    }
}

impl ExecutionPlan for DrainExec {
    fn name(&self) -> &str {
        "DrainExec"
    }

    one_input!(input);

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.len() != 1 {
            return internal_err!("DrainExec has one input");
        }
        Ok(Arc::new(Self::new(children.swap_remove(0))))
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch = Batch::of(&context)?;
        let rows = batch.to_be_drained(self.input.execute(partition, context)?);
        let rows = stream::unfold(rows, |rows| async move {
            let next = rows.lock().await.next().await;
            next.map(|next| (next, rows))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}
