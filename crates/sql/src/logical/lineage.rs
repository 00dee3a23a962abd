//! Where a column of a plan comes from: an event time, a window over one, a key of an aggregate.

use datafusion::common::{Column, JoinType};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Aggregate, Expr, Join, LogicalPlan};

use super::join::StreamJoin;
use super::nodes::{
    AssignWindows, Deduplicate, SessionAggregate, StatefulAggregate, StatefulLimit, Watermark, node_of,
};
use crate::functions::session::{SESSION_BETWEEN, SESSION_END, WINDOW_BETWEEN, WINDOW_END};
use crate::functions::window::{WINDOW_OF, WINDOW_TIME};

/// What a column says about event time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventTime {
    /// It is the event time of its row.
    At,
    /// It is the start of a window over an event time, of this many microseconds.
    Start(i64),
    /// It is the end of a window over an event time.
    End,
    /// It is the window itself.
    Window,
}

/// What column `index` of a plan says about event time.
pub(crate) fn event_time(plan: &LogicalPlan, index: usize) -> Option<EventTime> {
    if let Some(watermark) = node_of::<Watermark>(plan) {
        let own = watermark.index().is_ok_and(|at| at == index);
        return if own { Some(EventTime::At) } else { event_time(&watermark.input, index) };
    }
    if let Some(windows) = node_of::<AssignWindows>(plan) {
        if index < windows.input.schema().fields().len() {
            return event_time(&windows.input, index);
        }
        return match expression_event_time(&windows.time, &windows.input) {
            Some(EventTime::At) => Some(EventTime::Start(windows.spec.size)),
            _ => None,
        };
    }
    if let Some(join) = node_of::<StreamJoin>(plan) {
        let (side, index) = join.origin(index);
        return event_time(side, index);
    }
    match plan {
        LogicalPlan::Projection(projection) => expression_event_time(&projection.expr[index], &projection.input),
        LogicalPlan::Aggregate(aggregate) => {
            expression_event_time(group_exprs(aggregate).get(index)?, &aggregate.input)
        }
        // Spark: a union has a watermark if its first branch has.
        LogicalPlan::Union(union) => event_time(union.inputs.first()?, index),
        LogicalPlan::Join(join) => behind_join(join, index).and_then(|(side, index)| event_time(side, index)),
        LogicalPlan::Unnest(unnest) => event_time(&unnest.input, *unnest.dependency_indices.get(index)?),
        _ => pass_through(plan).and_then(|input| event_time(input, index)),
    }
}

