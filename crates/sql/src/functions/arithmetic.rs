//! Spark's arithmetic where it differs from DataFusion's: `/` is never an integer division, and ANSI mode stops at overflow and at
//! division by zero.

use std::sync::Arc;

use datafusion::arrow::array::{Array, Float64Array};
use datafusion::arrow::compute::kernels::{cmp, numeric};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::error::ArrowError;
use datafusion::common::cast::as_float64_array;
use datafusion::common::{DFSchema, Result, ScalarValue, exec_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility, cast, lit,
};
use datafusion::physical_expr_common::datum::apply;
use datafusion::sql::sqlparser::ast::BinaryOperator;

/// Plans binary operators with Spark's types.
#[derive(Debug)]
pub(crate) struct SparkArithmetic;

impl ExprPlanner for SparkArithmetic {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let (Ok(left), Ok(right)) = (expr.left.get_type(schema), expr.right.get_type(schema)) else {
            return Ok(PlannerResult::Original(expr));
        };
        let planned = match expr.op {
            BinaryOperator::Divide if divides_as_double(&left) && divides_as_double(&right) => {
                Divide::call(cast(expr.left, DataType::Float64), cast(expr.right, DataType::Float64))
            }
            BinaryOperator::MyIntegerDivide if is_numeric(&left) && is_numeric(&right) => {
                Expr::BinaryExpr(BinaryExpr::new(
                    Box::new(cast(expr.left, DataType::Int64)),
                    Operator::Divide,
                    Box::new(cast(expr.right, DataType::Int64)),
                ))
            }
            BinaryOperator::Plus | BinaryOperator::Minus | BinaryOperator::Multiply
                if left.is_signed_integer() && right.is_signed_integer() =>
            {
                let (left, right, common) = common_integers(expr.left, left, expr.right, right);
                let operation = match expr.op {
                    BinaryOperator::Plus => Operation::Add,
                    BinaryOperator::Minus => Operation::Subtract,
                    _ => Operation::Multiply,
                };
                Checked::call(operation, cast_to(left, &common, schema)?, cast_to(right, &common, schema)?)
            }
            _ => return Ok(PlannerResult::Original(expr)),
        };
        Ok(PlannerResult::Planned(planned))
    }
}

fn is_numeric(data_type: &DataType) -> bool {
    data_type.is_numeric() || data_type.is_null()
}

/// Decimals divide as decimals; all other numbers, and text, as doubles.
fn divides_as_double(data_type: &DataType) -> bool {
    data_type.is_integer()
        || data_type.is_floating()
        || data_type.is_null()
        || matches!(data_type, DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8)
}

fn cast_to(expr: Expr, to: &DataType, schema: &DFSchema) -> Result<Expr> {
    if expr.get_type(schema)? == *to { Ok(expr) } else { Ok(cast(expr, to.clone())) }
}

/// Integer literals are INT in Spark where they fit; DataFusion reads them all as BIGINT.
fn common_integers(left: Expr, left_type: DataType, right: Expr, right_type: DataType) -> (Expr, Expr, DataType) {
    let shrink = |expr: Expr, data_type: DataType| match &expr {
        Expr::Literal(ScalarValue::Int64(Some(value)), _) => match i32::try_from(*value) {
            Ok(value) => (lit(value), DataType::Int32),
            Err(_) => (expr, data_type),
        },
        _ => (expr, data_type),
    };
    let (left, left_type) = shrink(left, left_type);
    let (right, right_type) = shrink(right, right_type);
    let width = |data_type: &DataType| data_type.primitive_width().unwrap_or(8);
    let common = if width(&left_type) >= width(&right_type) { left_type } else { right_type };
    (left, right, common)
}

/// `l / r` of doubles, where a divisor of zero is an error.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Divide {
    signature: Signature,
}

impl Divide {
    fn call(left: Expr, right: Expr) -> Expr {
        let types = vec![DataType::Float64, DataType::Float64];
        let udf = ScalarUDF::from(Self { signature: Signature::exact(types, Volatility::Immutable) });
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(udf), vec![left, right]))
    }
}

impl ScalarUDFImpl for Divide {
    fn name(&self) -> &str {
        "divide"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        apply(&args.args[0], &args.args[1], |left, right| {
            let quotient = numeric::div(left, right)?;
            // Only a quotient that is infinite or NaN can come from a zero.
            if as_float64(&quotient)?.iter().flatten().any(|value| !value.is_finite()) {
                let zero = cmp::eq(right, &Float64Array::new_scalar(0.0))?;
                let negative_zero = cmp::eq(right, &Float64Array::new_scalar(-0.0))?;
                let divided = |zeros: &datafusion::arrow::array::BooleanArray| {
                    let scalar = zeros.len() == 1 && quotient.len() != 1;
                    (0..quotient.len()).any(|row| {
                        let at = if scalar { 0 } else { row };
                        quotient.is_valid(row) && zeros.is_valid(at) && zeros.value(at)
                    })
                };
                if divided(&zero) || divided(&negative_zero) {
                    return Err(ArrowError::DivideByZero);
                }
            }
            Ok(quotient)
        })
    }
}

fn as_float64(array: &dyn Array) -> Result<&Float64Array, ArrowError> {
    as_float64_array(array).map_err(|error| ArrowError::ComputeError(error.to_string()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Operation {
    Add,
    Subtract,
    Multiply,
}

/// `+`, `-` and `*` of integers of one type, where an overflow is an error.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    operation: Operation,
    signature: Signature,
}

impl Checked {
    fn call(operation: Operation, left: Expr, right: Expr) -> Expr {
        let udf = ScalarUDF::from(Self { operation, signature: Signature::any(2, Volatility::Immutable) });
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(udf), vec![left, right]))
    }
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        match self.operation {
            Operation::Add => "add",
            Operation::Subtract => "subtract",
            Operation::Multiply => "multiply",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match arg_types {
            [left, right] if left == right && left.is_integer() => Ok(left.clone()),
            types => exec_err!("{} needs two integers of one type, not {types:?}", self.name()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        apply(&args.args[0], &args.args[1], |left, right| match self.operation {
            Operation::Add => numeric::add(left, right),
            Operation::Subtract => numeric::sub(left, right),
            Operation::Multiply => numeric::mul(left, right),
        })
    }
}
