//! `-x` and `abs(x)`, where an overflow is an error.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::compute::kernels::numeric;
use datafusion::arrow::datatypes::{
    DataType, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
};
use datafusion::arrow::error::ArrowError;
use datafusion::common::{DataFusionError, Result, exec_err};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::expr::ScalarFunction;

use super::function::{Arg, Args, Call, Function, Spec, returns};
use super::types::sql_name;
use crate::error::failed;

static NEGATIVE: Spec = Spec::new("negative", Args::Fixed(1, &[Arg::Number]), returns::first, negative);

/// The functions of this file.
pub(super) static ALL: &[&Spec] = &[
    &NEGATIVE,
    &Spec::new("positive", Args::Fixed(1, &[Arg::Number]), returns::first, |call| call.array(0)),
    &Spec::new("abs", Args::Fixed(1, &[Arg::Number]), returns::first, absolute),
];

/// `-expr`
pub(crate) fn call(expr: Expr) -> Expr {
    // The function does not look at the zone.
    let udf = Function::udf(&NEGATIVE, &Arc::from("UTC"));
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(udf), vec![expr]))
}

fn overflow(data_type: &DataType) -> DataFusionError {
    failed("ARITHMETIC_OVERFLOW", format!("the result is too large for {}", sql_name(data_type)))
}

fn negative(call: &Call<'_>) -> Result<ArrayRef> {
    let array = call.array(0)?;
    numeric::neg(&array).map_err(|error| match error {
        ArrowError::ArithmeticOverflow(_) => overflow(array.data_type()),
        other => other.into(),
    })
}

fn absolute(call: &Call<'_>) -> Result<ArrayRef> {
    let array = call.array(0)?;
    macro_rules! checked {
        ($t:ty) => {
            Arc::new(
                array
                    .as_primitive::<$t>()
                    .try_unary::<_, $t, DataFusionError>(|v| {
                        v.checked_abs().ok_or_else(|| overflow(array.data_type()))
                    })?
                    .with_data_type(array.data_type().clone()),
            )
        };
    }
    Ok(match array.data_type() {
        DataType::Int8 => checked!(Int8Type),
        DataType::Int16 => checked!(Int16Type),
        DataType::Int32 => checked!(Int32Type),
        DataType::Int64 => checked!(Int64Type),
        DataType::Decimal128(..) => checked!(Decimal128Type),
        DataType::Float32 => Arc::new(array.as_primitive::<Float32Type>().unary::<_, Float32Type>(f32::abs)),
        DataType::Float64 => Arc::new(array.as_primitive::<Float64Type>().unary::<_, Float64Type>(f64::abs)),
        other => return exec_err!("abs() needs a number, not {other}"),
    })
}
