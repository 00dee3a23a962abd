//! The stateful aggregate: partial aggregates of the batch, spread by key, merged with the state, and what the output mode emits.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions};
use futures::{StreamExt, TryStreamExt, stream};
use perennial_core::layout::{AggregateLayout, Content, KeyLayout, OperatorLayout};
use perennial_core::plan::OperatorProgress;
use perennial_core::sink::OutputMode;
use perennial_core::state::StateSpec;

use super::exchange::Exchange;
use super::merge::Aggregation;
use super::one_input;
use super::sessions::{self, SessionState};
use super::stateful::{FUNCTION, Stateful};
use crate::batch::Batch;
use crate::logical::nodes::EventKey;

/// Rows per batch of the output, at most: the state gives its rows in chunks of any size.
const ROWS_PER_BATCH: usize = 32_768;

/// Runs an [`Aggregation`] with one partition per partition of the state.
#[derive(Debug)]
pub(crate) struct StatefulAggregateExec {
    /// The partial aggregation.
    partial: Arc<dyn ExecutionPlan>,
    aggregation: Arc<Aggregation>,
    exchange: Exchange,
    properties: Arc<PlanProperties>,
}

impl StatefulAggregateExec {
    pub(crate) fn new(partial: Arc<dyn ExecutionPlan>, aggregation: Arc<Aggregation>, partitions: usize) -> Self {
        let properties = super::properties(aggregation.result_schema.clone(), partitions);
        Self { partial, aggregation, exchange: Exchange::default(), properties }
    }
}

impl StatefulAggregateExec {
    /// The types of the arguments of an aggregate.
    fn arguments_of(&self, function: &AggregateFunctionExpr) -> Vec<DataType> {
        let Some(partial) = self.partial.downcast_ref::<AggregateExec>() else { return Vec::new() };
        let schema = partial.input_schema();
        let types = function.expressions().into_iter().map(|argument| argument.data_type(&schema));
        types.collect::<Result<_>>().unwrap_or_default()
    }

    /// How many keys there are without a session's start and end: all sessions of a group are in one partition.
    fn group_keys(&self) -> usize {
        self.aggregation.keys - if self.aggregation.sessions { 2 } else { 0 }
    }
}

impl Stateful for StatefulAggregateExec {
    fn operator(&self) -> usize {
        self.aggregation.operator
    }

    fn name(&self) -> &'static str {
        if self.aggregation.sessions { "sessionWindowStateStoreSaveExec" } else { "stateStoreSave" }
    }

    fn state(&self) -> Vec<StateSpec> {
        let Aggregation { state, keys, sessions, state_schema, .. } = self.aggregation.as_ref();
        let name = Stateful::name(self).to_owned();
        let groups = sessions.then(|| StateSpec {
            operator: state + 1,
            name: name.clone(),
            schema: sessions::groups_schema(state_schema, self.group_keys()),
            keys: self.group_keys(),
            expiry: None,
        });
        let main = StateSpec {
            operator: *state,
            name,
            schema: state_schema.clone(),
            // The end of a session changes: its start tells it.
            keys: keys - usize::from(*sessions),
            expiry: self.aggregation.event.map(|event| event.key),
        };
        std::iter::once(main).chain(groups).collect()
    }

    fn layout(&self) -> OperatorLayout {
        let Aggregation { state, sessions, .. } = *self.aggregation;
        let name = Stateful::name(self).to_owned();
        // Columns that cannot be told apart are nobody else's.
        let Ok(ranges) = self.aggregation.state_ranges() else {
            return OperatorLayout { name, state, content: Content::Own };
        };
        let aggregates = ranges
            .into_iter()
            .map(|(function, columns)| AggregateLayout {
                function: function.fun().name().to_owned(),
                call: function.name().to_owned(),
                arguments: self.arguments_of(function),
                plain: !function.is_distinct() && function.order_bys().is_empty(),
                columns,
            })
            .collect();
        let keys = (0..self.group_keys())
            .map(|key| {
                let window = self.aggregation.windows.get(key).copied().flatten();
                let name = self.aggregation.state_schema.field(key).name();
                KeyLayout { name: if window.is_some() { "window".to_owned() } else { name.clone() }, window }
            })
            .collect();
        let content = match sessions {
            true => Content::Sessions { keys, aggregates },
            false => Content::Aggregation { keys, aggregates },
        };
        OperatorLayout { name, state, content }
    }

    fn spread_keys(&self, _: &StateSpec) -> usize {
        self.group_keys()
    }

    fn describe(&self) -> Vec<String> {
        let keys = self.partial.downcast_ref::<AggregateExec>().map(|partial| partial.group_expr().expr());
        let keys = keys.unwrap_or_default().iter().map(|(expr, _)| format!("key {expr}"));
        let functions = self.aggregation.functions.iter().map(|function| format!("{FUNCTION}{}", function.name()));
        let end =
            self.aggregation.event.map(|EventKey { key, span }| format!("ends {span} microseconds after key {key}"));
        keys.chain(functions).chain(end).collect()
    }

    fn empty(&self, state: &StateSpec) -> Result<Option<RecordBatch>> {
        let Aggregation { state: number, state_schema, .. } = self.aggregation.as_ref();
        if state.operator != *number {
            return Ok(None);
        }
        let mut columns: Vec<ArrayRef> =
            state_schema.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect();
        for (function, range) in self.aggregation.state_ranges()? {
            for (column, value) in range.zip(function.create_accumulator()?.state()?) {
                columns[column] = value.to_array()?;
            }
        }
        // Names and types only: the columns of the keys may be NULL here.
        let fields = state_schema.fields().iter().zip(&columns);
        let fields = fields.map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        Ok(Some(RecordBatch::try_new_with_options(schema, columns, &options)?))
    }

    fn wants_no_data_batch(&self) -> bool {
        self.aggregation.mode != OutputMode::Complete
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
        let group_keys = self.group_keys();
        let (partial, aggregation, exchange) = (self.partial.clone(), self.aggregation.clone(), self.exchange.clone());
        let rows = async move {
            let keys: Vec<usize> = (0..group_keys).collect();
            let partials = exchange.take(&partial, &keys, (partition, partitions), &context).await?;
            let mut progress = OperatorProgress::default();
            let emitted = {
                let info = batch.info_at(aggregation.shift_ms);
                let mut state = batch.state(aggregation.state, partition)?;
                if aggregation.sessions {
                    let mut groups = batch.state(aggregation.state + 1, partition)?;
                    let state = SessionState { sessions: &mut *state, groups: &mut *groups };
                    sessions::run(&aggregation, partials, state, &info, &mut progress)?
                } else {
                    aggregation.run(partials, &mut *state, &info, &mut progress)?
                }
            };
            batch.counters.progress(aggregation.operator, &progress);
            Ok::<_, DataFusionError>(
                stream::iter(emitted.into_iter().flat_map(slices)).map(move |rows| aggregation.results(&rows)),
            )
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream::once(rows).try_flatten())))
    }
}

/// The rows in pieces that a sink can take in.
fn slices(rows: RecordBatch) -> impl Iterator<Item = RecordBatch> {
    let count = rows.num_rows();
    (0..count).step_by(ROWS_PER_BATCH).map(move |first| rows.slice(first, ROWS_PER_BATCH.min(count - first)))
}
