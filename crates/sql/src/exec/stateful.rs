//! What all operators with state have in common.

use std::sync::Arc;

use datafusion::physical_plan::ExecutionPlan;
use perennial_core::layout::OperatorLayout;
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

    /// Whether a batch without rows makes sense once the watermark has moved.
    fn wants_no_data_batch(&self) -> bool;
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
