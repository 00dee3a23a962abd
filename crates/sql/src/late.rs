//! Finds the rows of a batch that were late: they go the way to the first operators with state once more, with their numbers.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::UInt64Type;
use datafusion::common::Result as DfResult;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::{StreamExt, stream};
use perennial_core::Result;
use perennial_core::plan::{BatchInfo, FindLate, LateRow};
use perennial_core::sink::RowStream;

use crate::batch::Batch;
use crate::error::{execution_error, unsupported};
use crate::exec::gather::in_order_and_to_the_end;
use crate::exec::join_buffer::event_times;
use crate::exec::merge::expired;
use crate::functions::clock::BatchClock;
use crate::logical::arrivals::arrivals;
use crate::query::{deterministic, task_context};

/// Runs the arrivals of a query, one after the other.
pub(crate) struct LateFinder {
    /// What gives the numbers of the rows and perhaps their event times, and how many microseconds after these they are late.
    arrivals: Vec<(Arc<dyn ExecutionPlan>, Option<i64>)>,
    clock: Arc<BatchClock>,
    session: SessionState,
}

/// What is known of the rows of a batch.
#[derive(Default)]
struct Found {
    /// Per row that was late how often.
    late: BTreeMap<u64, u64>,
    /// Rows of which something was taken.
    taken: HashSet<u64>,
}

impl LateFinder {
    pub(crate) async fn new(plan: &LogicalPlan, clock: Arc<BatchClock>, session: &SessionState) -> DfResult<Self> {
        let mut planned = Vec::new();
        for arrival in arrivals(plan)? {
            // What decides over a row must decide the same when it is asked again.
            if !deterministic(&arrival.plan)? {
                return Err(unsupported(
                    "late: dead_letter looks for late rows in a second reading of the batch, and this query reads other rows each time \
                     because of a function such as rand() or uuid(). Leave `late` out, or the function",
                ));
            }
            let physical = session.query_planner().create_physical_plan(&arrival.plan, session).await?;
            planned.push((in_order_and_to_the_end(physical)?, arrival.span));
        }
        Ok(Self { arrivals: planned, clock, session: session.clone() })
    }

    async fn run(&self, batch: &Arc<Batch>) -> DfResult<Found> {
        let mut found = Found::default();
        let context = task_context(&self.session, batch);
        for (plan, span) in &self.arrivals {
            let plan = reset_plan_states(plan.clone())?;
            let partitions = 0..plan.output_partitioning().partition_count();
            let partitions = partitions.map(|partition| plan.execute(partition, context.clone()));
            let mut rows = stream::select_all(partitions.collect::<DfResult<Vec<_>>>()?);
            while let Some(rows) = rows.next().await.transpose()? {
                let numbers = rows.column(0).as_primitive::<UInt64Type>();
                let late = match span {
                    Some(span) => Some(expired(&event_times(rows.column(1))?, *span, batch.info.late_watermark_ms)?),
                    None => None,
                };
                for (row, number) in numbers.values().iter().enumerate() {
                    if late.as_ref().is_some_and(|late| late.value(row)) {
                        *found.late.entry(*number).or_insert(0) += 1;
                    } else {
                        found.taken.insert(*number);
                    }
                }
            }
        }
        Ok(found)
    }
}

#[async_trait]
impl FindLate for LateFinder {
    async fn find(&self, info: BatchInfo, inputs: Vec<Vec<RowStream>>) -> Result<Vec<LateRow>> {
        self.clock.set(info.timestamp_ms);
        let batch = Arc::new(Batch::new(info, inputs, Vec::new(), Vec::new()));
        let found = self.run(&batch).await;
        // Streams hold the batch, and the batch must not hold them for ever.
        batch.forget();
        let Found { late, taken } = found.map_err(execution_error)?;
        let watermark_ms = info.late_watermark_ms;
        let late = late.into_iter().filter(|(number, _)| !taken.contains(number));
        Ok(late.map(|(number, rows)| LateRow { number, rows, watermark_ms }).collect())
    }
}
