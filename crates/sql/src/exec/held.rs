//! Counts the rows that go into state, just before they are aggregated.

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions};
use futures::StreamExt;

use super::merge::expired;
use super::one_input;
use crate::batch::Batch;

/// Lets all rows pass and counts them as held or late. Late ones are dropped behind the partial aggregation, where Spark counts their
/// groups.
#[derive(Debug)]
pub(crate) struct HeldExec {
    input: Arc<dyn ExecutionPlan>,
    /// The event time of a row and how many microseconds after it the row's group ends, where rows can be late.
    event: Option<(Arc<dyn PhysicalExpr>, i64)>,
    properties: Arc<PlanProperties>,
}

impl HeldExec {
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>, event: Option<(Arc<dyn PhysicalExpr>, i64)>) -> Self {
        let properties = super::properties(input.schema(), super::partitions(&input));
        Self { input, event, properties }
    }
}

impl DisplayAs for HeldExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "HeldExec")
    }
}

impl ExecutionPlan for HeldExec {
    fn name(&self) -> &str {
        "HeldExec"
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
            return internal_err!("HeldExec has one input");
        }
        Ok(Arc::new(Self::new(children.swap_remove(0), self.event.clone())))
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        match &self.event {
            Some((time, _)) => f(time),
            None => Ok(TreeNodeRecursion::Continue),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch = Batch::of(&context)?;
        let event = self.event.clone();
        let rows = self.input.execute(partition, context)?.map(move |rows| {
            let rows = rows?;
            let late = match &event {
                Some((time, span)) => {
                    let times = time.evaluate(&rows)?.into_array(rows.num_rows())?;
                    expired(&times, *span, batch.info.late_watermark_ms)?.true_count()
                }
                None => 0,
            };
            batch.counters.late(late);
            batch.counters.held(rows.num_rows() - late);
            Ok(rows)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}
