//! How operators of the SQL become expressions.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::common::{Column, DFSchema, Result, TableReference};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{Expr, ExprSchemable, ScalarUDF, lit};
use datafusion::sql::sqlparser::ast::BinaryOperator;

use super::arithmetic::{Arithmetic, Operation};
use super::cast::cast_to;
use super::types::{common, is_integral, is_string};

/// Plans operators with Spark's functions. Their types are found when the whole query is planned.
#[derive(Debug)]
pub(crate) struct SparkOperators {
    /// `concat`, for `||`.
    pub(crate) concat: Arc<ScalarUDF>,
    /// `date_add` and `date_sub`, for a date and a number of days.
    pub(crate) date_add: Arc<ScalarUDF>,
    pub(crate) date_sub: Arc<ScalarUDF>,
    /// The functions of times and intervals.
    pub(crate) times: Vec<Arc<ScalarUDF>>,
    /// A field of a struct, or of every struct of an array.
    pub(crate) field: Arc<ScalarUDF>,
}

/// The function of an operator with an interval, or with two times; and whether it takes its operands the other way around.
fn of_intervals(operation: Operation, left: &DataType, right: &DataType) -> Option<(&'static str, bool)> {
    let is_interval = |data_type: &DataType| matches!(data_type, DataType::Interval(_) | DataType::Duration(_));
    let is_point = |data_type: &DataType| matches!(data_type, DataType::Date32 | DataType::Timestamp(..));
    let is_text = |data_type: &DataType| is_string(data_type) || data_type.is_null();
    Some(match operation {
        Operation::Add if is_interval(left) && is_interval(right) => ("interval_add", false),
        Operation::Add if is_interval(right) => ("time_add", false),
        Operation::Add if is_interval(left) => ("time_add", true),
        Operation::Subtract if is_interval(left) && is_interval(right) => ("interval_subtract", false),
        Operation::Subtract if is_interval(right) => ("time_subtract", false),
        Operation::Subtract if is_point(left) && (is_point(right) || is_string(right)) => ("time_between", false),
        Operation::Subtract if is_text(left) && is_point(right) => ("time_between", false),
        Operation::Multiply if is_interval(left) && !is_interval(right) => ("interval_multiply", false),
        Operation::Multiply if is_interval(right) && !is_interval(left) => ("interval_multiply", true),
        Operation::Divide if is_interval(left) && !is_interval(right) => ("interval_divide", false),
        _ => return None,
    })
}

fn is_time(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Date32 | DataType::Timestamp(..) | DataType::Interval(_) | DataType::Duration(_))
}

/// A comparison or a logical operation in which a text beside another type is read as that type, which the planner would refuse.
fn with_text_read(mut expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
    use BinaryOperator::{And, BitwiseAnd, BitwiseOr, BitwiseXor, Eq, Gt, GtEq, Lt, LtEq, NotEq, Or, Spaceship};
    // Where a type is not known yet, the planner does not look either.
    let (Ok(left), Ok(right)) = (expr.left.get_type(schema), expr.right.get_type(schema)) else {
        return Ok(PlannerResult::Original(expr));
    };
    let wanted = match expr.op {
        And | Or if is_string(&left) || is_string(&right) => Some(DataType::Boolean),
        Eq | NotEq | Lt | LtEq | Gt | GtEq | Spaceship if is_string(&left) != is_string(&right) => {
            common(&left, &right)
        }
        BitwiseAnd | BitwiseOr | BitwiseXor if is_string(&left) != is_string(&right) => common(&left, &right),
        _ => None,
    };
    if let Some(wanted) = wanted {
        for (side, data_type) in [(&mut expr.left, left), (&mut expr.right, right)] {
            if is_string(&data_type) {
                *side = cast_to(std::mem::take(side), &data_type, &wanted, false)?;
            }
        }
    }
    Ok(PlannerResult::Original(expr))
}

