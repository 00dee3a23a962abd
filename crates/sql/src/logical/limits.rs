//! LIMIT and EXCEPT over streams.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DataFusionError, JoinType, NullEquality, Result, ScalarValue};
use datafusion::logical_expr::{Distinct, Expr, Filter, Join, Limit, LogicalPlan, lit};
use perennial_core::sink::OutputMode;

use super::check::aggregates_stream;
use super::nodes::{StatefulLimit, extension, node_of};
use super::stateful::reads_stream;
use crate::error::refused;

/// Makes every LIMIT that counts rows of a stream a [`StatefulLimit`]: in append mode all of them, in complete mode those below the
/// aggregate. `constant` evaluates an expression without columns.
pub(crate) fn over_streams(
    plan: LogicalPlan,
    mode: OutputMode,
    constant: &dyn Fn(&Expr) -> Result<ScalarValue>,
) -> Result<LogicalPlan> {
    plan.transform_up(|node| {
        let LogicalPlan::Limit(Limit { input, fetch: Some(fetch), skip: None }) = &node else {
            return Ok(Transformed::no(node));
        };
        if !reads_stream(input)? || (mode != OutputMode::Append && aggregates_stream(input)?) {
            return Ok(Transformed::no(node));
        }
        let negative = |what: &ScalarValue| {
            refused("INVALID_LIMIT_LIKE_EXPRESSION.IS_NEGATIVE", format!("LIMIT {what}: it must be 0 or greater"))
        };
        let value = constant(fetch)?;
        let limit = match value.cast_to(&datafusion::arrow::datatypes::DataType::Int64)? {
            ScalarValue::Int64(Some(limit)) => u64::try_from(limit).map_err(|_| negative(&value))?,
            // LIMIT ALL
            _ => return Ok(Transformed::yes(input.as_ref().clone())),
        };
        if limit == 0 {
            // Nothing is read then: no row has to be counted, and none moves a watermark.
            return Ok(Transformed::yes(LogicalPlan::Filter(Filter::try_new(lit(false), input.clone())?)));
        }
        Ok(Transformed::yes(
            smaller(input, limit)
                .unwrap_or_else(|| extension(StatefulLimit { input: input.as_ref().clone(), limit, place: None })),
        ))
    })
    .map(|transformed| transformed.data)
}

/// A limit right above another one is one with it.
fn smaller(input: &LogicalPlan, limit: u64) -> Option<LogicalPlan> {
    if let Some(below) = node_of::<StatefulLimit>(input) {
        return Some(extension(StatefulLimit { limit: limit.min(below.limit), ..below.clone() }));
    }
    match input {
        LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) => {
            let below = smaller(input.inputs().first()?, limit)?;
            input.with_new_exprs(input.expressions(), vec![below]).ok()
        }
        _ => None,
    }
}

/// `stream EXCEPT table`: DataFusion makes the rows of the stream distinct and then leaves out those of the table. The other way round
/// gives the same, and only what is left goes into state.
pub(crate) fn except_tables(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up(|node| {
        let LogicalPlan::Join(join) = &node else { return Ok(Transformed::no(node)) };
        let except = join.join_type == JoinType::LeftAnti && join.null_equality == NullEquality::NullEqualsNull;
        let LogicalPlan::Distinct(Distinct::All(rows)) = join.left.as_ref() else { return Ok(Transformed::no(node)) };
        if !except || !reads_stream(rows)? {
            return Ok(Transformed::no(node));
        }
        let join = Join { left: rows.clone(), ..join.clone() };
        Ok::<_, DataFusionError>(Transformed::yes(LogicalPlan::Distinct(Distinct::All(Arc::new(LogicalPlan::Join(
            join,
        ))))))
    })
    .map(|transformed| transformed.data)
}
