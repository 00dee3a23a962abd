//! What a query may ask of tables that are read whole, and DataFusion has otherwise: IN and EXISTS as values, Spark's types of window
//! functions.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, Result, Spans};
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::expr::{Exists, InSubquery};
use datafusion::logical_expr::{
    Aggregate, Expr, ExprSchemable, Filter, LogicalPlan, Projection, Subquery, cast, lit, not,
};

/// Makes IN and EXISTS in SELECT and in aggregates scalar subqueries, and numbers of rows INT.
pub(crate) fn expand(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Projection(projection) => {
            let (input, exprs) = without_subqueries(projection.input.clone(), projection.expr.clone())?;
            match exprs {
                None => Ok(Transformed::no(LogicalPlan::Projection(projection))),
                Some(exprs) => {
                    Ok(Transformed::yes(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input))?)))
                }
            }
        }
        LogicalPlan::Aggregate(aggregate) => {
            let (input, exprs) = without_subqueries(aggregate.input.clone(), aggregate.aggr_expr.clone())?;
            match exprs {
                None => Ok(Transformed::no(LogicalPlan::Aggregate(aggregate))),
                Some(exprs) => {
                    let keys = aggregate.group_expr.clone();
                    let aggregate = Aggregate::try_new(Arc::new(input), keys, exprs)?;
                    Ok(Transformed::yes(LogicalPlan::Aggregate(aggregate)))
                }
            }
        }
        LogicalPlan::Window(_) => numbers(node),
        node => Ok(Transformed::no(node)),
    })
    .map(|transformed| transformed.data)
}

/// The numbers of rows that window functions give are INT in Spark.
fn numbers(window: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    if !window.schema().fields().iter().any(|field| *field.data_type() == DataType::UInt64) {
        return Ok(Transformed::no(window));
    }
    let exprs = window
        .schema()
        .iter()
        .map(|(table, field)| {
            let column = Expr::Column(Column::from((table, field)));
            match field.data_type() {
                DataType::UInt64 => cast(column, DataType::Int32).alias_qualified(table.cloned(), field.name()),
                _ => column,
            }
        })
        .collect();
    Ok(Transformed::yes(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(window))?)))
}

/// The expressions with columns in the place of their IN and EXISTS, and the input that has them; `None` where there are none.
fn without_subqueries(input: Arc<LogicalPlan>, exprs: Vec<Expr>) -> Result<(LogicalPlan, Option<Vec<Expr>>)> {
    let mut found: Vec<Expr> = Vec::new();
    for expr in &exprs {
        expr.apply(|inner| {
            if matches!(inner, Expr::Exists(_) | Expr::InSubquery(_)) && !found.contains(inner) {
                found.push(inner.clone());
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    if found.is_empty() {
        return Ok((input.as_ref().clone(), None));
    }
    let name = |number: usize| format!("__exists_{number}");
    let mut columns: Vec<Expr> = input.schema().columns().into_iter().map(Expr::Column).collect();
    for (number, subquery) in found.iter().enumerate() {
        columns.push(exists(subquery, &input)?.alias(name(number)));
    }
    let exprs = exprs
        .into_iter()
        .map(|expr| {
            let shown = expr.schema_name().to_string();
            let replaced = expr.transform_down(|inner| {
                Ok(match found.iter().position(|subquery| *subquery == inner) {
                    Some(number) => Transformed::yes(Expr::Column(Column::new_unqualified(name(number)))),
                    None => Transformed::no(inner),
                })
            })?;
            let renamed = replaced.transformed && replaced.data.schema_name().to_string() != shown;
            Ok(if renamed { replaced.data.alias(shown) } else { replaced.data })
        })
        .collect::<Result<_>>()?;
    Ok((LogicalPlan::Projection(Projection::try_new(columns, input)?), Some(exprs)))
}

/// IN and EXISTS as values: whether the subquery has a row. Never NULL, as in Spark.
fn exists(subquery: &Expr, input: &LogicalPlan) -> Result<Expr> {
    let (Subquery { subquery, mut outer_ref_columns, .. }, negated) = match subquery {
        Expr::Exists(Exists { subquery, negated }) => (subquery.clone(), *negated),
        Expr::InSubquery(InSubquery { expr, subquery, negated }) => (in_as_exists(expr, subquery, input)?, *negated),
        other => return Ok(other.clone()),
    };
    let counted = Aggregate::try_new(subquery, vec![], vec![count(lit(1_i64))])?;
    outer_ref_columns.dedup();
    let count = Expr::ScalarSubquery(Subquery {
        subquery: Arc::new(LogicalPlan::Aggregate(counted)),
        outer_ref_columns,
        spans: Spans::new(),
    });
    let exists = count.gt(lit(0_i64));
    Ok(if negated { not(exists) } else { exists })
}

/// `x IN (SELECT y …)` asks for a row with `y = x`.
fn in_as_exists(expr: &Expr, subquery: &Subquery, input: &LogicalPlan) -> Result<Subquery> {
    let mut outer_ref_columns = subquery.outer_ref_columns.clone();
    let outer = expr
        .clone()
        .transform_up(|inner| {
            let Expr::Column(column) = inner else { return Ok(Transformed::no(inner)) };
            let (_, field) = Expr::Column(column.clone()).to_field(input.schema())?;
            let reference = Expr::OuterReferenceColumn(field, column);
            outer_ref_columns.push(reference.clone());
            Ok(Transformed::yes(reference))
        })?
        .data;
    let (table, field) = subquery.subquery.schema().qualified_field(0);
    let rows = Filter::try_new(Expr::Column(Column::from((table, field))).eq(outer), subquery.subquery.clone())?;
    Ok(Subquery { subquery: Arc::new(LogicalPlan::Filter(rows)), outer_ref_columns, spans: Spans::new() })
}
