//! The checks of expectations.

use std::sync::Arc;

use datafusion::arrow::array::{AsArray, BooleanArray, RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, Result as DfResult, plan_err};
use datafusion::execution::SessionState;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, ExprSchemable, Volatility};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::utils::{collect_columns, reassign_expr_columns};
use datafusion::sql::sqlparser::ast::ExprWithAlias;
use perennial_core::Result;
use perennial_core::error::Error;
use perennial_core::plan::Predicate;

use crate::error::{execution_error, refused};
use crate::logical::analyse;
use crate::planner::external_syntax;
use crate::{ast, zone};

/// A compiled predicate over the columns that it reads.
#[derive(Debug)]
pub(crate) struct SqlPredicate {
    sql: String,
    expr: Arc<dyn PhysicalExpr>,
    columns: Vec<usize>,
    /// The columns that `expr` is compiled for.
    schema: SchemaRef,
}

impl SqlPredicate {
    pub(crate) fn compile(state: &SessionState, sql: &str, schema: &Schema, time_zone: &str) -> DfResult<Self> {
        let all = zone::in_session(schema, time_zone);
        let df_schema = DFSchema::try_from(all.as_ref().clone())?;
        let mut parsed = ast::parse_expression(sql).map_err(|error| external_syntax(&error))?;
        ast::rewrite_expression(&mut parsed, schema.fields())?;
        let planned =
            state.create_logical_expr_from_sql_expr(ExprWithAlias { expr: parsed, alias: None }, &df_schema)?;
        let expr = analyse::expression(planned, &df_schema)?;
        refuse_unstable(&expr, sql)?;

        let context = SimplifyContext::builder()
            .with_schema(Arc::new(df_schema.clone()))
            .with_config_options(state.config_options().clone())
            .build();
        let simplifier = ExprSimplifier::new(context);
        let expr = simplifier.simplify(simplifier.coerce(expr, &df_schema)?)?;
        let data_type = expr.get_type(&df_schema)?;
        if !matches!(data_type, DataType::Boolean | DataType::Null) {
            return plan_err!("type mismatch: the check `{sql}` must be BOOLEAN, not {data_type}");
        }
        let expr = state.create_physical_expr(expr, &df_schema)?;
        let mut columns: Vec<usize> = collect_columns(&expr).iter().map(|column| column.index()).collect();
        columns.sort_unstable();
        columns.dedup();
        let schema = Arc::new(all.project(&columns)?);
        let expr = reassign_expr_columns(expr, &schema)?;
        Ok(Self { sql: sql.to_owned(), expr, columns, schema })
    }
}

/// A check looks at one row, and gives the same answer for it each time.
fn refuse_unstable(expr: &Expr, sql: &str) -> DfResult<()> {
    expr.apply(|inner| {
        let what = match inner {
            Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                format!("{}() is not the same each time", call.func.name())
            }
            Expr::AggregateFunction(call) => format!("{}() looks at many rows", call.func.name()),
            Expr::WindowFunction(_) | Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) => {
                "it looks at other rows".to_owned()
            }
            _ => return Ok(TreeNodeRecursion::Continue),
        };
        Err(refused(
            "UNSUPPORTED_EXPR_FOR_PREDICATE",
            format!("the check `{sql}` must depend on its row only, and {what}: put it into the query instead"),
        ))
    })?;
    Ok(())
}

impl Predicate for SqlPredicate {
    fn columns(&self) -> &[usize] {
        &self.columns
    }

    fn evaluate(&self, rows: &RecordBatch) -> Result<BooleanArray> {
        let mut columns = Vec::with_capacity(self.columns.len());
        for field in self.schema.fields() {
            let Some(column) = rows.column_by_name(field.name()) else {
                return Err(Error::bug(format!(
                    "the check `{}` reads column `{}`, which is not there",
                    self.sql,
                    field.name()
                )));
            };
            columns.push(if column.data_type() == field.data_type() {
                column.clone()
            } else {
                cast(column, field.data_type())?
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let rows = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?;
        let evaluate = || {
            let result = self.expr.evaluate(&rows)?.into_array(rows.num_rows())?;
            Ok(match result.as_boolean_opt() {
                Some(booleans) => booleans.clone(),
                // The check is the constant NULL.
                None => BooleanArray::new_null(rows.num_rows()),
            })
        };
        evaluate().map_err(|error| execution_error(error).at(format!("check `{}`", self.sql)))
    }
}
