//! What is done to a plan before DataFusion optimises it: watermarks above the sources that have one, windows and grouping keys as
//! plain columns.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DataFusionError, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Aggregate, Distinct, Expr, ExprSchemable, Filter, LogicalPlan, Projection, col};

use super::lineage::group_exprs;
use super::nodes::{AssignWindows, Deduplicate, WINDOW_START, Watermark, extension};
use crate::SourceTable;
use crate::error::refused;
use crate::functions::keys::GroupingKey;
use crate::functions::window::{WINDOW, WindowOf, WindowSpec, WindowTime};

/// Puts a [`Watermark`] above every source that has one, and a [`Deduplicate`] above that.
pub(crate) fn add_watermarks(plan: LogicalPlan, sources: &[SourceTable]) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| {
        let LogicalPlan::TableScan(scan) = &node else { return Ok(Transformed::no(node)) };
        let Some(source) = sources.iter().find(|source| source.name == scan.table_name.table()) else {
            return Ok(Transformed::no(node));
        };
        let mut plan = node.clone();
        if let Some(watermark) = &source.watermark {
            plan = extension(Watermark {
                source: source.name.clone(),
                column: watermark.column.clone(),
                delay: watermark.delay_micros,
                number: None,
                input: plan,
            });
        }
        if let Some(deduplicate) = &source.deduplicate {
            let column = |name: &str| {
                let (table, field) = plan.schema().qualified_field_with_unqualified_name(name)?;
                Ok::<_, DataFusionError>(Expr::Column(Column::from((table, field))))
            };
            let keys = deduplicate.columns.iter().map(|name| column(name)).collect::<Result<_>>()?;
            let within = match &source.watermark {
                Some(watermark) if deduplicate.within_watermark => {
                    Some((column(&watermark.column)?, watermark.delay_micros))
                }
                _ => None,
            };
            plan = extension(Deduplicate { keys, within, place: None, input: plan });
        }
        Ok(Transformed::yes(plan))
    })
    .map(|transformed| transformed.data)
}

/// Makes windows and grouping keys plain columns: `window(…)` becomes [`AssignWindows`] below its node and [`WindowOf`] above, DISTINCT
/// becomes an aggregate, keys of floating point are made comparable.
pub(crate) fn expand(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| {
        Ok(match node {
            LogicalPlan::Projection(projection) => expand_projection(projection)?,
            LogicalPlan::Filter(filter) => expand_filter(filter)?,
            LogicalPlan::Aggregate(aggregate) => expand_aggregate(aggregate)?,
            LogicalPlan::Distinct(Distinct::All(input)) => {
                let keys = input.schema().columns().into_iter().map(Expr::Column).collect();
                let aggregate = expand_aggregate(Aggregate::try_new(input, keys, vec![])?)?;
                Transformed::yes(aggregate.data)
            }
            other => {
                let mut windows = Vec::new();
                for expr in other.expressions() {
                    window_calls(&expr, &mut windows)?;
                }
                if let Some((call, _, _)) = windows.first() {
                    return Err(refused(
                        "UNSUPPORTED_EXPR_FOR_OPERATOR",
                        format!("{call} is not supported here: compute the window in a subquery and use its columns"),
                    ));
                }
                Transformed::no(other)
            }
        })
    })
    .map(|transformed| transformed.data)
}

/// The `window(…)` calls of an expression: the call, its time and its parameters.
fn window_calls(expr: &Expr, found: &mut Vec<(Expr, Expr, WindowSpec)>) -> Result<()> {
    expr.apply(|inner| {
        if let Expr::ScalarFunction(ScalarFunction { func, args }) = inner
            && func.name() == WINDOW
        {
            if !found.iter().any(|(call, _, _)| call == inner) {
                found.push((inner.clone(), args[0].clone(), WindowSpec::from_arguments(&args[1..])?));
            }
            return Ok(TreeNodeRecursion::Jump);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// The one window of a node with its input, or nothing.
fn assign(input: &Arc<LogicalPlan>, exprs: &[&Expr]) -> Result<Option<(Expr, LogicalPlan, WindowSpec)>> {
    let mut calls = Vec::new();
    for expr in exprs {
        window_calls(expr, &mut calls)?;
    }
    let Some((call, time, spec)) = calls.pop() else { return Ok(None) };
    if !calls.is_empty() {
        return Err(refused(
            "_LEGACY_ERROR_TEMP_1039",
            "several window() calls in one SELECT would pair every window with every other one: use one per SELECT",
        ));
    }
    // A window as the time means the window's last moment.
    let time = match time.get_type(input.schema())? {
        datafusion::arrow::datatypes::DataType::Struct(_) => {
            Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(WindowTime::udf()), vec![time]))
        }
        _ => time,
    };
    let windows = AssignWindows::new(input.as_ref().clone(), time, spec)?;
    Ok(Some((call, extension(windows), spec)))
}

/// Replaces a call by the window made of the start column.
fn replace(expr: Expr, call: &Expr, spec: WindowSpec) -> Result<Expr> {
    let name = expr.schema_name().to_string();
    let replaced = expr
        .transform_up(|inner| {
            Ok(if inner == *call {
                Transformed::yes(WindowOf::call(start_column(), spec.size))
            } else {
                Transformed::no(inner)
            })
        })?
        .data;
    // The column keeps its name for those above.
    if replaced.schema_name().to_string() == name { Ok(replaced) } else { Ok(replaced.alias(name)) }
}

fn start_column() -> Expr {
    col(Column::new_unqualified(WINDOW_START))
}

fn expand_projection(projection: Projection) -> Result<Transformed<LogicalPlan>> {
    let Some((call, input, spec)) = assign(&projection.input, &projection.expr.iter().collect::<Vec<_>>())? else {
        return Ok(Transformed::no(LogicalPlan::Projection(projection)));
    };
    let exprs = projection.expr.into_iter().map(|expr| replace(expr, &call, spec)).collect::<Result<_>>()?;
    Ok(Transformed::yes(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input))?)))
}

