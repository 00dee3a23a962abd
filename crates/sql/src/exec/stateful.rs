//! What all operators with state have in common.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::Result;
use datafusion::physical_plan::ExecutionPlan;
use perennial_core::layout::OperatorLayout;
use perennial_core::shape::OperatorShape;
use perennial_core::state::StateSpec;

use super::aggregate::StatefulAggregateExec;
use super::dedup::DeduplicateExec;
use super::join::SymmetricJoinExec;
use super::limit::StatefulLimitExec;
use super::source::SourceExec;

/// A physical operator that keeps state from batch to batch.
pub(crate) trait Stateful {
    /// Its number, from the sink towards the sources (as Spark counts).
    fn operator(&self) -> usize;

    /// Spark's name of it.
    fn name(&self) -> &'static str;

    /// What it keeps: one state, or more where it has several inputs. Their numbers count over the whole plan.
    fn state(&self) -> Vec<StateSpec>;

    /// What the columns of its states mean.
    fn layout(&self) -> OperatorLayout;

    /// How many of the key columns of a state tell the partition: all, where rows are only looked for by their whole key.
    fn spread_keys(&self, state: &StateSpec) -> usize {
        state.keys
    }

    /// What the meaning of its state depends on, beyond the columns: a line each.
    fn describe(&self) -> Vec<String>;

    /// A row of a state with the columns that an aggregate has which has seen nothing, where it has such columns.
    fn empty(&self, _: &StateSpec) -> Result<Option<RecordBatch>> {
        Ok(None)
    }

    /// Whether a batch without rows makes sense once the watermark has moved.
    fn wants_no_data_batch(&self) -> bool;
}

/// What an operator keeps, for comparing it with another one's. The lines of its aggregates are left out: they are compared one by one.
pub(crate) fn shape(operator: &dyn Stateful) -> OperatorShape {
    let meaning = operator.describe().into_iter().filter(|line| !line.starts_with(FUNCTION));
    OperatorShape::new(&operator.layout(), meaning.map(|line| without_positions(&line)).collect(), &operator.state())
}

/// How the lines of [`Stateful::describe`] begin that name an aggregate.
pub(crate) const FUNCTION: &str = "function ";

/// A text without the positions of columns (`user@2` is `user`): they change with what else a query reads.
fn without_positions(text: &str) -> String {
    let mut parts = text.split('@');
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        if rest.len() == part.len() {
            clean.push('@');
        }
        clean.push_str(rest);
    }
    clean
}

/// The stateful operator that a plan is, if it is one.
pub(crate) fn stateful(plan: &Arc<dyn ExecutionPlan>) -> Option<&dyn Stateful> {
    if let Some(aggregate) = plan.downcast_ref::<StatefulAggregateExec>() {
        return Some(aggregate);
    }
    if let Some(deduplicate) = plan.downcast_ref::<DeduplicateExec>() {
        return Some(deduplicate);
    }
    if let Some(limit) = plan.downcast_ref::<StatefulLimitExec>() {
        return Some(limit);
    }
    if let Some(join) = plan.downcast_ref::<SymmetricJoinExec>() {
        return Some(join);
    }
    None
}

/// The stateful operators of a plan, from the sink towards the sources.
pub(crate) fn operators(plan: &Arc<dyn ExecutionPlan>) -> Vec<&dyn Stateful> {
    fn collect<'a>(plan: &'a Arc<dyn ExecutionPlan>, found: &mut Vec<&'a dyn Stateful>) {
        found.extend(stateful(plan));
        plan.children().into_iter().for_each(|child| collect(child, found));
    }
    let mut found = Vec::new();
    collect(plan, &mut found);
    found
}

/// Whether a plan has a stateful operator in it.
pub(crate) fn is_stateful(plan: &Arc<dyn ExecutionPlan>) -> bool {
    stateful(plan).is_some() || plan.children().into_iter().any(is_stateful)
}

/// Whether a plan reads a stream, and not only tables that are read whole for each batch.
pub(crate) fn reads_stream(plan: &Arc<dyn ExecutionPlan>) -> bool {
    match plan.downcast_ref::<SourceExec>() {
        Some(source) => !source.is_static(),
        None => plan.children().into_iter().any(reads_stream),
    }
}