impl ExprPlanner for SparkOperators {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let call = |udf: &Arc<ScalarUDF>, left, right| {
            Expr::ScalarFunction(ScalarFunction::new_udf(udf.clone(), vec![left, right]))
        };
        if expr.op == BinaryOperator::StringConcat {
            return Ok(PlannerResult::Planned(call(&self.concat, expr.left, expr.right)));
        }
        let (operation, lenient) = match &expr.op {
            BinaryOperator::Plus => (Operation::Add, false),
            BinaryOperator::Minus => (Operation::Subtract, false),
            BinaryOperator::Multiply => (Operation::Multiply, false),
            BinaryOperator::Divide => (Operation::Divide, false),
            BinaryOperator::MyIntegerDivide => (Operation::DivideWhole, false),
            BinaryOperator::Modulo => (Operation::Remainder, false),
            BinaryOperator::Custom(name) => match name.as_str() {
                "try_add" => (Operation::Add, true),
                "try_subtract" => (Operation::Subtract, true),
                "try_multiply" => (Operation::Multiply, true),
                "try_divide" => (Operation::Divide, true),
                _ => return Ok(PlannerResult::Original(expr)),
            },
            _ => return with_text_read(expr, schema),
        };
        let (left, right) = (expr.left.get_type(schema)?, expr.right.get_type(schema)?);
        if let Some((name, swapped)) = of_intervals(operation, &left, &right) {
            let Some(function) = self.times.iter().find(|function| function.name() == name) else {
                return Ok(PlannerResult::Original(expr));
            };
            let (left, right) = if swapped { (expr.right, expr.left) } else { (expr.left, expr.right) };
            return Ok(PlannerResult::Planned(call(function, left, right)));
        }
        if !is_time(&left) && !is_time(&right) {
            return Ok(PlannerResult::Planned(Arithmetic::call(operation, lenient, expr.left, expr.right)));
        }
        Ok(match (operation, &left, &right) {
            (Operation::Add, DataType::Date32, days) if is_integral(days) || days.is_null() => {
                PlannerResult::Planned(call(&self.date_add, expr.left, expr.right))
            }
            (Operation::Add, days, DataType::Date32) if is_integral(days) => {
                PlannerResult::Planned(call(&self.date_add, expr.right, expr.left))
            }
            (Operation::Subtract, DataType::Date32, days) if is_integral(days) => {
                PlannerResult::Planned(call(&self.date_sub, expr.left, expr.right))
            }
            (_, text, _) | (_, _, text) if is_string(text) => {
                return Err(super::types::mismatch(
                    "BINARY_OP_DIFF_TYPES",
                    format!(
                        "`{}` does not work on {} and {}: cast the text",
                        expr.op,
                        super::types::sql_name(&left),
                        super::types::sql_name(&right)
                    ),
                ));
            }
            (_, DataType::Null, _) | (_, _, DataType::Null) if lenient => {
                PlannerResult::Planned(Arithmetic::call(operation, lenient, expr.left, expr.right))
            }
            (_, DataType::Null, _) | (_, _, DataType::Null) => PlannerResult::Original(expr),
            (operation, left, right) => {
                let of_date = operation == Operation::Add
                    && matches!((left, right), (DataType::Date32, _) | (_, DataType::Date32));
                return Err(super::types::mismatch(
                    if of_date { "UNEXPECTED_INPUT_TYPE" } else { "BINARY_OP_DIFF_TYPES" },
                    format!(
                        "`{}` does not work on {} and {}",
                        expr.op,
                        super::types::sql_name(left),
                        super::types::sql_name(right)
                    ),
                ));
            }
        })
    }

    fn plan_compound_identifier(
        &self,
        field: &Field,
        qualifier: Option<&TableReference>,
        nested_names: &[String],
    ) -> Result<PlannerResult<Vec<Expr>>> {
        let column = Expr::Column(Column::from((qualifier, field)));
        Ok(PlannerResult::Planned(nested_names.iter().fold(column, |of, name| {
            Expr::ScalarFunction(ScalarFunction::new_udf(self.field.clone(), vec![of, lit(name.clone())]))
        })))
    }
}
