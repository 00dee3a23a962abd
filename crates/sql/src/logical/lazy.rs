//! `a AND b` does not look at `b` where `a` is false: as in Spark, an expression that can fail fails only on rows that get to it. DataFusion
//! works on whole batches and looks at both sides, but for one branch of CASE only at the rows of the branch.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::split_conjunction_owned;
use datafusion::logical_expr::{BinaryExpr, Expr, Filter, LogicalPlan, Operator, and, lit, or, when};

use super::analyse::keeping_names;

/// Functions that fail on some of their arguments. Casts are another matter.
const FALLIBLE: &[&str] = &[
    "abs",
    "add",
    "assert_true",
    "ceil",
    "conv",
    "date_add",
    "date_sub",
    "div",
    "divide",
    "element_at",
    "floor",
    "make_date",
    "make_timestamp",
    "multiply",
    "negative",
    "pmod",
    "raise_error",
    "remainder",
    "round",
    "subscript",
    "subtract",
    "to_date",
    "to_number",
    "to_timestamp",
    "unix_timestamp",
];

/// Guards what can fail, in a plan that is optimised.
pub(crate) fn guard(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Filter(filter) => {
            let predicate = conjunction(filter.predicate)?;
            Ok(Transformed::yes(LogicalPlan::Filter(Filter::try_new(predicate, filter.input)?)))
        }
        LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_) => {
            let names = NamePreserver::new(&node);
            node.map_expressions(|expr| {
                keeping_names(&names, expr, &mut |expr| Ok(guarded(expr)?.data)).map(Transformed::yes)
            })
        }
        other => Ok(Transformed::no(other)),
    })
    .map(|transformed| transformed.data)
}

fn can_fail(expr: &Expr) -> Result<bool> {
    let mut fallible = false;
    expr.apply(|inner| {
        if let Expr::ScalarFunction(call) = inner {
            let name = call.func.name();
            fallible |= FALLIBLE.contains(&name)
                || name == "cast" && call.func.return_type(&[]).is_ok_and(|to| to != DataType::Utf8);
        }
        Ok(if fallible { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(fallible)
}

/// The predicate of a filter: NULL counts as false, so that each part is asked once.
fn conjunction(predicate: Expr) -> Result<Expr> {
    let mut parts = split_conjunction_owned(predicate).into_iter();
    let Some(first) = parts.next() else { return Ok(lit(true)) };
    let first = guarded(first)?.data;
    parts.try_fold(first, |so_far, part| {
        let fallible = can_fail(&part)?;
        let part = guarded(part)?.data;
        if fallible { when(so_far, part).otherwise(lit(false)) } else { Ok(and(so_far, part)) }
    })
}

/// AND and OR inside of an expression.
fn guarded(expr: Expr) -> Result<Transformed<Expr>> {
    expr.transform_up(|inner| {
        let Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) = inner else {
            return Ok(Transformed::no(inner));
        };
        if !can_fail(&right)? {
            return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })));
        }
        // NULL needs the other side.
        let guarded = if op == Operator::And {
            when(left.clone().is_false(), lit(false)).otherwise(and(*left, *right))?
        } else {
            when(left.clone().is_true(), lit(true)).otherwise(or(*left, *right))?
        };
        Ok(Transformed::yes(guarded))
    })
}
