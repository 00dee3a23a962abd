//! Which queries are refused, and with which words: Spark's rules for streams, and what is not built yet.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{JoinType, NullEquality, Result};
use datafusion::logical_expr::expr::{Exists, InSubquery};
use datafusion::logical_expr::{Aggregate, Distinct, Expr, Join, LogicalPlan};
use perennial_core::error::{Error, Result as CoreResult, class};
use perennial_core::sink::OutputMode;

use super::join;
use super::lineage::group_exprs;
use super::nodes::{SessionAggregate, StatefulAggregate, is_event_time, node_of};
use super::stateful::reads_stream;
use crate::SourceTable;
use crate::error::{refused, refused_analysis, unsupported};
use crate::functions::clock::CLOCK_FUNCTIONS;

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
    subqueries(plan)?;
    if !reads_stream(plan)? {
        return Err(refused(
            "WRITE_STREAM_NOT_ALLOWED",
            "the query reads no stream: name a source in FROM that is not a table",
        ));
    }
    plan.apply(|node| {
        // Tables that are read whole may be queried in every way.
        if !reads_stream(node)? {
            return Ok(TreeNodeRecursion::Jump);
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
            LogicalPlan::Aggregate(aggregate) => functions(aggregate)?,
            LogicalPlan::Limit(limit) => {
                if limit.skip.is_some() {
                    return Err(refused(NOT_STREAMING, "OFFSET is not supported on streams: leave it out"));
                }
                if mode == OutputMode::Update {
                    return Err(refused(
                        NOT_STREAMING,
                        "LIMIT is not supported in update mode: leave it out, or use append or complete mode",
                    ));
                }
            }
            LogicalPlan::Sort(sort) if mode != OutputMode::Complete || !groups_stream(&sort.input)? => {
                return Err(refused(
                    NOT_STREAMING,
                    "ORDER BY is only supported on streams in complete mode above an aggregate: leave it out",
                ));
            }
            LogicalPlan::Union(union) => {
                for branch in &union.inputs {
                    if !reads_stream(branch)? {
                        return Err(refused(
                            NOT_STREAMING,
                            "a UNION of a stream and a table is not supported: the table's rows would come again with \
                             every batch; write them to the stream once, or leave them out",
                        ));
                    }
                }
            }
            LogicalPlan::Join(join) => {
                deterministic(join)?;
                static_join(join)?;
            }
            LogicalPlan::Distinct(Distinct::All(rows)) => without_maps(rows)?,
            LogicalPlan::Distinct(Distinct::On(_)) => {
                return Err(unsupported("DISTINCT ON is not supported on streams: group by the columns instead"));
            }
            LogicalPlan::RecursiveQuery(_) => {
                return Err(unsupported("a recursive WITH is not supported on streams: write the steps out"));
            }
            _ => {}
        }
        if mode != OutputMode::Append && is_aggregate(node) && aggregates_stream(node.inputs()[0])? {
            return Err(refused(
                NOT_STREAMING,
                format!(
                    "an aggregate over an aggregate is only supported in append mode, not in {mode:?} mode: the results \
                     of the inner one change from batch to batch; use append mode, or write the inner one to a table"
                ),
            ));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    if mode == OutputMode::Complete && !aggregates_stream(plan)? {
        return Err(refused(
            "STREAMING_OUTPUT_MODE.UNSUPPORTED_OPERATION",
            "complete mode is not supported without an aggregate: the whole result would be all rows that ever came; \
             use append mode",
        ));
    }
    Ok(())
}

/// A subquery in an expression is asked for every row: it must be over tables that are read whole.
fn subqueries(plan: &LogicalPlan) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        for expr in node.expressions() {
            expr.apply(|inner| {
                let subquery = match inner {
                    Expr::ScalarSubquery(subquery) => subquery,
                    Expr::InSubquery(InSubquery { subquery, .. }) | Expr::Exists(Exists { subquery, .. }) => subquery,
                    Expr::SetComparison(comparison) => &comparison.subquery,
                    _ => return Ok(TreeNodeRecursion::Continue),
                };
                if reads_stream(&subquery.subquery)? {
                    return Err(refused(
                        "INVALID_SUBQUERY_EXPRESSION.STREAMING_QUERY",
                        "a stream cannot be read in a subquery of an expression: write it as a JOIN, or write the \
                         inner stream to a table first",
                    ));
                }
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// The functions of an aggregate over a stream.
fn functions(aggregate: &Aggregate) -> Result<()> {
    for expr in &aggregate.aggr_expr {
        let Expr::AggregateFunction(function) = expr.clone().unalias() else { continue };
        if function.params.distinct {
            return Err(refused(
                NOT_STREAMING,
                format!("{expr}: DISTINCT in an aggregate is not supported on streams: use approx_count_distinct()"),
            ));
        }
        if function.params.args.iter().any(Expr::is_volatile) {
            return Err(refused(
                "AGGREGATE_FUNCTION_WITH_NONDETERMINISTIC_EXPRESSION",
                format!("{expr}: what is aggregated must not be different each time: compute it in a subquery"),
            ));
        }
    }
    Ok(())
}

/// Rows that are made distinct must not have maps, whose entries have no order to compare them by.
fn without_maps(rows: &LogicalPlan) -> Result<()> {
    match rows.schema().fields().iter().find(|field| has_map(field.data_type())) {
        None => Ok(()),
        Some(field) => Err(refused_analysis(
            "UNSUPPORTED_FEATURE.SET_OPERATION_ON_MAP_TYPE",
            format!("the column `{}` is or has a MAP, which DISTINCT cannot compare: use map_entries()", field.name()),
        )),
    }
}

fn has_map(data_type: &DataType) -> bool {
    match data_type {
        DataType::Map(..) => true,
        DataType::Struct(fields) => fields.iter().any(|field| has_map(field.data_type())),
        DataType::List(field) | DataType::LargeList(field) => has_map(field.data_type()),
        _ => false,
    }
}

/// The condition of a join is evaluated for pairs of rows, at a time and as often as it suits: it must not be different each time.
fn deterministic(join: &Join) -> Result<()> {
    let random = |inner: &Expr| match inner {
        Expr::ScalarFunction(call) => Ok(inner.is_volatile_node() && !CLOCK_FUNCTIONS.contains(&call.func.name())),
        _ => Ok(false),
    };
    let mut conditions = join.on.iter().flat_map(|(left, right)| [left, right]).chain(&join.filter);
    match conditions.find(|condition| condition.exists(random).unwrap_or(false)) {
        None => Ok(()),
        Some(condition) => Err(refused_analysis(
            "INVALID_NON_DETERMINISTIC_EXPRESSIONS",
            format!("{condition}: the condition of a join must not be different each time: use WHERE above the join"),
        )),
    }
}

/// Joins of a stream and a table: the stream's rows must be the ones that are kept, for those that will come are not known.
fn static_join(join: &Join) -> Result<()> {
    let (left, right) = (reads_stream(&join.left)?, reads_stream(&join.right)?);
    let kept = match join.join_type {
        JoinType::Inner => true,
        JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => left,
        JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => right,
        JoinType::Full => left && right,
    };
    if kept {
        return Ok(());
    }
    let (stream, table) = if left { ("left", "right") } else { ("right", "left") };
    Err(refused(
        NOT_STREAMING,
        format!(
            "a {} join with the stream on the {stream} and a table on the {table} is not supported: whether a row of the \
             table has no match is only known when the stream ends; use an inner join, or keep the rows of the stream",
            join.join_type
        ),
    ))
}

fn is_aggregate(plan: &LogicalPlan) -> bool {
    matches!(plan, LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_))
}

/// Whether a plan aggregates a stream.
pub(crate) fn aggregates_stream(plan: &LogicalPlan) -> Result<bool> {
    plan.exists(|node| Ok(is_aggregate(node) && reads_stream(node)?))
}

/// Whether a plan has an aggregate over a stream. DISTINCT is one for the output modes, but not for ORDER BY.
fn groups_stream(plan: &LogicalPlan) -> Result<bool> {
    plan.exists(|node| Ok(matches!(node, LogicalPlan::Aggregate(_)) && reads_stream(node)?))
}

/// What is refused of joins of streams as they are written, when the watermarks are there: Spark looks at them before it optimises the plan.
pub(crate) fn joins(plan: &LogicalPlan, mode: OutputMode) -> Result<()> {
    plan.apply(|node| {
        let LogicalPlan::Join(join) = node else { return Ok(TreeNodeRecursion::Continue) };
        if !reads_stream(&join.left)? || !reads_stream(&join.right)? {
            return Ok(TreeNodeRecursion::Continue);
        }
        join::check(join, mode)?;
        if mode != OutputMode::Append && (aggregates_stream(&join.left)? || aggregates_stream(&join.right)?) {
            return Err(refused(
                NOT_STREAMING,
                format!(
                    "a join above an aggregate is only supported in append mode, not in {mode:?} mode: the results of the \
                     aggregate change from batch to batch; use append mode, or write the aggregate to a table"
                ),
            ));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// What only the optimised plan tells: the stateful operators.
pub(crate) fn optimised(plan: &LogicalPlan, mode: OutputMode) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        if let Some(aggregate) = node_of::<StatefulAggregate>(node) {
            stateful_aggregate(aggregate, mode)?;
        }
        if let Some(SessionAggregate { input: LogicalPlan::Aggregate(aggregate) }) = node_of(node)
            && !reads_stream(&aggregate.input)?
        {
            return Err(unsupported(
                "session_window() over a table that is read whole is not supported: store the sessions in the table",
            ));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// Whether a plan is an EXCEPT, which is the distinct rows of an anti join.
fn is_except(plan: &LogicalPlan) -> Result<bool> {
    let LogicalPlan::Aggregate(Aggregate { input, aggr_expr, .. }) = plan else { return Ok(false) };
    let anti = |node: &LogicalPlan| {
        Ok(matches!(node, LogicalPlan::Join(Join { join_type: JoinType::LeftAnti, null_equality, .. })
            if *null_equality == NullEquality::NullEqualsNull))
    };
    Ok(aggr_expr.is_empty() && input.exists(anti)?)
}

fn stateful_aggregate(aggregate: &StatefulAggregate, mode: OutputMode) -> Result<()> {
    const CONDITION: &str = "STREAMING_OUTPUT_MODE.UNSUPPORTED_OPERATION";
    if aggregate.sessions {
        if mode == OutputMode::Update {
            return Err(refused(
                CONDITION,
                "update mode is not supported with session_window(): sessions merge, and one that was given out would \
                 have to be taken back; use append or complete mode",
            ));
        }
        let keys = match &aggregate.input {
            LogicalPlan::Aggregate(aggregate) => group_exprs(aggregate),
            _ => Vec::new(),
        };
        let constant = |key: &Expr| matches!(key.clone().unalias(), Expr::Literal(..));
        if keys.iter().rev().skip(2).all(constant) {
            return Err(refused(
                "STREAM_FAILED",
                "a session_window() without another key is not supported: group by a column as well, of the user or device",
            ));
        }
    }
    if mode == OutputMode::Append && aggregate.event.is_none() {
        // That EXCEPT is an aggregate, Spark only notices when it plans the first batch.
        let condition = match is_except(&aggregate.input)? {
            true => "UNSUPPORTED_STREAMING_OPERATOR_WITHOUT_WATERMARK",
            false => CONDITION,
        };
        return Err(refused(
            condition,
            "append mode needs to know when a group is complete: group by window(…) of a column with a watermark \
             (or by that column), or use update or complete mode",
        ));
    }
    Ok(())
}