/// What an expression over the rows of a plan says about event time.
pub(crate) fn expression_event_time(expr: &Expr, input: &LogicalPlan) -> Option<EventTime> {
    match expr {
        Expr::Alias(alias) => expression_event_time(&alias.expr, input),
        Expr::Column(column) => event_time(input, index_of(input, column)?),
        Expr::ScalarFunction(ScalarFunction { func, args }) => {
            let of = if matches!(func.name(), SESSION_BETWEEN | WINDOW_BETWEEN) { args.last() } else { args.first() };
            match (func.name(), expression_event_time(of?, input)?) {
                (WINDOW_OF, EventTime::Start(_)) => Some(EventTime::Window),
                (SESSION_BETWEEN | WINDOW_BETWEEN, EventTime::End) => Some(EventTime::Window),
                (SESSION_END, EventTime::At) | (WINDOW_END, EventTime::Window) => Some(EventTime::End),
                (WINDOW_TIME, EventTime::Window) => Some(EventTime::At),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The size of the window, in microseconds, of which an expression over the rows of a plan is the start.
pub(crate) fn window_size(expr: &Expr, input: &LogicalPlan) -> Option<i64> {
    match expr {
        Expr::Alias(alias) => window_size(&alias.expr, input),
        Expr::Column(column) => window_size_of(input, index_of(input, column)?),
        _ => None,
    }
}

fn window_size_of(plan: &LogicalPlan, index: usize) -> Option<i64> {
    if let Some(windows) = node_of::<AssignWindows>(plan) {
        let is_input = index < windows.input.schema().fields().len();
        return if is_input { window_size_of(&windows.input, index) } else { Some(windows.spec.size) };
    }
    match plan {
        LogicalPlan::Projection(projection) => window_size(&projection.expr[index], &projection.input),
        _ => pass_through(plan).and_then(|input| window_size_of(input, index)),
    }
}

/// Whether an expression over the rows of a plan is a session: one that is merged with those that it touches wherever it is a grouping
/// key, also behind the aggregate that made it.
pub(crate) fn is_session(expr: &Expr, input: &LogicalPlan) -> bool {
    match expr {
        Expr::Alias(alias) => is_session(&alias.expr, input),
        Expr::Column(column) => index_of(input, column).is_some_and(|index| is_session_column(input, index)),
        Expr::ScalarFunction(ScalarFunction { func, .. }) => func.name() == SESSION_BETWEEN,
        _ => false,
    }
}

fn is_session_column(plan: &LogicalPlan, index: usize) -> bool {
    if let Some(join) = node_of::<StreamJoin>(plan) {
        let (side, index) = join.origin(index);
        return is_session_column(side, index);
    }
    match plan {
        LogicalPlan::Projection(projection) => is_session(&projection.expr[index], &projection.input),
        LogicalPlan::Aggregate(aggregate) => {
            group_exprs(aggregate).get(index).is_some_and(|expr| is_session(expr, &aggregate.input))
        }
        LogicalPlan::Union(union) => union.inputs.first().is_some_and(|first| is_session_column(first, index)),
        LogicalPlan::Join(join) => behind_join(join, index).is_some_and(|(side, index)| is_session_column(side, index)),
        _ => pass_through(plan).is_some_and(|input| is_session_column(input, index)),
    }
}

/// The side of a join from which a column of its result comes, and the column there.
fn behind_join(join: &Join, index: usize) -> Option<(&LogicalPlan, usize)> {
    let left = join.left.schema().fields().len();
    match join.join_type {
        JoinType::RightSemi | JoinType::RightAnti => Some((&join.right, index)),
        JoinType::RightMark if index < join.right.schema().fields().len() => Some((&join.right, index)),
        JoinType::RightMark => None,
        _ if index < left => Some((&join.left, index)),
        JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => None,
        _ => Some((&join.right, index - left)),
    }
}

/// The keys of the topmost stateful aggregate that column `index` of a plan tells.
pub(crate) fn aggregate_keys(plan: &LogicalPlan, index: usize) -> Vec<usize> {
    if let Some(stateful) = node_of::<StatefulAggregate>(plan) {
        // Two sessions of one group differ in their start and in their end: one of the two tells the session.
        let keys = told_keys(stateful);
        return (index < keys + usize::from(stateful.sessions)).then(|| index.min(keys - 1)).into_iter().collect();
    }
    match plan {
        LogicalPlan::Projection(projection) => expression_keys(&projection.expr[index], &projection.input),
        _ => pass_through(plan).map(|input| aggregate_keys(input, index)).unwrap_or_default(),
    }
}

fn expression_keys(expr: &Expr, input: &LogicalPlan) -> Vec<usize> {
    match expr {
        Expr::Alias(alias) => expression_keys(&alias.expr, input),
        Expr::Column(column) => index_of(input, column).map(|index| aggregate_keys(input, index)).unwrap_or_default(),
        Expr::ScalarFunction(ScalarFunction { func, args }) => match (func.name(), args.as_slice()) {
            (WINDOW_OF, [start, ..]) => expression_keys(start, input),
            (SESSION_BETWEEN | WINDOW_BETWEEN, edges) => {
                edges.iter().flat_map(|edge| expression_keys(edge, input)).collect()
            }
            // A window of fixed size, its start, its end and its time all tell which window it is.
            (WINDOW_TIME | "get_field", [window, ..]) if call_of(window, &[WINDOW_OF]).is_some() => {
                expression_keys(window, input)
            }
            (WINDOW_TIME, [window]) => match call_of(window, &[SESSION_BETWEEN, WINDOW_BETWEEN]) {
                Some([_, end]) => expression_keys(end, input),
                _ => Vec::new(),
            },
            ("get_field", [window, Expr::Literal(field, _)]) => {
                let field = field.try_as_str().flatten();
                match (call_of(window, &[SESSION_BETWEEN, WINDOW_BETWEEN]), field) {
                    (Some([start, _]), Some("start")) => expression_keys(start, input),
                    (Some([_, end]), Some("end")) => expression_keys(end, input),
                    _ => Vec::new(),
                }
            }
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// The arguments of an expression that calls one of these functions.
fn call_of<'a>(expr: &'a Expr, names: &[&str]) -> Option<&'a [Expr]> {
    match expr {
        Expr::Alias(alias) => call_of(&alias.expr, names),
        Expr::ScalarFunction(ScalarFunction { func, args }) => names.contains(&func.name()).then_some(args.as_slice()),
        _ => None,
    }
}

/// How many keys tell the group of the topmost stateful aggregate, if all that is above it keeps its rows apart.
pub(crate) fn top_key_count(plan: &LogicalPlan) -> Option<usize> {
    if let Some(stateful) = node_of::<StatefulAggregate>(plan) {
        return Some(told_keys(stateful));
    }
    match plan {
        LogicalPlan::Projection(projection) => top_key_count(&projection.input),
        _ => pass_through(plan).and_then(top_key_count),
    }
}

fn told_keys(stateful: &StatefulAggregate) -> usize {
    match &stateful.input {
        LogicalPlan::Aggregate(aggregate) => key_count(aggregate) - usize::from(stateful.sessions),
        _ => 0,
    }
}

/// The grouping expressions in the order of the output, grouping sets flattened.
pub(crate) fn group_exprs(aggregate: &Aggregate) -> Vec<Expr> {
    datafusion::logical_expr::utils::grouping_set_to_exprlist(&aggregate.group_expr)
        .map(|exprs| exprs.into_iter().cloned().collect())
        .unwrap_or_default()
}

/// How many columns are the key of an aggregate; grouping sets have one more, that tells the set.
pub(crate) fn key_count(aggregate: &Aggregate) -> usize {
    aggregate.schema.fields().len() - aggregate.aggr_expr.len()
}

/// The input of a node that has the columns of its input, in their order.
pub(crate) fn pass_through(plan: &LogicalPlan) -> Option<&LogicalPlan> {
    match plan {
        LogicalPlan::Filter(node) => Some(&node.input),
        LogicalPlan::SubqueryAlias(node) => Some(&node.input),
        LogicalPlan::Sort(node) => Some(&node.input),
        LogicalPlan::Limit(node) => Some(&node.input),
        LogicalPlan::Extension(_) => {
            let aggregate = node_of::<StatefulAggregate>(plan).map(|node| &node.input);
            aggregate
                .or_else(|| node_of::<SessionAggregate>(plan).map(|node| &node.input))
                .or_else(|| node_of::<Deduplicate>(plan).map(|node| &node.input))
                .or_else(|| node_of::<Watermark>(plan).map(|node| &node.input))
                .or_else(|| node_of::<StatefulLimit>(plan).map(|node| &node.input))
        }
        _ => None,
    }
}

fn index_of(plan: &LogicalPlan, column: &Column) -> Option<usize> {
    plan.schema().maybe_index_of_column(column)
}
