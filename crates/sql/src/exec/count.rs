//! Counts rows where they leave the stateless part of a plan: into state, or past all state to the sink.

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions,
};
use futures::StreamExt;

use super::merge::expired;
use super::one_input;
use super::stateful::{is_stateful, reads_stream, stateful};
use crate::batch::Batch;

/// What the rows at a place of the plan count as.
#[derive(Debug, Clone)]
pub(crate) enum Counted {
    /// They go into state. Where they can be late: their event time, and how many microseconds after it their group ends. Late ones
    /// are dropped behind the partial aggregation, where Spark counts their groups.
    Held(Option<(Arc<dyn PhysicalExpr>, i64)>),
    /// They go to the sink beside the rows that come out of state.
    Written,
}

/// Lets all rows pass and counts them.
#[derive(Debug)]
pub(crate) struct CountExec {
    input: Arc<dyn ExecutionPlan>,
    counted: Counted,
    properties: Arc<PlanProperties>,
}

impl CountExec {
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>, counted: Counted) -> Self {
        let properties = super::properties(input.schema(), super::partitions(&input));
        Self { input, counted, properties }
    }
}

impl DisplayAs for CountExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "CountExec")
    }
}

impl ExecutionPlan for CountExec {
    fn name(&self) -> &str {
        "CountExec"
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
            return internal_err!("CountExec has one input");
        }
        Ok(Arc::new(Self::new(children.swap_remove(0), self.counted.clone())))
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        match &self.counted {
            Counted::Held(Some((time, _))) => f(time),
            Counted::Held(None) | Counted::Written => Ok(TreeNodeRecursion::Continue),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batch = Batch::of(&context)?;
        let counted = self.counted.clone();
        let rows = self.input.execute(partition, context)?.map(move |rows| {
            let rows = rows?;
            match &counted {
                Counted::Held(event) => {
                    let late = match event {
                        Some((time, span)) => {
                            let times = time.evaluate(&rows)?.into_array(rows.num_rows())?;
                            expired(&times, *span, batch.info.late_watermark_ms)?.true_count()
                        }
                        None => 0,
                    };
                    batch.counters.late(late);
                    batch.counters.held(rows.num_rows() - late);
                }
                Counted::Written => batch.counters.written(rows.num_rows()),
            }
            Ok(rows)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

/// Counts what a union lets past the stateful operators of its other branches. Everything else is counted where it goes into state, or
/// in the output of a plan without state.
pub(crate) fn count_past_state(plan: Arc<dyn ExecutionPlan>, goes_into_state: bool) -> Result<Arc<dyn ExecutionPlan>> {
    if !is_stateful(&plan) {
        return Ok(plan);
    }
    let below_state = goes_into_state || stateful(&plan).is_some();
    // A stateful operator counts what comes into it by itself.
    let mixed = stateful(&plan).is_none() && plan.children().len() > 1;
    let children = plan
        .children()
        .into_iter()
        .map(|child| {
            if !mixed || is_stateful(child) || !reads_stream(child) {
                return count_past_state(child.clone(), below_state);
            }
            let counted = if goes_into_state { Counted::Held(None) } else { Counted::Written };
            Ok(Arc::new(CountExec::new(child.clone(), counted)) as Arc<dyn ExecutionPlan>)
        })
        .collect::<Result<_>>()?;
    plan.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
}
