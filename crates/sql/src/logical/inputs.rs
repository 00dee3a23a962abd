//! Numbers the inputs of an optimised plan, and its stateful operators.

use std::sync::Arc;

use datafusion::catalog::default_table_source::{provider_as_source, source_as_provider};
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Aggregate, LogicalPlan};
use perennial_core::plan::PlanInput;
use perennial_core::sink::OutputMode;

use super::lineage::{EventTime, expression_event_time, group_exprs};
use super::nodes::{EventKey, StatefulAggregate, Watermark, extension, node_of};
use crate::exec::source::StreamTable;

/// Gives each appearance of a source its number, left to right, and says what it reads.
pub(crate) fn number_inputs(plan: LogicalPlan) -> Result<(LogicalPlan, Vec<PlanInput>)> {
    let mut inputs: Vec<PlanInput> = Vec::new();
    let plan = plan
        .transform_down_with_subqueries(|node| {
            let LogicalPlan::TableScan(mut scan) = node else { return Ok(Transformed::no(node)) };
            let provider = source_as_provider(&scan.source)?;
            let Some(table) = provider.downcast_ref::<StreamTable>() else {
                return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
            };
            let mut columns =
                scan.projection.clone().unwrap_or_else(|| (0..table.columns().fields().len()).collect::<Vec<_>>());
            columns.sort_unstable();
            let numbered = table.numbered(inputs.len());
            inputs.push(PlanInput { source: table.source().to_owned(), columns, watermark_delay: None });
            scan.source = provider_as_source(Arc::new(numbered));
            Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
        })?
        .data;
    let plan = plan
        .transform_up_with_subqueries(|node| {
            let Some(watermark) = node_of::<Watermark>(&node) else { return Ok(Transformed::no(node)) };
            let number = scan_number(&watermark.input)?;
            if let Some(input) = number.and_then(|number| inputs.get_mut(number)) {
                input.watermark_delay = Some(watermark.delay);
            }
            Ok(Transformed::yes(extension(Watermark { number, ..watermark.clone() })))
        })?
        .data;
    Ok((plan, inputs))
}

/// The number of the one scan below a watermark.
fn scan_number(plan: &LogicalPlan) -> Result<Option<usize>> {
    let mut number = None;
    plan.apply(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            number = source_as_provider(&scan.source)?.downcast_ref::<StreamTable>().and_then(StreamTable::number);
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(number)
}

/// Marks the aggregates over streams as stateful, numbered from the sink towards the sources.
pub(crate) fn mark_stateful(plan: LogicalPlan, mode: OutputMode, operators: &mut usize) -> Result<LogicalPlan> {
    let LogicalPlan::Aggregate(mut aggregate) = plan else {
        return plan
            .map_children(|child| Ok(Transformed::yes(mark_stateful(child, mode, operators)?)))
            .map(|transformed| transformed.data);
    };
    let operator = *operators;
    *operators += 1;
    let event = match mode {
        OutputMode::Complete => None,
        OutputMode::Append | OutputMode::Update => event_key(&aggregate),
    };
    let first = !aggregate.input.exists(|below| Ok(matches!(below, LogicalPlan::Aggregate(_))))?;
    aggregate.input = Arc::new(mark_stateful(aggregate.input.as_ref().clone(), mode, operators)?);
    Ok(extension(StatefulAggregate { input: LogicalPlan::Aggregate(aggregate), operator, event, mode, first }))
}

/// The first of the keys that is an event time or a window over one.
fn event_key(aggregate: &Aggregate) -> Option<EventKey> {
    group_exprs(aggregate).iter().enumerate().find_map(|(key, expr)| {
        match expression_event_time(expr, &aggregate.input)? {
            EventTime::At => Some(EventKey { key, span: 0 }),
            EventTime::Start(span) => Some(EventKey { key, span }),
            EventTime::Window => None,
        }
    })
}
