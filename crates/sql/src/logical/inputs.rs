//! Numbers the inputs of an optimised plan.

use std::sync::Arc;

use datafusion::catalog::default_table_source::{provider_as_source, source_as_provider};
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::LogicalPlan;
use perennial_core::plan::PlanInput;

use super::nodes::{Watermark, extension, node_of};
use crate::TableKind;
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
            inputs.push(PlanInput {
                source: table.source().to_owned(),
                columns,
                watermark_delay: None,
                is_static: table.kind() == TableKind::Static,
            });
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
