//! Grouping sets: Spark's other ways to write them, and what tells the sets apart.

use std::ops::ControlFlow;

use datafusion::common::DataFusionError;
use datafusion::sql::sqlparser::ast::{
    CastKind, DataType, Expr, GroupByExpr, GroupByWithModifier, OrderByKind, Query, Select, SelectItem, SetExpr,
    VisitMut, VisitorMut,
};

use super::Flow;
use super::functions::{arguments, call};
use crate::error::refused_analysis;

/// Makes `GROUP BY a WITH ROLLUP` and its like grouping sets, and `grouping_id()` a call with the keys.
pub(crate) struct GroupingSets;

impl VisitorMut for GroupingSets {
    type Break = DataFusionError;

    fn pre_visit_query(&mut self, query: &mut Query) -> Flow {
        let SetExpr::Select(select) = query.body.as_mut() else { return ControlFlow::Continue(()) };
        normalise(select);
        let keys = keys(select);
        if let Some(order_by) = &mut query.order_by
            && let OrderByKind::Expressions(exprs) = &mut order_by.kind
        {
            for expr in exprs {
                expr.expr.visit(&mut Calls { keys: &keys })?;
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> Flow {
        normalise(select);
        let keys = keys(select);
        let mut calls = Calls { keys: &keys };
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
                expr.visit(&mut calls)?;
            }
        }
        match &mut select.having {
            Some(having) => having.visit(&mut calls),
            None => ControlFlow::Continue(()),
        }
    }
}

/// `GROUP BY a, b WITH CUBE` is `GROUP BY CUBE (a, b)`; `GROUP BY a, b GROUPING SETS (…)` is `GROUP BY GROUPING SETS (…)`.
fn normalise(select: &mut Select) {
    let GroupByExpr::Expressions(exprs, modifiers) = &mut select.group_by else { return };
    for modifier in std::mem::take(modifiers) {
        let columns = || exprs.iter().map(|expr| vec![expr.clone()]).collect();
        match modifier {
            GroupByWithModifier::Rollup => *exprs = vec![Expr::Rollup(columns())],
            GroupByWithModifier::Cube => *exprs = vec![Expr::Cube(columns())],
            GroupByWithModifier::GroupingSets(sets) => *exprs = vec![sets],
            other @ GroupByWithModifier::Totals => modifiers.push(other),
        }
    }
}

/// The keys of a `SELECT` with grouping sets, in the order in which they are written; nothing without grouping sets.
fn keys(select: &Select) -> Option<Vec<Expr>> {
    let GroupByExpr::Expressions(exprs, _) = &select.group_by else { return None };
    let mut keys: Vec<Expr> = Vec::new();
    let mut has_sets = false;
    for expr in exprs {
        let of_expr: Vec<&Expr> = match expr {
            Expr::Rollup(sets) | Expr::Cube(sets) | Expr::GroupingSets(sets) => {
                has_sets = true;
                sets.iter().flatten().collect()
            }
            plain => vec![plain],
        };
        for key in of_expr {
            if !keys.contains(key) {
                keys.push(key.clone());
            }
        }
    }
    has_sets.then_some(keys)
}

/// Gives `grouping` and `grouping_id` Spark's types.
struct Calls<'a> {
    keys: &'a Option<Vec<Expr>>,
}

impl VisitorMut for Calls<'_> {
    type Break = DataFusionError;

    fn post_visit_expr(&mut self, expr: &mut Expr) -> Flow {
        let Expr::Function(function) = &*expr else { return ControlFlow::Continue(()) };
        let name = function.name.to_string().to_lowercase();
        let is_id = name == "grouping_id";
        if !is_id && name != "grouping" {
            return ControlFlow::Continue(());
        }
        let (Some(keys), Some(args)) = (self.keys, arguments(function)) else {
            return ControlFlow::Break(refused_analysis(
                "UNSUPPORTED_GROUPING_EXPRESSION",
                format!("{name}() tells grouping sets apart: use it with ROLLUP, CUBE or GROUPING SETS"),
            ));
        };
        if is_id && !args.is_empty() && args != *keys {
            return ControlFlow::Break(refused_analysis(
                "GROUPING_ID_COLUMN_MISMATCH",
                "the arguments of grouping_id() must be all keys of GROUP BY, in their order: leave them out",
            ));
        }
        let data_type = if is_id { DataType::BigInt(None) } else { DataType::TinyInt(None) };
        *expr = Expr::Cast {
            kind: CastKind::Cast,
            expr: Box::new(call("grouping", if is_id { keys.clone() } else { args })),
            data_type,
            array: false,
            format: None,
        };
        ControlFlow::Continue(())
    }
}
