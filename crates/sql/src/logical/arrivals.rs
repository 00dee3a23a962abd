//! The plans from the sources to the first operators with state, with the number of each row in a column: for finding rows that are late.

use std::sync::Arc;

use datafusion::catalog::default_table_source::{provider_as_source, source_as_provider};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{Column, Result, internal_err};
use datafusion::logical_expr::{Expr, LogicalPlan, Projection, TableScanBuilder, Union};

use super::join::StreamJoin;
use super::lineage::group_exprs;
use super::nodes::{AssignWindows, Deduplicate, StatefulAggregate, StatefulLimit, Watermark, node_of};
use super::stateful::reads_stream;
use crate::error::unsupported;
use crate::exec::source::{ROW_NUMBER, StreamTable};

/// Where rows of sources go into a state, or past all state to the sink.
pub(crate) struct Arrival {
    /// The numbers of the rows and, where they can be late, their event times or the windows over these.
    pub(crate) plan: LogicalPlan,
    /// How many microseconds after its event time a row is late; `None` where it never is.
    pub(crate) span: Option<i64>,
}

/// The arrivals of a plan whose stateful operators are marked.
pub(crate) fn arrivals(plan: &LogicalPlan) -> Result<Vec<Arrival>> {
    let mut found = Vec::new();
    collect(plan, &mut found)?;
    Ok(found)
}

fn collect(plan: &LogicalPlan, found: &mut Vec<Arrival>) -> Result<()> {
    if let Some(aggregate) = node_of::<StatefulAggregate>(plan) {
        let LogicalPlan::Aggregate(inner) = &aggregate.input else {
            return internal_err!("a stateful aggregate has no aggregate");
        };
        if !aggregate.place.first {
            return collect(&inner.input, found);
        }
        let keys = group_exprs(inner);
        let event = aggregate.event.and_then(|event| Some((keys.get(event.key)?.clone(), event.span)));
        found.push(arrival(&inner.input, event)?);
    } else if let Some(deduplicate) = node_of::<Deduplicate>(plan) {
        let Some((place, event)) = deduplicate.place else {
            return internal_err!("a deduplication has no place in its plan");
        };
        if !place.first {
            return collect(&deduplicate.input, found);
        }
        found.push(arrival(&deduplicate.input, event.map(|event| (column(&deduplicate.input, event), 0)))?);
    } else if let Some(limit) = node_of::<StatefulLimit>(plan) {
        if limit.place.is_some_and(|place| !place.first) {
            return collect(&limit.input, found);
        }
        found.push(arrival(&limit.input, None)?);
    } else if let Some(join) = node_of::<StreamJoin>(plan) {
        for (side, input) in join.sides.iter().zip(&join.inputs) {
            if side.first {
                found.push(arrival(input, side.event.map(|event| (column(input, event), 0)))?);
            } else {
                collect(input, found)?;
            }
        }
    } else if is_stateful(plan)? {
        let inputs = plan.inputs();
        for input in &inputs {
            if inputs.len() == 1 || is_stateful(input)? {
                collect(input, found)?;
            } else if reads_stream(input)? {
                found.push(arrival(input, None)?);
            }
        }
    }
    Ok(())
}

fn is_stateful(plan: &LogicalPlan) -> Result<bool> {
    plan.exists(|node| {
        Ok(node_of::<StatefulAggregate>(node).is_some()
            || node_of::<Deduplicate>(node).is_some()
            || node_of::<StatefulLimit>(node).is_some()
            || node_of::<StreamJoin>(node).is_some())
    })
}

fn column(plan: &LogicalPlan, index: usize) -> Expr {
    Expr::Column(plan.schema().qualified_field(index).into())
}

fn arrival(plan: &LogicalPlan, event: Option<(Expr, i64)>) -> Result<Arrival> {
    let span = event.as_ref().map(|(_, span)| *span);
    let plan = numbered(plan)?;
    let number = number_of(&plan)?.alias(ROW_NUMBER);
    let columns = std::iter::once(number).chain(event.map(|(time, _)| time.unalias().alias("__event_time"))).collect();
    Ok(Arrival { plan: LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?), span })
}

/// The column of a plan that has the numbers of its rows.
fn number_of(plan: &LogicalPlan) -> Result<Expr> {
    let fields = plan.schema().iter();
    let mut numbers = fields.filter(|(_, field)| field.name() == ROW_NUMBER);
    match numbers.next() {
        Some(number) => Ok(Expr::Column(Column::from(number))),
        None => internal_err!("the numbers of the rows got lost on their way"),
    }
}

/// A plan without state whose rows have their numbers in a further column.
fn numbered(plan: &LogicalPlan) -> Result<LogicalPlan> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let provider = source_as_provider(&scan.source)?;
            let Some(table) = provider.downcast_ref::<StreamTable>() else {
                return internal_err!("{} is not a source", scan.table_name);
            };
            let columns = table.columns().fields().len();
            let projection = scan.projection.clone().unwrap_or_else(|| (0..columns).collect());
            let scan =
                TableScanBuilder::new(scan.table_name.clone(), provider_as_source(Arc::new(table.with_row_numbers())))
                    .with_projection(Some(projection.into_iter().chain([columns]).collect()))
                    .with_filters(scan.filters.clone())
                    .build()?;
            Ok(LogicalPlan::TableScan(scan))
        }
        LogicalPlan::Projection(projection) => {
            let input = numbered(&projection.input)?;
            let mut columns = projection.expr.clone();
            columns.push(number_of(&input)?);
            Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input))?))
        }
        LogicalPlan::Union(union) => {
            let branch = |branch: &Arc<LogicalPlan>| {
                let input = numbered(branch)?;
                let own = branch.schema().columns().into_iter().map(Expr::Column);
                let columns = own.chain([number_of(&input)?.alias(ROW_NUMBER)]).collect();
                Ok(Arc::new(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input))?)))
            };
            let branches = union.inputs.iter().map(branch).collect::<Result<_>>()?;
            let united = LogicalPlan::Union(Union::try_new(branches)?);
            let names = union.schema.iter().enumerate();
            let columns = names
                .map(|(index, (table, field))| column(&united, index).alias_qualified(table.cloned(), field.name()));
            let columns = columns.chain([number_of(&united)?]).collect();
            Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(united))?))
        }
        LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::Unnest(_) | LogicalPlan::Join(_) => {
            with_numbered_inputs(plan)
        }
        plan if node_of::<Watermark>(plan).is_some() || node_of::<AssignWindows>(plan).is_some() => {
            with_numbered_inputs(plan)
        }
        other => Err(unsupported(format!(
            "late: dead_letter cannot follow single rows through this part of the query: {}. Leave `late` out",
            other.display()
        ))),
    }
}

fn with_numbered_inputs(plan: &LogicalPlan) -> Result<LogicalPlan> {
    let input = |input: &&LogicalPlan| if reads_stream(input)? { numbered(input) } else { Ok((*input).clone()) };
    let inputs = plan.inputs().iter().map(input).collect::<Result<_>>()?;
    plan.with_new_exprs(plan.expressions(), inputs)
}
