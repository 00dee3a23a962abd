//! Finds the stateful operators of an optimised plan, numbers them, and says which watermark each of them has.

use std::sync::Arc;

use datafusion::catalog::default_table_source::source_as_provider;
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::{Aggregate, Join, LogicalPlan};
use perennial_core::sink::OutputMode;

use super::join::StreamJoin;
use super::lineage::{EventTime, event_time, expression_event_time, group_exprs, window_size};
use super::nodes::{
    Deduplicate, EventKey, Place, SessionAggregate, StatefulAggregate, StatefulLimit, Watermark, extension, node_of,
};
use crate::TableKind;
use crate::exec::source::StreamTable;

/// Marks the operators over streams as stateful. They are numbered as Spark numbers them: from the sink towards the sources, left
/// before right.
pub(crate) fn mark(plan: LogicalPlan, mode: OutputMode) -> Result<LogicalPlan> {
    Ok(Marking { mode, operators: 0, states: 0 }.mark(plan)?.plan)
}

/// What is known of the rows that come out of a plan.
struct Marked {
    plan: LogicalPlan,
    /// Whether they come from a stream.
    streaming: bool,
    /// Whether they have been in a state.
    stateful: bool,
    /// How far their watermark is ahead of the query's, in milliseconds: an operator that holds rows back has its own, behind it. `None`
    /// where no watermark is known.
    shift_ms: Option<i64>,
}

struct Marking {
    mode: OutputMode,
    operators: usize,
    states: usize,
}

impl Marking {
    fn mark(&mut self, plan: LogicalPlan) -> Result<Marked> {
        match plan {
            LogicalPlan::TableScan(scan) => {
                let provider = source_as_provider(&scan.source)?;
                let streaming = provider.downcast_ref::<StreamTable>().is_some_and(|t| t.kind() == TableKind::Stream);
                Ok(Marked { plan: LogicalPlan::TableScan(scan), streaming, stateful: false, shift_ms: None })
            }
            LogicalPlan::Aggregate(aggregate) if reads_stream(&aggregate.input)? => self.aggregate(aggregate, false),
            LogicalPlan::Join(join) if reads_stream(&join.left)? && reads_stream(&join.right)? => self.join(&join),
            plan => {
                if let Some(deduplicate) = node_of::<Deduplicate>(&plan) {
                    return self.deduplicate(deduplicate.clone());
                }
                if let Some(limit) = node_of::<StatefulLimit>(&plan) {
                    return self.limit(limit.clone());
                }
                match node_of::<SessionAggregate>(&plan).map(|sessions| &sessions.input) {
                    Some(LogicalPlan::Aggregate(aggregate)) => self.aggregate(aggregate.clone(), true),
                    _ => self.pass(plan),
                }
            }
        }
    }

    /// A node without state: its rows have the watermark of the slowest of its inputs.
    fn pass(&mut self, plan: LogicalPlan) -> Result<Marked> {
        let (mut streaming, mut stateful, mut shift_ms) = (false, false, None);
        let is_watermark = node_of::<Watermark>(&plan).is_some();
        let plan = plan
            .map_children(|child| {
                let child = self.mark(child)?;
                streaming |= child.streaming;
                stateful |= child.stateful;
                shift_ms = slowest(shift_ms, child.shift_ms);
                Ok(Transformed::yes(child.plan))
            })?
            .data;
        if is_watermark {
            shift_ms = Some(0);
        }
        Ok(Marked { plan, streaming, stateful, shift_ms })
    }

    /// The next operator, with this many states.
    fn number(&mut self, states: usize) -> (usize, usize) {
        let numbers = (self.operators, self.states);
        self.operators += 1;
        self.states += states;
        numbers
    }

    fn aggregate(&mut self, mut aggregate: Aggregate, sessions: bool) -> Result<Marked> {
        let (operator, state) = self.number(1 + usize::from(sessions));
        let input = self.mark(aggregate.input.as_ref().clone())?;
        aggregate.input = Arc::new(input.plan);
        let event = match self.mode {
            OutputMode::Complete => None,
            OutputMode::Append | OutputMode::Update => input.shift_ms.and_then(|_| event_key(&aggregate, sessions)),
        };
        let windows = group_exprs(&aggregate).iter().map(|key| window_size(key, &aggregate.input)).collect();
        let place = Place { operator, state, shift_ms: input.shift_ms, first: !input.stateful };
        let input_plan = LogicalPlan::Aggregate(aggregate);
        let plan = extension(StatefulAggregate { input: input_plan, place, sessions, event, windows, mode: self.mode });
        Ok(Marked { plan, streaming: true, stateful: true, shift_ms: input.shift_ms })
    }

    fn deduplicate(&mut self, deduplicate: Deduplicate) -> Result<Marked> {
        let (operator, state) = self.number(1);
        let input = self.mark(deduplicate.input)?;
        let place = Place { operator, state, shift_ms: input.shift_ms, first: !input.stateful };
        let columns = 0..input.plan.schema().fields().len();
        let event = columns.into_iter().find(|column| event_time(&input.plan, *column) == Some(EventTime::At));
        let event = event.filter(|_| input.shift_ms.is_some());
        let plan = extension(Deduplicate { input: input.plan, place: Some((place, event)), ..deduplicate });
        Ok(Marked { plan, streaming: true, stateful: true, shift_ms: input.shift_ms })
    }

    fn limit(&mut self, limit: StatefulLimit) -> Result<Marked> {
        let (operator, state) = self.number(1);
        let input = self.mark(limit.input)?;
        let place = Place { operator, state, shift_ms: input.shift_ms, first: !input.stateful };
        let plan = extension(StatefulLimit { input: input.plan, place: Some(place), ..limit });
        Ok(Marked { plan, streaming: true, stateful: true, shift_ms: input.shift_ms })
    }

    /// A join of two streams: a state per side.
    fn join(&mut self, join: &Join) -> Result<Marked> {
        let numbers = self.number(2);
        let left = self.mark(join.left.as_ref().clone())?;
        let right = self.mark(join.right.as_ref().clone())?;
        let shift_ms = slowest(left.shift_ms, right.shift_ms);
        let first = [!left.stateful, !right.stateful];
        let join = StreamJoin::new(join, [left.plan, right.plan], numbers, shift_ms, first)?;
        let shift_ms = join.output_shift_ms();
        Ok(Marked { plan: extension(join), streaming: true, stateful: true, shift_ms })
    }
}

fn slowest(one: Option<i64>, other: Option<i64>) -> Option<i64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Whether a plan reads a stream, and not only tables that are read whole for each batch.
pub(crate) fn reads_stream(plan: &LogicalPlan) -> Result<bool> {
    plan.exists(|node| {
        let LogicalPlan::TableScan(scan) = node else { return Ok(false) };
        let provider = source_as_provider(&scan.source)?;
        Ok(provider.downcast_ref::<StreamTable>().is_some_and(|table| table.kind() == TableKind::Stream))
    })
}

/// The first of the keys that is an event time or a window over one; of sessions, the key that is their end.
fn event_key(aggregate: &Aggregate, sessions: bool) -> Option<EventKey> {
    let keys = group_exprs(aggregate);
    let first = if sessions { keys.len().saturating_sub(1) } else { 0 };
    keys.iter().enumerate().skip(first).find_map(|(key, expr)| match expression_event_time(expr, &aggregate.input)? {
        EventTime::At | EventTime::End => Some(EventKey { key, span: 0 }),
        EventTime::Start(span) => Some(EventKey { key, span }),
        EventTime::Window => None,
    })
}