fn expand_filter(filter: Filter) -> Result<Transformed<LogicalPlan>> {
    let Some((call, input, spec)) = assign(&filter.input, &[&filter.predicate])? else {
        return Ok(Transformed::no(LogicalPlan::Filter(filter)));
    };
    let columns: Vec<Expr> = filter.input.schema().columns().into_iter().map(Expr::Column).collect();
    let predicate = replace(filter.predicate, &call, spec)?.unalias();
    let filter = LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(input))?);
    Ok(Transformed::yes(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(filter))?)))
}

/// Moves windows and floating-point keys out of an aggregate; a projection above gives its columns their old names and values.
fn expand_aggregate(aggregate: Aggregate) -> Result<Transformed<LogicalPlan>> {
    let before = aggregate.schema.clone();
    let keys = group_exprs(&aggregate);
    let all: Vec<&Expr> = aggregate.group_expr.iter().chain(&aggregate.aggr_expr).collect();
    let assigned = assign(&aggregate.input, &all)?;
    let input_schema = aggregate.input.schema().clone();
    let is_float = |expr: &Expr| expr.get_type(&input_schema).is_ok_and(|data_type| GroupingKey::needed(&data_type));
    if assigned.is_none() && !keys.iter().any(is_float) {
        return Ok(Transformed::no(LogicalPlan::Aggregate(aggregate)));
    }

    let Aggregate { input, group_expr, aggr_expr, .. } = aggregate;
    let rewrite_key = |key: Expr| -> Result<Expr> {
        let key = match &assigned {
            Some((call, _, _)) if key.clone().unalias() == *call => start_column(),
            Some((call, _, spec)) => replace(key, call, *spec)?,
            None => key,
        };
        Ok(if is_float(&key) { GroupingKey::call(key) } else { key })
    };
    let group_expr = group_expr
        .into_iter()
        .map(|expr| match expr {
            Expr::GroupingSet(set) => Ok(Expr::GroupingSet(match set {
                datafusion::logical_expr::GroupingSet::Rollup(exprs) => datafusion::logical_expr::GroupingSet::Rollup(
                    exprs.into_iter().map(rewrite_key).collect::<Result<_>>()?,
                ),
                datafusion::logical_expr::GroupingSet::Cube(exprs) => datafusion::logical_expr::GroupingSet::Cube(
                    exprs.into_iter().map(rewrite_key).collect::<Result<_>>()?,
                ),
                datafusion::logical_expr::GroupingSet::GroupingSets(sets) => {
                    datafusion::logical_expr::GroupingSet::GroupingSets(
                        sets.into_iter()
                            .map(|set| set.into_iter().map(rewrite_key).collect::<Result<_>>())
                            .collect::<Result<_>>()?,
                    )
                }
            })),
            key => rewrite_key(key),
        })
        .collect::<Result<Vec<_>>>()?;
    let aggr_expr = match &assigned {
        Some((call, _, spec)) => {
            aggr_expr.into_iter().map(|expr| replace(expr, call, *spec)).collect::<Result<Vec<_>>>()?
        }
        None => aggr_expr,
    };
    let spec = assigned.as_ref().map(|(_, _, spec)| *spec);
    let is_window: Vec<bool> =
        keys.iter().map(|key| assigned.as_ref().is_some_and(|(call, _, _)| key.clone().unalias() == *call)).collect();
    let input = match assigned {
        Some((_, input, _)) => Arc::new(input),
        None => input,
    };
    let aggregate = Aggregate::try_new(input, group_expr, aggr_expr)?;
    let after = aggregate.schema.clone();
    let restored = after
        .columns()
        .into_iter()
        .enumerate()
        .map(|(index, column)| {
            let value = match spec {
                Some(spec) if is_window.get(index) == Some(&true) => WindowOf::call(Expr::Column(column), spec.size),
                _ => Expr::Column(column),
            };
            named_as(value, &before, index)
        })
        .collect();
    let restored = Projection::try_new(restored, Arc::new(LogicalPlan::Aggregate(aggregate)))?;
    Ok(Transformed::yes(LogicalPlan::Projection(restored)))
}

fn named_as(value: Expr, schema: &DFSchema, index: usize) -> Expr {
    let (table, field) = schema.qualified_field(index);
    match &value {
        Expr::Column(column) if column.relation.as_ref() == table && column.name == *field.name() => value,
        _ => value.alias_qualified(table.cloned(), field.name()),
    }
}
