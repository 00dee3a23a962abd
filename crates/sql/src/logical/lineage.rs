//! Where a column of a plan comes from: an event time, a window over one, a key of an aggregate.

use datafusion::common::Column;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan};

use super::nodes::{AssignWindows, Deduplicate, StatefulAggregate, Watermark, node_of};
use crate::functions::window::{WINDOW_OF, WINDOW_TIME};

/// What a column says about event time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventTime {
    /// It is the event time of its row.
    At,
    /// It is the start of a window over an event time, of this many microseconds.
    Start(i64),
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
    if let Some(stateful) = node_of::<StatefulAggregate>(plan) {
        return event_time(&stateful.input, index);
    }
    if let Some(deduplicate) = node_of::<Deduplicate>(plan) {
        return event_time(&deduplicate.input, index);
    }
    match plan {
        LogicalPlan::Projection(projection) => expression_event_time(&projection.expr[index], &projection.input),
        LogicalPlan::Aggregate(aggregate) => {
            expression_event_time(group_exprs(aggregate).get(index)?, &aggregate.input)
        }
        // Spark: a union has a watermark if its first branch has.
        LogicalPlan::Union(union) => event_time(union.inputs.first()?, index),
        _ => pass_through(plan).and_then(|input| event_time(input, index)),
    }
}

/// What an expression over the rows of a plan says about event time.
pub(crate) fn expression_event_time(expr: &Expr, input: &LogicalPlan) -> Option<EventTime> {
    match expr {
        Expr::Alias(alias) => expression_event_time(&alias.expr, input),
        Expr::Column(column) => event_time(input, index_of(input, column)?),
        Expr::ScalarFunction(ScalarFunction { func, args }) => {
            match (func.name(), expression_event_time(args.first()?, input)?) {
                (WINDOW_OF, EventTime::Start(_)) => Some(EventTime::Window),
                (WINDOW_TIME, EventTime::Window) => Some(EventTime::At),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The key of the topmost stateful aggregate that column `index` of a plan stands for, one to one.
pub(crate) fn aggregate_key(plan: &LogicalPlan, index: usize) -> Option<usize> {
    if let Some(stateful) = node_of::<StatefulAggregate>(plan) {
        let LogicalPlan::Aggregate(aggregate) = &stateful.input else { return None };
        return (index < key_count(aggregate)).then_some(index);
    }
    match plan {
        LogicalPlan::Projection(projection) => expression_key(&projection.expr[index], &projection.input),
        _ => pass_through(plan).and_then(|input| aggregate_key(input, index)),
    }
}

fn expression_key(expr: &Expr, input: &LogicalPlan) -> Option<usize> {
    match expr {
        Expr::Alias(alias) => expression_key(&alias.expr, input),
        Expr::Column(column) => aggregate_key(input, index_of(input, column)?),
        // A window, its start, its end and its time all tell which window it is.
        Expr::ScalarFunction(ScalarFunction { func, args }) => match func.name() {
            WINDOW_OF | WINDOW_TIME | "get_field" if is_window(args.first()?) || func.name() == WINDOW_OF => {
                expression_key(args.first()?, input)
            }
            _ => None,
        },
        _ => None,
    }
}

/// Whether an expression is a window made of its start; a field of any other struct tells less than the struct.
fn is_window(expr: &Expr) -> bool {
    match expr {
        Expr::Alias(alias) => is_window(&alias.expr),
        Expr::ScalarFunction(ScalarFunction { func, .. }) => func.name() == WINDOW_OF,
        _ => false,
    }
}

/// The topmost stateful aggregate, if all that is above it keeps its rows apart.
pub(crate) fn top_aggregate(plan: &LogicalPlan) -> Option<&Aggregate> {
    if let Some(stateful) = node_of::<StatefulAggregate>(plan) {
        return match &stateful.input {
            LogicalPlan::Aggregate(aggregate) => Some(aggregate),
            _ => None,
        };
    }
    match plan {
        LogicalPlan::Projection(projection) => top_aggregate(&projection.input),
        _ => pass_through(plan).and_then(top_aggregate),
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
fn pass_through(plan: &LogicalPlan) -> Option<&LogicalPlan> {
    match plan {
        LogicalPlan::Filter(node) => Some(&node.input),
        LogicalPlan::SubqueryAlias(node) => Some(&node.input),
        LogicalPlan::Sort(node) => Some(&node.input),
        LogicalPlan::Limit(node) => Some(&node.input),
        _ => None,
    }
}

fn index_of(plan: &LogicalPlan, column: &Column) -> Option<usize> {
    plan.schema().maybe_index_of_column(column)
}
