//! Joins that Spark writes shorter, and what has no effect on the result: `SEMI JOIN` and `ANTI JOIN` are those of the left side.

use std::ops::ControlFlow;

use datafusion::common::DataFusionError;
use datafusion::sql::sqlparser::ast::{JoinOperator, Query, SetExpr, TableWithJoins, VisitorMut};

/// Gives joins the form that DataFusion knows.
pub(super) struct Joins;

impl VisitorMut for Joins {
    type Break = DataFusionError;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Self::Break> {
        in_set(&mut query.body);
        ControlFlow::Continue(())
    }
}

fn in_set(set: &mut SetExpr) {
    match set {
        SetExpr::Select(select) => {
            select.from.iter_mut().for_each(in_table);
            // It only says on which core a row goes on.
            select.distribute_by.clear();
        }
        SetExpr::SetOperation { left, right, .. } => {
            in_set(left);
            in_set(right);
        }
        _ => {}
    }
}

fn in_table(table: &mut TableWithJoins) {
    for join in &mut table.joins {
        let operator = std::mem::replace(&mut join.join_operator, JoinOperator::CrossApply);
        join.join_operator = match operator {
            JoinOperator::Semi(constraint) => JoinOperator::LeftSemi(constraint),
            JoinOperator::Anti(constraint) => JoinOperator::LeftAnti(constraint),
            other => other,
        };
    }
}
