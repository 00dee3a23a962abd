//! Watches the event time of the rows that pass.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::compute::cast;
use datafusion::arrow::compute::max;
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::cast::as_timestamp_microsecond_array;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions};
use futures::StreamExt;

use super::one_input;
use crate::batch::Batch;

/// Reports the greatest event time of input `number`.
#[derive(Debug)]
pub(crate) struct WatermarkExec {
    input: Arc<dyn ExecutionPlan>,
    number: usize,
    column: usize,
    properties: Arc<PlanProperties>,
}

impl WatermarkExec {
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>, number: usize, column: usize) -> Self {
        let properties = super::properties(input.schema(), super::partitions(&input));
        Self { input, number, column, properties }
    }
}

impl DisplayAs for WatermarkExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "WatermarkExec: input {}, column {}", self.number, self.column)
    }
}

impl ExecutionPlan for WatermarkExec {
    fn name(&self) -> &str {
        "WatermarkExec"
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
            return internal_err!("WatermarkExec has one input");
        }
        Ok(Arc::new(Self::new(children.swap_remove(0), self.number, self.column)))
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch = Batch::of(&context)?;
        let (number, column) = (self.number, self.column);
        let rows = self.input.execute(partition, context)?.map(move |rows| {
            let rows = rows?;
            let mut times = rows.column(column).clone();
            if !matches!(times.data_type(), DataType::Timestamp(TimeUnit::Microsecond, _)) {
                times = cast(&times, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
            }
            if let Some(latest) = max(as_timestamp_microsecond_array(&times)?) {
                batch.counters.saw_event_time(number, latest);
            }
            Ok(rows)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}
