//! Which queries are refused, and with which words: Spark's rules for streams, and what is not built yet.

use datafusion::common::Result;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan};
use perennial_core::error::{Error, Result as CoreResult, class};
use perennial_core::sink::OutputMode;

use super::nodes::{StatefulAggregate, is_event_time, node_of};
use crate::SourceTable;
use crate::error::{refused, unsupported};

/// Spark's catch-all condition for streaming queries that it does not run.
const NOT_STREAMING: &str = "_LEGACY_ERROR_TEMP_3102";

/// The settings of a source: the columns of its watermark and its deduplication.
pub(crate) fn source(source: &SourceTable) -> CoreResult<()> {
    watermark(source)?;
    let Some(deduplicate) = &source.deduplicate else { return Ok(()) };
    let at =
        |message: String| Err(Error::new(class::ANALYSIS, message).at(format!("source {}: deduplicate", source.name)));
    if let Some(name) = deduplicate.columns.iter().find(|name| source.schema.field_with_name(name).is_err()) {
        return at(format!("UNRESOLVED_COLUMN_AMONG_FIELD_NAMES: there is no column `{name}` to tell duplicates by"));
    }
    if deduplicate.columns.is_empty() {
        return at("there are no columns to tell duplicates by: name at least one".to_owned());
    }
    if deduplicate.within_watermark && source.watermark.is_none() {
        return at("deduplication within the watermark needs a watermark: give the source one".to_owned());
    }
    Ok(())
}

/// The watermark of a source: its column must be there and be a timestamp, its delay not negative.
fn watermark(source: &SourceTable) -> CoreResult<()> {
    let Some(watermark) = &source.watermark else { return Ok(()) };
    let at =
        |message: String| Err(Error::new(class::ANALYSIS, message).at(format!("source {}: watermark", source.name)));
    let Ok(field) = source.schema.field_with_name(&watermark.column) else {
        let names: Vec<String> = source.schema.fields().iter().map(|field| format!("`{}`", field.name())).collect();
        return at(format!(
            "UNRESOLVED_COLUMN.WITH_SUGGESTION: there is no column `{}`: did you mean one of {}?",
            watermark.column,
            names.join(", ")
        ));
    };
    if !is_event_time(field.data_type()) {
        return at(format!(
            "EVENT_TIME_IS_NOT_ON_TIMESTAMP_TYPE: the column `{}` is {}: the event time must be a TIMESTAMP",
            watermark.column,
            field.data_type()
        ));
    }
    if watermark.delay_micros < 0 {
        return at("the delay is negative: it must be 0 or longer".to_owned());
    }
    Ok(())
}

/// What can be told before the plan is optimised.
pub(crate) fn planned(plan: &LogicalPlan, mode: OutputMode) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        for expr in node.expressions() {
            if expr.exists(|inner| {
                Ok(matches!(inner, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_)))
            })? {
                return Err(unsupported(format!(
                    "{expr}: a subquery in an expression joins two streams, which is not supported yet: \
                     write the inner one to a table and join there"
                )));
            }
        }
        match node {
            LogicalPlan::Window(window) => {
                return Err(refused(
                    "NON_TIME_WINDOW_NOT_SUPPORTED_IN_STREAMING",
                    format!(
                        "{} is not supported on streams, whose rows never end: group by window(…) instead",
                        window.window_expr.first().map(ToString::to_string).unwrap_or_default()
                    ),
                ));
            }
            LogicalPlan::Aggregate(aggregate) => {
                for expr in &aggregate.aggr_expr {
                    if let Expr::AggregateFunction(function) = expr.clone().unalias()
                        && function.params.distinct
                    {
                        return Err(refused(
                            NOT_STREAMING,
                            format!("{expr}: DISTINCT in an aggregate is not supported on streams: use approx_count_distinct()"),
                        ));
                    }
                }
            }
            LogicalPlan::Limit(limit) => {
                if limit.skip.is_some() {
                    return Err(refused(NOT_STREAMING, "OFFSET is not supported on streams: leave it out"));
                }
                match mode {
                    OutputMode::Update => {
                        return Err(refused(
                            NOT_STREAMING,
                            "LIMIT is not supported in update mode: leave it out, or use complete mode",
                        ));
                    }
                    OutputMode::Append => {
                        return Err(unsupported(
                            "LIMIT in append mode is not supported yet: leave it out, or use complete mode with an aggregate",
                        ));
                    }
                    OutputMode::Complete => {}
                }
            }
            LogicalPlan::Sort(sort) => {
                let above_aggregate = sort.input.exists(|below| Ok(is_aggregate(below)))?;
                if mode != OutputMode::Complete || !above_aggregate {
                    return Err(refused(
                        NOT_STREAMING,
                        "ORDER BY is only supported on streams in complete mode above an aggregate: leave it out",
                    ));
                }
            }
            LogicalPlan::RecursiveQuery(_) => {
                return Err(unsupported("a recursive WITH is not supported on streams: write the steps out"));
            }
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

fn is_aggregate(plan: &LogicalPlan) -> bool {
    matches!(plan, LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_))
}

/// What only the optimised plan tells: joins and the stateful operators.
pub(crate) fn optimised(plan: &LogicalPlan, mode: OutputMode) -> Result<()> {
    let mut aggregates = 0;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Join(join) = node {
            return Err(unsupported(format!(
                "joins of streams ({:?}) are not supported yet: write the streams to a table each and join there",
                join.join_type
            )));
        }
        if let Some(aggregate) = node_of::<StatefulAggregate>(node) {
            aggregates += 1;
            if mode == OutputMode::Append && aggregate.event.is_none() {
                return Err(refused(
                    "STREAMING_OUTPUT_MODE.UNSUPPORTED_OPERATION",
                    "append mode needs to know when a group is complete: group by window(…) of a column with a watermark \
                     (or by that column), or use update or complete mode",
                ));
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    if mode == OutputMode::Complete && aggregates == 0 {
        return Err(refused(
            "STREAMING_OUTPUT_MODE.UNSUPPORTED_OPERATION",
            "complete mode is not supported without an aggregate: the whole result would be all rows that ever came; \
             use append mode",
        ));
    }
    if mode != OutputMode::Append && aggregates > 1 {
        return Err(refused(
            NOT_STREAMING,
            format!("several aggregates in one query are only supported in append mode, not in {mode:?} mode"),
        ));
    }
    Ok(())
}
