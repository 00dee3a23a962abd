//! Rows whose NULLs keep them from any match stay out of joins of streams, as in Spark: they neither enter the state nor move the watermark.

use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::common::{JoinType, Result};
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{Expr, ExprSchemable, Filter, Join, LogicalPlan};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};

use super::join::nulls_never_match;
use super::lineage::pass_through;
use super::nodes::{AssignWindows, Watermark, node_of};
use super::stateful::reads_stream;

/// Adds IS NOT NULL below the sides of a join, for the filter push-down to move on.
#[derive(Debug)]
pub(crate) struct FilterNullsOfJoins;

impl OptimizerRule for FilterNullsOfJoins {
    fn name(&self) -> &str {
        "filter_nulls_of_joins"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        match plan {
            LogicalPlan::Join(join) => filtered(join, &[])?.map_data(|join| Ok(LogicalPlan::Join(join))),
            // The conditions of an inner join stand above it while joins are put in order.
            LogicalPlan::Filter(filter) => match filter.input.as_ref() {
                LogicalPlan::Join(join) if join.join_type == JoinType::Inner => {
                    let join = filtered(join.clone(), &split_conjunction(&filter.predicate))?;
                    join.map_data(|join| {
                        let input = Arc::new(LogicalPlan::Join(join));
                        Ok(LogicalPlan::Filter(Filter::try_new(filter.predicate.clone(), input)?))
                    })
                }
                _ => Ok(Transformed::no(LogicalPlan::Filter(filter))),
            },
            plan => Ok(Transformed::no(plan)),
        }
    }
}

/// The join with filters below its sides. `further` are conditions beside its own.
fn filtered(mut join: Join, further: &[&Expr]) -> Result<Transformed<Join>> {
    let [left, right] = nulls_never_match(&join, further);
    let mut changed = false;
    for (side, columns) in [(&mut join.left, left), (&mut join.right, right)] {
        if !reads_stream(side)? {
            continue;
        }
        let mut missing = Vec::new();
        for column in columns {
            if column.nullable(side.schema())? && !is_filtered(side, &column) {
                missing.push(column.is_not_null());
            }
        }
        if let Some(predicate) = conjunction(missing) {
            *side = Arc::new(LogicalPlan::Filter(Filter::try_new(predicate, side.clone())?));
            changed = true;
        }
    }
    Ok(Transformed::new_transformed(join, changed))
}

/// Whether a filter of this rule, or one like it, is already below.
fn is_filtered(plan: &LogicalPlan, column: &Expr) -> bool {
    let Expr::Column(name) = column else { return false };
    if let LogicalPlan::Filter(filter) = plan
        && split_conjunction(&filter.predicate)
            .into_iter()
            .any(|part| matches!(part, Expr::IsNotNull(inner) if inner.as_ref() == column))
    {
        return true;
    }
    let Some(index) = plan.schema().maybe_index_of_column(name) else { return false };
    let at = |input: &LogicalPlan, index: usize| {
        input.schema().columns().get(index).is_some_and(|column| is_filtered(input, &Expr::Column(column.clone())))
    };
    if let Some(watermark) = node_of::<Watermark>(plan) {
        return at(&watermark.input, index);
    }
    if let Some(windows) = node_of::<AssignWindows>(plan) {
        return index < windows.input.schema().fields().len() && at(&windows.input, index);
    }
    match plan {
        LogicalPlan::Projection(projection) => {
            let below = projection.expr[index].clone().unalias();
            matches!(below, Expr::Column(_)) && is_filtered(&projection.input, &below)
        }
        _ => pass_through(plan).is_some_and(|input| at(input, index)),
    }
}
